"""Features of the frozen backbone, computed once: heads then train in minutes.

With the backbone in eval mode, what reaches the heads depends on the frames alone. A segment is in up to N windows, so
even a single pass costs N times less than reading windows. Training keeps several random views of every clip (the same
scale, crop and mirroring for all its segments, as for the inputs of a window; random seconds of each segment).

SlowFast's slow pathway takes other frames of a segment at every place in a window (it is thinned from the joined
inputs), so its features are kept for each of the N places; those of MViT are the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from core import dist
from core.checkpoint import write_atomic
from core.data import Loader
from core.run import Run
from core.step import autocast
from projects.lta_memvit import data, model, order, windows
from projects.lta_memvit.config import Config
from projects.lta_memvit.data import Benchmark
from projects.lta_memvit.ego4d import Action
from projects.lta_memvit.model import Network
from projects.lta_memvit.precomputed import PrecomputedWindows
from projects.lta_memvit.windows import Window

OPEN_FILES = 256


class Cache:
    """Features by clip: a file for each, (views, actions, places, D) float32, written whole or not at all.

    A clip of which some segments could not be read has NaN there; `compute` tries those again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, Any] = OrderedDict()

    def path(self, clip_uid: str) -> Path:
        """The file of a clip."""
        return self.folder / f"{clip_uid}.safetensors"

    def complete(self, clip_uid: str, actions: Sequence[Action]) -> bool:
        """Whether the file of a clip holds all views of exactly these actions."""
        about = self._about(clip_uid)
        return about.get("actions") == _named(actions) and about.get("whole") == "yes"

    def usable(self, clip_uid: str, actions: Sequence[Action]) -> Tensor | None:
        """Which of the actions have features, bool (actions,); None when the file is not there or of other actions."""
        if self._about(clip_uid).get("actions") != _named(actions):
            return None
        features: Tensor = self._file(clip_uid).get_tensor("features")
        return ~features.isnan().flatten(2).any(2).any(0)

    def read(self, clip_uid: str, view: int, first: int, last: int) -> Tensor:
        """Features of the actions first to before last, (actions, places, D)."""
        found: Tensor = self._file(clip_uid).get_slice("features")[view, first:last]
        return found

    def write(self, clip_uid: str, actions: Sequence[Action], features: Tensor) -> None:
        """Keep the features of a clip.

        Raises: OSError when the disk is full; the files written before stay valid.
        """
        whole = "no" if features.isnan().any() else "yes"
        content = save({"features": features.contiguous()}, {"actions": _named(actions), "whole": whole})
        write_atomic(self.path(clip_uid), content)

    def _about(self, clip_uid: str) -> dict[str, str]:
        try:
            with safe_open(self.path(clip_uid), "pt") as file:
                return dict(file.metadata() or {})
        except (FileNotFoundError, SafetensorError):  # damaged files are made again
            return {}

    def _file(self, clip_uid: str) -> Any:
        if clip_uid not in self._open:
            self._open[clip_uid] = safe_open(self.path(clip_uid), "pt")
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return self._open[clip_uid]

    def __getstate__(self) -> dict[str, Any]:  # a worker opens the files itself
        return {"folder": self.folder, "_open": OrderedDict()}


def _named(actions: Sequence[Action]) -> str:
    """The actions of a clip in a few characters: other segments are other features."""
    text = json.dumps([[action.number, action.start_s, action.end_s] for action in actions])
    return hashlib.sha256(text.encode()).hexdigest()


class Views:
    """Every action of some clips in every view, clip by clip in time order.

    Samples: id `<clip_uid>_<action_idx>/<view>`, video uint8 (1, T, H, W, 3), stream (`<clip_uid>/<view>`, position),
    place (clip, view, position).
    """

    def __init__(self, benchmark: Benchmark, part: str, clip_uids: Sequence[str], cfg: Config, *, views: int) -> None:
        self.folder, self.clip, self.several = benchmark.cfg.clips, cfg.clip, benchmark.cfg.inputs > 1
        self.seed, self.jitter = cfg.loader.seed, views > 1
        actions = benchmark.clips(part)
        self.items = [
            (action, view, position)
            for clip_uid in clip_uids
            for view in range(views)
            for position, action in enumerate(actions[clip_uid])
        ]
        self.streams = [(f"{action.clip_uid}/{view}", position) for action, view, position in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """The frames of a segment; which ones depends on its name and the view alone."""
        action, view, position = self.items[index]
        drawn = random.Random(f"{self.seed}/{action.id}/{view}") if self.jitter else None
        span = windows.seconds(action, self.clip.seconds, drawn)
        path = self.folder / f"{action.clip_uid}.mp4"
        video, _ = data.read(path, [span], self.clip.frames, several=self.several)
        place = (action.clip_uid, view, position)
        return {"id": f"{action.id}/{view}", "video": video, "stream": self.streams[index], "place": place}

    def transform(self, batch: dict[str, Any], rngs: Sequence[random.Random]) -> dict[str, Any]:
        """As in training or testing, but what is drawn is the same for all segments of a clip in one view."""
        own = [random.Random(f"{self.seed}/{name}") for name, _ in batch["stream"]]
        return data.transform(self.clip, train=self.jitter)(batch, own)


def compute(net: Network, benchmark: Benchmark, parts: Sequence[str], cfg: Config, job: Run) -> bool:
    """Run the backbone over the clips that the cache does not hold; False when the run was asked to stop.

    Whole clips go to each process; a run that was stopped goes on with those that are missing. Segments that cannot be
    read are named, and their windows are left out.

    Raises: ValueError when more than `loader.max_bad` of the training segments cannot be read.
    """
    for part in parts:
        cache, views, actions = _cache(net, part, cfg), _views(part, cfg), benchmark.clips(part)
        there = [name for name in actions if name in benchmark.files]
        # What the main process finds: another one may look when the first files are there already.
        todo = dist.broadcast([name for name in there if not cache.complete(name, actions[name])])
        if not todo:
            continue
        found = Views(benchmark, part, todo, cfg, views=views)
        job.log.info(f"features of {len(todo)} {part} clips ({len(found)} segments) go to {cache.folder}")
        settings = cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size})
        loader = Loader(
            found, settings, train=False, device=job.device, transform=found.transform,
            sampler=order.sampler(found.streams, cfg, settings.batch_size, train=False, whole=True),
        )  # fmt: skip
        _extract(net, loader, cache, {name: actions[name] for name in todo}, views, part, cfg, job)
        if job.stopping():
            return False
        coverage = loader.coverage()
        lost = coverage.expected - coverage.scored
        if part == "train" and lost > max(1.0, cfg.loader.max_bad * len(found)):
            raise ValueError(f"{lost} of {len(found)} training segments cannot be read, see the warnings above")
    return True


@torch.inference_mode()
def _extract(
    net: Network, loader: Loader, cache: Cache, actions: dict[str, tuple[Action, ...]], views: int, part: str,
    cfg: Config, job: Run,
) -> None:  # fmt: skip
    """Encode batches of segments; a clip is written when its last segment is there, or at the end."""
    net.eval()
    net.forget()
    places = _places(cfg)
    open_clips: dict[str, Tensor] = {}
    left: dict[str, int] = {}
    for batch in job.log.progress(loader, f"features of {part}"):
        video = batch["video"].expand(-1, places, *batch["video"].shape[2:])
        with autocast(cfg.precision, video.device):
            encoded = net.encode(video, streams=model.streams(batch, cfg.memory)).float().cpu()
        for (clip_uid, view, position), feature in zip(batch["place"], encoded, strict=True):
            shape = (views, len(actions[clip_uid]), *feature.shape)
            if clip_uid not in open_clips:
                open_clips[clip_uid], left[clip_uid] = torch.full(shape, torch.nan), shape[0] * shape[1]
            open_clips[clip_uid][view, position] = feature
            left[clip_uid] -= 1
            if not left[clip_uid]:
                cache.write(clip_uid, actions[clip_uid], open_clips.pop(clip_uid))
        if job.stop_requested:
            break
    else:  # what is not whole now holds segments that cannot be read
        for clip_uid, features in open_clips.items():
            cache.write(clip_uid, actions[clip_uid], features)
    dist.barrier()


def _views(part: str, cfg: Config) -> int:
    return cfg.features.views if part == "train" else 1


def _places(cfg: Config) -> int:
    """Places in a window at which a segment has features of its own."""
    return cfg.data.inputs if cfg.model.backbone.startswith("slowfast") else 1


def _cache(net: Network, part: str, cfg: Config) -> Cache:
    """The cache of these weights, frames and pixels."""
    used: dict[str, Any] = {
        "clip": cfg.clip.model_dump(mode="json"),
        "memory": cfg.memory.model_dump(mode="json") if cfg.model.backbone.startswith("memvit") else None,
        "places": _places(cfg),
        "several": cfg.data.inputs > 1,
        "views": _views(part, cfg),
        "seed": cfg.loader.seed,
        "precision": cfg.precision,
        "clips": str(cfg.data.clips.resolve()),
    }
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode())
    for name, value in sorted(net.backbone.state_dict().items()):
        if name.startswith("head."):  # it learns
            continue
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return Cache(cfg.features.folder / f"{digest.hexdigest()[:16]}-{part}")


def dataset(
    net: Network, benchmark: Benchmark, part: str, cfg: Config, *, train: bool = False
) -> CachedWindows | PrecomputedWindows:
    """The windows of a part whose features are there, as `features.source` says."""
    if cfg.features.source == "ego4d":
        return PrecomputedWindows(benchmark.windows(part), cfg.features)
    cache, usable = _cache(net, part, cfg), {}
    for clip_uid, actions in benchmark.clips(part).items():
        if (known := cache.usable(clip_uid, actions)) is not None:
            usable[clip_uid] = known
    found = [
        window
        for window in benchmark.windows(part)
        if window.clip_uid in usable
        and usable[window.clip_uid][window.position + 1 - len(window.inputs) : window.position + 1].all()
    ]
    return CachedWindows(found, cache, views=_views(part, cfg) if train else 1)


class CachedWindows:
    """Windows of cached features. Samples: as `data.Windows`, with features float32 (N, D) instead of video."""

    def __init__(self, found: Sequence[Window], cache: Cache, *, views: int) -> None:
        self.windows, self.cache, self.views = tuple(found), cache, views
        self.ids = [window.id for window in found]
        self.streams = [(window.clip_uid, window.position) for window in found]

    def __len__(self) -> int:
        return len(self.windows)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """The features of one view, in training a random one."""
        window = self.windows[index]
        count, end = len(window.inputs), window.position + 1
        view = rng.randrange(self.views) if self.views > 1 else 0
        found = self.cache.read(window.clip_uid, view, end - count, end)
        places = torch.arange(count) if found.shape[1] > 1 else torch.zeros(count, dtype=torch.long)
        features = found[torch.arange(count), places]
        return {"id": window.id, "features": features, **data.labels(window), "clamped": 0}
