"""What the tests of data share: a small dataset, settings that fit it, and a network that answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core import config, run
from core.run import Run
from projects.lta_memvit import demo
from projects.lta_memvit.config import Config
from projects.lta_memvit.demo import Size


def write_dataset(root: Path, size: Size) -> None:
    """`root/annotations/fho_lta_*.json` and `root/clips/<clip_uid>.mp4`."""
    demo.make(root / "annotations", root / "clips", size)


def settings(root: Path, out: Path, *more: str) -> list[str]:
    """The command line of a run on that dataset: windows of two inputs and three actions to forecast."""
    return [
        f"data.annotations={root / 'annotations'}", f"data.clips={root / 'clips'}", "data.inputs=2", "data.future=3",
        f"run.out={out}", f"features.folder={out.parent / 'features'}", "run.device=cpu", "run.log_every=1000",
        "clip.frames=8", "clip.rate=1", "clip.fps=8", "clip.crop=32", "clip.jitter=[32,40]", "loader.workers=0",
        "loader.batch_size=4", "model.backbone=slowfast_nano", "eval.batch_size=4", "optim.epochs=1",
        "optim.warmup_steps=0", *more,
    ]  # fmt: skip


def configured(root: Path, out: Path, *more: str) -> Config:
    return config.load(Config, None, settings(root, out, *more))


@contextmanager
def started(cfg: Config) -> Iterator[Run]:
    with run.start(cfg, cfg.run) as job:
        yield job
