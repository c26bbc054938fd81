"""Parameters and multiply-adds of the configured network: python -m projects.lta_memvit.model CONFIG [KEY=VALUE]."""

import sys

from core import config, summary
from projects.lta_memvit import data
from projects.lta_memvit.config import Config
from projects.lta_memvit.model import build

CLASSES = (117, 521)  # Ego4D v2, where no annotations are at hand to tell

if __name__ == "__main__":
    cfg = config.parse(Config)
    net = build(
        cfg.model, cfg.memory, task=cfg.task, classes=CLASSES, inputs=cfg.data.inputs, future=cfg.data.future,
        frames=cfg.clip.frames, crop=cfg.clip.crop,
    )  # fmt: skip
    sys.stdout.write(f"{cfg.model.backbone}, {CLASSES[0]} verbs and {CLASSES[1]} nouns\n")
    sys.stdout.write(f"{summary.describe(net, data.example(cfg), depth=3)}\n")
