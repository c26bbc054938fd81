"""The diffusion loss: the mean squared error of the predicted noise."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.lego.model.schedule import Schedule


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
