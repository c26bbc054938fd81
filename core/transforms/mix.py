"""Blending of neighbouring clips and their labels, on a whole batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from core.transforms.clip import describe, is_raw


@dataclass(frozen=True)
class Mixup:
    """Blends every clip and its label with those of the clip before it in the batch (Zhang et al., 2018)."""

    alpha: float = 0.8

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ValueError(f"{type(self).__name__}.alpha must be above 0; got {self.alpha!r}")

    def __call__(self, video: Tensor, labels: Tensor, rng: Random) -> tuple[Tensor, Tensor]:
        """Video (B,...,3,T,H,W) float and labels (B,...,K) float, as shares of classes; both mixed, shapes kept."""
        _check_mixable(video, labels, self)
        share = rng.betavariate(self.alpha, self.alpha)
        return torch.lerp(video.roll(1, 0), video, share), torch.lerp(labels.roll(1, 0), labels, share)


@dataclass(frozen=True)
class CutMix(Mixup):
    """Pastes one box, in all frames, from the clip before; labels mix by the area pasted (Yun et al., 2019)."""

    alpha: float = 1.0

    def __call__(self, video: Tensor, labels: Tensor, rng: Random) -> tuple[Tensor, Tensor]:
        """Video (B,...,3,T,H,W) float and labels (B,...,K) float, as shares of classes; both mixed, shapes kept."""
        _check_mixable(video, labels, self)
        height, width = video.shape[-2:]
        side = math.sqrt(1 - rng.betavariate(self.alpha, self.alpha))
        middle, half = (rng.randrange(height), rng.randrange(width)), (side * height / 2, side * width / 2)
        top, bottom = (min(max(round(middle[0] + way * half[0]), 0), height) for way in (-1, 1))
        left, right = (min(max(round(middle[1] + way * half[1]), 0), width) for way in (-1, 1))
        mixed = video.clone()
        mixed[..., top:bottom, left:right] = video.roll(1, 0)[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)  # of what the frame's edge left of the box
        return mixed, torch.lerp(labels.roll(1, 0), labels, share)


def _check_mixable(video: Tensor, labels: Tensor, taker: object) -> None:
    if is_raw(video, taker) or video.ndim < 5:
        raise ValueError(f"{type(taker).__name__} takes a float batch (B,3,T,H,W); got {describe(video)}")
    if not labels.is_floating_point() or labels.ndim < 2 or len(labels) != len(video):
        raise ValueError(
            f"{type(taker).__name__} takes labels as shares of classes, float ({len(video)},K); "
            f"got {describe(labels)}; torch.nn.functional.one_hot(labels, classes).float() makes them"
        )
