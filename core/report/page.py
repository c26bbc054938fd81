"""Page: the blocks of a report in the order they were added, saved as one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from core.checkpoint import write_atomic
from core.report import confusions, curves, pictures, tables, timelines, videos
from core.report.markup import is_number, notice, plain, shown, tag, text
from core.report.timelines import Track

_CONTENTS = 4  # named blocks from which on the page opens with links to them


class Page:
    """A report that is built block by block: `Page("Run 7").facts({...}).curves(...).table(...).save("report.html")`.

    A block without data becomes a friendly line; NaN and None are shown as –; every text is escaped.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[tuple[str, Callable[[Path], str]]] = []

    def text(self, words: str, name: str = "") -> Page:
        """Add paragraphs of plain text, separated by empty lines."""
        paragraphs = (part.strip() for part in words.split("\n\n"))
        return self._add(name, "".join(tag("p", text(part), class_="prose") for part in paragraphs if part))

    def facts(self, values: Mapping[str, Any], name: str = "", *, digits: int = 3) -> Page:
        """Add the few figures that matter, large, each under its name."""
        tiles = [
            tag("div", tag("dt", text(key)), tag("dd", text(shown(value, digits))), class_=_kind(plain(value)))
            for key, value in values.items()
        ]
        return self._add(name, tag("dl", *tiles, class_="facts") if tiles else notice("There are no figures yet."))

    def curves(
        self, name: str, series: Mapping[str, tuple[Any, Any]], *, x: str = "", y: str = "", log: bool = False
    ) -> Page:
        """Add a chart of lines {label: (x, y)}; `x` and `y` name the axes, `log` scales y by powers of ten."""
        return self._add(name, curves.curves(series, x=x, y=y, log=log, prefix=f"chart-{len(self._blocks)}-"))

    def table(
        self,
        name: str,
        rows: Iterable[Mapping[str, Any] | Sequence[Any]],
        columns: Sequence[str] | None = None,
        *,
        sortable: bool = True,
        digits: int = 3,
        bars: Collection[str] = (),
    ) -> Page:
        """Add a table; rows are mappings or sequences; shares in the columns named by `bars` get a bar behind them."""
        return self._add(name, tables.table(name, rows, columns, sortable=sortable, digits=digits, bars=bars))

    def images(
        self, name: str, items: Iterable[tuple[str, Any]], *, heads: Sequence[str] = (), max_side: int = 512
    ) -> Page:
        """Add a grid of (caption, picture), or of (caption, [pictures]) under `heads`.

        A picture is uint8 (H,W,3) or (H,W), or float in [0, 1], as array or tensor.
        """
        return self._add(name, pictures.images(items, heads=heads, max_side=max_side))

    def confusion(self, name: str, matrix: Any, classes: Sequence[str], *, most: int = 120) -> Page:
        """Add the heat map of a matrix of counts (truth, prediction) and the most frequent confusions in words."""
        return self._add(name, confusions.confusion(name, matrix, classes, most=most))

    def timeline(
        self,
        name: str,
        tracks: Sequence[Track],
        duration_s: float | None = None,
        video: Path | str | None = None,
        *,
        limit_mb: float = 30.0,
        fps: float = 0.0,
    ) -> Page:
        """Add tracks of segments and curves over time, with a cursor that follows the video when there is one.

        Without `duration_s` the latest end of a track is the duration; `limit_mb` and `fps` as in `video`.
        """
        timelines.timeline(name, tracks, duration_s, "")  # what is wrong with the tracks shows here, not when saving
        path = None if video is None else Path(video)

        def block(folder: Path) -> str:
            playing = "" if path is None else videos.player(path, limit_mb, fps, folder)
            return timelines.timeline(name, tracks, duration_s, playing)

        return self._add(name, block)

    def video(self, path: Path | str, name: str = "", *, limit_mb: float = 30.0, fps: float = 0.0) -> Page:
        """Add a player. The video is embedded up to `limit_mb`, re-encoded small where browsers need it, else linked.

        A folder of pictures needs its `fps`. The video is read when the page is saved.
        """

        def block(folder: Path) -> str:
            return tag("div", videos.player(Path(path), limit_mb, fps, folder), class_="stage")

        return self._add(name, block)

    def html(self, folder: Path | str = ".") -> str:
        """Return the whole page; videos too large to embed are linked relative to `folder`."""
        blocks, links = [], []
        for i, (name, block) in enumerate(self._blocks):
            heading = tag("h2", text(name), id=f"block-{i}-name") if name else ""
            labelled = f"block-{i}-name" if name else None
            blocks.append(tag("section", heading, "\n", block(Path(folder)), id=f"block-{i}", aria_labelledby=labelled))
            if name:
                links.append(tag("a", text(name), href=f"#block-{i}"))
        header = tag(
            "header",
            tag("h1", text(self.title)),
            tag("p", text(self.subtitle), class_="subtitle") if self.subtitle else "",
            tag("nav", *links, aria_label="Contents") if len(links) >= _CONTENTS else "",
        )
        body = "\n".join([header, *(blocks or [notice("This page is empty.")])])
        style, script = (_asset(f"page.{kind}") for kind in ("css", "js"))
        # The browser itself refuses every request and every script but this one.
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data: blob: file: 'self'; "
            f"connect-src data:; script-src 'sha256-{digest}'"
        )
        head = "\n".join((
            '<meta charset="utf-8">',
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            tag("title", text(self.title)),
            tag("style", style),
        ))  # fmt: skip
        tip = tag("div", class_="tip", hidden=True)
        return (
            "<!doctype html>\n"
            f'<html lang="en">\n<head>\n{head}\n</head>\n'
            f"<body>\n{tag('main', body)}\n{tip}\n{tag('script', script)}\n</body>\n</html>\n"
        )

    def save(self, path: Path | str) -> Path:
        """Write the page as one file, whole or not at all, and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.html(path.parent))
        return path

    def _add(self, name: str, block: str | Callable[[Path], str]) -> Page:
        self._blocks.append((name, block if callable(block) else lambda folder: block))
        return self


def _kind(value: Any) -> str:
    return "figure" if is_number(value) else "words"


def _asset(name: str) -> str:
    return (files("core.report") / name).read_text(encoding="utf-8")
