"""What is known about a video, and the one exception every reader raises."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any


class VideoError(ValueError):
    """A video that cannot be used: `path` says which, `reason` what is wrong and what to do."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FrameIndexError(VideoError, IndexError):
    """A frame or time outside the video; the reason names its true length."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts of one video, all plain Python values.

    `frames` is the number of frames a reader gives, `promised` what the header says (0: nothing). `height` and `width`
    are those of the stored picture; turned `rotation` degrees counterclockwise it stands upright. `start_s` is the
    container's time of the first frame; all times of this package count from that frame. `seekable` is False where
    frames can only be reached by decoding from the start. `lost` counts packets damaged beyond decoding. The time
    of every frame is a whole number of ticks of `tick_s` seconds, the container's time base; 0 without times.
    """

    frames: int
    fps: float
    duration_s: float
    height: int
    width: int
    rotation: int
    codec: str
    pixel_format: str
    container: str
    start_s: float
    audio: bool
    seekable: bool
    lost: int
    promised: int
    tick_s: float = 0.0


def rational(value: Any) -> Fraction:
    """The exact fraction of a rate or time base, which by PyAV's version is a Fraction or its own class; 0 for none."""
    if value is None or not value.denominator:
        return Fraction(0)
    return Fraction(int(value.numerator), int(value.denominator))
