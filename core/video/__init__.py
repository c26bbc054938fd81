"""Video in and out: exact frames by number or time from files and folders of pictures, and writing h264.

Frames are RGB uint8 (T,H,W,3); times are seconds from the first frame. Frame number i is what full sequential decoding
gives at position i, at any index, in any order, for any file; whatever cannot be read raises `VideoError`.

    info = probe("clip.mp4")
    frames = read("clip.mp4", clips.uniform(info.frames, 16), short_side=256)

The functions keep a few readers open per process, so that many reads of one video open it once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from core.video.cache import cache, open_reader
from core.video.encoder import write
from core.video.folder import ImageFolder
from core.video.info import FrameIndexError, VideoError, VideoInfo
from core.video.reader import Reader, Video
from core.video.transcoder import Transcoded, transcode, videos_in

__all__ = [
    "FrameIndexError",
    "ImageFolder",
    "Reader",
    "Transcoded",
    "Video",
    "VideoError",
    "VideoInfo",
    "close_all",
    "frame_times",
    "open_reader",
    "probe",
    "read",
    "read_span",
    "read_times",
    "transcode",
    "videos_in",
    "write",
]


def probe(path: str | Path, *, strict: bool = False) -> VideoInfo:
    """Facts of a video: the true number of frames, rate, duration, stored size, rotation and more.

    Raises:
        VideoError: it cannot be read; the reason says why and what to do.
    """
    return cache.get(path, strict).info


def frame_times(path: str | Path) -> list[float]:
    """Seconds from the first frame to every frame; `probe(path).start_s` is the container's own time of the first."""
    return list(cache.get(path, strict=False).times())


def read(
    path: str | Path,
    indices: Iterable[int],
    *,
    short_side: int | None = None,
    rotate: bool = False,
    strict: bool = False,
) -> Tensor:
    """Exactly these frames, any order, repeats allowed, decoded from the nearest keyframe: uint8 (T,H,W,3).

    Args:
        path: a video file, or a folder of numbered pictures.
        indices: frame numbers from 0.
        short_side: scale the shorter side to this, after decoding; the longer one keeps the shape (floored).
        rotate: turn frames upright as players do; the default is the stored orientation.
        strict: refuse damaged files instead of reading what can be decoded.

    Raises:
        FrameIndexError: (a VideoError and an IndexError) a number lies outside; names the true length.
        VideoError: the video cannot be read.
    """
    return cache.get(path, strict).read(indices, short_side=short_side, rotate=rotate)


def read_times(
    path: str | Path, times_s: Iterable[float], *, short_side: int | None = None, rotate: bool = False
) -> Tensor:
    """The frame on screen at each time: uint8 (T,H,W,3).

    Raises:
        FrameIndexError: a time is negative or after the end.
    """
    return cache.get(path, strict=False).read_times(times_s, short_side=short_side, rotate=rotate)


def read_span(
    path: str | Path,
    start_s: float,
    end_s: float,
    *,
    fps: float | None = None,
    short_side: int | None = None,
    rotate: bool = False,
) -> Tensor:
    """Frames that begin in [start_s, end_s), or with `fps` those on screen every 1 / fps s: uint8 (T,H,W,3).

    What lies after the end of the video is left out.
    """
    reader = cache.get(path, strict=False)
    return reader.read_span(start_s, end_s, fps=fps, short_side=short_side, rotate=rotate)


def close_all() -> None:
    """Close the readers that this process keeps open."""
    cache.clear()
