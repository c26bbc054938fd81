"""The two states of a clip, what all steps share, and the two steps from one state to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

Channels = float | tuple[float, float, float]  # one number for all, or one each for R, G and B


class Step:
    """One change of a clip, `step(clip, rng)`; dimensions in front of the clip's own are left alone.

    What comes back is the clip itself, a view of it, or memory made for it.
    """

    random: ClassVar[bool] = False  # draws from rng, so that the clips of a batch go one by one
    before_normalize: ClassVar[bool] = False  # is defined on values 0..1 only

    def __call__(self, clip: Tensor, rng: Random) -> Tensor:
        """The changed clip; the one given is never written to."""
        raise NotImplementedError

    def consume(self, clip: Tensor, rng: Random) -> Tensor:
        """The same, for a clip that nobody needs afterwards: its memory may be used for the result."""
        return self(clip, rng)


def is_raw(clip: Tensor, taker: object) -> bool:
    """True for a raw clip, False for a float one.

    Raises:
        ValueError: for anything else, in the name of the step that takes it.
    """
    if clip.ndim >= 4 and clip.numel():
        if clip.dtype == torch.uint8 and clip.shape[-1] == 3:
            return True
        if clip.is_floating_point() and clip.shape[-4] == 3:
            return False
    raise ValueError(
        f"{type(taker).__name__} takes a clip with frames in it, raw uint8 (T,H,W,3) or float (3,T,H,W); "
        f"got {describe(clip)}"
    )


def describe(tensor: Tensor) -> str:
    """Dtype and shape, for messages: "uint8 (8, 240, 320, 3)"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def frame_size(clip: Tensor, raw: bool) -> tuple[int, int]:
    """Height and width in pixels."""
    height, width = clip.shape[-3:-1] if raw else clip.shape[-2:]
    return height, width


def cut(clip: Tensor, raw: bool, top: int, left: int, height: int, width: int) -> Tensor:
    """The box in every frame, as a view of the clip."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    return clip[..., rows, columns, :] if raw else clip[..., rows, columns]


def to_float(clip: Tensor, raw: bool) -> Tensor:
    """Float (...,3,T,H,W) in 0..1; a float clip comes back as it is, a raw one in fresh, contiguous memory."""
    if not raw:
        return clip
    return clip.movedim(-1, -4).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def channels(values: Channels | Sequence[float], name: str) -> Channels:
    """The setting `name` as one float or three.

    Raises:
        ValueError: for another number of values.
    """
    if isinstance(values, int | float):
        return float(values)
    if len(values) != 3:
        raise ValueError(f"{name} takes one number or one for each of R, G and B; got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])


@lru_cache(maxsize=64)
def per_channel(values: Channels, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as (3,1,1,1) on the device; kept, so that no batch waits for three numbers to be copied."""
    triple = values if isinstance(values, tuple) else (values,) * 3
    with torch.inference_mode(False):  # made during an evaluation, used in training afterwards
        return torch.tensor(triple, dtype=dtype, device=device).view(3, 1, 1, 1)


@dataclass(frozen=True)
class ToFloat(Step):
    """Raw to float in 0..1; float clips pass."""

    def __call__(self, clip: Tensor, rng: Random | None = None) -> Tensor:
        """Raw or float to float (...,3,T,H,W)."""
        return to_float(clip, is_raw(clip, self))


@dataclass(frozen=True)
class Normalize(Step):
    """(value - mean) / std for each channel, on values 0..1; raw clips become float first."""

    mean: Channels
    std: Channels

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", channels(self.mean, "Normalize.mean"))
        object.__setattr__(self, "std", channels(self.std, "Normalize.std"))
        if min(self.std if isinstance(self.std, tuple) else (self.std,)) <= 0:
            raise ValueError(f"Normalize.std must be above 0; got {self.std!r}")

    def __call__(self, clip: Tensor, rng: Random | None = None) -> Tensor:
        """Raw or float to float (...,3,T,H,W)."""
        return self._apply(clip, inplace=False)

    def consume(self, clip: Tensor, rng: Random | None = None) -> Tensor:
        """As a call, in the memory of a float clip."""
        return self._apply(clip, inplace=True)

    def _apply(self, clip: Tensor, inplace: bool) -> Tensor:
        raw = is_raw(clip, self)
        clip = to_float(clip, raw)
        mean, std = (per_channel(values, clip.dtype, clip.device) for values in (self.mean, self.std))
        return (clip.sub_(mean) if raw or inplace else clip.sub(mean)).div_(std)
