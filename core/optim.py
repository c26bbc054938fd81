"""Which parameters learn, by what rule and how fast: parameter groups, optimizers, learning-rate schedules."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from core.config import Section

Rule = tuple[str, Mapping[str, float]]
"""A regular expression for parameter names, and what it sets: `weight_decay`, `lr_scale` or both."""


class OptimConfig(Section):
    """How a model is optimized; epochs may be fractions wherever they are a duration inside the run."""

    name: Literal["sgd", "adam", "adamw"] = Field("adamw", description="optimizer; adam adds decay to the gradient")
    lr: float = Field(1e-3, ge=0, description="largest learning rate, for the whole batch of one optimizer step")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of Adam's two moments")
    eps: float = Field(1e-8, gt=0, description="added to Adam's denominator")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="Nesterov momentum in SGD")
    weight_decay: float = Field(0.0, ge=0, description="decay of weights; biases and other 1-D parameters have none")
    epochs: int = Field(10, ge=0, description="length of the run, warm-up included")
    warmup: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    warmup_start: float = Field(0.0, ge=0, le=1, description="fraction of lr at which the warm-up starts")
    schedule: Literal["constant", "cosine", "linear", "step", "multistep"] = Field(
        "cosine", description="what follows the warm-up"
    )
    decay_from: Literal["warmup", "start"] = Field(
        "warmup", description="cosine and linear: decay begins where the warm-up ends, or already at step 0"
    )
    final_lr: float = Field(0.0, ge=0, le=1, description="cosine and linear: fraction of lr at the end of the run")
    step_epochs: float = Field(0.0, ge=0, description="step: multiply by gamma every so many epochs")
    milestones: tuple[float, ...] = Field((), description="multistep: multiply by gamma at these epochs of the run")
    gamma: float = Field(0.1, gt=0, description="step and multistep: factor of one drop")
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the whole gradient; 0 does not clip")
    accumulate: int = Field(1, ge=1, description="micro-batches that make one optimizer step")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 keeps none")
    ema_warmup: float = Field(
        10.0, ge=0, description="the decay of update n is at most (1 + n) / (ema_warmup + n); 0 is no limit"
    )

    ema_per: Literal["step", "batch"] = Field(
        "step", description="batch: the average follows after every micro-batch, also where the weights stood still"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas should lie in [0, 1), not {list(self.betas)}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.warmup > self.epochs:
            raise ValueError(f"warmup ({self.warmup:g} epochs) is longer than the run ({self.epochs} epochs)")
        if self.schedule == "step" and not self.step_epochs:
            raise ValueError("schedule=step needs step_epochs, the epochs between two drops")
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule=multistep needs milestones, the epochs of its drops")
        if list(self.milestones) != sorted(self.milestones) or min(self.milestones, default=0) < 0:
            raise ValueError(f"milestones should be ascending epochs, not {list(self.milestones)}")
        return self


def groups(model: nn.Module, weight_decay: float, rules: Sequence[Rule] = ()) -> list[dict[str, Any]]:
    """Sort the trainable parameters of `model` into optimizer groups of equal `weight_decay` and `lr_scale`.

    Parameters of fewer than two dimensions do not decay. The first rule whose expression is found in a parameter's
    name has the last word on what it sets. Frozen parameters are left out.

    Raises:
        ValueError: for a rule that matches no parameter or sets something else, and for a model with nothing to train.
    """
    known = {"weight_decay", "lr_scale"}
    for pattern, values in rules:
        if unknown := set(values) - known:
            raise ValueError(f"the rule for {pattern!r} sets {sorted(unknown)}; a rule can set {sorted(known)}")
    named = dict(model.named_parameters())
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    idle = {pattern for pattern, _ in rules}
    for name, parameter in named.items():
        matching = [(pattern, values) for pattern, values in rules if re.search(pattern, name)]
        idle -= {pattern for pattern, _ in matching}
        options = {"weight_decay": weight_decay if parameter.ndim > 1 else 0.0, "lr_scale": 1.0}
        if matching:
            options |= matching[0][1]
        if parameter.requires_grad:
            found.setdefault((options["weight_decay"], options["lr_scale"]), []).append(parameter)
    if idle:
        raise ValueError(f"no parameter matches {sorted(idle)}; names look like {list(named)[:3] + list(named)[-3:]}")
    if not found:
        raise ValueError(f"nothing to train: all {len(named)} parameters of {type(model).__name__} are frozen")
    return [{"params": found[key], "weight_decay": key[0], "lr_scale": key[1]} for key in found]


def build(model: nn.Module, cfg: OptimConfig, rules: Sequence[Rule] = ()) -> torch.optim.Optimizer:
    """Make the optimizer of `cfg` for the trainable parameters of `model`, with one fused kernel where there is one."""
    params = groups(model, cfg.weight_decay, rules)
    for group in params:
        group["lr"] = cfg.lr * group["lr_scale"]
    every = [parameter for group in params for parameter in group["params"]]
    fused = all(parameter.is_floating_point() and parameter.device.type in ("cuda", "cpu") for parameter in every)
    if cfg.name == "sgd":
        # PyTorch has no fused SGD for the shards of FSDP.
        fused = fused and not any(hasattr(parameter, "full_tensor") for parameter in every)
        sgd = torch.optim.SGD(params, cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=fused)
        if cfg.momentum:
            # A zero buffer makes the same first step as none. The fused kernel needs it: it takes no mixture of present
            # and absent buffers, and a first step skipped for an overflow would leave uninitialized memory behind.
            for parameter in every:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    kind = torch.optim.AdamW if cfg.name == "adamw" else torch.optim.Adam
    return kind(params, cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=fused)


def lr_factor(step: int, cfg: OptimConfig, total: int, steps_per_epoch: float) -> float:
    """The fraction of `cfg.lr` at optimizer step `step` (from 0) of `total`.

    The warm-up is a straight line from `warmup_start` to the value of the schedule where the warm-up ends. Drops happen
    at the step nearest to their epoch.
    """
    warmup = cfg.warmup * steps_per_epoch
    if step >= warmup:
        return _after_warmup(step, cfg, total, steps_per_epoch)
    end = _after_warmup(warmup, cfg, total, steps_per_epoch)
    return cfg.warmup_start + (end - cfg.warmup_start) * step / warmup


def schedule(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _after_warmup(step: float, cfg: OptimConfig, total: int, steps_per_epoch: float) -> float:
    begin = cfg.warmup * steps_per_epoch if cfg.decay_from == "warmup" else 0.0
    progress = min((step - begin) / (total - begin), 1.0) if total > begin else 0.0
    match cfg.schedule:
        case "cosine":
            return cfg.final_lr + (1 - cfg.final_lr) * (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return cfg.final_lr + (1 - cfg.final_lr) * (1 - progress)
        case "step":
            return float(cfg.gamma ** (step // max(round(cfg.step_epochs * steps_per_epoch), 1)))
        case "multistep":
            return float(cfg.gamma ** sum(step >= round(epoch * steps_per_epoch) for epoch in cfg.milestones))
        case _:
            return 1.0
