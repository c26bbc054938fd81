"""Metrics against naive formulas, ties, zeros and messages; the collector within one process."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.metrics import (
    Collector,
    accuracy,
    average_precision,
    class_mean,
    class_mean_recall,
    confusion,
    multilabel_ap,
    precision_recall_f1,
    ranks,
    top_k,
)

quick = settings(max_examples=40, deadline=None)
problems = st.tuples(st.integers(1, 40), st.integers(1, 8), st.integers(0, 10_000))


def problem(rows: int, classes: int, seed: int, *, levels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (rows, classes)).astype(np.float32), rng.integers(0, classes, rows)


# --- top_k and class_mean_recall


@quick
@given(problems)
def test_top_k_is_the_first_k_of_a_stable_order(sizes: tuple[int, int, int]) -> None:
    scores, labels = problem(*sizes)
    for k in range(1, scores.shape[1] + 1):
        listed = [sorted(range(len(row)), key=lambda c, row=row: (-row[c], c))[:k] for row in scores]
        hits = [label in best for label, best in zip(labels, listed, strict=True)]
        assert top_k(scores, labels, k) == pytest.approx(np.mean(hits), abs=1e-12)
        recalls = [np.mean(np.array(hits)[labels == c]) for c in np.unique(labels)]
        assert class_mean_recall(scores, labels, k) == pytest.approx(np.mean(recalls), abs=1e-12)
    assert top_k(scores, labels, scores.shape[1]) == 1.0
    assert top_k(scores, labels, 1) == accuracy(labels, scores.argmax(1))  # numpy's argmax also takes the first


@quick
@given(problems)
def test_a_rank_is_the_place_in_a_stable_order(sizes: tuple[int, int, int]) -> None:
    scores, labels = problem(*sizes)
    listed = [sorted(range(len(row)), key=lambda c, row=row: (-row[c], c)) for row in scores]
    assert ranks(scores, labels).tolist() == [best.index(label) for label, best in zip(labels, listed, strict=True)]


def test_class_mean_weighs_every_class_the_same() -> None:
    assert class_mean([1.0, 0.0, 0.0, 1.0], [2, 2, 2, 5]) == pytest.approx((1 / 3 + 1) / 2)
    assert class_mean([1.0, 0.0, 0.0, 1.0], [2, 2, 2, 5], classes=[2, 4]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="none of the 1 classes asked for occurs"):
        class_mean([1.0], [2], classes=[3])


@quick
@given(problems)
def test_top_k_equals_torch_where_no_scores_tie(sizes: tuple[int, int, int]) -> None:
    rows, classes, seed = sizes
    scores = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    labels = torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(seed))
    for k in range(1, classes + 1):
        found = (scores.topk(k).indices == labels[:, None]).any(1).double().mean()
        assert top_k(scores, labels, k) == pytest.approx(float(found), abs=1e-12)


def test_ties_go_to_the_lower_class() -> None:
    assert top_k([[0.5, 0.5, 0.5]], [0], 1) == 1.0
    assert top_k([[0.5, 0.5, 0.5]], [1], 1) == 0.0
    assert top_k([[0.5, 0.5, 0.5]], [1], 2) == 1.0


def test_infinite_scores_rank_and_bfloat16_is_read() -> None:
    assert top_k([[-math.inf, 0.0, math.inf]], [2], 1) == 1.0
    assert top_k(torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16), torch.tensor([0]), 1) == 1.0


def test_class_mean_recall_of_chosen_classes() -> None:
    scores, labels = np.eye(4)[[0, 1, 1, 2, 2, 0]], np.array([0, 1, 2, 2, 2, 3])
    assert class_mean_recall(scores, labels) == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert class_mean_recall(scores, labels, classes=[2, 3]) == pytest.approx(1 / 3)
    assert class_mean_recall(scores, labels, classes=[0, 9]) == 1.0
    with pytest.raises(ValueError, match="none of the 2 classes"):
        class_mean_recall(scores, labels, classes=[8, 9])


# --- confusion and what is made of it


@quick
@given(problems)
def test_confusion_and_scores_by_counting(sizes: tuple[int, int, int]) -> None:
    rows, classes, seed = sizes
    rng = random.Random(seed)
    truth = [rng.randrange(classes) for _ in range(rows)]
    answer = [rng.randrange(classes) for _ in range(rows)]
    matrix = confusion(truth, torch.tensor(answer), classes)
    for i in range(classes):
        for j in range(classes):
            assert matrix[i, j] == sum(t == i and a == j for t, a in zip(truth, answer, strict=True))
    scores = precision_recall_f1(truth, answer, classes)
    for c in range(classes):
        hits, support, predicted = matrix[c, c], truth.count(c), answer.count(c)
        precision = hits / predicted if predicted else 0.0
        recall = hits / support if support else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert scores.precision[c] == pytest.approx(precision, abs=1e-12)
        assert scores.recall[c] == pytest.approx(recall, abs=1e-12)
        assert scores.f1[c] == pytest.approx(f1, abs=1e-12)
        assert scores.support[c] == support
        assert scores.seen[c] == bool(support or predicted)
    weights = scores.support / rows
    assert scores.average("macro", "all").f1 == pytest.approx(scores.f1.mean())
    assert scores.average("macro", "seen").recall == pytest.approx(scores.recall[scores.seen].mean())
    assert scores.average("weighted").precision == pytest.approx((scores.precision * weights).sum())
    assert scores.average("weighted", "all") == pytest.approx(scores.average("weighted", "seen"))
    assert scores.average("micro") == pytest.approx((accuracy(truth, answer),) * 3)
    assert class_mean_recall(np.eye(classes)[answer], truth) == pytest.approx(
        scores.recall[scores.support > 0].mean(), abs=1e-12
    )


def test_averages_refuse_other_words() -> None:
    scores = precision_recall_f1([0, 1], [0, 0], 2)
    with pytest.raises(ValueError, match='"macro", "micro" or "weighted"; got \'mean\''):
        scores.average("mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'some'"):
        scores.average("macro", "some")  # type: ignore[arg-type]


# --- average precision


@quick
@given(problems)
def test_average_precision_is_the_step_sum_over_thresholds(sizes: tuple[int, int, int]) -> None:
    rows, classes, seed = sizes
    scores, _ = problem(*sizes)
    targets = np.random.default_rng(seed + 1).integers(0, 2, (rows, classes))
    actual = average_precision(scores, torch.from_numpy(targets))
    for c in range(classes):
        expected, recall_before = 0.0, 0.0
        for threshold in sorted(set(scores[:, c]), reverse=True):
            chosen = scores[:, c] >= threshold
            recall = targets[chosen, c].sum() / max(targets[:, c].sum(), 1)
            expected += (recall - recall_before) * targets[chosen, c].mean()
            recall_before = recall
        assert actual[c] == pytest.approx(expected, abs=1e-12)
    if targets.any():
        assert multilabel_ap(scores, targets) == pytest.approx(actual[targets.any(0)].mean())
        order = np.random.default_rng(seed).permutation(rows)
        np.testing.assert_allclose(average_precision(scores[order], targets[order]), actual, atol=1e-12)


def test_average_precision_by_hand() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    assert average_precision(scores, [[1], [0], [1], [0]])[0] == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, [[0], [0], [0], [0]])[0] == 0.0
    assert average_precision([[-math.inf], [-math.inf]], [[1], [0]])[0] == 0.5


# --- messages


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: top_k(np.zeros((0, 3)), [], 1), r"at least one row.*\(0, 3\)"),
        (lambda: top_k(np.zeros(3), [0], 1), r"\(N,K\).*\(3,\)"),
        (lambda: top_k(np.zeros((2, 3)), [0], 1), r"labels must be \(2,\).*got \(1,\)"),
        (lambda: top_k(np.zeros((2, 3)), [0, 3], 1), "labels must be below the 3 classes; got 3 in row 1"),
        (lambda: top_k(np.zeros((2, 3)), [0, -1], 1), "from 0; got -1 in row 1"),
        (lambda: top_k(np.zeros((2, 3)), [0.0, 1.0], 1), "integer class indices; got float64"),
        (lambda: top_k(np.zeros((2, 3)), [0, 1], 4), "number of classes, 3; got 4"),
        (lambda: top_k([[0.0, 1.0], [0.0, math.nan]], [0, 1], 1), r"row 1 are NaN \(1 of 2"),
        (lambda: accuracy([0, 1], [0]), "equally many; got 2 and 1"),
        (lambda: accuracy([], []), "labels must be.*at least one row"),
        (lambda: confusion([0, 1], [0, 2], 2), "predictions must be below the 2 classes; got 2 in row 1"),
        (lambda: average_precision(np.zeros((2, 3)), np.zeros((2, 2))), r"targets must be \(2, 3\).*got \(2, 2\)"),
        (lambda: average_precision(np.zeros((1, 2)), [[0, 2]]), "targets must be 0 or 1; got 2"),
        (lambda: multilabel_ap(np.zeros((1, 2)), [[0, 0]]), "no target is 1"),
    ],
)
def test_errors_say_what_came(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# --- Collector


def filled(rows: list[int], batch: int) -> Collector:
    """Rows added in the order given, in batches."""
    collector = Collector()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        collector.add(
            [f"clip{i:03d}" for i in part],
            logits=torch.tensor([[i, i / 3] for i in part]),
            label=part,
            text=[f"text {i}" for i in part],
            segments=[torch.arange(i % 3) for i in part],
        )
    return collector


@quick
@given(st.permutations(range(20)), st.integers(1, 25))
def test_merged_rows_depend_on_samples_alone(rows: list[int], batch: int) -> None:
    merged = filled(rows, batch).merge()
    assert list(merged) == ["id", "logits", "label", "text", "segments"]
    assert merged["id"] == [f"clip{i:03d}" for i in range(20)]
    np.testing.assert_array_equal(merged["logits"], torch.tensor([[i, i / 3] for i in range(20)]).numpy())
    np.testing.assert_array_equal(merged["label"], np.arange(20))
    assert merged["text"] == [f"text {i}" for i in range(20)]
    assert [x.tolist() for x in merged["segments"]] == [list(range(i % 3)) for i in range(20)]


def test_equal_duplicates_are_dropped_and_conflicts_named() -> None:
    collector = filled([0, 1, 2], 3)
    collector.add(
        ["clip001"],
        logits=torch.tensor([[1, 1 / 3]]),
        label=[1],
        text=["text 1"],
        segments=[torch.arange(1)],
    )
    assert len(collector) == 4
    assert collector.merge()["id"] == ["clip000", "clip001", "clip002"]
    for name, value in {
        "logits": torch.ones(1, 2),
        "label": [7],
        "text": ["x"],
        "segments": [torch.zeros(1) + 1],
    }.items():
        conflict = filled([0, 1, 2], 3)
        row = {"logits": torch.tensor([[1, 1 / 3]]), "label": [1], "text": ["text 1"], "segments": [torch.arange(1)]}
        conflict.add(["clip001"], **{**row, name: value})
        with pytest.raises(ValueError, match=f"'clip001' came twice with different '{name}'"):
            conflict.merge()


def test_nan_equals_nan_in_duplicates() -> None:
    collector = Collector()
    for _ in range(2):
        collector.add(["a"], score=torch.tensor([math.nan]), pair=[(math.nan, [1.0])], table=[{"x": np.ones(2)}])
    merged = collector.merge()
    assert merged["id"] == ["a"]
    assert np.isnan(merged["score"]).all()


def test_rows_are_copied_and_detached() -> None:
    collector, scores = Collector(), torch.ones(2, 3, requires_grad=True)
    collector.add(["a", "b"], scores=scores, half=scores.bfloat16())
    with torch.no_grad():
        scores.zero_()
    merged = collector.merge()
    assert merged["scores"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert merged["half"].dtype == np.float32


def test_an_empty_collector_merges_to_no_rows() -> None:
    collector = Collector()
    collector.add([], scores=torch.zeros(0, 3))
    assert collector.merge() == {"id": []}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [1, 2]}, r"every batch must have the columns \['label', 'score'\]; got \['label'\]"),
        ({"label": [1, 2], "score": torch.zeros(1, 3)}, "'score' has 1 rows for 2 ids"),
        ({"label": [1, 2], "score": torch.zeros(2, 4)}, r"rows of shape \(3,\) before and has \(4,\) now"),
        ({"label": ["x", "y"], "score": torch.zeros(2, 3)}, "'label' was an array before and is a list now"),
        ({"label": torch.tensor(1), "score": torch.zeros(2, 3)}, "'label' must have one row for each id"),
        ({"label": "ab", "score": torch.zeros(2, 3)}, "the single text 'ab'"),
        ({"id": ["a", "b"], "label": [1, 2]}, "'id' is taken"),
    ],
)
def test_bad_batches_are_refused_whole(columns: dict[str, Any], words: str) -> None:
    collector = Collector()
    collector.add(["a"], label=[0], score=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=words):
        collector.add(["b", "c"], **columns)
    assert collector.merge()["id"] == ["a"]


def test_ids_are_strings() -> None:
    for ids in ("ab", [1, 2], torch.arange(2)):
        with pytest.raises(ValueError, match="ids must be a sequence of strings"):
            Collector().add(ids, label=[1, 2])  # type: ignore[arg-type]
