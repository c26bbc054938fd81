"""Grids of pictures with captions: single ones, or groups such as source, generated and target."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.report.markup import notice, tag, text

_FEW = 8  # cards below which a filter box is not worth its place
_SMALL = 128 * 128  # pixels up to which PNG is as small as JPEG, and exact


def images(items: Iterable[tuple[str, Any]], *, heads: Sequence[str] = (), max_side: int = 512) -> str:
    """Return a grid of cards: a caption under one picture, or under several, which `heads` name.

    A picture is uint8 (H,W,3) or (H,W), or float in [0, 1], as array or tensor.
    """
    cards = [_card(str(caption), given, heads, max_side) for caption, given in items]
    if not cards:
        return notice("There are no pictures.")
    search = tag(
        "div",
        tag(
            "input",
            type="search",
            class_="filter",
            aria_label="Filter pictures by caption",
            placeholder=f"Filter {len(cards)} pictures by caption",
        ),
        tag("output", class_="count"),
        class_="tools above",
    )
    wide = max(card.count("<img") for card in cards)
    return tag(
        "div",
        search if len(cards) >= _FEW else "",
        tag("div", "\n", *cards, class_="grid", style=f"--wide:{wide}"),
        tag("p", "No caption has these words.", class_="notice", hidden=True),
        class_="pictures",
    )


def _card(caption: str, given: Any, heads: Sequence[str], max_side: int) -> str:
    group = list(given) if isinstance(given, (list, tuple)) else [given]
    if heads and len(heads) != len(group):
        raise ValueError(f"{caption!r} has {len(group)} pictures, heads name {len(heads)}: {', '.join(heads)}")
    shown = [_picture(caption, heads[i] if heads else "", picture, max_side) for i, picture in enumerate(group)]
    return tag("figure", tag("div", *shown, class_="group"), tag("figcaption", text(caption)), class_="card") + "\n"


def _picture(caption: str, head: str, picture: Any, max_side: int) -> str:
    words = f"{caption}: {head}" if head else caption
    width, height, uri = data_uri(caption, picture, max_side)
    image = tag("img", loading="lazy", decoding="async", width=width, height=height, alt=words, src=uri)
    over = tag("span", text(head), class_="head") if head else ""
    return tag("button", over, image, type="button", class_="picture", aria_label=f"Enlarge {words}")


def data_uri(caption: str, picture: Any, max_side: int) -> tuple[int, int, str]:
    """Return (width, height, data URI) of a picture, reduced to `max_side`; exact PNG when small, else JPEG."""
    from PIL import Image

    image = Image.fromarray(_pixels(caption, picture))
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if image.width * image.height <= _SMALL:
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "JPEG", quality=88, subsampling=0)
    kind = "png" if image.width * image.height <= _SMALL else "jpeg"
    return image.width, image.height, f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _pixels(caption: str, picture: Any) -> NDArray[np.uint8]:
    array = np.asarray(picture.detach().cpu() if hasattr(picture, "detach") else picture)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"picture {caption!r} has shape {array.shape}, expected (H, W, 3) or (H, W)")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        return (np.nan_to_num(array.astype(np.float64)).clip(0, 1) * 255).round().astype(np.uint8)
    raise ValueError(f"picture {caption!r} holds {array.dtype}, expected uint8, or float between 0 and 1")
