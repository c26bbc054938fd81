"""Precise batch norm (Wu and Johnson, 2021): the statistics for evaluation as plain averages over many batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core import dist
from projects.lta_memvit.model import Network


@torch.no_grad()
def update(net: Network, videos: Iterable[Tensor]) -> int:
    """Measure the running mean and variance anew over batches of video, each with equal weight; the number of batches.

    Every process gives its own batches and all get the average. Norms in eval mode, as those of a frozen backbone, stay
    as they are; without others nothing is read.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [norm.momentum for norm in norms]
    count = 0
    for video in videos if norms else ():
        count += 1
        for norm in norms:
            norm.momentum = 1.0 / count  # the average of all so far
        net.encode(video)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if count and dist.world().size > 1:
        for norm in norms:
            _average(norm)
    return count


def _average(norm: nn.Module) -> None:
    for buffer in (norm.running_mean, norm.running_var):
        assert isinstance(buffer, Tensor)
        buffer.copy_(dist.gather_rows(buffer[None]).mean(0))
