"""How good is it? Accuracy, F1 averages, confusions and speed of a model on one part of the dataset.

    python -m projects.ucf50_x3d.eval runs/ucf50_x3d/run/config.yaml [ckpt=FILE] [eval.split=test]
    python -m projects.ucf50_x3d.eval CONFIG ckpt=FILE clip.sampling=window eval.views=10 eval.crops=3

writes results.json, predictions.csv and report.html into the run directory. `ckpt` may be any file that convert reads:
one of ours, the original project's run_*.pth, a hub or a SlowFast checkpoint.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import simplejson
import torch
from torch import Tensor, nn

from core import config, dist, metrics, run
from core.checkpoint import write_atomic
from core.data import Loader
from core.run import Run
from core.step import Precision, autocast
from projects.ucf50_x3d import data, report, weights
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.data import Benchmark
from projects.ucf50_x3d.model import Head

Found = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluate the weights of `ckpt`, or the best ones of a run, and write the report."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        benchmark = data.load(cfg.data)
        job.log.info(benchmark.describe())
        return test(cfg, job, benchmark)


def test(cfg: Config, job: Run, benchmark: Benchmark) -> dict[str, float]:
    """Scores on `eval.split`, published into the run directory; empty when the run was asked to stop."""
    net, classes = weights.load(cfg, job, benchmark.classes)
    if tuple(classes) != benchmark.classes:
        raise ValueError(f"the weights know other classes ({_difference(classes, benchmark.classes)}) than the dataset")
    loader = Loader(
        benchmark.dataset(cfg.eval.split, cfg.clip, views=cfg.eval.views),
        cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size}),
        train=False,
        device=job.device,
        transform=data.transform(cfg, benchmark, crops=cfg.eval.crops),
    )
    batches = job.log.progress(loader, cfg.eval.split)
    found = evaluate(net, batches, precision=cfg.precision, stopping=lambda: job.stop_requested)
    return {} if found is None else publish(found, benchmark, loader, cfg, job)


def _difference(known: Sequence[str], wanted: Sequence[str]) -> str:
    if len(known) != len(wanted):
        return f"{len(known)} of them, the dataset has {len(wanted)}"
    place = next(k for k, (a, b) in enumerate(zip(known, wanted, strict=True)) if a != b)
    return f"number {place} is {known[place]!r}, in the dataset {wanted[place]!r}"


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    *,
    precision: Precision = "fp32",
    stopping: Callable[[], bool] = lambda: False,
) -> Found | None:
    """Merge over processes, for every clip: `id`, `label`, `scores` (N, K), `latency_s` and `launch_s` (N,).

    Scores are logarithms of class shares, see `score`. `latency_s` is the time to the answer, NaN for the first batch,
    which warms up; `launch_s` is the original's measure: forward and argmax without waiting for the device, first batch
    included. None when a process was asked to stop before its end.
    """
    model.eval()
    collector = metrics.Collector()
    for number, batch in enumerate(batches):
        clips = batch["video"] if "video" in batch else batch["features"]
        with autocast(precision, clips.device):
            _wait_for(clips.device)
            started = time.perf_counter()
            scores = score(model, clips)
            scores.argmax(1)
            launched = time.perf_counter()
            _wait_for(clips.device)
            finished = time.perf_counter()
        count = len(scores)
        collector.add(
            batch["id"],
            label=batch["label"].cpu(),
            scores=scores.cpu(),
            latency_s=[(finished - started) / count if number else math.nan] * count,
            launch_s=[(launched - started) / count] * count,
        )
        if stopping():
            break
    return None if dist.any_true(stopping()) else collector.merge()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def score(model: nn.Module, clips: Tensor) -> Tensor:
    """The logarithm of each class's share: clips (B, 3, T, H, W), features, or views (B, ..., 3, T, H, W) -> (B, K).

    One view: log-softmax of the logits. Several: the mean of their softmax, which ranks as SlowFast's sum does.
    """
    views = math.prod(clips.shape[1:-4])  # 1 for clips and features, which have at most five dimensions
    scores: Tensor = model(clips.flatten(0, -5) if clips.ndim > 5 else clips).float()
    is_share = any(isinstance(part, Head) and part.activation == "softmax" for part in model.modules())
    scores = (scores.log() if is_share else scores.log_softmax(-1)).view(-1, views, scores.shape[-1])
    return scores.logsumexp(1) - math.log(views)


def measure(found: Found) -> dict[str, float]:
    """The numbers of a table row; shares are in percent, as the original prints them.

    Raises: ValueError when there is no clip to measure.
    """
    if not found["id"]:
        raise ValueError("no clip could be read, so there is nothing to measure; the warnings name the files")
    scores, labels = np.asarray(found["scores"]), np.asarray(found["label"])
    classes, answers = scores.shape[1], scores.argmax(1)
    result = {
        "accuracy": 100 * metrics.accuracy(labels, answers),
        "top5_accuracy": 100 * metrics.top_k(scores, labels, min(5, classes)),
        "mean_class_accuracy": 100 * metrics.class_mean_recall(scores, labels, 1),
        "loss": float(-scores[np.arange(len(labels)), labels].mean()),
    }
    table = metrics.precision_recall_f1(labels, answers, classes)
    for scope in ("all", "seen"):
        averages = {average: table.average(average, over=scope).f1 for average in ("macro", "micro", "weighted")}
        result |= {f"f1_{average}_{scope}_labels": value for average, value in averages.items()}
    return result


def speed(found: Found) -> dict[str, float]:
    """Seconds per clip: mean and median to the answer without warm-up, and the original's average."""
    latency = np.asarray(found["latency_s"])
    latency = latency[~np.isnan(latency)]
    return {
        "latency_mean_s": float(latency.mean()) if latency.size else float("nan"),
        "latency_median_s": float(np.median(latency)) if latency.size else float("nan"),
        "average_inference_time_s": float(np.mean(found["launch_s"])),
    }


def publish(found: Found, benchmark: Benchmark, loader: Loader, cfg: Config, job: Run) -> dict[str, float]:
    """Write results.json, predictions.csv and report.html; log the numbers and where the report is."""
    part, coverage = cfg.eval.split, loader.coverage()
    counts = {"clips_expected": coverage.expected, "clips_scored": coverage.scored}
    results = {f"{part}/{name}": value for name, value in {**measure(found), **speed(found), **counts}.items()}
    if job.world.rank == 0:
        write_atomic(job.out / "results.json", simplejson.dumps(results, indent=2, ignore_nan=True) + "\n")
        write_atomic(job.out / "predictions.csv", predictions(found, benchmark.classes, cfg.eval.topk))
        report.write(job.out, found, results, coverage, benchmark, cfg)
    unread = coverage.expected - coverage.scored
    job.log.info(
        f"Test Accuracy: {results[f'{part}/accuracy']:.2f}% of {coverage.scored} clips"
        + (f"; {unread} of {coverage.expected} could not be read and count nowhere: {coverage}" if unread else "")
    )
    job.log.info(
        f"Average Inference Time per sample: {results[f'{part}/average_inference_time_s']:.4f} seconds "
        f"(to the answer, without warm-up: median {results[f'{part}/latency_median_s']:.4f})"
    )
    job.log.info(f"report: {job.out / 'report.html'}")
    return results


def predictions(found: Found, classes: Sequence[str], topk: int) -> str:
    """The text of predictions.csv: per clip its truth, the answer, and the best classes with their shares."""
    scores = torch.as_tensor(np.asarray(found["scores"]))
    shares, best = scores.exp().topk(min(topk, scores.shape[1]))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ranks = range(1, best.shape[1] + 1)
    writer.writerow(
        ["video_name", "label", "prediction", *(f"{what}_{rank}" for rank in ranks for what in ("class", "share"))]
    )
    for name, label, row, share in zip(found["id"], found["label"], best.tolist(), shares.tolist(), strict=True):
        ranked = [text for k, s in zip(row, share, strict=True) for text in (classes[k], f"{s:.6f}")]
        writer.writerow([name, classes[label], classes[row[0]], *ranked])
    return buffer.getvalue()


if __name__ == "__main__":
    main()
