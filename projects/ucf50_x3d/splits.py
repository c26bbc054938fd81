"""Annotation files of a folder-per-class dataset, and the ways to split it.

    python -m projects.ucf50_x3d.splits ROOT OUT [--protocol random] [--seed 42] [--held-out 0.3]

writes the five csv files of the original project (`actions_label`, `annotations`, `train_`, `val_` and
`test_annotations`). With `--protocol random` they equal the original's byte for byte; that split leaks (below).
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from core.checkpoint import write_atomic

VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".ts", ".3gp", ".wmv"})
SPLITS = ("train", "val", "test")
Protocol = Literal["grouped", "fold", "random", "files", "lists"]

_GROUP = re.compile(r"_g(\d+)_c\d+")


@dataclass(frozen=True)
class Row:
    """One clip of an annotation file: `root/action/video_name` shows class number `label`."""

    video_name: str
    action: str
    label: int

    @property
    def group(self) -> str:
        """The source video the clip was cut from (`Class/g07`), the clip itself where the name does not tell."""
        number = group_number(self.video_name)
        return f"{self.action}/{self.video_name}" if number is None else f"{self.action}/g{number:02d}"


@dataclass(frozen=True)
class Split:
    """The clips of a dataset by split, with the class names in label order."""

    classes: tuple[str, ...]
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    test: tuple[Row, ...]

    def __getitem__(self, name: str) -> tuple[Row, ...]:
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}; there are {', '.join(SPLITS)}")
        rows: tuple[Row, ...] = getattr(self, name)
        return rows

    def only(self, classes: Collection[str]) -> Split:
        """The clips of these classes, which are numbered anew; every clip stays in its part.

        Raises: ValueError for a class that is not there.
        """
        unknown = sorted(set(classes) - set(self.classes))
        if unknown:
            raise ValueError(f"data.classes: no class {', '.join(unknown)}; there are {', '.join(self.classes)}")
        kept = tuple(name for name in self.classes if name in classes)
        labels = {name: label for label, name in enumerate(kept)}
        parts = (
            tuple(replace(row, label=labels[row.action]) for row in self[part] if row.action in labels)
            for part in SPLITS
        )
        return Split(kept, *parts)

    def leaks(self, name: str) -> float:
        """Share of a split's clips whose group also has clips in train: 0 for an honest split."""
        seen = {row.group for row in self.train}
        rows = self[name]
        return sum(row.group in seen for row in rows) / max(len(rows), 1)


def group_number(video_name: str) -> int | None:
    """The GG of `v_Name_gGG_cCC.avi`, None for names of another form."""
    found = _GROUP.search(video_name)
    return int(found.group(1)) if found else None


def scan(root: Path) -> list[Row]:
    """All clips below `root/<Class>/`, ordered as the original's annotation script leaves them on Windows.

    Classes and the files of a class are sorted without regard to case (JumpingJack before JumpRope); a class is a
    folder with at least one video, its label is its position. The class never comes from the file name: Billiards
    holds `v_Billards_*` and PullUps `v_Pullup_*`.

    Raises: ValueError when the folder is missing or holds no class.
    """
    if not root.is_dir():
        raise ValueError(f"dataset folder {root} does not exist; expected {root}/<Class>/<clip>.avi (see docs/data.md)")
    names: dict[str, list[str]] = {}
    for folder in root.iterdir():
        if folder.is_dir():
            videos = [file.name for file in folder.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES]
            if videos:
                names[folder.name] = videos
    if not names:
        raise ValueError(f"{root} holds no class folder with videos; expected {root}/<Class>/<clip>.avi")
    return rows_of(f"{action}/{name}" for action, videos in names.items() for name in videos)


def rows_of(entries: Iterable[str]) -> list[Row]:
    """Rows of `Class/file` entries given in any order (see `scan` for the order that comes out)."""
    pairs = sorted((tuple(entry.split("/", 1)) for entry in entries), key=lambda pair: (*map(str.lower, pair), *pair))
    labels = {action: label for label, action in enumerate(sorted({a for a, _ in pairs}, key=lambda a: (a.lower(), a)))}
    return [Row(name, action, labels[action]) for action, name in pairs]


def random_split(
    count: int, *, held_out: float = 0.3, test_of_held_out: float = 0.5, seed: int = 42
) -> list[list[int]]:
    """Positions of train, val and test as the original draws them: by clip, not stratified, in shuffled order.

    Equals two calls of scikit-learn's `train_test_split` with `random_state=seed`. This split leaks: on UCF50 99.4 %
    of the test clips come from a source video that also has clips in train.
    """

    def halve(positions: Sequence[int], share: float) -> tuple[list[int], list[int]]:
        order = np.random.RandomState(seed).permutation(len(positions))
        taken = math.ceil(len(positions) * share)
        return [positions[i] for i in order[taken:]], [positions[i] for i in order[:taken]]

    train, rest = halve(range(count), held_out)
    val, test = halve(rest, test_of_held_out)
    return [train, val, test]


def hold_out_groups(rows: Sequence[Row], share: float, seed: int | str = 42) -> tuple[list[int], list[int]]:
    """Positions that stay and positions held out: about `share` of each class's groups, drawn whole.

    At least one group of every class that has two is held out and at least one stays; a share of 0 holds out nothing.
    """
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, row in enumerate(rows):
        groups[row.action][row.group].append(position)
    kept: list[int] = []
    held: list[int] = []
    for action, members in groups.items():
        names = sorted(members)
        random.Random(f"{seed}/{action}").shuffle(names)
        count = min(max(1, round(len(names) * share)), len(names) - 1) if share > 0 else 0
        for place, name in enumerate(names):
            (held if place < count else kept).extend(members[name])
    return sorted(kept), sorted(held)


def grouped_split(
    rows: Sequence[Row], *, held_out: float = 0.3, test_of_held_out: float = 0.5, seed: int = 42
) -> list[list[int]]:
    """Positions of train, val and test such that a group lies in one split only.

    A class with three groups or more is in every split; with two it trains and tests; with one it only trains.
    """
    share = held_out * test_of_held_out
    rest, test = hold_out_groups(rows, share, seed)
    train, val = hold_out_groups([rows[i] for i in rest], (held_out - share) / (1 - share), f"{seed}/val")
    return [[rest[i] for i in train], [rest[i] for i in val], test]


def fold_split(rows: Sequence[Row], fold: int, folds: int = 25) -> list[list[int]]:
    """UCF50's own protocol, leave one group out: group `fold` (1-based) tests, the next one validates, the rest trains.

    Group numbers above `folds` (some classes have up to 30) wrap round; clips without a group number are refused.
    """
    if not 1 <= fold <= folds:
        raise ValueError(f"fold {fold} is not in 1..{folds}")
    result: list[list[int]] = [[], [], []]
    for position, row in enumerate(rows):
        number = group_number(row.video_name)
        if number is None:
            raise ValueError(f"{row.action}/{row.video_name} has no group number (_gNN_cNN); use protocol=grouped")
        place = (number - 1) % folds
        which = 2 if place == fold - 1 else 1 if place == fold % folds else 0
        result[which].append(position)
    return result


def read_rows(path: Path) -> list[Row]:
    """The rows of an annotation csv (`video_name,action,action_label`) in file order.

    Raises: ValueError naming file and line for a missing column or a label that is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"video_name", "action", "action_label"} - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: column {', '.join(sorted(missing))} is missing; found {reader.fieldnames}")
            return [_row(path, number, line) for number, line in enumerate(reader, 2)]
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; make it with `python -m projects.ucf50_x3d.splits ROOT {path.parent}`"
        ) from None


def _row(path: Path, number: int, line: dict[str, str]) -> Row:
    try:
        return Row(line["video_name"], line["action"], int(line["action_label"]))
    except (TypeError, ValueError):
        raise ValueError(f"{path}, line {number}: expected video_name,action,action_label, found {line}") from None


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names of `actions_label.csv` in label order.

    Raises: ValueError naming the file, for another form than `action,label` or labels that are not 0..K-1.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            pairs = sorted((int(line["label"]), line["action"]) for line in csv.DictReader(file))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: expected lines action,label below a header with these names") from None
    if [label for label, _ in pairs] != list(range(len(pairs))):
        raise ValueError(f"{path}: labels must be 0..{len(pairs) - 1}, each once")
    return tuple(action for _, action in pairs)


def read_files(folder: Path) -> Split:
    """A split from the csv files of the original project; `annotations.csv` itself is not needed.

    Raises: ValueError for a file that is missing or malformed, or a label that `actions_label.csv` calls otherwise.
    """
    parts = {name: tuple(read_rows(folder / f"{name}_annotations.csv")) for name in SPLITS}
    labels = folder / "actions_label.csv"
    rows = [row for part in parts.values() for row in part]
    classes = read_classes(labels) if labels.exists() else _classes(rows)
    for row in rows:
        if not 0 <= row.label < len(classes) or classes[row.label] != row.action:
            known = dict(enumerate(classes)).get(row.label, "no class")
            raise ValueError(
                f"{folder}: {row.action}/{row.video_name} has label {row.label}, which is {known} in {labels.name}; "
                "make the files again, all from one dataset"
            )
    return Split(classes, **parts)


def read_lists(
    folder: Path,
    number: int,
    rows: Sequence[Row],
    *,
    classes: Collection[str] = (),
    val_share: float = 0.15,
    seed: int = 42,
) -> Split:
    """A split from UCF101's `trainlist0N.txt` and `testlist0N.txt`.

    The lists have no validation part: groups of the training list are held out for it, so that the best model is
    never chosen on test clips; `val_share=0` trains on the whole list and chooses nothing. With `classes`, lines of
    others are passed over.

    Raises: ValueError for a list that is missing, or names a clip that `rows` lack.
    """
    by_name = {f"{row.action}/{row.video_name}": row for row in rows}
    parts: dict[str, list[Row]] = {}
    for name in ("train", "test"):
        path = folder / f"{name}list{number:02d}.txt"
        if not path.exists():
            raise ValueError(
                f"{path} does not exist; expected UCF101's split lists there (data.annotations, data.fold)"
            )
        entries = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        entries = [entry for entry in entries if not classes or entry.split("/")[0] in classes]
        absent = [entry for entry in entries if entry not in by_name]
        if absent:
            raise ValueError(f"{path}: {len(absent)} clips are not in the dataset folder, the first one is {absent[0]}")
        parts[name] = [by_name[entry] for entry in entries]
    kept, held = hold_out_groups(parts["train"], val_share, seed)
    train, val = (tuple(parts["train"][i] for i in part) for part in (kept, held))
    return Split(_classes(rows), train, val, tuple(parts["test"]))


def _classes(rows: Iterable[Row]) -> tuple[str, ...]:
    names = {row.label: row.action for row in rows}
    return tuple(names.get(label, f"class {label}") for label in range(max(names, default=-1) + 1))


def split_rows(rows: Sequence[Row], protocol: Protocol, *, fold: int = 1, **shares: float | int) -> Split:
    """Split the rows of a dataset by protocol: `grouped`, `fold` (`fold`=1..25) or `random` (the original's)."""
    if protocol == "random":
        parts = random_split(len(rows), **shares)  # type: ignore[arg-type]
    elif protocol == "grouped":
        parts = grouped_split(rows, **shares)  # type: ignore[arg-type]
    elif protocol == "fold":
        parts = fold_split(rows, fold)
    else:
        raise ValueError(f"protocol {protocol!r} needs files; use `split` of projects.ucf50_x3d.data")
    return Split(_classes(rows), *(tuple(rows[position] for position in part) for part in parts))


def write(rows: Sequence[Row], split: Split, out: Path) -> None:
    """Write the five csv files (LF ends, a header, no index column), each atomically."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "actions_label.csv", _text(("action", "label"), [(a, i) for i, a in enumerate(split.classes)]))
    header = ("video_name", "action", "action_label")
    for name, part in (("", rows), *((f"{name}_", split[name]) for name in SPLITS)):
        write_atomic(out / f"{name}annotations.csv", _text(header, [(r.video_name, r.action, r.label) for r in part]))


def _text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Create the annotation files of a dataset folder."""
    parser = argparse.ArgumentParser(prog="projects.ucf50_x3d.splits", description=main.__doc__)
    parser.add_argument("root", type=Path, help="dataset folder with one folder per class")
    parser.add_argument("out", type=Path, help="where the csv files go")
    parser.add_argument("--protocol", choices=("grouped", "random", "fold"), default="grouped")
    parser.add_argument("--fold", type=int, default=1, help="test group, with --protocol fold")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--held-out", type=float, default=0.3, help="share that does not train")
    parser.add_argument("--test-of-held-out", type=float, default=0.5, help="share of that which is for testing")
    args = parser.parse_args(argv)
    shares = {"seed": args.seed, "held_out": args.held_out, "test_of_held_out": args.test_of_held_out}
    try:
        rows = scan(args.root)
        split = split_rows(rows, args.protocol, fold=args.fold, **shares)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write(rows, split, args.out)
    sizes = Counter({name: len(split[name]) for name in SPLITS})
    counts = " ".join(f"{name}={size}" for name, size in sizes.items())
    sys.stdout.write(f"{len(rows)} clips of {len(split.classes)} classes in {args.out}: {counts}\n")
    if split.leaks("test"):
        sys.stdout.write(f"this split leaks: {split.leaks('test'):.1%} of the test clips share a group with train\n")


if __name__ == "__main__":
    main()
