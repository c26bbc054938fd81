"""Detections of many videos as files: written for people and other tools, read from ours and from official ones."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from core import metrics
from core.checkpoint import read_pickle, write_atomic
from projects.actionformer.postprocess import Detections

Table = Mapping[str, Detections]
"""The detections of every video by its id."""

FLAT = ("video-id", "t-start", "t-end", "label", "score")


def flatten(table: Table) -> metrics.Detections:
    """All detections in one list, video after video, as `core.metrics` takes them."""
    parts = list(table.values())
    videos = [video for video, found in table.items() for _ in range(len(found.scores))]
    return metrics.Detections(
        videos,
        np.concatenate([found.segments_s for found in parts]) if parts else np.zeros((0, 2)),
        np.concatenate([found.labels for found in parts]) if parts else np.zeros(0, np.int64),
        np.concatenate([found.scores for found in parts]) if parts else np.zeros(0),
    )


def tabulate(videos: Iterable[Any], segments: Any, labels: Any, scores: Any) -> dict[str, Detections]:
    """Flat columns as a table; the detections of a video keep their order."""
    rows: dict[str, list[int]] = {}
    for row, video in enumerate(videos):
        rows.setdefault(str(video), []).append(row)
    spans, values = np.asarray(segments).reshape(-1, 2), np.asarray(scores)
    names = np.asarray(labels, np.int64)
    return {video: Detections(spans[own], values[own], names[own]) for video, own in rows.items()}


def write_json(path: Path, table: Table, classes: Sequence[str]) -> None:
    """`{"results": {video: [{label, label_id, score, segment}]}}`: segments in seconds, best first, a line a video."""
    lines = (
        f"{simplejson.dumps(video)}: {simplejson.dumps(rows(found, classes))}" for video, found in sorted(table.items())
    )
    write_atomic(path, '{"results": {\n' + ",\n".join(lines) + "\n}}\n")


def rows(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The detections of a video as JSON has them, best first; with `spread_s` where boundaries have one."""
    found = found.take(np.argsort(-found.scores, kind="stable"))
    segments = np.round(found.segments_s.astype(np.float64), 4).tolist()
    labels, scores = found.labels.tolist(), found.scores.tolist()
    answer = [
        {"label": name_of(label, classes), "label_id": label, "score": float(f"{score:.9g}"), "segment": segment}
        for label, score, segment in zip(labels, scores, segments, strict=True)
    ]
    if found.spread_s is not None:
        for row, spread in zip(answer, np.round(found.spread_s.astype(np.float64), 4).tolist(), strict=True):
            row["spread_s"] = spread
    return answer


def name_of(label: int, classes: Sequence[str]) -> str:
    """The name of a class, or its number where it has none."""
    return classes[label] if label < len(classes) else f"class {label}"


def write_columns(path: Path, table: Table) -> None:
    """A compressed npz of flat columns under the names of the official `eval_results.pkl`, to the last bit."""
    flat = flatten(table)
    segments = np.asarray(flat.segments)
    columns = (np.array(flat.videos, dtype=np.str_), segments[:, 0], segments[:, 1], flat.labels, flat.scores)
    buffer, arrays = io.BytesIO(), dict(zip(FLAT, map(np.asarray, columns), strict=True))
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its other keywords are no columns
    write_atomic(path, buffer.getvalue())


def read(path: Path, classes: Sequence[str] = ()) -> dict[str, Detections]:
    """Detections from a file: our npz or JSON, the official pickle, an ActivityNet or evaluator JSON.

    A pickle is read as data; code in it never runs. Labels are numbers, or names among `classes`.

    Raises:
        ValueError: naming the file and what was expected.
    """
    if path.suffix == ".json":
        return _from_json(path, classes)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                columns: Any = dict(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no npz that can be read ({error})") from error
    else:
        columns = read_pickle(path)
    if not isinstance(columns, Mapping) or any(key not in columns for key in FLAT):
        raise ValueError(f"{path}: expected the columns {', '.join(FLAT)}")
    videos, starts, ends, labels, scores = (columns[key] for key in FLAT)
    if len({len(column) for column in (videos, starts, ends, labels, scores)}) > 1:
        raise ValueError(f"{path}: the columns {', '.join(FLAT)} have unequal lengths")
    return tabulate(list(videos), np.stack([starts, ends], 1), labels, scores)


def _from_json(path: Path, classes: Sequence[str]) -> dict[str, Detections]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON that can be read ({error})") from error
    for key in ("results", "database", "detect_results"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected {{video: [{{label, score, segment}}]}}, perhaps under results")
    numbers = {name: label for label, name in enumerate(classes)}
    videos, segments, labels, scores = [], [], [], []
    for video, found in content.items():
        for one in found:
            try:
                label = one.get("label_id", one.get("label"))
                labels.append(int(numbers.get(label, label)))
                segments.append([float(time) for time in one["segment"]])
                scores.append(float(one["scores"] if "scores" in one else one["score"]))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{path}, video {video!r}: expected label (a number, or one of the {len(classes)} classes), score "
                    f"and segment [start_s, end_s]; got {one!r:.120} ({error})"
                ) from None
            videos.append(video)
    return tabulate(videos, np.array(segments).reshape(-1, 2), labels, np.array(scores))
