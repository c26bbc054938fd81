"""What is known about actions beforehand, applied to detections: gaps, lengths, overlaps, order.

Results are the flat columns of the official code, {"video-id", "t-start", "t-end", "label", "score"}: equally long
lists or arrays, times in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projects.actionformer.config import ConstraintsConfig

Results = Mapping[str, Sequence[Any]]
KEYS = ("video-id", "t-start", "t-end", "label", "score")


@dataclass(frozen=True)
class TemporalConstraints:
    """Rules that detections of a video must keep.

    Every rule judges all detections, best score first, and only those that pass all of them stay, in their old order. A
    detection that one rule drops can thus still push out others by another rule, as in the fork; only `ordering` comes
    after the other rules.
    """

    min_gap: Mapping[int, float] = field(default_factory=dict)
    """Class: least seconds between the centers of two of its detections; the better one stays. 0 is no rule."""
    max_overlap: float = 0.5
    """Largest tIoU of two detections of any classes; the better one stays. 1 is no rule."""
    duration_range: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Class: least and largest seconds."""
    ordering: Sequence[Sequence[int]] = ()
    """Chains of classes: one stays if, of the class before it in the chain, one that stays starts earlier."""
    score_threshold: float = 0.0
    """What scores less is dropped before anything else."""
    ignore_ordering: bool = False
    """As the fork, which takes `ordering` and never looks at it."""

    @classmethod
    def of(cls, cfg: ConstraintsConfig) -> TemporalConstraints:
        """Those of a configuration."""
        return cls(cfg.min_gap, cfg.max_overlap, cfg.duration_range, cfg.ordering, cfg.min_score)

    def apply(self, results: Results) -> dict[str, list[Any]]:
        """The detections that keep all rules.

        Raises: ValueError when a column is missing or shorter than another.
        """
        columns = _columns(results)
        scored = np.asarray(columns["score"], np.float64) >= self.score_threshold
        columns = _rows(columns, np.flatnonzero(scored))
        stays = np.ones(len(columns["score"]), bool)
        for rows in _videos(columns):
            segments, labels, scores = _arrays(columns, rows)
            stays[rows] = self.keep(segments, labels, scores)
        return _rows(columns, np.flatnonzero(stays))

    def keep(self, segments: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> NDArray[np.bool_]:
        """Which detections of one video stay (M,): segments (M,2) in seconds, labels (M,), scores (M,)."""
        rank = np.argsort(-scores, kind="stable")
        stays = scores >= self.score_threshold
        length, center = segments[:, 1] - segments[:, 0], segments.mean(1)
        for label, (least, most) in self.duration_range.items():
            stays &= (labels != label) | ((length >= least) & (length <= most))
        for label, gap in self.min_gap.items():
            own = rank[labels[rank] == label]
            if gap > 0:
                stays[own] &= _apart(np.abs(center[own][:, None] - center[own]) >= gap)
        if self.max_overlap < 1:
            stays[rank] &= _apart(_overlap(segments[rank]) <= self.max_overlap)
        for before, label in () if self.ignore_ordering else chain(*map(pairwise, self.ordering)):
            earliest = segments[stays & (labels == before), 0].min(initial=np.inf)
            stays &= (labels != label) | (segments[:, 0] > earliest)
        return stays


def enforce_class_constraints(
    results: Results,
    class_id: int,
    min_gap: float | None = None,
    duration_range: tuple[float, float] | None = None,
    max_overlap: float = 0.3,
) -> dict[str, list[Any]]:
    """Gap and lengths of one class; the overlap holds between detections of all classes, as in the fork."""
    gaps = {class_id: min_gap} if min_gap else {}
    lengths = {class_id: duration_range} if duration_range else {}
    return TemporalConstraints(min_gap=gaps, max_overlap=max_overlap, duration_range=lengths).apply(results)


def merge_close_detections(
    results: Results, merge_gap: float = 1.0, class_id: int | None = None
) -> dict[str, list[Any]]:
    """Detections of a video and class that lie at most `merge_gap` seconds apart as one, with the best of their scores.

    By video (by name), class and start. With `class_id` only that class is merged, and the others follow unchanged.
    """
    columns = _columns(results)
    labels = np.asarray(columns["label"], np.int64)
    chosen = np.flatnonzero((labels == class_id) if class_id is not None else np.ones(len(labels), bool))
    merged: dict[str, list[Any]] = {key: [] for key in KEYS}
    order = sorted(chosen.tolist(), key=lambda i: (columns["video-id"][i], labels[i], columns["t-start"][i]))
    last_end = 0.0
    for i in order:
        video, start, end, label, score = (columns[key][i] for key in KEYS)
        same = bool(merged["label"]) and (merged["video-id"][-1], merged["label"][-1]) == (video, label)
        if same and start - last_end <= merge_gap:
            merged["t-end"][-1] = max(merged["t-end"][-1], end)
            merged["score"][-1] = max(merged["score"][-1], score)
        else:
            for key, value in zip(KEYS, (video, start, end, label, score), strict=True):
                merged[key].append(value)
        last_end = end
    rest = _rows(columns, np.setdiff1d(np.arange(len(labels)), chosen))
    return {key: merged[key] + rest[key] for key in KEYS}


def _apart(compatible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Greedily from the first on, which stay (M,): those compatible (M,M) with all that stayed before them."""
    stays = np.zeros(len(compatible), bool)
    for i, row in enumerate(compatible):
        stays[i] = row[:i][stays[:i]].all()
    return stays


def _overlap(segments: NDArray[Any]) -> NDArray[np.float64]:
    starts, ends = segments.astype(np.float64).T
    common = (np.minimum(ends[:, None], ends) - np.maximum(starts[:, None], starts)).clip(min=0)
    union = (ends - starts)[:, None] + (ends - starts) - common
    overlap: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=common > 0)
    return overlap


def _columns(results: Results) -> dict[str, list[Any]]:
    missing = [key for key in KEYS if key not in results]
    if missing:
        raise ValueError(f"results lack the columns {', '.join(missing)}; expected {', '.join(KEYS)}")
    columns = {key: list(np.asarray(results[key]).tolist()) for key in KEYS}
    counts = {key: len(values) for key, values in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"results have columns of unequal length: {counts}")
    return columns


def _rows(columns: Mapping[str, list[Any]], rows: NDArray[np.int64]) -> dict[str, list[Any]]:
    return {key: [values[i] for i in rows.tolist()] for key, values in columns.items()}


def _videos(columns: Mapping[str, list[Any]]) -> Iterator[NDArray[np.int64]]:
    """The rows of one video after the other."""
    names = np.asarray(columns["video-id"])
    for name in dict.fromkeys(columns["video-id"]):
        yield np.flatnonzero(names == name)


def _arrays(
    columns: Mapping[str, list[Any]], rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    starts, ends, labels, scores = (np.asarray(columns[key])[rows] for key in KEYS[1:])
    return np.stack([starts, ends], 1).astype(np.float64), labels, scores.astype(np.float64)
