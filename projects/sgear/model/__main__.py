"""Parameters and multiply-adds of the configured network: python -m projects.sgear.model CONFIG [KEY=VALUE ...]."""

import sys

from core import config, summary
from projects.sgear import data
from projects.sgear.config import Config
from projects.sgear.model import Sgear

CLASSES = {
    "ek100": {"action": 3806, "verb": 97, "noun": 300},
    "ek55": {"action": 2513, "verb": 125, "noun": 352},
    "egtea": {"action": 106, "verb": 19, "noun": 51},
    "salads": {"action": 19},
    "breakfast": {"action": 48},
}  # no dataset has to be at hand

if __name__ == "__main__":
    cfg = config.parse(Config)
    classes = CLASSES[cfg.data.dataset]
    unused = cfg.model.prototypes.model_copy(update={"values": "visual"})
    net = Sgear(cfg.model.model_copy(update={"prototypes": unused}), cfg.data.frames, classes)
    sys.stdout.write(f"{cfg.model.kind} on {cfg.model.input}, {classes['action']} actions\n")
    sys.stdout.write(f"{summary.describe(net, data.example(cfg), depth=3)}\n")
