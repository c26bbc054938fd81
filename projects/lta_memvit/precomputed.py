"""Features that Ego4D publishes for whole source videos, as inputs of a forecaster without a backbone."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.data import SampleError
from projects.lta_memvit import data
from projects.lta_memvit.config import FeaturesConfig
from projects.lta_memvit.ego4d import Action
from projects.lta_memvit.windows import Window

OPEN_FILES = 256


class PrecomputedWindows:
    """Windows of features that Ego4D publishes for whole source videos: `<folder>/<video_uid>.pt`, float (T, D).

    Feature i saw `span` frames from frame i * stride on. A segment gets the mean of the features whose middle lies in
    it; its seconds count from the clip, which begins at `clip_parent_start_sec` of the video. A segment with no middle
    in it gets the nearest feature.
    """

    def __init__(self, found: Sequence[Window], cfg: FeaturesConfig) -> None:
        there = {path.stem for path in cfg.folder.glob("*.pt")}
        self.cfg = cfg
        self.windows = tuple(window for window in found if window.inputs[-1].video_uid in there)
        self.ids = [window.id for window in self.windows]
        self.streams = [(window.clip_uid, window.position) for window in self.windows]
        self._open: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.windows)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """Raises: SampleError for a file that holds no features."""
        window = self.windows[index]
        whole = self._features(window.inputs[-1].video_uid)
        parts = [whole[slice(*self.rows(action, len(whole)))].mean(0) for action in window.inputs]
        features = torch.stack(parts).float()
        return {"id": window.id, "features": features, **data.labels(window), "clamped": 0}

    def rows(self, action: Action, total: int) -> tuple[int, int]:
        """First and last + 1 of the features of a segment, of `total`."""
        shift = self.cfg.span / 2 / self.cfg.stride  # the middle of feature i is at (i + shift) * stride frames
        start, end = (
            (action.clip_start_s + time_s) * self.cfg.fps / self.cfg.stride - shift
            for time_s in (action.start_s, action.end_s)
        )
        first, last = -int(-start // 1), -int(-end // 1)
        if first >= min(last, total) or last <= 0:
            nearest = min(max(round((start + end) / 2), 0), total - 1)
            return nearest, nearest + 1
        return max(first, 0), min(last, total)

    def _features(self, video_uid: str) -> Tensor:
        if video_uid not in self._open:
            path = self.cfg.folder / f"{video_uid}.pt"
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:
                raise SampleError(path, f"cannot be loaded ({type(error).__name__}: {error}); copy it again") from error
            if not isinstance(loaded, Tensor) or loaded.ndim != 2 or not len(loaded):
                raise SampleError(path, "holds no tensor (time, channels) of features")
            self._open[video_uid] = loaded
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return self._open[video_uid]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}
