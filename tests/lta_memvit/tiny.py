"""What the tests of data share: a small dataset, settings that fit it, and a network that answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core import config, run
from core.checkpoint import save_weights
from core.run import Run
from projects.lta_memvit import demo, model, weights
from projects.lta_memvit.config import Config
from projects.lta_memvit.data import Benchmark
from projects.lta_memvit.demo import Size
from projects.lta_memvit.model import Network


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


def network(cfg: Config, classes: tuple[int, int] = (4, 5), *, seed: int = 0) -> Network:
    """The network of a configuration, whose answers differ from sample to sample."""
    torch.manual_seed(seed)
    net = model.build(
        cfg.model, cfg.memory, task=cfg.task, classes=classes, inputs=cfg.data.inputs, future=cfg.data.future,
        frames=cfg.clip.frames, crop=cfg.clip.crop,
    )  # fmt: skip
    for name, value in net.named_parameters():
        if value.ndim == 1:  # norms of fresh blocks are 0, so that these say nothing
            torch.nn.init.uniform_(value, 0.5, 1.5) if name.endswith("weight") else torch.nn.init.normal_(value)
        if "head" in name and value.ndim == 2:
            torch.nn.init.normal_(value, std=0.5)
    return net.eval()


def saved(cfg: Config, path: Path, benchmark: Benchmark) -> Path:
    """Weights of such a network, as a run leaves them."""
    save_weights(network(cfg, benchmark.classes), path, weights.about(cfg, benchmark.taxonomy))
    return path
