"""What the errors are called, which actions are found, and the pages that show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core import metrics
from core.metrics import Actions, Detections
from projects.actionformer import data, errors, eval, report
from tests.actionformer import small

TRUTH = Actions(["v", "v", "w"], np.array([[0, 10], [20, 30], [0, 4]], np.float64), np.array([0, 1, 0]))
FOUND = Detections(
    ["v", "v", "v", "v", "v", "v", "x"],
    np.array([[0, 9], [0, 8], [5, 15], [0, 10], [25, 35], [50, 60], [0, 10]], np.float64),
    np.array([0, 0, 0, 1, 0, 0, 0]),
    np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
)
NAMES = ["true positive", "duplicate", "localization", "wrong label", "confusion", "background", "background"]


def kinds() -> np.ndarray:
    taken = metrics.match_detections(TRUTH, FOUND, (0.5,))[0]
    return errors.kinds(TRUTH, FOUND, taken, errors.nearest(TRUTH, FOUND), 0.5)


def test_every_kind_of_error() -> None:
    assert [errors.KINDS[k] for k in kinds()] == NAMES


def test_the_profile_follows_the_rank() -> None:
    """Class 0 has 2 truths: its best two are a hit and a duplicate; class 1 has one: its best is a wrong label."""
    shares = errors.profile(TRUTH, FOUND, kinds(), times=5)
    np.testing.assert_allclose(shares[0], [1 / 3, 1 / 3, 0, 1 / 3, 0, 0])
    np.testing.assert_allclose(shares[1], [0, 0, 1 / 2, 0, 1 / 2, 0])
    np.testing.assert_allclose(shares[2], [0, 0, 0, 0, 0, 1])
    assert np.isnan(shares[3:]).all()


def test_which_actions_are_found() -> None:
    found = errors.reached(TRUTH, metrics.match_detections(TRUTH, FOUND, (0.5,))[0])
    assert found.tolist() == [True, False, False]
    lengths = errors.by_length(TRUTH, found)
    assert sum(group.count for group in lengths) == 3
    assert (lengths[0].count, lengths[0].found) == (1, 0.0)
    coverage = errors.by_coverage(TRUTH, found, {"v": 40.0, "w": 4.0})
    assert [(group.count, group.found) for group in coverage if group.count] == [(2, 0.5), (1, 0.0)]
    assert coverage[1].name == "S: 20% to 40%"
    assert [group.count for group in errors.by_coverage(TRUTH, found, {})] == [0] * 5
    instances = errors.by_instances(TRUTH, found)
    assert (instances[0].name, instances[0].count) == ("1", 3)


def test_precision_over_recall() -> None:
    """Class 0: hit, then misses: precision 1 up to recall 1/2; class 1: nothing right. The area is the mean AP."""
    taken = metrics.match_detections(TRUTH, FOUND, (0.5,))[0]
    recall, precision = errors.precision_recall(TRUTH, FOUND, taken, 11)
    np.testing.assert_allclose(precision, np.where(recall <= 0.5, 0.5, 0.0))


def test_what_actions_are_taken_for() -> None:
    counts = errors.confusions(TRUTH, FOUND, 0.5, [0, 1])
    np.testing.assert_array_equal(counts, [[1, 0, 1], [0, 0, 1], [0, 0, 0]])


def test_curves_of_a_training(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert report.training_curves(path) == {}
    path.write_text('{"step": 1, "cls_loss": 2.0, "lr": 1}\n{"step": 5, "val/mAP": 12.5, "cls_loss": null}\n{"step": 7')
    assert report.training_curves(path) == {
        "loss": {"cls_loss": ([1], [2.0])},
        "mAP": {"val/mAP": ([5], [12.5])},
    }


@pytest.mark.parametrize("name", ["actionformer", "snapformer"])
def test_a_page_for_segments_and_for_points(tmp_path: Path, name: str) -> None:
    cfg = small.configured(tmp_path / "data", f"model.name={name}", "eval.timelines=3")
    benchmark = data.load(cfg.data)
    found = eval.evaluate(small.network(cfg), eval.loader(benchmark, cfg, "cpu"), cfg)  # type: ignore[arg-type]
    assert found is not None
    table = eval.table_of(found)
    report.write(tmp_path, table, eval.score(table, benchmark, cfg), eval.truth_of(benchmark, cfg), benchmark, cfg)
    html = (tmp_path / "report.html").read_text()
    assert html.count("(mean overlap") >= 3
    assert ("What the detections are" in html) == (name == "actionformer")
    assert ("distance, s" in html) == (name == "snapformer")
