"""Readers of one's own, written for the original code: `data.custom_class=package.module:Class`.

The class is called as `Class(is_training, split, **keys)` with the keys of the official `dataset` section and those of
`data.options`. It offers `len`, items that are dicts with video_id, feats (C, T), segments (N, 2) on the feature grid
or None, labels (N,) or None, fps, duration, feat_stride and feat_num_frames, and `get_attributes()` with dataset_name
and tiou_thresholds.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from core.data import Sample
from projects.actionformer.config import DataConfig
from projects.actionformer.layouts import Layout


def create(cfg: DataConfig, subsets: Sequence[str], *, train: bool) -> Any:
    """An instance of the class that the configuration names.

    Raises: ValueError when it cannot be imported or does not take these keys.
    """
    module, _, name = cfg.custom_class.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"data.custom_class={cfg.custom_class} cannot be imported ({error}); write it as package.module:Class"
        ) from error
    features = [str(folder) for folder in cfg.features]
    keys = {
        "json_file": str(cfg.annotations),
        "feat_folder": features[0] if len(features) == 1 else features,
        "file_prefix": cfg.prefix or None,
        "file_ext": cfg.suffix,
        "input_dim": cfg.input_dim[0] if len(cfg.input_dim) == 1 else list(cfg.input_dim),
        "num_classes": cfg.classes,
        "feat_stride": cfg.stride_frames,
        "num_frames": cfg.window_frames,
        "default_fps": cfg.fps,
        "downsample_rate": cfg.downsample,
        "max_seq_len": cfg.max_length,
        "force_upsampling": cfg.resample,
        "trunc_thresh": cfg.min_overlap,
        "crop_ratio": cfg.crop,
    }
    try:
        return cls(train, list(subsets), **{**keys, **cfg.options})
    except TypeError as error:
        raise ValueError(
            f"{cfg.custom_class} does not take the keys of a dataset ({error}); its __init__ needs is_training, split "
            f"and {', '.join(keys)}, or **kwargs; data.options adds others"
        ) from error


def layout(cfg: DataConfig) -> Layout:
    """What the class says about itself."""
    attributes = create(cfg, cfg.eval_splits, train=False).get_attributes()
    tiou = tuple(float(value) for value in attributes["tiou_thresholds"])
    return Layout(str(attributes["dataset_name"]), tiou, "most")


class Wrapped:
    """The items of such a class as samples; its draws from `random` and numpy are those of the sample's own rng."""

    def __init__(self, cfg: DataConfig, subsets: Sequence[str], *, train: bool) -> None:
        self.name = cfg.custom_class
        self.items = create(cfg, subsets, train=train)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The ids of all videos; reads every item where the class has no `data_list`."""
        listed = getattr(self.items, "data_list", None)
        found = listed if listed is not None else [{"id": self.items[i]["video_id"]} for i in range(len(self))]
        return tuple(str(item["id"]) for item in found)

    def length(self, index: int) -> int:
        """Features of an item, by reading it."""
        return int(self.items[index]["feats"].shape[1])

    def sample(self, index: int, rng: random.Random) -> Sample:
        """One item, its keys those of this project."""
        item = self._drawn(index, rng)
        try:
            segments, labels = item["segments"], item["labels"]
            return {
                "id": str(item["video_id"]),
                "features": torch.as_tensor(item["feats"], dtype=torch.float32),
                "segments": torch.empty(0, 2) if segments is None else torch.as_tensor(segments, dtype=torch.float32),
                "labels": torch.as_tensor([] if labels is None else labels, dtype=torch.int64),
                "fps": item["fps"],
                "duration_s": item["duration"],
                "stride_frames": item["feat_stride"],
                "window_frames": item["feat_num_frames"],
                "offset": item.get("offset") or 0,
            }
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"item {index} of {self.name} lacks {error}; `projects.actionformer.custom` says what an item holds"
            ) from error

    def _drawn(self, index: int, rng: random.Random) -> Any:
        before = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            random.seed(rng.getrandbits(64))
            np.random.seed(rng.getrandbits(32))  # noqa: NPY002 - the classes draw from it
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(rng.getrandbits(63))
                return self.items[index]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
