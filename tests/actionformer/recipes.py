"""The files of an end-to-end golden case, made from its recipe: features, annotations, an official checkpoint."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support import Case, fill

OWN = ("annotations.json", "case.json", "constants.json", "keys.json")


def save(path: Path, rows: np.ndarray) -> None:
    """Features as the official layouts store them: by the ending of the name."""
    match path.suffix:
        case ".npz":
            np.savez(path, feats=rows)
        case ".pt":
            torch.save(torch.from_numpy(rows), path)
        case _:
            np.save(path, rows)


def state(case: Case, salt: str) -> dict[str, torch.Tensor]:
    """Official weights of a case with its constants on top; "init" is what the fork's constructor computes."""
    weights = case.weights(salt)
    path = case.path / "constants.json"
    for key, value in (case.json("constants.json") if path.exists() else {}).items():
        own = weights[key]
        if value != "init":
            weights[key] = torch.full_like(own, value)
        elif key.endswith("inv_freq"):
            weights[key] = 10_000.0 ** (-torch.arange(0, 2 * len(own), 2, dtype=torch.float32) / (2 * len(own)))
        else:
            weights[key] = torch.arange(len(own), dtype=own.dtype)
    return weights


def write(case: Case, root: Path) -> Path:
    """Everything that the official eval command needs, below `root`; returns the folder of checkpoints."""
    recipe: Any = case.json("case.json")
    sources = recipe["features"] if isinstance(recipe["features"], list) else [recipe["features"]]
    for features in sources:  # side by side, such as Omnivore and EgoVLP, each with its own name or salt
        folder = root / features["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        for video, length in features["videos"]:
            name = features.get("name", "{video}.bias").format(video=video)
            salt = features.get("salt", recipe["salt_ema"])
            rows = 10 * fill.array(name, (length, features["channels"]), "float32", salt)
            save(folder / f"{features['prefix']}{video}{features['ext']}", rows.astype(features["dtype"]))
    annotations = root / recipe["annotation_file"]
    annotations.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(case.path / "annotations.json", annotations)
    for scores in case.path.iterdir():  # whatever else lies there is of the data set: external scores
        if scores.suffix in (".json", ".pkl") and scores.name not in OWN:
            shutil.copy(scores, annotations.parent)
    checkpoints = root / "ckpt"
    checkpoints.mkdir()
    average, raw = (state(case, recipe[salt]) for salt in ("salt_ema", "salt_state_dict"))
    for epoch, weights in ((recipe["epoch"], average), (5, raw)):
        torch.save(
            {
                "epoch": epoch,
                "state_dict": raw,
                "scheduler": {"milestones": Counter([3, 5])},  # as an official multistep run saves it
                "optimizer": {},
                "state_dict_ema": weights,
            },
            checkpoints / f"epoch_{epoch:03d}.pth.tar",
        )
    return checkpoints
