"""Every dataset, every part, every way of reading: nothing at or after the start of the action - tau_a is seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projects.sgear import data, features
from projects.sgear.config import DataConfig

LENGTH_S, VIDEOS = 30, ("P01_01", "P02_02")


def _times() -> list[tuple[float, float]]:
    """Starts and ends; some starts lie exactly on a feature, some between two, some overlap, some are early."""
    return [(0.4, 2.0), (1.5, 3.0), (6.0, 7.0), (6.5 + 1 / 60, 8.0), (12.31, 14.0), (17 + 1 / 30, 20.0), (25.0, 29.0)]


def _rulstm(path: Path, *, id_of: Callable[[str, int], Any]) -> None:
    rows = [
        f"{id_of(video, k)}, {video}, {max(int(30 * start), 1)}, {int(30 * end)}, 0, {k % 2}, {k % 2}\n"
        for video in VIDEOS
        for k, (start, end) in enumerate(_times())
    ]
    path.write_text("".join(rows))


def _epic(root: Path, edition: int) -> dict[str, Any]:
    tables, names = root / f"external/rulstm/RULSTM/data/ek{edition}", root / "names"
    tables.mkdir(parents=True)
    names.mkdir()
    head = "id,verb,noun,action\n" if edition == 100 else "id,action,verb,noun\n"
    lines = ["0,0,0,take tap\n", "1,0,1,take cup\n"] if edition == 100 else ["0, take_tap,0,0\n", "1, take_cup,0,1\n"]
    (tables / "actions.csv").write_text(head + "".join(lines))
    stem, key = ("EPIC_100", "key") if edition == 100 else ("EPIC", "class_key")
    (names / f"{stem}_verb_classes.csv").write_text(f"id,{key}\n0,take\n")
    (names / f"{stem}_noun_classes.csv").write_text(f"id,{key}\n0,tap\n1,cup\n")
    for part in ("training", "validation"):
        _rulstm(tables / f"{part}.csv", id_of=lambda video, k: f"{video}_{k}" if edition == 100 else k)
    return {"dataset": f"ek{edition}", "table": "rulstm", "annotations": names}


def _egtea(root: Path) -> dict[str, Any]:
    tables = root / "external/rulstm/RULSTM/data/egtea"
    tables.mkdir(parents=True)
    (tables / "actions.csv").write_text("0, 0_0, Inspect/Read_recipe\n1, 0_1, Inspect/Read_cup\n")
    for part in ("training1", "validation1"):
        _rulstm(tables / f"{part}.csv", id_of=lambda video, k: k)
    return {"dataset": "egtea"}


def _labeled(root: Path, dataset: str) -> dict[str, Any]:
    """50 Salads or Breakfast: a label for every frame, at another rate than the features have."""
    base = root / "external/breakfast_50salad_anticipation_annotations"
    place, kind, fps = ("50s_splits", "50salads", 25.0) if dataset == "salads" else ("Breakfast", "Breakfast", 15.0)
    splits, labels = base / "cvpr18_data" / place, base / "annotations" / kind
    (labels / "groundTruth").mkdir(parents=True)
    splits.mkdir(parents=True)
    (labels / "mapping.txt").write_text("0 cut\n1 add\n2 SIL\n")
    name = "rgb-01-1.txt" if dataset == "salads" else "P03_cam01_P03_cereals.txt"
    for part in ("train", "test"):
        (splits / f"{part}.split1.bundle").write_text(f"#bundle.txt\n{name}\n")
    shown = ["SIL"] * round(LENGTH_S * fps)
    for k, (start, end) in enumerate(_times()):
        span = slice(round(start * fps), round(end * fps))
        shown[span] = [("cut", "add")[k % 2]] * len(shown[span])
    (labels / "groundTruth" / name).write_text("".join(f"{label}\n" for label in shown))
    return {"dataset": dataset, "fps": fps}


DATASETS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ek100": lambda root: _epic(root, 100),
    "ek55": lambda root: _epic(root, 55),
    "egtea": _egtea,
    "salads": lambda root: _labeled(root, "salads"),
    "breakfast": lambda root: _labeled(root, "breakfast"),
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_no_feature_of_any_dataset_reaches_the_limit(dataset: str, tmp_path: Path) -> None:
    """Feature n says n; it is on screen from (n - 1) / 30 to n / 30 s."""
    base: dict[str, Any] = {"root": tmp_path, "source": "features", "features": (str(tmp_path / "db"),)}
    base |= {"frames": 4, "rate": 2.0, "tau_o": 3.0, **DATASETS[dataset](tmp_path)}
    videos = sorted(set(data.load(DataConfig(**base)).segments("val").video.tolist()))
    features.write(tmp_path / "db", ((v, n, [float(n)]) for v in videos for n in range(1, 30 * LENGTH_S + 1)))
    seen = 0
    for tau_a in (0.25, 0.5, 1.0, 2.0):
        for strategy in ("last_clip", "random_clip"):
            benchmark = data.load(DataConfig(**base, tau_a=tau_a, strategy=strategy, dynamic=True))
            for part, train in (("train", True), ("val", False)):
                dataset_of = benchmark.dataset(part, train=train)
                for index in range(len(dataset_of)):
                    sample = dataset_of.sample(index, random.Random(index))
                    row = sample["index"]
                    limit_s = float(dataset_of.clips.segments.start_s[row]) - tau_a
                    latest = int(sample["features"].max())
                    assert latest / 30 <= limit_s + 1e-6, (tau_a, strategy, part, index)
                    assert sample["margin_s"] == pytest.approx(limit_s - latest / 30, abs=1e-6)
                    seen += 1
                starts = np.asarray(dataset_of.clips.dropped.start_s, dtype=float)
                assert (starts - tau_a < 1 / 30 + 1e-6).all(), "only what has nothing before its limit is dropped"
    assert seen >= 8 * 2 * 6
