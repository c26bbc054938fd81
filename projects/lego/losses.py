"""What is minimized: the squared error of the predicted noise; the cross-entropy of an answer's tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core import dist
from projects.lego.model.schedule import Schedule
from projects.lego.model.vlm import Learned


def criterion(predicted: Tensor, noise: Tensor, timesteps: Tensor, schedule: Schedule) -> dict[str, Tensor]:
    """`total`, which is minimized, and the reference's other two figures.

    `simple` is the mean over samples of each sample's mean squared error; the reference's log-variance is 0 and not
    learned, so it is the total. `vlb` weighs the samples by their term in the variational bound, and is only reported.

    Shapes: predicted and noise (B, 4, h, w), timesteps int64 (B,).
    """
    errors = (predicted.float() - noise).square().mean((1, 2, 3))
    simple = errors.mean()
    with torch.no_grad():
        vlb = (schedule.lvlb_weights[timesteps] * errors).mean()
    return {"total": simple, "simple": simple.detach(), "vlb": vlb}


def token_cross_entropy(learned: Learned, *, share: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the learned tokens of this batch, as LLaVA's; 0 where nothing is learned.

    With `share`, the sum over them times it: see `token_share`.
    """
    total = F.cross_entropy(learned.logits.float(), learned.targets, reduction="sum")
    return total / max(len(learned.targets), 1) if share is None else total * share


def token_share(labels: Tensor, ignored: int) -> Tensor:
    """What makes the mean over processes of their summed losses a mean over all tokens: processes / tokens.

    labels (B,L), of which the first column is never predicted.
    """
    tokens = dist.total((labels[:, 1:] != ignored).sum())
    return dist.world().size / tokens.clamp(min=1)
