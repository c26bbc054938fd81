"""Prototype files in the authors' layout, dict[int -> tensor], with their origin inside and readable both ways.

What made a file is kept as a record of its own in the zip archive that torch writes: the released code does not see it.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simplejson
import torch
from torch import Tensor

from core.checkpoint import fetch
from core.checkpoint.files import replacing
from projects.sgear.model.prototypes import unit

ORIGIN = "origin.json"


def write(path: Path, table: Tensor | Mapping[int, Any], origin: Mapping[str, Any]) -> None:
    """Write a table (K,...), row by action id, or a dict as it is; atomically, with what is known of its origin.

    `origin` holds anything JSON can say.
    """
    rows = {key: row.detach().cpu().clone() for key, row in enumerate(table)} if isinstance(table, Tensor) else table
    with replacing(path) as temporary:
        torch.save(dict(rows), temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_STORED) as archive:
            folder = archive.namelist()[0].split("/")[0]  # torch reads archives with one folder only
            archive.writestr(f"{folder}/{ORIGIN}", simplejson.dumps(dict(origin), indent=2))


def read(source: str | Path, classes: int | None = None) -> Tensor:
    """The vectors of a file (K,D), or the similarities (K,K), ordered by action id.

    Accepts what `write` wrote, the authors' files (similarities have rows (1,K)), and a plain tensor (K,D).

    Raises: ValueError naming the file, for another layout, missing ids or another number of `classes`.
    """
    path = fetch(source)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: no file of prototypes ({str(error).splitlines()[0]})") from error
    if isinstance(content, Mapping):
        content = _stacked(path, content)
    if not isinstance(content, Tensor) or content.ndim != 2:
        raise ValueError(f"{path}: expected dict[int -> tensor] or a tensor (K,D), found {type(content).__name__}")
    if classes is not None and len(content) != classes:
        raise ValueError(
            f"{path}: holds {len(content)} actions, the dataset has {classes}; make the file again for this dataset "
            "(python -m projects.sgear.make_prototypes --help)"
        )
    return content.float()


def origin(source: str | Path) -> dict[str, Any]:
    """What the file says about its origin; empty for files of others."""
    with contextlib.suppress(zipfile.BadZipFile, ValueError), zipfile.ZipFile(fetch(source)) as archive:
        for name in archive.namelist():
            if name.endswith(f"/{ORIGIN}"):
                return dict(simplejson.loads(archive.read(name)))
    return {}


def read_exemplars(source: str | Path) -> dict[int, Tensor]:
    """Stored embeddings (n,D) of a recognition run by action id, n = 0 where a class had no sample.

    Raises: ValueError naming the file, for another layout.
    """
    path = fetch(source)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        tables = {int(key): torch.tensor(value, dtype=torch.float32) for key, value in content.items()}
        if any(table.numel() and table.ndim != 2 for table in tables.values()):
            raise ValueError("a class holds something else than a list of vectors")
    except Exception as error:
        raise ValueError(f"{path}: expected dict[int -> list of vectors] ({str(error).splitlines()[0]})") from error
    return tables


def similarities(encodings: Tensor) -> Tensor:
    """Cosines (K,K) of encodings (K,D)."""
    directions = unit(encodings)
    return directions @ directions.T


def _stacked(path: Path, content: Mapping[Any, Any]) -> Tensor:
    try:
        rows = {int(key): torch.as_tensor(value).detach().float().reshape(-1) for key, value in content.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected one vector for each action; found other values ({error}). Exemplars of a recognition "
            "run are averaged by make_prototypes visual"
        ) from error
    if sorted(rows) != list(range(len(rows))):
        missing = sorted(set(range(max(rows, default=0) + 1)) - set(rows))[:5]
        raise ValueError(f"{path}: ids must be 0..{len(rows) - 1}, each once; missing for example {missing}")
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError(f"{path}: the vectors have different widths")
    return torch.stack([rows[key] for key in range(len(rows))])
