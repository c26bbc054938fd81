"""Detections in the formats of the challenges, and a check of such a file before it is sent anywhere.

    python -m projects.actionformer.submission FILE --format epic --annotations ANNOTATIONS.json --subset test

names every video that is missing or unknown and every malformed entry. Formats: activitynet (ActivityNet 1.3), ego4d
(Moment Queries), epic (EPIC-KITCHENS-100 action detection). Exit status: 0 when the file is in order, 1 when not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson

from core.checkpoint import write_atomic
from projects.actionformer.annotations import read_annotations
from projects.actionformer.config import Config
from projects.actionformer.data import Benchmark
from projects.actionformer.postprocess import Detections
from projects.actionformer.results import Table, rows

Json = dict[str, Any]
EPIC_NOUNS = 300  # an action's number is verb * EPIC_NOUNS + noun
EPIC_VERBS = 97
LISTED = 20  # problems of one kind that are spelled out


def write(path: Path, table: Table, benchmark: Benchmark, cfg: Config) -> None:
    """Write the submission that `eval.submission` names; every evaluated video has its entry."""
    videos = benchmark.annotations.of(cfg.data.eval_splits[:1])
    answers = {video.id: table.get(video.id, nothing()) for video in videos}
    if cfg.eval.submission == "activitynet":
        content = activitynet(answers, benchmark.classes)
    else:
        content = ego4d(answers, benchmark.classes, {video.id: video.offset or 0.0 for video in videos})
    write_atomic(path, simplejson.dumps(content) + "\n")


def nothing() -> Detections:
    """No detections."""
    return Detections(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def activitynet(table: Table, classes: Sequence[str]) -> Json:
    """The ActivityNet 1.3 challenge: class names and seconds by video."""
    return {
        "version": "VERSION 1.3",
        "results": {video: _plain(found, classes) for video, found in table.items()},
        "external_data": {"used": True, "details": "features of a pretrained video network"},
    }


def ego4d(table: Table, classes: Sequence[str], offsets_s: Mapping[str, float]) -> Json:
    """Ego4D Moment Queries: the same detections for both tasks, times from the beginning of the clip.

    `offsets_s` are the seconds that the features of a clip begin before it.
    """
    results = {
        clip: _plain(found._replace(segments_s=(found.segments_s - offsets_s.get(clip, 0.0)).clip(min=0)), classes)
        for clip, found in table.items()
    }
    return {
        "version": "1.0",
        "challenge": "ego4d_moment_queries",
        "detect_results": results,
        "retrieve_results": results,
    }


def epic(table: Table, *, pretraining: int = 2, labels: int = 3, data: int = 3) -> Json:
    """EPIC-KITCHENS-100 action detection: labels are verb * EPIC_NOUNS + noun; the three levels of supervision are
    those of the challenge (0 to 5)."""
    results = {}
    for video, found in table.items():
        entries = []
        for row in rows(found, ()):
            verb, noun = divmod(row["label_id"], EPIC_NOUNS)
            pair = {"verb": verb, "noun": noun, "action": f"{verb},{noun}"}
            entries.append({**pair, "score": row["score"], "segment": row["segment"]})
        results[video] = entries
    levels = {"sls_pt": pretraining, "sls_tl": labels, "sls_td": data}
    return {"version": "0.2", "challenge": "action_detection", **levels, "results": results}


def _plain(found: Detections, classes: Sequence[str]) -> list[Json]:
    return [{key: row[key] for key in ("label", "score", "segment")} for row in rows(found, classes)]


# --------------------------------------------------------------------------------------------------------------- check


class Format(NamedTuple):
    """What a challenge wants: fixed values, further keys, where the videos are, and what an entry's label must be."""

    fixed: Mapping[str, Any]
    keys: Sequence[str]
    places: Sequence[str]
    label: Callable[[Json, Collection[str]], str | None]


def _named(entry: Json, classes: Collection[str]) -> str | None:
    label = entry.get("label")
    if not isinstance(label, str):
        return f"label is {label!r}, expected the name of a class"
    return f"label {label!r} is no class of the annotations" if classes and label not in classes else None


def _paired(entry: Json, classes: Collection[str]) -> str | None:
    for key, count in (("verb", EPIC_VERBS), ("noun", EPIC_NOUNS)):
        value = entry.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            return f"{key} is {value!r}, expected a number from 0 to {count - 1}"
    wanted = f"{entry['verb']},{entry['noun']}"
    return None if entry.get("action") == wanted else f"action is {entry.get('action')!r}, expected {wanted!r}"


FORMATS = {
    "activitynet": Format({}, ("version", "external_data"), ("results",), _named),
    "ego4d": Format(
        {"version": "1.0", "challenge": "ego4d_moment_queries"}, (), ("detect_results", "retrieve_results"), _named
    ),
    "epic": Format(
        {"version": "0.2", "challenge": "action_detection"}, ("sls_pt", "sls_tl", "sls_td"), ("results",), _paired
    ),
}


def check(
    content: Any, kind: str, videos: Collection[str], classes: Collection[str], durations_s: Mapping[str, float]
) -> list[str]:
    """Everything wrong with a submission, one line each; empty when it is in order.

    `videos` must all be there and no others; `classes` are the names allowed (any, when empty).
    """
    return list(_problems(content, FORMATS[kind], set(videos), set(classes), durations_s))


def _problems(
    content: Any, form: Format, videos: set[str], classes: set[str], durations_s: Mapping[str, float]
) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"the file holds {type(content).__name__}, expected one JSON object"
        return
    for key, value in form.fixed.items():
        if content.get(key) != value:
            yield f"{key} is {content.get(key)!r}, expected {value!r}"
    for key in form.keys:
        if key not in content:
            yield f"{key} is missing"
        elif key.startswith("sls_") and content[key] not in range(6):
            yield f"{key} is {content[key]!r}, expected a level of supervision from 0 to 5"
    for place in form.places:
        results = content.get(place)
        if not isinstance(results, dict):
            yield f"{place} is missing or no object of videos"
            continue
        yield from _some(f"{place}: video {{}} is missing", sorted(videos - results.keys()))
        yield from _some(f"{place}: video {{}} is not in the annotations", sorted(results.keys() - videos))
        for video, entries in results.items():
            if not isinstance(entries, list):
                yield f"{place}, {video}: expected a list of detections, got {type(entries).__name__}"
                continue
            for number, entry in enumerate(entries):
                problem = _malformed(entry, durations_s.get(video)) or form.label(entry, classes)
                if problem:
                    yield f"{place}, {video}, detection {number}: {problem}"


def _malformed(entry: Any, duration_s: float | None) -> str | None:
    if not isinstance(entry, dict):
        return f"expected an object, got {entry!r:.60}"
    if not _is_number(entry.get("score")):
        return f"score is {entry.get('score')!r}, expected a number"
    segment = entry.get("segment")
    if not isinstance(segment, list) or len(segment) != 2 or not all(map(_is_number, segment)):
        return f"segment is {segment!r:.60}, expected [start_s, end_s]"
    if not 0 <= segment[0] <= segment[1]:
        return f"segment {segment} must have 0 <= start <= end"
    if duration_s is not None and segment[1] > duration_s + 1:
        return f"segment {segment} ends after the video, which has {duration_s:.1f} s"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _some(words: str, names: Sequence[str]) -> Iterator[str]:
    yield from (words.format(name) for name in names[:LISTED])
    if len(names) > LISTED:
        yield words.format(f"... and {len(names) - LISTED} more of {len(names)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Check a file and print what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the submission")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--annotations", type=Path, required=True, help="annotation file that has the videos")
    parser.add_argument("--subset", default="test", help="its videos must be there (default: test)")
    asked = parser.parse_args(argv)
    try:
        content = json.loads(asked.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{asked.file} is no JSON that can be read: {error}", file=sys.stderr)  # noqa: T201
        return 1
    try:
        annotations = read_annotations(asked.annotations)
        videos = annotations.of([asked.subset])
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    durations = {video.id: video.duration_s for video in videos if video.duration_s is not None}
    problems = check(content, asked.format, [video.id for video in videos], annotations.label_ids.keys(), durations)
    for line in problems:
        print(line)  # noqa: T201
    verdict = f"{len(problems)} problems" if problems else f"in order: {len(videos)} videos"
    print(f"{asked.file}: {verdict}")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
