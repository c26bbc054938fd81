"""The official evaluator by the project's own path: files of annotations and detections in, mAP and recall out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core import metrics
from projects.actionformer import eval, results
from projects.actionformer.annotations import read_annotations
from projects.actionformer.config import Config, DataConfig, EvalConfig
from projects.actionformer.data import Benchmark
from projects.actionformer.layouts import LAYOUTS
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden

EVALUATOR = [(case, name) for case in cases("actionformer", "evaluator*") for name in case.json("case.json")]


def benchmark(path: Path, subset: str) -> tuple[Benchmark, Config]:
    data = DataConfig(dataset="own", annotations=path, eval_splits=(subset,))
    return Benchmark(data, read_annotations(path), LAYOUTS["own"]), Config(data=data)


@pytest.mark.parametrize(("case", "name"), EVALUATOR, ids=[f"{case.path.name}-{name}" for case, name in EVALUATOR])
def test_map_and_recall(case: Case, name: str, parity: Parity, tmp_path: Path) -> None:
    about, expected = case.json("case.json")[name], case.expected
    dataset, cfg = benchmark(case.path / f"{name}.gt.json", about["split"])
    tiou = tuple(expected[f"{name}.tiou"].tolist())
    cfg = cfg.model_copy(update={"eval": EvalConfig(tiou=tiou, recall=tuple(about["top_k"]))})
    videos, starts, ends, labels, scores = (expected[f"{name}.pred.{key}"] for key in results.FLAT)
    table = results.tabulate(videos.tolist(), np.stack([starts, ends], 1), labels, scores)

    found = eval.score(table, dataset, cfg)
    parity.check("mAP", found.map, expected[f"{name}.mAP"], atol=1e-12)
    parity.check("avg", found.average_map, expected[f"{name}.avg"], atol=1e-12)
    parity.check("recall", found.mean_recall, expected[f"{name}.recall"], atol=1e-12)
    parity.check("ap_per_class", found.ap, expected[f"{name}.ap_per_class"], atol=1e-12)
    parity.check("classes", found.classes, sorted(int(label) for label in about["label_index"]))

    results.write_columns(tmp_path / "found.npz", table)  # the same through a file
    again = eval.score(results.read(tmp_path / "found.npz"), dataset, cfg)
    parity.check("through a file", again.ap, found.ap)


@pytest.mark.parametrize("case", cases("actionformer", "evaluator*"), ids=lambda case: case.path.name)
def test_the_collision_of_labels_can_be_switched_off(case: Case) -> None:
    name, expected = "classes_without_gt_collision", case.expected
    if f"{name}.mAP" not in expected:
        pytest.skip("this case has no classes without truth")
    dataset, cfg = benchmark(case.path / f"{name}.gt.json", case.json("case.json")[name]["split"])
    videos, starts, ends, labels, scores = (expected[f"{name}.pred.{key}"] for key in results.FLAT)
    table = results.tabulate(videos.tolist(), np.stack([starts, ends], 1), labels, scores)
    settings = EvalConfig(tiou=tuple(expected[f"{name}.tiou"].tolist()), label_collision=False)
    found = eval.score(table, dataset, cfg.model_copy(update={"eval": settings}))
    assert found.average_map == pytest.approx(0.68843, abs=5e-6)
    own = np.isin(labels, [0, 3, 4, 6, 7])  # what is left when detections of other classes are not there at all
    clean = metrics.Detections(videos[own].tolist(), np.stack([starts, ends], 1)[own], labels[own], scores[own])
    without = metrics.detection_map(eval.truth_of(dataset, cfg), clean, settings.tiou or (), collide=True)
    np.testing.assert_array_equal(found.ap, without.ap)
