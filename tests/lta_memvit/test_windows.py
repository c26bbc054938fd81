"""Windows, seconds and frames: properties, edges, and what the official rules would have lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import clips
from projects.lta_memvit.ego4d import Action, by_clip
from projects.lta_memvit.windows import between, chosen, frames, seconds, windows

TICK_S = 1 / 15360


def actions(uid: str, numbers: list[int]) -> list[Action]:
    return [Action(uid, number, float(number), number + 8.0, number % 5, number % 7) for number in numbers]


sequences = st.lists(st.integers(0, 60), unique=True, max_size=40)


@given(sequences, st.integers(1, 5), st.integers(1, 20), st.randoms(use_true_random=False))
def test_windows_slide_over_the_sorted_actions(
    numbers: list[int], inputs: int, future: int, rng: random.Random
) -> None:
    shuffled = list(numbers)
    rng.shuffle(shuffled)
    found = windows(by_clip(actions("a", shuffled)), inputs, future)
    order = sorted(numbers)
    assert len(found) == max(0, len(numbers) - inputs - future + 1)
    for start, window in enumerate(found):
        seen = [action.number for action in window.inputs + window.future]
        assert seen == order[start : start + inputs + future]  # gaps of the numbers are stepped over
        assert (len(window.inputs), len(window.future)) == (inputs, future)
        assert window.position == start + inputs - 1
        assert window.id == f"a_{order[window.position]}"
    assert len({window.id for window in found}) == len(found)
    assert windows(by_clip(actions("a", shuffled)), inputs, future, rule="reference") == found[:-1]


@given(sequences, sequences)
def test_the_windows_of_a_dataset_are_those_of_its_clips(first: list[int], second: list[int]) -> None:
    mixed = actions("b", first) + actions("a", second)
    random.Random(0).shuffle(mixed)
    together = windows(by_clip(mixed), 2, 3)
    apart = windows(by_clip(actions("b", first)), 2, 3) + windows(by_clip(actions("a", second)), 2, 3)
    assert sorted(together) == sorted(apart)
    order = list(dict.fromkeys(action.clip_uid for action in mixed))
    assert [window.clip_uid for window in together] == sorted(
        (window.clip_uid for window in together), key=order.index
    )  # clips in the order of their first appearance


@given(st.floats(0, 100), st.floats(0.1, 20), st.integers(0, 99))
def test_random_seconds_stay_in_their_segment_and_middle_ones_around_its_middle(
    start_s: float, length_s: float, seed: int
) -> None:
    action, clip_s = Action("a", 0, start_s, start_s + length_s, 0, 0), 32 / 15
    first, last = seconds(action, clip_s)
    assert (first + last) / 2 == pytest.approx(start_s + length_s / 2)
    assert last - first == pytest.approx(clip_s)
    first, last = seconds(action, clip_s, random.Random(seed))
    assert last - first == pytest.approx(clip_s)
    assert start_s <= first + 1e-9
    assert last <= max(action.end_s, start_s + clip_s) + 1e-9


def grid(count: int, fps: int = 30) -> list[float]:
    return [k * (15360 // fps) / 15360 for k in range(count)]


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0.0, 1.0), range(30)),  # the end does not belong to it
        ((1 / 30, 2 / 30), range(1, 2)),
        ((-0.5, 0.1), range(3)),
        ((9.95, 12.0), range(299, 300)),
        ((0.0333, 0.0334), range(1, 2)),
    ],
)
def test_a_frame_belongs_to_the_seconds_in_which_it_begins(span: tuple[float, float], expected: range) -> None:
    assert between(grid(300), TICK_S, *span) == (expected, False)


def test_seconds_are_rounded_up_to_ticks() -> None:
    """A time that rounding leaves a hair above a frame's excludes it, as in the original."""
    assert between(grid(300), TICK_S, 1.0, 2.0)[0].start == 30
    assert between(grid(300), TICK_S, 1.0 + 1e-12, 2.0)[0].start == 31
    assert between(grid(300), TICK_S, 1.0 - 1e-12, 2.0)[0].start == 30


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((20.0, 22.0), range(240, 300)),  # after the end: as long a span that ends with the video
        ((-5.0, -3.0), range(60)),  # before the start
        ((400.0, 400.001), range(299, 300)),
        ((-9.0, -8.999), range(1)),
        ((0.05, 0.06), range(1, 2)),  # between two frames
        ((20.0, 60.0), range(300)),  # longer than the video
    ],
)
def test_seconds_without_a_frame_get_the_nearest_ones_and_it_is_said(
    span: tuple[float, float], expected: range
) -> None:
    found, clamped = between(grid(300), TICK_S, *span)
    assert (found, clamped) == (expected, True)
    assert frames(grid(300), TICK_S, span, 8, several=True).clamped


@given(st.integers(1, 200), st.integers(1, 40), st.booleans(), st.integers(0, 1000))
def test_chosen_frames_go_from_the_first_to_the_last(count: int, wanted: int, several: bool, start: int) -> None:
    found = range(start, start + count)
    taken = chosen(found, wanted, several=several)
    assert len(taken) == wanted
    assert taken == sorted(taken)
    assert taken[0] == found[0]
    assert wanted == 1 or taken[-1] == found[-1]
    assert set(taken) <= set(found)
    if not several:
        assert taken == [found[i] for i in clips.uniform(count, wanted)]


def test_two_steps_differ_from_one() -> None:
    """47 frames brought to 64 and then thinned to 16 are others than 47 thinned at once."""
    assert chosen(range(47), 16, several=True)[4:6] == [11, 15]
    assert chosen(range(47), 16, several=False)[4:6] == [12, 15]
