"""The official learning rates, by the official recursion, so that they agree to the last digit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from projects.actionformer.config import TrainConfig

SMALLEST = 1e-8  # where the cosine ends after a warm-up; without one it ends at 0


class OfficialSchedule:
    """The fraction of `cfg.lr` at each optimizer step, from 0, with `steps_per_epoch` steps in an epoch.

    Warm-up in W steps: 0 at the first, so that it changes no weight, then equal increments, lr at step W. A cosine
    follows to the last step of `cfg.epochs`, and swings back beyond it; or drops by gamma at the milestones.
    """

    def __init__(self, cfg: TrainConfig, steps_per_epoch: int) -> None:
        if cfg.schedule not in ("cosine", "multistep"):
            raise ValueError(
                f"the official recipe has schedules cosine and multistep, not {cfg.schedule}; set optim.recipe=plain"
            )
        self.lr = cfg.lr
        self.cosine = cfg.schedule == "cosine"
        self.warmup = round(cfg.warmup * steps_per_epoch)
        self.length = cfg.epochs * steps_per_epoch - self.warmup  # steps after the warm-up
        self.drops = [round(epoch * steps_per_epoch) - self.warmup for epoch in cfg.milestones]
        self.gamma = cfg.gamma
        self.rates = [0.0 if self.warmup else self.lr]

    def __call__(self, step: int) -> float:
        """The fraction at a step."""
        while len(self.rates) <= step:
            self.rates.append(self._next(len(self.rates), self.rates[-1]))
        return self.rates[step] / self.lr if self.lr else 0.0

    def _next(self, step: int, rate: float) -> float:
        """The rate of a step, given that of the step before."""
        if step < self.warmup:
            return rate + self.lr / (self.warmup - 1)
        if step == self.warmup:
            return self.lr
        after = step - self.warmup
        if not self.cosine:
            return rate * self.gamma ** self.drops.count(after)
        floor = SMALLEST if self.warmup else 0.0
        angle = math.pi / self.length
        turn = step - 1 - (self.length + self.warmup)
        if turn % (2 * self.length) == 0:
            return rate + (self.lr - floor) * (1 - math.cos(angle)) / 2
        return (1 + math.cos(angle * after)) / (1 + math.cos(angle * (after - 1))) * (rate - floor) + floor
