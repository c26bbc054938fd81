"""The pages people look at: how a model does on a dataset, and what it finds in a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejson

from core import metrics
from core.report import CurveTrack, Page, Segment, SegmentTrack
from projects.actionformer import errors, results
from projects.actionformer.blocks import Answer
from projects.actionformer.config import Config
from projects.actionformer.data import Benchmark
from projects.actionformer.postprocess import Detections

CLASSES_AS_TEXT = 60  # more classes than this make a confusion map that nobody reads
CURVES = 5  # classes whose scores over time are drawn
PLAYERS_MB = 60.0  # for the videos inside one page; larger ones are linked


def write(
    out: Path,
    table: results.Table,
    scores: metrics.DetectionScores,
    truth: metrics.Actions,
    benchmark: Benchmark,
    cfg: Config,
) -> None:
    """Write `report.html` of an evaluation."""
    part, points = cfg.data.eval_splits[0], cfg.model.name == "snapformer"
    page = Page(f"{benchmark.layout.title}, {part}", benchmark.describe())
    page.facts(
        {
            "average mAP, %": 100 * scores.average_map,
            **{
                f"mAP at {at:.2f}{' s' if points else ''}, %": 100 * value
                for at, value in _middle(scores.thresholds, scores.map)
            },
            "videos": len(table),
            "true actions": len(truth.videos),
            "detections": sum(len(found.scores) for found in table.values()),
        }
    )
    page.table("All thresholds", _thresholds(scores, cfg, points), digits=4)
    for name, series in training_curves(out / "metrics.jsonl").items():
        page.curves(name, series, x="step", y=name)
    page.table("Classes", _classes(scores, truth, benchmark.classes), bars=("AP", "recall@1x"))
    found = results.flatten(table)
    if cfg.eval.analysis and not points and len(truth.videos):
        _analyze(page, truth, found, scores, benchmark)
    for name, tracks, duration_s in timelines(table, truth, benchmark.classes, benchmark.durations, cfg.eval.timelines):
        page.timeline(name, tracks, duration_s)
    page.save(out / "report.html")


def _middle(thresholds: Any, values: Any) -> list[tuple[float, float]]:
    """The threshold in the middle and its value."""
    k = len(thresholds) // 2
    return [(float(thresholds[k]), float(values[k]))]


def _thresholds(scores: metrics.DetectionScores, cfg: Config, points: bool) -> list[dict[str, Any]]:
    name = "distance, s" if points else "tIoU"
    lines = [
        {name: float(at), "mAP, %": 100 * float(value)}
        | {f"recall@{k}x, %": 100 * float(r) for k, r in zip(cfg.eval.recall, recalls, strict=True)}
        for at, value, recalls in zip(scores.thresholds, scores.map, scores.mean_recall, strict=True)
    ]
    mean = {f"recall@{k}x, %": 100 * float(r) for k, r in zip(cfg.eval.recall, scores.mean_recall.mean(0), strict=True)}
    return [*lines, {name: "average", "mAP, %": 100 * scores.average_map, **mean}]


def _classes(scores: metrics.DetectionScores, truth: metrics.Actions, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Every class with truth: mean over the thresholds of its AP and of its first recall."""
    counts = np.bincount(np.asarray(truth.labels), minlength=int(scores.classes.max(initial=-1)) + 1)
    lines = []
    for k, label in enumerate(scores.classes.tolist()):
        line = {"class": results.name_of(label, classes), "actions": int(counts[label])}
        line |= {"AP": float(scores.ap[:, k].mean())}
        lines.append(line | ({"recall@1x": float(scores.recall[:, 0, k].mean())} if scores.recall.shape[1] else {}))
    return lines


def _analyze(
    page: Page,
    truth: metrics.Actions,
    found: metrics.Detections,
    scores: metrics.DetectionScores,
    benchmark: Benchmark,
) -> None:
    """Where precision is lost, what false positives are, and which actions are missed."""
    taken = metrics.match_detections(truth, found, scores.thresholds.tolist())
    curves = {
        f"tIoU {at:.2f}": errors.precision_recall(truth, found, row)
        for at, row in zip(scores.thresholds, taken, strict=True)
    }
    page.curves("Precision over recall, mean of the classes", curves, x="recall", y="precision")

    middle = len(scores.thresholds) // 2
    tiou, row = float(scores.thresholds[middle]), taken[middle]
    kind = errors.kinds(truth, found, row, errors.nearest(truth, found), tiou)
    shares = errors.profile(truth, found, kind)
    ranks = np.arange(1, len(shares) + 1)
    series = {name: (ranks, shares[:, k]) for k, name in enumerate(errors.KINDS)}
    page.curves(f"What the detections are, at tIoU {tiou:.2f}", series, x="rank, in numbers of true actions", y="share")
    page.text(
        "For every class with G true actions: its best G detections, the next G, and so on. Duplicate: the action was "
        "taken by a better one. Localization: right class, too little overlap. Wrong label: enough overlap, another "
        "class. Confusion: neither. Background: no action overlaps by a tenth."
    )

    reached = errors.reached(truth, row)
    groups = {
        "Length of the action": errors.by_length(truth, reached),
        "Share of the video that it fills": errors.by_coverage(truth, reached, benchmark.durations),
        "Actions of its class in the video": errors.by_instances(truth, reached),
    }
    for name, rows in groups.items():
        lines = [{"actions": one.name, "number": one.count, "found": one.found} for one in rows]
        page.table(f"{name}: share that was found, at tIoU {tiou:.2f}", lines, bars=("found",), sortable=False)

    labels = scores.classes.tolist()
    if 1 < len(labels) <= CLASSES_AS_TEXT:
        names = [*(results.name_of(label, benchmark.classes) for label in labels), "(another, or none)"]
        page.confusion(
            "What the surest detection calls an action", errors.confusions(truth, found, tiou, labels), names
        )


def training_curves(path: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The curves of a metrics.jsonl: losses in one chart, mAPs in another; empty when there was no training."""
    charts: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = simplejson.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        for key, value in row.items():
            chart = "loss" if "loss" in key.lower() else "mAP" if "map" in key.lower() else None
            if chart and value is not None:
                x, y = charts.setdefault(chart, {}).setdefault(key, ([], []))
                x.append(row["step"])
                y.append(value)
    return charts


def timelines(
    table: results.Table, truth: metrics.Actions, classes: Sequence[str], durations_s: Mapping[str, float], count: int
) -> list[tuple[str, list[SegmentTrack], float | None]]:
    """Videos with their truth and their best detections, from well to badly answered: name, tracks, duration."""
    rows: dict[str, list[int]] = {}
    for row, video in enumerate(truth.videos):
        rows.setdefault(video, []).append(row)
    spans, labels = np.asarray(truth.segments, np.float64), np.asarray(truth.labels)
    quality = {}
    for video, own in rows.items():
        best = _best(table[video], len(own)) if video in table else None
        alike = metrics.segment_iou(spans[own], best.segments_s) if best is not None and len(best.scores) else None
        quality[video] = 0.0 if alike is None else float(alike.max(1).mean())
    ranked = sorted(rows, key=lambda video: -quality[video])
    chosen = [ranked[k] for k in np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).astype(int))]
    shown = []
    for video in chosen:
        own = rows[video]
        true = [_segment(spans[i], int(labels[i]), None, classes) for i in own]
        found = segments(_best(table[video], 2 * len(own)), classes) if video in table else []
        tracks = [SegmentTrack("truth", true), SegmentTrack("found", found)]
        shown.append((f"{video} (mean overlap {quality[video]:.2f})", tracks, durations_s.get(video)))
    return shown


def _best(found: Detections, count: int) -> Detections:
    return found.take(np.argsort(-found.scores, kind="stable")[:count])


def segments(found: Detections, classes: Sequence[str]) -> list[Segment]:
    """Detections as the timeline takes them."""
    parts = zip(found.segments_s, found.labels.tolist(), found.scores.tolist(), strict=True)
    return [_segment(span, label, score, classes) for span, label, score in parts]


def _segment(span: Any, label: int, score: float | None, classes: Sequence[str]) -> Segment:
    start = max(float(span[0]), 0.0)
    return Segment(start, max(float(span[1]), start), results.name_of(label, classes), score)


class Shown(NamedTuple):
    """A prediction on its page: the detections to show, what the network said at every moment, the video to play."""

    name: str
    found: Detections
    answer: Answer
    duration_s: float
    video: Path | None


def write_predictions(path: Path, shown: Sequence[Shown], classes: Sequence[str]) -> None:
    """Write the page of a prediction: every video with what was found in it, beside the player where there is one."""
    page = Page("What happens when in these videos", ", ".join(one.name for one in shown[:5]))
    for one in shown:
        tracks: list[SegmentTrack | CurveTrack] = [SegmentTrack("found", segments(one.found, classes))]
        tracks.append(CurveTrack("score", one.answer.times_s.clip(0, one.duration_s), _curves(one, classes)))
        page.timeline(one.name, tracks, one.duration_s, one.video, limit_mb=PLAYERS_MB / len(shown))
        if one.found.spread_s is not None:
            page.table("How unsure the boundaries are", _unsure(one.found, classes))
    page.save(path)


def _curves(one: Shown, classes: Sequence[str]) -> dict[str, Any]:
    """The scores over time of the classes that were found, or else score most."""
    labels = dict.fromkeys(label for label in one.found.labels.tolist() if label < one.answer.scores.shape[1])
    ranked = np.argsort(-one.answer.scores.max(0, initial=0.0), kind="stable").tolist()
    chosen = list(dict.fromkeys([*labels, *ranked]))[:CURVES]
    return {results.name_of(label, classes): one.answer.scores[:, label] for label in chosen}


def _unsure(found: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"label": row["label"], "score": row["score"]}
        | {f"{name} (s)": f"{time:.2f} ± {spread:.2f}"
           for name, time, spread in zip(("start", "end"), row["segment"], row["spread_s"], strict=True)}
        for row in results.rows(found, classes)
    ]  # fmt: skip
