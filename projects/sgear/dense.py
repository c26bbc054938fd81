"""Dense anticipation of 50 Salads and Breakfast: a part of a video is seen, every frame of the next part is labeled.

    python -m projects.sgear.dense projects/sgear/configs/salads_vit.yaml [ckpt=FILE] [dense.observe=[0.2,0.3]]

writes dense.json (mean over classes of frame accuracy, MoC, by observed and predicted share of the video) and
dense.html, in which truth and expectation lie side by side, into the run directory. The mean over folds:
`python -m projects.sgear.average RUN/dense.json RUN/dense.json ...`.

The protocol is that of Abu Farha et al., "When will you do what?", CVPR 2018. The decoder rolls out as far as needed, a
step being 1 / data.rate; a frame gets the label of the nearest step. The published code of S-GEAR has no such
evaluation, so how its eight numbers were made is not known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejson
import torch
from numpy.typing import NDArray

from core import config, metrics, run, video
from core.checkpoint import write_atomic
from core.data import SampleError
from core.report import Page, Segment, SegmentTrack
from core.run import Run
from core.step import autocast
from projects.sgear import data, frames, predict, weights
from projects.sgear.annotations import Segments
from projects.sgear.config import Config
from projects.sgear.data import Benchmark
from projects.sgear.model import Sgear

Labels = NDArray[np.int64]


class Outlook(NamedTuple):
    """What a model expects of a video of which the share `observed` was seen."""

    video: str
    fps: float
    observed: float
    truth: Labels
    """(L,): the action of every frame of the video, -1 where there is none."""
    expected: Labels
    """(N,): of the frames from number int(observed · L) on."""


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Roll out every video of the validation part; returns the figures."""
    cfg = config.parse(Config, argv)
    if cfg.data.dataset not in ("salads", "breakfast"):
        raise ValueError(
            f"{cfg.data.dataset} has no label for every frame: dense anticipation is for data.dataset=salads, breakfast"
        )
    with run.start(cfg, cfg.run, visit=True) as job:
        benchmark = data.load(cfg.data)
        job.log.info(benchmark.describe())
        net, _ = weights.load(cfg, job, benchmark)
        found: list[Outlook] = []
        lost: list[str] = []
        paths = list(dict.fromkeys(benchmark.segments("val").path.tolist()))
        for path in job.log.progress(paths, "dense"):
            try:
                found += look_ahead(net, path, benchmark, cfg, job)
            except (video.VideoError, SampleError) as error:
                lost.append(path)
                job.log.warning(f"left out: {error}")
            if job.stop_requested:
                return {}
        if not found:
            raise ValueError("no video could be read, so there is nothing to measure; the warnings name the files")
        results = measure(found, cfg)
        results |= {"dense/samples_expected": len(paths), "dense/samples_scored": len(paths) - len(lost)}
        write_atomic(job.out / "dense.json", simplejson.dumps(results, indent=2, ignore_nan=True) + "\n")
        _report(job.out / "dense.html", found, results, benchmark)
        for name, value in results.items():
            job.log.info(f"{name}: {value:.2f}")
        job.log.info(f"report: {job.out / 'dense.html'}")
        return results


def frame_labels(segments: Segments, fps: float) -> Labels:
    """The action of every frame (L,) of the one video that the segments are of; -1 where there is none."""
    starts, ends = (np.rint(np.asarray(s, dtype=float) * fps).astype(int) for s in (segments.start_s, segments.end_s))
    labels = np.full(int(ends.max()), -1, dtype=np.int64)
    for start, end, action in zip(starts, ends, segments.action, strict=True):
        labels[start:end] = action
    return labels


def look_ahead(net: Sgear, path: str, benchmark: Benchmark, cfg: Config, job: Run) -> Iterator[Outlook]:
    """The expectation at every share of the video that is observed.

    Raises: VideoError, SampleError when a frame that is needed cannot be read.
    """
    segments = benchmark.segments("val")
    fps = benchmark.label_fps(path)
    truth = frame_labels(segments[segments.path == path], fps)
    file = Path(path) if cfg.data.source == "features" else frames.find(benchmark.layout.videos, path, cfg.data.source)
    moments = predict.Moments(file, cfg.data, 1.0)
    step_s = 1 / (cfg.data.rate or moments.fps)
    shares = sorted(cfg.dense.observe)
    try:
        choices = [moments.choose(int(share * len(truth)) / fps) for share in shares]
    except ValueError as error:
        raise SampleError(path, str(error)) from error
    windows = predict.windows_of(net, moments, choices, cfg, job)
    for share, choice in zip(shares, choices, strict=True):
        first = int(share * len(truth))
        count = min(int((share + max(cfg.dense.predict)) * len(truth)), len(truth)) - first
        steps = max(1, math.ceil(count / fps / step_s))
        with torch.inference_mode(), autocast(cfg.precision, job.device):
            scores = torch.stack([net.ahead(*view, steps)[0].float() for view in windows.at(choice)]).mean(0)
        labels = scores.argmax(-1).cpu().numpy()
        yield Outlook(path, fps, share, truth, labels[nearest_step(count, fps, step_s)])


def nearest_step(count: int, fps: float, step_s: float) -> Labels:
    """For each of the next `count` frames the decoded step that is nearest in time; step k lies k + 1 steps ahead."""
    away = np.arange(count) / fps / step_s
    steps: Labels = np.maximum(np.floor(away + 0.5).astype(np.int64) - 1, 0)
    return steps


def measure(found: Sequence[Outlook], cfg: Config) -> dict[str, float]:
    """MoC in percent by `dense/observe<share>_predict<share>`: over the frames of all videos, classes that occur."""
    results = {}
    for observed, ahead in itertools.product(sorted(cfg.dense.observe), sorted(cfg.dense.predict)):
        truths, right = [], []
        for outlook in found:
            if outlook.observed == observed:
                first, end = (int(share * len(outlook.truth)) for share in (observed, observed + ahead))
                truth = outlook.truth[first:end]
                known = truth >= 0
                truths.append(truth[known])
                right.append((outlook.expected[: len(truth)] == truth)[known])
        values = np.concatenate(right).astype(float)
        name = f"dense/observe{100 * observed:g}_predict{100 * ahead:g}"
        results[name] = 100 * metrics.class_mean(values, np.concatenate(truths)) if len(values) else math.nan
    return results


def _report(path: Path, found: Sequence[Outlook], results: dict[str, float], benchmark: Benchmark) -> None:
    page = Page("What will be done, and when?", benchmark.describe())
    page.table("Mean over classes of frame accuracy, %", [{"setting": n, "value": v} for n, v in results.items()])
    for name, outlooks in itertools.groupby(found, lambda outlook: outlook.video):
        shown = list(outlooks)
        first = shown[0]
        tracks = [SegmentTrack("done", _runs(first.truth, 0, first.fps, benchmark.actions))]
        tracks += [
            SegmentTrack(
                f"expected when {outlook.observed:.0%} are seen",
                _runs(outlook.expected, int(outlook.observed * len(outlook.truth)), outlook.fps, benchmark.actions),
            )
            for outlook in shown
        ]
        page.timeline(name, tracks, duration_s=len(first.truth) / first.fps)
    page.save(path)


def _runs(labels: Labels, first: int, fps: float, names: Sequence[str]) -> list[Segment]:
    """Equal labels in a row as one segment."""
    segments, start = [], first
    for label, group in itertools.groupby(labels.tolist()):
        end = start + len(list(group))
        if label >= 0:
            segments.append(Segment(start / fps, end / fps, names[label], 1.0))
        start = end
    return segments


if __name__ == "__main__":
    main()
