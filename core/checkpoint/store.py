"""Tensors that were computed once, by key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from core.checkpoint.files import write_atomic


class Store:
    """Tensors of one shape by key, in the safetensors files of a folder.

    Files are whole or not there, so work that was stopped goes on with what is missing; workers may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place: dict[str, tuple[Path, int]] = {}
        self._files: dict[Path, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read which keys the files hold."""
        self._place.clear()
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                keys = json.loads(file.metadata()["keys"])
            self._place.update({key: (path, number) for number, key in enumerate(keys)})

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, key: str) -> Tensor:
        path, number = self._place[key]
        if path not in self._files:
            self._files[path] = safe_open(path, "pt")
        values: Tensor = self._files[path].get_slice("values")[number]
        return values

    def write(self, keys: Sequence[str], values: Tensor) -> None:
        """Add one file, named by the keys in it; values (N,...) for N keys.

        Raises:
            OSError: when the disk is full; earlier files stay valid.
        """
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        content = save({"values": values.contiguous()}, {"keys": json.dumps(list(keys))})
        write_atomic(self.folder / f"{name}.safetensors", content)

    def __getstate__(self) -> dict[str, Any]:  # a worker opens the files itself
        return {"folder": self.folder, "_place": self._place, "_files": {}}
