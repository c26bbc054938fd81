"""Losses, mixup, schedule and whole training steps against the released ones."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core import config
from core.step import TrainStep
from projects.sgear import losses, mixup, optim
from projects.sgear.config import LossConfig, SgearOptim
from projects.sgear.model import Sgear
from tests.sgear.test_golden_models import described
from tests.support import Case, Parity, cases, fill

pytestmark = pytest.mark.golden


def found(pattern: str) -> list[Any]:
    return [pytest.param(case, id=case.path.name) for case in cases("sgear", pattern)]


def noise(key: str, *shape: int) -> Tensor:
    return torch.from_numpy(50 * fill.array(key, (math.prod(shape),)).reshape(shape))


@pytest.mark.parametrize("case", found("loss_terms*"))
def test_loss_terms(case: Case, parity: Parity) -> None:
    expected = case.expected
    target = torch.from_numpy(expected["target"])
    past = torch.from_numpy(expected["target_subclips"])[..., 0]
    (batch, steps), text = past.shape, (case.path / "README.md").read_text()
    classes, width = int(setting(text, r"N=(\d+) classes", 0)), int(setting(text, r"C=(\d+)", 0))
    logits, past_logits = noise("logits", batch, classes), noise("past_logits", batch, steps, classes)
    similarities = 0.1 * noise("similarities", batch, classes)
    similarities_past = 0.1 * noise("similarities_past", batch, steps, classes)
    rows = 0.3 * noise("target_similarities", batch, 1, classes)[:, 0]
    past_rows = 0.3 * noise("past_target_similarities", batch, steps, 1, classes)[:, :, 0]
    prototypes, z = noise("prototypes", classes, width), noise("future_z", batch, width)
    terms = {
        "cls_action": losses.cross_entropy(logits, target),
        "past_cls_action": losses.cross_entropy(past_logits, past).flatten(),
        "global_simContrast": losses.semantic(similarities, rows),
        "target_distance": losses.distance(z, prototypes[target]),
        "past_target_global_simContrast": losses.semantic(similarities_past, past_rows) * (past >= 0),
    }
    for name, value in terms.items():
        parity.check(name, value, expected[f"loss/{name}"], atol=1e-6, rtol=1e-6)
        parity.check(f"mean {name}", value.mean(), expected[f"mean/{name}"], atol=1e-6, rtol=1e-6)
    for k in (1, 5):
        parity.check(f"accuracy {k}", losses.accuracy(logits, target, k), expected[f"acc/acc{k}/action"], atol=1e-4)


@pytest.mark.parametrize("case", found("mixup*"))
def test_mixup(case: Case, parity: Parity) -> None:
    expected, text = case.expected, (case.path / "README.md").read_text()
    share, smoothing = setting(text, r"lambda fixed to ([\d.]+)", 0), setting(text, r"label smoothing ([\d.]+)", 0)
    labels, past = torch.tensor([2, 0, 4]), torch.tensor([[1, 1], [3, 0], [4, 2]])
    parity.check("one hot", mixup.one_hot(labels, 5), expected["onehot"], atol=1e-6)
    smooth = mixup.one_hot(labels, 5, smoothing)
    parity.check("one hot, smooth", smooth, expected["onehot_smooth0.1"], atol=1e-6)
    video = torch.from_numpy(expected["video_in"])
    parity.check("video", mixup.mix(video, share), expected["video_out"], atol=1e-6)
    parity.check("labels", mixup.mix(smooth, share), expected["labels_out"], atol=1e-6)
    soft_past = mixup.mix(mixup.one_hot(past, 5, smoothing), share)
    parity.check("past labels", soft_past, expected["subclips_out"], atol=1e-6)
    parity.check("labels without past", mixup.mix(smooth, share), expected["no_subclips/labels_out"], atol=1e-6)

    # Mixed losses are the loss of mixed labels.
    logits = torch.randn(3, 5)
    ours = [losses.cross_entropy(logits, each, smoothing=smoothing) for each in (labels, labels.flip(0))]
    soft = torch.nn.functional.cross_entropy(logits, mixup.mix(smooth, share), reduction="none")
    torch.testing.assert_close(share * ours[0] + (1 - share) * ours[1], soft)


@pytest.mark.parametrize("case", found("lr_schedule*"))
def test_learning_rates(case: Case, parity: Parity) -> None:
    for name, entry in case.json().items():
        per_epoch, count = entry["iters_per_epoch"], len(entry["values"])
        known: dict[str, Any] = {"lr": entry["lr"], "epochs": math.ceil(count / per_epoch)}
        if "milestone_epochs" in entry:
            known |= {
                "schedule": "multistep",
                "milestones": entry["milestone_epochs"],
                "gamma": entry["gamma"],
                "milestone_warmup": entry["warmup_epochs"],
                "milestone_warmup_start": entry["warmup_factor"],
            }
        else:
            known |= {
                "warmup": entry["warmup_epochs"],
                "decay_epochs": entry["cosine_epochs"],
                "final_lr": entry["eta_min"] * entry.get("world_size", 1) / entry["lr"],
            }
        cfg = SgearOptim(**known)
        ours = np.array([entry["lr"] * optim.factor(i, cfg, per_epoch) for i in range(count)])
        parity.check(name, ours, entry["values"], rtol=1e-12, atol=1e-18)


TERMS = {
    "cls_action": "cls_action",
    "past_cls_action": "past_cls_action",
    "global_simContrast": "semantic",
    "target_distance": "distance",
    "past_target_global_simContrast": "past_semantic",
    "feat": "feat",
}
RUNS = [
    pytest.param(case, run, id=f"{case.path.name}-{run}")
    for case in cases("sgear", "train_3steps_*")
    for run in case.json()
]


def setting(text: str, pattern: str, default: float) -> float:
    """A number that a case's README gives in words."""
    match = re.search(pattern, text)
    return float(match[1].rstrip(".,")) if match else default


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_training_steps(case: Case, run: str, parity: Parity) -> None:
    """Terms, total, learning rate and gradients of every step, and the parameters after the last."""
    expected, text = case.json()[run], (case.path / "README.md").read_text()
    weights = fill.state_dict(case.json("keys.json"))
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    frozen = "prototypes frozen" in text
    flags = [f"compat={run == 'compat'}", f"prototypes.freeze={frozen}", "dropout=0", "decoder.dropout=0"]
    cfg, steps, sizes = described(shapes, *flags)
    classes = sizes["action"]
    maps = {key: torch.zeros(shapes[f"cls_map_{key}_action"]) for key in ("verb", "noun")}
    net = Sgear(cfg, steps, sizes, maps=maps)
    net.load_state_dict(weights)
    net.train()

    weight = {name: setting(text, rf"\b{name} ([\d.]+)", 0.0) for name in TERMS}
    loss = {TERMS[name]: value for name, value in weight.items()}
    batch_size = int(setting(text, r"batch (\d+)", 0))
    accumulate = 2 if "accumulate2" in run else 1
    batches = len(expected["per_step"])
    source = torch.nn.functional.normalize(torch.from_numpy(fill.array("text.prototypes_source", (classes, 64))))
    table = source @ source.T
    chosen = LossConfig(**loss, cls_verb=0, cls_noun=0, mask=False)
    everything = LossConfig(**dict.fromkeys(loss, 1.0), cls_verb=0, cls_noun=0, mask=False)
    criterion = losses.Criterion(chosen, net, similarities=table)
    report = losses.Criterion(everything, net, similarities=table)
    wishes = {
        "name": "sgd",
        "lr": setting(text, r"lr ([\d.e-]+),", 0),
        "weight_decay": setting(text, r"weight decay ([\d.e-]+)", 0),
        "epochs": 5,
        "decay_epochs": 4,
        "warmup": 1 if "warmup1epoch" in run else 0,
        "accumulate": accumulate,
    }
    training = config.load(SgearOptim, None, [f"{key}={value}" for key, value in wishes.items()])
    at = optim.per_step(training, batches, optim.Plateau(0, 1.0))
    step = TrainStep(net, training, batches_per_epoch=batches, rules=optim.rules(net, training), factor=at)

    named, grads = dict(net.named_parameters()), []
    step.optimizer.register_step_pre_hook(
        lambda *_: grads.append({name: p.grad.norm() for name, p in named.items() if p.grad is not None})
    )
    for number in range(batches):
        features, label, past = batch_of(number, batch_size, steps, cfg.feature_dim, classes)
        with step.forward() as forward:
            outputs = forward(features)
            batch = {"label": label, "past_label": past}
            means = criterion(outputs, batch)
            with torch.no_grad():
                reported = report(outputs, batch)
        for name, value in expected["per_step"][number].items():
            parity.check(f"step {number} {name}", reported[TERMS[name]], value, rtol=1e-4, atol=1e-6)
        parity.check(f"step {number} total", means["total"], expected["weighted_total"][number], rtol=1e-4)
        rate = training.lr * optim.factor(number, training, batches)
        parity.check(f"step {number} lr", rate, expected["lr"][number], rtol=1e-12)
        step.backward(means["total"] * step.window)
    assert len(grads) == len(expected["grad_norms"]) == batches // accumulate
    for number, (ours, theirs) in enumerate(zip(grads, expected["grad_norms"], strict=True)):
        assert {name for name, norm in theirs.items() if norm is None} == set(theirs) - set(ours)
        for name in set(theirs) & set(ours):
            parity.check(f"step {number} gradient of {name}", ours[name], theirs[name], rtol=1e-3, atol=1e-7)
    for name, (average, norm) in expected["params_after"].items():
        parity.check(f"{name} mean", named[name].double().mean(), average, rtol=1e-4, atol=1e-7)
        parity.check(f"{name} norm", named[name].double().norm(), norm, rtol=1e-5)
    for name, values in expected["first8_after"].items():
        parity.check(f"{name} first", named[name].flatten()[:8], values, rtol=1e-4, atol=1e-6)


def batch_of(number: int, size: int, steps: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and past labels of a step, as the case's README makes them."""
    features = noise(f"step{number}.features", size, steps, width).abs()
    rng = np.random.Generator(np.random.PCG64(1000 + number))
    label, past = rng.integers(0, classes, size), rng.integers(-1, classes, (size, steps))
    past[rng.random((size, steps)) < 0.4] = -1
    if number == 1:
        label[0] = -1
    return features, torch.from_numpy(label), torch.from_numpy(past)
