"""The pages people look at: how well a model anticipates, and what it expects in a video."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from core import metrics, video
from core.data import Coverage, SampleError
from core.report import CurveTrack, Page, Segment, SegmentTrack
from projects.sgear import scores
from projects.sgear.config import Config
from projects.sgear.data import Benchmark
from projects.sgear.metrics import SPACES, Scores, ranks

SHOWN_SAMPLES = 24
SHOWN_CLASSES = 400  # rows of a table of classes, the most frequent ones
LARGEST_CONFUSION = 120
PLAYERS_MB = 60.0  # for the videos inside one page; larger ones are linked
TITLES = {
    "top1": "top-1", "top5": "top-5", "recall5": "class-mean recall@5", "mean_class_top1": "class-mean top-1",
    "recall5_many_shot": "recall@5, many-shot classes", "recall5_tail": "recall@5, tail classes",
    "recall5_unseen": "recall@5, unseen kitchens",
}  # fmt: skip


def write(
    out: Path,
    found: Mapping[str, Any],
    results: Mapping[str, float],
    coverage: Coverage,
    benchmark: Benchmark,
    cfg: Config,
) -> None:
    """Write `report.html` of an evaluation: figures, what was seen, training curves, classes, confusions, samples."""
    part = cfg.eval.split
    said = scores.of_found(found, benchmark)
    page = Page(f"{cfg.model.kind} on {cfg.data.dataset}, {part}", benchmark.describe())
    facts = {TITLES[name]: results.get(f"{part}/action/{name}") for name in ("recall5", "top1", "top5")}
    facts = {f"action {name}, %": value for name, value in facts.items() if value is not None}
    page.facts({**facts, f"{part} samples scored": f"{coverage.scored} of {coverage.expected}"})
    page.text(protocol(results[f"{part}/margin_min_s"], cfg).capitalize() + ".", "Protocol")
    if coverage.bad:
        page.table("Files that could not be read", [{"file": n, "reason": why} for n, why in coverage.bad.items()])
    _figures(page, results, part)
    _times(page, results, part, cfg)
    for name, series in curves(out / "metrics.jsonl").items():
        page.curves(name, series, x="step", y=name)
    if f"{part}/action/top1" in results:
        for space in said.of:
            _classes(page, space, said, found, benchmark)
    else:
        page.text("This part has no public labels: there is nothing to measure, only answers to submit.", "No labels")
    page.table("Samples", samples(said, found, benchmark, cfg.eval.topk))
    if cfg.data.source != "features":
        page.images("Last frame before the limit", pictures(said, found, benchmark, part))
    page.table("All figures", [{"figure": name, "value": value} for name, value in results.items()], digits=6)
    page.save(out / "report.html")


def protocol(margin_s: float, cfg: Config) -> str:
    """What was seen before an action, measured on every clip of the evaluation, in a sentence."""
    if cfg.data.tau_a < 0:
        return "recognition: clips reach into the action, this is no anticipation"
    what = "feature ends" if cfg.data.source == "features" else "frame begins"
    limit = f"{cfg.data.tau_a:g} s before its action"
    if margin_s < 0 or (margin_s == 0 and cfg.data.source != "features"):
        return f"PROTOCOL BROKEN: a {what} {-margin_s:.4f} s after the limit, {limit}; data.compat allows that"
    return f"no clip reaches the limit, {limit}: the latest {what} {margin_s:.4f} s before it"


def _figures(page: Page, results: Mapping[str, float], part: str) -> None:
    rows: list[dict[str, Any]] = []
    for name, title in TITLES.items():
        values: dict[str, float] = {
            space: results[f"{part}/{space}/{name}"] for space in SPACES if f"{part}/{space}/{name}" in results
        }
        rows += [{"figure, %": title, **values}] if values else []
    for suffix, title in (("", "overall"), ("_unseen", "unseen kitchens"), ("_tail", "tail classes")):
        key = f"{part}/official/{{}}{suffix}"
        if key.format("action") in results:
            challenge: dict[str, float] = {space: results[key.format(space)] for space in SPACES}
            rows.append({"figure, %": f"challenge, {title}", **challenge})
    if rows:
        page.table("Figures", rows, sortable=False, digits=2)


def _times(page: Page, results: Mapping[str, float], part: str, cfg: Config) -> None:
    """Figures of actions at every anticipation time that was asked for."""
    if not cfg.eval.tau_a:
        return
    places = {cfg.data.tau_a: part} | {tau_a: f"{part}/tau_{tau_a:g}" for tau_a in cfg.eval.tau_a}
    rows = [
        {
            "seconds before the action": tau_a,
            **{TITLES[name]: results.get(f"{place}/action/{name}") for name in ("recall5", "top1", "top5")},
            "nearest to the limit, s": results[f"{place}/margin_min_s"],
        }
        for tau_a, place in sorted(places.items())
    ]
    page.table("Anticipation times", rows, digits=4)


def curves(path: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The curves of a metrics.jsonl: losses in one chart, validation figures of actions in another."""
    charts: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for row in map(simplejson.loads, lines):
        for key, value in row.items():
            chart = "loss" if "loss" in key else "action, %" if key.startswith("val/action/") else None
            if chart and value is not None:
                x, y = charts.setdefault(chart, {}).setdefault(key, ([], []))
                x.append(row["step"])
                y.append(value)
    return charts


def _classes(page: Page, space: str, said: Scores, found: Mapping[str, Any], benchmark: Benchmark) -> None:
    """A row for every class that occurs, the most frequent first, and the confusions where they fit a page."""
    label = np.asarray(found["label" if space == "action" else space])
    names = getattr(benchmark, f"{space}s")
    known = label >= 0
    values, label = np.asarray(said.of[space])[known], label[known]  # type: ignore[index]
    rank, answer = ranks(values, label), values.argmax(1)
    count = np.bincount(label, minlength=len(names))
    right, near = (np.bincount(label, weights=rank < k, minlength=len(names)) for k in (1, 5))
    answered = np.bincount(answer, minlength=len(names))
    order = [k for k in np.argsort(-count, kind="stable") if count[k]]
    rows = [
        {
            space: names[k],
            "samples": int(count[k]),
            "recall@5": near[k] / count[k],
            "top-1": right[k] / count[k],
            "answered": int(answered[k]),
        }
        for k in order[:SHOWN_CLASSES]
    ]
    title = f"{space.capitalize()}s" + (
        f", the {SHOWN_CLASSES} most frequent of {len(order)}" if len(order) > SHOWN_CLASSES else ""
    )
    page.table(title, rows, bars=("recall@5", "top-1"))
    if len(names) <= LARGEST_CONFUSION:
        page.confusion(f"Confusions of {space}s", metrics.confusion(label, answer, len(names)), names)


def _chosen(said: Scores, found: Mapping[str, Any]) -> list[int]:
    """Some samples, the same every time."""
    return sorted(random.Random(0).sample(range(len(said)), min(SHOWN_SAMPLES, len(said))))


def samples(said: Scores, found: Mapping[str, Any], benchmark: Benchmark, topk: int) -> list[dict[str, Any]]:
    """What was expected before some actions, and what came."""
    rows = []
    for row in _chosen(said, found):
        label = int(found["label"][row])
        best = best_of(np.asarray(said.of["action"][row]), benchmark.actions, topk)
        expected = ", ".join(f"{entry['action']} {entry['share']:.0%}" for entry in best)
        rows.append({"sample": said.id[row], "came": benchmark.actions[label] if label >= 0 else "–",
                     "expected": expected})  # fmt: skip
    return rows


def pictures(said: Scores, found: Mapping[str, Any], benchmark: Benchmark, part: str) -> list[tuple[str, np.ndarray]]:
    """The last observed frame of these samples, with what came and what was expected."""
    dataset = benchmark.dataset(part)
    shown = []
    for row in _chosen(said, found)[: SHOWN_SAMPLES // 2]:
        try:
            sample = dataset.sample(int(found["index"][row]), random.Random(0))
        except (SampleError, video.VideoError):
            continue
        label = int(found["label"][row])
        best = best_of(np.asarray(said.of["action"][row]), benchmark.actions, 1)[0]
        came = benchmark.actions[label] if label >= 0 else "not public"
        shown.append((f"{came} (expected: {best['action']})", sample["video"][-1].numpy()))
    return shown


def best_of(logits: np.ndarray, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The likeliest actions with their shares (softmax), best first."""
    lifted = np.exp(logits.astype(np.float64) - logits.max())
    shares = lifted / lifted.sum()
    best = np.argsort(-shares, kind="stable")[:count]
    return [{"action": names[k], "share": round(float(shares[k]), 6)} for k in best]


def write_predictions(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of a prediction: each video with a time line of what is expected, and the answers in a table."""
    page = Page("What comes next?", f"{len(answers)} videos" if len(answers) != 1 else answers[0]["video"])
    for answer in answers:
        moments = answer["moments"]
        hop_s, ahead = answer["hop_s"], f"{answer['tau_a']:g} s ahead"
        tracks: list[Any] = [
            SegmentTrack(f"expected {ahead}, at the time it is said", expected(moments, hop_s)),
            *(
                SegmentTrack(f"expected {tau_a:g} s ahead", expected(said, hop_s))
                for tau_a, said in _further(moments).items()
            ),
            CurveTrack("shares", [moment["time_s"] for moment in moments], answer["curves"]),
        ]
        file = Path(answer["video"])
        page.timeline(
            file.name, tracks, duration_s=answer["duration_s"], video=file if file.exists() else None,
            limit_mb=PLAYERS_MB / max(len(answers), 1),
        )  # fmt: skip
        rows = [
            {
                "seen until, s": moment["time_s"],
                "starts at, s": moment["starts_s"],
                **{f"{k}.": f"{entry['action']} {entry['share']:.0%}" for k, entry in enumerate(moment["top"], 1)},
            }
            for moment in moments
        ]
        page.table(f"Answers for {file.name}", rows)
    page.save(path)


def _further(moments: Sequence[Mapping[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    """The answers for other anticipation times, by time, each with the moment at which it is said."""
    found: dict[float, list[dict[str, Any]]] = {}
    for moment in moments:
        for answer in moment.get("further", ()):
            found.setdefault(answer["tau_a"], []).append({"time_s": moment["time_s"], **answer})
    return found


def expected(moments: Sequence[Mapping[str, Any]], hop_s: float) -> list[Segment]:
    """The likeliest action at every moment; equal ones in a row become one segment with their mean share."""
    result: list[Segment] = []
    shares: list[float] = []
    for moment in moments:
        best, start_s = moment["top"][0], moment["time_s"]
        if result and result[-1].label == best["action"] and abs(result[-1].end_s - start_s) < hop_s / 2:
            shares.append(best["share"])
            result[-1] = result[-1]._replace(end_s=start_s + hop_s, score=float(np.mean(shares)))
        else:
            shares = [best["share"]]
            result.append(Segment(start_s, start_s + hop_s, best["action"], best["share"]))
    return result
