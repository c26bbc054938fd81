"""Pickled tables and scores of others, read without running anything they name: only data comes out."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# What numpy's own pickles name, in the spellings of numpy 1 and 2. These make arrays and numbers, nothing else.
_MULTIARRAY, _NUMERIC = (import_module(f"numpy._core.{name}") for name in ("multiarray", "numeric"))
_NUMPY = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module.__name__.rpartition('.')[2]}", name): getattr(module, name)
        for core in ("core", "_core")
        for module, name in ((_MULTIARRAY, "_reconstruct"), (_MULTIARRAY, "scalar"), (_NUMERIC, "_frombuffer"))
    },
}
_BUILTINS = {kind.__name__: kind for kind in (set, frozenset, slice, bytearray, complex)}


class _Inert:
    """Stands for an object of a foreign class: keeps what it was made of, runs nothing."""

    name = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _Inert:
        made = super().__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        if module == "collections" and name == "OrderedDict":
            return dict
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if module == "_codecs" and name == "encode":
            return _encode
        if module.split(".")[0] == "pandas":
            return type(name, (_Inert,), {"name": name})
        raise pickle.UnpicklingError(f"names {module}.{name}")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How pickles of protocol 2 hold bytes."""
    return text.encode("latin1" if encoding != "utf-8" else encoding)


def load(path: Path) -> Any:
    """The plain data of a pickle: containers, numbers, text and numpy arrays.

    Raises: ValueError naming the file, when it is damaged or names anything but data.
    """
    try:
        return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(
            f"{path}: {error}; only pickled numbers, text, arrays and pandas tables are read. Save it as csv or npz"
        ) from None


def table(path: Path) -> dict[str, list[Any]]:
    """The columns of a pickled pandas DataFrame, its index first; needs no pandas.

    Raises: ValueError as `load`, and for a pickle of anything else.
    """
    frame = load(path)
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
