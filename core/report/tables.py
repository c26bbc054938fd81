"""Tables that sort on click, filter as you type and leave as CSV."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from core.report.markup import is_number, notice, plain, shown, tag, text

_TALL = 15  # rows from which on a table scrolls in its place and a filter box is worth having


def table(
    name: str,
    rows: Iterable[Mapping[str, Any] | Sequence[Any]],
    columns: Sequence[str] | None = None,
    *,
    sortable: bool = True,
    digits: int = 3,
    bars: Collection[str] = (),
) -> str:
    """Return a table; rows are mappings, or sequences in the order of `columns`.

    Raises: ValueError when rows without names come without columns, or have another length.
    """
    listed = list(rows)
    names = _columns(name, listed, columns)
    if not listed:
        return notice("This table has no rows.")
    cells = [[plain(value) for value in _values(name, row, names)] for row in listed]
    numeric = [_is_numeric([row[i] for row in cells]) for i in range(len(names))]
    heads = [_head(column, number, sortable) for column, number in zip(names, numeric, strict=True)]
    lines = [
        tag("tr", *(_cell(row[i], numeric[i], digits, column in bars) for i, column in enumerate(names))) + "\n"
        for row in cells
    ]
    grid = tag(
        "table",
        tag("caption", text(name), class_="unseen"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", "\n", *lines),
    )
    tall = len(cells) >= _TALL
    search = tag(
        "input", type="search", class_="filter", placeholder=f"Filter {len(cells)} rows", aria_label="Filter rows"
    )
    tools = tag(
        "div",
        search if tall else "",
        tag("span", class_="push"),
        tag("button", "Copy CSV", type="button", class_="copy"),
        tag("button", "Download CSV", type="button", class_="download"),
        class_="tools",
    )
    scroll = tag("div", grid, class_="scroll tall" if tall else "scroll", tabindex=0, role="region", aria_label=name)
    return tag("div", scroll, tools, class_="table", data_name=name)


def _columns(name: str, rows: list[Any], columns: Sequence[str] | None) -> list[str]:
    if columns is not None:
        return [str(column) for column in columns]
    if rows and not isinstance(rows[0], Mapping):
        raise ValueError(f"table {name!r}: rows are sequences, so their names are needed; pass columns=[...]")
    return list(dict.fromkeys(str(key) for row in rows for key in row))


def _values(name: str, row: Any, names: list[str]) -> list[Any]:
    if isinstance(row, Mapping):
        return [row.get(column) for column in names]
    if len(row) != len(names):
        raise ValueError(f"table {name!r}: a row has {len(row)} values, expected {len(names)} ({', '.join(names)})")
    return list(row)


def _is_numeric(values: list[Any]) -> bool:
    present = [value for value in values if value is not None and value != ""]
    return bool(present) and all(is_number(value) for value in present)


def _head(column: str, number: bool, sortable: bool) -> str:
    label = tag("button", text(column), type="button") if sortable else text(column)
    sort = "none" if sortable else None
    return tag("th", label, scope="col", class_="number" if number else None, aria_sort=sort)


def _cell(value: Any, number: bool, digits: int, bar: bool) -> str:
    words = shown(value, digits)
    missing = value is None or (is_number(value) and math.isnan(value))
    exact = "" if missing else str(value)
    share = f"--share:{value:.3f}" if bar and number and not missing and 0 <= value <= 1 else None
    kind = None if not number else "number bar" if share else "number"
    return tag("td", text(words), class_=kind, style=share, data_value=None if exact == words else exact)
