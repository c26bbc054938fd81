"""Readers: frames of a file or of a folder of pictures as uint8 tensors, by number or by time."""

from __future__ import annotations

import math
import operator
import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Self

import av
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from core.video.access import Counted, DistrustError, Indexed
from core.video.index import MOV, from_packets, from_table
from core.video.info import FrameIndexError, VideoError, VideoInfo
from core.video.pictures import Stack, rgb, scaled
from core.video.source import Source, words


class Reader(ABC):
    """Frames of one video by number or time. One thread at a time uses it; others wait."""

    path: Path

    @property
    @abstractmethod
    def info(self) -> VideoInfo:
        """Facts of the video."""

    @abstractmethod
    def __len__(self) -> int:
        """The true number of frames."""

    @abstractmethod
    def times(self) -> list[float]:
        """Seconds from the first frame to every frame, ascending."""

    @property
    @abstractmethod
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last one."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is open; the next use opens it again."""

    @abstractmethod
    def _stack(self, wanted: Sequence[int], short_side: int | None) -> Tensor:
        """Frames of the wanted numbers (ascending, unique, not empty), (T,H,W,3) uint8."""

    @property
    def rotation(self) -> int:
        """Degrees counterclockwise that turn the stored picture upright: 0, 90, 180 or 270."""
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, indices: Iterable[int], *, short_side: int | None = None, rotate: bool = False) -> Tensor:
        """Exactly these frames, any order, repeats allowed.

        Args:
            indices: frame numbers, counted from 0 in the order of display.
            short_side: scale so that the shorter side has this length and the longer one its floored share (bilinear,
                antialiased, after decoding); None keeps the stored size.
            rotate: turn the frames upright as players do; False keeps the stored orientation.

        Returns: uint8 (T,H,W,3), RGB.

        Raises:
            FrameIndexError: a number is negative or not below the number of frames.
            VideoError: the video cannot be read.
        """
        numbers = [operator.index(index) for index in indices]
        if not numbers:
            return torch.empty((0, *scaled(self.info.height, self.info.width, short_side), 3), dtype=torch.uint8)
        wanted = sorted(set(numbers))
        if wanted[0] < 0:
            raise FrameIndexError(self.path, f"frame {wanted[0]} asked for; frame numbers start at 0")
        frames = self._stack(wanted, short_side)
        if wanted != numbers:
            place = {number: position for position, number in enumerate(wanted)}
            frames = frames[torch.tensor([place[number] for number in numbers])]
        turns = self.rotation // 90 if rotate else 0
        return torch.rot90(frames, turns, (1, 2)).contiguous() if turns else frames

    def read_times(self, times_s: Iterable[float], *, short_side: int | None = None, rotate: bool = False) -> Tensor:
        """The frame on screen at each time (seconds from the first frame), uint8 (T,H,W,3).

        Raises:
            FrameIndexError: a time is negative or after the end of the video.
        """
        return self.read([self.frame_at(time_s) for time_s in times_s], short_side=short_side, rotate=rotate)

    def read_span(
        self,
        start_s: float,
        end_s: float,
        *,
        fps: float | None = None,
        short_side: int | None = None,
        rotate: bool = False,
    ) -> Tensor:
        """Frames that begin in [start_s, end_s), or with `fps` those on screen at start_s + k / fps in it.

        What lies after the end of the video is left out; a span between two frames gives the one on screen.
        """
        indices = self.span(start_s, end_s, fps)
        return self.read(indices, short_side=short_side, rotate=rotate)

    def frame_at(self, time_s: float) -> int:
        """Number of the frame on screen at a time; the end of the video still shows the last one."""
        times, slack, duration_s = self.times(), self._slack(), self.duration_s
        if not -slack <= time_s <= duration_s + slack:
            raise FrameIndexError(self.path, f"time {time_s:g} s asked for, the video lasts from 0 to {duration_s:g} s")
        return max(0, bisect_right(times, time_s + slack) - 1)

    def span(self, start_s: float, end_s: float, fps: float | None = None) -> Sequence[int]:
        """Numbers of the frames that `read_span` reads."""
        if not start_s < end_s:
            raise ValueError(
                f"{self.path}: the span from {start_s:g} to {end_s:g} s is empty; it needs start_s < end_s"
            )
        if fps is not None:
            if fps <= 0:
                raise ValueError(f"fps={fps:g} is not positive")
            end_s = min(end_s, self.duration_s)
            count = max(1, math.ceil((end_s - start_s) * fps - 1e-6))
            return [self.frame_at(start_s + k / fps) for k in range(count)]
        times, slack = self.times(), self._slack()
        first = self.frame_at(start_s)
        inside = range(bisect_left(times, start_s - slack), bisect_left(times, end_s - slack))
        return inside or [first]

    def _slack(self) -> float:
        """Times this much too early still mean the frame: k / fps is rounded, and so are stored timestamps."""
        return 1e-6


class Video(Reader):
    """A video file. Opens on first use; can be pickled, and a forked process opens it anew.

    Numbers are positions in the decoder's output, as full sequential decoding gives them. A damaged file is numbered
    by timestamps until a read meets the damage, from then on by counting what can be decoded.

    Args:
        path: the file.
        stream: which of several video streams, counted from 0.
        threads: decoder threads; keep 1 in loader workers, more help a single process that reads long stretches.
        strict: raise VideoError at the first damaged packet or picture instead of going on after it.
    """

    def __init__(self, path: str | Path, *, stream: int = 0, threads: int = 1, strict: bool = False) -> None:
        self.path = Path(path)
        self.lost = 0  # packets that the last complete decoding could not use
        self._source: Callable[..., Source] = partial(Source, self.path, stream=stream, threads=threads, strict=strict)
        self._options = {"stream": stream, "threads": threads, "strict": strict}
        self._level = 0  # of trust: 0 the container's table, 1 its packets, 2 only the decoder's output
        self._access: Indexed | Counted | None = None
        self._reformatter: Any = None
        self._times: list[float] | None = None
        self._info: VideoInfo | None = None
        self._rotation: int | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Callable[..., Video], tuple[type[Video], str, dict[str, Any]]]:
        return _restore, (type(self), str(self.path), self._options)

    def __len__(self) -> int:
        with self._locked():
            return self._opened().count()

    @property
    def info(self) -> VideoInfo:
        """Facts of the video; decodes one frame (its rotation), or all of them where frames have to be counted."""
        with self._locked():
            if self._info is None:
                rotation = self.rotation
                access = self._opened()
                source, frames = access.source, access.count()
                base, first = access.clock()
                self._info = VideoInfo(
                    frames=frames,
                    fps=self.fps,
                    duration_s=self.duration_s,
                    height=source.height,
                    width=source.width,
                    rotation=rotation,
                    codec=source.codec,
                    pixel_format=source.pixel_format,
                    container=source.containers[0],
                    start_s=float((first or 0) * base),
                    audio=source.audio,
                    seekable=isinstance(access, Indexed),
                    lost=access.lost(),
                    promised=source.promised,
                    tick_s=float(base),
                )
            return self._info

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        times = self.times()
        with self._locked():
            return float(self._opened().source.rate) or ((len(times) - 1) / times[-1] if times[-1] > 0 else 25.0)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return self.times()[-1] + 1 / self.fps

    @property
    def rotation(self) -> int:
        """Degrees counterclockwise that turn the stored picture upright: 0, 90, 180 or 270."""
        if self._rotation is None:
            angles: list[int] = []
            self._each([0], angles.clear, lambda frame: angles.append(int(frame.rotation)))
            self._rotation = round(angles[0] / 90) * 90 % 360
        return self._rotation

    def times(self) -> list[float]:
        """Seconds from the first frame to every frame; number / frame rate where timestamps are absent or scrambled."""
        with self._locked():
            if self._times is None:
                stamps, (base, _) = self._opened().stamps(), self._opened().clock()
                first, ticks, per_s = stamps[0], base.numerator, base.denominator
                self._times = [(stamp - first) * ticks / per_s for stamp in stamps]
            return self._times

    def clock(self) -> tuple[Fraction, int | None]:
        """Seconds per unit of frame.pts, and that of the first frame; None where frames are timed by their number."""
        with self._locked():
            return self._opened().clock()

    def frames(self, *, marks: bool = False) -> Iterator[Any]:
        """All frames in order as av.VideoFrame, from a decoder of their own; afterwards `lost` is right.

        marks: have damaged pictures marked (`frame.is_corrupt`); they may then look different.
        """
        source = self._source(marks=marks)
        try:
            yield from source.decode()
        finally:
            self.lost = source.lost
            source.close()

    def close(self) -> None:
        """Give file and decoder back; the next use opens them again."""
        with self._locked():
            if self._access is not None:
                self._access.close()
            self._access = self._reformatter = None

    def _stack(self, wanted: Sequence[int], short_side: int | None) -> Tensor:
        stack = Stack(self.path, len(wanted), short_side)

        def take(frame: Any) -> None:
            stack.add(rgb(frame, self._reformatter))

        self._each(wanted, stack.clear, take)
        return stack.result()

    def _each(self, wanted: Sequence[int], begin: Callable[[], None], take: Callable[[Any], None]) -> None:
        """begin(), then take(av.VideoFrame) for the wanted numbers (ascending, unique); again if the index fails."""
        with self._locked():
            while True:
                begin()
                try:
                    for frame in self._opened().frames(wanted):
                        take(frame)
                        del frame  # what a damaged picture shows depends on how many frames are held
                    return
                except DistrustError:
                    # The next safer way: from the container's table to its packets, from those to counting frames.
                    self.close()
                    self._level += 1
                    self._times = self._info = None
                except av.FFmpegError as error:
                    raise VideoError(self.path, f"a frame cannot be converted to RGB ({words(error)})") from error

    def _opened(self) -> Indexed | Counted:
        """The way to the frames, by the quickest means still trusted."""
        if self._access is None:
            self._reformatter = VideoReformatter()
            self._access = self._indexed() if self._level < 2 else Counted(self._source)
        return self._access

    def _indexed(self) -> Indexed | Counted:
        source = self._source(marks=True)
        try:
            index = None
            if self._level == 0 and MOV in source.containers:
                index = from_table(source)
                if index is None:  # its first packet has been read
                    source.close()
                    source = self._source(marks=True)
            if index is None:
                self._level = 1
                index = from_packets(source)
        except BaseException:
            source.close()
            raise
        if index is not None:
            return Indexed(source, index)
        source.close()
        self._level = 2
        return Counted(self._source)

    def _slack(self) -> float:
        with self._locked():
            return max(1e-6, float(self._opened().source.time_base) / 2)

    def _locked(self) -> threading.RLock:
        """The lock; in a forked child first let go of the parent's decoder, whose threads did not come along."""
        if self._pid != os.getpid():
            abandoned.append(self._access)
            self._access, self._pid, self._lock = None, os.getpid(), threading.RLock()
        return self._lock


abandoned: list[Any] = []  # decoders of a parent process: neither used nor closed here, closing could wait for ever


def _restore(cls: type[Video], path: str, options: dict[str, Any]) -> Video:
    return cls(path, **options)
