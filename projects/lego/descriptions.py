"""Descriptions while they are written: resumable notes, the model they came from, and their way into the dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import simplejson

from core import dist
from core.checkpoint import write_atomic
from projects.lego import data, prompts
from projects.lego.config import VlmConfig
from projects.lego.data import Record


class Lines:
    """A file of JSON objects, one a line, that grows as work is done; a line cut short by a crash does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                found.append(simplejson.loads(line))
            except ValueError:
                continue
        return found

    def add(self, entry: Mapping[str, Any]) -> None:
        """One more line, on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
            whole = not end or file.read(1) == b"\n"
            file.write(b"" if whole else b"\n")
            file.write(simplejson.dumps(entry).encode() + b"\n")


def key(record: Record) -> str:
    """Names an action among those of its dataset."""
    return f"{record.clip}/{record.action}"


class Notes:
    """Descriptions of a dataset while they are written, a line each, and the model they came from.

    Every process appends to a file of its own; a line cut short by a crash is written again.
    """

    def __init__(self, cfg: VlmConfig, dataset: str, vlm: Path) -> None:
        name = cfg.data.vllm or data.RELEASED[dataset].vllm
        self.folder = cfg.data.root / dataset / "descriptions" / name / cfg.extract.split
        self.features = [
            cfg.data.root / dataset / f"vllm_{kind}_feature" / name / cfg.extract.split for kind in ("image", "text")
        ]
        self.merged = self.folder / f"{vlm.name}.json"
        self.own = Lines(self.folder / f"lines-{dist.world().rank}.jsonl")
        self.narrator = cfg.curation.narrator
        self.made = {
            "model": fingerprint(vlm), "image": cfg.extract.image, "frame": cfg.extract.frame,
            "narrator": cfg.curation.narrator, "temperature": cfg.extract.temperature, "top_p": cfg.extract.top_p,
            "longest": cfg.extract.longest, "seed": cfg.extract.seed,
        }  # fmt: skip

    def sign(self, replace: bool) -> None:
        """Leave a note of what writes here, or compare with the one that is there; `replace` starts anew."""
        path = self.folder / "made.json"
        if dist.is_main():
            there = simplejson.loads(path.read_text()) if path.is_file() else None
            if there is not None and there != self.made and replace:
                for old in self.folder.glob("lines-*.jsonl"):
                    old.unlink()
            elif there is not None and there != self.made:
                other = [key for key in self.made if there.get(key) != self.made[key]]
                raise ValueError(
                    f"{path}: the features there were made with another {', '.join(other)}; give yours a folder of "
                    "their own with data.vllm=NAME, or write them anew with extract.replace=true"
                )
            strangers = next((path for place in self.features for path in place.rglob("*.npy")), None)
            if there is None and strangers is not None and not replace:
                raise ValueError(
                    f"{strangers}: there are features of unknown origin, perhaps the released ones; give yours a "
                    "folder of their own with data.vllm=NAME, or write them anew with extract.replace=true"
                )
            write_atomic(path, simplejson.dumps(self.made, indent=2) + "\n")
        dist.barrier()

    def read(self) -> dict[str, dict[str, str]]:
        """What was written so far: clip/action -> original action, cleaned action, description."""
        found = [entry for path in sorted(self.folder.glob("lines-*.jsonl")) for entry in Lines(path).read()]
        return {entry.pop("key"): entry for entry in found}

    def add(self, record: Record, description: str) -> None:
        """One more line, in a file of this process."""
        action = record.prompt("action")
        self.own.add({
            "key": key(record), "original action": action,
            "action": prompts.cleaned(action, record.dataset, self.narrator), "description": description,
        })  # fmt: skip

    def merge(self, records: Iterable[Record]) -> dict[str, dict[str, dict[str, str]]]:
        """{clip: {action: {...}}} in the order of the dataset, written as one file."""
        known = self.read()
        tree: dict[str, dict[str, dict[str, str]]] = {}
        for record in records:
            if key(record) in known:
                tree.setdefault(record.clip, {})[record.action] = known[key(record)]
        write_atomic(self.merged, simplejson.dumps(tree, indent=4) + "\n")
        return tree


def fingerprint(vlm: Path) -> str:
    """Names a model by its files: names, sizes and the beginning of each."""
    digest = hashlib.sha256()
    for path in sorted(vlm.glob("*")):
        if path.suffix in {".safetensors", ".bin"}:
            with path.open("rb") as file:
                digest.update(f"{path.name}/{path.stat().st_size}".encode() + file.read(1 << 20))
                file.seek(max(0, path.stat().st_size - (1 << 20)))
                digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


def attach(merged: Mapping[str, Mapping[str, Mapping[str, str]]], cfg: VlmConfig, dataset: str) -> Path:
    """Write the descriptions into the dataset's JSON as the field `extract.prompt`, all else kept.

    Raises:
        ValueError: when the field holds other texts, unless `extract.replace`.
    """
    path = data.annotation_path(cfg.data.root, dataset, cfg.extract.split)
    tree = simplejson.loads(path.read_text(encoding="utf-8"))
    for clip, actions in merged.items():
        for action, entry in actions.items():
            there = tree[clip][action].get(cfg.extract.prompt)
            if there not in (None, entry["description"]) and not cfg.extract.replace:
                raise ValueError(
                    f"{path}: {clip}/{action} has another text under {cfg.extract.prompt!r}; choose another field with "
                    "extract.prompt, or replace it with extract.replace=true"
                )
            tree[clip][action][cfg.extract.prompt] = entry["description"]
    write_atomic(path, simplejson.dumps(tree, indent=4) + "\n")
    return path
