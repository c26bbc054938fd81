"""What the tests of training share: a dataset and settings with which a run takes a second, and a look into a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core import config, demo, run
from core.run import Run
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.model import X3D

CLASSES = ("Fast", "Still")


def write_dataset(root: Path, groups: int = 4, clips: int = 2) -> None:
    """`root/<Class>/v_<Class>_gGG_cCC.mp4`; a grouped split makes 8 train, 4 val and 4 test clips of the default."""
    for name in CLASSES:
        for group in range(1, groups + 1):
            for clip in range(1, clips + 1):
                path = root / name / f"v_{name}_g{group:02d}_c{clip:02d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                demo.video(path, name.lower(), random.Random(path.name), frames=12, size=(44, 44))


def settings(root: Path, out: Path, *more: str) -> list[str]:
    """The command line of a tiny run: 3 batches an epoch, 2 epochs."""
    return [
        f"data.root={root}", f"run.out={out}", "run.device=cpu", "run.log_every=1000", "clip.frames=8", "clip.crop=40",
        "model.name=x3d_nano", "loader.batch_size=3", "loader.workers=0", "optim.epochs=2", "optim.lr=0.05", *more,
    ]  # fmt: skip


def configured(root: Path, out: Path, *more: str) -> Config:
    return config.load(Config, None, settings(root, out, *more))


@contextmanager
def started(cfg: Config) -> Iterator[Run]:
    with run.start(cfg, cfg.run) as job:
        yield job


def nano(classes: int = 2, *, seed: int = 0, dropout: float = 0.5) -> X3D:
    """A network whose blocks all say something (fresh ones add nothing)."""
    torch.manual_seed(seed)
    net = X3D("nano", classes, dropout=dropout)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.5)
    return net
