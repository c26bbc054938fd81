"""Suppression, voting, decoding and outside scores: properties, small examples, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from projects.actionformer.config import PostprocessConfig
from projects.actionformer.postprocess import Detections, batched, decode, suppress, vote
from projects.actionformer.postprocess.candidates import best
from projects.actionformer.postprocess.external import fuse, read_scores, scores_of
from projects.actionformer.postprocess.overlap import diou, iou
from tests.actionformer import small

POST = PostprocessConfig(min_score=0.001, max_detections=100)
GEOMETRY = {"fps": [24], "stride_frames": [8], "window_frames": [16], "duration_s": [20.0]}
spans = st.tuples(st.integers(0, 60), st.integers(1, 25)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def candidates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments, scores that are all different, labels."""
    segments = draw(st.lists(spans, min_size=1, max_size=25))
    scores = draw(st.permutations(np.linspace(0.05, 0.95, len(segments)).tolist()))
    labels = draw(st.lists(st.integers(0, 2), min_size=len(segments), max_size=len(segments)))
    return np.array(segments, np.float32), np.array(scores, np.float32), np.array(labels, np.int64)


def rows(problem: tuple[Any, ...], cfg: PostprocessConfig) -> list[tuple[float, ...]]:
    segments, scores, labels = problem
    kept = suppress(segments, scores, labels, cfg)
    return [(*segments[k], s, labels[k]) for k, s in zip(kept.numbers, kept.scores, strict=True)]


# ---------------------------------------------------------------------------------------------------------- suppression


@given(candidates(), st.sampled_from(["soft", "hard"]), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(problem: Any, nms: str, rng: Any) -> None:
    cfg = POST.model_copy(update={"nms": nms, "iou_threshold": 0.3})
    order = list(range(len(problem[0])))
    rng.shuffle(order)
    assert rows(tuple(column[order] for column in problem), cfg) == rows(problem, cfg)


@given(candidates(), st.floats(0.05, 0.9))
def test_hard_suppression_is_idempotent_and_leaves_nothing_that_overlaps(problem: Any, threshold: float) -> None:
    cfg = POST.model_copy(update={"nms": "hard", "iou_threshold": threshold})
    once = rows(problem, cfg)
    again = tuple(np.array(column) for column in zip(*((row[:2], row[2], row[3]) for row in once), strict=True))
    assert rows((again[0], again[1], again[2].astype(np.int64)), cfg) == once
    for label in range(3):
        own = np.array([row[:2] for row in once if row[3] == label], np.float32).reshape(-1, 2)
        pairs = iou(own, own) - np.eye(len(own))
        assert (pairs < threshold).all()


@given(candidates(), st.booleans())
def test_soft_suppression_lowers_scores_and_ends_in_their_order(problem: Any, distance: bool) -> None:
    cfg = POST.model_copy(update={"diou": distance, "diou_order": "decayed"})
    segments, scores, labels = problem
    kept = suppress(segments, scores, labels, cfg)
    assert (kept.scores <= scores[kept.numbers]).all()
    assert (np.diff(kept.scores) <= 0).all()
    assert len(set(kept.numbers.tolist())) == len(kept.numbers)
    for label in np.unique(labels):  # the best of a class is nobody's neighbor yet
        first = kept.numbers[labels[kept.numbers] == label][0]
        assert scores[first] == scores[labels == label].max()


@given(candidates(), st.sampled_from(["soft", "hard", "diou"]))
def test_classes_do_not_know_of_each_other(problem: Any, kind: str) -> None:
    cfg = POST.model_copy(update={"nms": "hard" if kind == "hard" else "soft", "diou": kind == "diou"})
    segments, scores, labels = problem
    apart = [
        row
        for label in np.unique(labels)
        for row in rows((segments[labels == label], scores[labels == label], labels[labels == label]), cfg)
    ]
    assert sorted(rows(problem, cfg)) == sorted(apart)


@given(candidates(), st.sampled_from(["soft", "hard"]), st.booleans(), st.booleans(), st.integers(1, 30))
def test_rows_together_and_one_after_the_other(
    problem: Any, nms: str, per_class: bool, distance: bool, most: int
) -> None:
    changes = {"nms": nms, "per_class": per_class, "diou": distance, "diou_order": "decayed", "max_detections": most}
    cfg = POST.model_copy(update={**changes, "class_sigma": {1: 0.2}, "iou_threshold": 0.4})
    segments, scores, labels = problem
    kept = suppress(segments, scores, labels, cfg)
    index, values = batched.suppress(*(torch.from_numpy(column)[None] for column in problem), cfg)
    there = values[0] > 0
    np.testing.assert_allclose(values[0][there].numpy(), kept.scores, atol=1e-6)
    np.testing.assert_allclose(np.sort(scores[index[0][there].numpy()]), np.sort(scores[kept.numbers]), atol=1e-6)


def test_a_stricter_cap_keeps_the_front_of_the_list() -> None:
    rng = np.random.default_rng(0)
    segments = np.sort(rng.uniform(0, 200, (400, 2)), 1).astype(np.float32)
    problem = (segments, rng.random(400).astype(np.float32), rng.integers(0, 7, 400))
    for nms in ("soft", "hard"):
        cfg = POST.model_copy(update={"nms": nms, "max_detections": 400})
        whole = rows(problem, cfg)
        assert rows(problem, cfg.model_copy(update={"max_detections": 17})) == whole[:17]


def test_a_smaller_sigma_of_a_class_decays_it_more() -> None:
    segments = np.array([[0, 10], [1, 11], [0, 10], [1, 11]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.9, 0.8], np.float32), np.array([0, 0, 1, 1])
    kept = suppress(segments, scores, labels, POST.model_copy(update={"class_sigma": {1: 0.1}}))
    decayed = dict(zip(kept.numbers.tolist(), kept.scores.tolist(), strict=True))
    overlap = float(iou(segments[:1], segments[1:2])[0, 0])
    assert decayed[1] == pytest.approx(0.8 * np.exp(-(overlap**2) / 0.5), rel=1e-6)
    assert 3 not in decayed or decayed[3] < decayed[1]


def test_no_suppression_gives_every_candidate_in_its_order() -> None:
    segments, scores = np.array([[0, 1], [0, 1]], np.float32), np.array([0.2, 0.9], np.float32)
    kept = suppress(segments, scores, np.zeros(2, np.int64), PostprocessConfig(nms="none", max_detections=1))
    assert kept.numbers.tolist() == [0, 1]


def test_no_candidates() -> None:
    for nms in ("soft", "hard", "none"):
        for per_class in (True, False):
            cfg = POST.model_copy(update={"nms": nms, "per_class": per_class})
            kept = suppress(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), cfg)
            assert (kept.numbers.shape, kept.scores.dtype) == ((0,), np.float32)


def test_the_fork_picks_by_the_scores_before_any_decay() -> None:
    """The second candidate falls far below the third, and still is the second pick: a cap of two takes it."""
    segments = np.array([[0, 10], [0.1, 10], [50, 60]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.3], np.float32), np.zeros(3, np.int64)
    cfg = PostprocessConfig(min_score=0.001, max_detections=2, diou=True)
    assert suppress(segments, scores, labels, cfg).numbers.tolist() == [0, 1]
    assert suppress(segments, scores, labels, cfg.model_copy(update={"diou_order": "decayed"})).numbers.tolist() == [
        0,
        2,
    ]


@given(st.lists(spans, min_size=1, max_size=6), st.lists(spans, min_size=1, max_size=6))
def test_distance_only_takes_away(a: Any, b: Any) -> None:
    first, second = np.array(a, np.float32), np.array(b, np.float32)
    both = diou(first, second)
    assert (both <= iou(first, second)).all()
    assert (both >= -1).all()
    np.testing.assert_allclose(both, diou(second, first).T, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- voting


@given(candidates(), st.floats(0.1, 1.0), st.booleans())
def test_votes_stay_among_the_voters(problem: Any, threshold: float, by_overlap: bool) -> None:
    segments, scores, _ = problem
    moved = vote(segments, segments, scores, threshold, by_overlap=by_overlap)
    for own, new in zip(segments, moved, strict=True):
        near = segments[(iou(own[None], segments)[0] >= threshold - 1e-4) | (segments == own).all(1)]
        assert (new >= near.min(0) - 1e-3).all()
        assert (new <= near.max(0) + 1e-3).all()


def test_a_vote_by_hand() -> None:
    segments = np.array([[0, 10], [0, 8], [30, 40]], np.float32)
    scores = np.array([0.6, 0.3, 0.9], np.float32)
    np.testing.assert_allclose(vote(segments[:1], segments, scores, 0.7), [[0, (6 + 0.24 * 8) / 0.84]], rtol=1e-6)
    np.testing.assert_allclose(vote(segments[:1], segments, scores, 0.7, by_overlap=False), [[0, 8.4 / 0.9]], rtol=1e-6)
    alone = np.array([[100, 110]], np.float32)
    np.testing.assert_array_equal(vote(alone, segments, scores, 0.7), alone)


# ------------------------------------------------------------------------------------------------------------- decoding


class Said(NamedTuple):
    """What a network might say."""

    logits: Tensor
    offsets: Tensor
    mask: Tensor
    points: Tensor
    levels: tuple[int, ...]
    distribution: Tensor | None = None


def said(lengths: tuple[int, ...] = (8, 4), classes: int = 2, videos: int = 1) -> Said:
    """Nothing at all, at two levels."""
    strides = [2.0**level for level in range(len(lengths))]
    points = torch.cat([
        torch.stack([torch.arange(n) * s, torch.zeros(n), torch.full((n,), 1e4), torch.full((n,), s)], 1)
        for n, s in zip(lengths, strides, strict=True)
    ])  # fmt: skip
    total = sum(lengths)
    return Said(
        torch.full((videos, total, classes), -20.0), torch.ones(videos, total, 2),
        torch.ones(videos, total, dtype=torch.bool), points, lengths,
    )  # fmt: skip


def test_a_point_becomes_seconds() -> None:
    """Point 6 of stride 2 (time 4): 4 - 1*2 to 4 + 3*2 on the grid; seconds = (grid * 8 + 8) / 24, within the video."""
    outputs = said()
    outputs.logits[0, 10, 1] = 2.0
    outputs.offsets[0, 10] = torch.tensor([1.0, 3.0])
    found = decode(outputs, GEOMETRY, POST)[0]
    np.testing.assert_allclose(found.segments_s, [[(2 * 8 + 8) / 24, (10 * 8 + 8) / 24]], rtol=1e-6)
    assert found.labels.tolist() == [1]
    assert found.scores[0] == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item(), rel=1e-6)
    on_grid = decode(outputs, GEOMETRY, POST.model_copy(update={"units": "features"}))[0]
    np.testing.assert_array_equal(on_grid.segments_s, [[2, 10]])
    outputs.offsets[0, 10] = torch.tensor([100.0, 100.0])
    np.testing.assert_allclose(decode(outputs, GEOMETRY, POST)[0].segments_s, [[0, 20]])


def test_masked_points_say_nothing() -> None:
    outputs = said()
    outputs.logits[:] = 3.0
    outputs.mask[:, 5:8] = False
    outputs.mask[:, 11] = False
    found = decode(outputs, GEOMETRY, POST.model_copy(update={"nms": "none", "units": "features"}))[0]
    assert len(found.scores) == 2 * (12 - 4)
    assert found.segments_s[:, 1].max() == 6  # that of the point at time 4 with stride 2


def test_temperature_flattens_scores() -> None:
    outputs = said()
    outputs.logits[0, 3, 0] = 2.6
    found = decode(outputs, GEOMETRY, POST.model_copy(update={"temperature": 1.3}))[0]
    assert found.scores[0] == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item(), rel=1e-6)


def test_limits_of_a_level_and_of_all() -> None:
    outputs = said((8, 4), classes=1)
    outputs.logits[0, :, 0] = torch.arange(12) / 4 - 1
    post = PostprocessConfig(nms="none", units="features", topk=3)
    assert len(decode(outputs, GEOMETRY, post)[0].scores) == 6
    found = decode(outputs, GEOMETRY, post.model_copy(update={"total_topk": 4}))[0]
    np.testing.assert_allclose(found.scores, torch.sigmoid(torch.tensor([1.75, 1.5, 1.25, 0.75])).numpy(), rtol=1e-6)
    long = decode(outputs, GEOMETRY, post.model_copy(update={"min_duration": 2.5}))[0]
    assert ((long.segments_s[:, 1] - long.segments_s[:, 0]) == 4).all(), "those of the finest level are 2 long"


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 12))
def test_the_best_are_those_of_a_stable_sort(values: list[int], count: int) -> None:
    scores = np.array(values, np.float32) / 8
    order = [k for k in np.argsort(-scores, kind="stable").tolist() if scores[k] > 0.2]
    assert best(scores, 0.2, count).tolist() == order[:count]


def test_peaks_of_a_heat_map() -> None:
    outputs = said((6, 3), classes=1)
    outputs = outputs._replace(offsets=outputs.offsets[..., :0])
    outputs.logits[0, :6, 0] = torch.tensor([2.0, 1.0, 1.0, 3.0, -9.0, 0.5])
    outputs.logits[0, 6:, 0] = 9.0  # other levels do not count
    found = decode(outputs, GEOMETRY, PostprocessConfig(min_score=0.5, units="features"))[0]
    np.testing.assert_array_equal(found.segments_s, [[0, 0], [3, 3], [5, 5]])
    seconds = decode(outputs, GEOMETRY, PostprocessConfig(min_score=0.7))[0]
    np.testing.assert_allclose(seconds.segments_s, [[8 / 24] * 2, [32 / 24] * 2], rtol=1e-6)


def test_a_boundary_distribution_tells_how_sure_it_is() -> None:
    """All on one bin: no spread; even on bins 0 and 4 of stride 2, scaled by 3: deviation 2 * 3 * 2 on the grid."""
    outputs = said((2, 2), classes=1)
    outputs.logits[0, 3] = 2.0
    distribution = torch.full((1, 4, 2, 5), -1e4)
    distribution[0, 3, 0, 2] = 0.0
    distribution[0, 3, 1, [0, 4]] = 0.0
    outputs.offsets[0, 3] = torch.tensor([2.0, 2.0]) * 3
    found = decode(outputs._replace(distribution=distribution), GEOMETRY, POST)[0]
    assert found.spread_s is not None
    np.testing.assert_allclose(found.spread_s, [[0, 12 * 8 / 24]], atol=1e-5)


@pytest.mark.parametrize("nms", ["soft", "hard"])
@pytest.mark.parametrize("per_class", [True, False])
def test_decoding_on_a_device_is_decoding(nms: str, per_class: bool) -> None:
    """The path of a GPU, run here on the CPU, for two videos at once."""
    torch.manual_seed(3)
    outputs = said((32, 16, 8), classes=3, videos=2)
    outputs = outputs._replace(logits=torch.randn(2, 56, 3), offsets=torch.rand(2, 56, 2) * 4)
    outputs.mask[1, 20:32] = False
    batch = {key: values * 2 for key, values in GEOMETRY.items()}
    post = POST.model_copy(update={"nms": nms, "per_class": per_class, "topk": 40, "total_topk": 90, "voting": 0.6})
    for one, other in zip(decode(outputs, batch, post), batched.decode(outputs, batch, post), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        np.testing.assert_allclose(one.segments_s, other.segments_s, atol=1e-4)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(tmp_path: Path) -> None:
    cfg = small.configured(tmp_path)
    net = small.network(cfg)
    features, mask = torch.randn(3, 4, 60), torch.ones(3, 60, dtype=torch.bool)
    batch = {key: values * 3 for key, values in GEOMETRY.items()}
    with torch.no_grad():
        outputs = net(features, mask)
        there = type(outputs)(*(v.cuda() if isinstance(v, Tensor) else v for v in outputs))
    for one, other in zip(decode(outputs, batch, POST), decode(there, batch, POST), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.segments_s, other.segments_s, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- outside scores


def test_class_scores_from_json_and_pickle(tmp_path: Path) -> None:
    table = {"a": [0.1, 0.9], "b": [0.2, 0.3]}
    (tmp_path / "bare.json").write_text(json.dumps(table))
    (tmp_path / "wrapped.json").write_text(json.dumps({"results": table}))
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps({name: np.array(row) for name, row in table.items()}))
    for name in ("bare.json", "wrapped.json", "scores.pkl"):
        found = read_scores(tmp_path / name)
        assert {video: row.tolist() for video, row in found.items()} == table, name


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harmed"),))


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.pkl").write_bytes(pickle.dumps({"a": Harmful()}))
    with pytest.raises(ValueError, match=r"scores\.pkl"):
        read_scores(tmp_path / "scores.pkl")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "expected {video: "),
        ('{"v": "much"}', r"video 'v': expected one number for each class"),
        ('{"v": [[1, 2]]}', "one number for each class"),
        ("{", "no JSON that can be read"),
    ],
)
def test_other_scores_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_scores(tmp_path / "scores.json")
    assert "scores.json" in str(error.value)


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_scores(tmp_path / "scores.json")
    with pytest.raises(ValueError, match="no class scores of video 'x'; it has 1 videos: a"):
        scores_of("x", {"a": np.ones(2)}, Path("scores.json"))


def test_fused_scores_by_hand() -> None:
    found = Detections(
        np.array([[0, 1], [2, 3]], np.float32), np.array([0.25, 0.81], np.float32), np.zeros(2, np.int64)
    )
    fused = fuse(found, np.array([0.04, 0.0, 1.0]), classes=2, most=1)
    np.testing.assert_allclose(fused.scores, [0.9, 0.18], rtol=1e-6)
    assert fused.labels.tolist() == [2, 0]
    np.testing.assert_array_equal(fused.segments_s, [[2, 3], [2, 3]])
