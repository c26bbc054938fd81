"""Parameters and multiply-adds of the configured network: python -m projects.ucf50_x3d.model CONFIG [KEY=VALUE ...]."""

import sys

from core import config, summary
from projects.ucf50_x3d import data
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.model import build

CLASSES = 50  # where no dataset is at hand to tell

if __name__ == "__main__":
    cfg = config.parse(Config)
    net = build(cfg.model, CLASSES)
    sys.stdout.write(f"{cfg.model.name}, {CLASSES} classes\n{summary.describe(net, data.example(cfg.clip), depth=3)}\n")
