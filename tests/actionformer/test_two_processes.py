"""Two processes learn what one does with their common batch, and a run goes on from its state bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from core import dist
from projects.actionformer import convert, official, train
from projects.actionformer.config import Config
from projects.actionformer.losses import Criterion
from tests.dist.pool import Team


def configuration(drop_path: float) -> Config:
    return official.config_from(
        {
            "dataset_name": "thumos",
            "dataset": {"input_dim": 6, "num_classes": 3, "max_seq_len": 64},
            "model": {
                "embd_dim": 16, "fpn_dim": 16, "head_dim": 16, "n_mha_win_size": 5, "backbone_arch": [1, 1, 2],
                "regression_range": [[0, 4], [4, 8], [8, 10000]],
            },
            "train_cfg": {"droppath": drop_path, "init_loss_norm": 5},
            # Adam would make steps of the rounding of gradients that are zero, such as those of key biases.
            "opt": {"type": "SGD", "epochs": 2, "warmup_epochs": 1, "learning_rate": 0.02},
        }
    )  # fmt: skip


def batch(step: int, videos: slice) -> dict[str, Any]:
    """Some of four videos with one to four actions each."""
    random = torch.Generator().manual_seed(step)
    starts = torch.rand(4, 4, generator=random) * 40
    segments = [torch.stack([s, s + 2 + 3 * torch.arange(4)], 1)[: index + 1] for index, s in enumerate(starts)]
    return {
        "features": torch.randn(4, 6, 60, generator=random)[videos],
        "mask": torch.ones(4, 60, dtype=torch.bool)[videos],
        "segments": segments[videos],
        "labels": [torch.arange(len(each)) % 3 for each in segments][videos],
    }


class Learner:
    """A network, its step and its normalizer."""

    def __init__(self, *, shared: bool = True, drop_path: float = 0.0, accumulate: int = 1) -> None:
        cfg = configuration(drop_path)
        cfg = cfg.model_copy(
            update={
                "optim": cfg.optim.model_copy(update={"scale_lr": False, "accumulate": accumulate}),
                "loss": cfg.loss.model_copy(update={"norm_shared": shared}),
            }
        )
        torch.manual_seed(0)
        self.net = convert.build(cfg).train()
        self.step = train.train_step(self.net, cfg, 3)
        self.criterion = Criterion(cfg.loss, "actionformer", 3)

    def learn(self, steps: range) -> None:
        """Steps on this process's part of each batch."""
        world = dist.world()
        share = 4 // world.size
        for step in steps:
            given = batch(step, slice(world.rank * share, (world.rank + 1) * share))
            with self.step.forward() as forward:
                outputs = forward(given["features"], given["mask"], [60] * share)
            self.step.backward(self.criterion(outputs, given)["total"])


def learned(shared: bool, accumulate: int = 1) -> tuple[dict[str, Tensor], float]:
    """Weights and normalizer after six batches, two epochs, in each process of a pool."""
    learner = Learner(shared=shared, accumulate=accumulate)
    learner.learn(range(6))
    return {name: value.detach().clone() for name, value in learner.net.state_dict().items()}, float(
        learner.criterion.norm
    )


@pytest.mark.dist
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_learn_what_one_does(two: Team, accumulate: int) -> None:
    """With two batches to a step, the last step of each epoch of three has but one."""
    alone, norm = learned(True, accumulate)
    for weights, own in two(learned, True, accumulate):
        assert own == pytest.approx(norm, rel=1e-12)
        for name, value in alone.items():
            torch.testing.assert_close(
                weights[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.dist
def test_normalizers_may_stay_apart(two: Team) -> None:
    (_, first), (_, second) = two(learned, False)
    assert first < second, "the second process has the videos with more actions"


def test_a_run_goes_on_bit_for_bit() -> None:
    whole, first, second = (Learner(drop_path=0.3) for _ in range(3))
    torch.manual_seed(1)
    whole.learn(range(5))
    torch.manual_seed(1)
    first.learn(range(2))
    second.net.load_state_dict(first.net.state_dict())
    second.step.load_state_dict(copy.deepcopy(first.step.state_dict()))
    second.criterion.load_state_dict(first.criterion.state_dict())
    second.learn(range(2, 5))
    assert torch.equal(whole.criterion.norm, second.criterion.norm)
    for ours, theirs in ((whole.net, second.net), (whole.step.eval_model, second.step.eval_model)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
