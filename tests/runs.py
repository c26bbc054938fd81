"""A look into what a run left behind, and whether it is to the last bit what another run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import simplejson
import torch

TIMED = ("time", "samples_per_s", "wait_share")


def rows(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock says."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in simplejson.loads(line).items() if key not in TIMED} for line in lines]


def newest(out: Path) -> dict[str, Any]:
    """The newest checkpoint, as plain containers."""
    path = max((out / "checkpoints").glob("step_*.pt"))
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def same(a: Any, b: Any) -> bool:
    """Whether two structures of containers, tensors and numbers are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
