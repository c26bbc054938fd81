"""How good is it? Edit distance of the forecasts, errors at every position, and the file for the challenge.

    python -m projects.lta_memvit.eval runs/lta_memvit/run/config.yaml [ckpt=FILE] [eval.split=val]
    python -m projects.lta_memvit.eval CONFIG ckpt=FILE eval.split=test

writes results.json, report.html and, for a forecaster, outputs.json (the submission) into the run directory. `ckpt` may
be any file that convert reads. The test part has no labels: it gets a submission and no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import simplejson
import torch
from torch import Tensor

from core import config, dist, metrics, run
from core.checkpoint import write_atomic
from core.data import Loader
from core.run import Run
from core.step import autocast
from projects.lta_memvit import check_submission, data, features, model, order, report, weights
from projects.lta_memvit.config import Config
from projects.lta_memvit.data import Benchmark
from projects.lta_memvit.model import Network
from projects.lta_memvit.sequences import Futures, draw, prior

Found = dict[str, Any]
HEADS = ("verb", "noun")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluate the weights of `ckpt`, or the best ones of a run, and write the report."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        benchmark = data.load(cfg.data)
        job.log.info(benchmark.describe())
        return test(cfg, job, benchmark)


def test(cfg: Config, job: Run, benchmark: Benchmark) -> dict[str, float]:
    """Figures and forecasts of `eval.split`, published into the run directory; empty when the run was asked to stop."""
    net, _ = weights.load(cfg, job, benchmark.taxonomy)
    if cfg.features.source == "cache" and not features.compute(net, benchmark, (cfg.eval.split,), cfg, job):
        return {}
    batches = loader(cfg.eval.split, net, benchmark, cfg, job)
    shown = job.log.progress(batches, cfg.eval.split)
    found = evaluate(net, shown, cfg, stopping=lambda: job.stop_requested)
    return {} if found is None else publish(found, batches, benchmark, cfg, job)


def loader(part: str, net: Network, benchmark: Benchmark, cfg: Config, job: Run, *, train: bool = False) -> Loader:
    """The samples of a part as the network takes them, in an order that its memory can follow.

    Raises: ValueError when none of them can be read.
    """
    video = cfg.features.source == "video"
    samples = (
        benchmark.dataset(part, cfg, train=train) if video else features.dataset(net, benchmark, part, cfg, train=train)
    )
    if not len(samples):
        raise ValueError(f"no sample of the {part} part can be read: {benchmark.describe()}; check the data section")
    settings = cfg.loader if train else cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size})
    return Loader(
        samples, settings, train=train, device=job.device,
        transform=data.transform(cfg.clip, train=train) if video else None,
        sampler=order.sampler(samples.streams, cfg, settings.batch_size, train=train) if video else None,
    )  # fmt: skip


@torch.inference_mode()
def evaluate(
    net: Network,
    batches: Iterable[dict[str, Any]],
    cfg: Config,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> Found | None:
    """What is known of every sample, merged over processes; None when a process was asked to stop before its end.

    For each head `h` of verb, noun: `h` labels, `h_best` likeliest classes, `h_share` their probability, `h_rank` how
    many classes are likelier than the label, all (n, Z), Z = 1 in recognition. Forecasting adds `h_futures` (n, S, Z)
    and `h_observed` (n, N). `batch` names the batch, `clamped` counts inputs that lie outside of their video.
    """
    net.eval()
    net.forget()
    generator = torch.Generator().manual_seed(cfg.eval.seed)
    collector = metrics.Collector()
    for batch in batches:
        with autocast(cfg.precision, batch["video" if "video" in batch else "features"].device):
            outputs = answer(net, batch, cfg)
        logits = [scores.float() if scores.ndim == 3 else scores.float()[:, None] for scores in outputs]
        columns: dict[str, Any] = {}
        for head, scores in zip(HEADS, logits, strict=True):
            columns |= {f"{head}_{name}": values for name, values in _facts(scores, batch[head]).items()}
            columns[head] = batch[head].view(len(scores), -1)
        if cfg.task == "forecasting":
            futures = draw(logits[0], logits[1], batch["id"], cfg.eval, generator)
            columns |= {f"{head}_futures": ids for head, ids in zip(HEADS, futures, strict=True)}
            columns |= {f"{head}_observed": batch[f"observed_{head}"] for head in HEADS}
        columns = {name: values.cpu().numpy() for name, values in columns.items()}
        collector.add(batch["id"], **columns, clamped=batch["clamped"], batch=[batch["id"][0]] * len(batch["id"]))
        if stopping():
            break
    return None if dist.any_true(stopping()) else collector.merge()


def answer(net: Network, batch: Mapping[str, Any], cfg: Config) -> Any:
    """The network's outputs for a batch of videos, of features, or of several views of each segment (B, V, 3, ...)."""
    if "features" in batch:
        return net(features=batch["features"])
    video, streams = batch["video"], model.streams(batch, cfg.memory)
    if cfg.task == "forecasting" or video.ndim == 5:
        return net(video, streams=streams)
    shares = [head.float().softmax(-1) for head in net(video.flatten(0, 1), streams=None)]
    apart = [head.view(*video.shape[:2], -1) for head in shares]
    joined = [head.mean(1) if cfg.eval.ensemble == "sum" else head.amax(1) for head in apart]
    return [head.log() for head in joined]


def _facts(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Best class, its probability and the label's rank at every position: scores (B, Z, C), labels (B, Z) or (B,).

    Of equal scores the lower class comes first. The rank of an unknown label, -1, is the number of classes.
    """
    labels = labels.view(len(scores), -1, 1)
    known = labels >= 0
    own = scores.gather(-1, labels.clamp(min=0))
    earlier = torch.arange(scores.shape[-1], device=scores.device) < labels
    rank = ((scores > own) | ((scores == own) & earlier)).sum(-1)
    share, best = scores.softmax(-1).max(-1)
    return {"best": best, "share": share, "rank": rank.where(known[..., 0], scores.shape[-1])}


def measure(found: Found, cfg: Config) -> dict[str, float]:
    """Every figure of a part with labels; empty for one without.

    Errors are in percent: `verb_error` (top-1) and `verb_top5_error`, the same for noun and action (both right; top-1).
    Forecasting: errors are means over positions, and `..._at_3` at one of them, counted from 1; `ed_verb` is ED@Z,
    `ed_verb_at_3` ED@3, `aued_verb` the area; `damerau_ed_verb` allows transpositions; `repeat_ed_verb` is what
    repeating the last observed true action would get. Action: pairs of verb and noun as one symbol.

    Raises: ValueError when there is no sample to measure.
    """
    if not found["id"]:
        raise ValueError("no sample could be read, so there is nothing to measure; the warnings name the files")
    if (np.asarray(found["verb"]) < 0).any():
        return {}
    over = _mean_over(found["batch"] if cfg.eval.average == "batches" else None)
    result: dict[str, float] = {}
    for name, misses in _misses(found).items():
        curve = over(100.0 * misses)
        result[name] = float(curve.mean())
        if cfg.task == "forecasting":
            result |= {f"{name}_at_{z}": float(value) for z, value in enumerate(curve, 1)}
    if cfg.task == "recognition":
        return result
    for kind, (futures, truth, last) in _symbols(found).items():
        curve = over(metrics.edit_distance_at(futures, truth))
        swapping = over(metrics.edit_distance_at(futures, truth, transpositions=True))
        repeated = np.repeat(last[:, None, None], truth.shape[1], axis=2)
        result |= {f"ed_{kind}": float(curve[-1]), f"aued_{kind}": float(metrics.aued(curve))}
        result |= {f"damerau_ed_{kind}": float(swapping[-1]), f"damerau_aued_{kind}": float(metrics.aued(swapping))}
        if (last >= 0).all():
            result[f"repeat_ed_{kind}"] = float(over(metrics.edit_distance_at(repeated, truth))[-1])
        result |= {f"ed_{kind}_at_{z}": float(value) for z, value in enumerate(curve, 1)}
    return result


def _mean_over(batches: Sequence[str] | None) -> Callable[[Any], np.ndarray]:
    """The mean over samples (n, ...) -> (...), or the mean of the means of their batches."""
    if batches is None:
        return lambda rows: np.asarray(rows.mean(0))
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(batches):
        groups.setdefault(name, []).append(row)
    return lambda rows: np.mean([rows[group].mean(0) for group in groups.values()], axis=0)


def _misses(found: Found) -> dict[str, np.ndarray]:
    """Whether the label is not among the best, bool (n, Z), by name of the error."""
    ranks = {head: np.asarray(found[f"{head}_rank"]) for head in HEADS}
    misses = {f"{head}_error": ranks[head] >= 1 for head in HEADS}
    misses["action_error"] = misses["verb_error"] | misses["noun_error"]
    return misses | {f"{head}_top5_error": ranks[head] >= 5 for head in HEADS}


def _symbols(found: Found) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Futures (n, S, Z), truth (n, Z) and last observed (n,) as one symbol each, for verbs, nouns and actions."""
    names = ("{}_futures", "{}", "{}_observed")
    verb, noun = ([np.asarray(found[name.format(head)]).astype(np.int64) for name in names] for head in HEADS)
    many = 1 + max(values.max() for values in noun)
    action = [np.where((v < 0) | (n < 0), -1, v * many + n) for v, n in zip(verb, noun, strict=True)]
    kinds = {"verb": verb, "noun": noun, "action": action}
    return {kind: (futures, truth, observed[:, -1]) for kind, (futures, truth, observed) in kinds.items()}


def submission(found: Found, benchmark: Benchmark, cfg: Config) -> tuple[dict[str, Any], list[str]]:
    """What outputs.json holds: {id: {"verb": S lists of Z ids, "noun": ...}} for every window of `eval.split`.

    Also the ids of windows that could not be looked at, as their clip is missing or damaged: those get classes drawn
    as often as the training part has them, so that the server does not refuse the file.
    """
    rows = {
        name: Futures(verb, noun)
        for name, verb, noun in zip(found["id"], found["verb_futures"], found["noun_futures"], strict=True)
    } if found["id"] else {}  # fmt: skip
    wanted = [window.id for window in benchmark.windows(cfg.eval.split)]
    lost = [name for name in wanted if name not in rows]
    if lost:
        drawn = prior(_counts(benchmark), lost, cfg.data.future, cfg.eval)
        rows |= {name: Futures(verb, noun) for name, verb, noun in zip(lost, *drawn, strict=True)}
    ordered = {name: {"verb": rows[name].verb.tolist(), "noun": rows[name].noun.tolist()} for name in wanted}
    return ordered, lost


def _counts(benchmark: Benchmark) -> list[list[int]]:
    """How often each verb and each noun is the label of a training action."""
    actions = benchmark.parts.get("train", ())
    labels = ([getattr(action, head) for action in actions if getattr(action, head) >= 0] for head in HEADS)
    pairs = zip(labels, benchmark.classes, strict=True)
    return [np.bincount(np.array(found, int), minlength=count).tolist() for found, count in pairs]


def publish(found: Found, batches: Loader, benchmark: Benchmark, cfg: Config, job: Run) -> dict[str, float]:
    """Write results.json, outputs.json and report.html; log the numbers and where the files are."""
    part, coverage = cfg.eval.split, batches.coverage()
    values = measure(found, cfg) if found["id"] and benchmark.labeled(part) else {}
    counts = {"samples_expected": coverage.expected, "samples_scored": coverage.scored}
    results = {f"{part}/{name}": value for name, value in {**values, **counts}.items()}
    lost: list[str] = []
    if job.world.rank == 0:
        write_atomic(job.out / "results.json", simplejson.dumps(results, indent=2, ignore_nan=True) + "\n")
        if cfg.task == "forecasting":
            outputs, lost = submission(found, benchmark, cfg)
            write_atomic(job.out / "outputs.json", simplejson.dumps(outputs) + "\n")
            checked = check_submission.check(outputs, benchmark, part, sequences=cfg.eval.sequences)
            job.log.info(f"{job.out / 'outputs.json'}: {checked}")
        report.write(job.out, found, results, coverage, benchmark, cfg, lost)
    if coverage.expected > coverage.scored:
        job.log.warning(f"read {coverage}")
    if lost:
        job.log.warning(
            f"{len(lost)} windows have no readable clip ({data.listed(lost)}): their forecasts are drawn from the "
            "frequencies of the training part"
        )
    if clamped := int(np.asarray(found.get("clamped", 0)).sum()):
        job.log.warning(f"{clamped} inputs lie outside of their video: its nearest frames stand in for them")
    job.log.info(headline(results, part, cfg))
    job.log.info(f"report: {job.out / 'report.html'}")
    return results


def headline(results: Mapping[str, float], part: str, cfg: Config) -> str:
    """The figures that papers quote, in one line."""
    if f"{part}/verb_error" not in results:
        return f"the {part} part has no public labels: no figures"
    if cfg.task == "recognition":
        errors = ", ".join(f"{kind} {results[f'{part}/{kind}_error']:.2f} %" for kind in ("verb", "noun", "action"))
        return f"{part} top-1 error: {errors}"
    kinds = ("verb", "noun", "action")
    distances, areas, repeated = (
        " / ".join(f"{results.get(f'{part}/{name}_{kind}', float('nan')):.4f}" for kind in kinds)
        for name in ("ed", "aued", "repeat_ed")
    )
    return (
        f"{part} ED@{cfg.data.future} verb / noun / action: {distances}; AUED {areas}; "
        f"repeating the last observed action: {repeated}"
    )


if __name__ == "__main__":
    main()
