"""Writing h264: from RGB frames, and the encoder that transcoding shares. Files appear whole or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from core.video.info import VideoError
from core.video.source import words

SUFFIXES = (".mp4", ".mov", ".mkv")
GOP = (
    32  # frames from keyframe to keyframe: a few percent more bytes, and windows anywhere are read several times faster
)


def write(
    path: str | Path,
    frames: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    fps: float | Fraction,
    *,
    crf: int = 20,
    preset: str = "veryfast",
    gop: int = GOP,
    threads: int = 1,
) -> Path:
    """Write frames as h264 (yuv420p), atomically: `path` is replaced only by a whole file.

    The same frames give the same bytes in every run.

    Args:
        path: a file ending in .mp4, .mov or .mkv; its folder is made.
        frames: uint8 RGB, (T,H,W,3) or one (H,W,3) after the other. An odd side is made even, as yuv420p needs, by
            repeating its last row or column.
        fps: frames per second.
        crf: quality, 0 (lossless) to 51; preset: x264's, slower is smaller; gop: largest distance of keyframes.
        threads: of the encoder, 0 for as many as there are cores.

    Returns: the path.

    Raises:
        ValueError: no frames, a wrong shape, type or suffix.
        VideoError: the file cannot be written.
    """
    path = Path(path)
    rate = Fraction(fps).limit_denominator(100_000)
    if rate <= 0:
        raise ValueError(f"{path}: fps={fps} is not positive")
    reformatter = VideoReformatter()
    written = 0
    with whole(path) as temporary:
        encoder: Encoder | None = None
        try:
            for written, picture in enumerate(frames, start=1):
                array = _even(path, picture)
                if encoder is None:
                    height, width = array.shape[:2]
                    encoder = Encoder(temporary, width, height, 1 / rate, rate, crf, preset, gop, threads)
                elif array.shape[:2] != (height, width):
                    raise ValueError(
                        f"{path}: frame {written - 1} is {array.shape[1]}x{array.shape[0]}, the first {width}x{height}"
                    )
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                encoder.add(reformatter.reformat(frame, format="yuv420p", threads=1), written - 1)
            if encoder is None:
                raise ValueError(f"{path}: there are no frames to write")
            encoder.finish()
        except (av.FFmpegError, OSError) as error:
            raise VideoError(path, f"cannot be written ({words(error)})") from error
        finally:
            if encoder is not None:
                encoder.close()
    return path


class Encoder:
    """An h264 file in the making: add frames (yuv420p, even size) with rising timestamps, finish, close."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        time_base: Fraction,
        rate: Fraction,
        crf: int,
        preset: str,
        gop: int,
        threads: int,
        like: Any = None,
    ) -> None:
        flags = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
        self.time_base = time_base
        self.container: Any = av.open(str(path), "w", container_options=flags)
        self.stream: Any = self.container.add_stream("libx264", rate=rate)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        # Without this, x264's rate control differs from run to run and between machines: the same frames, other bytes.
        self.stream.options = {"crf": str(crf), "preset": preset, "x264-params": "cpu-independent=1"}
        context = self.stream.codec_context
        context.gop_size = gop
        context.thread_count = threads
        context.time_base = self.stream.time_base = time_base
        if like is not None:  # colors keep the meaning they have in the source
            context.colorspace, context.color_range = int(like.colorspace), int(like.color_range)
            context.color_primaries, context.color_trc = int(like.color_primaries), int(like.color_trc)

    def add(self, frame: Any, pts: int) -> None:
        """Encode one frame that is shown from pts * time_base seconds on."""
        frame.pts, frame.time_base, frame.pict_type = pts, self.time_base, 0
        self.container.mux(self.stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self.container.mux(self.stream.encode(None))

    def close(self) -> None:
        """Close the file."""
        self.container.close()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block succeeds and vanishes if it fails.

    What killed processes of this machine left behind for the same path is removed first.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: videos are written as {', '.join(SUFFIXES)}, not {path.suffix or 'without suffix'!r}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{path.stem}.{socket.gethostname()}-"
    for left in path.parent.iterdir():
        pid = left.name.removeprefix(mark).removesuffix(f".part{path.suffix}")
        if left.name.startswith(mark) and pid.isdecimal() and not _alive(int(pid)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f"{mark}{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _even(path: Path, picture: Tensor | np.ndarray) -> np.ndarray:
    """The picture as contiguous uint8 (H,W,3) with even sides."""
    array = picture.detach().cpu().numpy() if isinstance(picture, torch.Tensor) else np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"{path}: a frame is {array.dtype} {array.shape}, expected uint8 (H,W,3)")
    height, width = array.shape[:2]
    if height % 2 or width % 2:
        array = np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(array)
