"""The whole project in about two minutes on two CPU cores, on data made on the spot.

    python -m projects.actionformer.demo [--data-only] [KEY=VALUE ...]

First synthetic feature sequences: train, evaluate, predict. Then the way of own data: small synthetic videos, features
with `extract`, annotations with `annotate`, training, and a prediction beside the playing video. All with the real
commands; KEY=VALUE goes to both trainings.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from core import config, demo, video
from core.checkpoint import write_atomic
from core.checkpoint.files import replacing
from projects.actionformer import annotate, eval, extract, predict, train
from projects.actionformer.annotations import Action, Video, write_annotations
from projects.actionformer.config import Config

CONFIGS = Path(__file__).with_name("configs")
SUBSETS = {"train": "training", "eval": "validation"}

CLASSES = ("dive", "jump", "run", "spin", "throw")
SEQUENCES = {"train": 80, "eval": 24}
STEP_S, FPS, LENGTH = 0.5, 16.0, 128

ACTIONS = ("blink", "fast")  # between stretches of stillness
VIDEOS = {"train": 28, "eval": 8}
VIDEO_FPS, SIZE = 12.5, (44, 44)


def make_features(cfg: Config) -> None:
    """Write synthetic feature sequences and their annotations, unless they are there."""
    folder, videos = cfg.data.features[0], []
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in SEQUENCES.items():
        for number in range(count):
            name = f"{part}_{number:02d}"
            values, about = demo.features(
                random.Random(name), classes=len(CLASSES), channels=cfg.data.input_dim[0], length=LENGTH, step_s=STEP_S
            )
            path = folder / f"{name}.npy"
            if not path.exists():
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, values.T)
            spans = zip(about["labels"], about["segments"], strict=True)
            actions = tuple(Action(CLASSES[label], label, *span) for label, span in spans)
            videos.append(Video(name, SUBSETS[part], about["duration_s"], FPS, None, actions))
    write_annotations(cfg.data.annotations, videos)


def make_videos(cfg: Config) -> Path:
    """Write synthetic videos, unless they are there, and a csv of their actions; returns the csv."""
    folder, rows = cfg.extract.videos, [("video", "start", "end", "label", "subset")]
    for part, count in VIDEOS.items():
        for number in range(count):
            name = f"{part}_{number:02d}"
            rng, frames, path, pieces = random.Random(f"plan/{name}"), 0, folder / f"{name}.mp4", []
            for motion in ("still", rng.choice(ACTIONS), "still", rng.choice(ACTIONS), "still"):
                length = rng.randint(25, 75)
                if motion in ACTIONS:
                    times = (f"{frames / VIDEO_FPS:.2f}", f"{(frames + length) / VIDEO_FPS:.2f}")
                    rows.append((path.name, *times, motion, SUBSETS[part]))
                if not path.exists():
                    pieces.append(demo.clip(motion, random.Random(f"{name}/{frames}"), frames=length, size=SIZE))
                frames += length
            if pieces:
                video.write(path, torch.cat(pieces), VIDEO_FPS)
    table = folder.parent / "actions.csv"
    write_atomic(table, "".join(",".join(row) + "\n" for row in rows))
    return table


def make_video_features(cfg: Config, arguments: Sequence[str]) -> None:
    """Videos, features and annotations of the second part, with the commands that anybody would use."""
    table = make_videos(cfg)
    extract.main(arguments)
    annotate.main([str(table), str(cfg.data.annotations), "--features", str(cfg.data.features[0])])


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Make the data; unless told to stop there, train, evaluate and predict; returns the figures of both parts."""
    given = list(sys.argv[1:] if argv is None else argv)
    overrides = [text for text in given if text != "--data-only"]
    first = [str(CONFIGS / "demo.yaml"), *overrides]
    second = [str(CONFIGS / "demo_videos.yaml"), *overrides]
    make_features(config.parse(Config, first))
    make_video_features(config.parse(Config, second), second)
    if "--data-only" in given:
        return {}
    figures: dict[str, float] = {}
    for part, arguments in (("features", first), ("videos", second)):
        train.main(arguments)
        figures |= {f"{part}/{name}": value for name, value in eval.main(arguments).items()}
        predict.main(arguments)
    return figures


if __name__ == "__main__":
    main()
