"""The pages people look at: how a model does on a part of the dataset, and what it expects after a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from core import metrics, video
from core.data import Coverage
from core.report import CurveTrack, Page, Segment, SegmentTrack
from projects.lta_memvit import histograms
from projects.lta_memvit.config import Config
from projects.lta_memvit.data import Benchmark
from projects.lta_memvit.windows import Window

KINDS = ("verb", "noun", "action")
EXAMPLES = 6
MISTAKES = 12
PLAYER_MB = 3.0  # an example's clip of five minutes is linked, a short one becomes part of the page
PLAYERS_MB = 60.0  # for all videos of a prediction


def write(
    out: Path,
    found: Mapping[str, Any],
    results: Mapping[str, float],
    coverage: Coverage,
    benchmark: Benchmark,
    cfg: Config,
    lost: Sequence[str],
) -> None:
    """Write `report.html` of an evaluation: figures, training, curves by length, confusions, examples."""
    part = cfg.eval.split
    values = {name.removeprefix(f"{part}/"): value for name, value in results.items()}
    page = Page(f"{cfg.model.backbone}, {cfg.task} on {part}", benchmark.describe())
    page.facts(_facts(values, coverage, cfg))
    if "verb_error" not in values:
        page.text(f"The {part} part has no public labels, so there are no figures. outputs.json holds the forecasts.")
    _problems(page, found, coverage, lost)
    for name, series in training(out / "metrics.jsonl").items():
        page.curves(name, series, x="step", y=name)
    if gradients := histograms.pictures(out / histograms.FILE):
        page.images("How large gradients were", gradients)
    if "verb_error" in values:
        if cfg.task == "forecasting":
            _lengths(page, values, cfg.data.future)
        first = " of the first forecast action" if cfg.task == "forecasting" else ""
        for head, classes in zip(("verb", "noun"), benchmark.taxonomy, strict=True):
            truth, best = (np.asarray(found[name])[:, 0] for name in (head, f"{head}_best"))
            page.confusion(f"Confusions{first}: {head}", metrics.confusion(truth, best, len(classes)), classes)
        if cfg.task == "forecasting":
            _examples(page, found, benchmark, cfg)
        else:
            page.images("Surest mistakes", _mistakes(found, benchmark, cfg))
    page.table("All figures", [{"figure": name, "value": value} for name, value in results.items()], digits=6)
    page.save(out / "report.html")


def _facts(values: Mapping[str, float], coverage: Coverage, cfg: Config) -> dict[str, Any]:
    scored = {"samples scored": f"{coverage.scored} of {coverage.expected}"}
    if "verb_error" not in values:
        return scored
    if cfg.task == "recognition":
        return {f"{kind} error, %": values[f"{kind}_error"] for kind in KINDS} | scored
    facts: dict[str, Any] = {f"ED@{cfg.data.future} {kind}": values[f"ed_{kind}"] for kind in KINDS}
    facts |= {f"AUED {kind}": values[f"aued_{kind}"] for kind in KINDS}
    return facts | {"action, repeating the last": values.get("repeat_ed_action")} | scored


def _problems(page: Page, found: Mapping[str, Any], coverage: Coverage, lost: Sequence[str]) -> None:
    """What could not be read, what was drawn instead, and what lay outside of its video."""
    rows = [{"what": name, "why": why} for name, why in coverage.bad.items()]
    rows += [{"what": name, "why": "no readable clip; its forecast is drawn from class frequencies"} for name in lost]
    clamped = np.flatnonzero(np.asarray(found.get("clamped", ())))
    rows += [{"what": found["id"][i], "why": "an input lies outside of its video; its nearest frames"} for i in clamped]
    if rows:
        page.table("Not as it should be", rows)


def training(path: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The curves of a metrics.jsonl: losses in one chart, edit distances and errors in others; empty without one."""
    charts: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    words = {"loss": "loss", "/ed_": "edit distance", "_error": "error, %"}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for row in map(simplejson.loads, lines):
        for key, value in row.items():
            chart = next((name for word, name in words.items() if word in key), None)
            if chart and value is not None and "_at_" not in key:
                x, y = charts.setdefault(chart, {}).setdefault(key, ([], []))
                x.append(row["step"])
                y.append(value)
    return charts


def _lengths(page: Page, values: Mapping[str, float], future: int) -> None:
    """Edit distance at every length and errors at every position, as charts and as a table."""
    places = list(range(1, future + 1))
    curves = {kind: (places, [values[f"ed_{kind}_at_{z}"] for z in places]) for kind in KINDS}
    page.curves("Edit distance by length", curves, x="actions forecast", y="ED")
    names = [f"{kind}_error" for kind in KINDS] + ["verb_top5_error", "noun_top5_error"]
    errors = {name: (places, [values[f"{name}_at_{z}"] for z in places]) for name in names}
    page.curves("Errors by position", errors, x="position", y="error, %")
    rows = [
        {"length": z} | {f"ED {kind}": curves[kind][1][z - 1] for kind in KINDS}
        | {name.replace("_", " ") + ", %": values[f"{name}_at_{z}"] for name in names}
        for z in places
    ]  # fmt: skip
    page.table("By length and position", rows)


def _examples(page: Page, found: Mapping[str, Any], benchmark: Benchmark, cfg: Config) -> None:
    """Some windows from best to worst: what was observed, what followed, and the nearest of the forecasts."""
    windows = {window.id: window for window in benchmark.windows(cfg.eval.split)}
    verbs, nouns = (np.asarray(found[f"{head}_futures"]) for head in ("verb", "noun"))
    truth = np.asarray(found["verb"]), np.asarray(found["noun"])
    many = len(benchmark.taxonomy.nouns)
    distances = metrics.edit_distance(verbs * many + nouns, (truth[0] * many + truth[1])[:, None]) / verbs.shape[-1]
    order = np.argsort(distances.min(1), kind="stable")
    for row in order[np.unique(np.linspace(0, len(order) - 1, EXAMPLES).round().astype(int))]:
        window, best = windows[found["id"][row]], int(distances[row].argmin())
        starts = edges(window)
        tracks = [
            SegmentTrack(f"{kind} {what}", [Segment(a, b, classes[label]) for a, b, label in zip(*parts, strict=True)])
            for kind, classes, futures, known in (
                ("verb", benchmark.taxonomy.verbs, verbs[row, best], [a.verb for a in window.inputs + window.future]),
                ("noun", benchmark.taxonomy.nouns, nouns[row, best], [a.noun for a in window.inputs + window.future]),
            )
            for what, parts in (
                ("seen, then true", (starts[:-1], starts[1:], known)),
                ("forecast", (starts[len(window.inputs) : -1], starts[len(window.inputs) + 1 :], futures)),
            )
        ]
        path = cfg.data.clips / f"{window.clip_uid}.mp4"
        name = f"{window.id}: action ED {distances[row].min():.2f}, the nearest of {verbs.shape[1]} forecasts"
        page.timeline(name, tracks, None, path if path.exists() else None, limit_mb=PLAYER_MB)


def edges(window: Window) -> list[float]:
    """Times at which the actions of a window are drawn, from each one's start to the next one's, and the end.

    Annotated segments overlap; drawn so, they are one line.
    """
    actions = window.inputs + window.future
    starts = [action.start_s for action in actions]
    for i in range(1, len(starts)):
        starts[i] = max(starts[i], starts[i - 1])
    return [*starts, max(actions[-1].end_s, starts[-1])]


def _mistakes(found: Mapping[str, Any], benchmark: Benchmark, cfg: Config) -> list[tuple[str, np.ndarray]]:
    """The middle frame of the segments whose wrong verb or noun was the surest."""
    actions = {action.id: action for action in benchmark.actions(cfg.eval.split)}
    wrong = []
    for head, classes in zip(("verb", "noun"), benchmark.taxonomy, strict=True):
        best, truth, share = (np.asarray(found[name])[:, 0] for name in (f"{head}_best", head, f"{head}_share"))
        for i in np.flatnonzero(best != truth):
            text = f"{classes[truth[i]]}, taken for {classes[best[i]]} ({share[i]:.0%}): {found['id'][i]}"
            wrong.append((float(share[i]), text, actions[found["id"][i]]))
    pictures = []
    for _, text, action in sorted(wrong, key=lambda entry: (-entry[0], entry[1]))[:MISTAKES]:
        path = cfg.data.clips / f"{action.clip_uid}.mp4"
        middle = (action.start_s + action.end_s) / 2 * video.probe(path).fps
        number = min(max(round(middle), 0), video.probe(path).frames - 1)
        pictures.append((text, video.read(path, [number])[0].numpy()))
    return pictures


def write_predictions(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of a prediction: every video, what was seen in it and what is expected next, beside the player."""
    page = Page("What comes next", ", ".join(Path(answer["video"]).name for answer in answers[:5]))
    for answer in answers:
        tracks: list[SegmentTrack | CurveTrack] = []
        for kind in ("verb", "noun"):
            if answer["seen"]:
                tracks.append(SegmentTrack(f"{kind} seen", _merged(answer["seen"], kind)))
            next_ones = [
                Segment(e["start_s"], e["end_s"], e[kind][0]["class"], e[kind][0]["share"]) for e in answer["next"]
            ]
            tracks.append(SegmentTrack(f"{kind} expected", next_ones))
        ends = [answer["duration_s"], *(entry["end_s"] for entry in answer["next"])]
        name = f"{Path(answer['video']).name}, seen until {answer['at_s']:.1f} s"
        limit_mb = PLAYERS_MB / len(answers)
        page.timeline(name, tracks, max(ends), answer["video"], limit_mb=limit_mb)
        expected = " → ".join(f"{e['verb'][0]['class']} {e['noun'][0]['class']}" for e in answer["next"])
        page.text("\n\n".join(filter(None, [expected, answer["note"]])))
        rows = [
            {"position": z, "verb": e["verb"][0]["class"], "p(verb)": e["verb"][0]["share"],
             "noun": e["noun"][0]["class"], "p(noun)": e["noun"][0]["share"],
             "or verb": _others(e["verb"]), "or noun": _others(e["noun"])}
            for z, e in enumerate(answer["next"], 1)
        ]  # fmt: skip
        page.table("", rows, bars=("p(verb)", "p(noun)"))
    page.save(path)


def _others(ranked: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{entry['class']} ({entry['share']:.0%})" for entry in ranked[1:])


def _merged(seen: Sequence[Mapping[str, Any]], kind: str) -> list[Segment]:
    """Segments of one class in a row as one, up to the middle of the next; with their mean share."""
    middles = [(entry["start_s"] + entry["end_s"]) / 2 for entry in seen]
    cuts = [seen[0]["start_s"], *((a + b) / 2 for a, b in pairwise(middles)), seen[-1]["end_s"]]
    merged: list[Segment] = []
    shares: list[float] = []
    for entry, (start_s, end_s) in zip(seen, pairwise(cuts), strict=True):
        name, share = entry[kind][0]["class"], entry[kind][0]["share"]
        if merged and merged[-1].label == name:
            shares.append(share)
            merged[-1] = merged[-1]._replace(end_s=end_s, score=sum(shares) / len(shares))
        else:
            merged.append(Segment(start_s, end_s, name, share))
            shares = [share]
    return merged
