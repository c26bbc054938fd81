"""Tracks of labelled segments and of curves along the time of a video, beside the playing video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.report.markup import clock, data, notice, numbers, shown, tag, text
from core.report.tables import table

_DRAWN = 1500  # points of a curve in the drawing; more would be finer than the screen
_ROOMY = 4  # lanes up to which segments are high enough to carry their label
_NOTHING = tag("span", "nothing", class_="none")
_PLAY = "<kbd>space</kbd> play "
_KEYS = (
    "<kbd>←</kbd><kbd>→</kbd> 1 s, <kbd>shift</kbd> 10 s <kbd>P</kbd><kbd>N</kbd> segment <kbd>+</kbd><kbd>−</kbd> zoom"
)


class Segment(NamedTuple):
    """A span of time, half-open, in seconds, with what happens in it and how sure that is."""

    start_s: float
    end_s: float
    label: str
    score: float | None = None


@dataclass(frozen=True)
class SegmentTrack:
    """Segments of one kind, such as truth or prediction; plain tuples in the order of `Segment` will do."""

    name: str
    segments: Sequence[Segment | tuple[Any, ...]] = field(default_factory=tuple)


@dataclass(frozen=True)
class CurveTrack:
    """Values over time, such as the probability of each class: `times_s` (T,), `values` {label: (T,)}."""

    name: str
    times_s: Any
    values: Mapping[str, Any]


Track = SegmentTrack | CurveTrack


def timeline(name: str, tracks: Sequence[Track], duration_s: float | None, video: str) -> str:
    """Return the tracks under the player (`video` is its HTML, or ""); a label has one color in all tracks.

    Raises: ValueError for a segment that ends before it starts or has no finite times, and for curves of other lengths
        than their times.
    """
    spans = [_segments(track) if isinstance(track, SegmentTrack) else [] for track in tracks]
    lines = [_values(track) if isinstance(track, CurveTrack) else None for track in tracks]
    ends = [s.end_s for found in spans for s in found] + [
        float(times[-1]) for times, _ in filter(None, lines) if len(times)
    ]
    duration = max(float(duration_s or 0), *ends, 0.0)
    if duration <= 0 or not tracks:
        return video + notice("There is nothing on this timeline.")
    hues = _hues([s.label for found in spans for s in found] + [label for _, v in filter(None, lines) for label in v])
    rows = [
        _curve_track(track.name, *line, duration, hues) if line else _segment_track(track.name, found, duration, hues)
        for track, found, line in zip(tracks, spans, lines, strict=True)
    ]
    now = [tag("div", tag("h4", text(track.name)), tag("ul"), class_="now-track") for track in tracks]
    clocks = tag("p", f"<b>0:00.0</b> / {clock(duration)}", class_="clock")
    view = tag(
        "div",
        tag("div", tag("div", class_="axis", aria_hidden="true"), *rows, tag("div", class_="cursor"), class_="canvas"),
        class_="view",
        tabindex=0,
        role="slider",
        aria_label=f"{name}: position",
        aria_valuemin=0,
        aria_valuemax=f"{duration:.6g}",
        aria_valuenow=0,
        aria_valuetext="0:00.0",
    )
    return tag(
        "div",
        tag("div", video, tag("div", clocks, *now, class_="now"), class_="stage"),
        _tools([s.score for found in spans for s in found if s.score is not None], bool(video)),
        view,
        _legend(hues),
        _listed(name, {track.name: found for track, found in zip(tracks, spans, strict=True) if found}),
        class_="timeline with-video" if video else "timeline",
        data_duration=f"{duration:.6g}",
    )


def _hues(names: Sequence[str]) -> dict[str, int]:
    """Return a hue (degrees) for every label: the first ones well apart, the others by the golden angle."""
    first = (212, 28, 152, 338, 264, 186, 46, 4)
    once = dict.fromkeys(names)
    return {name: first[i] if i < len(first) else round(i * 137.508 + 20) % 360 for i, name in enumerate(once)}


def _segments(track: SegmentTrack) -> list[Segment]:
    found = []
    for i, given in enumerate(track.segments):
        segment = Segment(*given)
        start, end = float(segment.start_s), float(segment.end_s)
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
            raise ValueError(
                f"track {track.name!r}, segment {i}: expected 0 <= start_s <= end_s, got {start:g} and {end:g}"
            )
        score = None if segment.score is None or not math.isfinite(segment.score) else float(segment.score)
        found.append(Segment(start, end, str(segment.label), score))
    return found


def _values(track: CurveTrack) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    times = numbers(track.times_s)
    values = {str(label): numbers(given) for label, given in track.values.items()}
    for label, given in values.items():
        if given.shape != times.shape:
            raise ValueError(f"track {track.name!r}, {label!r}: {given.shape} values for {times.shape} times_s")
    return times, values


def _lanes(segments: list[Segment]) -> tuple[list[int], int]:
    """Return a lane for every segment so that none overlap in a lane; the surest are placed first, on top."""
    order = sorted(range(len(segments)), key=lambda i: (-(segments[i].score or 0.0), segments[i].start_s))
    lanes: list[list[Segment]] = []
    found = [0] * len(segments)
    for i in order:
        one = segments[i]
        free = (
            k for k, lane in enumerate(lanes) if all(one.end_s <= s.start_s or s.end_s <= one.start_s for s in lane)
        )
        found[i] = next(free, len(lanes))
        if found[i] == len(lanes):
            lanes.append([])
        lanes[found[i]].append(one)
    return found, max(1, len(lanes))


def _segment_track(name: str, segments: list[Segment], duration: float, hues: Mapping[str, int]) -> str:
    lanes, count = _lanes(segments)
    parts = [
        _segment(segment, lane, duration, hues[segment.label])
        for segment, lane in sorted(zip(segments, lanes, strict=True), key=lambda pair: pair[0].start_s)
    ]
    return tag(
        "div",
        tag("div", text(name), class_="name"),
        tag("div", *(parts or [_NOTHING]), class_="lanes"),
        class_="track" if count <= _ROOMY else "track dense",
        style=f"--lanes:{count}",
    )


def _segment(segment: Segment, lane: int, duration: float, hue: int) -> str:
    score = "" if segment.score is None else f" {shown(segment.score, 2)}"
    sure = 1 if segment.score is None else min(max(segment.score, 0), 1)
    left, width = (100 * value / duration for value in (segment.start_s, segment.end_s - segment.start_s))
    return tag(
        "div",
        tag("span", text(segment.label), tag("b", score)),
        class_="segment",
        style=f"--hue:{hue};--lane:{lane};--sure:{sure:.3g};left:{left:.4f}%;width:{width:.4f}%",
        title=f"{segment.label}{score}, {clock(segment.start_s)} – {clock(segment.end_s)}",
        data_start=f"{segment.start_s:.6g}",
        data_end=f"{segment.end_s:.6g}",
        data_label=segment.label,
        data_score=None if segment.score is None else f"{segment.score:.6g}",
    )


def _curve_track(
    name: str,
    times: NDArray[np.float64],
    values: Mapping[str, NDArray[np.float64]],
    duration: float,
    hues: Mapping[str, int],
) -> str:
    finite = np.concatenate([given[np.isfinite(given)] for given in values.values()] or [np.zeros(0)])
    if not len(finite):
        return tag("div", tag("div", text(name), class_="name"), _NOTHING, class_="track")
    low, high = min(0.0, finite.min()), finite.max()
    if 0.2 < high < 1:
        high = 1.0  # probabilities are easier to compare on one scale
    keep = np.unique(np.linspace(0, len(times) - 1, min(len(times), _DRAWN)).round().astype(int))
    times, values = times[keep], {label: given[keep] for label, given in values.items()}
    lines = [
        tag(
            "path",
            style=f"--hue:{hues[label]}",
            data_label=label,
            d=_path(times / duration, (given - low) / ((high - low) or 1)),
        )
        for label, given in values.items()
    ]
    scale = tag("small", f"{shown(low, 2)} – {shown(high, 2)}")
    return tag(
        "div",
        tag("div", text(name), " ", scale, class_="name"),
        tag("svg", *lines, viewBox="0 0 1000 100", preserveAspectRatio="none", aria_hidden="true"),
        class_="track curves",
        data_curves=data({"times": times.tolist(), "values": {label: v.tolist() for label, v in values.items()}}),
    )


def _path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Return the line in a box of 1000 by 100, with a gap where a value is missing."""
    path, pen_down = "", False
    for a, b in zip(x, y, strict=True):
        if math.isfinite(a) and math.isfinite(b):
            path += f"{'L' if pen_down else 'M'}{1000 * a:.2f} {100 - 100 * b:.2f}"
            pen_down = True
        else:
            pen_down = False
    return path


def _tools(scores: list[float], playing: bool) -> str:
    threshold = ""
    if scores and min(scores) < max(scores):
        low, high = math.floor(min(scores) * 100) / 100, math.ceil(max(scores) * 100) / 100
        step = f"{(high - low) / 100:g}"
        bar = tag("input", type="range", min=f"{low:g}", max=f"{high:g}", step=step, value=f"{low:g}")
        threshold = tag("label", "score ≥ ", tag("output", f"{low:.2f}"), bar, class_="threshold")
    button = lambda action, words, title: tag("button", words, type="button", data_do=action, title=title)  # noqa: E731
    return tag(
        "div",
        button("previous", "◂ segment", "Previous segment (P)"),
        button("next", "segment ▸", "Next segment (N)"),
        button("out", "−", "Zoom out (−)"),
        button("in", "+", "Zoom in (+)"),
        button("fit", "Fit", "Whole duration (0)"),
        threshold,
        tag("span", class_="push"),
        tag("span", _PLAY if playing else "", _KEYS, class_="keys"),
        class_="tools above",
    )


def _legend(hues: Mapping[str, int]) -> str:
    chips = [
        tag(
            "button",
            tag("i", class_="swatch"),
            text(label),
            type="button",
            aria_pressed="false",
            data_label=label,
            style=f"--hue:{hue}",
        )
        for label, hue in hues.items()
    ]
    return tag("div", *chips, class_="legend hues", role="group", aria_label="Labels; press one to see it alone")


def _listed(name: str, segments: Mapping[str, list[Segment]]) -> str:
    rows = [
        {"track": track, "start (s)": s.start_s, "end (s)": s.end_s, "label": s.label, "score": s.score}
        for track, found in segments.items()
        for s in sorted(found, key=lambda s: s.start_s)
    ]
    if not rows:
        return ""
    if all(row["score"] is None for row in rows):
        rows = [{key: value for key, value in row.items() if key != "score"} for row in rows]
    return tag("details", tag("summary", f"All {len(rows)} segments as a table"), table(name, rows))
