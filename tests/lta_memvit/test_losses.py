"""Sums over positions, means over samples."""

from __future__ import annotations

import math

import pytest
import torch

from projects.lta_memvit.config import LossConfig
from projects.lta_memvit.losses import criterion, errors
from projects.lta_memvit.model import Outputs


def example(future: int = 0) -> tuple[Outputs, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (4, future) if future else (4,)
    outputs = Outputs(torch.randn(*shape, 7, generator=generator), torch.randn(*shape, 9, generator=generator))
    batch = {"verb": torch.randint(7, shape, generator=generator), "noun": torch.randint(9, shape, generator=generator)}
    return outputs, batch


def test_a_forecast_costs_the_sum_of_its_positions() -> None:
    outputs, batch = example(3)
    losses = criterion(outputs, batch, LossConfig())
    singles = [
        criterion(Outputs(*(s[:, z] for s in outputs)), {k: v[:, z] for k, v in batch.items()}, LossConfig())["total"]
        for z in range(3)
    ]
    torch.testing.assert_close(losses["total"], torch.stack(singles).sum())
    torch.testing.assert_close(losses["total"], losses["verb"] + losses["noun"])


def test_uniform_answers_cost_the_logarithm_of_the_classes() -> None:
    outputs = Outputs(torch.zeros(2, 20, 117), torch.zeros(2, 20, 521))
    batch = {"verb": torch.zeros(2, 20, dtype=torch.long), "noun": torch.zeros(2, 20, dtype=torch.long)}
    assert criterion(outputs, batch, LossConfig())["total"].item() == pytest.approx(20 * math.log(117 * 521), rel=1e-5)


def test_half_precision_is_summed_in_single() -> None:
    outputs, batch = example(20)
    halves = Outputs(*(scores.bfloat16() for scores in outputs))
    loss = criterion(halves, batch, LossConfig(label_smoothing=0.1))["total"]
    assert loss.dtype == torch.float32
    wanted = criterion(Outputs(*(s.float() for s in halves)), batch, LossConfig(label_smoothing=0.1))["total"]
    torch.testing.assert_close(loss, wanted)


def test_errors_at_positions_and_their_mean() -> None:
    scores = torch.eye(9)[torch.tensor([[0, 1], [2, 3]])]  # each certain of one class
    outputs = Outputs(scores, scores)
    found = errors(outputs, {"verb": torch.tensor([[0, 1], [2, 0]]), "noun": torch.tensor([[8, 8], [8, 8]])})
    assert found["verb_error_at_1"] == 0
    assert found["verb_error_at_2"] == 50
    assert found["verb_error"] == 25
    assert found["noun_error"] == 100
    few = errors(Outputs(torch.eye(3), torch.eye(3)), {"verb": torch.arange(3), "noun": torch.arange(3)})
    assert few["verb_top5_error"] == 0
    assert "verb_error_at_1" not in few
