"""Where the frames of a file are: presentation timestamps, keyframes, and whether they can be trusted."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import av

from core.video.source import Source

TINY = 16  # bytes; an MPEG-4 packet below this is a "not coded" picture, for which the decoder gives no frame
MOV = "mov"
HELD = 8 * 2**20  # bytes; the packets of smaller files are kept, because demuxing AVI again costs 9 us for each
KEYFRAME, DISCARDED = 1, 2  # FFmpeg's flags of an index entry, its only ones
TRUSTED = (MOV, "matroska", "webm", "avi")


@dataclass(slots=True)
class Index:
    """Frames in presentation order, for reading from the nearest keyframe.

    pts: timestamp of every frame, ascending, so that a frame's number is its rank (a `range` when equidistant).
    keys: a number per keyframe, ascending: its frame number, or (`assumed`) its position in decoding order, which is
        the same unless pictures that follow it are shown before it.
    key_dts: decoding timestamp of every keyframe (only if `assumed`).
    assumed: made from the container's table alone; every use has to be checked against the packets (`Proof`).
    packets: all packets of a small file, and `places` where its keyframes are among them; otherwise empty.
    """

    pts: Sequence[int]
    keys: list[int]
    key_dts: list[int]
    assumed: bool
    packets: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def rank(self, pts: int) -> int:
        """Number of frames before this timestamp: the frame number when a frame has it."""
        return bisect_left(self.pts, pts)

    def key(self, frame: int) -> int:
        """Position in `keys` of the nearest keyframe at or before a frame."""
        return bisect_right(self.keys, frame) - 1


def from_table(source: Source) -> Index | None:
    """The index of an mp4/mov file without touching its packets: 1 us per frame against 5 us for reading them.

    Only for the plain case: as many entries as the header promises, all inside the file, equidistant, nothing cut by
    an edit list, and a first packet that is a keyframe shown first. Returns None otherwise.
    """
    stream = source.video
    times: list[int] = []
    keys: list[int] = []
    smallest = file_size = source.path.stat().st_size
    end = 0
    for entry in stream.index_entries:  # long videos have hundreds of thousands: no calls in here
        flags, size = entry.flags, entry.size
        if flags & DISCARDED:
            return None
        if flags & KEYFRAME:
            keys.append(len(times))
        times.append(entry.timestamp)
        if size < smallest:
            smallest = size
        if entry.pos + size > end:
            end = entry.pos + size
    if len(times) < 2 or len(times) != stream.frames or end > file_size or not smallest:
        return None
    if source.codec == "mpeg4" and smallest < TINY:
        return None
    step = times[1] - times[0]
    if step <= 0 or times != list(range(times[0], times[0] + len(times) * step, step)):
        return None
    try:
        first = next(source.container.demux(stream))
    except (av.FFmpegError, StopIteration):
        return None
    start = stream.start_time
    if start is None or first.pts != start or first.dts != times[0] or not first.is_keyframe or keys[:1] != [0]:
        return None
    return Index(range(start, start + len(times) * step, step), keys, [times[key] for key in keys], assumed=True)


def from_packets(source: Source) -> Index | None:
    """The index from all packets of the stream; None where frames have to be counted by decoding.

    Packets that an edit list discards are no frames. Frame numbers are ranks of timestamps only where timestamps are
    known to rise with the decoder's output: all there and different, from a keyframe that is shown first, in a
    container that stores them; in AVI only without B-frames and with every packet of its index in the file.
    """
    stream, containers = source.video, source.containers
    if not any(name in containers for name in TRUSTED):
        return None
    shown: list[int] = []
    keyed: list[tuple[int, int]] = []
    count, smallest, first = 0, TINY, None
    held: list[Any] = []
    room = HELD
    try:
        for packet in source.container.demux(stream):
            size = packet.size
            if not size:
                continue  # no frame; the last one only says that the stream ends
            room -= size
            if room >= 0:
                held.append(packet)
            else:
                held.clear()
            pts, key = packet.pts, packet.is_keyframe
            if pts is None or packet.is_corrupt or (first is None and not key):
                return None
            if key:
                keyed.append((pts, count))
            if first is None:
                first = pts
            if size < smallest:
                smallest = size
            count += 1
            if not packet.is_discard:
                shown.append(pts)
    except av.FFmpegError:
        return None
    if first is None or not shown or (source.codec == "mpeg4" and smallest < TINY):
        return None
    ordered = sorted(shown)
    if first > ordered[0] or any(a == b for a, b in pairwise(ordered)):
        return None
    if "avi" in containers and (source.context.has_b_frames or shown != ordered or len(stream.index_entries) != count):
        return None
    # Of keyframes with one number, all but the last of which an edit list cuts away, the last one serves.
    keys = {bisect_left(ordered, pts): place for pts, place in sorted(keyed)}
    index = Index(ordered, list(keys), [], assumed=False)
    if room >= 0:
        index.packets, index.places = held, list(keys.values())
    return index


class Proof:
    """Checks an assumed index against the packets that were read, so that a wrong assumption cannot pass.

    From a keyframe at decoding position k, followed by L packets shown before it, the keyframe has to be frame k + L,
    and up to the last frame read every timestamp in between has to have occurred.
    """

    def __init__(self, index: Index, key_pts: int, key_dts: int | None) -> None:
        self.index = index
        self.key_pts = key_pts
        place = 0 if key_dts is None else bisect_left(index.key_dts, key_dts)
        known = place < len(index.key_dts) and index.key_dts[place] == key_dts
        self.position: int | None = index.keys[place] if known else None
        self.seen: list[int] = []
        self.proved: int | None = None  # everything up to this timestamp holds

    def holds(self, last_pts: int) -> bool:
        """True when frames up to this timestamp have the numbers that the index says."""
        grid = self.index.pts
        assert isinstance(grid, range)
        if self.proved is None:
            leading = sum(pts < self.key_pts for pts in self.seen)
            if self.position is None or self.key_pts not in grid or grid.index(self.key_pts) != self.position + leading:
                return False
            self.proved = self.key_pts
        fresh = sorted(pts for pts in self.seen if self.proved < pts <= last_pts)
        if fresh != list(range(self.proved + grid.step, last_pts + 1, grid.step)):
            return False
        self.seen = [pts for pts in self.seen if pts > last_pts]
        self.proved = max(self.proved, last_pts)
        return True
