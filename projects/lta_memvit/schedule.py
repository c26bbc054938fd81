"""What learns how fast: the learning rate of each step, and which weights decay."""

from __future__ import annotations

import math

from torch import nn

from core import optim
from projects.lta_memvit.config import OptimConfig


def lr_factor(step: int, cfg: OptimConfig, total: int, steps_per_epoch: float) -> float:
    """The fraction of `cfg.lr` at optimizer step `step` (from 0) of `total`.

    With `warmup_steps` it rises from 0 in a line over so many steps, whatever the length of the run, then follows the
    schedule over what is left: a run shorter than its warm-up never reaches `cfg.lr`, as in the original.
    """
    warmup = cfg.warmup_steps
    if not warmup:
        return optim.lr_factor(step, cfg, total, steps_per_epoch)
    if step < warmup:
        return step / warmup
    if cfg.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if cfg.schedule == "cosine" else 1 - progress
    return cfg.final_lr + (1 - cfg.final_lr) * max(0.0, left)


def decay(net: nn.Module, cfg: OptimConfig) -> list[optim.Rule]:
    """Rules for parameter groups: with "reference" all but batch norms decay, biases and other norms too."""
    if cfg.decay == "matrices":
        return []
    norms = any("bn" in name for name, _ in net.named_parameters())
    everything: optim.Rule = ("", {"weight_decay": cfg.weight_decay})
    return [("bn", {"weight_decay": 0.0}), everything] if norms else [everything]
