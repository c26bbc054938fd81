"""The whole project in about two minutes on two CPU cores, on clips made on the spot.

    python -m projects.lta_memvit.demo [--data-only] [KEY=VALUE ...]

makes a small dataset in Ego4D's layout: clips in which somebody follows recipes, a recipe being a round of actions of
a verb (how a thing moves) and a noun (its color). Who recognizes the last actions knows the next ones. Then, with the
real commands, recognition is trained; a forecaster on its frozen backbone, through the feature cache; it is compared
with the baseline that repeats what it recognizes; and one clip is answered without its annotations.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejson
import torch
from torch import Tensor

from core import config, demo, video
from core.checkpoint import write_atomic
from projects.lta_memvit import ego4d, eval, predict, train
from projects.lta_memvit.config import Config

CONFIG = Path(__file__).with_name("configs") / "demo.yaml"

VERBS = ("hold", "shake", "lift", "turn")
NOUNS = ("red", "yellow", "green", "blue", "purple")
RECIPES = (
    (("lift", "red"), ("shake", "red"), ("turn", "blue"), ("hold", "blue"), ("shake", "green"), ("lift", "green")),
    (("turn", "red"), ("hold", "yellow"), ("lift", "yellow"), ("shake", "purple"), ("turn", "purple")),
    (("hold", "green"), ("turn", "green"), ("shake", "blue"), ("lift", "purple"), ("hold", "red")),
)
SLIP = 0.05  # chance that a step of a recipe is left out

FPS, SEGMENT_S, SIDE = 8, 1.0, 48  # frames of a clip, length of an action, pixels


class Size(NamedTuple):
    """How much data is made: clips of each part, and actions in a clip."""

    train: int = 24
    val: int = 8
    test: int = 2
    actions: int = 28


def make(folder: Path, clips: Path, size: Size = Size()) -> None:  # noqa: B008 - a constant
    """Write the annotation files, and the clips that are missing."""
    for part, count in (("train", size.train), ("val", size.val), ("test", size.test)):
        entries = []
        for number in range(count):
            uid = f"{part}-{number:04d}"
            steps = follow(random.Random(uid), size.actions)
            entries += list(_entries(uid, steps, labeled=part != "test"))
            path = clips / f"{uid}.mp4"
            if not path.exists():
                video.write(path, _film(steps, random.Random(uid)), FPS)
        content = {"version": "demo", "date": "", "description": "made", "split": part, "clips": entries}
        _write(folder / ego4d.FILES[part], content)
    _write(folder / ego4d.TAXONOMY, {"verbs": VERBS, "nouns": NOUNS})


def follow(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Actions of one recipe, round after round, from anywhere in it and with slips."""
    recipe, step = rng.choice(RECIPES), rng.randrange(100)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        found.append(recipe[step % len(recipe)])
        step += 2 if rng.random() < SLIP else 1
    return found


def _entries(uid: str, steps: Sequence[tuple[str, str]], *, labeled: bool) -> Iterator[dict[str, object]]:
    """The steps as entries of an annotation file."""
    for number, (verb, noun) in enumerate(steps):
        start_s = number * SEGMENT_S
        entry: dict[str, object] = {
            "video_uid": f"video-{uid}", "clip_uid": uid, "clip_parent_start_sec": 0.0, "action_idx": number,
            "action_clip_start_sec": start_s, "action_clip_end_sec": start_s + SEGMENT_S,
        }  # fmt: skip
        if labeled:
            names = {"verb": verb, "noun": noun}
            entry |= names | {"verb_label": VERBS.index(verb), "noun_label": NOUNS.index(noun)}
        yield entry


def _write(path: Path, content: object) -> None:
    text = json.dumps(content)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def _film(steps: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[Tensor]:
    """Frames uint8 (H, W, 3) of all steps, one after the other."""
    noise = np.random.default_rng(rng.getrandbits(64))
    back = np.full((SIDE, SIDE, 3), noise.uniform(60, 160)) + noise.uniform(-15, 15, 3)
    for verb, noun in steps:
        start, count = noise.uniform(0, 1, 2), round(FPS * SEGMENT_S)
        for frame in range(count):
            picture = back + noise.normal(0, 5, (SIDE, SIDE, 1))
            picture[_thing(verb, frame / count, start)] = demo.COLORS[noun]
            yield torch.from_numpy(picture.round().clip(0, 255).astype(np.uint8))


def _thing(verb: str, progress: float, start: np.ndarray) -> np.ndarray:
    """Where the thing, a bar, is at a time from 0 to 1 of an action, bool (H, W)."""
    x, y, angle = start[0] * 0.4 + 0.3, start[1] * 0.4 + 0.3, 0.0
    if verb == "shake":
        x += 0.15 * (-1) ** round(progress * FPS * SEGMENT_S)
    elif verb == "lift":
        y = 0.85 - 0.7 * progress
    elif verb == "turn":
        angle = np.pi * progress
    down, right = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - np.array([y, x])[:, None, None]
    along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    inside: np.ndarray = (np.abs(along) < 0.24) & (np.abs(across) < 0.09)
    return inside


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Make the data; unless told to stop there, train, evaluate and predict. Returns the figures of the forecaster."""
    args = list(sys.argv[1:] if argv is None else argv)
    data_only = "--data-only" in args
    args = [str(CONFIG), *(arg for arg in args if arg != "--data-only")]
    cfg = config.parse(Config, args)
    make(cfg.data.annotations, cfg.data.clips)
    if data_only:
        return {}
    recognition = cfg.run.out.with_name(f"{cfg.run.out.name}_recognition")
    recognize = [*args, "task=recognition", f"run.out={recognition}", "model.freeze=false", "features.source=video"]
    train.main(recognize)
    weights = recognition / "checkpoints" / "best.safetensors"

    repeat = [*args, "model.aggregator=repeat", "data.inputs=1", "features.source=video", f"ckpt={weights}"]
    repeated = eval.main([*repeat, f"run.out={cfg.run.out.with_name(f'{cfg.run.out.name}_repeat')}"])

    forecast = [*args, f"model.init={weights}", "model.freeze=true", "features.source=cache"]
    train.main(forecast)
    results = eval.main(forecast)
    first = next(iter(cfg.data.clips.glob("test-*.mp4")))
    predict.main([*forecast, f"predict.input={first}", f"predict.recognizer={weights}"])
    figures = {"action ED, forecast": results["val/ed_action"], "action ED, repeated": repeated["val/ed_action"]}
    write_atomic(cfg.run.out / "demo.json", simplejson.dumps(figures) + "\n")
    sys.stdout.write("".join(f"{name}: {value:.3f}\n" for name, value in figures.items()))
    return results


if __name__ == "__main__":
    main()
