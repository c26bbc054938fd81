"""The pages people look at: how a model does on a dataset, and what it sees in a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from core import metrics, video
from core.data import Coverage
from core.report import CurveTrack, Page, Segment, SegmentTrack
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.data import Benchmark

SHOWN_MISTAKES = 24
PLAYERS_MB = 60.0  # for the videos inside one page; larger ones are linked


def write(
    out: Path,
    found: Mapping[str, Any],
    results: Mapping[str, float],
    coverage: Coverage,
    benchmark: Benchmark,
    cfg: Config,
) -> None:
    """Write `report.html` of an evaluation: figures, training curves, classes, confusions, mistakes."""
    part = cfg.eval.split
    scores, labels = np.asarray(found["scores"]), np.asarray(found["label"])
    answers = scores.argmax(1)
    page = Page(f"{cfg.model.name} on {cfg.data.root.name}", benchmark.describe())
    page.facts(
        {
            "accuracy, %": results[f"{part}/accuracy"],
            "top-5, %": results[f"{part}/top5_accuracy"],
            "macro F1": results[f"{part}/f1_macro_seen_labels"],
            "ms a clip": 1000 * results[f"{part}/latency_median_s"],
            f"{part} clips scored": f"{coverage.scored} of {coverage.expected}",
        }
    )
    if coverage.bad:
        page.table(
            "Clips that could not be read", [{"clip": name, "reason": why} for name, why in coverage.bad.items()]
        )
    for name, series in curves(out / "metrics.jsonl").items():
        page.curves(name, series, x="step", y=name)
    table = metrics.precision_recall_f1(labels, answers, len(benchmark.classes))
    page.table(
        "Classes",
        [
            {"class": name, "clips": int(table.support[k]), "recall": float(table.recall[k]),
             "precision": float(table.precision[k]), "F1": float(table.f1[k])}
            for k, name in enumerate(benchmark.classes)
        ],
        bars=("recall", "precision", "F1"),
    )  # fmt: skip
    page.confusion("Confusions", metrics.confusion(labels, answers, len(benchmark.classes)), benchmark.classes)
    page.images("Surest mistakes", mistakes(found, answers, benchmark, cfg))
    page.table("All figures", [{"figure": name, "value": value} for name, value in results.items()], digits=6)
    page.save(out / "report.html")


def curves(path: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The curves of a metrics.jsonl: losses in one chart, accuracies in another; empty when there was no training."""
    charts: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for row in map(simplejson.loads, lines):
        for key, value in row.items():
            chart = "loss" if "loss" in key.lower() else "accuracy" if "accuracy" in key.lower() else None
            if chart and value is not None:
                x, y = charts.setdefault(chart, {}).setdefault(key, ([], []))
                x.append(row["step"])
                y.append(value)
    return charts


def mistakes(
    found: Mapping[str, Any], answers: np.ndarray, benchmark: Benchmark, cfg: Config
) -> list[tuple[str, np.ndarray]]:
    """The middle frame of the clips that were wrong with the greatest confidence, with truth and answer."""
    scores, labels = np.asarray(found["scores"]), np.asarray(found["label"])
    if benchmark.split is None:
        return []
    wrong = np.flatnonzero(answers != labels)
    surest = wrong[np.argsort(-scores[wrong, answers[wrong]], kind="stable")][:SHOWN_MISTAKES]
    pictures = []
    for i in surest:
        path = cfg.data.root / found["id"][i]
        frame = video.read(path, [video.probe(path).frames // 2])[0].numpy()
        truth, answer = benchmark.classes[labels[i]], benchmark.classes[answers[i]]
        pictures.append((f"{truth}, taken for {answer} ({np.exp(scores[i, answers[i]]):.0%}): {found['id'][i]}", frame))
    return pictures


def write_predictions(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of a prediction: every video with its classes over time, beside the player."""
    page = Page("What is done in these videos", ", ".join(Path(answer["video"]).name for answer in answers[:5]))
    for answer in answers:
        windows = answer["windows"]
        best = [Segment(w["start_s"], w["end_s"], w["top"][0]["class"], w["top"][0]["share"]) for w in windows]
        middles = [(w["start_s"] + w["end_s"]) / 2 for w in windows]
        tracks = (SegmentTrack("answer", merged(best)), CurveTrack("share", middles, answer["curves"]))
        limit_mb = PLAYERS_MB / len(answers)
        page.timeline(Path(answer["video"]).name, tracks, answer["duration_s"], answer["video"], limit_mb=limit_mb)
        page.table("", [{"class": entry["class"], "share": entry["share"]} for entry in answer["top"]], bars=("share",))
    page.save(path)


def merged(windows: Sequence[Segment]) -> list[Segment]:
    """Neighbouring windows of one class as one segment, cut in the middle where they overlap, with their mean share."""
    result: list[Segment] = []
    shares: list[float] = []
    for window in windows:
        last = result[-1] if result else None
        if last is not None and last.label == window.label:
            shares.append(window.score or 0.0)
            result[-1] = last._replace(end_s=window.end_s, score=sum(shares) / len(shares))
            continue
        if last is not None and window.start_s < last.end_s:
            middle = (window.start_s + last.end_s) / 2
            result[-1], window = last._replace(end_s=middle), window._replace(start_s=middle)
        result.append(window)
        shares = [window.score or 0.0]
    return result
