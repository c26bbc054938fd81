"""What tests share: golden cases and the table that says how far we are from them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED = ROOT.parent / "shared"  # real clips and annotations that developers have and users do not

sys.path.insert(0, str(GOLDEN))
import fill  # noqa: E402


@dataclass
class Case:
    """One golden case: numbers measured by running the official code."""

    path: Path

    @property
    def expected(self) -> dict[str, np.ndarray]:
        with np.load(self.path / "expected.npz", allow_pickle=False) as file:
            return dict(file)

    def json(self, name: str = "expected.json") -> Any:
        return json.loads((self.path / name).read_text())

    def weights(self, salt: str = "") -> dict[str, torch.Tensor]:
        """The official state-dict of the case, regenerated from its key names."""
        return fill.state_dict(self.json("keys.json"), salt)

    def noise(self, name: str, shape: tuple[int, ...], salt: str = "") -> torch.Tensor:
        """The case's input: about N(0, 1), float32, scaled before the cast as the official run did."""
        scale = np.sqrt(np.prod(shape[1:]))
        return torch.from_numpy((fill.array(name, shape, "float64", salt) * scale).astype(np.float32))


def cases(project: str, pattern: str = "*") -> list[Case]:
    """All golden cases of a project whose folder matches; new folders are found without touching a test."""
    return [Case(path) for path in sorted((GOLDEN / project).glob(pattern)) if path.is_dir()]


@dataclass
class Row:
    """One comparison of a parity table."""

    case: str
    tensor: str
    error: float
    allowed: float
    where: tuple[int, ...]
    ok: bool


@dataclass
class Parity:
    """Compares tensors with golden values; every comparison becomes a row, failures are raised together."""

    case: str
    rows: list[Row] = field(default_factory=list)

    def check(self, tensor: str, actual: Any, expected: Any, *, atol: float = 0.0, rtol: float = 0.0) -> None:
        """Record |actual - expected| <= atol + rtol |expected|, the worst element and its index."""
        a = np.asarray(actual.detach().cpu() if isinstance(actual, torch.Tensor) else actual, dtype=np.float64)
        e = np.asarray(expected, dtype=np.float64)
        if a.shape != e.shape:
            raise AssertionError(f"{self.case}/{tensor}: shape {a.shape}, the golden value has {e.shape}")
        if a.size == 0:
            self.rows.append(Row(self.case, tensor, 0.0, atol, (), True))
            return
        difference = np.where(np.isnan(a) & np.isnan(e), 0.0, np.abs(a - e))
        excess = difference - (atol + rtol * np.abs(e))
        where = tuple(int(i) for i in np.unravel_index(np.nanargmax(excess), excess.shape))
        error, allowed = float(difference[where]), float(atol + rtol * abs(e[where]))
        self.rows.append(Row(self.case, tensor, error, allowed, where, bool(error <= allowed)))

    def finish(self) -> None:
        """Raise one AssertionError that lists every comparison out of tolerance."""
        bad = [row for row in self.rows if not row.ok]
        if bad:
            raise AssertionError("out of tolerance:\n" + table(bad))


def table(rows: list[Row]) -> str:
    """A text table of comparisons."""
    width = max(len(f"{row.case}/{row.tensor}") for row in rows)
    lines = [f"{'tensor':<{width}}  {'largest error':>13}  {'allowed':>9}  where"]
    for row in rows:
        mark = "" if row.ok else "  FAIL"
        name = f"{row.case}/{row.tensor}"
        lines.append(f"{name:<{width}}  {row.error:>13.3g}  {row.allowed:>9.3g}  {list(row.where)}{mark}")
    return "\n".join(lines)
