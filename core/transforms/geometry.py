"""Steps that choose, resize, mirror or blank a part of the frame, the same for all frames of a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from core.transforms.clip import Channels, Step, channels, cut, describe, frame_size, is_raw, per_channel, to_float


def _resize(clip: Tensor, raw: bool, size: tuple[int, int], antialias: bool) -> Tensor:
    if clip.ndim > 4 and clip.device.type == "cpu":  # clip by clip the floats stay in cache: half the time of a batch
        return torch.stack([_resize(one, raw, size, antialias) for one in clip])
    clip = to_float(clip, raw)
    if clip.shape[-2:] == size:
        return clip
    planes = clip.flatten(0, -4)  # (...*3,T,H,W): to the kernel every plane is alike
    resized = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=antialias)
    return resized.view(*clip.shape[:-2], *size)


def _short_side(height: int, width: int, size: int) -> tuple[int, int]:
    # The long side is floored, in the order of operations of SlowFast and pytorchvideo: it decides on one pixel.
    if width < height:
        return math.floor(height / width * size), size
    return size, math.floor(width / height * size)


def _span(values: Sequence[float], name: str, *, low: float, high: float = math.inf) -> None:
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        limits = f"{low} <= min <= max" + ("" if high == math.inf else f" <= {high}")
        raise ValueError(f"{name} takes (min, max) with {limits}; got {values!r}")


def _probability(p: float, name: str) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{name} is a probability, 0 to 1; got {p!r}")


def _positive(value: int, name: str) -> None:
    if value < 1:
        raise ValueError(f"{name} takes a size of at least 1 pixel; got {value!r}")


@dataclass(frozen=True)
class ShortSide(Step):
    """Resizes so that the short side is `size` pixels; bilinear, the long side floored, the aspect kept."""

    size: int
    antialias: bool = False

    def __post_init__(self) -> None:
        _positive(self.size, "ShortSide")

    def __call__(self, clip: Tensor, rng: Random | None = None) -> Tensor:
        """Raw or float to float (...,3,T,h,w) with min(h,w) = size."""
        raw = is_raw(clip, self)
        return _resize(clip, raw, _short_side(*frame_size(clip, raw), self.size), self.antialias)


@dataclass(frozen=True)
class RandomShortSide(Step):
    """Scale jitter: `ShortSide` with a size drawn from low..high, both included.

    `inverse` draws 1/size evenly instead (SlowFast's INV_UNIFORM_SAMPLE), which favours small sizes.
    """

    low: int
    high: int
    inverse: bool = False
    antialias: bool = False
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _span((self.low, self.high), "RandomShortSide", low=1)

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """Raw or float to float (...,3,T,h,w)."""
        raw = is_raw(clip, self)
        size = round(1 / rng.uniform(1 / self.high, 1 / self.low)) if self.inverse else rng.randint(self.low, self.high)
        return _resize(clip, raw, _short_side(*frame_size(clip, raw), size), self.antialias)


@dataclass(frozen=True)
class CenterCrop(Step):
    """The middle `size` x `size` pixels; offsets round half to even, as torchvision's.

    A smaller frame is an error, unless `fill` says what to put around it, in the clip's own values (0..1 for a raw
    clip, which becomes float). So `[CenterCrop(s, fill=mean), Normalize(mean, std)]` equals
    `[Normalize(mean, std), CenterCrop(s, fill=0.0)]` and never normalizes a pixel that is cut away.
    """

    size: int
    fill: Channels | None = None

    def __post_init__(self) -> None:
        _positive(self.size, "CenterCrop")
        if self.fill is not None:
            object.__setattr__(self, "fill", channels(self.fill, "CenterCrop.fill"))

    def __call__(self, clip: Tensor, rng: Random | None = None) -> Tensor:
        """Raw or float (...,H,W) to (...,size,size); raw stays raw where nothing is filled in."""
        raw = is_raw(clip, self)
        height, width = frame_size(clip, raw)
        inner = min(height, self.size), min(width, self.size)
        if inner != (self.size, self.size) and self.fill is None:
            raise ValueError(_too_small(self, self.size, height, width))
        top, left = round((height - inner[0]) / 2), round((width - inner[1]) / 2)
        clip = cut(clip, raw, top, left, *inner)
        if inner == (self.size, self.size):
            return clip
        assert self.fill is not None
        clip = clip.movedim(-1, -4) if raw else clip
        dtype = torch.float32 if raw else clip.dtype
        out = torch.empty((*clip.shape[:-2], self.size, self.size), dtype=dtype, device=clip.device)
        out.copy_(per_channel(self.fill, dtype, clip.device).expand_as(out))
        middle = cut(out, False, (self.size - inner[0]) // 2, (self.size - inner[1]) // 2, *inner)
        middle.copy_(clip)
        if raw:
            middle.div_(255)
        return out


@dataclass(frozen=True)
class RandomCrop(Step):
    """`size` x `size` pixels from anywhere in the frame."""

    size: int
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive(self.size, "RandomCrop")

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """Raw or float (...,H,W) to (...,size,size), state kept."""
        raw = is_raw(clip, self)
        height, width = frame_size(clip, raw)
        if min(height, width) < self.size:
            raise ValueError(_too_small(self, self.size, height, width))
        top, left = rng.randint(0, height - self.size), rng.randint(0, width - self.size)
        return cut(clip, raw, top, left, self.size, self.size)


def _too_small(step: object, size: int, height: int, width: int) -> str:
    name = type(step).__name__
    way_out = "put ShortSide before it" + (" or pass fill" if isinstance(step, CenterCrop) else "")
    return f"{name}({size}) needs frames of at least {size}x{size}, got {height}x{width} (height x width); {way_out}"


def _region(
    rng: Random, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int] | None:
    """A box (top, left, height, width) with an area and width/height drawn from their spans; None after ten misses."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    return None


@dataclass(frozen=True)
class RandomResizedCrop(Step):
    """Inception's crop: a box with a random share of the area and aspect (width/height), resized to size x size."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    antialias: bool = False
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive(self.size, "RandomResizedCrop")
        _span(self.scale, "RandomResizedCrop.scale", low=1e-6, high=1.0)
        _span(self.ratio, "RandomResizedCrop.ratio", low=1e-6)

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """Raw or float to float (...,3,T,size,size)."""
        raw = is_raw(clip, self)
        height, width = frame_size(clip, raw)
        box = _region(rng, height, width, self.scale, self.ratio)
        if box is None:  # no such box in this frame: the largest one of the nearest aspect, in the middle
            aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
            h, w = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
            box = (height - h) // 2, (width - w) // 2, h, w
        return _resize(cut(clip, raw, *box), raw, (self.size, self.size), self.antialias)


@dataclass(frozen=True)
class ThreeCrops(Step):
    """Three size x size views along the long side (left, center, right; top, middle, bottom of a tall frame).

    The middle offset is rounded up, as SlowFast's uniform_crop does.
    """

    size: int

    def __post_init__(self) -> None:
        _positive(self.size, "ThreeCrops")

    def __call__(self, clip: Tensor, rng: Random | None = None) -> Tensor:
        """Raw (...,T,H,W,3) to (...,3,T,S,S,3), float (...,3,T,H,W) to (...,3,3,T,S,S): views before the clip."""
        raw = is_raw(clip, self)
        height, width = frame_size(clip, raw)
        down, right = height - self.size, width - self.size
        if min(down, right) < 0:
            raise ValueError(_too_small(self, self.size, height, width))
        middle = math.ceil(down / 2), math.ceil(right / 2)
        ends = ((0, middle[1]), (down, middle[1])) if height > width else ((middle[0], 0), (middle[0], right))
        views = [cut(clip, raw, top, left, self.size, self.size) for top, left in (ends[0], middle, ends[1])]
        return torch.stack(views, dim=-5)


@dataclass(frozen=True)
class Flip(Step):
    """Mirrors left and right, with probability `p`."""

    p: float = 0.5
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _probability(self.p, "Flip.p")

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """Shape and state kept."""
        raw = is_raw(clip, self)
        return clip.flip(-2 if raw else -1) if rng.random() < self.p else clip


@dataclass(frozen=True)
class Erase(Step):
    """With probability `p` fills one box, the same in all frames (random erasing, Zhong et al., 2020).

    `fill` is in the clip's own values (0..1 for a raw clip); "noise" is N(0,1) for every pixel, after `Normalize`.
    """

    p: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: float | str = 0.0
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _probability(self.p, "Erase.p")
        _span(self.scale, "Erase.scale", low=1e-6, high=1.0)
        _span(self.ratio, "Erase.ratio", low=1e-6)
        if isinstance(self.fill, str) and self.fill != "noise":
            raise ValueError(f'Erase.fill is a number or "noise"; got {self.fill!r}')

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """Shape and state kept."""
        raw = is_raw(clip, self)
        if raw and self.fill == "noise":
            raise ValueError(f"Erase fills float clips only with noise, got {describe(clip)}; put it after Normalize")
        box = _region(rng, *frame_size(clip, raw), self.scale, self.ratio) if rng.random() < self.p else None
        if box is None:
            return clip
        clip = clip.clone()
        inside = cut(clip, raw, *box)
        if isinstance(self.fill, str):  # drawn on the host: the same noise for every device
            noise = torch.randn((3, 1, *box[2:]), generator=torch.Generator().manual_seed(rng.getrandbits(63)))
            inside.copy_(noise.to(clip.device, clip.dtype).expand_as(inside))
        else:
            inside.fill_(round(255 * self.fill) if raw else self.fill)
        return clip
