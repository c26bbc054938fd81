"""Training goes on from a checkpoint of the official code: weights, average, moments and epoch."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core import config
from core.data import Loader
from core.step import TrainStep
from projects.actionformer import convert, data, official_run, train
from projects.actionformer.losses import Criterion
from projects.actionformer.model import Detector
from tests.actionformer import golden, small
from tests.actionformer.test_golden_train import batch_of, without_chance
from tests.support import Case, cases

# Cases that say in which order the official optimizer numbers its parameters.
CASES = [case for case in cases("actionformer", "train_small*") if "optimizer_groups" in case.json("case.json")]
EPOCH = 3


class Run:
    """A network of a case with its optimizer and normalizer, from one weight file or another."""

    def __init__(self, case: Case) -> None:
        self.case, self.cfg, self.net = case, golden.config_of(case), golden.network(case)
        self.about = case.json("case.json")
        without_chance(self.net)
        self.step = train.train_step(self.net.train(), self.cfg, self.about["iters_per_epoch"])
        self.criterion = Criterion(self.cfg.loss, self.cfg.model.name, self.cfg.data.classes)

    def learn(self, steps: int) -> None:
        """Steps on the first batch of the case."""
        batch = batch_of(self.case, [video for video in self.about["videos"] if video["step"] == 0])
        for _ in range(steps):
            with self.step.forward() as forward:
                outputs = forward(batch["features"], batch["mask"], batch["lengths"])
            self.step.backward(self.criterion(outputs, batch)["total"])


def checkpoint(net: Detector, step: TrainStep, groups: list[list[str]], epoch: int, iterations: int) -> dict[str, Any]:
    """What the official code would save: parameters counted through its two groups, in its shapes."""
    state, named = convert.official_state(net), dict(net.named_parameters())
    names = [name for group in groups for name in group]
    moments: dict[int, dict[str, Tensor]] = {}
    for number, name in enumerate(names):
        own = step.optimizer.state[named[name.removeprefix("module.")]]
        moments[number] = {k: v.clone().reshape(() if k == "step" else state[name].shape) for k, v in own.items()}
    edges = [0, len(groups[0]), len(names)]
    numbers = [list(range(start, end)) for start, end in itertools.pairwise(edges)]
    assert isinstance(step.average, Detector)
    return {
        "epoch": epoch,
        "state_dict": state,
        "state_dict_ema": convert.official_state(step.average),
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.5, "params": part} for part in numbers]},
        "scheduler": {"last_epoch": iterations, "milestones": Counter([3, 8])},
    }


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    cfg = small.configured(tmp_path / "data", "loader.batch_size=2", "data.train_splits=[validation]")
    return Loader(data.load(cfg.data).dataset("train", train=True), cfg.loader, train=True, collate=data.collate)


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path.name)
def test_it_goes_on_as_if_it_had_begun_here(case: Case, tmp_path: Path, loader: Loader) -> None:
    whole, second = Run(case), Run(case)
    done = EPOCH * whole.about["iters_per_epoch"]
    whole.learn(done)
    path = tmp_path / f"epoch_{EPOCH:03d}.pth.tar"
    torch.save(checkpoint(whole.net, whole.step, whole.about["optimizer_groups"], EPOCH, done), path)
    said = official_run.resume(path, second.step, loader)
    assert f"after epoch {EPOCH}" in said
    assert "normalizer" in said
    assert "schedule" not in said
    assert loader.state_dict() == {"epoch": EPOCH, "batch": 0}
    second.criterion.load_state_dict(whole.criterion.state_dict())  # the one thing that the file lacks
    for run in (whole, second):
        run.learn(2)
    assert second.step.lr == whole.step.lr > 0
    for ours, theirs in ((whole.net, second.net), (whole.step.eval_model, second.step.eval_model)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    assert not torch.equal(next(whole.net.parameters()), next(whole.step.eval_model.parameters()))


def test_what_a_file_lacks_is_said(tmp_path: Path, loader: Loader) -> None:
    case = CASES[0]
    run, other = Run(case), Run(case)
    run.learn(1)
    whole = checkpoint(run.net, run.step, run.about["optimizer_groups"], 2, 5)
    path = tmp_path / "epoch_002.pth.tar"
    torch.save({key: whole[key] for key in ("epoch", "state_dict", "scheduler")}, path)
    said = official_run.resume(path, other.step, loader)
    assert "moments start at zero" in said
    assert "the moving average starts at the weights" in said
    assert f"goes on from step {2 * other.step.steps_per_epoch}" in said
    assert "there it was 5" in said
    assert torch.equal(next(other.step.eval_model.parameters()), next(run.net.parameters()))

    few = {"state": whole["optimizer"]["state"], "param_groups": [{"params": [0, 1]}, {"params": [2]}]}
    kind = {**whole["optimizer"], "state": {key: {"momentum_buffer": None} for key in whole["optimizer"]["state"]}}
    for change, message in (({"optimizer": few}, r"2 \+ 1"), ({"optimizer": kind}, "momentum_buffer, which is not")):
        torch.save({**whole, **change}, path)
        with pytest.raises(ValueError, match=message):
            official_run.resume(path, other.step, loader)
    torch.save(whole["state_dict"], path)
    with pytest.raises(ValueError, match="init="):
        official_run.resume(path, other.step, loader)


def test_the_command_goes_on_and_then_from_its_own_checkpoints(tmp_path: Path) -> None:
    common = (
        "loader.batch_size=2", "data.train_splits=[validation]", "optim.epochs=3", "optim.warmup=1",
        "eval.timelines=0", "eval.analysis=false",
    )  # fmt: skip
    cfg = small.configured(tmp_path / "data", *common)
    net = small.network(cfg)
    step = train.train_step(net, cfg, 2)
    file = tmp_path / "epoch_002.pth.tar"
    order = [[f"module.{name}" for name in part] for part in official_run.order(net)]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()
    torch.save(checkpoint(net, step, order, 2, 4), file)
    settings = [str(tmp_path / "data" / "config.yaml"), *common, f"run.out={tmp_path / 'run'}", f"resume={file}"]
    train.main(settings)
    log = tmp_path / "run" / "run.log"
    assert log.read_text().count("goes on after epoch 2") == 1
    steps = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    train.main(settings)
    assert log.read_text().count("goes on after epoch 2") == 1, "its own checkpoint comes first"
    per_epoch = len(Loader(data.load(cfg.data).dataset("train", train=True), cfg.loader, train=True))
    assert [int(path.stem.removeprefix("step_")) for path in steps][-1] == 3 * per_epoch
    assert config.load(type(cfg), tmp_path / "run" / "config.yaml").resume == str(file)
