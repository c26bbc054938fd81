"""Decoded frames -> what the model sees: scale, crop, flip, normalize, on the device."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    Flip,
    Normalize,
    OnKey,
    RandomCrop,
    RandomShortSide,
    ShortSide,
    Step,
)
from projects.sgear.config import Config, PixelConfig

Transform = Callable[[dict[str, Any], list[random.Random]], dict[str, Any]]


@dataclass(frozen=True)
class CornerCrops(Step):
    """Views of `size` x `size` pixels: top left, center and bottom right; with `flips` the same three mirrored."""

    size: int
    flips: bool = False

    def __call__(self, clip: Tensor, rng: random.Random | None = None) -> Tensor:
        """Float (...,3,T,H,W), or raw (...,T,H,W,3), to (...,N,<clip>): views before the clip."""
        raw = clip.dtype == torch.uint8
        height, width = clip.shape[-3:-1] if raw else clip.shape[-2:]
        if min(height, width) < self.size:
            raise ValueError(f"frames of {height}x{width} have no room for crops of {self.size}; scale them first")
        center = round((height - self.size) / 2), round((width - self.size) / 2)
        corners = ((0, 0), center, (height - self.size, width - self.size))
        boxes = [(slice(top, top + self.size), slice(left, left + self.size)) for top, left in corners]
        views = [clip[..., rows, columns, :] if raw else clip[..., rows, columns] for rows, columns in boxes]
        return torch.stack(_mirrored(views, raw) if self.flips else views, dim=-5)


@dataclass(frozen=True)
class CenterAndMirror(Step):
    """The middle `size` x `size` pixels and their mirror image, two views."""

    size: int

    def __call__(self, clip: Tensor, rng: random.Random | None = None) -> Tensor:
        """As `CornerCrops`."""
        view = CenterCrop(self.size)(clip)
        return torch.stack(_mirrored([view], clip.dtype == torch.uint8), dim=-5)


def _mirrored(views: list[Tensor], raw: bool) -> list[Tensor]:
    return [*views, *(view.flip(-2 if raw else -1) for view in views)]


def pipeline(cfg: PixelConfig, crop: int, *, train: bool = False, crops: int = 1, flips: bool = False) -> Compose:
    """Raw clips to float (B,3,T,crop,crop); several views come after B.

    Scaling is bilinear without antialiasing, of values in 0..1, the long side cut to whole pixels. Cropping comes
    before normalizing: the values are those of the published order, without work on pixels that are cut away.
    """
    normalize = Normalize(cfg.mean, cfg.std)
    if train:
        jitter: list[Step] = [ColorJitter(*cfg.jitter)] if any(cfg.jitter) else []
        return Compose([RandomShortSide(*cfg.train_short_side), RandomCrop(crop), Flip(cfg.flip), *jitter, normalize])
    views = {
        (1, False): CenterCrop(crop),
        (1, True): CenterAndMirror(crop),
        (3, False): CornerCrops(crop),
        (3, True): CornerCrops(crop, flips=True),
    }
    return Compose([ShortSide(cfg.short_side), views[crops, flips], normalize])


def transform(cfg: Config, *, train: bool = False, crops: int = 1, flips: bool = False) -> Transform | None:
    """What a loader does to a batch on the device; None for features, which stay as they are."""
    if cfg.data.source == "features":
        return None
    return OnKey("video", pipeline(cfg.pixels, cfg.model.vit.image, train=train, crops=crops, flips=flips))


def example(cfg: Config) -> Tensor:
    """One clip as the model sees it, of zeros: (1,3,T,crop,crop), or (1,T,C) for features."""
    if cfg.data.source == "features":
        return torch.zeros(1, cfg.data.frames, cfg.model.feature_dim)
    return torch.zeros(1, 3, cfg.data.frames, cfg.model.vit.image, cfg.model.vit.image)
