"""A run of the official code, or of the fork, goes on here: weights, average, optimizer and epoch of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import dist
from core.checkpoint import fetch, read_inert
from core.data import Loader
from core.step import TrainStep
from projects.actionformer import convert

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq", "step"), "sgd": ("momentum_buffer",)}


def resume(source: str | Path, step: TrainStep, loader: Loader) -> str:
    """Put an official `epoch_XXX.pth.tar` into a training step and its loader; what was taken over and what was not.

    Learning rates are those of the configuration at that epoch. The file knows neither the loss normalizer nor random
    states: these start as in a new run, in the official code as here. All processes call it.

    Raises:
        ValueError: when the file has no epoch, or weights or an optimizer of another network.
    """
    path = fetch(source)
    content = read_inert(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("epoch"), int):
        raise ValueError(
            f"{path}: no checkpoint of an official run, which has an epoch; start from it with init={path}"
        )
    epoch, notes = content["epoch"], ["the loss normalizer and random states start anew: official files lack them"]
    convert.load(step.model, path, weights="raw")
    if step.average is not None:
        averaged = "state_dict_ema" in content
        convert.load(step.average, path, weights="ema" if averaged else "raw")
        notes += [] if averaged else ["the moving average starts at the weights: the file has none"]
    optimizer = dist.full_state(step.model, step.optimizer)["optimizer"]
    saved = content.get("optimizer") or {}
    if saved.get("state"):
        optimizer["state"] = _moments(step.model, step.cfg.name, saved, path)
    else:
        notes.append("the optimizer's moments start at zero: the file has none")
    done, count = (content.get("scheduler") or {}).get("last_epoch"), epoch * step.steps_per_epoch
    if isinstance(done, int) and done != count:
        notes.append(f"the schedule goes on from step {count}, where {epoch} epochs end here; there it was {done}")
    average = None if step.average is None else dist.full_state(step.average)["model"]
    own = {"optimizer": optimizer, "average": average, "count": count, "averaged": count, "batch": 0, "micro": 0}
    step.load_state_dict(step.state_dict() | own | {"scaler": content.get("scaler") or {}})
    loader.load_state_dict({"epoch": epoch, "batch": 0})
    return f"goes on after epoch {epoch} of {path}: {'; '.join(notes)}"


def order(net: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the parameters that decay and of the others, each in the order of the official optimizer."""
    named = dict(net.named_parameters())
    decay = [name for name in sorted(named) if named[name].ndim > 1 and not name.endswith("rel_pe")]
    return decay, sorted(named.keys() - set(decay))


def _moments(net: nn.Module, kind: str, saved: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The optimizer's state by names, in the shapes of our parameters; the file numbers them through its two groups."""
    named, names = dict(net.named_parameters()), order(net)
    groups: Sequence[Mapping[str, Any]] = saved.get("param_groups", ())
    if [len(group["params"]) for group in groups] != [len(part) for part in names]:
        sizes = " + ".join(str(len(group["params"])) for group in groups)
        ours = " + ".join(str(len(part)) for part in names)
        raise ValueError(f"{path}: its optimizer has {sizes} parameters, this network {ours}; start with init={path}")
    found: dict[str, dict[str, Any]] = {}
    for name, number in zip(chain(*names), chain(*(group["params"] for group in groups)), strict=True):
        state = saved["state"].get(number)
        if state is None:
            continue  # it never had a gradient
        if any(state.get(key) is None for key in MOMENTS.get(kind, ())):
            raise ValueError(
                f"{path}: its optimizer keeps {', '.join(state)}, which is not {kind}; set optim.name as it was "
                f"trained, or start with init={path}"
            )
        found[name] = {
            key: torch.as_tensor(state[key], dtype=torch.float32).reshape(() if key == "step" else named[name].shape)
            for key in MOMENTS.get(kind, ())
        }
    return found
