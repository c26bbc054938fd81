"""Which frames: pure functions from counts and times to frame numbers and clip times.

Frame numbers are ints in [0, total), never falling; times are seconds from the first frame, spans (start_s, end_s) are
half-open. Nothing here reads a file or keeps a state; what is random takes the caller's `random.Random`.
"""

from __future__ import annotations

import math
import random

import numpy as np

EPSILON = 1e-9  # seconds; sums of binary fractions miss each other by less


def uniform(total: int, count: int) -> list[int]:
    """`count` frames from the first to the last at equal distances, truncated: i * (total - 1) // (count - 1).

    Fewer frames than wanted repeat in place. The integer formula equals pytorchvideo's float32 linspace up to 3600.
    """
    _positive(total=total, count=count)
    return [i * (total - 1) // max(count - 1, 1) for i in range(count)]


def pad_or_uniform(total: int, count: int) -> list[int]:
    """All frames, then the last one again, where there are too few; `uniform` otherwise."""
    _positive(total=total, count=count)
    return [min(i, total - 1) for i in range(count)] if total <= count else uniform(total, count)


def slow_pathway(count: int, alpha: int) -> list[int]:
    """Positions in a clip of `count` frames that SlowFast's slow pathway takes: count // alpha of them, uniform."""
    _positive(count=count, alpha=alpha)
    if alpha > count:
        raise ValueError(f"alpha={alpha} leaves no frame of a clip of {count}; it needs alpha <= count")
    return uniform(count, count // alpha)


def strided(start: int, count: int, stride: int, total: int) -> list[int]:
    """`count` frames from `start` on, `stride` apart, clamped to the video."""
    _positive(count=count, stride=stride, total=total)
    return [min(max(start + i * stride, 0), total - 1) for i in range(count)]


def random_start(total: int, span: int, rng: random.Random) -> int:
    """First frame of a random stretch of `span` frames inside the video; 0 where it is shorter than that."""
    _positive(total=total, span=span)
    return rng.randint(0, max(total - span, 0))


def center_start(total: int, span: int) -> int:
    """First frame of the middle stretch of `span` frames; 0 where the video is shorter than that."""
    _positive(total=total, span=span)
    return max(total - span, 0) // 2


def between(start: float, end: float, count: int, total: int) -> list[int]:
    """`count` frames spread evenly over start..end, both included, truncated and clamped to the video.

    Equals torch's float32 linspace, on which SlowFast's `temporal_sampling` rests: where it rounds decides on a frame.
    """
    _positive(total=total, count=count)
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(max(count - 1, 1))
    left = [first + step * np.float32(i) for i in range(count // 2)]  # torch counts from the nearer end
    right = [last - step * np.float32(i) for i in reversed(range(count - count // 2))]
    places = [*left, *right] if count > 1 else [first]
    return [min(max(int(place), 0), total - 1) for place in places]


def view(total: int, span: float, count: int, index: int, views: int) -> list[int]:
    """`count` frames of view `index` of `views` over the video, each `span` frames long, clamped to the video.

    SlowFast's test views: view k starts at (total - span) * k / views, so that the last one does not reach the end; a
    single view is the middle one. `span` is rate * count * fps / 30 for a model trained at 30 frames a second.
    """
    _positive(total=total, count=count, views=views)
    if not 0 <= index < views:
        raise ValueError(f"view {index} is not one of {views} (0 to {views - 1})")
    room = max(total - span, 0.0)
    start = float(math.floor(room / 2)) if views == 1 else room * index / views
    return between(start, start + span - 1, count, total)


def tile(
    duration_s: float, clip_s: float, hop_s: float | None = None, *, cover_end: bool = False
) -> list[tuple[float, float]]:
    """Clips one after the other, `hop_s` from start to start (default: without gap or overlap), inside the video.

    cover_end: add one that ends with the video if the last one does not. A video shorter than a clip gives one clip
    from 0 to `clip_s`.
    """
    hop_s = clip_s if hop_s is None else hop_s
    _positive(duration_s=duration_s, clip_s=clip_s, hop_s=hop_s)
    count = max(1, math.floor((duration_s - clip_s + EPSILON) / hop_s) + 1)
    clips = [(k * hop_s, k * hop_s + clip_s) for k in range(count)]
    if cover_end and clips[-1][1] < duration_s - EPSILON:
        clips.append((duration_s - clip_s, duration_s))
    return clips


def spread(duration_s: float, clip_s: float, count: int) -> list[tuple[float, float]]:
    """`count` clips whose starts lie at equal distances, the first at 0 and the last ending with the video.

    Clips of a video shorter than `clip_s` all start at 0.
    """
    _positive(duration_s=duration_s, clip_s=clip_s, count=count)
    step = max(duration_s - clip_s, 0.0) / max(count - 1, 1)
    return [(k * step, k * step + clip_s) for k in range(count)]


def random_span(duration_s: float, clip_s: float, rng: random.Random) -> tuple[float, float]:
    """A random clip inside the video, one draw; from 0 where the video is shorter than that."""
    _positive(duration_s=duration_s, clip_s=clip_s)
    start_s = rng.uniform(0, max(duration_s - clip_s, 0.0))
    return start_s, start_s + clip_s


def before(end_s: float, clip_s: float, count: int, gap_s: float = 0.0) -> list[float]:
    """`count` times in the `clip_s` seconds that end `gap_s` before `end_s`, each clip_s / count after the other.

    For anticipation: no time lies at or after end_s - gap_s. Those before the video starts become 0.

    Raises:
        ValueError: end_s - gap_s is not after the start of the video, so nothing may be seen.
    """
    _positive(clip_s=clip_s, count=count)
    if gap_s < 0:
        raise ValueError(f"gap_s={gap_s:g} would look beyond the end; it has to be 0 or more")
    limit_s = end_s - gap_s
    if limit_s <= 0:
        raise ValueError(f"nothing lies before {end_s:g} s minus a gap of {gap_s:g} s; leave this segment out")
    latest_s = math.nextafter(limit_s, 0.0)
    return [min(max(limit_s - clip_s * (count - k) / count, 0.0), latest_s) for k in range(count)]


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} has to be above 0")
