"""Which actions form a sample, which seconds of each are seen, and which frames: pure functions.

Everything here is decided by golden cases: windows by `dataset_windows`, seconds by its `times.json`, frames by
`clip_frames`.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from core import clips
from projects.lta_memvit.ego4d import Action

Rule = Literal["all", "reference"]

BUFFER = 64  # frames to which the original brings every input when there are several, before it takes those it uses


class Window(NamedTuple):
    """What is seen and what follows: N observed actions and the Z after them, all of one clip and in order."""

    inputs: tuple[Action, ...]
    future: tuple[Action, ...]
    position: int  # place of the last input among the actions of its clip

    @property
    def id(self) -> str:
        """The key of its forecast in a submission: `<clip_uid>_<action_idx of the last input>`."""
        return self.inputs[-1].id

    @property
    def clip_uid(self) -> str:
        """The clip."""
        return self.inputs[-1].clip_uid


class Frames(NamedTuple):
    """Frame numbers of one input; `clamped` when its seconds lay outside of the video."""

    indices: list[int]
    clamped: bool


def windows(actions: Mapping[str, Sequence[Action]], inputs: int, future: int, *, rule: Rule = "all") -> list[Window]:
    """All windows of every clip: n actions give n - N - Z + 1, steps between `action_idx` do not matter.

    rule="reference" leaves out the last one of every clip, as the forecasting baseline did until August 2023 and the
    MeMViT fork still does.
    """
    found = []
    for sequence in actions.values():
        for first in range(len(sequence) - inputs - future + (rule == "all")):
            split = first + inputs
            found.append(Window(tuple(sequence[first:split]), tuple(sequence[split : split + future]), split - 1))
    return found


def seconds(action: Action, clip_s: float, rng: random.Random | None = None) -> tuple[float, float]:
    """Start and end of the part of a segment that is seen: a random one, or without `rng` the middle one.

    A middle part of a segment shorter than `clip_s` reaches outside of it, even before 0. The order of operations is
    the original's: its rounding decides on frames.
    """
    length = action.end_s - action.start_s
    offset = length / 2 - clip_s / 2 if rng is None else rng.uniform(0, max(length - clip_s, 0))
    return offset + action.start_s, offset + clip_s + action.start_s


def between(times_s: Sequence[float], tick_s: float, start_s: float, end_s: float) -> tuple[range, bool]:
    """Numbers of the frames with ceil(start / tick) <= tick of the frame < ceil(end / tick), and False.

    Where there is none, those of an equally long span at the nearer end of the video, at least one, and True.

    Args: times of all frames, and the video's time base, in seconds.
    """

    def first_from(time_s: float) -> int:
        return bisect_left(times_s, math.ceil(time_s / tick_s), key=lambda frame_s: round(frame_s / tick_s))

    found, length_s = range(first_from(start_s), first_from(end_s)), end_s - start_s
    if found:
        return found, False
    if found.start == len(times_s):  # after the last frame
        first = first_from(times_s[-1] + tick_s - length_s)
        return range(min(first, len(times_s) - 1), len(times_s)), True
    if found.stop == 0:  # before the first one
        return range(max(first_from(length_s), 1)), True
    return range(found.start - 1, found.start), True  # between two frames: the one on screen


def chosen(found: range, count: int, *, several: bool) -> list[int]:
    """`count` of the frames found, evenly; in two steps where a sample has several inputs, as the original does."""
    places = clips.uniform(len(found), BUFFER if several else count)
    if several:
        places = [places[i] for i in clips.uniform(BUFFER, count)]
    return [found[i] for i in places]


def frames(
    times_s: Sequence[float], tick_s: float, span_s: tuple[float, float], count: int, *, several: bool
) -> Frames:
    """The `count` frames that stand for the seconds `span_s` of a video."""
    found, clamped = between(times_s, tick_s, *span_s)
    return Frames(chosen(found, count, several=several), clamped)
