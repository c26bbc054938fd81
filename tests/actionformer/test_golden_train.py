"""Official training steps and ours: targets, losses, gradients, learning rates, averages, and every loss function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data import pad
from projects.actionformer import losses, train
from projects.actionformer.losses import Criterion
from projects.actionformer.model.targets import assign
from projects.actionformer.schedule import OfficialSchedule
from tests.actionformer import golden
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden

STEPS = cases("actionformer", "train_*")
LOSSES = cases("actionformer", "losses*")
SCHEDULES = cases("actionformer", "lr_schedule*")
BOUNDARIES = cases("actionformer", "tbtformer_loss*")


def name(case: Case) -> str:
    return case.path.name


def batch_of(case: Case, videos: list[dict[str, Any]]) -> dict[str, Any]:
    """Features and annotations of some of the case's videos."""
    expected = case.expected
    keys = [video["video_id"] for video in videos]
    samples = [{"id": v["video_id"], "features": golden.video(case, v["video_id"], v["T"])} for v in videos]
    return pad(samples, ["features"]) | {
        "lengths": [video["T"] for video in videos],
        "segments": [torch.from_numpy(expected[f"{key}.segments"]) for key in keys],
        "labels": [torch.from_numpy(expected[f"{key}.labels"]).long() for key in keys],
    }


def without_chance(net: nn.Module) -> None:
    """As the case was run: no dropout and no drop path; the scales of drop path stay."""
    for module in net.modules():
        if hasattr(module, "p"):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0


@pytest.mark.parametrize("case", STEPS, ids=name)
def test_training_steps(case: Case, parity: Parity) -> None:
    about, expected, cfg = case.json("case.json"), case.expected, golden.config_of(case)
    net = golden.network(case)
    without_chance(net)
    step = train.train_step(net, cfg, about["iters_per_epoch"])
    decayed = {id(p) for group in step.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = sorted(f"module.{key}" for key, parameter in net.named_parameters() if id(parameter) in decayed)
    assert names == about["optimizer_groups"][0], "the same weights decay"
    criterion = Criterion(cfg.loss, cfg.model.name, cfg.data.classes)
    net.train()
    for index in range(about["steps"]):
        batch = batch_of(case, [video for video in about["videos"] if video["step"] == index])
        with step.forward() as forward:
            outputs = forward(batch["features"], batch["mask"], batch["lengths"])
        if index == 0:
            check_targets(case, cfg, outputs, batch, parity)
        terms = criterion(outputs, batch)
        norm = step.backward(terms["total"])
        found = [terms["cls_loss"], terms["reg_loss"], terms["total"]]
        for key, value, wanted in zip(
            ("cls", "reg", "total"), found, expected["losses_cls_reg_final"][index], strict=True
        ):
            parity.check(f"{key}{index}", value, wanted, rtol=1e-4, atol=1e-6)
        parity.check(f"norm{index}", norm, expected["grad_norm_before_clip"][index], rtol=1e-3)
        parity.check(f"lr{index}", step.lr, expected["lr_used_then_after_each_step"][index], rtol=1e-12)
        parity.check(f"normalizer{index}", criterion.norm, expected["loss_normalizer_after"][index], rtol=1e-6)
    assert step.average is not None
    ours = {"param": net.state_dict(), "ema": step.average.state_dict()}
    for key in expected["probe_keys"]:
        for kind, tolerance in (("param", 1e-4), ("ema", 1e-5)):
            value = ours[kind][str(key).removeprefix("module.")].flatten()[:16]
            parity.check(f"{kind}.{key}", value, expected[f"{kind}/{key}"][: len(value)], atol=tolerance)


def check_targets(case: Case, cfg: Any, outputs: Any, batch: dict[str, Any], parity: Parity) -> None:
    """Positive points, their classes and distances, by the numbers of points at the official lengths."""
    expected = case.expected
    classes, offsets = assign(
        outputs.points, batch["segments"], batch["labels"], cfg.data.classes,
        center=cfg.loss.center, radius=cfg.loss.center_radius,
    )  # fmt: skip
    lengths = expected["targets.level_lengths"]
    starts = [int(lengths[:level].sum()) for level in range(len(lengths))]
    numbers = torch.cat([start + torch.arange(own) for start, own in zip(starts, outputs.levels, strict=True)])
    for index, key in enumerate(batch["id"]):
        positive = (classes[index].sum(-1) > 0) & outputs.mask[index]
        pairs = classes[index].nonzero()
        pairs = pairs[positive[pairs[:, 0]]]
        found = torch.stack([numbers[pairs[:, 0]], pairs[:, 1]], dim=1)
        parity.check(f"{key}.positive", numbers[positive], expected[f"targets.{key}.pos_index"])
        parity.check(f"{key}.classes", found, expected[f"targets.{key}.pos_classes"])
        parity.check(
            f"{key}.offsets", offsets[index][positive], expected[f"targets.{key}.offsets"], rtol=1e-6, atol=1e-6
        )
        parity.check(f"{key}.valid", int(outputs.mask[index].sum()), expected[f"targets.{key}.num_valid"])


@pytest.mark.parametrize("case", BOUNDARIES, ids=name)
def test_boundary_distributions(case: Case, parity: Parity) -> None:
    net, expected, cfg = golden.network(case), case.expected, golden.config_of(case)
    batch = batch_of(case, case.json("case.json")["videos"])
    with torch.no_grad():
        terms = Criterion(cfg.loss, cfg.model.name, cfg.data.classes)(net(batch["features"], batch["mask"]), batch)
    total = 0.0
    for key in ("cls_loss", "reg_loss", "dfl_loss"):
        parity.check(key, terms[key], expected[key], rtol=1e-5)
        total += float(expected[key])
    parity.check("total", terms["total"], total, rtol=1e-5)
    parity.check("positives", terms["positives"], expected["num_pos"])


@pytest.mark.parametrize("case", SCHEDULES, ids=name)
def test_learning_rates(case: Case, parity: Parity) -> None:
    expected = case.expected
    for key, about in case.json("case.json").items():
        tree = {**golden.base("thumos_i3d.yaml"), "opt": about["opt"]}
        optim = golden.official.config_from(tree).optim
        schedule = OfficialSchedule(optim, about["iters_per_epoch"])
        rates = [optim.lr * schedule(step) for step in range(about["steps"])]
        parity.check(key, rates, expected[key], rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("case", LOSSES, ids=name)
def test_loss_functions(case: Case, parity: Parity) -> None:
    given = {key: torch.from_numpy(value) for key, value in case.expected.items()}
    logits, targets = given["logits"].requires_grad_(), given["targets"]
    offsets, truth = given["pred_offsets"].requires_grad_(), given["gt_offsets"]

    def check(key: str, value: Tensor) -> None:
        parity.check(key, value, given[key], rtol=1e-6, atol=1e-6)

    for alpha, gamma in ((0.25, 2.0), (-1.0, 2.0), (0.5, 1.5)):
        check(f"sigmoid_focal.a{alpha}_g{gamma}", losses.focal(logits, targets, alpha=alpha, gamma=gamma))
    parity.check(
        "sigmoid_focal.smoothed_sum", losses.focal(logits, given["targets_smoothed"]).sum(),
        given["sigmoid_focal.smoothed_sum"], rtol=1e-6,
    )  # fmt: skip
    check("sigmoid_focal.mean", losses.focal(logits, targets).mean())
    (slope,) = torch.autograd.grad(losses.focal(logits, targets).sum(), logits)
    check("sigmoid_focal.grad", slope)
    for key, loss in (("giou", losses.iou_loss), ("diou", losses.diou_loss), ("eiou", losses.eiou_loss)):
        values = loss(offsets, truth)
        check(f"{key}.none", values)
        parity.check(f"{key}.sum", values.sum(), given[f"{key}.sum"], rtol=1e-6)
        check(f"{key}.mean", values.mean())
        if f"{key}.grad_rows7on" in given:
            (slope,) = torch.autograd.grad(values.sum(), offsets)
            check(f"{key}.grad_rows7on", slope[7:])
    for gamma in (1.0, 2.0):
        check(f"focal_reg.g{gamma}", losses.focal_iou_loss(offsets, truth, gamma=gamma))
    for key, loss in (("iou", losses.iou_loss), ("diou", losses.diou_loss), ("eiou", losses.eiou_loss)):
        check(f"iou_weighted.{key}", losses.iou_weighted(loss(offsets, truth), offsets, truth))
    check("iou_1d", losses.iou(offsets, truth))
    quality = losses.quality_focal(logits, targets, given["qfl.iou_targets"])
    check("qfl.none", quality)
    parity.check("qfl.sum", quality.sum(), given["qfl.sum"], rtol=1e-6)
    check("qfl.alpha-1", losses.quality_focal(logits, targets, given["qfl.iou_targets"], alpha=-1))
    heat, peaks = given["heat_logits"], given["heat_targets"]
    parity.check(
        "gaussian_focal",
        losses.heatmap_focal(heat, peaks).sum() / (peaks == 1).sum(),
        given["gaussian_focal"],
        rtol=1e-6,
    )
    check("dfl", losses.distribution_focal(given["dfl_logits"], given["dfl_targets"]))
    mean = given["dfl_logits"].softmax(-1) @ torch.arange(given["dfl_logits"].shape[-1]).float()
    check("decode_distribution", mean)
