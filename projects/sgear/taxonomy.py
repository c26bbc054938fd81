"""The classes of a benchmark: verbs, nouns, and the actions that are pairs of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Taxonomy:
    """Names by class id. `pairs` (K,2) holds verb and noun of every action; (K,0) where actions are no pairs."""

    actions: tuple[str, ...]
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    pairs: Ints

    @property
    def has_pairs(self) -> bool:
        """Whether an action is a verb and a noun."""
        return bool(self.verbs) and self.pairs.shape[1] == 2

    @cached_property
    def _number(self) -> Ints:
        table = np.full((len(self.verbs) + 1, len(self.nouns) + 1), -1, dtype=np.int64)  # the last row and column: none
        table[self.pairs[:, 0], self.pairs[:, 1]] = np.arange(len(self.pairs))
        return table

    def action(self, verb: Ints, noun: Ints) -> Ints:
        """The action of each (verb, noun); -1 where there is none, or one of them is unknown (-1)."""
        return self._number[verb, noun]

    def check(self, path: Path, verb: Ints, noun: Ints) -> None:
        """Raises: ValueError when a label of the file at `path` is no class of this taxonomy."""
        for name, values, names in (("verb", verb, self.verbs), ("noun", noun, self.nouns)):
            if len(values) and not -1 <= values.min() <= values.max() < len(names):
                wrong = values[(values < -1) | (values >= len(names))][0]
                raise ValueError(
                    f"{path}: {name}_class {wrong} is none of the {len(names)} {name}s; do the annotations and the "
                    "class files belong together?"
                )

    def mapping(self, kind: str) -> Tensor:
        """Which verb ("verb") or noun ("noun") an action has: float32 (K,V) or (K,N) of 0 and 1, M_v and M_n."""
        names = self.verbs if kind == "verb" else self.nouns
        matrix = torch.zeros(len(self.actions), len(names))
        if self.has_pairs:
            of = torch.from_numpy(self.pairs[:, 0 if kind == "verb" else 1])
            matrix[torch.arange(len(of)), of] = 1.0
        return matrix


def read_epic(names: Path, actions: Path, *, edition: int) -> Taxonomy:
    """The classes of EPIC-KITCHENS-55 or -100: official class files in `names`, RULSTM's action table `actions`.

    Raises: ValueError naming the file that is missing or malformed.
    """
    prefix, key = ("EPIC_100", "key") if edition == 100 else ("EPIC", "class_key")
    verbs, nouns = (_column(names / f"{prefix}_{kind}_classes.csv", key) for kind in ("verb", "noun"))
    rows = _rows(actions, ("id", "verb", "noun", "action"))
    pairs = _pairs(actions, [(row["id"], row["verb"], row["noun"]) for row in rows])
    if pairs[:, 0].max() >= len(verbs) or pairs[:, 1].max() >= len(nouns):
        raise ValueError(f"{actions}: has verbs or nouns that {names} does not know; are both of one edition?")
    return Taxonomy(tuple(row["action"].strip() for row in rows), verbs, nouns, pairs)


def read_egtea(actions: Path) -> Taxonomy:
    """The classes of EGTEA Gaze+: `id, verb_noun, Verb_noun` without header; a name is that of its first action."""
    rows = _rows(actions, ("id", "pair", "action"), header=False)
    try:
        split = [(row["id"], *row["pair"].split("_")) for row in rows]
        pairs = _pairs(actions, [(number, verb, noun) for number, verb, noun in split])
    except ValueError as error:
        raise ValueError(f"{actions}: {error}; expected lines such as `0, 0_0, Inspect/Read_recipe`") from None
    names = [row["action"].strip() for row in rows]
    words = [name.partition("_")[::2] for name in names]
    verbs, nouns = (
        tuple(
            next(
                (word[part] for word, pair in zip(words, pairs, strict=True) if pair[part] == number), f"class {number}"
            )
            for number in range(int(pairs[:, part].max()) + 1)
        )
        for part in (0, 1)
    )
    return Taxonomy(tuple(names), verbs, nouns, pairs)


def of_names(actions: tuple[str, ...]) -> Taxonomy:
    """Actions that are no pairs, as those of 50 Salads."""
    return Taxonomy(actions, (), (), np.zeros((len(actions), 0), dtype=np.int64))


@dataclass(frozen=True)
class Subset:
    """Some classes of each space, by id."""

    verb: Ints
    noun: Ints
    action: Ints


def many_shot(folder: Path, taxonomy: Taxonomy) -> Subset:
    """The many-shot classes of EPIC-KITCHENS-55: listed verbs and nouns, actions with one of them (RULSTM's rule)."""
    verb, noun = (
        np.array(
            [int(row[f"{kind}_class"]) for row in _rows(folder / f"EPIC_many_shot_{kind}s.csv", (f"{kind}_class",))]
        )
        for kind in ("verb", "noun")
    )
    either = np.isin(taxonomy.pairs[:, 0], verb) | np.isin(taxonomy.pairs[:, 1], noun)
    return Subset(verb, noun, np.flatnonzero(either))


def _pairs(path: Path, rows: list[tuple[str, str, str]]) -> Ints:
    """(K,2) in order of id, which has to be the line too."""
    numbers = np.array([[int(value) for value in row] for row in rows], dtype=np.int64)
    if not np.array_equal(numbers[:, 0], np.arange(len(numbers))):
        raise ValueError(f"{path}: ids should count 0, 1, 2, ...; is the file whole and in order?")
    return numbers[:, 1:]


def _column(path: Path, name: str) -> tuple[str, ...]:
    return tuple(row[name].strip() for row in _rows(path, (name,)))


def _rows(path: Path, names: tuple[str, ...], *, header: bool = True) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, None if header else names, skipinitialspace=True)
            rows = list(reader)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; docs/data.md says where annotation files come from") from None
    missing = set(names) - set(reader.fieldnames or ())
    if missing or not rows or any(row[name] is None for row in rows for name in names):
        raise ValueError(f"{path}: expected lines with {', '.join(names)}; found {reader.fieldnames}")
    return rows
