"""Rules about gaps, lengths, overlaps and order, by small examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from projects.actionformer.config import ConstraintsConfig
from projects.actionformer.constraints import (
    TemporalConstraints,
    enforce_class_constraints,
    merge_close_detections,
)

Row = tuple[str, float, float, int, float]


def results(*rows: Row) -> dict[str, list[Any]]:
    keys = ("video-id", "t-start", "t-end", "label", "score")
    return {key: [row[k] for row in rows] for k, key in enumerate(keys)}


def left(found: dict[str, list[Any]]) -> list[Row]:
    return list(zip(*found.values(), strict=True))


def test_without_overlap_everything_stays_in_its_order() -> None:
    given = results(("b", 0, 1, 0, 0.1), ("a", 0, 1, 0, 0.9), ("b", 5, 6, 1, 0.5))
    assert TemporalConstraints().apply(given) == given


def test_gaps_between_centers_of_a_class() -> None:
    rows = [("v", 0, 2, 0, 0.5), ("v", 3, 5, 0, 0.9), ("v", 4, 12, 0, 0.4), ("v", 3, 4.9, 1, 0.3), ("w", 3, 5, 0, 0.2)]
    rules = TemporalConstraints(min_gap={0: 4.0}, max_overlap=1.0)
    assert left(rules.apply(results(*rows))) == [rows[1], rows[2], rows[3], rows[4]]
    assert left(TemporalConstraints(min_gap={0: 0.0}, max_overlap=1.0).apply(results(*rows))) == rows


def test_lengths_and_scores() -> None:
    rows = [("v", 0, 2, 0, 0.5), ("v", 10, 15, 0, 0.9), ("v", 20, 25, 1, 0.1)]
    rules = TemporalConstraints(duration_range={0: (1, 3)}, score_threshold=0.2)
    assert left(rules.apply(results(*rows))) == [rows[0]]


def test_a_dropped_detection_still_pushes_others_out() -> None:
    """As in the fork: the best one is too long, and what it overlaps goes with it."""
    rows = [("v", 0, 10, 0, 0.9), ("v", 1, 10, 1, 0.5)]
    assert left(TemporalConstraints(duration_range={0: (0, 5)}).apply(results(*rows))) == []


def test_order_of_classes() -> None:
    """pass (0), shot (1), goal (2): a goal needs an earlier shot, which needs an earlier pass."""
    rows = [
        ("v", 0, 1, 1, 0.9), ("v", 2, 3, 0, 0.8), ("v", 4, 5, 1, 0.7), ("v", 6, 7, 2, 0.6), ("w", 0, 1, 1, 0.5),
        ("w", 2, 3, 2, 0.4), ("w", 4, 5, 3, 0.3),
    ]  # fmt: skip
    rules = TemporalConstraints(ordering=[[0, 1, 2]])
    assert left(rules.apply(results(*rows))) == [rows[1], rows[2], rows[3], rows[6]]
    assert left(TemporalConstraints(ordering=[[0, 1, 2]], ignore_ordering=True).apply(results(*rows))) == rows


def test_one_class_and_all_overlaps() -> None:
    rows = [("v", 0, 10, 0, 0.9), ("v", 4, 13, 1, 0.8), ("v", 30, 31, 0, 0.7)]
    found = enforce_class_constraints(results(*rows), 0, duration_range=(2, 20))
    assert left(found) == [rows[0]]


def test_neighbors_become_one() -> None:
    rows = [("v", 5, 6, 0, 0.3), ("v", 0, 4.5, 0, 0.9), ("v", 7.1, 8, 0, 0.5), ("v", 6, 7, 1, 0.4), ("w", 6, 7, 0, 0.2)]
    merged = [("v", 0, 6, 0, 0.9), ("v", 7.1, 8, 0, 0.5)]
    assert left(merge_close_detections(results(*rows), 1.0)) == [*merged, rows[3], rows[4]]
    assert left(merge_close_detections(results(*rows), 1.0, class_id=1)) == [
        rows[3],
        rows[0],
        rows[1],
        rows[2],
        rows[4],
    ]


def test_arrays_and_the_configuration() -> None:
    rules = TemporalConstraints.of(ConstraintsConfig(min_gap={2: 3.0}, ordering=((0, 1),), min_score=0.1))
    assert rules == TemporalConstraints({2: 3.0}, 0.5, {}, ((0, 1),), 0.1)
    arrays = {key: np.array(values) for key, values in results(("v", 0, 1, 1, 0.5), ("v", 2, 3, 0, 0.5)).items()}
    assert left(rules.apply(arrays)) == [("v", 2.0, 3.0, 0, 0.5)]


def test_missing_and_unequal_columns_are_named() -> None:
    with pytest.raises(ValueError, match="lack the columns label, score"):
        TemporalConstraints().apply({"video-id": [], "t-start": [], "t-end": []})
    given = results(("v", 0, 1, 0, 0.5)) | {"score": []}
    with pytest.raises(ValueError, match=r"unequal length.*'score': 0"):
        merge_close_detections(given)
