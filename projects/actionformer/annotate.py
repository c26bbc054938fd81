"""Your annotations -> the annotation file of this project: csv tables, ActivityNet's JSON, EPIC-KITCHENS' csv.

    python -m projects.actionformer.annotate actions.csv data/own/annotations.json --features data/own/features
    python -m projects.actionformer.annotate activity_net.v1-3.min.json data/own/annotations.json
    python -m projects.actionformer.annotate training=EPIC_100_train.csv validation=EPIC_100_validation.csv \\
        data/epic/verbs.json --label verb

A csv has a line of column names: `video`, `start`, `end`, `label`, and perhaps `subset`; times are seconds or h:m:s, or
columns `start_frame` and `end_frame` with --fps. Without an end (or an empty one) an action is a point event. Rows
without a label name a video that has no action. SUBSET=FILE says which subset the rows of a file belong to.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import video
from projects.actionformer.annotations import Action, Video, write_annotations
from projects.actionformer.features import Source

# What columns are called in the wild; the first one that is there counts.
COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("video", "video_id", "video-id", "videoid", "video_name", "file", "filename", "name"),
    "start": ("start", "start_s", "t-start", "start_time", "start_sec", "start_timestamp", "begin", "time"),
    "end": ("end", "end_s", "t-end", "end_time", "end_sec", "stop", "stop_timestamp", "end_timestamp"),
    "start_frame": ("start_frame", "begin_frame", "f-start"),
    "end_frame": ("end_frame", "stop_frame", "f-end"),
    "label": ("label", "class", "action", "activity", "event", "category"),
    "subset": ("subset", "split", "set"),
}
EPIC = ("verb", "noun")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")


@dataclass
class Found:
    """What the sources say: actions by label name, videos in order of appearance."""

    rows: dict[str, list[tuple[str, float, float]]] = field(default_factory=dict)
    subset: dict[str, str] = field(default_factory=dict)
    duration_s: dict[str, float] = field(default_factory=dict)
    fps: dict[str, float] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    """Label ids that the sources fix."""

    def add(self, name: str, subset: str, label: str = "", start_s: float = 0.0, end_s: float = 0.0) -> None:
        """One action, or with an empty label just the video.

        Raises: ValueError when the video is in another subset already.
        """
        known = self.subset.setdefault(name, subset)
        if known != subset:
            raise ValueError(f"video {name} is in {known} and in {subset}; all actions of a video belong to one subset")
        actions = self.rows.setdefault(name, [])
        if label:
            actions.append((label, start_s, end_s))


def read(path: Path, subset: str, found: Found, *, label: str = "", fps: float | None = None) -> None:
    """Add what a file says. Raises: ValueError naming file and line, for anything that cannot be understood."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() == ".json":
        _read_json(path, subset, found)
    else:
        _read_table(path, subset, found, label, fps)


def _read_json(path: Path, subset: str, found: Found) -> None:
    try:
        database = json.loads(path.read_text(encoding="utf-8"))["database"]
        for name, entry in database.items():
            here = str(entry.get("subset", subset) or subset).lower()
            found.add(name, here)
            if entry.get("duration"):
                found.duration_s[name] = float(entry["duration"])
            if entry.get("fps"):
                found.fps[name] = float(entry["fps"])
            for action in entry.get("annotations") or ():
                start, end = (float(value) for value in action["segment"])
                found.add(name, here, str(action["label"]), start, end)
                if isinstance(action.get("label_id"), int):
                    found.ids.setdefault(str(action["label"]), action["label_id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = '{"database": {video: {"subset", "duration", "annotations": [{"label", "segment"}]}}}'
        raise ValueError(f"{path}: {type(error).__name__} {error}; expected {expected}") from error


def _read_table(path: Path, subset: str, found: Found, label: str, fps: float | None) -> None:
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter="\t" if "\t" in head else ";" if ";" in head else ",")
        columns = _columns(path, [name.strip() for name in reader.fieldnames or ()], label)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        names = _epic_names(path, label) if label else {}
        frame_rates = _epic_video_info(path, found) if label else {}
        for number, line in enumerate(reader, 2):
            try:
                name = _stem(line[columns["video"]])
                rate = fps or frame_rates.get(name)
                text = (line.get(columns.get("label", "")) or "").strip()
                here = (line.get(columns.get("subset", "")) or subset).strip().lower()
                if not text:
                    found.add(name, here)
                    continue
                if label:
                    text, label_id = _epic_label(text, int(line[f"{label}_class"]), names)
                    found.ids[text] = label_id
                start = _time(line, columns, "start", rate)
                end = _time(line, columns, "end", rate)
                if start is None:
                    raise ValueError("it has no start")
                end = start if end is None else end
                if end < start:
                    raise ValueError(f"it ends at {end:g} s, before it starts ({start:g} s)")
                found.add(name, here, text, start, end)
                if rate:
                    found.fps.setdefault(name, rate)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def _columns(path: Path, names: Sequence[str], label: str) -> dict[str, str]:
    """What each of our columns is called in this table."""
    by_lower = {name.lower(): name for name in names}
    columns = {
        ours: next(by_lower[name] for name in theirs if name in by_lower)
        for ours, theirs in COLUMNS.items()
        if any(name in by_lower for name in theirs)
    }
    if label:
        if f"{label}_class" not in names:
            raise ValueError(f"{path}: --label {label} needs the columns of EPIC-KITCHENS, such as {label}_class")
        columns["label"] = label
    elif "label" not in columns and "verb_class" in names:
        raise ValueError(f"{path} is a table of EPIC-KITCHENS; say --label verb or --label noun")
    missing = [name for name in ("video", "label") if name not in columns]
    missing += [] if {"start", "start_frame"} & set(columns) else ["start"]
    if missing:
        known = "; ".join(f"{name}: {', '.join(COLUMNS[name])}" for name in missing)
        raise ValueError(
            f"{path}: the first line must name the columns; there is none for {', '.join(missing)} among "
            f"{', '.join(names) or 'nothing'}. Names that are understood: {known}"
        )
    return columns


def _time(line: Mapping[str, str], columns: Mapping[str, str], which: str, fps: float | None) -> float | None:
    """Seconds, from a column of times or one of frames; None where both are empty or absent."""
    text = (line.get(columns.get(which, "")) or "").strip()
    if text:
        return seconds(text)
    text = (line.get(columns.get(f"{which}_frame", "")) or "").strip()
    if not text:
        return None
    if not fps:
        raise ValueError("times are frame numbers: say how many a second has with --fps")
    return round(float(text) / fps, 4)


def seconds(text: str) -> float:
    """Seconds of "12.5", "1:02.5" or "0:01:02.5".

    Raises: ValueError for anything else, and for times before 0.
    """
    value = 0.0
    for part in text.split(":"):
        value = 60 * value + float(part)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text} is no time in a video")
    return round(value, 4)


def _stem(name: str) -> str:
    name = name.strip()
    if not name:
        raise ValueError("it names no video")
    path = Path(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else name


def _epic_names(path: Path, label: str) -> dict[int, str]:
    """The official class names, where their csv lies beside the annotations."""
    table = path.with_name(f"EPIC_100_{label}_classes.csv")
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        return {int(line["id"]): line["key"] for line in csv.DictReader(file)}


def _epic_label(text: str, label_id: int, names: dict[int, str]) -> tuple[str, int]:
    """The name of a class: the official one, else that of its first narration."""
    return names.setdefault(label_id, text), label_id


def _epic_video_info(path: Path, found: Found) -> dict[str, float]:
    """Frame rates, and durations into `found`, where EPIC_100_video_info.csv lies beside the annotations."""
    table = path.with_name("EPIC_100_video_info.csv")
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found.duration_s.update({line["video_id"]: float(line["duration"]) for line in lines})
    return {line["video_id"]: float(line["fps"]) for line in lines}


# --------------------------------------------------------------------------------------------------------------- ids


def label_ids(found: Found, classes: Sequence[str] = ()) -> dict[str, int]:
    """An id from 0 on for every label: the place in `classes`, else the ids of the sources, else alphabetic order.

    Ids that count from 1 are made to count from 0. Raises: ValueError for a label that is not in `classes`.
    """
    used = sorted({label for actions in found.rows.values() for label, _, _ in actions})
    if classes:
        unknown = [label for label in used if label not in classes]
        if unknown:
            raise ValueError(f"labels that are not among the {len(classes)} classes: {', '.join(unknown[:5])}")
        return {label: classes.index(label) for label in used}
    if used and all(label in found.ids for label in used):
        lowest = min(found.ids[label] for label in used)
        shift = 1 if lowest == 1 and len(set(found.ids.values())) == max(found.ids.values()) else 0
        return {label: found.ids[label] - shift for label in used}
    return {label: number for number, label in enumerate(used)}


def read_classes(path: Path) -> list[str]:
    """Class names in the order of their ids: a line each, or a JSON list, or the labels of an annotation file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    content: Any = json.loads(text)
    if isinstance(content, list):
        return [str(name) for name in content]
    found = Found()
    _read_json(path, "", found)
    if not found.ids:
        raise ValueError(f"{path} is neither a list of names nor a file with label ids")
    names = {number: label for label, number in found.ids.items()}
    return [names.get(number, f"class {number}") for number in range(max(names) + 1)]


def held_out(name: str, share: float) -> bool:
    """Is a video validation? The same answer every time, whatever other videos there are."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8 < share


def measure(found: Found, videos: Path | None, features: Path | None) -> None:
    """Fill in durations and frame rates: from the records beside features, or from the videos themselves."""
    source = Source(features) if features else None
    files = {path.stem: path for path in video.videos_in(videos)} if videos else {}
    for name in found.rows:
        recorded = source.recorded(name) if source else None
        if recorded:
            found.duration_s[name], found.fps[name] = recorded.duration, recorded.fps
        elif name in files:
            info = video.probe(files[name])
            found.duration_s[name], found.fps[name] = round(info.duration_s, 4), info.fps


def convert(
    sources: Iterable[tuple[str, Path]],
    *,
    label: str = "",
    fps: float | None = None,
    classes: Sequence[str] = (),
    validation: float = 0.0,
    videos: Path | None = None,
    features: Path | None = None,
) -> list[Video]:
    """Videos with their actions, in order of appearance; `main` explains the arguments."""
    found = Found()
    for subset, path in sources:
        read(path, subset or "training", found, label=label, fps=fps)
    measure(found, videos, features)
    ids = label_ids(found, classes)
    return [
        Video(
            name,
            "validation" if validation and held_out(name, validation) else found.subset[name],
            found.duration_s.get(name),
            found.fps.get(name),
            None,
            tuple(Action(text, ids[text], start, end) for text, start, end in actions),
        )
        for name, actions in found.rows.items()
    ]


def summary(videos: Sequence[Video]) -> str:
    """What was converted, and what a user should look at."""
    actions = [action for entry in videos for action in entry.actions]
    lines = [
        f"{len(videos)} videos, {len(actions)} actions of {len({a.label for a in actions})} classes; "
        + ", ".join(f"{count} {name}" for name, count in Counter(entry.subset for entry in videos).items())
    ]
    if beyond := [v.id for v in videos if v.duration_s and any(a.end_s > v.duration_s + 1 for a in v.actions)]:
        lines.append(f"warning: {len(beyond)} videos have actions after their end, such as {beyond[0]}")
    if unknown := sum(entry.duration_s is None for entry in videos):
        lines.append(f"warning: the duration of {unknown} videos is not known; --videos or --features tells it")
    if len({entry.subset for entry in videos}) < 2:
        lines.append("warning: there is one subset only; --validation 0.2 keeps a fifth of the videos for evaluation")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Turn annotations of several forms into the one that training reads."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.actionformer.annotate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("sources", nargs="+", metavar="[SUBSET=]FILE", help="csv, tsv or json; subset: training")
    parser.add_argument("out", type=Path, help="annotation file to write")
    parser.add_argument("--label", choices=EPIC, default="", help="of EPIC-KITCHENS' csv, what is the class")
    parser.add_argument("--fps", type=float, help="frames per second, where times are frame numbers")
    parser.add_argument(
        "--classes", type=Path, help="class names in order of ids; else alphabetic, or as the file says"
    )
    parser.add_argument("--validation", type=float, default=0.0, help="share of the videos that becomes validation")
    parser.add_argument("--videos", type=Path, help="folder of videos, for durations and frame rates")
    parser.add_argument("--features", type=Path, help="folder that extract wrote, for durations and frame rates")
    args = parser.parse_args(argv)
    pairs = [text.rpartition("=") for text in args.sources]
    try:
        videos = convert(
            [(subset.lower(), Path(path)) for subset, _, path in pairs], label=args.label, fps=args.fps,
            classes=read_classes(args.classes) if args.classes else (), validation=args.validation,
            videos=args.videos, features=args.features,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    write_annotations(args.out, videos)
    sys.stdout.write(f"{summary(videos)}\n{args.out} is written; `doctor` compares it with the features\n")


if __name__ == "__main__":
    main()
