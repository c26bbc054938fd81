"""Descriptions while they are written: resumable notes, the model they came from, and their way into the dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import simplejson

from core import dist
from core.checkpoint import write_atomic
from projects.lego import data, prompts
from projects.lego.config import VlmConfig
from projects.lego.data import Record


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
        self.made = {
            "model": fingerprint(vlm), "image": cfg.extract.image, "frame": cfg.extract.frame,
            "narrator": cfg.curation.narrator, "temperature": cfg.extract.temperature, "top_p": cfg.extract.top_p,
            "longest": cfg.extract.longest, "seed": cfg.extract.seed,
        }  # fmt: skip

    @property
    def own(self) -> Path:
        """The file of this process."""
        return self.folder / f"lines-{dist.world().rank}.jsonl"

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
        found: dict[str, dict[str, str]] = {}
        for path in sorted(self.folder.glob("lines-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = simplejson.loads(line)
                    found[entry.pop("key")] = entry
                except (ValueError, KeyError):
                    continue  # cut short
        return found

    def add(self, record: Record, description: str) -> None:
        """One more line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        action = record.prompt("action")
        entry = {
            "key": key(record), "original action": action,
            "action": prompts.cleaned(action, record.dataset, self.made["narrator"]),  # type: ignore[arg-type]
            "description": description,
        }  # fmt: skip
        with self.own.open("a", encoding="utf-8") as file:
            if file.tell() and not ends_well(self.own):
                file.write("\n")
            file.write(simplejson.dumps(entry) + "\n")

    def merge(self, records: Iterable[Record]) -> dict[str, dict[str, dict[str, str]]]:
        """{clip: {action: {...}}} in the order of the dataset, written as one file."""
        known = self.read()
        tree: dict[str, dict[str, dict[str, str]]] = {}
        for record in records:
            if key(record) in known:
                tree.setdefault(record.clip, {})[record.action] = known[key(record)]
        write_atomic(self.merged, simplejson.dumps(tree, indent=4) + "\n")
        return tree


def ends_well(path: Path) -> bool:
    """Whether a text file ends with its last line whole."""
    with path.open("rb") as file:
        file.seek(0, 2)
        if file.tell() == 0:
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"


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
