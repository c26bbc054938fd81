"""The networks: S-GEAR on frames or on stored features, and AVT, its baseline without prototypes."""

from __future__ import annotations

from projects.sgear.model.sgear import Outputs, Sgear
from projects.sgear.model.stream import Stream

__all__ = ["Outputs", "Sgear", "Stream"]
