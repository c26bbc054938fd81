"""Ranges by quantiles and the loss log, as the fork's utilities give them."""

from __future__ import annotations

import pytest
import torch

from projects.actionformer.loss_log import LossLogger, compute_iou_stats, compute_loss_breakdown
from projects.actionformer.ranges import compute_adaptive_ranges, coverage, suggest_config_ranges
from tests.support import Case, cases

pytestmark = pytest.mark.golden
UTILITIES = cases("actionformer", "utilities*")


@pytest.mark.parametrize("case", UTILITIES, ids=lambda case: case.path.name)
def test_ranges(case: Case) -> None:
    about = case.json("case.json")
    for each in about["adaptive_ranges"]:
        source = each["durations"] if "durations" in each else case.path / each["json"]
        options = dict(each["kwargs"])
        found = compute_adaptive_ranges(source, options.pop("num_levels", 6), **options)
        assert [list(pair) for pair in found] == each["ranges"]
    suggestion = about["suggest_config_ranges"]
    arguments = dict(suggestion["args"])
    found = suggest_config_ranges(case.path / "adaptive_annotations.json", **arguments)
    assert found == suggestion["result"]


@pytest.mark.parametrize("case", UTILITIES, ids=lambda case: case.path.name)
def test_loss_log(case: Case) -> None:
    about = case.json("case.json")
    given = about["loss_logger"]
    log = LossLogger(given["window_size"])
    for update in given["updates"]:
        losses = {key: torch.tensor(value, dtype=torch.float64) for key, value in update["losses"].items()}
        log.update(losses, update["extra"])
    assert log.averages() == pytest.approx(given["averages"], abs=1e-6)
    assert log.tensorboard() == pytest.approx(given["tensorboard"], abs=1e-6)
    assert log.step_count == given["step_count"]
    stats = about["iou_stats"]
    found = compute_iou_stats(torch.tensor(stats["pred"]), torch.tensor(stats["gt"]))
    assert found == pytest.approx(stats["result"], abs=1e-6)
    assert compute_iou_stats(torch.empty(0, 2), torch.empty(0, 2)) == stats["empty"]
    given = about["loss_breakdown"]
    lengths = torch.tensor(given["mask_lengths"])
    masks = [torch.arange(size) < lengths[level][:, None] for level, size in enumerate(given["level_sizes"])]
    assert compute_loss_breakdown([torch.tensor(one) for one in given["gt_cls"]], masks) == given["result"]


def test_an_open_end_covers_everything() -> None:
    ranges = compute_adaptive_ranges([3.0, 5.0, 9.0, 40.0], 3, open_end=True)
    assert ranges[-1][1] == 10_000
    assert coverage([3.0, 500.0], ranges) == 1.0
