"""ActionFormer, SnapFormer and TBTFormer, channels last inside, with the module names of official checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from projects.actionformer.model.detector import (
    ActionFormer,
    Detector,
    Outputs,
    SnapFormer,
    TBTFormer,
    by_length,
)
from projects.actionformer.model.length import Padding

if TYPE_CHECKING:
    from projects.actionformer.config import ModelConfig

__all__ = ["ActionFormer", "Detector", "Outputs", "Padding", "SnapFormer", "TBTFormer", "build", "by_length", "example"]


def build(cfg: ModelConfig, *, channels: Sequence[int], classes: int, max_length: int) -> Detector:
    """The network of a configuration, with new weights.

    `channels` has one number for each source of features, `max_length` is the longest training crop, in features.

    Raises:
        ValueError: for widths, windows or levels that do not fit each other.
    """
    kinds = {"actionformer": ActionFormer, "snapformer": SnapFormer, "tbtformer": TBTFormer}
    return kinds[cfg.name](cfg, channels, classes, max_length)


def example(net: Detector, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Features (1,C,T) and mask (1,T) of one video as long as a training crop: for summaries."""
    length, channels = net.padding.max_length, sum(net.backbone.channels)
    return torch.zeros(1, channels, length, device=device), torch.ones(1, length, dtype=torch.bool, device=device)
