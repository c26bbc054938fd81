"""The loss against its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from projects.ucf50_x3d.config import LossConfig
from projects.ucf50_x3d.losses import criterion

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 2])


def test_mean_cross_entropy() -> None:
    by_hand = [math.log(math.exp(2) + math.exp(-1) + math.exp(0.5)) - 2, math.log(3)]
    terms = criterion(LOGITS, {"label": LABELS}, LossConfig())
    assert list(terms) == ["total"]
    assert terms["total"].item() == pytest.approx(sum(by_hand) / 2, abs=1e-6)


def test_fifty_classes_that_know_nothing_lose_ln_50() -> None:
    loss = criterion(torch.zeros(4, 50), {"label": torch.tensor([0, 7, 49, 7])}, LossConfig())["total"]
    assert loss.item() == pytest.approx(math.log(50), abs=1e-6)


def test_smoothing_spreads_a_share_over_all_classes() -> None:
    share = 0.3
    targets = F.one_hot(LABELS, 3) * (1 - share) + share / 3
    expected = -(targets * LOGITS.log_softmax(1)).sum(1).mean()
    smoothed = criterion(LOGITS, {"label": LABELS}, LossConfig(label_smoothing=share))["total"]
    torch.testing.assert_close(smoothed, expected)
    assert smoothed > criterion(LOGITS, {"label": LABELS}, LossConfig())["total"]


def test_mixed_clips_lose_what_their_parts_lose() -> None:
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])
    mixed = criterion(LOGITS, {"label": shares}, LossConfig())["total"]
    parts = [
        criterion(LOGITS, {"label": torch.tensor(pair)}, LossConfig())["total"] for pair in ([0, 0], [1, 1], [2, 2])
    ]
    rows = -LOGITS.log_softmax(1)
    torch.testing.assert_close(mixed, (0.7 * rows[0, 0] + 0.3 * rows[0, 1] + 0.4 * rows[1, 1] + 0.6 * rows[1, 2]) / 2)
    torch.testing.assert_close(torch.stack(parts), rows.mean(0))
    whole = criterion(LOGITS, {"label": F.one_hot(LABELS, 3).float()}, LossConfig())["total"]
    torch.testing.assert_close(whole, criterion(LOGITS, {"label": LABELS}, LossConfig())["total"])


def test_half_precision_logits_are_compared_in_single() -> None:
    logits = LOGITS.bfloat16().requires_grad_()
    loss = criterion(logits, {"label": LABELS}, LossConfig())["total"]
    assert loss.dtype == torch.float32
    loss.backward()
    expected = (LOGITS.softmax(1) - F.one_hot(LABELS, 3)) / 2
    torch.testing.assert_close(logits.grad.float(), expected, atol=2e-3, rtol=0)
