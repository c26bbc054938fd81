"""A small dataset, a small network with random weights, and their settings, for tests of whole commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core import config
from core.checkpoint import save_weights
from projects.actionformer import convert, weights
from projects.actionformer.config import Config
from projects.actionformer.model import Detector
from tests.actionformer.folders import entry, folder

CLASSES = ("Jump", "Run", "Throw")
LENGTHS = {"a": 40, "b": 12, "c": 90, "d": 33, "e": 64, "f": 7, "t": 20}


def database() -> dict[str, Any]:
    """Seven videos; t is of a test set without actions, f has none either."""
    actions = {
        "a": [("Jump", 0, 1.0, 4.0), ("Run", 1, 3.0, 9.0)],
        "b": [("Throw", 2, 0.5, 2.5)],
        "c": [("Jump", 0, 2.0, 3.0), ("Jump", 0, 10.0, 16.0), ("Run", 1, 20.0, 29.0)],
        "d": [("Run", 1, 0.0, 10.0)],
        "e": [("Throw", 2, 5.0, 6.0), ("Throw", 2, 5.0, 6.0)],
    }
    facts = {name: {"duration": (8 * length + 8) / 24, "fps": 24} for name, length in LENGTHS.items()}
    found = {name: entry("validation", actions.get(name, ()), **facts[name]) for name in "abcdef"}
    return found | {"t": entry("test", **facts["t"])}


def configured(root: Path, *overrides: str) -> Config:
    """The settings of a run below `root`, whose dataset is made on the first call."""
    if not (root / "config.yaml").exists():
        root.mkdir(parents=True, exist_ok=True)
        data = folder(root, database(), LENGTHS, eval_splits=("validation",), max_length=64)
        model = {
            "arch": (1, 1, 3), "width": (16,), "neck_width": 16, "head_width": 16, "heads": 2, "window": (9,),
            "prior": 0.3, "ranges": ((0, 4), (4, 8), (8, 16), (16, 10000)),
        }  # fmt: skip
        rest = {
            "postprocess": {"min_score": 0.001, "max_detections": 50},
            "loader": {"workers": 0},
            "precision": "fp32",
        }
        run = {"out": root / "run", "device": "cpu"}
        cfg = Config.model_validate({"data": data, "model": model, "run": run, **rest})
        (root / "config.yaml").write_text(config.dump(cfg))
    return config.load(Config, root / "config.yaml", overrides)


def network(cfg: Config) -> Detector:
    """The network of the settings, the same one on every call; its regression reaches further than a new one's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = convert.build(cfg).eval()
        with torch.no_grad():
            for name, value in net.named_parameters():
                if "offset_head" in name or ".cls_head." in name or "heatmap_head" in name:
                    value.add_(0.5 * torch.randn_like(value))
    return net


def saved(cfg: Config, path: Path) -> Path:
    """The network as a file that knows its classes."""
    save_weights(network(cfg), path, weights.about(cfg, CLASSES))
    return path
