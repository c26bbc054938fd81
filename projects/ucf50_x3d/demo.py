"""The whole project in a minute or two on two CPU cores, on clips made on the spot.

    python -m projects.ucf50_x3d.demo [--data-only] [KEY=VALUE ...]

makes a small dataset in UCF50's layout whose classes are motions (no single frame tells them apart), trains, evaluates
and predicts with the real commands.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from core import config, demo
from projects.ucf50_x3d import data, eval, predict, train
from projects.ucf50_x3d.config import Config

CONFIG = Path(__file__).with_name("configs") / "demo.yaml"
MOTIONS = ("blink", *demo.SPEEDS)
GROUPS, CLIPS = 15, 6


def make(root: Path) -> None:
    """Write the clips that are missing below `root`: `<Motion>/v_<Motion>_gGG_cCC.mp4`."""
    for motion in MOTIONS:
        folder = root / motion.capitalize()
        folder.mkdir(parents=True, exist_ok=True)
        for group in range(1, GROUPS + 1):
            for clip in range(1, CLIPS + 1):
                path = folder / f"v_{motion.capitalize()}_g{group:02d}_c{clip:02d}.mp4"
                if not path.exists():
                    demo.video(path, motion, random.Random(path.name), frames=24, size=(44, 44))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Make the data; unless told to stop there, train, evaluate and predict."""
    args = list(sys.argv[1:] if argv is None else argv)
    data_only = "--data-only" in args
    args = [str(CONFIG), *(arg for arg in args if arg != "--data-only")]
    cfg = config.parse(Config, args)
    make(cfg.data.root)
    if data_only:
        return {}
    train.main(args)
    results = eval.main(args)
    first = data.load(cfg.data).dataset("test", cfg.clip).ids[0]
    predict.main([*args, f"predict.input={cfg.data.root / first}"])
    return results


if __name__ == "__main__":
    main()
