"""Features of the frozen backbone, computed once: ten epochs of head training then cost one backbone pass.

With the backbone in eval mode and clips that never change, what reaches the head is constant. Two forms are kept:
every position in 16 bit (exact dropout, 1.3 MB for a clip of 32x256x256), or two moments over the positions (16 kB),
which is all that dropout of independent positions followed by their mean leaves of them, up to the second moment.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core import dist
from core.checkpoint import Store
from core.data import Dataset, Loader
from core.run import Run
from projects.ucf50_x3d import data
from projects.ucf50_x3d.config import ClipConfig, Config
from projects.ucf50_x3d.data import Benchmark
from projects.ucf50_x3d.model import X3D, Head, SlowFast

Kind = Literal["none", "moments", "positions"]
CLIPS_PER_FILE = 64


class CachedHead(nn.Module):
    """A network's head, fed from the cache: positions (B, D, t, h, w) or moments (B, 2, D) -> (B, classes).

    For moments, dropout becomes Gaussian noise of the variance that dropping independent positions has:
    p / (1 - p) * mean(x^2) / positions.
    """

    def __init__(self, net: X3D | SlowFast) -> None:
        super().__init__()
        head = net.blocks[-1]
        assert isinstance(head, Head)
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        features = features.float()
        if features.ndim == 5:
            scores: Tensor = self.head(features)
            return scores
        mean, variance = features.unbind(1)
        if self.head.training:  # not our own mode: the network is what is switched
            p = self.head.dropout.p
            mean = mean + torch.randn_like(mean) * (p / (1 - p) * variance).sqrt()
        scores = self.head.proj(mean)
        return scores


def condense(features: Tensor, kind: Kind) -> Tensor:
    """What is kept of position features (B, D, t, h, w): float16 as they are, or float32 (B, 2, D).

    The moments are the mean over the positions and the mean square over positions divided by their number, that is
    the variance of the mean when every position is multiplied by independent noise of variance one.
    """
    if kind == "positions":
        return features.half()
    flat = features.float().flatten(2)
    return torch.stack([flat.mean(2), flat.square().mean(2) / flat.shape[2]], 1)


def fingerprint(model: nn.Module, clip: ClipConfig, kind: Kind, root: Path) -> str:
    """Names the cache: other weights, other frames, other pixels or another dataset are other features."""
    digest = hashlib.sha256(json.dumps([clip.model_dump(mode="json"), kind, str(root.resolve())]).encode())
    for name, value in sorted(model.state_dict().items()):
        if not re.match(r"blocks\.\d+\.proj\.", name):  # all but the layer that will be trained
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureClips:
    """Cached features as a dataset. Samples: id, features (2, D) or (D, t, h, w), label."""

    def __init__(self, cache: Store, ids: Sequence[str], labels: Sequence[int]) -> None:
        self.cache, self.ids, self.labels = cache, tuple(ids), tuple(labels)

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """One clip's features."""
        return {"id": self.ids[index], "features": self.cache[self.ids[index]], "label": self.labels[index]}


def compute(net: X3D | SlowFast, benchmark: Benchmark, cfg: Config, job: Run) -> bool:
    """Run the backbone over the training and validation clips that the cache does not hold; False when stopped.

    Every process works on its own share; a run that was stopped goes on with what is missing. Clips that cannot be read
    are named and left out.

    Raises: ValueError when more than `loader.max_bad` of the training clips cannot be read.
    """
    for part in ("train", "val"):
        clips, cache = benchmark.dataset(part, cfg.clip), open_cache(net, cfg)
        # What the main process finds: another one may look when the first files are there already.
        todo = dist.broadcast([index for index, name in enumerate(clips.ids) if name not in cache])
        if not todo:
            continue
        job.log.info(f"features of {len(todo)} {part} clips go to {cache.folder}")
        loader = Loader(
            Subset(clips, todo),
            cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size}),
            train=False,
            device=job.device,
            transform=data.transform(cfg, benchmark),
        )
        extract(net, job.log.progress(loader, f"features of {part}"), cache, cfg.features.cache, job)
        if job.stopping():
            return False
        lost = len(loader.coverage().bad)
        if part == "train" and lost > max(1, cfg.loader.max_bad * len(clips)):
            raise ValueError(f"{lost} of {len(clips)} training clips cannot be read, see the warnings above")
    return True


def open_cache(net: X3D | SlowFast, cfg: Config) -> Store:
    """The cache of these weights, frames and pixels."""
    return Store(cfg.features.folder / fingerprint(net, cfg.clip, cfg.features.cache, cfg.data.root))


def dataset(net: X3D | SlowFast, benchmark: Benchmark, part: str, cfg: Config) -> FeatureClips:
    """The clips of a part of the dataset whose features the cache holds."""
    clips, cache = benchmark.dataset(part, cfg.clip), open_cache(net, cfg)
    there = [index for index, name in enumerate(clips.ids) if name in cache]
    return FeatureClips(cache, [clips.ids[i] for i in there], [clips.labels[i] for i in there])


@torch.inference_mode()
def extract(net: X3D | SlowFast, batches: Iterable[dict[str, Any]], cache: Store, kind: Kind, job: Run) -> None:
    """Run the backbone over batches of clips and add what is kept to the cache, until the end or the wish to stop."""
    net.eval()
    ids: list[str] = []
    parts: list[Tensor] = []
    for batch in batches:
        parts.append(condense(net.features(batch["video"]), kind).cpu())
        ids += batch["id"]
        if len(ids) >= CLIPS_PER_FILE:
            cache.write(ids, torch.cat(parts))
            ids, parts = [], []
        if job.stop_requested:
            break
    if ids:
        cache.write(ids, torch.cat(parts))
    dist.barrier()
    cache.refresh()


class Subset:
    """Some clips of a dataset."""

    def __init__(self, clips: Dataset, indices: Sequence[int]) -> None:
        self.clips, self.indices = clips, tuple(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """The sample of the clip."""
        return self.clips.sample(self.indices[index], rng)
