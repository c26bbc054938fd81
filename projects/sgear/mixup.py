"""Mixup of clips with their mirror image in the batch order (Zhang et al., 2018), as the released class does it.

A loss is linear in its target where the target is a mixture of labels, so `losses.Criterion` mixes losses: the mixed
clip is compared with both labels. That equals soft targets and needs no table of classes.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor


def one_hot(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels (...) from 0 to `classes`-1 as shares of classes (...,K), `smoothing` of each spread over all.

    Raises: ValueError for a label outside.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} are not all of the {classes} classes; leave out "
            "unlabeled ones (-1) first"
        )
    return torch.nn.functional.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def mix(x: Tensor, share: float | Tensor) -> Tensor:
    """`share` of each sample and 1-`share` of the one at the mirrored place of the batch (B,...)."""
    return share * x + (1 - share) * x.flip(0)


def mix_batch(batch: dict[str, Any], key: str, alpha: float) -> dict[str, Any]:
    """The batch with `batch[key]` mixed by a share from Beta(alpha, alpha), which `mixed` holds for the losses.

    Drawn from Python's global generator, which a run seeds and restores.
    """
    share = random.betavariate(alpha, alpha)
    return {**batch, key: mix(batch[key], share), "mixed": share}
