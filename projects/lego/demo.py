"""Both stages in a few minutes on two CPU cores, with tiny networks and frames made on the spot.

    python -m projects.lego.demo [--data-only] [KEY=VALUE ...]

A language model learns to describe actions (train_vlm), describes all of them and leaves its features (extract); the
diffusion stage learns from those (train), draws the validation part (generate) and is scored (eval). In the end what is
drawn has to be nearer to the true frames than the frames before, and than what is drawn for other words: in rooms that
neither network has seen. With --data-only the language stage alone is run: what the diffusion stage needs.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from core import config
from core.metrics.image import psnr
from projects.lego import data, eval, extract, generate, scenes, train, train_vlm
from projects.lego.config import Config

CONFIG = Path(__file__).with_name("configs") / "demo.yaml"


def make(cfg: Config) -> None:
    """Write the data and the networks to begin with, unless they are there."""
    root = cfg.data.root
    if (root / "ready").is_file():
        return
    root.mkdir(parents=True, exist_ok=True)
    scenes.write_pairs(root, height=cfg.data.size[0])
    scenes.write_merges(root / "merges.txt")
    scenes.write_stable_diffusion(root / "sd.ckpt", cfg)
    texts = [text for change in scenes.CHANGES for text in (change.label, change.description)]
    scenes.write_language_model(root / "llava", texts)
    (root / "ready").touch()


def language_stage(cfg: Config) -> None:
    """Train the language model, and let it describe both parts of the data."""
    root, out = cfg.data.root, cfg.run.out.with_name(f"{cfg.run.out.name}_vlm")
    args = [
        f"run.out={out}", f"run.threads={cfg.run.threads}", f"run.device={cfg.run.device}", "run.log_every=10",
        f"data.root={root}", f"model.init={root / 'llava'}", "loader.batch_size=16", "loader.workers=0",
        "optim.epochs=18", "optim.lr=5e-3", "optim.schedule=cosine", "optim.warmup=1", "warmup=schedule",
        "strategy=ddp", "extract.temperature=0", "extract.longest=32", "extract.batch_size=24",
        f"extract.prompt={cfg.data.prompt}",
    ]  # fmt: skip
    if not (out / "vlm").is_dir():
        train_vlm.main(args)
    for split in ("train", "val"):
        extract.main([*args, f"extract.split={split}"])


def judge(cfg: Config, images: Path) -> dict[str, float]:
    """PSNR towards the true frames of what was drawn, of the frames before, and of what was drawn for the other actions
    of the same room.

    Raises: ValueError when the drawn frames are not clearly the nearest (95 % intervals of the differences).
    """
    found: dict[str, list[float]] = {"psnr": [], "psnr_source": [], "psnr_other_words": []}
    records = data.load(cfg.data, cfg.sample.split)
    for _, room in itertools.groupby(records, lambda record: record.clip):
        actions = list(room)
        drawn, before, true = (
            torch.stack([eval.pixels(path(record)).permute(2, 0, 1) for record in actions])
            for path in (
                partial(generate.image_path, images),
                partial(data.source_path, cfg.data.root),
                partial(data.target_path, cfg.data.root),
            )
        )
        turns = [drawn.roll(shift, 0) for shift in range(len(actions))]
        near = torch.stack([psnr(frames, true, data_range=255) for frames in (before, *turns)])
        found["psnr_source"] += near[0].tolist()
        found["psnr"] += near[1].tolist()
        found["psnr_other_words"] += near[2:].mean(0).tolist()
    for other in ("psnr_source", "psnr_other_words"):
        low, high = eval.interval(np.subtract(found["psnr"], found[other]))
        sys.stdout.write(f"drawn frames are {low:.1f} to {high:.1f} dB nearer than {other.removeprefix('psnr_')}\n")
        if low <= 0:
            raise ValueError(f"the drawn frames are not clearly nearer to the true ones than {other}: {images}")
    return {name: float(np.mean(values)) for name, values in found.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run both stages, draw and score; returns the scores."""
    args = list(sys.argv[1:] if argv is None else argv)
    data_only = "--data-only" in args
    args = [str(CONFIG), *(arg for arg in args if arg != "--data-only")]
    cfg = config.parse(Config, args)
    make(cfg)
    language_stage(cfg)
    if data_only:
        return {}
    train.main(args)
    images = generate.main(args)
    scores = eval.main([*args, "eval.metrics=[psnr]", "eval.baseline=true"])
    return scores | judge(cfg, images)


if __name__ == "__main__":
    main()
