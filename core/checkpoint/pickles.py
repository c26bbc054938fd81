"""Plain pickles of others: only data comes out, nothing that they name is imported or run."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.checkpoint.files import existing

StandIn = Callable[[str, str], Any]
"""(module, name) -> a harmless class or function for what a pickle names, or None to refuse the file."""

_ARRAYS = ("_reconstruct", "scalar")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding="latin1": text.encode(
        encoding if encoding in ("latin1", "utf-8") else "latin1"
    ),
    **{("collections", kind.__name__): kind for kind in (OrderedDict, Counter)},
    ("collections", "defaultdict"): lambda *_: defaultdict(),
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (bytes, bytearray, complex, dict, frozenset, list, set, slice)
    },
    **{
        (f"numpy.{core}.{module}", name): getattr(getattr(np._core, module), name)  # type: ignore[attr-defined]
        for core in ("core", "_core")
        for module, names in (("multiarray", _ARRAYS), ("numeric", ("_frombuffer",)))
        for name in names
    },
}


class _Unpickler(pickle.Unpickler):
    stand_in: StandIn | None = None

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        found = self.stand_in(module, name) if self.stand_in else None
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which could run any code")
        return found


def read_pickle(path: str | Path, *, stand_in: StandIn | None = None) -> Any:
    """The content of a pickle: containers, numbers, texts and numpy arrays; of Python 2 too, its texts read as latin-1.

    Raises:
        ValueError: naming the file and the way out, when it is not there, is damaged or names anything but data.
    """
    path = existing(path)
    try:
        with path.open("rb") as file:
            reader = _Unpickler(file, encoding="latin1")
            reader.stand_in = stand_in
            return reader.load()
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: {error}; only pickled numbers, texts, containers and arrays are read. Where you trust the file, "
            "open it once and save its content as json, csv or npz"
        ) from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path}: damaged, or no pickle ({type(error).__name__}: {error})") from None
