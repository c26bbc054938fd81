"""Annotation files in ActivityNet's style, the one form that every dataset of this project comes in.

    {"version": "...", "database": {"video": {"subset": "training", "duration": 12.3, "fps": 30.0,
        "annotations": [{"label": "Diving", "label_id": 7, "segment": [1.5, 4.0]}, ...]}, ...}}

Times are seconds, label ids count from 0. `annotate` makes such a file from csv files and other JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from core.checkpoint import write_atomic

SAME_S = 1e-3  # actions shorter than this, and repetitions closer than this, are slips of the annotators


class Action(NamedTuple):
    """One annotated action; a point event ends where it starts."""

    label: str
    label_id: int
    start_s: float
    end_s: float


class Row(NamedTuple):
    """One action of the truth that detections are compared with."""

    video: str
    start_s: float
    end_s: float
    label_id: int


@dataclass(frozen=True)
class Video:
    """What is known about a video; None where the file does not say."""

    id: str
    subset: str
    duration_s: float | None = None
    fps: float | None = None
    offset: float | None = None
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """A whole file: videos in its order, and the id of every label name that occurs in any subset."""

    path: Path
    videos: Mapping[str, Video]
    label_ids: Mapping[str, int]
    conflicts: tuple[str, ...] = field(default=())
    """Labels that have several ids; the last one is used, as the official readers do."""

    def subsets(self) -> dict[str, int]:
        """How many videos each subset has."""
        counts: dict[str, int] = {}
        for video in self.videos.values():
            counts[video.subset] = counts.get(video.subset, 0) + 1
        return counts

    def of(self, subsets: Sequence[str]) -> list[Video]:
        """The videos of some subsets, in file order.

        Raises: ValueError when there are none, naming the subsets that exist.
        """
        wanted = {subset.lower() for subset in subsets}
        found = [video for video in self.videos.values() if video.subset in wanted]
        if not found:
            there = ", ".join(f"{name} ({count})" for name, count in self.subsets().items()) or "no video at all"
            raise ValueError(f"{self.path} has no video of {', '.join(sorted(wanted))}; it has {there}")
        return found

    def truth(self, subset: str) -> list[Row]:
        """Every action of one subset, as it stands in the file."""
        return [
            Row(video.id, action.start_s, action.end_s, action.label_id)
            for video in self.videos.values()
            if video.subset == subset.lower()
            for action in video.actions
        ]

    def classes(self, count: int) -> tuple[str, ...]:
        """The label names by id, at least `count` of them; an id that never occurs is `class 7`."""
        names = {label_id: label for label, label_id in reversed(list(self.label_ids.items()))}
        return tuple(names.get(k, f"class {k}") for k in range(max(count, 1 + max(names, default=-1))))


def without_repetitions(actions: Iterable[Action], *, points: bool = False) -> tuple[Action, ...]:
    """Actions of at least a millisecond, each class and time once, as the official evaluator and the ANet reader do.

    `points` keeps those that end exactly where they start.
    """
    kept: list[Action] = []
    for action in actions:
        again = any(
            abs(action.start_s - other.start_s) <= SAME_S
            and abs(action.end_s - other.end_s) <= SAME_S
            and action.label_id == other.label_id
            for other in kept
        )
        long_enough = action.end_s - action.start_s >= SAME_S or (points and action.end_s == action.start_s)
        if long_enough and not again:
            kept.append(action)
    return tuple(kept)


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file.

    Raises: ValueError naming the file, the video and what was expected, for anything of another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist; data.annotations=FILE says where the annotations are (docs/data.md), and "
            "`python -m projects.actionformer.annotate --help` makes such a file from your own"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON that can be read ({error})") from error
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise ValueError(f'{path}: expected {{"database": {{video: {{...}}}}}}; `annotate` turns other files into it')
    videos: dict[str, Video] = {}
    label_ids: dict[str, int] = {}
    conflicts: dict[str, None] = {}
    for name, entry in database.items():
        videos[name] = video = _video(path, name, entry)
        for action in video.actions:
            if label_ids.get(action.label, action.label_id) != action.label_id:
                conflicts[action.label] = None
            label_ids[action.label] = action.label_id
    return Annotations(path, videos, label_ids, tuple(conflicts))


def _video(path: Path, name: str, entry: Any) -> Video:
    where = f"{path}, video {name!r}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a mapping with subset, duration and annotations; got {entry!r:.80}")
    actions = tuple(_action(where, action) for action in entry.get("annotations") or ())
    numbers = {
        key: _number(f"{where}, {key}", entry[key]) for key in ("duration", "fps", "offset") if _said(entry, key)
    }
    return Video(
        name, str(entry.get("subset", "")).lower(), numbers.get("duration"), numbers.get("fps"), numbers.get("offset"),
        actions,
    )  # fmt: skip


def _said(entry: Mapping[str, Any], key: str) -> bool:
    return entry.get(key) is not None


def _action(where: str, entry: Any) -> Action:
    try:
        label, (start, end), label_id = entry["label"], entry["segment"], entry["label_id"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{where}: expected an annotation with label, label_id and segment [start_s, end_s], got {entry!r:.120}; "
            "`annotate` adds label ids to a file without them"
        ) from None
    if not isinstance(label_id, int) or isinstance(label_id, bool):
        raise ValueError(f"{where}: label_id of {label!r} is {label_id!r}, expected one whole number from 0 on")
    return Action(str(label), label_id, _number(where, start), _number(where, end))


def _number(where: str, value: Any) -> float:
    """The number as it was written: 30 stays an int, as the official readers keep it."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise ValueError(f"{where}: expected a number, got {value!r}")


def write_annotations(path: Path, videos: Iterable[Video], about: str = "action-suite") -> None:
    """Write an annotation file, whole or not at all."""
    database = {}
    for video in videos:
        known = {"duration": video.duration_s, "fps": video.fps, "offset": video.offset}
        actions = [
            {"label": action.label, "segment": [action.start_s, action.end_s], "label_id": action.label_id}
            for action in video.actions
        ]
        database[video.id] = {
            "subset": video.subset,
            **{key: value for key, value in known.items() if value is not None},
            "annotations": actions,
        }
    write_atomic(path, json.dumps({"version": about, "database": database}, indent=1, ensure_ascii=False) + "\n")
