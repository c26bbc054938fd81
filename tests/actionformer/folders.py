"""Small datasets on disk, for tests of reading, checking and training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from projects.actionformer.config import DataConfig

Actions = Sequence[tuple[str, int, float, float]]


def entry(subset: str, actions: Actions = (), **facts: Any) -> dict[str, Any]:
    """One video of an annotation file."""
    rows = [{"label": label, "label_id": k, "segment": [start, end]} for label, k, start, end in actions]
    return {"subset": subset, "annotations": rows, **facts}


def write_annotations(root: Path, database: Mapping[str, Any]) -> Path:
    path = root / "annotations.json"
    path.write_text(json.dumps({"database": database}))
    return path


def rows(length: int, channels: int, start: float = 0.0) -> np.ndarray:
    """Features whose values say where they are: row t, channel c is start + t + c / 100."""
    values = start + np.arange(length)[:, None] + np.arange(channels) / 100
    return values.astype(np.float32)


def folder(root: Path, database: Mapping[str, Any], lengths: Mapping[str, int], **keys: Any) -> DataConfig:
    """An `own` dataset with npy features of 4 channels, 8 frames apart, windows of 16, 24 frames a second."""
    (root / "features").mkdir(exist_ok=True)
    for name, length in lengths.items():
        np.save(root / "features" / f"{name}.npy", rows(length, 4))
    given = {
        "dataset": "own", "annotations": write_annotations(root, database), "features": (root / "features",),
        "input_dim": (4,), "classes": 3, "stride_frames": 8, "window_frames": 16, "fps": 24, "max_length": 64,
    }  # fmt: skip
    return DataConfig(**{**given, **keys})
