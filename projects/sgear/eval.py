"""How well is the next action anticipated? Every sample once, every figure that is reported, on one part.

    python -m projects.sgear.eval runs/sgear/ek100_SGEAR_tsn/config.yaml [ckpt=FILE] [eval.split=val] [eval.crops=3]

writes results.json, scores_<part>.npz (what `fuse` and `submission` read), predictions.csv and report.html into the run
directory. `ckpt` may be any file that convert reads.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import simplejson
import torch
from torch import nn

from core import config, dist, metrics, run
from core.checkpoint import write_atomic
from core.data import Loader
from core.run import Run
from core.step import Precision, autocast
from projects.sgear import data, report, scores, weights
from projects.sgear import metrics as measures
from projects.sgear.config import Config
from projects.sgear.data import Benchmark
from projects.sgear.metrics import SPACES

Found = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluate the weights of `ckpt`, or the best ones of a run, and write the report."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        benchmark = data.load(cfg.data)
        job.log.info(benchmark.describe())
        return test(cfg, job, benchmark)


def test(cfg: Config, job: Run, benchmark: Benchmark) -> dict[str, float]:
    """Figures of `eval.split`, published into the run directory; empty when the run was asked to stop."""
    net, _ = weights.load(cfg, job, benchmark)
    loader = samples(cfg, job, benchmark, cfg.eval.split)
    batches = job.log.progress(loader, cfg.eval.split)
    found = evaluate(net, batches, precision=cfg.precision, stopping=lambda: job.stop_requested)
    if found is None:
        return {}
    further = at_other_times(net, cfg, job)
    return {} if further is None else publish(found, benchmark, loader, cfg, job, further)


def at_other_times(net: nn.Module, cfg: Config, job: Run) -> dict[str, float] | None:
    """The figures when clips end `eval.tau_a` seconds before the action instead, by `tau_<s>/<space>/<name>`.

    The same weights answer, whatever time they were trained for. None when the run was asked to stop.
    """
    figures: dict[str, float] = {}
    for tau_a in cfg.eval.tau_a:
        benchmark = data.load(cfg.data.model_copy(update={"tau_a": tau_a}))
        batches = job.log.progress(samples(cfg, job, benchmark, cfg.eval.split), f"{tau_a:g} s before")
        found = evaluate(net, batches, precision=cfg.precision, stopping=lambda: job.stop_requested)
        if found is None:
            return None
        named = measure(found, benchmark, cfg.eval.split) | {"margin_min_s": _margin(found)}
        figures |= {f"tau_{tau_a:g}/{name}": value for name, value in named.items()}
    return figures


def _margin(found: Found) -> float:
    """The least seconds between what was seen and the limit."""
    return round(float(np.min(found["margin_s"])), 6) + 0.0  # -0.0 is 0


def samples(cfg: Config, job: Run, benchmark: Benchmark, part: str) -> Loader:
    """The clips of a part for evaluation, cropped as the configuration says."""
    return Loader(
        benchmark.dataset(part),
        cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size}),
        train=False,
        device=job.device,
        transform=data.transform(cfg, crops=cfg.eval.crops, flips=cfg.eval.flips),
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    *,
    precision: Precision = "fp32",
    stopping: Callable[[], bool] = lambda: False,
) -> Found | None:
    """Merge over processes, by sample: `id`, `index`, `label`, `verb`, `noun`, `margin_s`, `logits_<space>` (n,K).

    Views are averaged by the model, as the published code averages every output over crops. None when a process was
    asked to stop before its end.
    """
    model.eval()
    collector = metrics.Collector()
    for batch in batches:
        seen = batch["video"] if "video" in batch else batch["features"]
        with autocast(precision, seen.device):
            outputs = model(seen)
        collector.add(
            batch["id"],
            **{name: batch[name].cpu() for name in ("index", "label", "verb", "noun", "margin_s")},
            **{f"logits_{space}": values.float().cpu() for space, values in outputs.logits.items()},
        )
        if stopping():
            break
    return None if dist.any_true(stopping()) else collector.merge()


def measure(found: Found, benchmark: Benchmark, part: str = "val") -> dict[str, float]:
    """The figures of what `evaluate` found, in percent, by `<space>/<name>`; see `projects.sgear.metrics.measure`.

    Raises: ValueError when no sample was read.
    """
    if not found["id"]:
        raise ValueError("no sample could be read, so there is nothing to measure; the warnings name the files")
    return measures.measure(scores.of_found(found, benchmark), benchmark, part)


def publish(
    found: Found,
    benchmark: Benchmark,
    loader: Loader,
    cfg: Config,
    job: Run,
    further: Mapping[str, float],
) -> dict[str, float]:
    """Write scores, results.json, predictions.csv and report.html; log the figures and where the report is.

    `further` figures go into the results as they are.
    """
    part, coverage = cfg.eval.split, loader.coverage()
    results = {f"{part}/{name}": value for name, value in measure(found, benchmark, part).items()}
    results |= {f"{part}/{name}": value for name, value in further.items()}
    results |= {f"{part}/samples_expected": coverage.expected, f"{part}/samples_scored": coverage.scored}
    results[f"{part}/margin_min_s"] = _margin(found)
    if job.world.rank == 0:
        about: dict[str, Any] = {
            "dataset": cfg.data.dataset,
            "part": part,
            "crops": cfg.eval.crops,
            "flips": cfg.eval.flips,
        }
        about |= {"tau_a": cfg.data.tau_a, "compat": cfg.data.compat}
        scores.write(scores.file_of(job.out, part), found, about)
        write_atomic(job.out / "results.json", simplejson.dumps(results, indent=2, ignore_nan=True) + "\n")
        write_atomic(job.out / "predictions.csv", predictions(found, benchmark, cfg.eval.topk))
        report.write(job.out, found, results, coverage, benchmark, cfg)
    for space in SPACES:
        if f"{part}/{space}/top1" in results:
            values = [f"{name} {results[f'{part}/{space}/{name}']:.2f}" for name in ("top1", "top5", "recall5")]
            job.log.info(f"{part} {space}: {', '.join(values)} %")
    job.log.info(report.protocol(results[f"{part}/margin_min_s"], cfg))
    unread = coverage.expected - coverage.scored
    if unread:
        job.log.info(f"{unread} of {coverage.expected} samples could not be read and count nowhere: {coverage}")
    job.log.info(f"report: {job.out / 'report.html'}")
    return results


def predictions(found: Mapping[str, Any], benchmark: Benchmark, topk: int) -> str:
    """The text of predictions.csv: per sample its truth and the best actions with their shares."""
    said = scores.of_found(found, benchmark)
    logits = torch.from_numpy(np.asarray(said.of["action"], dtype=np.float64))
    names = benchmark.actions
    shares, best = logits.softmax(1).topk(min(topk, len(names)))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ranks = range(1, best.shape[1] + 1)
    writer.writerow(["id", "label", *(f"{what}_{rank}" for rank in ranks for what in ("action", "share"))])
    for name, label, row, share in zip(said.id, found["label"], best.tolist(), shares.tolist(), strict=True):
        listed = [text for k, s in zip(row, share, strict=True) for text in (names[k], f"{s:.6f}")]
        writer.writerow([name, names[label] if label >= 0 else "", *listed])
    return buffer.getvalue()


if __name__ == "__main__":
    main()
