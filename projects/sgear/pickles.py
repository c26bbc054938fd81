"""Pickled pandas tables, in which EPIC-KITCHENS publishes its annotations too, read without pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.checkpoint import read_pickle


class _Inert:
    """Stands for an object of pandas: keeps what it was made of, runs nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _Inert:
        made = super().__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stand_in(module: str, name: str) -> Any:
    if module.split(".")[0] == "pandas":
        return _Inert
    return slice if (module, name) in (("builtins", "slice"), ("__builtin__", "slice")) else None


def table(path: Path) -> dict[str, list[Any]]:
    """The columns of a pickled pandas DataFrame (of pandas 0.14 to 3), its index first.

    Raises: ValueError naming the file, for one that is damaged, names more than data, or holds no table.
    """
    frame = read_pickle(path, stand_in=_stand_in)
    try:
        state = frame.state
        manager = state.get("_mgr", state.get("_data")) if isinstance(state, Mapping) else state
        axes, blocks = _manager(manager)
        names, index = (_index(axis) for axis in axes)
        columns: dict[str, list[Any]] = {_name(axes[1]): index}
        for values, places in blocks:
            rows = values if values.ndim == 2 else values[None]
            for place, row in zip(places, rows, strict=True):
                columns[str(names[place])] = row.tolist()
        order = [_name(axes[1]), *map(str, names)]
        return {name: columns[name] for name in order}
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        raise ValueError(
            f"{path}: this is no DataFrame in a layout known here ({type(error).__name__}: {error}); save it as csv"
        ) from None


def _manager(manager: Any) -> tuple[list[Any], Iterable[tuple[np.ndarray, list[int]]]]:
    """Axes (columns, rows) and blocks (values, their columns) of pandas 0.14 to 1.2, or of 1.3 and later."""
    if manager.state is not None and len(manager.state) >= 4:
        content = manager.state[3]["0.14.1"]
        return content["axes"], [(_array(b["values"]), _places(b["mgr_locs"])) for b in content["blocks"]]
    blocks, axes = manager.args
    return axes, [(_array(block.args[0]), _places(block.args[1])) for block in blocks]


def _array(values: Any) -> np.ndarray:
    """The array of a block; text of pandas 3 hides it in the state of a class of its own."""
    if isinstance(values, np.ndarray):
        return values
    parts = values.state.values() if isinstance(values.state, Mapping) else values.state
    return next(part for part in parts if isinstance(part, np.ndarray))


def _places(places: Any) -> list[int]:
    if isinstance(places, _Inert):  # BlockPlacement
        places = places.args[0]
    if isinstance(places, slice):
        return list(range(places.start or 0, places.stop, places.step or 1))
    return list(map(int, np.atleast_1d(places)))


def _index(axis: Any) -> list[Any]:
    """The labels of an axis: a plain index, or numbers from start to stop."""
    _, content = axis.args
    if "data" in content:
        return list(_array(content["data"]).tolist())
    return list(range(content["start"], content["stop"], content.get("step", 1)))


def _name(axis: Any) -> str:
    return str(axis.args[1].get("name") or "index")
