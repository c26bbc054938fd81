"""What the frozen networks say, computed once: moments of the autoencoder for both flips, states of the prompts, and
what the frozen projection makes of image features.

A training step is then the UNet alone. Files are written whole or not at all, so a stopped run goes on; every process
writes files of its own.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from core import dist
from core.checkpoint import Store
from core.data import Batch, Loader, LoaderConfig
from core.run import Run
from projects.lego.data import Pairs, text_key, to_input
from projects.lego.model import TextEncoder, encode

ROWS_PER_FILE = 256
SPARE = 2e9  # bytes that stay free on the disk


def fingerprint(net: nn.Module, *settings: object) -> str:
    """Names a cache: other weights or other settings are other values."""
    digest = hashlib.sha256(json.dumps([str(each) for each in settings]).encode())
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


class Part:
    """Some of the pairs, and of each only what `read` gives for its number."""

    def __init__(self, pairs: Pairs, indices: Sequence[int], read: Callable[[int], dict[str, Tensor]]) -> None:
        self.pairs, self.indices, self.read = pairs, tuple(indices), read

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """id, and what was read."""
        number = self.indices[index]
        return {"id": self.pairs.records[number].id, **self.read(number)}


def announce(what: str, need: float, store: Store, job: Run) -> None:
    """Say what will be computed and what it takes on the disk.

    Raises:
        ValueError: when that is more than there is.
    """
    there = next(folder for folder in (store.folder, *store.folder.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    job.log.info(f"{what}, {need / 1e9:.2f} GB ({free / 1e9:.3g} GB are free): {store.folder}")
    if need + SPARE > free and need > SPARE / 100:
        raise ValueError(
            f"{store.folder}: {what} need about {need / 1e9:.3g} GB, {free / 1e9:.3g} GB are free there; choose "
            "another disk with cache.folder, or keep less (cache.use, cache.precision, data.image_features=frames)"
        )


@torch.no_grad()
def cache_latents(
    vae: AutoencoderKL, pairs: Pairs, store: Store, loader: LoaderConfig, job: Run, *, flip: bool, half: bool
) -> bool:
    """Add the moments of all pairs that the store lacks; False when the run was asked to stop.

    A row is (1 or 2, 12, h, w): as it is and, with `flip`, mirrored; 4 channels for the source's mode, 8 for the
    target's mean and log-variance. Pairs that cannot be read are named and left out.
    """
    # What the main process finds: another one may look when the first files are there already.
    todo = dist.broadcast([i for i, record in enumerate(pairs.records) if record.id not in store])
    if not todo:
        return True
    channels = 12 * (1 + flip) * (2 if half else 4)
    height, width = (side // 2 ** (len(vae.config.block_out_channels) - 1) for side in pairs.cfg.size)
    announce(f"latents of {len(todo)} pairs", len(todo) * channels * height * width, store, job)
    batches = Loader(Part(pairs, todo, pairs.frames), loader, train=False, device=job.device)
    rows = _Rows(store, half)
    for batch in job.log.progress(batches, "latents"):
        pictures = torch.stack([to_input(batch["source"]), to_input(batch["target"])], 1)  # B, 2, 3, H, W
        versions = torch.stack([pictures, pictures.flip(-1)] if flip else [pictures], 1)
        moments = encode(vae, versions.flatten(0, 2)).float()
        moments = moments.view(*versions.shape[:3], *moments.shape[1:])
        rows.add(batch["id"], torch.cat([moments[:, :, 0, :4], moments[:, :, 1]], 2))
        if job.stop_requested:
            break
    rows.close()
    return not job.stopping()


@torch.no_grad()
def cache_texts(
    text: TextEncoder, prompts: Iterable[str], store: Store, job: Run, *, half: bool, batch_size: int = 64
) -> bool:
    """Add the states of all prompts that the store lacks; False when the run was asked to stop."""
    todo = dist.broadcast([prompt for prompt in prompts if text_key(prompt) not in store])
    if not todo:
        return True
    size = 77 * text.model.config.hidden_size * (2 if half else 4)
    announce(f"states of {len(todo)} prompts", len(todo) * size, store, job)
    groups = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
    rows = _Rows(store, half)
    for group in job.log.progress(groups[job.world.rank :: job.world.size], "prompts"):
        rows.add([text_key(prompt) for prompt in group], text.encode(group))
        if job.stop_requested:
            break
    rows.close()
    return not job.stopping()


@torch.no_grad()
def cache_tokens(
    project: Callable[[Batch], Tensor], pairs: Pairs, store: Store, loader: LoaderConfig, job: Run, *, row: int
) -> bool:
    """Add what `project` makes of the image features, (N, D) in 16 bit, of all pairs that the store lacks.

    False when the run was asked to stop. `row` is about how many numbers a pair has; pairs that cannot be read are
    named and left out.
    """
    todo = dist.broadcast([i for i, record in enumerate(pairs.records) if record.id not in store])
    if not todo:
        return True
    announce(f"projected image features of {len(todo)} frames", len(todo) * row * 2, store, job)
    batches = Loader(Part(pairs, todo, pairs.seen), loader, train=False, device=job.device)
    rows = _Rows(store, half=True)
    for batch in job.log.progress(batches, "image features"):
        rows.add(batch["id"], project(batch))
        if job.stop_requested:
            break
    rows.close()
    return not job.stopping()


class _Rows:
    """Collects rows into files of `ROWS_PER_FILE`."""

    def __init__(self, store: Store, half: bool) -> None:
        self.store, self.type = store, torch.float16 if half else torch.float32
        self.keys: list[str] = []
        self.values: list[Tensor] = []

    def add(self, keys: Sequence[str], values: Tensor) -> None:
        self.keys += keys
        self.values.append(values.to("cpu", self.type))
        if len(self.keys) >= ROWS_PER_FILE:
            self._write()

    def _write(self) -> None:
        if self.keys:
            self.store.write(self.keys, torch.cat(self.values))
        self.keys, self.values = [], []

    def close(self) -> None:
        self._write()
        dist.barrier()
        self.store.refresh()
