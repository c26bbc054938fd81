"""Learning rates by value and by property; parameter groups; the optimizers that come out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.optim import OptimConfig, build, groups, lr_factor, schedule


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 1)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Linear(4, 2)


def factors(cfg: OptimConfig, steps_per_epoch: int = 10) -> list[float]:
    total = cfg.epochs * steps_per_epoch
    return [lr_factor(step, cfg, total, steps_per_epoch) for step in range(total + 1)]


def test_cosine_with_warmup_by_value() -> None:
    rates = factors(OptimConfig(epochs=4, warmup=1, warmup_start=0.2, final_lr=0.1))
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.6)
    assert rates[10] == pytest.approx(1.0)
    assert rates[25] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[20] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2)
    assert rates[40] == pytest.approx(0.1)


def test_decay_from_start_meets_the_cosine_of_the_whole_run() -> None:
    rates = factors(OptimConfig(epochs=4, warmup=1, decay_from="start"))
    at = [(1 + math.cos(math.pi * step / 40)) / 2 for step in range(41)]
    assert rates[10:] == pytest.approx(at[10:])
    assert rates[:10] == pytest.approx([at[10] * step / 10 for step in range(10)])


def test_linear_by_value() -> None:
    rates = factors(OptimConfig(epochs=3, warmup=1, schedule="linear", final_lr=0.5))
    assert rates[10:] == pytest.approx([1 - 0.5 * step / 20 for step in range(21)])


def test_constant_after_warmup() -> None:
    rates = factors(OptimConfig(epochs=3, warmup=0.5, schedule="constant"))
    assert rates[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rates[5:]) == {1.0}


def test_drops_happen_at_their_epochs() -> None:
    rates = factors(OptimConfig(epochs=4, schedule="multistep", milestones=(1, 2.5), gamma=0.5))
    assert (rates[9], rates[10], rates[24], rates[25]) == (1.0, 0.5, 0.5, 0.25)
    rates = factors(OptimConfig(epochs=4, schedule="step", step_epochs=1.5, gamma=0.1))
    assert (rates[14], rates[15], rates[29], rates[30]) == pytest.approx((1.0, 0.1, 0.1, 0.01))


def test_a_drop_inside_the_warmup_lowers_its_goal() -> None:
    rates = factors(OptimConfig(epochs=4, warmup=2, schedule="multistep", milestones=(1,), gamma=0.5))
    assert rates[10] == pytest.approx(0.25)
    assert rates[20] == 0.5


def test_fractions_of_an_epoch_meet_the_nearest_step() -> None:
    cfg = OptimConfig(epochs=1, schedule="step", step_epochs=0.1, gamma=0.5)
    assert [lr_factor(step, cfg, 30, 30) for step in (2, 3, 6)] == [1.0, 0.5, 0.25]


def test_the_cosine_equals_the_one_of_pytorch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    cfg = OptimConfig(epochs=5, lr=0.3, final_lr=0.1)
    optimizer = torch.optim.SGD([parameter], cfg.lr)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.03)
    for rate in factors(cfg):
        assert cfg.lr * rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


smooth = st.builds(
    OptimConfig,
    epochs=st.integers(1, 50),
    warmup=st.floats(0, 1),
    warmup_start=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
    final_lr=st.floats(0, 1),
    decay_from=st.sampled_from(["warmup", "start"]),
)


@settings(deadline=None, max_examples=150)
@given(smooth, st.integers(2, 200))
def test_smooth_schedules_stay_in_range_and_never_jump(cfg: OptimConfig, steps_per_epoch: int) -> None:
    rates = factors(cfg, steps_per_epoch)
    assert all(0 <= rate <= 1 for rate in rates)
    warmup, total = cfg.warmup * steps_per_epoch, cfg.epochs * steps_per_epoch
    rise = 1 / warmup if warmup else 0
    fall = math.pi / 2 / max(total - warmup, 1)
    jumps = [abs(after - before) for before, after in itertools.pairwise(rates)]
    assert max(jumps) <= rise + fall + 1e-9


@settings(deadline=None, max_examples=150)
@given(smooth, st.integers(2, 200))
def test_smooth_schedules_rise_then_fall(cfg: OptimConfig, steps_per_epoch: int) -> None:
    rates = factors(cfg, steps_per_epoch)
    top = math.ceil(cfg.warmup * steps_per_epoch)
    after = rates[top:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
    warm = rates[: top + 1]
    rising = all(later >= earlier for earlier, later in itertools.pairwise(warm[:-1]))
    assert rising or cfg.decay_from == "start"
    if cfg.schedule != "constant" and cfg.epochs > cfg.warmup:
        assert rates[-1] == pytest.approx(cfg.final_lr)


@given(st.integers(0, 10_000))
def test_a_run_past_its_end_keeps_the_last_rate(step: int) -> None:
    cfg = OptimConfig(epochs=2, final_lr=0.25)
    assert lr_factor(20 + step, cfg, 20, 10) == 0.25


def test_groups_leave_biases_and_norms_undecayed() -> None:
    model = Small()
    found = groups(model, 0.05)
    assert [(group["weight_decay"], group["lr_scale"]) for group in found] == [(0.05, 1.0), (0.0, 1.0)]
    assert [id(p) for p in found[0]["params"]] == [id(model.stem.weight), id(model.head.weight)]
    assert {id(p) for p in found[1]["params"]} == {
        id(p) for p in (model.stem.bias, model.norm.weight, model.norm.bias, model.head.bias)
    }


def test_the_first_matching_rule_decides() -> None:
    model = Small()
    rules = [("^stem", {"lr_scale": 0.1}), ("bias$", {"weight_decay": 0.3}), ("stem.bias", {"lr_scale": 9.0})]
    options = {
        id(p): (group["weight_decay"], group["lr_scale"])
        for group in groups(model, 0.05, rules)
        for p in group["params"]
    }
    assert options[id(model.stem.weight)] == (0.05, 0.1)
    assert options[id(model.stem.bias)] == (0.0, 0.1)
    assert options[id(model.head.bias)] == (0.3, 1.0)
    assert options[id(model.norm.weight)] == (0.0, 1.0)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = Small()
    model.stem.requires_grad_(False)
    rules = [("norm", {"lr_scale": 0.5}), ("stem", {"lr_scale": 0.1})]
    ids = [id(p) for group in groups(model, 0.1, rules) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_tied_weights_are_optimized_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert [len(group["params"]) for group in groups(model, 0.1)] == [1]


def test_rules_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter matches \['heads'\].*stem\.weight"):
        groups(Small(), 0.1, [("heads", {"lr_scale": 0.1})])
    with pytest.raises(ValueError, match=r"'head' sets \['lr'\].*\['lr_scale', 'weight_decay'\]"):
        groups(Small(), 0.1, [("head", {"lr": 0.1})])
    with pytest.raises(ValueError, match="all 6 parameters of Small are frozen"):
        groups(Small().requires_grad_(False), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 11.0}, "longer than the run"),
        ({"schedule": "step"}, "step_epochs"),
        ({"schedule": "multistep"}, "milestones"),
        ({"schedule": "multistep", "milestones": (3, 2)}, "ascending"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"nesterov": True, "momentum": 0.0}, "momentum"),
        ({"ema": 1.0}, "less than 1"),
        ({"accumulate": 0}, "greater than or equal to 1"),
    ],
)
def test_configurations_that_cannot_work_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)


def test_schedule_respects_the_scale_of_each_group() -> None:
    optimizer = build(Small(), OptimConfig(lr=0.5), rules=[("head", {"lr_scale": 0.1, "weight_decay": 0.0})])
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.05, 0.5])
    schedule(optimizer, 0.2)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.02, 0.2])


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (
            {"name": "sgd", "nesterov": True},
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        ({"name": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01)),
        (
            {"name": "adam", "betas": (0.8, 0.9)},
            lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.9), weight_decay=0.01),
        ),
        ({"name": "adamw", "eps": 1e-3}, lambda p: torch.optim.AdamW(p, 0.1, eps=1e-3, weight_decay=0.01)),
    ],
)
def test_each_optimizer_walks_like_the_plain_one(options: dict, reference: Callable) -> None:
    ours, theirs = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    pair = [
        (ours, build(ours, OptimConfig(lr=0.1, weight_decay=0.01, **options))),
        (theirs, reference(theirs.parameters())),
    ]
    for step in range(5):
        x = torch.full((4, 3), float(step - 2))
        for model, optimizer in pair:
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


def test_a_parameter_may_get_its_first_gradient_late() -> None:
    """The fused kernel of SGD fails on this with PyTorch's lazy momentum buffers."""
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    optimizer = build(model, OptimConfig(name="sgd", lr=0.1, momentum=0.5))
    before = model[1].weight.detach().clone()
    x = torch.ones(1, 2)
    for layers in (model[:1], model):
        sum(layer(x).sum() for layer in layers).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(model[1].weight, before - 0.1)
