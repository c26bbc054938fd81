"""Segments of time, found and true: average precision and recall as the temporal detection benchmarks count them.

All classes, videos and thresholds are matched together: the r-th best detections of every (class, video) look for
their truths in one step, so that an evaluation takes seconds where a loop over detections takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.metrics.classification import Floats, Ints, Values, _numpy

Bools = npt.NDArray[np.bool_]
Likeness = Callable[[Floats, Floats], Floats]


class Actions(NamedTuple):
    """What happens: the videos (N,) by name or number, segments (N,2) in seconds, labels (N,) from 0."""

    videos: Sequence[Any]
    segments: Values
    labels: Values


class Detections(NamedTuple):
    """What was found: as `Actions`, with scores (N,)."""

    videos: Sequence[Any]
    segments: Values
    labels: Values
    scores: Values


@dataclass(frozen=True)
class DetectionScores:
    """One evaluation: J thresholds, K classes with truth, ids ascending in `classes` (K,)."""

    classes: Ints
    thresholds: Floats
    ap: Floats
    """(J,K)"""
    recall: Floats
    """(J, number of k, K)"""

    @property
    def map(self) -> Floats:
        """(J,): mean of the classes' average precisions; 0 without classes."""
        return self.ap.mean(1) if len(self.classes) else np.zeros(len(self.thresholds))

    @property
    def average_map(self) -> float:
        """Mean of `map` over the thresholds."""
        return float(self.map.mean())

    @property
    def mean_recall(self) -> Floats:
        """(J, number of k): mean of the classes' recalls; 0 without classes."""
        return self.recall.mean(2) if len(self.classes) else np.zeros(self.recall.shape[:2])


def segment_iou(a: Values, b: Values) -> Floats:
    """Intersection over union (N,M) of segments (N,2) and (M,2); 0 where both are empty.

    Raises:
        ValueError: for other shapes.
    """
    first, second = _segments(a, "a"), _segments(b, "b")
    return _iou(first[:, None], second[None])


def detection_ap(truth: Actions, found: Detections, tiou: Sequence[float], *, collide: bool = False) -> Floats:
    """Average precision (J,K) at each overlap for each class with truth; arguments as `detection_map`."""
    return detection_map(truth, found, tiou, collide=collide).ap


def recall_at(
    truth: Actions, found: Detections, tiou: Sequence[float], k: Sequence[int] = (1, 5), *, collide: bool = False
) -> Floats:
    """Recall@kx (J, number of k, K): the share of a class's actions that its best k·n detections in a video reach.

    A video has n actions of the class; arguments as `detection_map`.
    """
    return detection_map(truth, found, tiou, k, collide=collide).recall


def detection_map(
    truth: Actions, found: Detections, tiou: Sequence[float], k: Sequence[int] = (1, 5), *, collide: bool = False
) -> DetectionScores:
    """Average precision and recall of every class that has truth.

    The protocol of all benchmarks of the field: by falling score (equal ones as they come) each detection takes, of the
    truths of its video and class that are free, the one it overlaps most, if by `tiou` or more. Precision is made
    monotone and summed over recall (all-point interpolation).

    `collide` repeats a fault of a widespread evaluator: classes with truth are renumbered 0..K-1, but detections of
    other classes keep their number and count for whichever class now has it; published numbers contain it.

    Raises:
        ValueError: for shapes that do not fit, or NaN scores.
    """
    return _evaluate(truth, found, _iou, np.asarray(tiou, np.float64), k, collide)


def point_map(
    truth: Actions, found: Detections, tolerance_s: Sequence[float], k: Sequence[int] = (1, 5), *, collide: bool = False
) -> DetectionScores:
    """As `detection_map` for moments: a detection finds an action when their centers are `tolerance_s` apart or less.

    Raises:
        ValueError: as `detection_map`.
    """
    return _evaluate(truth, found, _nearness, -np.asarray(tolerance_s, np.float64), k, collide)


def match_detections(truth: Actions, found: Detections, tiou: Sequence[float]) -> Ints:
    """(J,N): the number of the truth that each detection takes at each overlap, -1 for none; see `detection_map`.

    Raises:
        ValueError: as `detection_map`.
    """
    matched = _matched(truth, found, _iou, np.asarray(tiou, np.float64), (), False)
    taken = np.full((len(tiou), len(found.videos)), -1)
    taken[:, matched.order] = matched.taken
    return taken


def distinct(actions: Actions, tolerance_s: float = 1e-3) -> Bools:
    """Which actions (N,) count: neither shorter than `tolerance_s` nor a repetition of an earlier one that counts.

    A repetition has the same video and label and both ends within `tolerance_s`.
    """
    segments, labels = _segments(actions.segments, "segments"), _labels(actions.labels, len(actions.videos))
    keep = segments[:, 1] - segments[:, 0] >= tolerance_s
    earlier: dict[tuple[Any, int], list[int]] = {}
    for i in np.flatnonzero(keep).tolist():
        before = earlier.setdefault((actions.videos[i], int(labels[i])), [])
        if before and (np.abs(segments[before] - segments[i]) <= tolerance_s).all(1).any():
            keep[i] = False
        else:
            before.append(i)
    return keep


def _iou(a: Floats, b: Floats) -> Floats:
    common = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    common = np.maximum(common, 0.0)
    union = (b[..., 1] - b[..., 0]) + (a[..., 1] - a[..., 0]) - common
    overlap: Floats = np.divide(common, union, out=np.zeros_like(common), where=common > 0)
    return overlap


def _nearness(a: Floats, b: Floats) -> Floats:
    nearness: Floats = -np.abs(a.mean(-1) - b.mean(-1))
    return nearness


def _evaluate(
    truth: Actions, found: Detections, likeness: Likeness, thresholds: Floats, k: Sequence[int], collide: bool
) -> DetectionScores:
    """See `detection_map`; a detection fits a truth when their likeness reaches the threshold."""
    matched = _matched(truth, found, likeness, thresholds, k, collide)
    hits, kind, classes, positives = matched.taken >= 0, matched.kind, matched.classes, matched.positives
    bounds = np.searchsorted(kind, np.arange(len(classes) + 1))
    ap = [_area(hits[:, a:b], n) for a, b, n in zip(bounds, bounds[1:], positives, strict=False)]
    return DetectionScores(
        classes,
        np.abs(thresholds),
        np.stack(ap, 1) if ap else np.zeros((len(thresholds), 0)),
        matched.reached / np.maximum(positives, 1),
    )


@dataclass(frozen=True)
class _Matched:
    """Detections of classes with truth, those of a class together, best first."""

    classes: Ints
    positives: Ints
    """(K,): truths of each class"""
    order: Ints
    """(N,): numbers of the detections"""
    kind: Ints
    """(N,): places of their classes in `classes`"""
    taken: Ints
    """(J,N): number of the truth that each takes, or -1"""
    reached: Floats
    """(J, number of k, K): truths that the best k·n detections reach"""


def _matched(
    truth: Actions, found: Detections, likeness: Likeness, thresholds: Floats, k: Sequence[int], collide: bool
) -> _Matched:
    spans, true_labels = _segments(truth.segments, "truth"), _labels(truth.labels, len(truth.videos))
    segments, labels = _segments(found.segments, "found"), _labels(found.labels, len(found.videos))
    scores = _numpy(found.scores).astype(np.float64)
    if scores.shape != (len(segments),) or np.isnan(scores).any():
        raise ValueError(f"scores must be ({len(segments)},) without NaN, one for each segment; got {scores.shape}")
    classes, class_of_truth = np.unique(true_labels, return_inverse=True)
    numbers: dict[Any, int] = {}
    video_of_truth = np.array([numbers.setdefault(name, len(numbers)) for name in truth.videos], np.int64)
    video = np.array([numbers.get(name, -1) for name in found.videos], np.int64)
    kind = _renumbered(labels, classes, collide)

    order = np.lexsort((-scores, kind))
    order = order[kind[order] >= 0]
    kind, video, segments = kind[order], video[order], segments[order]
    taken = np.full((len(thresholds), len(order)), -1)
    reached = np.zeros((len(thresholds), len(k), len(classes)))
    videos = max(len(numbers), 1)
    for group in _groups(class_of_truth * videos + video_of_truth, kind, video, videos):
        rows, own, seen = _match(group, spans, segments, likeness, thresholds, k)
        taken[:, rows] = own
        for j in range(len(k)):
            counts = seen[:, j].sum(2)
            reached[:, j] += [np.bincount(class_of_truth[group.truths[:, 0]], row, len(classes)) for row in counts]
    positives = np.bincount(class_of_truth, minlength=len(classes))
    return _Matched(classes, positives, order, kind, taken, reached)


def _renumbered(labels: Ints, classes: Ints, collide: bool) -> Ints:
    """The place of each label in `classes`; -1, or with `collide` the label itself, for one that is not there."""
    place = np.searchsorted(classes, labels).clip(max=max(len(classes) - 1, 0))
    known = classes[place] == labels if len(classes) else np.zeros(len(labels), bool)
    other = np.where(labels < len(classes), labels, -1) if collide else np.full(len(labels), -1)
    return np.where(known, place, other)


@dataclass
class _Group:
    """Some (class, video) pairs with about equally many truths: numbers of truths and of detections, padded with -1."""

    truths: Ints
    """(P, most truths)"""
    found: Ints
    """(P, most detections), best first"""


def _groups(key_of_truth: Ints, kind: Ints, video: Ints, videos: int) -> Iterator[_Group]:
    """The pairs that have truths and detections, those with up to 1, 2, 4, ... truths together to pad little."""
    key = np.where(video >= 0, kind * videos + video, -1)
    pairs, count = np.unique(key_of_truth, return_counts=True)
    place = np.searchsorted(pairs, key).clip(max=max(len(pairs) - 1, 0))
    rows = np.flatnonzero(pairs[place] == key) if len(pairs) else np.zeros(0, np.int64)
    found = _table(place[rows], rows, len(pairs))
    truths = _table(np.searchsorted(pairs, key_of_truth), np.arange(len(key_of_truth)), len(pairs))
    sizes = (found >= 0).sum(1)
    bucket = np.where(sizes > 0, np.ceil(np.log2(count)), -1)
    for size in np.unique(bucket[bucket >= 0]):
        chosen = np.flatnonzero(bucket == size)
        chosen = chosen[np.argsort(-sizes[chosen], kind="stable")]  # so that those still busy in round r come first
        yield _Group(truths[chosen, : count[chosen].max()], found[chosen, : sizes[chosen].max()])


def _table(row: Ints, values: Ints, rows: int) -> Ints:
    """(rows, most values of a row): the values of each row in their order, then -1."""
    order = np.argsort(row, kind="stable")
    row, values = row[order], values[order]
    count = np.bincount(row, minlength=rows)
    column = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    table = np.full((rows, int(count.max()) if len(row) else 0), -1)
    table[row, column] = values
    return table


def _match(
    group: _Group, truth: Floats, found: Floats, likeness: Likeness, thresholds: Floats, k: Sequence[int]
) -> tuple[Ints, Ints, Bools]:
    """Detections (D,), the truth that each takes at each threshold (J,D) or -1, and which truths of the P pairs the
    best k·n detections reach (J, number of k, P, most).

    Round r matches the r-th best detections of all pairs at once; pairs do not know of each other.
    """
    there = group.truths >= 0
    spans, own = truth[group.truths], there.sum(1)
    free = np.repeat(there[None], len(thresholds), 0)
    best = np.full((len(k), *there.shape), -np.inf)
    rows, takes = [], []
    for rank in range(group.found.shape[1]):
        busy = int((group.found[:, rank] >= 0).sum())
        row = group.found[:busy, rank]
        alike = np.where(there[:busy], likeness(found[row][:, None], spans[:busy]), -np.inf)
        for j, times in enumerate(k):
            counts = (rank < times * own[:busy])[:, None]
            np.maximum(best[j, :busy], np.where(counts, alike, -np.inf), out=best[j, :busy])
        open_to = np.where(free[:, :busy], alike, -np.inf)
        choice = open_to.argmax(2)
        reaches = np.take_along_axis(open_to, choice[..., None], 2)[..., 0] >= thresholds[:, None]
        threshold, pair = np.nonzero(reaches)
        free[threshold, pair, choice[threshold, pair]] = False
        rows.append(row)
        takes.append(np.where(reaches, group.truths[np.arange(busy), choice], -1))
    return np.concatenate(rows), np.concatenate(takes, 1), best >= thresholds[:, None, None, None]


def _area(hits: Bools, positives: int) -> Floats:
    """Average precision (J,) of hits (J,N) in the order of falling score."""
    if not hits.shape[1]:
        return np.zeros(len(hits))
    right = np.cumsum(hits, 1, dtype=np.float64)
    precision = right / np.arange(1.0, hits.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    recall = right / positives
    steps = np.diff(recall, axis=1, prepend=0.0)
    return np.array([np.sum(step[hit] * height[hit]) for step, hit, height in zip(steps, hits, envelope, strict=True)])


def _segments(values: Values, name: str) -> Floats:
    array = _numpy(values).astype(np.float64, copy=False)
    array = array.reshape(0, 2) if not array.size else array
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{name} must be (N,2), start and end of each segment; got {array.shape}")
    return array


def _labels(values: Values, count: int) -> Ints:
    array = _numpy(values)
    if array.shape != (count,) or (count and array.dtype.kind not in "iu"):
        raise ValueError(
            f"labels must be ({count},) integers, one for each video name; got {array.shape} {array.dtype}"
        )
    return array.astype(np.int64, copy=False)
