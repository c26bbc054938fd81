"""Golden cases of networks: their inputs, and what their READMEs say about how they were run."""

from __future__ import annotations

import ast
import re

import fill
import numpy as np
import torch
from torch import Tensor

from tests.support import Case


def pixels(key: str, frames: int, side: int = 224) -> Tensor:
    """The clip of that name, about N(0, 1): (3, frames, side, side)."""
    return torch.from_numpy(50 * fill.array(key, (3 * frames * side * side,))).view(3, frames, side, side)


def windows(tag: str, batch: int, inputs: int, frames: int, side: int = 224) -> Tensor:
    """The clips `tag.b<b>.n<n>`: (batch, inputs, 3, frames, side, side)."""
    names = [[f"{tag}.b{b}.n{n}" for n in range(inputs)] for b in range(batch)]
    return torch.stack([torch.stack([pixels(name, frames, side) for name in row]) for row in names])


def said(case: Case, pattern: str, default: str = "") -> str:
    """The first group of a regular expression in the README of a case."""
    match = re.search(pattern, (case.path / "README.md").read_text())
    return match[1] if match else default


def steps(case: Case) -> list[list[str] | None]:
    """The videos of each step of a sequence; None where its memory is cleared."""
    lines = re.findall(r"^- (?:step \d+: (\[.*\])|(clear))$", (case.path / "README.md").read_text(), re.MULTILINE)
    return [None if clear else ast.literal_eval(names) for names, clear in lines]


def stats(values: Tensor) -> np.ndarray:
    """Mean, standard deviation and largest magnitude, as the cases hold them."""
    array = values.detach().numpy().astype(np.float64)
    return np.array([array.mean(), array.std(ddof=1), np.abs(array).max()])
