"""Which frames of the observed seconds a clip consists of, and which actions are going on in them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from projects.sgear.annotations import Segments

FEATURE_FPS = 30.0  # of all published features, whatever the video
SLACK_S = 1e-6  # a frame nearer to the limit than this counts as at the limit: times are sums of rounded numbers
RULSTM_POINTS, RULSTM_STEP_S = 11, 0.25

Strategy = Literal["last_clip", "center_clip", "first_clip", "random_clip"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """How frames are chosen: `frames` of them at `rate` per second (none: all), by `strategy`; `dynamic` in training.

    `compat` takes a frame that lies exactly at the limit too, and counts what `dynamic` cut away.
    """

    frames: int
    rate: float | None
    strategy: Strategy = "last_clip"
    dynamic: bool = False
    compat: bool = False


class Span(NamedTuple):
    """What would be read by a reader of everything: all frames from `start_s` to `end_s`, every `step`-th of them."""

    start_s: float
    end_s: float
    limit_s: float
    step: int


class Choice(NamedTuple):
    """Frame numbers (T,), never falling, the float32 time stamp (T,) of each in seconds, what they are chosen from."""

    numbers: list[int]
    times_s: NDArray[np.float32]
    among: range


def span(start_s: float, end_s: float, fps: float, rule: Rule, rng: random.Random) -> Span:
    """Where the frames of a clip lie in the observed seconds, at the video's own frame rate."""
    start_s, end_s = max(float(start_s), 0.0), max(float(end_s), 0.0)
    rate = rule.rate or fps
    total = int(fps * (end_s - start_s))
    if rule.dynamic:
        start_s += rng.random() * 0.5 * (end_s - start_s)
        if not rule.compat:  # as released, what was cut still counts, and a clip may begin at its end: with no frame
            total = int(fps * (end_s - start_s))
    wanted = round(rule.frames * (fps / rate))
    spare = max(total - wanted, 0)
    first = {"last_clip": spare, "center_clip": spare // 2, "first_clip": 0}.get(rule.strategy)
    if first is None:
        first = rng.randrange(spare) if spare else 0
    clip_end_s = max(min(end_s, start_s + (first + wanted) / fps), 0.0)
    clip_start_s = min(max(start_s + first / fps, 0.0), clip_end_s)
    return Span(clip_start_s, clip_end_s, end_s, max(round(fps / rate), 1))


def choose(first: int, count: int, where: Span, rule: Rule) -> Choice:
    """Of `count` frames from number `first` on, which lie in `where`, those of the clip.

    Counted from the last one backwards for `last_clip`, else forwards; too few are repeated at the front, or at the
    end. Time stamps spread evenly over the span, as in the published code: a frame's own time may be a frame earlier.

    Raises: ValueError when there is no frame.
    """
    if count < 1:
        raise ValueError(f"no frame lies between {where.start_s:.3f} and {where.end_s:.3f} s")
    last = rule.strategy == "last_clip"
    places = list(range(count - 1, -1, -where.step))[::-1] if last else list(range(0, count, where.step))
    padding = rule.frames - len(places)
    if padding > 0:
        places = [places[0]] * padding + places if last else places + [places[-1]] * padding
    places = places[-rule.frames :] if last else places[: rule.frames]
    # torch's own float32 linspace: past labels compare these numbers with annotated times.
    stamps = (
        torch.linspace(where.start_s, where.end_s, count).numpy()
        if where.start_s < where.end_s
        else np.full(count, where.start_s, dtype=np.float32)
    )
    return Choice([first + place for place in places], stamps[places], range(first, first + count))


def feature_frames(where: Span, rule: Rule) -> Choice:
    """Feature numbers, counted from 1: floor(30 start) + 1 .. floor(30 end), which all end at or before the limit."""
    first = math.floor(where.start_s * FEATURE_FPS) + 1
    return choose(first, math.floor(where.end_s * FEATURE_FPS) - first + 1, where, rule)


def rulstm_frames(where: Span, rule: Rule) -> Choice:
    """RULSTM's own points: 11 every 0.25 s up to the end of the span; those before the video repeat the first."""
    points = where.end_s - np.arange(RULSTM_POINTS)[::-1] * RULSTM_STEP_S
    numbers = np.floor(points * FEATURE_FPS).astype(np.int64)
    if numbers.max() < 1:
        raise ValueError(f"no feature lies before {where.end_s:.3f} s")
    numbers[numbers < 1] = numbers[numbers >= 1].min()
    chosen = choose(0, RULSTM_POINTS, where, rule)
    among = range(int(numbers.min()), int(numbers.max()) + 1)
    return Choice(numbers[chosen.numbers].tolist(), chosen.times_s, among)


def video_frames(times_s: Floats, where: Span, rule: Rule) -> Choice:
    """Numbers of the frames whose time lies in the span, and before the limit.

    `times_s` (N,) are the times of all frames, ascending. The published code also takes a frame exactly at the limit:
    `rule.compat`.
    """
    first = int(np.searchsorted(times_s, where.start_s, "left"))
    end = int(np.searchsorted(times_s, where.end_s, "right"))
    if not rule.compat:
        end = min(end, int(np.searchsorted(times_s, where.limit_s - SLACK_S, "left")))
    return choose(first, end - first, where, rule)


class PastLabels:
    """What is being done at a time of a video.

    Where actions overlap, the one whose middle is nearest; with `compat` the published rule, which takes half the
    duration of an action for its middle, and the first of equals.
    """

    def __init__(self, segments: Segments, *, compat: bool = False) -> None:
        self._videos: dict[str, tuple[Ints, Floats, Floats, Floats, Floats, Ints]] = {}
        order = np.argsort(segments.path, kind="stable")
        cuts = np.flatnonzero(segments.path[order][1:] != segments.path[order][:-1]) + 1
        for rows in np.split(order, cuts) if len(order) else []:
            rows = np.sort(rows)
            start_s, end_s = segments.start_s[rows].astype(float), segments.end_s[rows].astype(float)
            middle_s = (end_s - start_s) / 2.0 if compat else (start_s + end_s) / 2.0
            by_start = np.argsort(start_s, kind="stable")
            latest_end_s = np.maximum.accumulate(end_s[by_start])
            self._videos[str(segments.path[rows[0]])] = (
                by_start, start_s, end_s, middle_s, latest_end_s, segments.action[rows],
            )  # fmt: skip

    def at(self, path: str, times_s: NDArray[np.float32]) -> Ints:
        """The action at each time, int64 (T,); -1 where there is none."""
        times = times_s.astype(float)
        if path not in self._videos:
            return np.full(len(times), -1, dtype=np.int64)
        by_start, start_s, end_s, middle_s, latest_end_s, action = self._videos[path]
        # Only what begins before the last time and has not ended before the first can be going on.
        low = int(np.searchsorted(latest_end_s, times.min(), "left"))
        high = int(np.searchsorted(start_s[by_start], times.max(), "right"))
        if low >= high:
            return np.full(len(times), -1, dtype=np.int64)
        near = np.sort(by_start[low:high])
        going_on = (start_s[near] <= times[:, None]) & (times[:, None] <= end_s[near])
        distance = np.where(going_on, np.abs(times[:, None] - middle_s[near]), np.inf)
        return np.where(going_on.any(1), action[near[distance.argmin(1)]], -1)
