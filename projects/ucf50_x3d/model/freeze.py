"""Which part of a network learns, and how the rest behaves meanwhile."""

from __future__ import annotations

import re
from typing import Literal, TypeVar

from torch import nn

from projects.ucf50_x3d.model.blocks import Head

M = TypeVar("M", bound=nn.Module)


def replace_head(model: M, classes: int) -> M:
    """Put a fresh last layer for other classes into the model, with PyTorch's default start values as the original."""
    _, head = find_head(model)
    like = head.proj.weight
    head.proj = nn.Linear(head.proj.in_features, classes, device=like.device, dtype=like.dtype)
    return model


def freeze(model: M, trainable: str = "head") -> M:
    """Let only a part of the model learn: "head" (the last layer), "all", or parameters whose name a regex finds.

    Raises: ValueError for an invalid expression and for one that finds nothing.
    """
    prefix, _ = find_head(model)
    pattern = {"head": "^" + re.escape(f"{prefix}.proj."), "all": ""}.get(trainable, trainable)
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"trainable={trainable!r} is no regular expression: {error}") from None
    names = [name for name, _ in model.named_parameters()]
    if not any(wanted.search(name) for name in names):
        raise ValueError(
            f"trainable={trainable!r} finds no parameter; use head, all, or a regular expression for names such as "
            f"{names[0]}, {names[len(names) // 2]}, {names[-1]}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(wanted.search(name)))
    return model


def frozen_eval(model: M) -> M:
    """Put layers that cannot learn into eval mode: frozen batch norms use their running statistics and keep them."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
    return model


def train(model: M, frozen_norm: Literal["eval", "reference"] = "eval") -> M:
    """Training mode, to be set at the start of every epoch.

    With "reference", batch norms of the frozen part are in training mode too, as in the original: they use the
    statistics of the batch, and their running ones drift away from those of the pretrained weights.
    """
    model.train()
    return model if frozen_norm == "reference" else frozen_eval(model)


def find_head(model: nn.Module) -> tuple[str, Head]:
    """The classifier and its name."""
    return next((name, module) for name, module in model.named_modules() if isinstance(module, Head))
