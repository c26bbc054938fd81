"""The networks: X3D XS to L and SlowFast R50; which part of them learns; a faster copy for inference."""

from __future__ import annotations

from typing import Protocol

from projects.ucf50_x3d.model.blocks import Activation, Head
from projects.ucf50_x3d.model.freeze import freeze, frozen_eval, replace_head, train
from projects.ucf50_x3d.model.fuse import fuse
from projects.ucf50_x3d.model.slowfast import SlowFast, pack
from projects.ucf50_x3d.model.x3d import VARIANTS, X3D

__all__ = [
    "NAMES",
    "VARIANTS",
    "X3D",
    "Activation",
    "Head",
    "SlowFast",
    "build",
    "freeze",
    "frozen_eval",
    "fuse",
    "pack",
    "replace_head",
    "train",
]

NAMES = (*(f"x3d_{variant}" for variant in VARIANTS), "slowfast_r50")


class Wish(Protocol):
    """What `build` wants to know; the model section of the configuration says it."""

    @property
    def name(self) -> str:
        """One of NAMES."""

    @property
    def dropout(self) -> float:
        """Share of the features dropped before the last layer."""


def build(wish: Wish, classes: int, *, head_activation: Activation = "none") -> X3D | SlowFast:
    """A network with fresh weights.

    Raises: ValueError for an unknown name.
    """
    if wish.name == "slowfast_r50":
        return SlowFast(classes, dropout=wish.dropout, head_activation=head_activation)
    if wish.name in NAMES:
        variant = wish.name.removeprefix("x3d_")
        return X3D(variant, classes, dropout=wish.dropout, head_activation=head_activation)
    raise ValueError(f"there is no model {wish.name!r}; choose one of {', '.join(NAMES)}")
