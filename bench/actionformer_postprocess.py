"""Suppression in time: ours beside the same rules written plainly, class after class and pick after pick.

python -m bench.actionformer_postprocess [--rounds 5]

The plain version is the published structure in NumPy: each class is decayed to its very end, then the classes are
merged and cut (the official compiled operator does the same in C++; docs/benchmarks.md has its times). Both give the
same detections before they are timed. Processor time of one thread; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from projects.actionformer.config import PostprocessConfig
from projects.actionformer.postprocess import suppress, vote
from projects.actionformer.postprocess.overlap import iou

Problem = tuple[Any, Any, Any]
Answer = tuple[Any, Any, Any]


def problem(classes: int, count: int) -> Problem:
    """Segments of many lengths on a grid of 2304, scores, labels."""
    rng = np.random.default_rng(0)
    total = classes * count
    center, reach = rng.uniform(0, 2304, total), 2.0 ** rng.uniform(0, 7, total)
    sides = reach * rng.uniform(0.3, 1, (2, total))
    segments = np.stack([center - sides[0], center + sides[1]], 1).astype(np.float32)
    return (
        segments,
        rng.uniform(0.001, 1, total).astype(np.float32),
        rng.permutation(np.repeat(np.arange(classes), count)),
    )


def ours(given: Problem, cfg: PostprocessConfig) -> Answer:
    segments, scores, labels = given
    kept = suppress(segments, scores, labels, cfg)
    spans = segments[kept.numbers]
    if not cfg.per_class and cfg.voting:
        spans = vote(spans, segments, scores, cfg.voting)
    return spans, kept.scores, labels[kept.numbers]


def plain(given: Problem, cfg: PostprocessConfig) -> Answer:
    segments, scores, labels = given
    parts = []
    for label in np.unique(labels) if cfg.per_class else [None]:
        own = np.flatnonzero(labels == label) if cfg.per_class else np.arange(len(labels))
        run = {"hard": _hard, "soft": _diou if cfg.diou else _soft}[cfg.nms]
        index, values = run(segments[own], scores[own], cfg)
        parts.append((own[index[: cfg.max_detections]], values[: cfg.max_detections]))
    index, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(-values, kind="stable")[: cfg.max_detections]
    spans = segments[index[order]]
    if not cfg.per_class and cfg.voting:
        weight = _overlap(spans, segments)
        weight = np.where(weight >= np.float32(cfg.voting), weight * scores, 0)
        spans = (weight / weight.sum(1, keepdims=True)) @ segments
    return spans, values[order], labels[index[order]]


def _overlap(a: Any, b: Any) -> Any:
    common = np.maximum(np.minimum(a[:, None, 1], b[:, 1]) - np.maximum(a[:, None, 0], b[:, 0]), 0)
    return common / ((a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0]) - common)


def _soft(segments: Any, scores: Any, cfg: PostprocessConfig) -> tuple[Any, Any]:
    index, values, left, alive = [], [], scores.copy(), np.ones(len(scores), bool)
    while alive.any():
        best = int(np.where(alive, left, -1).argmax())
        index.append(best)
        values.append(left[best])
        alive[best] = False
        overlap = iou(segments[best : best + 1], segments)[0]
        left[alive] *= np.exp(-(overlap[alive] ** 2) / np.float32(cfg.sigma))
        alive &= left >= np.float32(cfg.min_score)
    return np.array(index), np.array(values, np.float32)


def _diou(segments: Any, scores: Any, cfg: PostprocessConfig) -> tuple[Any, Any]:
    """One pick after the other with torch, as the fork does it."""
    spans, left = torch.from_numpy(segments), torch.from_numpy(scores.copy())
    order, index = left.argsort(descending=True), []
    while len(order):
        best, order = order[0], order[1:]
        index.append(best)
        own, rest = spans[best], spans[order]
        common = (torch.minimum(own[1], rest[:, 1]) - torch.maximum(own[0], rest[:, 0])).clamp(min=0)
        iou = common / ((own[1] - own[0]) + (rest[:, 1] - rest[:, 0]) + 2e-6 - common)
        enclosing = torch.maximum(own[1], rest[:, 1]) - torch.minimum(own[0], rest[:, 0])
        distance = own.mean() - rest.mean(1)
        closeness = (iou - distance**2 / enclosing.clamp(min=1e-6) ** 2).clamp(min=0)
        left[order] *= torch.exp(-(closeness**2) / cfg.sigma)
        order = order[left[order] > cfg.min_score]
    numbers = torch.stack(index)
    return numbers.numpy(), left[numbers].numpy()


def _hard(segments: Any, scores: Any, cfg: PostprocessConfig) -> tuple[Any, Any]:
    order = np.argsort(-scores, kind="stable")
    index = []
    while len(order):
        index.append(order[0])
        order = order[1:][iou(segments[order[:1]], segments[order[1:]])[0] < np.float32(cfg.iou_threshold)]
    return np.array(index), scores[index]


def timed(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = PostprocessConfig(min_score=0.001, max_detections=200)
    change: dict[str, tuple[int, int, dict[str, Any]]] = {
        "soft, 20 classes x 2000, keep 200": (20, 2000, {}),
        "soft, 20 classes x 600, keep 200": (20, 600, {}),
        "hard, 20 classes x 2000, keep 200": (20, 2000, {"nms": "hard"}),
        "no classes, voting, 1500, keep 100": (
            1,
            1500,
            {"per_class": False, "max_detections": 100, "sigma": 0.75, "voting": 0.9},
        ),
        "no classes, voting, 12000, keep 200": (1, 12000, {"per_class": False, "sigma": 0.75, "voting": 0.9}),
        "soft, 110 classes x 360, keep 2000": (110, 360, {"sigma": 0.9, "max_detections": 2000}),
        "DIoU, 20 classes x 200": (20, 200, {"diou": True, "max_detections": 2000}),
    }
    print(f"{'work':<38} {'ours':>9} {'plain':>10} {'ratio':>7}   processor time, best of {args.rounds}; median ratio")
    for name, (classes, count, changes) in change.items():
        given, cfg = problem(classes, count), base.model_copy(update=changes)
        for a, b in zip(ours(given, cfg), plain(given, cfg), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3)
        pairs = [(timed(lambda: ours(given, cfg)), timed(lambda: plain(given, cfg))) for _ in range(args.rounds)]  # noqa: B023
        best = [min(column) for column in zip(*pairs, strict=True)]
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"{name:<38} {1e3 * best[0]:>6.1f} ms {1e3 * best[1]:>7.1f} ms {ratio:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
