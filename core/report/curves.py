"""Line charts: drawn by matplotlib as vectors, colored by the page, read with the pointer."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.report.markup import data, notice, numbers, printable, shown, tag, text

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
COLORS = 8  # --series-0 … --series-7 of page.css; further series repeat them dashed
_SIZE = (8.0, 3.0)  # inches of 72 units
_INK, _FAINT = "#0000f0", "#0000f1"  # stand for colors of the page, put in place of these at the end
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_HOVERED = 800  # points a series leaves in the page for the pointer to read


def curves(series: Mapping[str, tuple[Any, Any]], *, x: str, y: str, log: bool, prefix: str) -> str:
    """Return a chart of named (x, y) lines; NaN leaves a gap, and lines with nothing to show are named in a notice.

    `prefix` begins every id of the drawing, so that several drawings live in one page.

    Raises: ValueError when a line has other lengths of x and y.
    """
    lines = {str(name): _line(str(name), *points) for name, points in series.items()}
    drawn = {name: line for name, line in lines.items() if _visible(line, log).any()}
    left_out = [name for name in lines if name not in drawn]
    note = notice(f"No values to draw for {', '.join(left_out)}.") if left_out else ""
    if not drawn:
        return note or notice("There are no curves yet.")
    svg, axes = _svg(drawn, x, y, log, prefix)
    described = "; ".join(f"{name}: last {shown(_last(line))}" for name, line in drawn.items())
    payload = {**axes, "series": [{"name": name, **_thinned(line)} for name, line in drawn.items()]}
    legend = [
        tag(
            "button",
            tag("i", class_="swatch" if i < COLORS else "swatch dashed"),
            f"{text(name)} ",
            tag("b", text(shown(_last(line)))),
            type="button",
            aria_pressed="true",
            style=f"--color:var(--series-{i % COLORS})",
        )
        for i, (name, line) in enumerate(drawn.items())
    ]
    plot = tag("div", svg, tag("div", class_="cross", hidden=True), class_="plot", role="img", aria_label=described)
    chart = tag(
        "div",
        tag("div", *legend, class_="legend"),
        tag("div", plot, class_="scroll"),
        class_="chart",
        data_chart=data(payload),
    )
    if any(_is_noisy(line[1]) for line in drawn.values()):
        note += tag(
            "p", "Faint: every value. Bold: the mean of its neighborhood, a twentieth of the line.", class_="aside"
        )
    return chart + note


def _line(name: str, x: Any, y: Any) -> Line:
    xs, ys = numbers(x).ravel(), numbers(y).ravel()
    if len(xs) != len(ys):
        raise ValueError(f"curve {name!r}: {len(xs)} values of x and {len(ys)} of y, expected equally many")
    return xs, ys


def _visible(line: Line, log: bool) -> NDArray[np.bool_]:
    x, y = line
    return np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))


def _last(line: Line) -> float:
    x, y = line
    finite = np.isfinite(x) & np.isfinite(y)
    return float(y[finite][-1])


def _is_noisy(y: NDArray[np.float64]) -> bool:
    """Return whether a long line goes up and down so often that its mean must be drawn to be seen."""
    finite = y[np.isfinite(y)]
    return len(finite) >= 200 and np.abs(np.diff(finite)).sum() > 12 * np.ptp(finite)


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of every value and its neighbors on both sides, fewer towards the ends."""
    span = np.ones(len(y) // 40 * 2 + 1)
    finite = np.isfinite(y)
    count = np.convolve(finite, span, "same")
    return np.where(finite, np.convolve(np.where(finite, y, 0.0), span, "same") / np.maximum(count, 1), np.nan)


def _thinned(line: Line) -> dict[str, list[float]]:
    x, y = line
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _HOVERED)).round().astype(int))
    return {"x": x[keep].tolist(), "y": y[keep].tolist()}


def _svg(lines: Mapping[str, Line], x: str, y: str, log: bool, prefix: str) -> tuple[str, dict[str, Any]]:
    """Return the drawing and where its axes are: box in shares of the drawing, limits in units of the data."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 8.5}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the letters that the measuring font lacks
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for i, line in enumerate(lines.values()):
            dash: Any = _DASHES[i // COLORS % len(_DASHES)]
            alone = np.count_nonzero(_visible(line, log)) == 1
            look: Any = {"color": _series(i), "marker": "o" if alone else None, "markersize": 4}
            if _is_noisy(line[1]):
                axes.plot(*line, linewidth=0.6, gid=f"raw-{i}", **look)
                axes.plot(line[0], _smooth(line[1]), linewidth=1.5, linestyle=dash, gid=f"series-{i}", **look)
            else:
                axes.plot(*line, linewidth=1.5, linestyle=dash, gid=f"series-{i}", **look)
        if log:
            axes.set_yscale("log", nonpositive="mask")
        axes.set_xlabel(printable(x), color=_INK, parse_math=False)
        axes.set_ylabel(printable(y), color=_INK, parse_math=False)
        axes.grid(True, axis="y", color=_FAINT, linewidth=0.7)
        axes.tick_params(which="both", length=0, labelcolor=_INK, pad=5)
        for side, spine in axes.spines.items():
            spine.set(visible=side == "bottom", color=_FAINT)
        if not log:
            axes.ticklabel_format(useOffset=False)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        box = axes.get_position()
        placed = {
            "box": [box.x0, 1 - box.y1, box.width, box.height],
            "x": list(axes.get_xlim()), "y": list(axes.get_ylim()), "log": log,
        }  # fmt: skip
    return _inlined(out.getvalue(), prefix), placed


def _series(index: int) -> str:
    return f"#0000e{index % COLORS}"


def _inlined(svg: str, prefix: str) -> str:
    """Return matplotlib's file as part of a page: no prologue, no fonts or colors of its own, no name used twice."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg).replace("xlink:href", "href")
    svg = (
        svg.replace(' id="', f' id="{prefix}').replace("url(#", f"url(#{prefix}").replace('href="#', f'href="#{prefix}')
    )
    for color, name in [(_INK, "soft"), (_FAINT, "line"), *((_series(i), f"series-{i}") for i in range(COLORS))]:
        svg = svg.replace(color, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
