"""Frame numbers and spans: the official choices to the number, and what holds for all of them."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import clips
from tests.support import Case, Parity, cases

COUNTS = st.integers(1, 64)
TOTALS = st.integers(1, 2000)


def named(pattern: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases("ucf50_x3d", pattern), ids=lambda case: case.path.name)


@pytest.mark.golden
@named("samplers*")
def test_frames_of_the_official_samplers(case: Case, parity: Parity) -> None:
    expected = case.expected
    totals = expected["t"].tolist()
    for name, wanted in expected.items():
        kind, _, rest = name.partition("_")
        if kind in ("fixed", "uniform"):
            choose = clips.padded if kind == "fixed" else clips.uniform
            parity.check(name, [choose(total, int(rest)) for total in totals], wanted)
        elif kind == "pack":
            total, alpha = (int(part.lstrip("Talph")) for part in rest.split("_"))
            parity.check(name, clips.uniform(total, total // alpha), wanted)


@pytest.mark.golden
@named("clip_samplers*")
def test_spans_of_the_official_samplers(case: Case, parity: Parity) -> None:
    expected = case.json()
    for number, entry in enumerate(expected["fixed"]):
        words = entry["name"].replace("_last", "").split()
        values = {key: float(Fraction(value)) for key, value in (word.split("=") for word in words if "=" in word)}
        if words[0] == "uniform":
            hop = values.get("stride", values["clip"])
            spans = clips.tile(entry["duration"], values["clip"], hop, cover_end="backpad" in words)
            augmentations = 1
        else:
            spans = clips.spread(entry["duration"], values["clip"], int(values["clips"]))
            augmentations = int(values["augs"])
        rows = [[*span, k, a] for k, span in enumerate(spans) for a in range(augmentations)]
        parity.check(f"{number} {entry['name']}", rows, [row[:4] for row in entry["clips"]], atol=1e-9)
        assert [row[4] for row in entry["clips"]] == [False] * (len(rows) - 1) + [True]
    rng = random.Random(7)
    drawn = [[duration, *clips.random_span(duration, 2.0, rng)] for duration, *_ in expected["random_seed7"]]
    parity.check("random", drawn, expected["random_seed7"], atol=1e-9)


@pytest.mark.golden
@named("test_views*")
def test_frames_of_the_official_test_views(case: Case, parity: Parity) -> None:
    for number, entry in enumerate(case.json()["views"]):
        span = entry["rate"] * entry["num_frames"] / 30 * entry["fps"]
        start = clips.view_starts(entry["video_frames"], span, entry["num_views"])[max(entry["view"], 0)]
        parity.check(f"{number} start", start, entry["start"], atol=1e-9)
        indices = clips.between(start, start + span - 1, entry["num_frames"], entry["video_frames"])
        parity.check(f"{number} indices", indices, entry["indices"])


@given(TOTALS, COUNTS)
def test_uniform_and_padded_rise_within_the_video(total: int, count: int) -> None:
    for chosen in (clips.uniform(total, count), clips.padded(total, count)):
        assert len(chosen) == count
        assert chosen == sorted(chosen)
        assert chosen[0] == 0
        assert chosen[-1] < total
    if count > 1:
        assert clips.uniform(total, count)[-1] == total - 1
    if total <= count:
        assert clips.padded(total, count) == [*range(total), *[total - 1] * (count - total)]


@given(st.floats(0, 500), st.floats(0, 500), st.integers(2, 64), TOTALS)
def test_between_is_torchs_linspace_truncated(start: float, length: float, count: int, total: int) -> None:
    import torch

    wanted = torch.linspace(start, start + length, count).clamp(0, total - 1).long().tolist()
    assert clips.between(start, start + length, count, total) == wanted


@given(st.integers(-50, 500), COUNTS, st.integers(1, 9), TOTALS)
def test_strided_is_a_clamped_progression(start: int, count: int, stride: int, total: int) -> None:
    wanted = np.clip(start + stride * np.arange(count), 0, total - 1).tolist()
    assert clips.strided(start, count, stride, total) == wanted


@given(TOTALS, TOTALS, st.integers(0, 9))
def test_starts_leave_room_for_the_span(total: int, span: int, seed: int) -> None:
    for start in (clips.random_start(total, span, random.Random(seed)), clips.center_start(total, span)):
        assert 0 <= start <= max(total - span, 0)


def test_every_start_is_drawn() -> None:
    rng = random.Random(0)
    assert {clips.random_start(10, 7, rng) for _ in range(200)} == {0, 1, 2, 3}


@given(st.floats(0.1, 100), st.floats(0.1, 20), st.floats(0.1, 20))
def test_tiles_cover_the_video(duration: float, clip: float, hop: float) -> None:
    spans = clips.tile(duration, clip, hop, cover_end=True)
    assert spans[0][0] == 0
    assert spans[-1][1] >= duration - 1e-6
    assert all(b[0] - a[0] <= hop + 1e-9 for a, b in itertools.pairwise(spans))
    if duration >= clip:
        assert max(end for _, end in spans) <= duration + 1e-6


@given(st.floats(0.01, 1e4), st.floats(0.01, 100), COUNTS, st.floats(0, 10))
def test_before_never_sees_the_future(end: float, clip: float, count: int, gap: float) -> None:
    if end - gap <= 0:
        with pytest.raises(ValueError, match="leave the sample out"):
            clips.before(end, clip, count, gap)
        return
    times = clips.before(end, clip, count, gap)
    assert len(times) == count
    assert times == sorted(times)
    assert all(0 <= time < end - gap for time in times)
    assert all(time >= end - gap - clip - 1e-9 for time in times)


def test_impossible_requests_are_named() -> None:
    with pytest.raises(ValueError, match="cannot choose 4 of 0 frames"):
        clips.uniform(0, 4)
    with pytest.raises(ValueError, match="stride is 0"):
        clips.strided(0, 4, 0, 10)
    with pytest.raises(ValueError, match="should all be above 0"):
        clips.tile(10, 0, 1)
