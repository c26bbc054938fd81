"""50 Salads and Breakfast: a label for every frame, or the original activity files, as action segments."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projects.sgear import taxonomy
from projects.sgear.annotations import Segments, read_list
from projects.sgear.taxonomy import Taxonomy

BREAKFAST_FPS = 15.0  # of all its videos
PHASES = ("prep", "core", "post")  # of an activity in the original files; labels without are coarser activities

Run = tuple[int, int, str]  # first frame, frame after the last, name of the action


def read_mapping(path: Path) -> Taxonomy:
    """The classes of a mapping.txt, `<number> <name>` a line: the line is the class, as in the published code."""
    return taxonomy.of_names(tuple(line.rpartition(" ")[2] for line in read_list(path)))


def read_bundle(path: Path) -> list[str]:
    """The label files of a `{train,test}.split<fold>.bundle`.

    Raises: ValueError when its first line is not `#bundle.txt`.
    """
    lines = read_list(path)
    if not lines or not lines[0].startswith("#"):
        raise ValueError(f"{path}: expected #bundle.txt in the first line, then a label file a line")
    return [line.split("/")[-1] for line in lines[1:]]


def read_segments(
    names: Sequence[str],
    folder: Path,
    classes: Taxonomy,
    *,
    rate: Callable[[str], float],
    place: Callable[[str], str],
    runs: Callable[[Path, str], list[Run]] | None = None,
    half: bool = False,
) -> Segments:
    """The actions of these label files, in order; ids count from 1 as in the published code.

    `rate` tells the frames per second of a video, `place` where the video of a label file lies below its root. `half`
    rounds times to 16 bits, as the published code does.

    Raises: ValueError naming file and label, for one that the classes do not have.
    """
    number = {name: k for k, name in enumerate(classes.actions)}
    rows: list[tuple[str, float, float, int]] = []
    for name in names:
        path = place(name)
        fps = rate(path)
        for first, end, label in (runs or labels_of_frames)(folder, name):
            if label not in number:
                raise ValueError(f"{folder / name}: {label!r} is none of the {len(number)} actions of the mapping file")
            rows.append((path, first / fps, end / fps, number[label]))
    times: NDArray[Any] = np.array([row[1:3] for row in rows], dtype=np.float16 if half else np.float64).reshape(-1, 2)
    none = np.full(len(rows), -1)
    return Segments(
        id=np.array([str(k) for k in range(1, len(rows) + 1)], dtype=np.str_),
        video=np.array([Path(row[0]).stem for row in rows], dtype=np.str_),
        path=np.array([row[0] for row in rows], dtype=np.str_),
        start_s=times[:, 0],
        end_s=times[:, 1],
        verb=none,
        noun=none,
        action=np.array([row[3] for row in rows], dtype=np.int64),
    )


def labels_of_frames(folder: Path, name: str) -> list[Run]:
    """The runs of equal labels in a file with one label a frame."""
    lines = read_list(folder / name)
    runs, first = [], 0
    for label, group in groupby(lines):
        count = len(list(group))
        runs.append((first, first + count, label))
        first += count
    return runs


def activities(timestamps: Path) -> Callable[[Path, str], list[Run]]:
    """Reads `<id>-activityAnnotation.txt` (start, end, label) against `timestamps/timestamps-<id>.txt`.

    Preparation, core and completion of one activity in a row are one action; coarser activities are left out.
    """

    def runs(folder: Path, name: str) -> list[Run]:
        video = name.removeprefix("rgb-").removesuffix(".txt")
        stamps = [int(line.split()[0]) for line in read_list(timestamps / f"timestamps-{video}.txt")]
        path = folder / f"{video}-activityAnnotation.txt"
        found: list[Run] = []
        for first, last, label in sorted(_activity_lines(path)):
            start, end = bisect.bisect_left(stamps, first), bisect.bisect_right(stamps, last)
            if found and found[-1][2] == label and start <= found[-1][1] + 1:
                found[-1] = (found[-1][0], max(end, found[-1][1]), label)
            else:
                found.append((start, end, label))
        return found

    return runs


def _activity_lines(path: Path) -> Iterator[tuple[int, int, str]]:
    for number, line in enumerate(read_list(path), 1):
        match = re.fullmatch(r"(\d+)\s+(\d+)\s+(\S+)", line)
        if match is None:
            raise ValueError(f"{path}, line {number}: expected `start end activity`, found {line!r}")
        label, _, phase = match[3].rpartition("_")
        if phase in PHASES:
            yield int(match[1]), int(match[2]), label


def salads_video(name: str) -> str:
    """`rgb-01-1.txt` -> `rgb-01-1.avi`."""
    return f"{name.removesuffix('.txt')}.avi"


def breakfast_video(name: str, roots: Sequence[Path] = ()) -> str:
    """`P03_cam01_P03_cereals.txt` -> `P03/cam01/P03_cereals.avi`; a stereo camera has one of two channels on disk."""
    match = re.fullmatch(r"(P\d+)_(\w+?)_P\d+_(\w+)\.txt", name)
    if match is None:
        raise ValueError(f"{name} is no label file of Breakfast, such as P03_cam01_P03_cereals.txt")
    person, camera, topic = match[1], match[2], match[3]
    if not camera.startswith("stereo"):
        return f"{person}/{camera}/{person}_{topic}.avi"
    channels = [f"{person}/stereo/{person}_{topic}_ch{channel}.avi" for channel in (0, 1)]
    return next((path for path in channels for root in roots if (root / path).exists()), channels[0])
