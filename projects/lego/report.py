"""What people look at: source, generated and true frames with their instruction and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.report import Page
from projects.lego import data, generate
from projects.lego.config import Config
from projects.lego.data import Record

HEADS = ("source", "generated", "true")


def write(
    path: Path,
    numbers: Mapping[str, float],
    results: Mapping[str, Mapping[str, Any]],
    each: Mapping[str, np.ndarray],
    ids: Sequence[str],
    known: Mapping[str, Record],
    images: Path,
    cfg: Config,
) -> None:
    """The report of an evaluation: figures as papers print them, intervals, and a grid of frames to filter."""
    scale = {name: 1.0 if name in ("fid", "psnr") else 100.0 for name in numbers}
    page = Page(f"{cfg.data.datasets[0]}: {len(ids)} generated frames", str(images))
    page.text(
        "Shares and distances are printed times 100 as in the paper, FID and PSNR (dB) as they are. Scores marked "
        "corrected feed the network the range it was trained on. Intervals are 95 % of the mean over frames."
    )
    page.facts({name: value * scale[name] for name, value in numbers.items() if not name.endswith("_corrected")})
    rows = []
    for name, result in results.items():
        low, high = result["interval_95"] or (None, None)
        source = result["source_frame"]
        row = {"score": name, "value": numbers[name] * scale[name]}
        row |= {"from": None if low is None else low * scale[name], "to": None if high is None else high * scale[name]}
        row |= {"source frame unchanged": None if source is None else source * scale[name]}
        rows.append(row)
    page.table("Scores", rows, digits=4)
    shown = {name: values for name, values in each.items() if not name.endswith("_corrected")}
    count = min(cfg.eval.shown, len(ids))
    places = sorted({round(place) for place in np.linspace(0, len(ids) - 1, count)})  # spread evenly over the split
    page.images("Frames", _cards(places, shown, ids, known, images, cfg), heads=HEADS, max_side=320)
    if shown:
        page.table("Scores of these frames", [_row(place, shown, known[ids[place]]) for place in places], digits=4)
    page.save(path)


def _row(place: int, each: Mapping[str, np.ndarray], record: Record) -> dict[str, Any]:
    """Which frame, what was done, and how it scored, to sort by."""
    named = {"clip": record.clip, "action": record.action, "label": record.fields.get("action", "")}
    return named | {name: float(values[place]) for name, values in each.items()}


def _cards(
    places: Sequence[int],
    each: Mapping[str, np.ndarray],
    ids: Sequence[str],
    known: Mapping[str, Record],
    images: Path,
    cfg: Config,
) -> list[tuple[str, list[np.ndarray]]]:
    """Frames with what was asked and how each scored."""
    cards = []
    for place in places:
        record = known[ids[place]]
        scores = ", ".join(f"{name} {values[place]:.3g}" for name, values in each.items())
        words = " — ".join(dict.fromkeys(str(record.fields.get(key, "")) for key in ("action", cfg.data.prompt)))
        paths = (
            data.source_path(cfg.data.root, record),
            generate.image_path(images.parent, record),
            data.target_path(cfg.data.root, record, metric=True),
        )
        cards.append(
            (f"{words} ({record.clip}/{record.action}; {scores})", [np.array(data.read_image(p)) for p in paths])
        )
    return cards
