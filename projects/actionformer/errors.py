"""Why is the mAP what it is? What false positives are, which actions are found, where precision is lost.

The kinds of errors and the groups of actions follow DETAD (Alwassel et al., ECCV 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core import metrics
from core.metrics import Actions, Detections

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

KINDS = ("true positive", "duplicate", "localization", "wrong label", "confusion", "background")
LEAST = 0.1  # overlap below which a detection has nothing to do with an action
COVERAGE = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the video, as in DETAD
NAMES = ("XS", "S", "M", "L", "XL")


@dataclass(frozen=True)
class Nearest:
    """What each of N detections overlaps most, of any class and of its own: overlaps (N,), numbers (N,) of truths."""

    overlap: Floats
    truth: Ints
    own_overlap: Floats


def nearest(truth: Actions, found: Detections) -> Nearest:
    """Look up every detection's best truth, video by video; -1 where its video has none."""
    overlap, own, number = np.zeros(len(found.videos)), np.zeros(len(found.videos)), np.full(len(found.videos), -1)
    true_rows, found_rows = _by_video(truth.videos), _by_video(found.videos)
    spans, segments = np.asarray(truth.segments, np.float64), np.asarray(found.segments, np.float64)
    true_labels, labels = np.asarray(truth.labels), np.asarray(found.labels)
    for video, rows in found_rows.items():
        there = true_rows.get(video)
        if there is None:
            continue
        pairs = metrics.segment_iou(segments[rows], spans[there])
        same = np.where(true_labels[there] == labels[rows][:, None], pairs, 0.0)
        best = pairs.argmax(1)
        overlap[rows], number[rows] = pairs[np.arange(len(rows)), best], there[best]
        own[rows] = same.max(1)
    return Nearest(overlap, number, own)


def kinds(truth: Actions, found: Detections, taken: Ints, near: Nearest, tiou: float) -> Ints:
    """The place in KINDS (N,) of every detection at an overlap; `taken` (N,) is the truth it was matched with, or -1.

    duplicate: the truth is taken by a better one; localization: right class, overlap too small; wrong label: another
    class, overlap large enough; confusion: neither; background: no overlap with anything.
    """
    answer = np.full(len(taken), KINDS.index("background"))
    answer[near.overlap >= LEAST] = KINDS.index("confusion")
    answer[near.overlap >= tiou] = KINDS.index("wrong label")
    answer[near.own_overlap >= LEAST] = KINDS.index("localization")
    answer[near.own_overlap >= tiou] = KINDS.index("duplicate")
    answer[taken >= 0] = KINDS.index("true positive")
    return answer


def profile(truth: Actions, found: Detections, kind: Ints, *, times: int = 10) -> Floats:
    """Shares (times, kinds): of the best G detections of each class, the next G, and so on, G its number of truths.

    A class that runs out of detections drops out of the later rows; a row without any detection is NaN.
    """
    scores, labels, true_labels = np.asarray(found.scores), np.asarray(found.labels), np.asarray(truth.labels)
    counts = np.zeros((times, len(KINDS)))
    for label, positives in zip(*np.unique(true_labels, return_counts=True), strict=True):
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-scores[own], kind="stable")][: times * positives]
        np.add.at(counts, (np.arange(len(own)) // positives, kind[own]), 1)
    total = counts.sum(1, keepdims=True)
    shares: Floats = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return shares


def reached(truth: Actions, taken: Ints) -> Bools:
    """Which truths (M,) some detection was matched with."""
    found = np.zeros(len(truth.videos), bool)
    found[taken[taken >= 0]] = True
    return found


@dataclass(frozen=True)
class Group:
    """Actions of one kind: how many there are and the share that was found."""

    name: str
    count: int
    found: float


def by_length(truth: Actions, found: Bools) -> list[Group]:
    """Recall of five groups with equally many actions, from the shortest to the longest."""
    segments = np.asarray(truth.segments, np.float64)
    length = segments[:, 1] - segments[:, 0]
    edges = np.quantile(length, np.linspace(0, 1, len(NAMES) + 1)) if len(length) else np.zeros(len(NAMES) + 1)
    place = np.searchsorted(edges[1:-1], length, side="left")
    return [
        _group(f"{name}: {low:.3g} to {high:.3g} s", found[place == k])
        for k, (name, low, high) in enumerate(zip(NAMES, edges, edges[1:], strict=False))
    ]


def by_coverage(truth: Actions, found: Bools, durations_s: Mapping[Any, float]) -> list[Group]:
    """Recall by the share of its video that an action fills, in DETAD's steps; videos of unknown length left out."""
    segments = np.asarray(truth.segments, np.float64)
    length = segments[:, 1] - segments[:, 0]
    share = np.array([size / durations_s.get(video, np.nan) for video, size in zip(truth.videos, length, strict=True)])
    known = np.isfinite(share)
    place = np.searchsorted(COVERAGE[1:-1], share, side="left")
    return [
        _group(f"{name}: {low:.0%} to {high:.0%}", found[known & (place == k)])
        for k, (name, low, high) in enumerate(zip(NAMES, COVERAGE, COVERAGE[1:], strict=False))
    ]


def by_instances(truth: Actions, found: Bools) -> list[Group]:
    """Recall by the number of actions of its class in the video."""
    keys = list(zip(truth.videos, np.asarray(truth.labels).tolist(), strict=True))
    counts: dict[tuple[Any, int], int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    own = np.array([counts[key] for key in keys], np.int64)
    steps = ((1, 1), (2, 4), (5, 8), (9, None))
    return [
        _group(
            "1" if high == 1 else f"{low} or more" if high is None else f"{low} to {high}",
            found[(own >= low) & (own <= (high or own.max(initial=0)))],
        )
        for low, high in steps
    ]


def precision_recall(truth: Actions, found: Detections, taken: Ints, points: int = 101) -> tuple[Floats, Floats]:
    """Recall (points,) and the mean over classes of the interpolated precision there; `taken` as for `kinds`."""
    at = np.linspace(0, 1, points)
    labels, scores = np.asarray(found.labels), np.asarray(found.scores)
    curves = []
    for label, positives in zip(*np.unique(np.asarray(truth.labels), return_counts=True), strict=True):
        own = np.flatnonzero(labels == label)
        hits = taken[own[np.argsort(-scores[own], kind="stable")]] >= 0
        right = np.cumsum(hits)
        precision = right / np.arange(1, len(hits) + 1)
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        curves.append(envelope[np.searchsorted(right / positives, at - 1e-12, side="left")])
    return at, np.mean(curves, 0) if curves else np.zeros(points)


def confusions(truth: Actions, found: Detections, tiou: float, classes: Sequence[int]) -> Ints:
    """Counts (K+1,K+1) over `classes` and nothing: what the best scoring detection that overlaps a truth calls it."""
    place = {label: k for k, label in enumerate(classes)}
    counts = np.zeros((len(classes) + 1, len(classes) + 1), np.int64)
    found_rows, true_rows = _by_video(found.videos), _by_video(truth.videos)
    segments, scores, labels = (
        np.asarray(found.segments, np.float64),
        np.asarray(found.scores),
        np.asarray(found.labels),
    )
    spans, true_labels = np.asarray(truth.segments, np.float64), np.asarray(truth.labels)
    for video, there in true_rows.items():
        rows = found_rows.get(video, np.zeros(0, np.int64))
        close = metrics.segment_iou(spans[there], segments[rows]) >= tiou
        ranked = np.where(close, scores[rows], -np.inf)
        for i, row in zip(there, ranked, strict=True):
            answer = int(labels[rows[row.argmax()]]) if len(rows) and row.max() > -np.inf else None
            counts[place[int(true_labels[i])], place.get(answer, len(classes)) if answer is not None else -1] += 1
    return counts


def _group(name: str, found: Bools) -> Group:
    return Group(name, len(found), float(found.mean()) if len(found) else float("nan"))


def _by_video(videos: Sequence[Any]) -> dict[Any, Ints]:
    rows: dict[Any, list[int]] = {}
    for row, video in enumerate(videos):
        rows.setdefault(video, []).append(row)
    return {video: np.array(own) for video, own in rows.items()}
