"""Both stages in a few minutes on two CPU cores, with tiny networks and frames made on the spot.

    python -m projects.lego.demo [--data-only] [KEY=VALUE ...]

A language model learns to describe actions (train_vlm), describes all of them and leaves its features (extract); the
diffusion stage learns from those (train), draws the validation part (generate) and is scored (eval). With --data-only
the language stage alone is run: what the diffusion stage needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from core import config
from projects.lego import eval, extract, generate, scenes, train, train_vlm
from projects.lego.config import Config

CONFIG = Path(__file__).with_name("configs") / "demo.yaml"


def make(cfg: Config) -> None:
    """Write the data and the networks to begin with, unless they are there."""
    root = cfg.data.root
    if (root / "ready").is_file():
        return
    root.mkdir(parents=True, exist_ok=True)
    scenes.write_pairs(root)
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
        "optim.epochs=30", "optim.lr=5e-3", "warmup=schedule", "strategy=ddp", "extract.temperature=0",
        "extract.longest=40", "extract.batch_size=24", f"extract.prompt={cfg.data.prompt}",
    ]  # fmt: skip
    if not (out / "vlm").is_dir():
        train_vlm.main(args)
    for split in ("train", "val"):
        extract.main([*args, f"extract.split={split}"])


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
    generate.main(args)
    return eval.main([*args, "eval.metrics=[psnr]", "eval.baseline=true"])


if __name__ == "__main__":
    main()
