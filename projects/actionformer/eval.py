"""How good is it? mAP at tIoU and recall@kx as the official evaluators give them, with an analysis of the errors.

    python -m projects.actionformer.eval CONFIG.yaml [ckpt=FILE_OR_FOLDER] [eval.epoch=N]
    python -m projects.actionformer.eval CONFIG.yaml eval.detections=FILE       # no network: judge what others found
    python -m projects.actionformer.eval CONFIG.yaml ckpt=FILE eval.save_only=true data.eval_splits=[test]

writes results.json, predictions.json, detections.npz and report.html into the run directory, and a submission when
eval.submission names a format. Every video is answered once, by any number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import simplejson
import torch
from torch import nn

from core import config, dist, metrics, run
from core.checkpoint import write_atomic
from core.data import Batch, Loader, Sample, SampleError
from core.run import Run
from core.step import autocast
from projects.actionformer import data, report, results, submission, weights
from projects.actionformer.config import Config
from projects.actionformer.constraints import TemporalConstraints
from projects.actionformer.data import Benchmark, Videos
from projects.actionformer.postprocess import Detections, decode
from projects.actionformer.postprocess.external import fuse, read_scores, scores_of

GEOMETRY = ("fps", "stride_frames", "window_frames", "duration_s")

Found = dict[str, Any]
"""Columns of all videos: id, and lists of arrays segments (M,2) in seconds, scores (M,), labels (M,), spread."""


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluate the weights of `ckpt`, or the best ones of a run, and write the report."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        benchmark = data.load(cfg.data)
        job.log.info(benchmark.describe())
        return test(cfg, job, benchmark)


def test(cfg: Config, job: Run, benchmark: Benchmark) -> dict[str, float]:
    """The figures on the first of `data.eval_splits`, published; empty when only saved, or asked to stop."""
    if cfg.eval.detections is not None:
        return publish(results.read(cfg.eval.detections, benchmark.classes), benchmark, cfg, job, "")
    net, _ = weights.load(cfg, job, benchmark.classes)
    videos = loader(benchmark, cfg, job.device)
    batches = job.log.progress(videos, cfg.data.eval_splits[0])
    found = evaluate(net, batches, cfg, stopping=lambda: job.stop_requested)
    if found is None:
        return {}
    coverage = videos.coverage()
    unread = f"{coverage.expected - coverage.scored} videos could not be read: {coverage}" if coverage.bad else ""
    return publish(table_of(found), benchmark, cfg, job, unread)


class ByLength:
    """The videos of a dataset, longest first, so that a batch holds videos of similar length."""

    def __init__(self, videos: Videos) -> None:
        self.videos = videos
        self.order = sorted(range(len(videos)), key=lambda i: -self._length(i))

    def _length(self, index: int) -> int:
        try:
            return self.videos.length(index)
        except SampleError:  # reading it will say so
            return 0

    def __len__(self) -> int:
        return len(self.order)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """See `data`."""
        return self.videos.sample(self.order[index], rng)


def loader(benchmark: Benchmark, cfg: Config, device: torch.device) -> Loader:
    """Batches of the videos to evaluate; each video goes to one process."""
    videos = benchmark.dataset("eval")
    return Loader(
        ByLength(videos) if cfg.eval.batch_size > 1 else videos,
        cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size}),
        train=False,
        device=device,
        collate=data.collate,
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], cfg: Config, *, stopping: Callable[[], bool] = lambda: False
) -> Found | None:
    """What the model finds in every video, merged over processes; None when one of them was asked to stop.

    A batch is decoded while the network reads the next one.
    """
    model.eval()
    collector = metrics.Collector()
    with ThreadPoolExecutor(1) as worker:
        before: Future[list[tuple[str, Detections]]] | None = None
        for batch in batches:
            with autocast(cfg.precision, batch["features"].device):
                answers = list(answer(model, batch))
            after = worker.submit(_decode, answers, batch, cfg)
            collect(collector, before)
            before = after
            if stopping():
                break
        collect(collector, before)
    return None if dist.any_true(stopping()) else collector.merge()


def answer(model: nn.Module, batch: Batch) -> Iterable[tuple[list[int], Any]]:
    """The model's outputs for groups of videos (by their number in the batch) that padding lets share a batch."""
    features, mask, lengths = batch["features"], batch["mask"], batch["lengths"]
    padding: Any = dist.unwrap(model).padding
    for group in padding.compatible(lengths):
        inputs = (features, mask) if len(group) == len(lengths) else (features[group], mask[group])
        yield group, model(*inputs, [lengths[i] for i in group])


def _decode(answers: Iterable[tuple[list[int], Any]], batch: Batch, cfg: Config) -> list[tuple[str, Detections]]:
    found: list[tuple[str, Detections]] = []
    for group, outputs in answers:
        own = {key: [batch[key][i] for i in group] for key in GEOMETRY}
        found += zip([batch["id"][i] for i in group], decode(outputs, own, cfg.postprocess), strict=True)
    return found


def collect(collector: metrics.Collector, work: Future[list[tuple[str, Detections]]] | None) -> None:
    """Add what the worker found, when it is done."""
    if work is None:
        return
    ids, found = zip(*work.result(), strict=True)
    columns = {
        "segments": [one.segments_s for one in found],
        "scores": [one.scores for one in found],
        "labels": [one.labels for one in found],
    }
    if found[0].spread_s is not None:
        columns["spread"] = [one.spread_s for one in found]
    collector.add(ids, **columns)


def table_of(found: Found) -> dict[str, Detections]:
    """The columns of `evaluate` by video."""
    columns = [found.get(name, [None] * len(found["id"])) for name in ("segments", "scores", "labels", "spread")]
    return {video: Detections(*one) for video, *one in zip(found["id"], *columns, strict=True)}


def finish(table: Mapping[str, Detections], cfg: Config) -> dict[str, Detections]:
    """The detections that count: with the classes of `postprocess.external_scores`, and within its constraints.

    Raises: ValueError when a video has no class scores.
    """
    post, answers = cfg.postprocess, dict(table)
    if post.external_scores is not None:
        scores, source = read_scores(post.external_scores), post.external_scores
        limits = {"classes": post.external_classes, "most": post.external_detections}
        answers = {
            video: fuse(found, scores_of(video, scores, source), **limits) if len(found.scores) else found
            for video, found in answers.items()
        }
    if post.constraints is not None:
        rules = TemporalConstraints.of(post.constraints)
        for video, found in answers.items():
            stays = rules.keep(found.segments_s, found.labels, found.scores)
            answers[video] = found.take(stays)
    return answers


def truth_of(benchmark: Benchmark, cfg: Config) -> metrics.Actions:
    """The actions that detections are compared with: those of the first evaluated subset, repetitions left out.

    Proposals that no class scores are given are compared with actions of any class.
    """
    rows = benchmark.truth(cfg.data.eval_splits[0])
    segments = np.array([[row.start_s, row.end_s] for row in rows], np.float64).reshape(-1, 2)
    any_class = benchmark.proposals and cfg.postprocess.external_scores is None
    labels = np.array([0 if any_class else row.label_id for row in rows], np.int64)
    actions = metrics.Actions([row.video for row in rows], segments, labels)
    if cfg.model.name == "snapformer":
        return actions
    keep = metrics.distinct(actions)
    return metrics.Actions(
        [row.video for row, kept in zip(rows, keep, strict=True) if kept], segments[keep], labels[keep]
    )


def score(table: Mapping[str, Detections], benchmark: Benchmark, cfg: Config) -> metrics.DetectionScores:
    """The evaluation of finished detections.

    Raises: ValueError when there is nothing to compare them with.
    """
    truth = truth_of(benchmark, cfg)
    if not len(truth.videos):
        raise ValueError(
            f"{cfg.data.annotations} has no actions in {cfg.data.eval_splits[0]!r}; eval.save_only=true writes the "
            "detections without them"
        )
    found, collide = results.flatten(table), cfg.eval.label_collision
    if cfg.model.name == "snapformer":
        return metrics.point_map(truth, found, cfg.eval.tolerances_s, cfg.eval.recall, collide=collide)
    tiou = benchmark.layout.tiou if cfg.eval.tiou is None else cfg.eval.tiou
    return metrics.detection_map(truth, found, tiou, cfg.eval.recall, collide=collide)


def measure(found: Found, benchmark: Benchmark, cfg: Config) -> dict[str, float]:
    """What `evaluate` found as figures, in percent: `mAP`, and at every threshold `mAP@0.50`, `recall@1x@0.50`, ..."""
    return figures(score(finish(table_of(found), cfg), benchmark, cfg), cfg)


def figures(scores: metrics.DetectionScores, cfg: Config) -> dict[str, float]:
    """The numbers of a table row, in percent."""
    unit = "s" if cfg.model.name == "snapformer" else ""
    values = {"mAP": 100 * scores.average_map}
    for at, value in zip(scores.thresholds, scores.map, strict=True):
        values[f"mAP@{at:.2f}{unit}"] = 100 * float(value)
    for j, k in enumerate(cfg.eval.recall):
        for at, value in zip(scores.thresholds, scores.mean_recall[:, j], strict=True):
            values[f"recall@{k}x@{at:.2f}{unit}"] = 100 * float(value)
    return values


def block(scores: metrics.DetectionScores, cfg: Config) -> str:
    """The table as the official evaluator prints it."""
    name = "distance" if cfg.model.name == "snapformer" else "tIoU"
    lines = [
        f"|{name} = {at:.2f}: mAP = {100 * value:>4.2f} (%) "
        + " ".join(f"Recall@{k}x = {100 * r:>4.2f} (%)" for k, r in zip(cfg.eval.recall, recalls, strict=True))
        for at, value, recalls in zip(scores.thresholds, scores.map, scores.mean_recall, strict=True)
    ]
    return "\n".join(["", *lines, f"Average mAP: {100 * scores.average_map:>4.2f} (%)"])


def publish(
    table: Mapping[str, Detections], benchmark: Benchmark, cfg: Config, job: Run, unread: str
) -> dict[str, float]:
    """Write what was found and, unless only that is wanted, how good it is; the figures by `subset/name`."""
    part, main_process = cfg.data.eval_splits[0], job.world.rank == 0
    if main_process:  # as the official run saves them: before class scores of videos come in
        results.write_columns(job.out / "detections.npz", table)
    table = finish(table, cfg)
    if main_process:
        results.write_json(job.out / "predictions.json", table, benchmark.classes)
        if cfg.eval.submission != "none":
            submission.write(job.out / "submission.json", table, benchmark, cfg)
    count = sum(len(found.scores) for found in table.values())
    job.log.info(f"{count} detections in {len(table)} videos: {job.out / 'predictions.json'}")
    if unread:
        job.log.warning(unread)
    if cfg.eval.save_only:
        return {}
    scores = score(table, benchmark, cfg)
    values = {f"{part}/{name}": value for name, value in figures(scores, cfg).items()}
    job.log.info(f"Action detection results on {benchmark.layout.title}, {part}:{block(scores, cfg)}")
    if main_process:
        write_atomic(job.out / "results.json", simplejson.dumps(values, indent=2, ignore_nan=True) + "\n")
        report.write(job.out, table, scores, truth_of(benchmark, cfg), benchmark, cfg)
        job.log.info(f"report: {job.out / 'report.html'}")
    return values


if __name__ == "__main__":
    main()
