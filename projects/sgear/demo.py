"""The whole project in a minute or two on two CPU cores, in a kitchen made on the spot.

    python -m projects.sgear.demo [--data-only] [--encoder FOLDER] [KEY=VALUE ...]

makes short videos in the layout of EPIC-KITCHENS-100, in which every action tells what comes next, and a feature
database of the same videos; then trains on frames, evaluates, predicts, trains on features, and fuses the two, all with
the real commands. Language prototypes come from the sentence encoder that is given, or else is found on this machine
(model hub's cache, or below $ACTION_SUITE_WEIGHTS), or else from words.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from core import config, video
from core.checkpoint import write_atomic
from core.demo import COLORS
from projects.sgear import encoders, eval, features, fuse, make_prototypes, predict, train
from projects.sgear.config import Config

CONFIG = Path(__file__).with_name("configs") / "demo.yaml"
FEATURES = CONFIG.with_name("demo_features.yaml")

VERBS = ("take", "put", "wash", "open")
NOUNS = ("cup", "knife", "pan", "lid", "bowl", "sponge")
PAIRS = tuple((verb, noun) for verb in range(len(VERBS)) for noun in range(len(NOUNS)))[:20]
SURPRISE = 0.1  # share of the actions that do not follow from the one before
TRAIN_VIDEOS, VAL_VIDEOS = 24, 8
FPS, SIZE, ACTIONS, GAP_S = 10, 32, 18, 0.2
CHANNELS = 32


class Action(NamedTuple):
    """One action of a made video, in seconds."""

    label: int
    start_s: float
    end_s: float


def script(name: str) -> list[Action]:
    """What happens in a video: a walk through a fixed order of all actions, with a surprise now and then."""
    rng = random.Random(name)
    order = random.Random("recipe").sample(range(len(PAIRS)), len(PAIRS))
    follows = dict(zip(order, [*order[1:], order[0]], strict=True))
    label, time_s, found = rng.choice(order), 0.6, []
    for _ in range(ACTIONS):
        end_s = round(time_s + rng.uniform(1.0, 1.6), 2)
        found.append(Action(label, time_s, end_s))
        time_s = round(end_s + GAP_S, 2)
        label = rng.choice(order) if rng.random() < SURPRISE else follows[label]
    return found


def names() -> dict[str, list[str]]:
    """The videos by part; the validation has a kitchen that training never sees."""
    train_names = [f"P{1 + k % 6:02d}_{101 + k // 6}" for k in range(TRAIN_VIDEOS)]
    val_names = [f"P{(1, 2, 7, 8)[k % 4]:02d}_{201 + k // 4}" for k in range(VAL_VIDEOS)]
    return {"train": train_names, "validation": val_names}


def make(root: Path, encoder: str = encoders.WORDS) -> None:
    """Write what is missing below `root`: annotations, videos, features, language prototypes."""
    official, rulstm = root / "external/epic-kitchens-100-annotations", root / "external/rulstm/RULSTM/data/ek100"
    _table(official / "EPIC_100_verb_classes.csv", [["id", "key"], *enumerate(VERBS)])
    _table(official / "EPIC_100_noun_classes.csv", [["id", "key"], *enumerate(NOUNS)])
    rows = [[k, verb, noun, f"{VERBS[verb]} {NOUNS[noun]}"] for k, (verb, noun) in enumerate(PAIRS)]
    _table(rulstm / "actions.csv", [["id", "verb", "noun", "action"], *rows])
    for part, videos in names().items():
        _table(official / f"EPIC_100_{part}.csv", [HEADER, *(row for name in videos for row in _rows(name))])
    test = [row[: HEADER.index("narration")] for name in names()["validation"] for row in _rows(name)]
    _table(official / "EPIC_100_test_timestamps.csv", [HEADER[: HEADER.index("narration")], *test])
    _table(official / "EPIC_100_unseen_participant_ids_validation.csv", [["participant_id"], ["P07"], ["P08"]])
    _table(official / "EPIC_100_tail_verbs.csv", [["verb"], [3]])
    _table(official / "EPIC_100_tail_nouns.csv", [["noun"], [4], [5]])

    for name in (name for videos in names().values() for name in videos):
        path = root / "DATA/videos/EpicKitchens100/videos_extension_ht256px" / name.split("_")[0] / f"{name}.MP4"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            video.write(path, pictures(name), FPS)
    database = root / "DATA/external/rulstm/RULSTM/ek100_data_full/rgb"
    if not database.exists():
        features.write(database, vectors())
    encodings = root / "encodings_epic100.pth"
    if not encodings.exists():
        make_prototypes.language("epic100", rulstm / "actions.csv", root, encoder=encoder)


HEADER = [
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class",
]  # fmt: skip


def _rows(name: str) -> Iterator[list[Any]]:
    for number, (label, start_s, end_s) in enumerate(script(name)):
        verb, noun = PAIRS[label]
        stamps = [f"00:00:{time_s:05.2f}" for time_s in (start_s, start_s, end_s)]
        frames = [int(time_s * FPS) for time_s in (start_s, end_s)]
        words = f"{VERBS[verb]} {NOUNS[noun]}"
        person = name.split("_")[0]
        yield [f"{name}_{number}", person, name, *stamps, *frames, words, VERBS[verb], verb, NOUNS[noun], noun]


def _table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    if not path.exists() or path.read_text() != buffer.getvalue():
        write_atomic(path, buffer.getvalue())


def pictures(name: str) -> torch.Tensor:
    """The frames of a video, uint8 (T,H,W,3): the noun is a color, the verb a place; between actions both are empty."""
    rng = np.random.default_rng(random.Random(f"pictures/{name}").getrandbits(64))
    actions = script(name)
    count = int((actions[-1].end_s + 0.4) * FPS)
    frames = rng.normal(110, 12, (count, SIZE, SIZE, 3)) + rng.uniform(-20, 20, 3)
    half = SIZE // 2
    for label, start_s, end_s in actions:
        verb, noun = PAIRS[label]
        top, left = half * (verb // 2), half * (verb % 2)
        color = np.array(COLORS[tuple(COLORS)[noun]])
        span = slice(int(np.ceil(start_s * FPS)), int(np.ceil(end_s * FPS)))
        frames[span, top + 1 : top + half - 1, left + 1 : left + half - 1] = color + rng.normal(0, 12, 3)
    return torch.from_numpy(frames.clip(0, 255).astype(np.uint8))


def vectors() -> Iterator[tuple[str, int, np.ndarray]]:
    """Features of every video at 30 frames a second: a direction for each action, in noise."""
    directions = np.random.default_rng(7).normal(0, 1, (len(PAIRS), CHANNELS))
    for name in (name for videos in names().values() for name in videos):
        rng = np.random.default_rng(random.Random(f"features/{name}").getrandbits(64))
        actions = script(name)
        for number in range(1, int(actions[-1].end_s * 30) + 1):
            time_s = (number - 1) / 30
            shown = [directions[label] for label, start_s, end_s in actions if start_s <= time_s < end_s]
            yield name, number, rng.normal(0, 0.5, CHANNELS) + sum(shown, np.zeros(CHANNELS))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Make the data; unless told to stop there, train, evaluate, predict, and fuse frames with features."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.sgear.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-only", action="store_true", help="make the data and stop")
    parser.add_argument("--encoder", help="folder of a sentence encoder, or words (default: one on this machine)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of configs/demo.yaml")
    args = parser.parse_args(argv)
    cfg = config.parse(Config, [str(CONFIG), *args.overrides])
    language = f"model.prototypes.language={cfg.data.root / 'encodings_epic100.pth'}"
    command = [str(CONFIG), language, *args.overrides]
    make(cfg.data.root, args.encoder or encoders.installed())
    if args.data_only:
        return {}
    train.main(command)
    results = eval.main(command)
    predict.main([*command, f"predict.input={_a_video(cfg)}"])
    beside = cfg.run.out.with_name(f"{cfg.run.out.name}_features")
    shared = [word for word in args.overrides if word.startswith(("data.root=", "optim.epochs=", "loader.workers="))]
    train.main([str(FEATURES), language, *shared, f"run.out={beside}"])
    fused = fuse.main([str(cfg.run.out), str(beside), "--search", "--out", str(cfg.run.out / "fused")])
    return results | {f"fused/{name}": value for name, value in fused.items()}


def _a_video(cfg: Config) -> Path:
    name = names()["validation"][-1]
    return cfg.data.root / "DATA/videos/EpicKitchens100/videos_extension_ht256px" / name.split("_")[0] / f"{name}.MP4"


if __name__ == "__main__":
    main()
