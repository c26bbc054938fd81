"""Detection in time: by hand, by properties, beside a plain reading of the protocol, alike on many processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import dist, metrics
from core.metrics import Actions, Collector, Detections, DetectionScores, detection_map, distinct, segment_iou
from tests.dist.pool import Team

TIOU = (0.3, 0.5, 0.7)
spans = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Actions, Detections]:
    """A few videos and classes, often with equal overlaps, sometimes with unknown videos and classes."""
    rows = st.tuples(st.sampled_from("abc"), spans, st.integers(0, 2))
    truth = draw(st.lists(rows, min_size=1, max_size=12))
    more = st.tuples(st.sampled_from("abcd"), spans, st.integers(0, 3))
    found = draw(st.lists(more, max_size=25))
    scores = draw(st.permutations(range(len(found))))
    return table(truth), Detections(*table(found), np.array(scores, np.float64))


def table(rows: list[tuple[str, tuple[int, int], int]]) -> Actions:
    videos, segments, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Actions(list(videos), np.array(segments, np.float64).reshape(-1, 2), np.array(labels, np.int64))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return common / ((a[1] - a[0]) + (b[1] - b[0]) - common)


def plainly(truth: Actions, found: Detections, tiou: float) -> dict[int, float]:
    """Average precision of each class, one detection after the other."""
    answer = {}
    for label in np.unique(truth.labels):
        own = [i for i in range(len(truth.videos)) if truth.labels[i] == label]
        free, hits = set(own), []
        for n in sorted(np.flatnonzero(found.labels == label), key=lambda n: -found.scores[n]):
            fits = [
                (overlap(found.segments[n], truth.segments[i]), -i) for i in free if truth.videos[i] == found.videos[n]
            ]
            best = max(fits, default=(0.0, 0))
            hits.append(best[0] >= tiou)
            if hits[-1]:
                free.remove(-best[1])
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        answer[int(label)] = sum(max(precision[i:]) for i in range(len(hits)) if hits[i]) / len(own)
    return answer


# -------------------------------------------------------------------------------------------------------------- by hand


def test_overlaps_by_hand() -> None:
    a, b = np.array([[0, 10], [4, 4], [20, 30]]), torch.tensor([[5.0, 15.0], [0.0, 10.0]])
    np.testing.assert_allclose(segment_iou(a, b), [[1 / 3, 1], [0, 0], [0, 0]])
    assert segment_iou(np.zeros((0, 2)), b).shape == (0, 2)
    with pytest.raises(ValueError, match=r"a must be \(N,2\)"):
        segment_iou(np.zeros(4), b)


def test_a_problem_by_hand() -> None:
    """Two truths: hit at 0.9, miss at 0.8, a second hit on the first truth at 0.7, hit at 0.6."""
    truth = table([("v", (0, 10), 3), ("v", (20, 30), 3)])
    found = Detections(*table([("v", (0, 9), 3), ("v", (50, 60), 3), ("v", (0, 10), 3), ("v", (20, 26), 3)]),
                       [0.9, 0.8, 0.7, 0.6])  # fmt: skip
    scores = detection_map(truth, found, (0.5, 0.7), k=(1, 2))
    assert scores.classes.tolist() == [3]
    np.testing.assert_allclose(scores.ap[:, 0], [(1 + 2 / 4) / 2, 1 / 2])
    np.testing.assert_allclose(scores.recall[..., 0], [[0.5, 1.0], [0.5, 0.5]])
    assert scores.average_map == pytest.approx(0.625)
    np.testing.assert_array_equal(metrics.match_detections(truth, found, (0.5,)), [[0, -1, -1, 1]])


def test_a_detection_falls_back_to_the_next_truth_that_is_free() -> None:
    truth = table([("v", (0, 10), 0), ("v", (1, 11), 0)])
    found = Detections(*table([("v", (0, 10), 0), ("v", (0, 10), 0)]), [0.9, 0.8])
    np.testing.assert_array_equal(metrics.match_detections(truth, found, (0.5, 0.9)), [[0, 1], [0, -1]])


def test_nothing_found_and_nothing_true() -> None:
    truth, nothing = table([("v", (0, 1), 5)]), Detections(*table([]), [])
    scores = detection_map(truth, nothing, TIOU)
    assert (scores.ap.shape, scores.recall.shape, scores.average_map) == ((3, 1), (3, 2, 1), 0.0)
    empty = detection_map(table([]), Detections(*truth, [0.5]), TIOU)
    assert (empty.ap.shape, empty.average_map, empty.mean_recall.shape) == ((3, 0), 0.0, (3, 2))


def test_labels_of_classes_without_truth_collide_on_request() -> None:
    """Class 7 with truth becomes number 0; detections of class 0, which has none, then count for it."""
    truth = table([("v", (0, 10), 7)])
    found = Detections(*table([("v", (50, 60), 0), ("v", (0, 10), 7)]), [0.9, 0.8])
    assert detection_map(truth, found, (0.5,)).average_map == 1.0
    assert detection_map(truth, found, (0.5,), collide=True).average_map == 0.5


def test_repetitions_and_slips_are_left_out() -> None:
    rows = [("a", (0, 10), 1), ("a", (0.0005, 10), 1), ("a", (0, 10), 2), ("b", (0, 10), 1), ("a", (5, 5.0005), 1)]
    assert distinct(table(rows)).tolist() == [True, False, True, True, False]


def test_moments_are_found_within_a_tolerance() -> None:
    truth = table([("v", (4, 6), 0), ("v", (20, 20), 0)])
    found = Detections(*table([("v", (5.25, 5.25), 0), ("v", (19, 19), 0)]), [0.9, 0.8])
    scores = metrics.point_map(truth, found, (0.2, 0.5, 1.0))
    np.testing.assert_allclose(scores.map, [0, 0.5, 1])
    np.testing.assert_allclose(scores.thresholds, [0.2, 0.5, 1.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": [0.5, np.nan]}, "without NaN"),
        ({"scores": [0.5]}, r"scores must be \(2,\)"),
        ({"labels": [1]}, r"labels must be \(2,\) integers"),
        ({"labels": [0.5, 1.0]}, "integers"),
        ({"segments": [[0, 1, 2]]}, r"found must be \(N,2\)"),
    ],
)
def test_columns_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    found = Detections(["v", "v"], [[0, 1], [2, 3]], [0, 1], [0.5, 0.6])._replace(**change)
    with pytest.raises(ValueError, match=words):
        detection_map(table([("v", (0, 1), 0)]), found, TIOU)


# ----------------------------------------------------------------------------------------------------------- properties


@given(st.lists(spans, min_size=1, max_size=6), st.lists(spans, min_size=1, max_size=6))
def test_overlap_is_symmetric_and_between_0_and_1(a: list[Any], b: list[Any]) -> None:
    there, back = segment_iou(np.array(a), np.array(b)), segment_iou(np.array(b), np.array(a))
    np.testing.assert_array_equal(there, back.T)
    assert ((there >= 0) & (there <= 1)).all()
    np.testing.assert_allclose(np.diag(segment_iou(np.array(a), np.array(a))), 1)


@settings(max_examples=150)
@given(problems())
def test_it_is_the_plain_protocol(problem: tuple[Actions, Detections]) -> None:
    truth, found = problem
    scores = detection_map(truth, found, TIOU)
    for row, tiou in zip(scores.ap, TIOU, strict=True):
        expected = plainly(truth, found, tiou)
        np.testing.assert_allclose(row, [expected[label] for label in scores.classes.tolist()], atol=1e-12)


@given(problems(), st.randoms(use_true_random=False))
def test_only_the_order_of_scores_counts(problem: tuple[Actions, Detections], rng: Any) -> None:
    """AP changes neither with a rising function of the scores, nor with the order of rows, nor with names of videos."""
    truth, found = problem
    scores = detection_map(truth, found, TIOU)
    order = list(range(len(found.videos)))
    rng.shuffle(order)
    mixed = Detections(
        [f"video {found.videos[i]}" for i in order], found.segments[order], found.labels[order],
        np.exp(found.scores[order] / 10),
    )  # fmt: skip
    renamed = Actions([f"video {name}" for name in truth.videos], truth.segments, truth.labels)
    again = detection_map(renamed, mixed, TIOU)
    np.testing.assert_array_equal(scores.ap, again.ap)
    np.testing.assert_array_equal(scores.recall, again.recall)


@given(problems())
def test_higher_overlaps_and_fewer_detections_are_harder(problem: tuple[Actions, Detections]) -> None:
    truth, found = problem
    scores = detection_map(truth, found, TIOU, k=(1, 5))
    assert (np.diff(scores.recall, axis=0) <= 0).all()
    assert (np.diff(scores.recall, axis=1) >= 0).all()
    assert ((scores.ap >= 0) & (scores.ap <= 1)).all()


@given(problems())
def test_the_truth_finds_itself(problem: tuple[Actions, Detections]) -> None:
    truth, _ = problem
    perfect = detection_map(truth, Detections(*truth, np.ones(len(truth.videos))), TIOU)
    np.testing.assert_allclose(perfect.ap, 1)
    np.testing.assert_allclose(perfect.recall, 1)


@given(problems())
def test_a_truth_is_taken_once_and_by_one_that_fits(problem: tuple[Actions, Detections]) -> None:
    truth, found = problem
    for row, tiou in zip(metrics.match_detections(truth, found, TIOU), TIOU, strict=True):
        taken = row[row >= 0]
        assert len(set(taken.tolist())) == len(taken)
        for n, i in zip(np.flatnonzero(row >= 0), taken, strict=True):
            assert (found.videos[n], found.labels[n]) == (truth.videos[i], truth.labels[i])
            assert overlap(found.segments[n], truth.segments[i]) >= tiou


# ------------------------------------------------------------------------------------------------------------ processes


def test_tensors_and_arrays_give_the_same() -> None:
    truth, found = random_problem()
    tensors = Detections(found.videos, *(torch.from_numpy(np.asarray(column)) for column in found[1:]))
    np.testing.assert_array_equal(detection_map(truth, found, TIOU).ap, detection_map(truth, tensors, TIOU).ap)


def random_problem() -> tuple[Actions, Detections]:
    rng = np.random.default_rng(3)
    start = rng.uniform(0, 50, 60)
    truth = Actions(
        [f"v{i % 7}" for i in range(60)], np.stack([start, start + rng.uniform(1, 9, 60)], 1), np.arange(60) % 4
    )
    pick = rng.integers(0, 60, 300)
    segments = np.sort(truth.segments[pick] + rng.normal(0, 1, (300, 2)), 1)
    found = Detections([truth.videos[i] for i in pick], segments, rng.integers(0, 5, 300), rng.random(300))
    return truth, found


def _evaluated(_: Any = None) -> list[list[float]]:
    """Every process knows some videos; the result is that of all."""
    truth, found = random_problem()
    collector, world = Collector(), dist.world()
    for k, video in enumerate(sorted(set(found.videos))):
        if k % world.size == world.rank:
            rows = [i for i, name in enumerate(found.videos) if name == video]
            collector.add(
                [video], segments=[found.segments[rows]], labels=[found.labels[rows]], scores=[found.scores[rows]]
            )
    merged: Any = collector.merge()
    videos = [video for video, labels in zip(merged["id"], merged["labels"], strict=True) for _ in labels]
    parts = (np.concatenate(merged[key]) for key in ("segments", "labels", "scores"))
    scores: DetectionScores = detection_map(truth, Detections(videos, *parts), TIOU)
    return [scores.ap.tolist(), scores.recall.tolist()]


@pytest.mark.dist
def test_the_metric_is_the_same_on_one_two_and_three_processes(two: Team, three: Team) -> None:
    alone = _evaluated()
    assert all(answer == alone for answer in (*two(_evaluated), *three(_evaluated)))
