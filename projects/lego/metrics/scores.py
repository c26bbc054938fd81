"""The published scores: what each compares, with which network, and how it becomes one number.

Two kinds. A distance looks at generated and true frame together (PSNR, LPIPS). A comparison of embeddings looks at each
alone: cosine of the pair (CLIP, EgoVLP, EgoVLP+, BLIP) or distance of the two sets (FID); what it sees of the true
frames never changes, so it is computed once and kept on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.metrics import frechet_distance, psnr
from projects.lego.metrics.networks import Lpips
from projects.lego.metrics.pixels import floats, scaled

Rows = dict[str, Any]
"""Column name -> one row per frame."""


@dataclass
class Batch:
    """Some pairs: frames uint8 (H,W,3), sizes may differ; `text` is the description the frame was generated from."""

    dataset: str
    id: list[str]
    image: list[Tensor]
    target: list[Tensor]
    source: list[Tensor]
    text: list[str]

    def matched(self, wanted: Sequence[Tensor]) -> list[Tensor]:
        """Generated frames in [0, 1] of the sizes of `wanted`.

        EPIC-KITCHENS frames may be off by a pixel and are resized, as published; others have to agree.

        Raises:
            ValueError: naming the frame.
        """
        found = []
        for name, image, other in zip(self.id, self.image, wanted, strict=True):
            size, goal = tuple(image.shape[:2]), tuple(other.shape[:2])
            if size != goal and self.dataset != "epickitchen":
                raise ValueError(
                    f"{name}: the generated frame is {size[1]}x{size[0]}, the true one {goal[1]}x{goal[0]}; generate "
                    "at the height of the true frames (data.size) and with the metadata JSON in place, which holds the "
                    "videos' shapes"
                )
            found.append(floats(image) if size == goal else scaled(floats(image), goal))
        return found


class Score(Protocol):
    """Something that measures frames batch by batch and concludes when all are known."""

    def measure(self, batch: Batch) -> Rows:
        """Rows of some frames, one per frame."""

    def conclude(self, rows: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The numbers by their published keys; and the same per frame, where it is defined for one frame."""


class Psnr:
    """Peak signal-to-noise ratio, mean over frames, dB."""

    def measure(self, batch: Batch) -> Rows:
        """One value per frame."""
        pairs = zip(batch.matched(batch.target), batch.target, strict=True)
        return {"psnr": torch.cat([psnr(image[None], floats(target)[None]) for image, target in pairs])}

    def conclude(self, rows: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """psnr."""
        return _means({"psnr": rows["psnr"]})


@dataclass
class LpipsScore:
    """LPIPS by one backbone; fed with [0, 1] as published, and with [-1, 1] as the network expects (`_corrected`)."""

    model: Lpips
    net: str

    def measure(self, batch: Batch) -> Rows:
        """Two values per frame."""
        device = next(self.model.parameters()).device
        found: Rows = {f"lpips_{self.net}": [], f"lpips_{self.net}_corrected": []}
        for image, target in zip(batch.matched(batch.target), batch.target, strict=True):
            pair = image[None].to(device), floats(target)[None].to(device)
            found[f"lpips_{self.net}"].append(self.model(*pair))
            found[f"lpips_{self.net}_corrected"].append(self.model(*pair, corrected=True))
        return {name: torch.cat(values) for name, values in found.items()}

    def conclude(self, rows: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """lpips_<net> and lpips_<net>_corrected."""
        return _means({name: rows[name] for name in (f"lpips_{self.net}", f"lpips_{self.net}_corrected")})


class Memory:
    """Embeddings of what never changes, by id, in one file; only what is not there is computed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, np.ndarray] = {}
        if path is not None and path.is_file():
            with np.load(path, allow_pickle=False) as file:
                self.known = dict(zip(file["id"].tolist(), file["embedding"], strict=True))

    def __call__(self, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """(B,D) of a batch."""
        if not all(name in self.known for name in batch.id):
            self.known |= zip(batch.id, compute(batch).float().cpu().numpy(), strict=True)
        return torch.from_numpy(np.stack([self.known[name] for name in batch.id]))


@dataclass
class Embeddings:
    """Compares embeddings of generated and true frames: by the cosine of each pair, or as two sets (FID)."""

    key: str
    answer: Callable[[Batch], Tensor]
    truth: Callable[[Batch], Tensor]
    sets: bool = False
    memory: Memory = field(default_factory=lambda: Memory(None))

    def measure(self, batch: Batch) -> Rows:
        """Two embeddings per frame."""
        return {
            f"{self.key}:answer": self.answer(batch).float().cpu(), f"{self.key}:truth": self.memory(batch, self.truth)
        }  # fmt: skip

    def conclude(self, rows: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The number under `key`; undefined (NaN) for a distance of sets of fewer than two frames."""
        answer, truth = (torch.as_tensor(rows[f"{self.key}:{side}"]) for side in ("answer", "truth"))
        if self.sets:
            return {self.key: frechet_distance(truth, answer) if len(answer) > 1 else float("nan")}, {}
        return _means({self.key: F.cosine_similarity(answer.double(), truth.double()).numpy()})


@dataclass
class Captioned:
    """Compares the caption of each generated frame with the description it was generated from, as EgoVLP reads them."""

    key: str
    write: Callable[[Batch], list[str]]
    embed: Callable[[Sequence[str]], Tensor]

    def measure(self, batch: Batch) -> Rows:
        """A caption and a cosine per frame."""
        captions = self.write(batch)
        cosine = F.cosine_similarity(self.embed(captions), self.embed(batch.text))
        return {f"{self.key}:caption": captions, self.key: cosine.float().cpu()}

    def conclude(self, rows: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The mean cosine."""
        return _means({self.key: rows[self.key]})


def _means(rows: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    each = {name: np.asarray(values, np.float64) for name, values in rows.items()}
    return {name: float(values.mean()) for name, values in each.items()}, each
