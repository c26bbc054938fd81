"""Weights of a model: written as safetensors, read from our files and foreign ones, renamed, checked, reported."""

from __future__ import annotations

import difflib
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core import dist
from core.checkpoint.files import existing, fetch, replacing

Rule = tuple[str, str | Callable[[re.Match[str]], str | None]]
"""A regular expression, and what replaces its first match in a name; a function that returns None drops the name."""

# Where official files keep their weights; those meant for evaluation come first.
PLACES = ("state_dict_ema", "model_ema", "model_state", "state_dict", "model", "parts.step.average", "parts.model")

NUMPY: tuple[Any, ...] = (
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"},
    *(
        (getattr(np._core.multiarray, name), f"numpy.{package}.multiarray.{name}")  # type: ignore[attr-defined]
        for package in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)
"""Pass it as `allow` to read torch files that hold numbers and arrays of numpy 1 or 2."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, name by name; `str` of it is for the log."""

    source: str
    """The file, and the key inside it under which the weights lay."""
    loaded: tuple[str, ...]
    """Names in the model."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Name in the file -> name in the model, where they differ."""
    reshaped: Mapping[str, str] = field(default_factory=dict)
    """Name in the model -> both shapes, which differ in dimensions of size 1 only."""
    dropped: tuple[str, ...] = ()
    """Names in the file that a rule or `drop` left out."""
    missing: tuple[str, ...] = ()
    """Names in the model that keep their values, as `allow_missing` or `drop` permits."""
    unexpected: tuple[str, ...] = ()
    """Names in the file that have no place in the model; empty unless in an error."""

    def __str__(self) -> str:
        counts = [f"loaded {len(self.loaded)} tensors from {self.source}"]
        counts += [f"{len(self.renamed)} renamed"] if self.renamed else []
        for what in ("reshaped", "dropped", "missing", "unexpected"):
            if names := list(getattr(self, what)):
                counts.append(f"{len(names)} {what} ({_some(names, 4)})")
        return ", ".join(counts)


def save_weights(
    model: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a model, or tensors by name, as safetensors, whole and atomically; all processes call it, the main writes.

    `metadata` holds anything JSON can say and comes back from `read_weights`.

    Raises:
        OSError: when the disk is full or the folder cannot be written.
    """
    state = dist.full_state(model, main_only=True).get("model", {}) if isinstance(model, nn.Module) else model
    if dist.is_main():
        _write(state, Path(path), metadata or {})


def read_weights(
    path: str | Path, key: str | None = None, *, allow: Sequence[Any] | Literal["inert"] = (), mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors or torch file by name, on the CPU, and what the file says beside them.

    Weights may lie at the top of a torch file or under a key (dotted when nested): `key`, else the first of `PLACES`
    that holds tensors. Prefixes left by DDP and torch.compile are stripped. The second result names the file's own
    metadata or plain numbers and texts, `key`, and under `others` the other places that hold weights.

    Code in a foreign pickle never runs: only tensors, plain containers and the classes in `allow` are made. An entry of
    `allow` is a class, or (class, "module.Name") to put a harmless class in the place of another. allow="inert" is for
    files that carry a framework's objects beside the weights: each of them becomes a plain dict, whatever its class
    would have done (arrays of numpy are read).

    `mapped` leaves the tensors of a torch file on the disk until they are looked at, as large files want it; the file
    must not be written to as long as they live.

    Raises:
        ValueError: naming the file and the way out, when it needs other classes, is damaged or holds no weights.
    """
    path = existing(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{" and not head.startswith(b"PK"):
        tensors, about = _read_safetensors(path)
    else:
        mapped = mapped and zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
        content = _read_inert(path, mapped) if allow == "inert" else _read_torch(path, allow, mapped)
        tensors, about = _find(content, key, path)
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors, about


def read_inert(path: str | Path) -> Any:
    """All that a torch file holds: tensors, numbers, texts and containers; any other object becomes a plain dict.

    For what a foreign training run left beside its weights, such as the state of its optimizer. No code of it runs.

    Raises:
        ValueError: naming the file, when it is missing, damaged, or wants more than making objects.
    """
    return _read_inert(existing(path))


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    rules: Iterable[Rule] = (),
    drop: Iterable[str] = (),
    allow_missing: Iterable[str] = (),
    key: str | None = None,
    allow: Sequence[Any] | Literal["inert"] = (),
) -> LoadReport:
    """Put weights from a file, an address or a state-dict into `model`, every tensor accounted for.

    `rules` are applied to each name one after the other. `drop` are expressions for names, in the file or renamed, to
    leave out; `allow_missing` for names of the model that may keep their values. Shapes may differ in dimensions of
    size 1, as when a linear layer was a convolution. See `read_weights` for `key` and `allow`.

    Raises:
        ValueError: listing what is missing, unexpected or of another shape, with the nearest names.
    """
    if isinstance(source, Mapping):
        tensors, about = _find(source, key, Path("the given state-dict"))
        origin = "the given state-dict"
    else:
        path = fetch(source)
        tensors, about = read_weights(path, key, allow=allow)
        origin = str(path)
    if about.get("key"):
        origin += f" at {about['key']!r}"
    if about.get("others"):
        origin += f" (it also has {', '.join(about['others'])})"

    names, dropped = _rename(tensors, list(rules), list(drop))
    own = dist.full_state(model)["model"]
    wanted = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    permitted = [*allow_missing, *drop]
    missing = [name for name in wanted if name not in names]
    absent = [name for name in missing if not any(re.search(pattern, name) for pattern in permitted)]
    unexpected = [name for name in names if name not in wanted]
    loaded, reshaped, misfits = {}, {}, []
    for name in names.keys() & wanted.keys():
        value, shapes = tensors[names[name]], (tuple(tensors[names[name]].shape), tuple(wanted[name].shape))
        if shapes[0] != shapes[1]:
            if _squeezed(shapes[0]) != _squeezed(shapes[1]):
                misfits.append(f"{name}: {shapes[0]} in the file, {shapes[1]} in the model")
                continue
            reshaped[name] = f"{shapes[0]} -> {shapes[1]}"
        loaded[name] = value.reshape(shapes[1])
    if absent or unexpected or misfits:
        raise ValueError(_complaint(type(model).__name__, origin, absent, unexpected, misfits))
    dist.load_full_state(model, None, {"model": {**own, **loaded}})
    return LoadReport(
        source=origin,
        loaded=tuple(name for name in wanted if name in loaded),
        renamed={old: name for name, old in names.items() if old != name},
        reshaped=reshaped,
        dropped=tuple(dropped),
        missing=tuple(missing),
    )


# -------------------------------------------------------------------------------------------------- writing and reading


def _write(state: Mapping[str, Any], path: Path, metadata: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            # Tied weights are written once for each of their names: safetensors refuses shared memory.
            place = tensor.untyped_storage().data_ptr()
            tensors[name] = tensor.clone() if place in seen else tensor
            seen.add(place)
    with replacing(path) as temporary:
        temporary.touch()
        permissions = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, {key: json.dumps(value) for key, value in metadata.items()})
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        temporary.chmod(permissions)  # safetensors writes through a file of its own that only its owner may read


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            about = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors file ({error}); get it again") from error
    return tensors, {name: _from_json(text) for name, text in about.items()}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_torch(path: Path, allow: Sequence[Any], mapped: bool = False) -> Any:
    try:
        with torch.serialization.safe_globals(list(allow)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        classes = _classes(path, str(error))
        raise ValueError(
            f"{path}: this pickle {'needs ' + ', '.join(classes) if classes else 'is not of the plain kind'}, which "
            "could run any code, so nothing of it was loaded. If these are harmless, name them in "
            "`allow`; else open the file once where you trust it, and save its tensors with safetensors"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        what = "a TorchScript program" if "TorchScript" in str(error) else "damaged, or no file that torch.save wrote"
        raise ValueError(
            f"{path}: {what} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def _read_inert(path: Path, mapped: bool = False) -> Any:
    """The file with a plain dict in the place of every object whose class nobody knows; no class is ever imported."""
    known: list[Any] = [*NUMPY]
    while True:
        with torch.serialization.safe_globals(known):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except pickle.UnpicklingError as error:
                # The reader's message leaves the package name of built-in ones out.
                names = {name if "." in name else f"builtins.{name}" for name in _classes(path, str(error))}
            except Exception:
                names = set()
        names -= {entry[1] for entry in known if isinstance(entry, tuple)}
        if not names:
            return _read_torch(path, known, mapped)  # refused or damaged: with the usual words
        known += [(_inert(name), name) for name in names]


def _inert(name: str) -> type:
    """A class that stands for `name` and makes ordered dicts, the only objects that the reader lets fill themselves."""
    return type(name.rpartition(".")[2], (), {"__new__": lambda cls, *args, **kwargs: OrderedDict(), "__doc__": name})


def _classes(path: Path, message: str) -> list[str]:
    """What a pickle wants to make that nobody allowed."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # it reads zip files only
        found = []
    return sorted(set(found)) or re.findall(r"GLOBAL (\S+)", message)[:1]


def _find(tree: Any, key: str | None, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a loaded file: at `key`, at the top, at one of PLACES, or at the only key that holds any."""
    if key is None and _holds_weights(tree):
        return _tensors(tree), {"key": "", "others": []}
    top = tree if isinstance(tree, Mapping) else {}
    places = [place for place in (*PLACES, *map(str, top)) if _holds_weights(_at(top, place))]
    places = list(dict.fromkeys(places))
    known = [place for place in places if place in PLACES]
    chosen = key or (known[0] if known else places[0] if len(places) == 1 else None)
    if chosen is None or not _holds_weights(_at(top, chosen)):
        wish = f"weights at {key!r}" if key else "weights by name, at the top or under one of " + ", ".join(PLACES)
        there = {name: type(value).__name__ for name, value in top.items()} if top else type(tree).__name__
        also = f"; weights are at {', '.join(places)}: choose one with `key`" if places else ""
        raise ValueError(f"{path}: expected {wish}; the file holds {_some([str(there)], 1)[:500]}{also}")
    about = {str(name): value for name, value in top.items() if isinstance(value, bool | int | float | str)}
    return _tensors(_at(top, chosen)), {**about, "key": chosen, "others": [p for p in places if p != chosen]}


def _at(tree: Mapping[str, Any], key: str) -> Any:
    if key in tree:
        return tree[key]
    head, _, rest = key.partition(".")
    inner = tree.get(head)
    return _at(inner, rest) if rest and isinstance(inner, Mapping) else None


def _holds_weights(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    kinds = value.values()
    return any(isinstance(v, Tensor | np.ndarray) for v in kinds) and not any(isinstance(v, Mapping) for v in kinds)


def _tensors(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    kinds = (Tensor, np.ndarray)
    return {name: torch.as_tensor(value).detach() for name, value in tree.items() if isinstance(value, kinds)}


# ------------------------------------------------------------------------------------------------------------- matching


def _rename(names: Iterable[str], rules: list[Rule], drop: list[str]) -> tuple[dict[str, str], list[str]]:
    """Name in the model -> name in the file, and the names of the file that are left out."""
    renamed: dict[str, str] = {}
    dropped: list[str] = []
    for name in names:
        target: str | None = name
        for pattern, replacement in rules:
            if target is not None and (match := re.search(pattern, target)):
                text = match.expand(replacement) if isinstance(replacement, str) else replacement(match)
                target = None if text is None else target[: match.start()] + text + target[match.end() :]
        if target is None or any(re.search(pattern, each) for pattern in drop for each in (name, target)):
            dropped.append(name)
        elif target in renamed:
            raise ValueError(
                f"two weights are renamed to {target!r}: {renamed[target]!r} and {name!r}; check the rules"
            )
        else:
            renamed[target] = name
    return renamed, dropped


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _complaint(model: str, origin: str, absent: list[str], unexpected: list[str], misfits: list[str]) -> str:
    lines = [f"the weights of {origin} do not fit {model}; name what is meant in rules, drop or allow_missing:"]
    for what, names, pool in (("missing", absent, unexpected), ("unexpected", unexpected, absent)):
        if names:
            hints = [f"    {name}{_nearest(name, pool)}" for name in names[:10]]
            lines += [f"  {what} ({len(names)}):", *hints, *(["    ..."] if len(names) > 10 else [])]
    if misfits:
        misfits = sorted(misfits)
        lines += [f"  of another shape ({len(misfits)}):", *(f"    {text}" for text in misfits[:10])]
        lines += ["    ..."] if len(misfits) > 10 else []
    return "\n".join(lines)


def _nearest(name: str, pool: list[str]) -> str:
    """The likest name of the pool; a large pool is narrowed to names with the same end, as comparing takes time."""
    if len(pool) > 100:
        end = name.rpartition(".")[2]
        pool = [other for other in pool if other.rpartition(".")[2] == end][:1000]
    found = difflib.get_close_matches(name, pool, n=1)
    return f"  (nearest: {found[0]})" if found else ""


def _some(names: list[str], count: int) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
