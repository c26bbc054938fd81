"""Text and numbers as HTML: everything a user's file may contain is escaped here."""

from __future__ import annotations

import html
import json
import math
import re
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_VOID = {"img", "input", "meta"}
MISSING = "–"


def text(value: Any) -> str:
    """Return the value as HTML text that is safe in content and in quoted attributes."""
    return html.escape(printable(value), quote=True)


def printable(value: Any) -> str:
    """Return the value as text without control characters and lone surrogates, which no page may hold."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def data(value: Any) -> str:
    """Return the value as JSON (not yet escaped); numbers that JSON does not know become null."""
    return json.dumps(_plain_data(value), separators=(",", ":"), ensure_ascii=False)


def tag(name: str, *content: str, **attributes: Any) -> str:
    """Return an element around content that is HTML already; attribute values are escaped, None and False left out.

    Names are written with `_` for `-` and a trailing `_` for Python's own words: `class_`, `data_name`.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{''.join(content)}</{name}>"


def plain(value: Any) -> Any:
    """Return a Python value for a scalar of torch or numpy, everything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def is_number(value: Any) -> bool:
    """Return whether this is a number that sorts and aligns as one; booleans are words."""
    return isinstance(value, Real) and not isinstance(value, bool)


def shown(value: Any, digits: int = 3) -> str:
    """Return a value as people read it (not yet escaped): grouped integers, rounded floats, – for what is missing."""
    value = plain(value)
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_number(value):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}"
    value = float(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e12 or 0 < size < 0.5 * 10.0**-digits:
        return f"{value:.{max(digits - 1, 0)}e}"
    return f"{value:,.{0 if size >= 1e6 else digits}f}"


def clock(seconds: float) -> str:
    """Return a time as 1:02:03.4 with the parts it needs."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{start}:{tenths // 10:02}.{tenths % 10}"


def shortened(label: str, length: int) -> str:
    """Return the label cut to `length` characters, with an ellipsis where it was cut."""
    return label if len(label) <= length else label[: length - 1].rstrip() + "…"


def notice(words: str) -> str:
    """Return the friendly line that stands where there is nothing to show."""
    return tag("p", text(words), class_="notice")


def numbers(values: Any) -> NDArray[np.float64]:
    """Return numbers of a list, array or tensor (on any device) as an array of floats."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)


def _plain_data(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, dict):
        return {printable(key): _plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_data(item) for item in value]
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
