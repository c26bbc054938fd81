"""The official eval command and ours: the same folder, annotations and checkpoints, the same table and detections."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from core import config
from projects.actionformer import eval, results
from projects.actionformer.config import Config
from tests.actionformer import golden, recipes
from tests.actionformer.matching import compare
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden

CASES = cases("actionformer", "e2e_*")
ROUNDING = 0.0051  # the official table has two decimals


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.path.name)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A case and a folder with its features, annotations, checkpoints and configuration."""
    case, root = request.param, tmp_path_factory.mktemp(request.param.path.name)
    recipes.write(case, root)
    cfg = golden.official.config_from(golden.base(case.json("case.json")["config"]))
    (root / "config.yaml").write_text(config.dump(cfg))
    return case, root


def run(place: tuple[Case, Path], out: str, *more: str) -> dict[str, float]:
    """`eval` from within the folder, as its relative paths want it."""
    with contextlib.chdir(place[1]):
        return eval.main(["config.yaml", "ckpt=ckpt", f"run.out={out}", "loader.workers=0", *more])


def check_table(parity: Parity, found: dict[str, float], expected: dict) -> None:
    part = next(iter(found)).split("/")[0]
    parity.check("avg", found[f"{part}/mAP"], expected["avg"], atol=ROUNDING)
    parity.check("mAP", [v for k, v in found.items() if "/mAP@" in k], expected["mAP"], atol=ROUNDING)
    for times, values in expected["recall"].items():
        ours = [v for k, v in found.items() if f"/recall@{times}x@" in k]
        parity.check(f"recall@{times}x", ours, values, atol=ROUNDING)


def test_the_official_table_and_detections(place: tuple[Case, Path], parity: Parity) -> None:
    case, root = place
    found = run(place, "whole")
    check_table(parity, found, case.json("case.json")["metrics_percent"])
    expected, saved = case.expected, results.read(root / "whole" / "detections.npz")
    counts = {key.removeprefix("n."): int(n) for key, n in expected.items() if key.startswith("n.") and n}
    assert {video: len(one.scores) for video, one in saved.items()} == counts
    for video in case.json("case.json")["detail_videos"]:
        wanted = [expected[f"{video}.{key}"] for key in ("t-start", "t-end", "score", "label")]
        compare(parity, video, saved[video][:3], (np.stack(wanted[:2], 1), *wanted[2:]))
        if f"{video}.fused.score" in expected:
            with contextlib.chdir(root):
                fused = eval.finish({video: saved[video]}, config.load(Config, "config.yaml"))[video]
            wanted = [expected[f"{video}.fused.{key}"] for key in ("t-start", "t-end", "score", "label")]
            compare(parity, f"{video}.fused", fused[:3], (np.stack(wanted[:2], 1), *wanted[2:]))

    text = json.loads((root / "whole" / "results.json").read_text())
    assert text == found
    assert "Average mAP" in (root / "whole" / "run.log").read_text()
    assert (root / "whole" / "report.html").stat().st_size > 10_000


def test_fewer_detections_of_a_video(place: tuple[Case, Path], parity: Parity) -> None:
    found = run(place, "few", "postprocess.max_detections=20", "eval.analysis=false", "eval.timelines=0")
    check_table(parity, found, place[0].json("case.json")["metrics_topk20"])


def test_other_weights_give_other_numbers(place: tuple[Case, Path], parity: Parity) -> None:
    """The older file holds the raw weights as its average: choosing it by its epoch shows which file is read."""
    found = run(place, "older", "eval.epoch=5", "eval.analysis=false", "eval.timelines=0")
    check_table(parity, found, place[0].json("case.json")["metrics_if_state_dict_were_used_instead_of_ema"])


def test_batches_change_nothing(place: tuple[Case, Path]) -> None:
    """Videos of several lengths together, and detections judged again from their file, without the network."""
    alone = run(place, "alone", "eval.analysis=false")
    assert run(place, "batched", "eval.batch_size=4", "eval.analysis=false") == pytest.approx(alone, abs=1e-9)
    again = run(place, "again", "eval.detections=batched/detections.npz", "eval.analysis=false")
    assert again == pytest.approx(alone, abs=1e-9)


def test_only_saving(place: tuple[Case, Path]) -> None:
    assert run(place, "saved", "eval.save_only=true") == {}
    assert (place[1] / "saved" / "detections.npz").exists()
    assert not (place[1] / "saved" / "results.json").exists()
