"""TrainStep and Checkpoints over real processes: the same numbers however the global batch is cut."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core import dist
from core.checkpoint import Checkpoints, load_weights, read_weights
from core.optim import OptimConfig
from core.step import TrainStep
from tests.dist.pool import Pool, Team

GLOBAL_BATCH = 8
STEPS = 4


def _net() -> nn.Sequential:
    torch.manual_seed(1 + dist.world().rank)  # every process starts differently: the main one's weights count
    return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 16).requires_grad_(False), nn.Linear(16, 3))


def _batch(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(GLOBAL_BATCH, 5, generator=g), torch.randn(GLOBAL_BATCH, 3, generator=g)


def _config(accumulate: int, name: Literal["sgd", "adamw"] = "sgd") -> OptimConfig:
    return OptimConfig(
        name=name,
        lr=0.2 if name == "sgd" else 0.01,
        epochs=2,
        warmup=0.5,
        weight_decay=0.01,
        clip_norm=0.5,
        ema=0.8,
        accumulate=accumulate,
    )


def _make(
    accumulate: int, strategy: dist.Strategy = "ddp", name: Literal["sgd", "adamw"] = "sgd"
) -> tuple[nn.Module, TrainStep]:
    model = _net()
    cfg = _config(accumulate, name)
    return model, TrainStep(model, cfg, batches_per_epoch=STEPS * accumulate // 2, strategy=strategy)


def _micro_batches(accumulate: int) -> list[tuple[Tensor, Tensor]]:
    """This process's share of all global batches, cut into micro-batches."""
    world = dist.world()
    pieces = world.size * accumulate
    mine = []
    for step in range(STEPS):
        x, y = _batch(step)
        cut = list(zip(x.chunk(pieces), y.chunk(pieces), strict=True))
        mine += cut[world.rank :: world.size]
    return mine


def _train(step: TrainStep, data: list[tuple[Tensor, Tensor]]) -> list[float]:
    norms = []
    for x, y in data:
        with step.forward() as net:
            loss = (net(x) - y).square().mean()
        norm = step.backward(loss)
        norms += [] if norm is None else [norm.item()]
    return norms


def _result(model: nn.Module, step: TrainStep) -> dict[str, Tensor]:
    plain = {name: value.clone() for name, value in dist.full_state(model)["model"].items()}
    average = dist.full_state(step.eval_model)["model"]
    return plain | {f"average.{name}": value.clone() for name, value in average.items()}


def _run(
    accumulate: int, strategy: dist.Strategy = "ddp", name: Literal["sgd", "adamw"] = "sgd"
) -> tuple[dict[str, Tensor], list[float]]:
    model, step = _make(accumulate, strategy, name)
    norms = _train(step, _micro_batches(accumulate))
    assert step.count == STEPS
    return _result(model, step), norms


def _close(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (2, 2), (2, 4), (4, 1)])
def test_processes_and_micro_batches_can_be_exchanged(pool: Pool, size: int, accumulate: int) -> None:
    """1 process x 4 micro-batches = 2 x 2 = 4 x 1 = the whole batch at once, parameters and averages to 1e-6."""
    whole, norms = _run(1)
    alone, _ = _run(4)
    _close(alone, whole)
    before = dict(_net().named_parameters())
    assert (whole["0.weight"] - before["0.weight"]).abs().max() > 1e-3, "training moved the weights"
    for result, measured in pool.run(size, _run, accumulate):
        _close(result, whole)
        assert measured == pytest.approx(norms, abs=1e-5)


def _gradients_before_the_last_micro_batch() -> list[Tensor]:
    _, step = _make(2)
    data = _micro_batches(2)
    seen = []
    for x, y in data[:1]:
        _train(step, [(x, y)])
        weight = step.model[0].weight
        assert weight.grad is not None
        seen.append(weight.grad.clone())
        alone = torch.autograd.grad((step.model(x) - y).square().mean() / 2, weight)[0]
        torch.testing.assert_close(seen[0], alone)
    return seen


def test_nothing_is_exchanged_before_the_last_micro_batch(two: Team) -> None:
    first, second = two(_gradients_before_the_last_micro_batch)
    assert not torch.allclose(first[0], second[0])


@pytest.mark.parametrize(("accumulate", "name"), [(1, "adamw"), (2, "sgd")])
def test_fsdp_takes_the_steps_of_one_process(two: Team, accumulate: int, name: Literal["sgd", "adamw"]) -> None:
    whole, norms = _run(1, "ddp", name)
    for result, measured in two(_run, accumulate, "fsdp", name):
        _close(result, whole, atol=2e-6)
        assert measured == pytest.approx(norms, abs=1e-5)


# ------------------------------------------------------------------------------------------------------- checkpoints


def _save(
    out: Path, batches: int, strategy: dist.Strategy = "ddp"
) -> tuple[dict[str, Tensor], Path | None, list[float]]:
    """Train for a while, save, draw a few random numbers and go on to the end."""
    rank = dist.world().rank
    model, step = _make(2, strategy)
    data = _micro_batches(2)
    _train(step, data[:batches])
    random.seed(rank)
    np.random.seed(rank)  # noqa: NPY002
    torch.manual_seed(rank)
    path = Checkpoints(out).save(step.count, {"model": model, "step": step}, {"loss": 1.0})
    draws = _draw()
    _train(step, data[batches:])
    return _result(model, step), path, draws


def _draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def _resume(
    out: Path, accumulate: int, done: int, strategy: dist.Strategy = "ddp"
) -> tuple[dict[str, Tensor], int, list[float]]:
    model, step = _make(accumulate, strategy)
    count = Checkpoints(out).restore({"model": model, "step": step})
    draws = _draw()
    _train(step, _micro_batches(accumulate)[done:])
    return _result(model, step), count, draws


@pytest.mark.parametrize("batches", [2, 3])
def test_saved_on_two_processes_and_resumed_on_two_and_on_one(two: Team, tmp_path: Path, batches: int) -> None:
    """After two micro-batches a step is done; after three, gradients not yet exchanged are in the checkpoint."""
    saved = two(_save, tmp_path, batches)
    assert {path for _, path, _ in saved} == {tmp_path / "checkpoints/step_000000001.pt"}
    resumed = two(_resume, tmp_path, 2, batches)
    for (result, _, draws), (again, count, redrawn) in zip(saved, resumed, strict=True):
        assert count == 1
        _close(again, result)
        assert redrawn == draws, "each process goes on with its own random numbers"
    assert saved[0][2] != saved[1][2]
    # One process makes the steps of two from twice as many micro-batches.
    if batches == 2:
        alone, _, draws = _resume(tmp_path, 4, 4)
        _close(alone, saved[0][0])
        assert draws == saved[0][2]


def _restore_only(out: Path) -> tuple[list[float], str]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        Checkpoints(out).restore({"model": _net()})
    finally:
        logging.getLogger().removeHandler(handler)
    return _draw(), " ".join(messages)


def test_more_processes_than_before_get_random_numbers_of_their_own(pool: Pool, tmp_path: Path) -> None:
    saved = pool.run(2, _save, tmp_path, 2)
    first, second = pool.run(3, _restore_only, tmp_path), pool.run(3, _restore_only, tmp_path)
    assert [draws for draws, _ in first] == [draws for draws, _ in second], "and the same ones each time"
    assert [draws for draws, _ in first[:2]] == [draws for _, _, draws in saved]
    assert len({tuple(draws) for draws, _ in first}) == 3
    assert "of 2 processes and there are 3 now" in first[0][1]
    assert first[1][1] == first[2][1] == ""


def test_fsdp_writes_the_file_that_one_process_reads(two: Team, tmp_path: Path) -> None:
    """Saved sharded after a step, resumed sharded and alone; the published weights load into a plain model."""
    saved = two(_save, tmp_path, 2, "fsdp")
    for result, *_ in two(_resume, tmp_path, 2, 2, "fsdp"):
        _close(result, saved[0][0], atol=2e-6)
    alone, count, _ = _resume(tmp_path, 4, 4)
    assert count == 1
    _close(alone, saved[0][0], atol=2e-6)
    tensors, about = read_weights(tmp_path / "checkpoints/last.safetensors")
    assert about == {"step": 1, "metrics": {"loss": 1.0}}
    assert len(load_weights(_net(), tensors).loaded) == 6


def _stop_sharded(out: Path) -> tuple[int, int]:
    model, step = _make(2, "fsdp")
    _train(step, _micro_batches(2)[:3])
    Checkpoints(out).save(step.count, {"model": model, "step": step})
    again_model, again = _make(2, "fsdp")
    Checkpoints(out).restore({"model": again_model, "step": again})
    norms = _train(again, _micro_batches(2)[3:5])
    return again.count, len(norms)


def test_a_sharded_run_stopped_inside_a_step_begins_it_anew(two: Team, tmp_path: Path) -> None:
    assert two(_stop_sharded, tmp_path) == [(2, 1), (2, 1)]
