"""Parameters and multiply-adds of a network: python -m projects.actionformer.model CONFIG [KEY=VALUE ...]."""

import sys

from core import config, summary
from projects.actionformer.config import Config
from projects.actionformer.model import build, example

if __name__ == "__main__":
    cfg = config.parse(Config)
    net = build(cfg.model, channels=cfg.data.input_dim, classes=cfg.data.classes, max_length=cfg.data.max_length)
    sys.stdout.write(f"{cfg.model.name}\n{summary.describe(net, example(net), depth=3)}\n")
