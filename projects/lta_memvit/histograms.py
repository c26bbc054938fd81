"""How large weights and gradients are while a network learns: one by one for TensorBoard, by group for the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from torch import Tensor

from core.log import Log
from core.step import TrainStep

FILE = "histograms.jsonl"
LOWEST, HIGHEST, PER_DECADE = -12, 4, 4  # powers of ten of a gradient's magnitude, and bins for each
COLUMNS, CELL = 240, 4  # of a picture, at most; pixels of a bin


def watch(step: TrainStep, every: int, log: Log) -> None:
    """Look at every weight and its gradient before the optimizer's steps number 0, `every`, 2 `every`, ...

    Gradients are those of the whole batch over all processes, clipped if they are. They go to TensorBoard as `<name>`
    and `<name>.grad`, and their magnitudes by group into `histograms.jsonl` of the run. With `every` 0 nothing is
    watched, and training is the same to the last instruction; else the device is waited for at these steps only.
    """
    if every and log.main:
        step.optimizer.register_step_pre_hook(lambda *_: None if step.count % every else _look(step, log))


def group(name: str) -> str:
    """The part of the network that a weight belongs to: backbone.s3, backbone.blocks.12, decoder.head."""
    found = re.match(r"\w+\.\w+(\.\d+)?", name)
    return found[0] if found else name


def magnitudes(values: Tensor) -> Tensor:
    """How many values are in each quarter of a decade, int64 (bins,) on the CPU.

    Zeros and what is smaller count in the first bin, what is larger or no number at all in the last.
    """
    places = (values.detach().float().abs().log10().clamp(LOWEST, HIGHEST) - LOWEST) * PER_DECADE
    bins = (HIGHEST - LOWEST) * PER_DECADE
    places = places.nan_to_num(nan=bins).long().clamp(max=bins - 1)
    return torch.bincount(places.flatten(), minlength=bins).cpu()


def _look(step: TrainStep, log: Log) -> None:
    groups: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    for name, parameter in step.model.named_parameters():
        seen[name] = parameter
        if parameter.grad is not None:
            seen[f"{name}.grad"] = parameter.grad
            groups[group(name)] = groups.get(group(name), 0) + magnitudes(parameter.grad)
    log.histograms(step.count, seen)
    row = {"step": step.count, "gradients": {name: counts.tolist() for name, counts in groups.items()}}
    path = log.out / FILE
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(simplejson.dumps(row) + "\n")
    except OSError as error:
        log.warning(f"{path}: cannot be written ({error}); histograms are lost, the run goes on")


def pictures(path: Path) -> list[tuple[str, np.ndarray]]:
    """One picture for each group of a `histograms.jsonl`, (caption, uint8 (H, W, 3)): a column for each look, large
    gradients at the top, darker where there are more of them. Empty without a file.

    Steps that a resumed run took again count once.
    """
    rows = _rows(path)
    steps = sorted(rows)
    steps = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, COLUMNS).round().astype(int))] if steps else []
    names = list(dict.fromkeys(name for step in steps for name in rows[step]))
    empty = [0] * ((HIGHEST - LOWEST) * PER_DECADE)
    maps = {name: np.array([rows[step].get(name, empty) for step in steps], float).T for name in names}
    if not maps:
        return []
    used = np.flatnonzero(np.sum([counts.sum(1) for counts in maps.values()], 0))
    low, high = used[0] // PER_DECADE, used[-1] // PER_DECADE + 1
    found = []
    for name, counts in maps.items():
        shares = counts / np.maximum(counts.max(0), 1)
        cut = shares[low * PER_DECADE : high * PER_DECADE][::-1]
        wide = max(1, COLUMNS // len(steps)) * CELL
        ink = np.kron(cut**0.5, np.ones((2 * CELL, wide)))[..., None] * np.array([215.0, 150.0, 60.0])
        text = (
            f"{name}: 10^{high + LOWEST} at the top, 10^{low + LOWEST} at the bottom; steps {steps[0]} to {steps[-1]}"
        )
        found.append((text, (255 - ink).round().astype(np.uint8)))
    return found


def _rows(path: Path) -> dict[int, Mapping[str, Any]]:
    """The latest look at every step; a line that a full disk cut off is left out."""
    rows: dict[int, Mapping[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = simplejson.loads(line)
            rows[row["step"]] = row["gradients"]
        except (simplejson.JSONDecodeError, KeyError, TypeError):
            continue
    return rows
