"""A user study: frames of several methods side by side in random order, and who was preferred how often.

    python -m projects.lego.study CONFIG OUT ours=FOLDER pix2pix=FOLDER [--count 100]     study.html and key.csv
    python -m projects.lego.study CONFIG OUT --votes votes.csv                            wins of each method

Raters see study.html, which does not tell the methods apart, and fill a table of `item,choice` (A, B, ...); key.csv
knows which was which. Share of the samples for which a method was preferred, as the paper reports.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import string
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core import config
from core.checkpoint import write_atomic
from core.report import Page
from projects.lego import data, generate
from projects.lego.config import Config


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Make the sheets, or count votes; returns the share of each method (empty when sheets were made)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration of the dataset")
    parser.add_argument("out", type=Path, help="folder of study.html and key.csv")
    parser.add_argument("methods", nargs="*", help="NAME=FOLDER of generated frames; KEY=VALUE of the configuration")
    parser.add_argument("--count", type=int, default=100, help="samples")
    parser.add_argument("--seed", type=int, default=0, help="which samples, and the order of the methods")
    parser.add_argument("--votes", type=Path, help="csv of item,choice")
    args = parser.parse_args(argv)
    overrides = [text for text in args.methods if "." in text.split("=")[0]]
    folders = dict(text.split("=", 1) for text in args.methods if text not in overrides)
    try:
        if args.votes:
            return count(args.out / "key.csv", args.votes)
        cfg = config.load(Config, args.config, overrides)
        sheets(cfg, {name: Path(folder) for name, folder in folders.items()}, args.out, args.count, args.seed)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    return {}


def sheets(cfg: Config, folders: Mapping[str, Path], out: Path, number: int, seed: int) -> None:
    """Write study.html and key.csv.

    Raises:
        ValueError: for fewer than two methods, or frames that a method lacks.
    """
    if len(folders) < 2:
        raise ValueError("a study compares two methods or more: NAME=FOLDER NAME=FOLDER")
    records = data.load(cfg.data, cfg.sample.split)
    drawn = random.Random(seed)
    chosen = drawn.sample(records, min(number, len(records)))
    letters = string.ascii_uppercase[: len(folders)]
    rows, cards = [], []
    for item, record in enumerate(chosen, 1):
        order = drawn.sample(sorted(folders), len(folders))
        paths = [generate.image_path(folders[name], record) for name in order]
        if absent := [path for path in paths if not path.is_file()]:
            raise ValueError(f"{absent[0]}: no such frame; generate all of {cfg.sample.split} by every method first")
        frames = [data.source_path(cfg.data.root, record), *paths]
        pictures = [np.array(data.read_image(path)) for path in frames]
        cards.append((f"{item}. {record.fields.get('action', '')}", pictures))
        rows.append([item, record.clip, record.action, *order])
    page = Page("Which frame shows the action best, in the same scene?", f"{len(chosen)} samples")
    page.text("For each sample write its number and the letter of the frame that shows the action best.")
    page.images("Samples", cards, heads=("before", *letters), max_side=320)
    page.save(out / "study.html")
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([["item", "clip", "action", *letters], *rows])
    write_atomic(out / "key.csv", lines.getvalue())
    sys.stdout.write(f"{out / 'study.html'} for the raters, {out / 'key.csv'} for you\n")


def count(key: Path, votes: Path) -> dict[str, float]:
    """The share of votes that each method won.

    Raises:
        ValueError: naming the line of a vote that the key does not know.
    """
    try:
        known = {row["item"]: row for row in csv.DictReader(key.open(encoding="utf-8"))}
        given = list(csv.DictReader(votes.open(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: no such file") from None
    wins: Counter[str] = Counter()
    for line, vote in enumerate(given, 2):
        row = known.get(vote.get("item", ""), {})
        method = row.get((vote.get("choice") or "").strip().upper())
        if method is None:
            raise ValueError(
                f"{votes}, line {line}: item {vote.get('item')!r} with choice {vote.get('choice')!r} is unknown"
            )
        wins[method] += 1
    methods = sorted({row[letter] for row in known.values() for letter in row if len(letter) == 1})
    shares = {name: wins[name] / max(len(given), 1) for name in methods}
    for name, share in sorted(shares.items(), key=lambda pair: -pair[1]):
        sys.stdout.write(f"{name:<24} {share:7.2%} of {len(given)} votes\n")
    return shares


if __name__ == "__main__":
    main()
