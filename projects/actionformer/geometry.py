"""Between seconds and the grid of features, and what a training crop leaves of the actions.

Feature i of a video saw `window` frames from frame i * stride on and stands for their middle:

    grid = seconds * fps / stride - 0.5 * window / stride        seconds = (grid * stride + 0.5 * window) / fps

Slightly negative grid positions are normal: an action may begin before the middle of the first window.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Times = TypeVar("Times", bound=Any)
TRIALS = 200  # random crops that are tried until one keeps an action, as in the official reader


class Geometry(NamedTuple):
    """How features lie on the time of their video: frames per second, frames from one to the next and in each."""

    fps: float
    stride_frames: float
    window_frames: float

    @property
    def lead(self) -> float:
        """Half a window, in features: how far an action may reach beyond the first and last position."""
        return 0.5 * self.window_frames / self.stride_frames

    def grid(self, seconds: Times) -> Times:
        """Positions on the grid of features of times in seconds: numbers, arrays or tensors."""
        grid: Times = seconds * self.fps / self.stride_frames - self.lead
        return grid

    def seconds(self, grid: Times) -> Times:
        """Times in seconds of positions on the grid."""
        seconds: Times = (grid * self.stride_frames + 0.5 * self.window_frames) / self.fps
        return seconds

    def every(self, rows: int) -> Geometry:
        """The geometry when only every so many features are kept."""
        return self if rows == 1 else self._replace(stride_frames=self.stride_frames * rows)

    def stretched(self, length: int, wanted: int) -> Geometry:
        """The geometry when `length` features are resampled to `wanted` that share the same frames evenly."""
        stride = float((length - 1) * self.stride_frames + self.window_frames) / wanted
        return Geometry(self.fps, stride, stride)


class Crop(NamedTuple):
    """Features start:stop, and the actions that are in them, counted from its start."""

    start: int
    stop: int
    segments: NDArray[np.float32]
    labels: NDArray[np.int64]


def crop(
    length: int,
    segments: NDArray[np.float32],
    labels: NDArray[np.int64],
    rng: random.Random,
    *,
    most: int,
    lead: float,
    keep: float,
    ratio: tuple[float, float] | None = None,
    whole: bool = False,
    points: bool = False,
) -> Crop:
    """A random stretch of a video for training, drawn in the order of the official reader.

    Longer videos are cut to `most` features. Shorter ones stay as they are, or keep a random share within `ratio`. Up
    to 200 places are tried until one holds an action; an action counts when at least the share `keep` of it lies in the
    stretch, which `lead` extends to both sides, and is cut at its ends.

    Args:
        length: features of the video.
        segments: actions on the grid, (N, 2).
        labels: their classes, (N,).
        rng: all chance comes from it.
        most, lead, keep, ratio: see above.
        whole: also insist that no action is cut.
        points: keep actions without length that lie in the stretch; the official reader loses them (0 / 0).
    """
    if length <= most:
        if ratio is None:
            return Crop(0, length, segments, labels)
        most = rng.randint(max(round(ratio[0] * length), 1), min(round(ratio[1] * length), length))
        if most == length:
            return Crop(0, length, segments, labels)
    start = 0
    left = right = segments[:, 0]
    kept = np.zeros(len(segments), dtype=bool)
    spans = np.abs(segments[:, 1] - segments[:, 0])
    for _ in range(TRIALS):
        start = rng.randint(0, length - most)
        left = np.maximum(np.float32(start) - np.float32(lead), segments[:, 0])
        right = np.minimum(np.float32(start + most) + np.float32(lead), segments[:, 1])
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (right - left).clip(min=0) / spans
        if points:
            share = np.where(spans > 0, share, right >= left)
        kept = share >= keep
        cut = whole and bool(((share > 0) & (share < 1)).any())
        if not len(segments) or (kept.any() and not cut):
            break
    inside = np.stack([left[kept], right[kept]], axis=1) - np.float32(start)
    return Crop(start, start + most, inside.astype(np.float32, copy=False), labels[kept])


def within(
    length: float, segments: NDArray[np.float32], labels: NDArray[np.int64], keep: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The actions that lie in a grid of `length`, cut at its end; those with less than the share `keep` in it go.

    For videos whose features end before their annotations do, as some of ActivityNet.
    """
    chosen = []
    for i, (start, end) in enumerate(segments.tolist()):
        span = end - start
        if start < length and (span <= 0 or (min(end, length) - start) / span >= keep):
            chosen.append(i)
    return segments[chosen].clip(max=np.float32(length)), labels[chosen]
