"""Two ways to a numbered frame: from the nearest keyframe, or by counting from the start."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice, pairwise
from typing import Any

import av

from core.video.index import Index, Proof
from core.video.info import FrameIndexError, VideoError
from core.video.source import ADVICE, Source, words

# Decoders that can pass over pictures no other picture refers to. (HEVC's can too, but its "non-reference" pictures
# may serve higher temporal layers.)
SKIPPABLE = ("h264", "mpeg4", "mpeg1video", "mpeg2video")


class DistrustError(Exception):
    """The file contradicts its index: frames have to be found in a safer way."""


class Indexed:
    """Frames by timestamp from the nearest keyframe at or before them; reads on instead of seeking where that is less.

    Frame numbers are ranks of timestamps. Raises DistrustError as soon as the decoder's output contradicts the index.
    """

    def __init__(self, source: Source, index: Index) -> None:
        self.source = source
        self.index = index
        self._packets: Iterator[Any] | None = None  # the file from here on; None: seek before the next read
        self._ready: deque[Any] = deque()  # decoded, not yet taken
        self._ended = False  # all packets have been read
        self._last = -1  # every frame up to this number has left the decoder
        self._key_pts = 0
        self._proof: Proof | None = None
        self._skips = source.codec in SKIPPABLE
        self._ahead = 1 + int(getattr(source.context, "reorder_depth", 2))  # packets read beyond the frame given

    def close(self) -> None:
        """Close the file."""
        self.source.close()

    def count(self) -> int:
        """Number of frames."""
        return len(self.index.pts)

    def stamps(self) -> Sequence[int]:
        """Timestamp of every frame, in units of `clock`."""
        return self.index.pts

    def clock(self) -> tuple[Fraction, int | None]:
        """Seconds per unit of time, and the first frame's timestamp."""
        return self.source.time_base, self.index.pts[0]

    def lost(self) -> int:
        """Packets known to be damaged beyond decoding: none, or this would not be in use."""
        return 0

    def frames(self, wanted: Sequence[int]) -> Iterator[Any]:
        """The wanted frames (numbers ascending, unique) as av.VideoFrame."""
        check_range(self.source, wanted, self.count())
        begin = 0
        while begin < len(wanted):
            end = begin + 1
            while end < len(wanted) and not self._far(wanted[end - 1], wanted[end]):
                end += 1
            first = wanted[begin]
            if self._packets is None or first <= self._last or self._far(self._last, first):
                self._seek(first)
            yield from self._run(wanted[begin:end])
            begin = end

    def _far(self, last: int, target: int) -> bool:
        """Whether seeking reaches the target with less decoding than reading on after frame `last`."""
        return self.index.keys[self.index.key(target)] > last + self._ahead

    def _seek(self, target: int) -> None:
        """Stand at the nearest keyframe shown not after the target."""
        index, source = self.index, self.source
        self._packets, self._ended = None, False
        self._ready.clear()
        if index.packets:
            key = index.key(target)
            source.context.flush_buffers()
            self._packets = islice(index.packets, index.places[key], None)
            self._key_pts = index.packets[index.places[key]].pts
            self._last = index.keys[key] - 1
            return
        earlier = (index.pts[index.keys[key]] for key in range(index.key(target), -1, -1))
        for stamp in chain([index.pts[target]], earlier):
            try:
                source.container.seek(stamp, stream=source.video, backward=True)
                packets = source.container.demux(source.video)
                packet = next(packets)
            except (av.FFmpegError, StopIteration) as error:
                raise DistrustError(f"seeking fails ({words(error)})") from error
            if packet.pts is None or not packet.is_keyframe or index.rank(packet.pts) > target:
                continue
            self._proof = Proof(index, packet.pts, packet.dts) if index.assumed else None
            self._packets, self._key_pts = chain([packet], packets), packet.pts
            self._last = index.rank(packet.pts) - 1
            return
        raise DistrustError("no keyframe is found by seeking")

    def _run(self, wanted: Sequence[int]) -> Iterator[Any]:
        """Wanted frames, all ahead of the current position, without seeking."""
        source, context = self.source, self.source.context
        ready, proof, packets = self._ready, self._proof, self._packets
        assert packets is not None
        self._packets = None  # a run that is interrupted leaves no usable position
        stamps = [self.index.pts[number] for number in wanted]
        needed, last = set(stamps), stamps[-1]
        skipping = False
        context.skip_frame = "DEFAULT"
        for stamp in stamps:
            while True:
                while not ready:
                    packet = self._next(packets)  # None at the end: the decoder then gives what it still holds
                    pts = None if packet is None else packet.pts
                    if proof is not None and pts is not None:
                        proof.seen.append(pts)
                    # Pictures nobody wants are decoded only if others refer to them. Those after the last wanted one
                    # are decoded in any case: the next read may go on from here and want them.
                    skip = self._skips and pts is not None and pts < last and pts not in needed
                    if skip != skipping:
                        context.skip_frame = "NONREF" if skip else "DEFAULT"
                        skipping = skip
                    try:
                        ready.extend(context.decode(packet))
                    except av.FFmpegError as error:
                        source.damage(f"a packet cannot be decoded ({words(error)})")
                        raise DistrustError("damaged packets") from error
                    source.decoded += len(ready)
                frame = ready.popleft()
                pts = frame.pts
                if pts is None or pts > stamp:
                    raise DistrustError("a frame that the index promises does not come out of the decoder")
                if frame.is_corrupt and pts >= self._key_pts:
                    source.damage("a picture is damaged")
                    raise DistrustError("damaged pictures")
                if pts == stamp:
                    break
            if proof is not None and stamp == last and not proof.holds(last):
                raise DistrustError("packets are not equidistant")
            if stamp == last:
                context.skip_frame = "DEFAULT"
                self._packets, self._last = packets, wanted[-1]
            yield frame

    def _next(self, packets: Iterator[Any]) -> Any:
        """The next packet, None at the end."""
        if self._ended:
            raise DistrustError("the file has fewer frames than its index")
        try:
            for packet in packets:
                if packet.size:
                    return packet
        except av.FFmpegError as error:
            raise DistrustError("the file ends before its index does") from error
        self._ended = True
        return None


class Counted:
    """Frames by counting the decoder's output from the start: always right, and only as fast as decoding.

    Goes on where the last read stopped if the next one lies ahead.
    """

    def __init__(self, open_source: Callable[[], Source]) -> None:
        self.open_source = open_source
        self.source = open_source()
        self._sequence: Iterator[Any] | None = self.source.decode()
        self._next = 0  # number of the sequence's next frame
        self._pts: list[int | None] | None = None
        self._lost = 0

    def close(self) -> None:
        """Close the file."""
        self._sequence = None
        self.source.close()

    def count(self) -> int:
        """Number of frames, by decoding everything once."""
        return len(self._survey())

    def stamps(self) -> Sequence[int]:
        """Timestamp of every frame, in units of `clock`: its number where the file's own are absent or scrambled."""
        pts = [stamp for stamp in self._survey() if stamp is not None]
        whole = len(pts) == self.count() and all(a < b for a, b in pairwise(pts))
        return pts if whole else range(self.count())

    def clock(self) -> tuple[Fraction, int | None]:
        """Seconds per unit of time, and the first frame's timestamp; None where frames are timed by their number."""
        stamps = self.stamps()
        if isinstance(stamps, range):
            return 1 / (self.source.rate or Fraction(25)), None
        return self.source.time_base, stamps[0]

    def lost(self) -> int:
        """Packets that are damaged beyond decoding."""
        self._survey()
        return self._lost

    def frames(self, wanted: Sequence[int]) -> Iterator[Any]:
        """The wanted frames (numbers ascending, unique) as av.VideoFrame."""
        if self._pts is not None:
            check_range(self.source, wanted, len(self._pts))
        if self._sequence is None or wanted[0] < self._next:
            self._restart()
        sequence, self._sequence = self._sequence, None  # an interrupted run leaves no usable position
        assert sequence is not None
        frame = None
        for number in wanted:
            while self._next <= number:
                frame = next(sequence, None)
                if frame is None:
                    check_range(self.source, wanted, self._next)
                    raise VideoError(self.source.path, f"no frame can be decoded; {ADVICE}")
                self._next += 1
            if number == wanted[-1]:
                self._sequence = sequence
            yield frame

    def _restart(self) -> None:
        self.source.close()
        self.source = self.open_source()
        self._sequence, self._next = self.source.decode(), 0

    def _survey(self) -> list[int | None]:
        if self._pts is None:
            self._restart()
            assert self._sequence is not None
            pts = [frame.pts for frame in self._sequence]
            if not pts:
                raise VideoError(self.source.path, f"no frame can be decoded; {ADVICE}")
            self._pts, self._sequence, self._lost = pts, None, self.source.lost
        return self._pts


def check_range(source: Source, wanted: Sequence[int], total: int) -> None:
    """Raise FrameIndexError unless all wanted numbers (ascending) are below the number of frames."""
    if wanted and total and (wanted[-1] >= total or wanted[0] < 0):
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise FrameIndexError(source.path, f"frame {bad} asked for, the video has {total} frames (0 to {total - 1})")
