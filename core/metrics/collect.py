"""The results of an evaluation, by sample id, from any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from core import dist

Column: TypeAlias = "np.ndarray[Any, Any] | list[Any]"


@dataclass
class _Part:
    """What some processes collected: ids and, for each column, chunks in the same order."""

    ids: list[str]
    columns: dict[str, list[Column]]


class Collector:
    """Gathers one row per sample and merges the rows of all processes.

    What `merge` returns depends on the samples alone, not on their order, their batches or the number of processes.
    Rows are kept as compact numpy chunks on the CPU.
    """

    def __init__(self) -> None:
        self._part = _Part([], {})

    def __len__(self) -> int:
        """Rows added on this process."""
        return len(self._part.ids)

    def add(self, ids: Sequence[str], **columns: Tensor | np.ndarray[Any, Any] | Sequence[Any]) -> None:
        """Add a batch: as many ids as every column has rows.

        Tensors, arrays and sequences of numbers become one array in the end, so their rows have one shape; any other
        sequence (strings, tensors of unequal shapes, lists) stays a list.

        Raises:
            ValueError: for another number of rows than ids, other columns than before, or ids that are no strings.
        """
        if isinstance(ids, str) or not all(isinstance(name, str) for name in ids):
            raise ValueError(f"ids must be a sequence of strings, one for each row; got {ids!r}")
        if "id" in columns:
            raise ValueError("the column name 'id' is taken by the ids themselves; choose another")
        if self._part.ids and set(columns) != set(self._part.columns):
            raise ValueError(f"every batch must have the columns {sorted(self._part.columns)}; got {sorted(columns)}")
        if not ids:
            return
        rows = {name: _chunk(name, values) for name, values in columns.items()}
        for name, chunk in rows.items():
            if len(chunk) != len(ids):
                raise ValueError(f"column {name!r} has {len(chunk)} rows for {len(ids)} ids; give one row for each id")
            earlier = self._part.columns.get(name)
            if earlier:
                _same_kind(name, earlier[0], chunk)
        self._part.ids.extend(ids)
        for name, chunk in rows.items():
            self._part.columns.setdefault(name, []).append(chunk)

    def merge(self) -> dict[str, Column]:
        """Every sample of all processes once, sorted by id: {"id": list of str, **columns}; the same on every process.

        All processes call it together. Rows that came twice, equal in every column, are kept once.

        Raises:
            ValueError: when one id came with different values, or processes collected different columns.
        """
        parts = [part for part in dist.gather(self._part) if part.ids]
        if not parts:
            return {"id": []}
        names = list(parts[0].columns)
        for part in parts:
            if set(part.columns) != set(names):
                raise ValueError(f"processes collected different columns: {sorted(names)} and {sorted(part.columns)}")
        ids = [name for part in parts for name in part.ids]
        columns = {name: _join(name, [chunk for part in parts for chunk in part.columns[name]]) for name in names}
        order = sorted(range(len(ids)), key=ids.__getitem__)
        keep = order[:1]
        for row in order[1:]:
            if ids[row] != ids[keep[-1]]:
                keep.append(row)
                continue
            for name, column in columns.items():
                if not _equal(column[row], column[keep[-1]]):
                    raise ValueError(
                        f"sample {ids[row]!r} came twice with different {name!r}: {_short(column[keep[-1]])} and "
                        f"{_short(column[row])}; ids must be unique in a split"
                    )
        merged: dict[str, Column] = {"id": [ids[row] for row in keep]}
        for name, column in columns.items():
            merged[name] = [column[row] for row in keep] if isinstance(column, list) else column[keep]
        return merged


def _chunk(name: str, values: Tensor | np.ndarray[Any, Any] | Sequence[Any]) -> Column:
    """The values in memory of their own, so that no batch is kept alive by a small part of it."""
    if isinstance(values, Tensor | np.ndarray):
        if not values.ndim:
            raise ValueError(f"column {name!r} must have one row for each id; got the single value {values!r}")
        return _array(values)
    if isinstance(values, str):
        raise ValueError(f"column {name!r} must have one row for each id; got the single text {values!r}")
    values = list(values)
    if values and all(isinstance(value, Number | np.generic) for value in values):
        return np.asarray(values)
    return [_array(value) if isinstance(value, Tensor | np.ndarray) else value for value in values]


def _array(values: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(values, Tensor):
        values = values.detach()
        if values.dtype == torch.bfloat16:  # numpy has no such type
            values = values.float()
        return np.array(values.cpu().numpy())
    return np.array(values)


def _same_kind(name: str, earlier: Column, chunk: Column) -> None:
    if isinstance(earlier, list) != isinstance(chunk, list):
        kinds = ["a list" if isinstance(column, list) else "an array" for column in (earlier, chunk)]
        raise ValueError(
            f"column {name!r} was {kinds[0]} before and is {kinds[1]} now; pass the same kind in all batches"
        )
    if not isinstance(earlier, list) and not isinstance(chunk, list) and earlier.shape[1:] != chunk.shape[1:]:
        raise ValueError(
            f"column {name!r} had rows of shape {earlier.shape[1:]} before and has {chunk.shape[1:]} now; "
            "pass rows of unequal shapes as a list"
        )


def _join(name: str, chunks: list[Column]) -> Column:
    arrays: list[np.ndarray[Any, Any]] = []
    for chunk in chunks:
        _same_kind(name, chunks[0], chunk)
        if not isinstance(chunk, list):
            arrays.append(chunk)
    return np.concatenate(arrays) if arrays else [value for chunk in chunks for value in chunk]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray | np.generic):
        return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b) or bool(a != a and b != b)  # NaN is the only value that differs from itself


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
