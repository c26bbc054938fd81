"""An open video file: container, stream, decoder, and the facts copied from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from core.video.info import VideoError, rational

ADVICE = "copy or download the file again"
# Real files have names and comments that are not UTF-8. PyAV 19 reads them as they are, before it had to be told.
TOLERANT: dict[str, str] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class Source:
    """One video stream of an open file, set up for exact decoding. Close it: an open decoder holds megabytes.

    Attributes of a closed container are read from freed memory, so everything worth knowing is copied here at once.

    Args:
        path: the file.
        stream: which of its video streams, counted from 0, pictures attached as covers left out.
        threads: decoder threads.
        strict: damage raises VideoError.
        marks: frames tell whether they are damaged (`is_corrupt`), also those of h264.
    """

    def __init__(
        self, path: Path, *, stream: int = 0, threads: int = 1, strict: bool = False, marks: bool = False
    ) -> None:
        self.path = path
        self.strict = strict
        self.lost = 0  # packets that could not be decoded
        self.decoded = 0  # pictures that left the decoder
        try:
            self.container: Any = av.open(str(path), **TOLERANT)  # type: ignore[call-overload]
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(path, _why(path, error)) from error
        try:
            self.video: Any = self._choose(stream)
            self.context: Any = self.video.codec_context
            if self.context is None:
                raise VideoError(path, "its codec is unknown to this FFmpeg; convert the file with another tool")
            # Frame threads only on request: a process forked while they exist hangs when it goes on reading.
            self.context.thread_type = "FRAME" if threads > 1 else "SLICE"
            self.context.thread_count = threads
            if self.context.name == "h264" and not (strict or marks):
                # Damaged areas then keep what the memory held, always the same when decoding from the start. What the
                # decoder would invent for them depends on its threads, but only a decoder that invents marks damage.
                self.context.options = {"enable_er": "0"}
            self.containers = str(self.container.format.name).split(",")
            self.codec = str(self.context.name)
            self.pixel_format = str(self.context.pix_fmt or "")
            self.height, self.width = int(self.context.height), int(self.context.width)
            self.time_base = rational(self.video.time_base)
            self.rate = rational(self.video.average_rate) or rational(self.video.guessed_rate)
            self.promised = int(self.video.frames)  # what the header says; 0: nothing
            self.audio = bool(self.container.streams.audio)
        except BaseException:
            self.container.close()
            raise

    def _choose(self, stream: int) -> Any:
        covers = int(Disposition.attached_pic)
        streams = [video for video in self.container.streams.video if not int(video.disposition) & covers]
        if not streams:
            kinds = ", ".join(sorted({str(other.type) for other in self.container.streams})) or "nothing"
            raise VideoError(self.path, f"has no video stream, only {kinds}; leave the file out")
        if not 0 <= stream < len(streams):
            raise VideoError(self.path, f"has {len(streams)} video stream(s), number {stream} (from 0) was asked for")
        return streams[stream]

    def close(self) -> None:
        """Give file and decoder back."""
        self.container.close()

    def damage(self, what: str) -> None:
        """Note damage: a strict reader raises, others go on."""
        if self.strict:
            raise VideoError(self.path, f"{what}; {ADVICE}, or read it with strict=False")

    def decode(self) -> Iterator[Any]:
        """The rest of the stream as av.VideoFrame, in the order of the decoder's output, past damaged packets."""
        for packet in self._packets():
            try:
                frames = self.context.decode(packet)
            except av.FFmpegError as error:
                frames = []
                if packet is not None:
                    self.lost += 1
                    self.damage(f"a packet cannot be decoded ({words(error)})")
            for frame in frames:
                self.decoded += 1
                if frame.is_corrupt:
                    self.damage("a picture is damaged")
                yield frame

    def _packets(self) -> Iterator[Any]:
        """All packets with data, then None: what the decoder still holds comes out even if the file breaks off."""
        try:
            for packet in self.container.demux(self.video):
                if packet.size:
                    yield packet
        except av.FFmpegError as error:
            self.lost += 1
            self.damage(f"the rest of the file cannot be read ({words(error)})")
        yield None


def words(error: BaseException) -> str:
    """What FFmpeg says, without its numbers and paths."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _why(path: Path, error: BaseException) -> str:
    """What is wrong with a file that cannot be opened, and what to do."""
    if not path.exists():
        return "there is no such file; check the path and that the dataset is complete"
    if isinstance(error, PermissionError):
        return "may not be read; check its permissions"
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        return f"is empty (0 bytes); {ADVICE}"
    if head[4:8] == b"ftyp":
        return f"has no index (moov atom), as after an interrupted copy or recording; {ADVICE}"
    return f"is no video that FFmpeg can read ({words(error)}); check what it holds, or {ADVICE}"
