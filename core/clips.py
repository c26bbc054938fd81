"""Which frames: pure functions from counts and times to frame numbers and spans; nothing here opens a video.

Numbers are truncated, not rounded, and clamped to the video, as SlowFast and pytorchvideo choose frames.
"""

from __future__ import annotations

import math
import random

import numpy as np

Span = tuple[float, float]
_TINY_S = 1e-9  # times closer than this are the same


def uniform(total: int, count: int) -> list[int]:
    """`count` numbers spread evenly from the first to the last of `total` frames; few frames repeat in place.

    Raises: ValueError for a video or a clip without frames.
    """
    _check(total, count)
    return [0] if count == 1 else [i * (total - 1) // (count - 1) for i in range(count)]


def padded(total: int, count: int) -> list[int]:
    """Like `uniform` for long videos; a short one is taken whole and its last frame repeated at the end."""
    _check(total, count)
    return uniform(total, count) if total > count else [min(i, total - 1) for i in range(count)]


def strided(start: int, count: int, stride: int, total: int) -> list[int]:
    """`count` numbers from `start` on, `stride` apart, clamped to the video.

    Raises: ValueError for a video or a clip without frames, or a stride below 1.
    """
    _check(total, count)
    if stride < 1:
        raise ValueError(f"stride is {stride}, expected at least 1")
    return [min(max(start + i * stride, 0), total - 1) for i in range(count)]


def between(start: float, end: float, count: int, total: int) -> list[int]:
    """`count` numbers spread evenly over start..end, both included, as SlowFast's `temporal_sampling` takes them.

    The steps are those of torch's float32 linspace, counted from the nearer end: it decides on single frames.
    """
    _check(total, count)
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(max(count - 1, 1))
    half = count // 2
    left = [first + step * np.float32(i) for i in range(half)]
    right = [last - step * np.float32(i) for i in reversed(range(count - half))]
    places = [*left, *right] if count > 1 else [first]
    return [min(max(int(place), 0), total - 1) for place in places]


def random_start(total: int, span: int, rng: random.Random) -> int:
    """A first frame from which `span` frames fit into the video, each equally likely; 0 when they never fit."""
    return rng.randint(0, max(total - span, 0))


def center_start(total: int, span: int) -> int:
    """The first frame of the middle `span` frames; 0 when they do not fit."""
    return max(total - span, 0) // 2


def view_starts(total: int, span: float, views: int) -> list[float]:
    """First frames of `views` windows of `span` frames spread over a video, as SlowFast tests it.

    The last of several does not reach the end; a single one lies in the middle, at a whole frame.
    """
    room = max(total - span, 0.0)
    return [float(math.floor(room / 2))] if views == 1 else [room * view / views for view in range(views)]


def tile(duration_s: float, clip_s: float, hop_s: float, *, cover_end: bool = False) -> list[Span]:
    """Spans of `clip_s` every `hop_s` seconds that fit into a video; with `cover_end` one more that ends with it.

    A video shorter than a clip gives the one span that starts at 0 (and ends after the video).

    Raises: ValueError for a duration, clip or hop that is not positive.
    """
    if min(duration_s, clip_s, hop_s) <= 0:
        raise ValueError(f"duration {duration_s} s, clip {clip_s} s and hop {hop_s} s should all be above 0")
    count = max(math.floor((duration_s - clip_s) / hop_s + _TINY_S) + 1, 1)
    spans = [(k * hop_s, k * hop_s + clip_s) for k in range(count)]
    if cover_end and spans[-1][1] < duration_s - _TINY_S:
        spans.append((duration_s - clip_s, duration_s))
    return spans


def spread(duration_s: float, clip_s: float, count: int) -> list[Span]:
    """`count` spans of `clip_s` with even distances, the first at the start and the last at the end of a video."""
    room = max(duration_s - clip_s, 0.0)
    starts = [room * k / max(count - 1, 1) for k in range(count)]
    return [(start, start + clip_s) for start in starts]


def random_span(duration_s: float, clip_s: float, rng: random.Random) -> Span:
    """A span of `clip_s` from anywhere in a video; from its start when it does not fit."""
    start = rng.uniform(0, max(duration_s - clip_s, 0.0))
    return start, start + clip_s


def before(end_s: float, clip_s: float, count: int, gap_s: float = 0.0) -> list[float]:
    """`count` times spread over the `clip_s` seconds that end `gap_s` before `end_s`; the end itself never belongs.

    Times before the video come out as 0. What lies at or after `end_s - gap_s` cannot be among them: it is the future
    that an anticipation model must not see.

    Raises: ValueError when nothing lies before that moment.
    """
    limit = end_s - gap_s
    if limit <= 0 or clip_s <= 0 or count < 1:
        raise ValueError(
            f"no time lies before {end_s} s minus a gap of {gap_s} s (clip {clip_s} s, {count} times); "
            "leave the sample out"
        )
    last = math.nextafter(limit, 0.0)
    return [min(max(limit - clip_s + clip_s * k / count, 0.0), last) for k in range(count)]


def _check(total: int, count: int) -> None:
    if total < 1 or count < 1:
        raise ValueError(f"cannot choose {count} of {total} frames; both should be at least 1")
