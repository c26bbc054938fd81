"""The published learning-rate schedules and the groups of parameters they act on.

They differ from core's in small ways that results depend on: the warm-up climbs towards the rate and never reaches it,
the cosine starts where the warm-up ended and is 0 after its end, and the schedule moves with every batch, also with
those that only accumulate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from core import dist, optim
from core.optim import Rule
from projects.sgear.config import SgearOptim


def scaled(cfg: SgearOptim, batch_size: int) -> SgearOptim:
    """The configuration with its rates multiplied as `scale_lr` asks."""
    factor = {"none": 1, "processes": dist.world().size, "samples": dist.world().size * batch_size}[cfg.scale_lr]
    modules = tuple(part.model_copy(update={"lr": part.lr * factor}) for part in cfg.modules)
    return cfg.model_copy(update={"lr": cfg.lr * factor, "modules": modules})


def factor(iteration: int, cfg: SgearOptim, per_epoch: int) -> float:
    """The fraction of `cfg.lr` used for batch number `iteration` (from 0) of epochs of `per_epoch` batches."""
    if cfg.schedule not in ("cosine", "multistep"):
        return optim.lr_factor(iteration, cfg, cfg.epochs * per_epoch, per_epoch)
    warmup = max(round(cfg.warmup * per_epoch), 1)
    start = cfg.warmup_start if warmup > 1 else 1.0
    climb = start + (1 - start) * min(iteration, warmup - 1) / warmup
    step = iteration - (warmup - 1)  # of the schedule behind the warm-up, which takes its first step at 1
    if step <= 0:
        return climb
    if cfg.schedule == "cosine":
        length = (cfg.decay_epochs or cfg.epochs - cfg.warmup) * per_epoch
        if step >= length:
            return 0.0
        return cfg.final_lr + (climb - cfg.final_lr) * (1 + math.cos(math.pi * step / length)) / 2
    own = max(cfg.milestone_warmup * per_epoch, 1)
    ramp = cfg.milestone_warmup_start + (1 - cfg.milestone_warmup_start) * min(step / own, 1.0)
    return float(ramp * cfg.gamma ** sum(step >= int(epoch * per_epoch) for epoch in cfg.milestones))


def per_step(cfg: SgearOptim, batches: int, plateau: Plateau) -> Callable[[int], float]:
    """The factor of an optimizer step: that of the last batch that it is made of, in epochs of `batches` batches."""
    steps = math.ceil(batches / cfg.accumulate)

    def at(step: int) -> float:
        epoch, within = divmod(step, steps)
        last = epoch * batches + min((within + 1) * cfg.accumulate, batches) - 1
        return factor(last, cfg, batches) * plateau.scale

    return at


class Plateau:
    """Multiplies the rate by `gamma` when a metric has not risen for more than `patience` evaluations (0: never)."""

    def __init__(self, patience: int, gamma: float) -> None:
        self.patience, self.gamma = patience, gamma
        self.scale, self.best, self.waited = 1.0, -math.inf, 0

    def see(self, value: float) -> None:
        """One more evaluation."""
        rose = value > self.best
        self.best = max(self.best, value)
        self.waited = 0 if rose else self.waited + 1
        if self.patience and self.waited > self.patience:
            self.scale, self.waited = self.scale * self.gamma, 0

    def state_dict(self) -> dict[str, float]:
        """Where it stands."""
        return {"scale": self.scale, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.scale, self.best, self.waited = state["scale"], state["best"], int(state["waited"])


def rules(net: nn.Module, cfg: SgearOptim) -> list[Rule]:
    """Rules for `core.optim.groups`: rate and decay of each part; biases and batch norms decay by their share of it.

    Freezes what has rate 0. As released, every other parameter decays, norms included.

    Raises: ValueError for a part that the network lacks, or a rate of 0 for all with others for parts.
    """
    if cfg.modules and not cfg.lr:
        raise ValueError("optim.lr is 0 and optim.modules has rates of its own; give the others a rate of 0 as parts")
    names = [name for name, _ in net.named_parameters()]
    found: list[Rule] = []
    parts = [(part.module, part.lr, part.weight_decay) for part in cfg.modules] + [("", cfg.lr, cfg.weight_decay)]
    for module, lr, decay in parts:
        within = rf"^{re.escape(module)}(?=\.|$)" if module else ""
        if not any(re.search(within, name) for name in names):
            raise ValueError(f"optim.modules names {module!r}; the model has {', '.join(_tops(names))}")
        if module and lr == 0:
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and not re.search(within, name))
        scale = {"lr_scale": lr / cfg.lr if cfg.lr else 1.0}
        biases = rf"{within}.*(bias$|\.bn)"
        if any(re.search(biases, name) for name in names):
            found.append((biases, {"weight_decay": decay * cfg.bias_decay_scale, **scale}))
        found.append((within, {"weight_decay": decay, **scale}))
    return found


def _tops(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in names))
