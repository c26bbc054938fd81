"""What an action is called in words: label files of every dataset to sentences, as the published script reads them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path


def _noun(text: str) -> str:
    """`a:b` is "b a"; of three parts the last and the first are kept (official behavior)."""
    parts = text.split(":")
    return f"{parts[-1]} {parts[0]}" if len(parts) > 1 else text


def _epic100(cells: list[str]) -> str:
    verb, noun = cells[-1].split(" ")[:2]
    return f"{verb} {_noun(noun)}"


def _epic55(cells: list[str]) -> str:
    verb, noun = cells[1].strip().split("_")[:2]
    return f"{verb} {_noun(noun)}"


def _egtea(cells: list[str]) -> str:
    verb, noun = cells[-1].strip().split("_")[:2]
    return f"{verb.split('/')[0]} {noun.replace(':', ' ')}"


def _segments(cells: list[str]) -> str:
    return cells[1].replace("_", " ").strip()


PARSERS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "epic100": (",", _epic100),
    "epic55": (",", _epic55),
    "egtea": (",", _egtea),
    "50Salads": (" ", _segments),
    "breakfast": (" ", _segments),
}
ALIASES = {"egdea": "egtea", "50salads": "50Salads", "salads": "50Salads", "ek100": "epic100", "ek55": "epic55"}
"""Other spellings, among them the one in the published README."""

FORMS = {
    "epic100": "id,verb,noun,take tap",
    "epic55": "id, take_pan,verb,noun",
    "egtea": "id, verb_noun, Inspect/Read_recipe",
    "50Salads": "id cut_tomato (mapping.txt)",
    "breakfast": "id pour_cereals (mapping.txt)",
}


def keyword(dataset: str) -> str:
    """The name that files carry for a dataset keyword, in any accepted spelling.

    Raises: ValueError for an unknown one.
    """
    name = ALIASES.get(dataset, dataset)
    if name not in PARSERS:
        raise ValueError(f"there is no dataset {dataset!r}; choose one of {', '.join([*PARSERS, *ALIASES])}")
    return name


def read(path: Path, dataset: str) -> dict[int, str]:
    """Action id -> sentence, in the order of the file; a header line is passed over.

    Raises: ValueError naming the file and line, for another form than the dataset's or ids that come twice.
    """
    name = keyword(dataset)
    separator, parse = PARSERS[name]
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected lines like {FORMS[name]!r}")
    found: dict[int, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, cells in enumerate(csv.reader(file, delimiter=separator), 1):
            if not cells or (number == 1 and not cells[0].strip().isdigit()):
                continue
            try:
                action, sentence = int(cells[0]), parse(cells)
            except (ValueError, IndexError):
                raise ValueError(
                    f"{path}, line {number}: expected {FORMS[name]!r} for {name}, found {separator.join(cells)!r}"
                ) from None
            if action in found:
                raise ValueError(f"{path}, line {number}: action {action} was there before, as {found[action]!r}")
            found[action] = sentence
    if not found:
        raise ValueError(f"{path}: holds no actions; expected lines like {FORMS[name]!r}")
    return found
