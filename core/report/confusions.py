"""Confusion matrices that can be read at five and at a hundred classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.report.markup import data, notice, numbers, shortened, tag, text
from core.report.tables import table

_LEVELS = 24  # shades; cells of one shade are one path, so that a hundred classes stay a small drawing
_LABEL = 24  # characters of a class name beside the map; the pointer shows it whole
_LISTED = 12  # most frequent confusions, listed in words below


def confusion(name: str, matrix: Any, classes: Sequence[str], *, most: int = 120) -> str:
    """Return the heat map of counts (truth, prediction), each row shaded by its share; errors have their own color.

    With more than `most` classes those with the most errors are shown, and a line says so.

    Raises: ValueError when the matrix is not square, has other sizes than `classes`, or negative counts.
    """
    counts = numbers(matrix)
    names = [str(label) for label in classes]
    if counts.shape != (len(names), len(names)):
        raise ValueError(
            f"confusion {name!r}: matrix {counts.shape}, expected {(len(names),) * 2} for {len(names)} classes"
        )
    counts = np.nan_to_num(counts)
    if (counts < 0).any():
        raise ValueError(f"confusion {name!r}: counts cannot be negative")
    total, right = counts.sum(), np.trace(counts)
    if not total:
        return notice("Nothing was counted yet.")
    rows = np.maximum(counts.sum(1, keepdims=True), 1e-12)
    summary = f"{_count(right)} of {_count(total)} right ({right / total:.1%}), {len(names)} classes."
    listed = _listed(counts, rows[:, 0], names)
    if len(names) > most:
        errors = counts.sum(1) + counts.sum(0) - 2 * np.diag(counts)
        kept = np.sort(np.argsort(-errors, kind="stable")[:most])
        summary += f" Shown are the {most} with the most errors; shares are of all samples of a class."
        counts, rows, names = counts[np.ix_(kept, kept)], rows[kept], [names[i] for i in kept]
    cells = [[int(i), int(j), _plain(counts[i, j])] for i, j in np.argwhere(counts)]
    payload = {"classes": names, "cells": cells, "rows": [_plain(value) for value in rows[:, 0]]}
    svg, geometry = _svg(counts, counts / rows, names)
    hint = f"{name}: arrow keys move, the cell is read out"
    return "".join((
        tag("p", text(summary), class_="lead"),
        tag(
            "div",
            tag("div", svg, class_="scroll", tabindex=0, role="application", aria_label=hint),
            _SCALE,
            tag("p", class_="unseen", role="status"),
            class_="confusion wide" if len(names) > 60 else "confusion",
            style=f"--side:{geometry['side']}px",
            data_confusion=data({**payload, **geometry}),
        ),
        listed,
    ))  # fmt: skip


_SCALE = tag(
    "div",
    "<span>share of the true class</span><span>0 %</span>",
    tag("i", class_="ramp hit"),
    tag("i", class_="ramp miss"),
    "<span>100 %</span>",
    tag("span", tag("i", class_="dot hit"), "right", class_="key"),
    tag("span", tag("i", class_="dot miss"), "wrong", class_="key"),
    class_="scale",
    aria_hidden="true",
)


def _listed(counts: NDArray[np.float64], rows: NDArray[np.float64], names: list[str]) -> str:
    wrong = counts * (1 - np.eye(len(names)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    found = [divmod(int(k), len(names)) for k in order if wrong.flat[k] > 0]
    if not found:
        return '<p class="lead">No class was taken for another.</p>'
    lines = [
        {
            "truth": names[i],
            "predicted as": names[j],
            "count": _plain(wrong[i, j]),
            "share of truth": wrong[i, j] / rows[i],
        }
        for i, j in found
    ]
    return "<h3>Most frequent confusions</h3>\n" + table("Most frequent confusions", lines, bars=("share of truth",))


def _svg(counts: NDArray[np.float64], shares: NDArray[np.float64], names: list[str]) -> tuple[str, dict[str, int]]:
    n = len(names)
    cell = 56 if n <= 8 else 40 if n <= 16 else 26 if n <= 30 else 15 if n <= 60 else 10
    font = 13 if n <= 16 else 12 if n <= 30 else 11 if n <= 60 else 9
    longest = max(len(shortened(label, _LABEL)) for label in names)
    gutter = max(110, round(longest * font * 0.56) + 24)
    left = top = gutter
    side = gutter + n * cell + 12
    levels = _levels(shares)
    centers = [gutter + (k + 0.5) * cell for k in range(n)]
    cut = [text(shortened(name, _LABEL)) for name in names]
    labels = [tag("text", label, class_="row", x=left - 8, y=at) for label, at in zip(cut, centers, strict=True)] + [
        tag("text", label, class_="column", transform=f"translate({at} {top - 8}) rotate(-90)")
        for label, at in zip(cut, centers, strict=True)
    ]
    written = [
        tag(
            "text",
            _count(counts[i, j]),
            class_="over" if levels[i, j] > 0.55 * _LEVELS else None,
            x=centers[j],
            y=centers[i],
        )
        for i, j in np.argwhere(counts)
        if n <= 16
    ]
    step = 1 if n <= 30 else 5 if n <= 60 else 10
    lines = [
        f"M{gutter + k * cell} {top}v{n * cell}M{left} {gutter + k * cell}h{n * cell}" for k in (*range(0, n, step), n)
    ]
    bands = [tag("rect", class_=kind) for kind in ("band across", "band down", "cell")]
    svg = tag(
        "svg",
        tag("path", class_="lines", d="".join(lines)),
        *_shades(levels, cell, gutter),
        tag("g", *written, class_="numbers"),
        tag("g", *labels, class_="labels"),
        tag("text", "prediction →", class_="axis", x=left - 8, y=top - 30),
        tag("text", "truth ↓", class_="axis", x=left - 8, y=top - 12),
        tag("g", *bands, class_="picked", hidden=True),
        viewBox=f"0 0 {side} {side}", width=side, height=side, style=f"--font:{font}px", aria_hidden="true",
    )  # fmt: skip
    return svg, {"cell": cell, "left": left, "top": top, "side": side + 10}


def _levels(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shade of every cell, 0 .. _LEVELS; small shares are lifted so that a single error can be seen."""
    levels: NDArray[np.float64] = np.ceil(np.where(shares > 0, 0.16 + 0.84 * shares**0.7, 0.0) * _LEVELS)
    return levels.clip(0, _LEVELS)


def _shades(levels: NDArray[np.float64], cell: int, gutter: int) -> Iterator[str]:
    """Yield the cells of one kind and one shade as one path."""
    diagonal, size = np.eye(len(levels), dtype=bool), cell - 1
    for kind, mask in (("hit", diagonal), ("miss", ~diagonal)):
        for level in range(1, _LEVELS + 1):
            places = np.argwhere((levels == level) & mask)
            path = (f"M{gutter + j * cell + 0.5} {gutter + i * cell + 0.5}h{size}v{size}h-{size}z" for i, j in places)
            if len(places):
                yield tag("path", class_=kind, fill_opacity=f"{level / _LEVELS:.3g}", d="".join(path))


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(value)


def _count(value: float) -> str:
    return f"{_plain(value):,}" if float(value).is_integer() else f"{value:.3g}"
