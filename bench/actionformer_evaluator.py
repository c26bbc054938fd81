"""mAP and recall of temporal detection: core.metrics beside the protocol written plainly.

python -m bench.actionformer_evaluator [--videos 400]

The plain version goes through detections one by one, as the published evaluators do (with pandas rows in place of
lists, which takes them ten times as long again; docs/benchmarks.md has their times). Both give the same numbers to 1e-9
before they are timed. THUMOS14's size: 213 videos with 200 detections each, 20 classes, 15 actions a video, 5
thresholds; ActivityNet's: 4700 videos with 100 detections, 200 classes, 2 actions, 10 thresholds; --videos cuts the
plain run short and compares per video.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from core.metrics import Actions, Detections, detection_map, segment_iou


def problem(videos: int, found: int, classes: int, true: int) -> tuple[Actions, Detections]:
    rng = np.random.default_rng(0)
    names = [f"v{i:05d}" for i in range(videos)]
    start = rng.uniform(0, 100, videos * true)
    segments = np.stack([start, start + rng.uniform(2, 40, videos * true)], 1)
    truth = Actions([n for n in names for _ in range(true)], segments, rng.integers(0, classes, videos * true))
    pick = rng.integers(0, true, videos * found) + np.repeat(np.arange(videos), found) * true
    spans = np.sort(segments[pick] + rng.normal(0, 4, (len(pick), 2)), 1)
    labels = np.where(rng.random(len(pick)) < 0.6, np.asarray(truth.labels)[pick], rng.integers(0, classes, len(pick)))
    return truth, Detections([n for n in names for _ in range(found)], spans, labels, rng.random(len(pick)))


def plain(truth: Actions, found: Detections, tiou: Any, times: tuple[int, ...] = (1, 5)) -> tuple[Any, Any]:
    spans, true_labels, segments, labels = map(np.asarray, (truth.segments, truth.labels, found.segments, found.labels))
    scores = np.asarray(found.scores)
    ap, recall = [], []
    for label in np.unique(true_labels):
        own = np.flatnonzero(true_labels == label)
        by_video: dict[Any, list[int]] = {}
        for i in own:
            by_video.setdefault(truth.videos[i], []).append(i)
        order = np.flatnonzero(labels == label)
        order = order[np.argsort(-scores[order], kind="stable")]
        locked = np.zeros((len(tiou), len(spans)), bool)
        hits = np.zeros((len(tiou), len(order)), bool)
        ranked: dict[Any, list[int]] = {}
        for n, i in enumerate(order):
            ranked.setdefault(found.videos[i], []).append(i)
            there = by_video.get(found.videos[i])
            if there is None:
                continue
            alike = segment_iou(segments[i : i + 1], spans[there])[0]
            for t, threshold in enumerate(tiou):
                for j in np.argsort(-alike, kind="stable"):
                    if alike[j] < threshold:
                        break
                    if not locked[t, there[j]]:
                        locked[t, there[j]] = hits[t, n] = True
                        break
        right = np.cumsum(hits, 1)
        precision = right / np.arange(1, len(order) + 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        ap.append((envelope * hits).sum(1) / len(own))
        reached = np.zeros((len(tiou), len(times)))
        for video, there in by_video.items():
            for k, many in enumerate(times):
                rows = ranked.get(video, [])[: many * len(there)]
                alike = segment_iou(segments[rows], spans[there])
                reached[:, k] += [(alike >= threshold).any(0).sum() if rows else 0 for threshold in tiou]
        recall.append(reached / len(own))
    return np.stack(ap, 1), np.stack(recall, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=400)
    args = parser.parse_args()
    sizes = {
        "THUMOS14": ((213, 200, 20, 15), np.linspace(0.3, 0.7, 5)),
        "ActivityNet": ((4700, 100, 200, 2), np.linspace(0.5, 0.95, 10)),
    }
    print(f"{'size':<12} {'core.metrics':>13} {'plain':>9} {'ratio':>7}   processor time")
    for name, (size, tiou) in sizes.items():
        few = (min(args.videos, size[0]), *size[1:])
        truth, found = problem(*few)
        start = time.process_time()
        ap, recall = plain(truth, found, tiou)
        slow = (time.process_time() - start) * size[0] / few[0]
        scores = detection_map(truth, found, tiou.tolist())
        np.testing.assert_allclose(scores.ap, ap, atol=1e-9)
        np.testing.assert_allclose(scores.recall, recall, atol=1e-9)
        truth, found = problem(*size)
        times = []
        for _ in range(3):
            start = time.process_time()
            detection_map(truth, found, tiou.tolist())
            times.append(time.process_time() - start)
        note = "" if few[0] == size[0] else f" (plain from {few[0]} of {size[0]} videos)"
        print(f"{name:<12} {min(times):>11.2f} s {slow:>7.1f} s {slow / min(times):>7.0f}{note}", flush=True)


if __name__ == "__main__":
    main()
