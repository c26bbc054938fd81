"""Frame choice: golden samplers, and properties that hold for every video length."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import clips
from tests.support import Case, Parity, cases

TOTAL = st.integers(1, 20_000)
COUNT = st.integers(1, 128)
SECONDS = st.floats(0.05, 4_000)


def case(name: str) -> Case:
    (found,) = cases("ucf50_x3d", name)
    return found


@pytest.mark.golden
def test_fixed_size_and_uniform_sampler(parity: Parity) -> None:
    expected = case("samplers").expected
    for key, rows in expected.items():
        kind, _, number = key.partition("_")
        if kind in ("fixed", "uniform"):
            choose = clips.pad_or_uniform if kind == "fixed" else clips.uniform
            parity.check(key, [choose(int(total), int(number)) for total in expected["t"]], rows)


@pytest.mark.golden
def test_slow_pathway(parity: Parity) -> None:
    expected = {key: rows for key, rows in case("samplers").expected.items() if key.startswith("pack_")}
    assert expected
    for key, rows in expected.items():
        count, alpha = (int(part.lstrip("Talph")) for part in key.split("_")[1:])
        parity.check(key, clips.slow_pathway(count, alpha), rows)


@pytest.mark.golden
def test_clip_samplers(parity: Parity) -> None:
    golden = case("clip_samplers").json()
    for row in golden["fixed"]:
        options = dict(part.split("=") for part in row["name"].split() if "=" in part)
        numbers = {key: eval_fraction(text) for key, text in options.items()}
        if row["name"].startswith("uniform"):
            found = clips.tile(
                row["duration"], numbers["clip"], numbers.get("stride"), cover_end="backpad" in row["name"]
            )
            expected = row["clips"]
        else:
            found = clips.spread(row["duration"], numbers["clip"], int(numbers["clips"]))
            expected = [clip for clip in row["clips"] if clip[3] == 0]
        parity.check(f"{row['name']} of {row['duration']} s", found, [clip[:2] for clip in expected], atol=1e-9)
    rng = random.Random(7)
    for duration, start, end in golden["random_seed7"]:
        parity.check(f"random of {duration} s", clips.random_span(duration, 2, rng), (start, end), atol=1e-9)


def eval_fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


@pytest.mark.golden
def test_views_of_multi_view_testing(parity: Parity) -> None:
    for row in case("test_views").json()["views"]:
        span = row["rate"] * row["num_frames"] / 30 * row["fps"]
        found = clips.view(row["video_frames"], span, row["num_frames"], row["view"], row["num_views"])
        parity.check(f"{row['num_frames']}x{row['rate']} {row['view']}/{row['num_views']}", found, row["indices"])


@settings(deadline=None)
@given(TOTAL, COUNT)
def test_uniform_runs_from_first_to_last(total: int, count: int) -> None:
    for choose in (clips.uniform, clips.pad_or_uniform):
        indices = choose(total, count)
        assert len(indices) == count
        assert indices[0] == 0
        assert indices == sorted(indices)
        assert indices[-1] == (total - 1 if count > 1 else 0)
        assert len(set(indices)) == min(total, count)


@settings(deadline=None)
@given(TOTAL, COUNT, st.integers(1, 64), st.integers(-50, 20_050))
def test_strided_stays_inside(total: int, count: int, stride: int, start: int) -> None:
    indices = clips.strided(start, count, stride, total)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < total
    inside = [start + i * stride for i in range(count) if 0 <= start + i * stride < total]
    assert set(inside) <= set(indices)


@settings(deadline=None)
@given(TOTAL, st.integers(1, 30_000), st.integers())
def test_starts_leave_room_for_the_span(total: int, span: int, seed: int) -> None:
    for start in (clips.random_start(total, span, random.Random(seed)), clips.center_start(total, span)):
        assert start == 0 if span >= total else 0 <= start <= total - span
    assert clips.random_start(total, span, random.Random(seed)) == clips.random_start(total, span, random.Random(seed))


def test_random_starts_reach_both_ends() -> None:
    rng = random.Random(0)
    assert {clips.random_start(10, 7, rng) for _ in range(200)} == {0, 1, 2, 3}


@settings(deadline=None)
@given(TOTAL, st.floats(1, 500), COUNT, st.integers(1, 12))
def test_views_are_ordered_and_inside(total: int, span: float, count: int, views: int) -> None:
    starts = []
    for index in range(views):
        indices = clips.view(total, span, count, index, views)
        assert len(indices) == count
        assert indices == sorted(indices)
        assert 0 <= indices[0] <= indices[-1] < total
        starts.append(indices[0])
    assert starts == sorted(starts)


@settings(deadline=None)
@given(SECONDS, st.floats(0.1, 60), st.floats(0.1, 60))
def test_tiles_are_equal_and_cover_the_video(duration_s: float, clip_s: float, hop_s: float) -> None:
    tiles = clips.tile(duration_s, clip_s, hop_s, cover_end=True)
    assert tiles[0][0] == 0
    assert all(abs(end - start - clip_s) < 1e-6 for start, end in tiles)
    assert all(0 < b[0] - a[0] <= hop_s + 1e-6 for a, b in pairwise(tiles))
    assert tiles[-1][1] == pytest.approx(max(duration_s, clip_s))
    if clip_s <= duration_s:
        assert all(end <= duration_s + 1e-6 for _, end in tiles)


@settings(deadline=None)
@given(SECONDS, st.floats(0.1, 60), st.integers(2, 30))
def test_spread_reaches_both_ends(duration_s: float, clip_s: float, count: int) -> None:
    spans = clips.spread(duration_s, clip_s, count)
    assert len(spans) == count
    assert spans == sorted(spans)
    assert spans[0][0] == 0
    assert spans[-1][1] == pytest.approx(max(duration_s, clip_s))


@settings(deadline=None)
@given(st.floats(0.01, 4_000), st.floats(1e-6, 100), COUNT, st.floats(0, 5))
def test_before_never_sees_the_future(end_s: float, clip_s: float, count: int, gap_s: float) -> None:
    if end_s - gap_s <= 0:
        with pytest.raises(ValueError, match="nothing lies before"):
            clips.before(end_s, clip_s, count, gap_s)
        return
    times = clips.before(end_s, clip_s, count, gap_s)
    assert len(times) == count
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < end_s - gap_s


def test_before_by_value() -> None:
    assert clips.before(10, 4, 4, 1) == [5, 6, 7, 8]
    assert clips.before(2, 4, 4) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clips.uniform(0, 4), "total=0"),
        (lambda: clips.uniform(4, 0), "count=0"),
        (lambda: clips.strided(0, 4, 0, 9), "stride=0"),
        (lambda: clips.slow_pathway(4, 8), "alpha=8 leaves no frame"),
        (lambda: clips.view(9, 4, 2, 3, 3), "view 3 is not one of 3"),
        (lambda: clips.tile(5, 2, -1), "hop_s=-1"),
        (lambda: clips.before(5, 2, 2, -1), "beyond the end"),
    ],
)
def test_nonsense_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@given(st.floats(0, 500), st.floats(0, 500), st.integers(2, 64), st.integers(1, 2000))
def test_between_is_torchs_linspace_truncated(start: float, length: float, count: int, total: int) -> None:
    wanted = torch.linspace(start, start + length, count).clamp(0, total - 1).long().tolist()
    assert clips.between(start, start + length, count, total) == wanted
