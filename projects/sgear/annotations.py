"""Who does what when: the action lists of EPIC-KITCHENS (official and RULSTM's) and EGTEA Gaze+, as columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from projects.sgear import pickles
from projects.sgear.taxonomy import Taxonomy

FIRST_FRAME_S = 1 / 30  # the first feature frame ends here; nothing can be seen before
RECOGNITION = -999.0  # as tau_a: the clip is the action itself
OFFICIAL = ("participant_id", "video_id", "start_timestamp", "stop_timestamp")

Drop = Literal["correct", "full_context_in", "action_banks"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """Actions in file order, one row each: columns of N values.

    `start_s` and `end_s` are seconds of the video; `verb`, `noun` and `action` are class ids, -1 where unknown; `path`
    is the video below one of its roots.
    """

    id: NDArray[np.str_]
    video: NDArray[np.str_]
    path: NDArray[np.str_]
    start_s: Floats
    end_s: Floats
    verb: Ints
    noun: Ints
    action: Ints

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, rows: Any) -> Segments:
        """These rows: a mask, or row numbers."""
        return replace(self, **{column.name: getattr(self, column.name)[rows] for column in fields(self)})


def join(parts: Sequence[Segments]) -> Segments:
    """All rows of all parts, in their order."""
    names = [column.name for column in fields(Segments)]
    return Segments(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Clips:
    """What may be seen of each action: `start_s` to `end_s` of the video, of which the frames are chosen.

    `start_s` may be negative. `segments` are the rows that were kept, `dropped` those with nothing to see.
    """

    segments: Segments
    start_s: Floats
    end_s: Floats
    dropped: Segments

    def __len__(self) -> int:
        return len(self.segments)


def observe(segments: Segments, tau_a: float, tau_o: float, drop: Drop = "correct") -> Clips:
    """The `tau_o` seconds that end `tau_a` seconds before each action (Damen et al., ECCV 2018, anticipation protocol).

    `tau_a` = -999 takes the action itself. Rows are dropped whose clip ends before the first frame ends (`correct`),
    starts before that (`full_context_in`), or ends before 2 s (`action_banks`).
    """
    if tau_a == RECOGNITION:
        start_s, end_s = segments.start_s, segments.end_s
    else:
        end_s = segments.start_s - tau_a
        start_s = end_s - tau_o
    limits = {
        "correct": (end_s, FIRST_FRAME_S),
        "full_context_in": (start_s, FIRST_FRAME_S),
        "action_banks": (end_s, 2.0),
    }
    value, limit = limits[drop]
    kept = value >= limit
    return Clips(segments[kept], start_s[kept], end_s[kept], segments[~kept])


# --- files


def read_official(path: Path, taxonomy: Taxonomy) -> Segments:
    """The actions of an official EPIC-KITCHENS file: csv, or the pickled table of the same columns.

    Files without class columns are test sets, whose labels become -1; so does the action of a (verb, noun) that the
    action table does not have.

    Raises: ValueError naming the file, and the line of a value that cannot be read.
    """
    columns = pickles.table(path) if path.suffix in (".pkl", ".pickle") else _csv_columns(path)
    missing = [name for name in OFFICIAL if name not in columns]
    if missing:
        raise ValueError(f"{path}: column {', '.join(missing)} is missing; found {', '.join(columns)}")
    ids = columns["narration_id" if "narration_id" in columns else next(iter(columns))]
    labelled = "verb_class" in columns and "noun_class" in columns
    verb, noun = (
        _numbers(path, name, columns[name]) if labelled else np.full(len(ids), -1)
        for name in ("verb_class", "noun_class")
    )
    taxonomy.check(path, verb, noun)
    return Segments(
        id=np.array([str(name) for name in ids], dtype=np.str_),
        video=np.array(columns["video_id"], dtype=np.str_),
        path=np.array(
            [f"{who}/{name}.MP4" for who, name in zip(columns["participant_id"], columns["video_id"], strict=True)],
            dtype=np.str_,
        ),
        start_s=_times(path, columns["start_timestamp"]),
        end_s=_times(path, columns["stop_timestamp"]),
        verb=verb,
        noun=noun,
        action=taxonomy.action(verb, noun),
    )


def _csv_columns(path: Path) -> dict[str, list[str]]:
    rows = _csv_rows(path)
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number}: {len(row)} values for {len(header)} columns; is the file whole?")
    return dict(zip(header, map(list, zip(*body, strict=True)), strict=True)) if body else {name: [] for name in header}


def _csv_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if row]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; docs/data.md says where annotation files come from") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}; expected a csv file in UTF-8") from None
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def _numbers(path: Path, name: str, values: Iterable[Any]) -> Ints:
    try:
        return np.array([int(value) for value in values], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, column {name}: {error}; expected whole numbers") from None


_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?")


def _times(path: Path, stamps: Sequence[str]) -> Floats:
    """HH:MM:SS.ff as seconds, through whole microseconds, so that equal times are equal numbers."""
    found = [_CLOCK.fullmatch(str(stamp).strip()) for stamp in stamps]
    if None in found:
        row = found.index(None)
        raise ValueError(f"{path}, row {row + 1}: {stamps[row]!r} is no time; expected HH:MM:SS.ff")
    micro = [
        (int(m[1]) * 3600 + int(m[2]) * 60 + int(m[3])) * 10**6 + int((m[4] or "0").ljust(6, "0")) for m in found if m
    ]
    return np.array(micro, dtype=np.int64) / 1e6


def read_rulstm(path: Path, *, participants: bool = True) -> Segments:
    """The actions of a RULSTM csv: id, video, start, end (frames at 30 fps), then verb, noun, action, or nothing.

    `participants`: videos lie in folders of their participant and end in .MP4, as those of EPIC-KITCHENS.

    Raises: ValueError naming file and line.
    """
    rows = _csv_rows(path)
    width = len(rows[0])
    if width not in (4, 7):
        raise ValueError(
            f"{path}: {width} columns; expected id, video, start, end and, but for tests, verb, noun, action"
        )
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(
                f"{path}, line {number}: {len(row)} values, the first line has {width}; is the file whole?"
            )
    ids, videos = ([row[i].strip() for row in rows] for i in (0, 1))
    numbers = [_numbers(path, f"number {i + 1}", (row[i] for row in rows)) for i in range(2, width)]
    verb, noun, action = numbers[2:] or [np.full(len(rows), -1) for _ in range(3)]
    return Segments(
        id=np.array([str(int(name)) if name.isdigit() else name for name in ids], dtype=np.str_),
        video=np.array(videos, dtype=np.str_),
        path=np.array(
            [f"{video.split('_')[0]}/{video}.MP4" if participants else f"{video}.mp4" for video in videos],
            dtype=np.str_,
        ),
        start_s=numbers[0] / 30.0,
        end_s=numbers[1] / 30.0,
        verb=verb,
        noun=noun,
        action=action,
    )


def read_list(path: Path) -> list[str]:
    """The lines of a list of videos or narrations, without blanks.

    Raises: ValueError when there is no such file.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; docs/data.md says where annotation files come from") from None


def of_videos(segments: Segments, videos: Iterable[str]) -> Segments:
    """The rows of these videos."""
    return segments[np.isin(segments.video, list(videos))]


def of_persons(segments: Segments, first: int, last: int) -> Segments:
    """The rows of the participants P<first> to P<last>, both included."""
    names = [f"P{number:02d}" for number in range(first, last + 1)]
    return segments[np.isin([path.split("/")[0] for path in segments.path], names)]


def frame_rates(paths: Iterable[Path]) -> Mapping[str, float]:
    """Frames per second by video, from the EPIC_*_video_info.csv among these paths."""
    rates: dict[str, float] = {}
    for path in paths:
        if path.is_file():
            columns = _csv_columns(path)
            name = "video_id" if "video_id" in columns else "video"
            rates |= dict(zip(columns[name], map(float, columns["fps"]), strict=True))
    return rates
