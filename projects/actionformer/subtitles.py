"""Detections as subtitles, so that any player shows what happens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.checkpoint import write_atomic
from projects.actionformer.postprocess import Detections
from projects.actionformer.results import name_of

MOMENT_S = 1.0  # how long a detection without duration is shown


def write(path: Path, found: Detections, classes: Sequence[str], duration_s: float) -> None:
    """Write `<path>.srt` and `<path>.vtt`."""
    cues = lines(found, classes, duration_s)
    srt = [f"{n}\n{clock(a, ',')} --> {clock(b, ',')}\n{text}\n" for n, (a, b, text) in enumerate(cues, 1)]
    vtt = ["WEBVTT\n", *(f"{clock(a, '.')} --> {clock(b, '.')}\n{_escaped(text)}\n" for a, b, text in cues)]
    write_atomic(path.with_name(f"{path.name}.srt"), "\n".join(srt))
    write_atomic(path.with_name(f"{path.name}.vtt"), "\n".join(vtt))


def lines(found: Detections, classes: Sequence[str], duration_s: float) -> list[tuple[float, float, str]]:
    """Cues (start_s, end_s, text): in each stretch of time the classes that happen in it, best first.

    Players show overlapping cues in unlike ways, so that time is cut where an action begins or ends.
    """
    starts, ends = found.segments_s.astype(float).T if len(found.scores) else np.zeros((2, 0))
    ends = np.where(ends > starts, ends, np.minimum(starts + MOMENT_S, max(duration_s, 0.0)))
    rank = np.argsort(-found.scores, kind="stable")
    times = np.unique(np.round([*starts, *ends], 3))
    cues: list[tuple[float, float, str]] = []
    for start, end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        middle = (start + end) / 2
        best: dict[str, float] = {}
        for i in rank.tolist():
            if starts[i] <= middle < ends[i]:
                best.setdefault(name_of(int(found.labels[i]), classes), float(found.scores[i]))
        if not best:
            continue
        text = "\n".join(f"{name} ({score:.0%})" for name, score in best.items())
        if cues and cues[-1][1:] == (start, text):
            cues[-1] = (cues[-1][0], end, text)
        else:
            cues.append((start, end, text))
    return cues


def clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds as SubRip (",") and WebVTT (".") write them."""
    total = round(seconds * 1000)
    hours, rest = divmod(total, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
