"""The networks: S-GEAR on frames or on stored features, and AVT, its baseline without prototypes."""

from __future__ import annotations

from projects.sgear.model.sgear import Outputs, Sgear

__all__ = ["Outputs", "Sgear"]
