"""Ego4D Moment Queries: whole-video features and official annotations -> one file of annotations and features per clip.

    python -m projects.actionformer.ego4d DOWNLOADED data/ego4d

reads, below DOWNLOADED, `annotations/moments_{train,val}.json` (and `moments_test_unannotated.json`, if it is there)
and `features/{slowfast8x8_r101_k400,omnivore_video_swinl}/<video>.pt` as Ego4D's own command line gets them; writes
`annotations/ego4d.json`, `slowfast_features/<clip>.npy` and `omnivore_features/<clip>.npy`. EgoVLP's features come per
clip from their authors: put them into `egovlp_features` as they are. Stopped and started again it goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from core.checkpoint import write_atomic
from core.checkpoint.files import replacing
from projects.actionformer.ego4d_classes import CLASSES

STRIDE, WINDOW = 16, 32  # frames, of both kinds of features
FPS = (10, 100)  # clips with other frame rates have wrong times
SHORTEST_S = 0.25
SUBSETS = {"train": "training", "val": "validation"}
FILES = ("moments_train.json", "moments_val.json", "moments_test_unannotated.json")
SOURCES = {"slowfast": "slowfast8x8_r101_k400", "omnivore": "omnivore_video_swinl"}


@dataclass(frozen=True)
class Span:
    """A clip on the grid of its video's features; it begins at a multiple of the stride, a bit before the clip."""

    start_s: float
    start_frame: int
    fps: float
    before_frames: int
    duration_s: float
    rows: slice

    @property
    def before_s(self) -> float:
        """Seconds from the start of the features to the start of the clip."""
        return self.before_frames / self.fps


@dataclass
class Outcome:
    """What was converted, and what was left out and why."""

    database: dict[str, Any] = field(default_factory=dict)
    clips: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def span(clip: dict[str, Any]) -> Span | None:
    """Where the features of a clip lie in those of its video; None for a frame rate that cannot be.

    As in the official conversion the last window, which would end exactly with the clip, is not taken.
    """
    start_s, end_s = max(float(clip["video_start_sec"]), 0), float(clip["video_end_sec"])
    first, last = max(int(clip["video_start_frame"]), 0), int(clip["video_end_frame"])
    duration_s, frames = end_s - start_s, last - first
    if duration_s <= 0 or not FPS[0] <= frames / duration_s <= FPS[1]:
        return None
    fps = frames / duration_s
    before = first % STRIDE
    after = -(frames + before - WINDOW) % STRIDE
    rows = slice((first - before) // STRIDE, (last + after - WINDOW) // STRIDE)
    duration_s += before / fps
    if after:
        duration_s += after / fps
    return Span(start_s, first, fps, before, duration_s, rows)


def actions(clip: dict[str, Any], place: Span) -> list[dict[str, Any]]:
    """The primary actions of all annotators, in seconds and frames from the start of the clip's features.

    Raises: ValueError for a class that is none of Ego4D's.
    """
    found = []
    for label in (label for annotator in clip.get("annotations", ()) for label in annotator["labels"]):
        start_s, end_s = (label[f"video_{end}_time"] - place.start_s + place.before_s for end in ("start", "end"))
        if not label["primary"] or end_s - start_s < SHORTEST_S:
            continue
        name = label["label"]
        if name not in CLASSES:
            raise ValueError(f"clip {clip['clip_uid']}: {name!r} is none of the {len(CLASSES)} moment classes of Ego4D")
        frames = [label[f"video_{end}_frame"] - place.start_frame + place.before_frames for end in ("start", "end")]
        found.append({
            "label": name,
            "segment": [round(start_s, 2), round(end_s, 2)],
            "segment(frames)": frames,
            "label_id": CLASSES.index(name),
        })  # fmt: skip
    return found


def convert(raw: Path, out: Path, sources: Sequence[str] = tuple(SOURCES), *, progress: bool = True) -> Outcome:
    """Write the features of every clip and the annotations; clips without actions get features only.

    Raises: ValueError for files that are missing or of another form, naming them.
    """
    outcome = Outcome()
    videos = [video for name in FILES for video in _videos(raw / "annotations" / name)]
    if not videos:
        raise ValueError(f"{raw / 'annotations'} holds none of {', '.join(FILES)}; `ego4d --benchmarks MQ` gets them")
    for video in tqdm(videos, desc="videos", disable=not progress):
        uid, subset = video["video_uid"], SUBSETS.get(video["split"], video["split"])
        paths = {source: raw / "features" / SOURCES[source] / f"{uid}.pt" for source in sources}
        absent = [str(path) for path in paths.values() if not path.is_file()]
        if absent:
            outcome.left_out[f"video {uid}"] = f"{absent[0]} is missing"
            continue
        features = {source: _load(path) for source, path in paths.items()}
        for clip in video["clips"]:
            place = span(clip)
            if place is None:
                outcome.left_out[f"clip {clip['clip_uid']}"] = "its times and frames contradict each other"
                continue
            for source, rows in features.items():
                _write(out / f"{source}_features" / f"{clip['clip_uid']}.npy", rows, place.rows, paths[source])
            outcome.clips += 1
            found = actions(clip, place)
            entry = {"subset": subset, "duration": round(place.duration_s, 2), "fps": round(place.fps, 2)}
            if found:
                outcome.database[clip["clip_uid"]] = {**entry, "annotations": found}
            elif subset == "test":
                outcome.database[clip["clip_uid"]] = {**entry, "offset": place.before_s, "annotations": []}
    content = {"version": "v1", "database": outcome.database}
    write_atomic(out / "annotations" / "ego4d.json", json.dumps(content, indent=1))
    return outcome


def _videos(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["videos"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected Ego4D\'s {{"videos": [...]}} ({error}); download it again') from error
    return found


def _load(path: Path) -> NDArray[np.float32]:
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # files are damaged in many ways; the way out is the same
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}); download it again") from error
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2:
        raise ValueError(
            f"{path}: expected one tensor (windows, channels), got {getattr(tensor, 'shape', tensor)!r:.80}"
        )
    rows: NDArray[np.float32] = tensor.float().numpy()
    return rows


def _write(path: Path, features: NDArray[np.float32], rows: slice, source: Path) -> None:
    if rows.stop > len(features):
        raise ValueError(f"{source} has {len(features)} windows, clip {path.stem} needs {rows.stop}; download it again")
    if path.is_file():
        return
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, features[rows])


def main(argv: Sequence[str] | None = None) -> None:
    """Cut Ego4D's whole-video features into the clips of the Moment Queries benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.actionformer.ego4d", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("raw", type=Path, help="folder with Ego4D's annotations/ and features/")
    parser.add_argument("out", type=Path, help="folder to write, data/ego4d")
    parser.add_argument(
        "--features", nargs="+", choices=SOURCES, default=list(SOURCES), help="the kinds to convert (all)"
    )
    args = parser.parse_args(argv)
    try:
        outcome = convert(args.raw, args.out, args.features)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for what, why in outcome.left_out.items():
        sys.stdout.write(f"left out: {what}: {why}\n")
    annotated = len(outcome.database)
    sys.stdout.write(f"{outcome.clips} clips, {annotated} of them with entries in {args.out}/annotations/ego4d.json\n")


if __name__ == "__main__":
    main()
