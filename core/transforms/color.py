"""Steps that change colors, and RandAugment, which also turns and shifts the frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.transforms.clip import Step, is_raw, to_float

_TONES = ("identity", "autocontrast", "equalize", "solarize", "posterize")
_FACTORS = ("color", "contrast", "brightness", "sharpness")
_MOTIONS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*_TONES, *_FACTORS, *_MOTIONS)


def _kernel(name: str) -> Callable[..., Any]:
    """One of torchvision's image kernels; loaded on use, because that takes as long as loading torch."""
    from torchvision.transforms.v2 import functional

    kernel: Callable[..., Any] = getattr(functional, name)
    return kernel


@dataclass(frozen=True)
class ColorJitter(Step):
    """Brightness, contrast, saturation by factors from 1 -+ strength, hue by a turn of -+ strength; in random order.

    One factor each for the whole clip; hue's strength is at most 0.5, half a turn. Strength 0 changes nothing.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    random: ClassVar[bool] = True
    before_normalize: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            strength, most = getattr(self, name), 0.5 if name == "hue" else math.inf
            if not 0 <= strength <= most:
                raise ValueError(f"ColorJitter.{name} must be from 0 to {most}; got {strength!r}")

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """Raw or float in 0..1 to float (...,3,T,H,W) in 0..1."""
        frames = to_float(clip, is_raw(clip, self)).transpose(-4, -3)
        for name in rng.sample(("brightness", "contrast", "saturation", "hue"), 4):
            strength = getattr(self, name)
            low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
            amount = rng.uniform(low, high)
            if strength:
                frames = _kernel(f"adjust_{name}")(frames, amount)
        return frames.transpose(-4, -3)


@dataclass(frozen=True)
class RandAugment(Step):
    """`ops` operations drawn from `OPERATIONS`, each at strength `magnitude` of 30, the same for all frames.

    Cubuk et al., 2020, with torchvision's ranges: angles to 30 degrees, shear to 0.3, shift to 0.45 of the side, color
    factors 1 -+ 0.9; the sign is drawn. What turns in from outside is black.
    """

    ops: int = 2
    magnitude: float = 9.0
    random: ClassVar[bool] = True
    before_normalize: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.ops < 0 or not 0 <= self.magnitude <= 30:
            raise ValueError(f"RandAugment takes ops >= 0 and a magnitude from 0 to 30; got {self}")

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """Raw, or float in 0..1; shape and state kept."""
        raw = is_raw(clip, self)
        frames = clip.movedim(-1, -3) if raw else clip.transpose(-4, -3)  # (...,T,3,H,W)
        for name in rng.choices(OPERATIONS, k=self.ops):
            frames = augment(frames, name, self.magnitude / 30, rng.choice((-1, 1)))
        return frames.movedim(-3, -1) if raw else frames.transpose(-4, -3)


def augment(frames: Tensor, name: str, strength: float, sign: int) -> Tensor:
    """One of `OPERATIONS` on frames (...,3,H,W) at a strength from 0 to 1; the sign counts where there are two ways."""
    amount = sign * strength
    match name:
        case "identity":
            out = frames
        case "autocontrast" | "equalize":
            out = _kernel(name)(frames)
        case "solarize":
            out = _kernel(name)(frames, (1 - strength) * (255 if frames.dtype == torch.uint8 else 1.0))
        case "posterize":
            bits = 8 - round(4 * strength)
            out = frames if bits == 8 else _kernel(name)(frames, bits)
        case "color":
            out = _kernel("adjust_saturation")(frames, 1 + 0.9 * amount)
        case "contrast" | "brightness" | "sharpness":
            out = _kernel(f"adjust_{name}")(frames, 1 + 0.9 * amount)
        case "rotate":
            out = _warp(frames, angle=30 * amount)
        case "shear_x" | "shear_y":
            angle = math.degrees(math.atan(0.3 * amount))
            out = _warp(frames, shear=[angle, 0.0] if name == "shear_x" else [0.0, angle], center=[0, 0])
        case "translate_x" | "translate_y":
            height, width = frames.shape[-2:]
            along, size = (0, width) if name == "translate_x" else (1, height)
            shift = [0, 0]
            shift[along] = round(150 / 331 * size * amount)
            out = _warp(frames, translate=shift)
        case _:
            raise ValueError(f"RandAugment has no operation {name!r}; it has {', '.join(OPERATIONS)}")
    assert isinstance(out, Tensor)
    return out


def _warp(frames: Tensor, **motion: Any) -> Any:
    from torchvision.transforms import InterpolationMode

    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": None}
    return _kernel("affine")(frames, **{**still, **motion}, interpolation=InterpolationMode.BILINEAR)
