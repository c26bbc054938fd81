"""Frame choice: never at or after the limit, whatever the frame rate; equal to reading everything; past labels."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from projects.sgear import clips
from projects.sgear.annotations import Segments
from projects.sgear.clips import PastLabels, Rule

STRATEGIES = ("last_clip", "center_clip", "first_clip", "random_clip")
RATES = (23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 60.0, 12.5, 100.0)

rules = st.builds(
    Rule,
    frames=st.integers(1, 40),
    rate=st.sampled_from([None, 0.5, 1.0, 2.0, 2.5, 4.0, 15.0]),
    strategy=st.sampled_from(STRATEGIES),
    dynamic=st.booleans(),
)
# Limits: anything, a hundredth of a second as annotated, or a frame's own time, where rounding decides.
limits = st.one_of(
    st.floats(0.05, 120), st.integers(5, 12_000).map(lambda k: k / 100), st.integers(2, 3600).map(lambda k: k / 30)
)


@given(rules, limits, st.floats(0.1, 40), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 99))
def test_no_feature_reaches_the_limit(rule: Rule, limit_s: float, tau_o: float, tau_a: float, seed: int) -> None:
    """Feature n is the frame on screen from (n - 1) / 30 to n / 30 s: it ends at or before start - tau_a."""
    end_s = (limit_s + tau_a) - tau_a  # as the annotations compute it
    where = clips.span(end_s - tau_o, end_s, clips.FEATURE_FPS, rule, random.Random(seed))
    try:
        choice = clips.feature_frames(where, rule)
    except ValueError:
        assert end_s - max(end_s - tau_o, 0) < 0.1  # so little is seen that no whole frame is in it
        return
    assert len(choice.numbers) == rule.frames
    assert min(choice.numbers) >= 1
    assert max(choice.numbers) / clips.FEATURE_FPS <= limit_s + 1e-9
    assert choice.numbers == sorted(choice.numbers)


@given(rules, limits, st.floats(0.1, 40), st.sampled_from(RATES), st.floats(0, 0.3), st.integers(0, 99))
def test_no_frame_reaches_the_limit(
    rule: Rule, limit_s: float, tau_o: float, fps: float, first_s: float, seed: int
) -> None:
    """For any frame rate, also with uneven times and a first frame that is not at 0."""
    jitter = np.random.default_rng(seed).uniform(0, 0.4 / fps, math.ceil(130 * fps)) if seed % 3 == 0 else 0.0
    times_s = first_s + np.arange(math.ceil(130 * fps)) / fps + jitter
    where = clips.span(limit_s - tau_o, limit_s, fps, rule, random.Random(seed))
    try:
        choice = clips.video_frames(times_s, where, rule)
    except ValueError:
        inside = (times_s >= where.start_s) & (times_s <= where.end_s) & (times_s < limit_s - clips.SLACK_S)
        assert not inside.any()
        return
    assert len(choice.numbers) == rule.frames
    assert times_s[max(choice.numbers)] < limit_s - clips.SLACK_S
    assert times_s[min(choice.numbers)] >= where.start_s


@given(st.integers(1, 3000), st.sampled_from(RATES))
def test_a_frame_exactly_at_the_limit_is_the_published_one_only(number: int, fps: float) -> None:
    times_s = np.arange(number + 10) / fps
    limit_s = (number / fps + 1.0) - 1.0
    where = clips.span(limit_s - 5, limit_s, fps, Rule(4, None), random.Random(0))
    assert clips.video_frames(times_s, where, Rule(4, None)).numbers[-1] == number - 1
    last = clips.video_frames(times_s, where, Rule(4, None, compat=True)).numbers[-1]
    assert last == (number if times_s[number] <= where.end_s else number - 1)


def read_everything(times_s: np.ndarray, where: clips.Span, rule: Rule) -> tuple[list[int], list[float]]:
    """What the published code does, written plainly: read all frames, thin them, pad or cut."""
    frames = [k for k, t in enumerate(times_s) if where.start_s <= t <= where.end_s]
    if not rule.compat:
        frames = [k for k in frames if times_s[k] < where.limit_s - clips.SLACK_S]
    stamps = (
        torch.linspace(where.start_s, where.end_s, len(frames)).tolist()
        if where.start_s < where.end_s
        else [float(np.float32(where.start_s))] * len(frames)
    )
    pairs = list(zip(frames, stamps, strict=True))
    if rule.strategy == "last_clip":
        pairs = pairs[:: -where.step][::-1]
        pairs = [pairs[0]] * (rule.frames - len(pairs)) + pairs
        pairs = pairs[-rule.frames :]
    else:
        pairs = pairs[:: where.step]
        pairs = pairs + [pairs[-1]] * (rule.frames - len(pairs))
        pairs = pairs[: rule.frames]
    return [k for k, _ in pairs], [t for _, t in pairs]


@given(rules, limits, st.floats(0.5, 20), st.sampled_from(RATES), st.booleans(), st.integers(0, 9))
def test_chosen_frames_are_those_of_reading_everything(
    rule: Rule, limit_s: float, tau_o: float, fps: float, compat: bool, seed: int
) -> None:
    rule = Rule(rule.frames, rule.rate, rule.strategy, rule.dynamic, compat)
    times_s = np.arange(math.ceil(122 * fps)) / fps
    where = clips.span(limit_s - tau_o, limit_s, fps, rule, random.Random(seed))
    try:
        choice = clips.video_frames(times_s, where, rule)
    except ValueError:
        return
    frames, stamps = read_everything(times_s, where, rule)
    assert choice.numbers == frames
    assert choice.times_s.tolist() == stamps


def test_where_a_clip_lies_in_the_observed_seconds() -> None:
    found = {
        strategy: clips.feature_frames(
            clips.span(10.0, 20.0, 30.0, rule := Rule(4, 1.0, strategy), random.Random(0)), rule
        ).numbers
        for strategy in STRATEGIES
    }
    assert found["last_clip"] == [510, 540, 570, 600]
    assert found["center_clip"] == [391, 421, 451, 481]
    assert found["first_clip"] == [301, 331, 361, 391]
    assert 301 <= found["random_clip"][0] <= 481
    assert len({clips.span(10, 20, 30, Rule(4, 1.0, "random_clip"), random.Random(k)).start_s for k in range(20)}) > 10


def test_a_dynamic_context_loses_up_to_half() -> None:
    starts = [clips.span(10, 20, 30, Rule(4, None, "first_clip", True), random.Random(k)).start_s for k in range(200)]
    assert 10 <= min(starts) < 10.5
    assert 14.5 < max(starts) < 15


def test_rulstm_points_are_a_quarter_second_apart() -> None:
    where = clips.Span(7.5, 10.0, 10.0, 1)
    choice = clips.rulstm_frames(where, Rule(11, None))
    assert choice.numbers == [225, 232, 240, 247, 255, 262, 270, 277, 285, 292, 300]
    early = clips.rulstm_frames(clips.Span(0.0, 1.0, 1.0, 1), Rule(11, None))
    assert early.numbers == [7, 7, 7, 7, 7, 7, 7, 7, 15, 22, 30]
    with pytest.raises(ValueError, match="no feature lies before"):
        clips.rulstm_frames(clips.Span(0.0, 0.01, 0.01, 1), Rule(11, None))


# --- past labels


def rows(start_s: list[float], end_s: list[float]) -> Segments:
    count = np.arange(len(start_s))
    text = np.array([str(k) for k in count], dtype=np.str_)
    path = np.array(["a"] * len(start_s), dtype=np.str_)
    return Segments(text, text, path, np.array(start_s), np.array(end_s), count, count, count)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=25),
    st.lists(st.integers(0, 90), min_size=1, max_size=12),
    st.booleans(),
)
def test_past_labels_are_those_of_a_plain_search(spans: list[tuple[int, int]], times: list[int], compat: bool) -> None:
    start_s, end_s = [s / 2 for s, _ in spans], [(s + d) / 2 for s, d in spans]
    asked = np.array(times, dtype=np.float32) / 2
    found = PastLabels(rows(start_s, end_s), compat=compat).at("a", asked)
    for t, label in zip(asked.tolist(), found.tolist(), strict=True):
        going_on = [k for k in range(len(spans)) if start_s[k] <= t <= end_s[k]]
        middle = [(e - s) / 2 if compat else (s + e) / 2 for s, e in zip(start_s, end_s, strict=True)]
        assert label == (min(going_on, key=lambda k: abs(t - middle[k])) if going_on else -1)


def test_a_video_without_actions_has_no_past() -> None:
    assert PastLabels(rows([], [])).at("b", np.zeros(3, dtype=np.float32)).tolist() == [-1, -1, -1]


def test_the_published_tie_rule_prefers_by_half_the_duration() -> None:
    long_and_far, short = [0.0, 100.0], [40.0, 56.0]
    spans = rows([long_and_far[0], short[0]], [long_and_far[1], short[1]])
    asked = np.array([47.0], dtype=np.float32)
    assert PastLabels(spans).at("a", asked).tolist() == [1], "the middle of the second, 48 s, is nearer than 50 s"
    assert PastLabels(spans, compat=True).at("a", asked).tolist() == [0], "|47 - 50| < |47 - 8|"
