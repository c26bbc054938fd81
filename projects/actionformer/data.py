"""Features and annotations on disk -> samples: THUMOS14, ActivityNet 1.3, EPIC-KITCHENS-100, Ego4D MQ, your own.

The four official readers differ in a few habits only; `LAYOUTS` is the list of them. A sample is

    id, features (C, T), segments (N, 2) in units of the feature grid, labels (N,), fps, duration_s, stride_frames,
    window_frames, offset

where the grid is that of `geometry`, with downsampling and resampling already in it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.data import Batch, Sample, SampleError, pad
from projects.actionformer import custom
from projects.actionformer.annotations import Annotations, Row, Video, read_annotations, without_repetitions
from projects.actionformer.config import DataConfig
from projects.actionformer.features import Sources
from projects.actionformer.geometry import Geometry, crop, within
from projects.actionformer.layouts import LAYOUTS, Layout

ENDLESS_S = 1e8  # duration of a video whose annotations do not say it, as in the official readers
LISTS = ("segments", "labels", "fps", "duration_s", "stride_frames", "window_frames", "offset")


class Videos(Protocol):
    """What `Benchmark.dataset` gives: samples by number, with their ids and lengths known before they are read."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the videos."""
        ...

    def __len__(self) -> int: ...

    def length(self, index: int) -> int:
        """Features of a sample."""
        ...

    def sample(self, index: int, rng: random.Random) -> Sample:
        """See the module."""
        ...


@dataclass(frozen=True)
class Benchmark:
    """A dataset with its annotations; `dataset` opens the videos that train or those that are evaluated."""

    cfg: DataConfig
    annotations: Annotations
    layout: Layout = field(default=LAYOUTS["own"])

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by label id; for proposals (data.classes=1 on ActivityNet) those of the truth."""
        if self.proposals and not self.annotations.label_ids:
            return ("action",)
        return self.annotations.classes(self.cfg.classes)

    @property
    def proposals(self) -> bool:
        """Is there one class only, that of any action, while the truth has more?"""
        return self.layout.classes == "proposals" and self.cfg.classes == 1

    @property
    def empty_classes(self) -> tuple[int, ...]:
        """Label ids below data.classes that no video has; none for proposals."""
        if self.proposals:
            return ()
        return tuple(sorted(set(range(self.cfg.classes)) - set(self.annotations.label_ids.values())))

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of every video of any subset; those that do not say are left out."""
        known = self.annotations.videos.values()
        return {video.id: video.duration_s for video in known if video.duration_s is not None}

    def truth(self, subset: str) -> list[Row]:
        """Every action of one subset as it stands in the file, repetitions included, in seconds."""
        return self.annotations.truth(subset)

    def subsets(self, part: str) -> tuple[str, ...]:
        """The subsets that are `train` or `eval`."""
        assert part in ("train", "eval")
        return self.cfg.train_splits if part == "train" else self.cfg.eval_splits

    def dataset(self, part: str, *, train: bool = False) -> Videos:
        """The videos of `train` or `eval`; with `train`, crops for training.

        Raises: ValueError when none of them has features.
        """
        if self.cfg.custom_class and self.cfg.dataset not in LAYOUTS:
            return custom.Wrapped(self.cfg, self.subsets(part), train=train)
        return FeatureVideos(self, self.subsets(part), train=train)

    def describe(self) -> str:
        """One line for the log."""
        sizes = ", ".join(f"{count} {name}" for name, count in self.annotations.subsets().items())
        return f"{self.cfg.annotations}: {self.layout.title}, {len(self.annotations.label_ids)} labels, {sizes} videos"


def load(cfg: DataConfig) -> Benchmark:
    """Read the annotations that the configuration names, and check their labels.

    Raises: ValueError for a file that is missing or malformed, and for labels that do not fit data.classes.
    """
    layout = LAYOUTS.get(cfg.dataset)
    if layout is None:
        layout = custom.layout(cfg)
    elif cfg.custom_class:
        logging.getLogger(__name__).warning(
            "data.dataset=%s is a layout of this project; data.custom_class=%s is not used",
            cfg.dataset,
            cfg.custom_class,
        )
    benchmark = Benchmark(cfg, read_annotations(cfg.annotations), layout)
    check_labels(benchmark)
    return benchmark


def check_labels(benchmark: Benchmark) -> None:
    """Raises: ValueError when label ids or their number do not fit data.classes."""
    cfg, names = benchmark.cfg, benchmark.annotations.label_ids
    if benchmark.proposals or not names:
        return
    lowest, highest = min(names.values()), max(names.values())
    if lowest < 0 or highest >= cfg.classes:
        label = next(name for name, label_id in names.items() if label_id in (lowest, highest) and label_id != 0)
        hint = "" if lowest != 1 else "; they seem to count from 1: `annotate` makes them count from 0"
        raise ValueError(
            f"{cfg.annotations}: label ids go from {lowest} to {highest} (such as {label!r}), but "
            f"data.classes={cfg.classes} allows 0 to {cfg.classes - 1}{hint}; else set data.classes={highest + 1}"
        )
    if benchmark.layout.classes != "most" and len(names) != cfg.classes:
        raise ValueError(
            f"{cfg.annotations} names {len(names)} labels, {benchmark.layout.title} has data.classes={cfg.classes}; "
            "is it the right file? (data.dataset=own allows classes without examples)"
        )


class FeatureVideos:
    """The videos of some subsets that have features, in the order of the annotation file.

    Videos without a feature file are named as a warning and left out. In training, videos without actions take part
    when `background` says so, as random stretches.
    """

    def __init__(self, benchmark: Benchmark, subsets: Sequence[str], *, train: bool = False) -> None:
        cfg = benchmark.cfg
        self.cfg, self.layout, self.train = cfg, benchmark.layout, train
        self.label_ids, self.proposals = benchmark.annotations.label_ids, benchmark.proposals
        self.sources = Sources(cfg.features, cfg.prefix, cfg.suffix, cfg.input_dim)
        self.videos, missing = self._present(benchmark.annotations.of(subsets))
        if train and not cfg.background:
            self.videos = [video for video in self.videos if video.actions]
        if not self.videos:
            where = f"; the first missing file is {missing[0]}" if missing else ""
            raise ValueError(f"no video of {', '.join(subsets)} in {cfg.annotations} can be used{where}")
        if missing:
            logging.getLogger(__name__).warning(
                "%d of %d videos of %s have no features and are left out: %s%s", len(missing),
                len(missing) + len(self.videos), ", ".join(subsets), ", ".join(missing[:3]),
                ", ..." if len(missing) > 3 else "",
            )  # fmt: skip
        self.ids = tuple(video.id for video in self.videos)

    def __len__(self) -> int:
        return len(self.videos)

    def length(self, index: int) -> int:
        """Features of a video, as a sample outside training has them.

        Raises: SampleError for a file that cannot be read.
        """
        if self.cfg.resample:
            return self.cfg.max_length
        return -(-self.sources.length(self.ids[index]) // self.cfg.downsample)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """One video, or in training a random stretch of it; only its own rows are read.

        Raises: SampleError for a file that cannot be read, or is of another width than data.input_dim says.
        """
        cfg, video = self.cfg, self.videos[index]
        rows = self.sources.length(video.id)
        geometry, length = self.geometry(video, rows)
        segments, labels = self.actions(video, geometry)
        if self.train and self.layout.cleans:
            segments, labels = within(length + geometry.lead, segments, labels, cfg.min_overlap)
        start, stop = 0, length
        if self.train and (video.actions or length > cfg.max_length):
            start, stop, segments, labels = crop(
                length, segments, labels, rng, most=cfg.max_length, lead=geometry.lead, keep=cfg.min_overlap,
                ratio=cfg.crop, whole=cfg.whole_actions, points=self.layout.points,
            )  # fmt: skip
        features = self._features(video.id, start, stop)
        offset = video.offset or 0
        found = sample_of(video.id, features, geometry, video.duration_s, offset=offset)
        return found | {"segments": torch.from_numpy(segments), "labels": torch.from_numpy(labels)}

    def _present(self, videos: Sequence[Video]) -> tuple[list[Video], list[str]]:
        """The videos whose files are there, and the first missing file of each of the others."""
        gaps = [(video, self.sources.missing(video.id)) for video in videos]
        return [video for video, gap in gaps if gap is None], [str(gap) for _, gap in gaps if gap is not None]

    def geometry(self, video: Video, rows: int) -> tuple[Geometry, int]:
        """How the features of a sample lie in time, and how many there are before any crop."""
        cfg, geometry = self.cfg, self._stored(video)
        if geometry.stride_frames > 0 and cfg.resample:
            return geometry.stretched(rows, cfg.max_length), cfg.max_length
        if geometry.stride_frames > 0:
            return geometry.every(cfg.downsample), -(-rows // cfg.downsample)
        # Every video has about as many features, however long it is.
        if rows > cfg.max_length:
            path = self.sources.parts[0].path(video.id)
            raise SampleError(path, f"has {rows} rows, data.max_length={cfg.max_length} is less; set it to {rows}")
        if video.duration_s is None:
            raise SampleError(cfg.annotations, f"says no duration of {video.id}; data.stride_frames <= 0 needs it")
        length = cfg.max_length if cfg.resample else rows
        stride = video.duration_s * geometry.fps / length
        return Geometry(geometry.fps, stride, stride), length

    def _stored(self, video: Video) -> Geometry:
        """The geometry of a feature file: that of the configuration, or the one `extract` wrote beside it."""
        cfg, source = self.cfg, self.sources.parts[0]
        if cfg.stride_frames is None:
            recorded = source.recorded(video.id)
            if recorded is None:
                way = "set data.stride_frames, data.window_frames and data.fps"
                raise SampleError(source.path(video.id), f"has no record of its geometry beside it; {way}")
            return Geometry(recorded.fps, recorded.stride, recorded.window)
        fps = cfg.fps or video.fps
        if fps is None:
            raise SampleError(cfg.annotations, f"says no fps of {video.id}; set data.fps, or write it into the file")
        return Geometry(fps, cfg.stride_frames, cfg.window_frames)

    def _features(self, video: str, start: int, stop: int) -> Tensor:
        """Positions start:stop of the sample's grid, float32 (C, t)."""
        if self.cfg.resample:
            whole = torch.from_numpy(self.sources.read(video)).t()
            if whole.shape[1] != self.cfg.max_length:
                whole = F.interpolate(whole[None], size=self.cfg.max_length, mode="linear", align_corners=False)[0]
            return whole[:, start:stop]
        step = self.cfg.downsample
        rows = self.sources.read(video, start * step, min(stop * step, self.sources.length(video)), step)
        return torch.from_numpy(rows).t()

    def actions(self, video: Video, geometry: Geometry) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Segments on the grid and labels; computed in float32 from float32 seconds, as the official readers do."""
        actions = video.actions
        if self.layout.cleans:
            actions = without_repetitions(actions, points=self.layout.points)
        seconds = np.array([action[2:] for action in actions], dtype=np.float32).reshape(-1, 2)
        ids = [0 if self.proposals else self.label_ids[action.label] for action in actions]
        return geometry.grid(seconds), np.array(ids, dtype=np.int64)


def sample_of(
    name: str, features: Tensor, geometry: Geometry, duration_s: float | None = None, *, offset: float = 0
) -> Sample:
    """A sample without actions of features (C, T) and their geometry, such as those of a video to predict."""
    return {
        "id": name,
        "features": features,
        "segments": torch.empty(0, 2),
        "labels": torch.empty(0, dtype=torch.int64),
        "fps": geometry.fps,
        "duration_s": ENDLESS_S if duration_s is None else duration_s,
        "stride_frames": geometry.stride_frames,
        "window_frames": geometry.window_frames,
        "offset": offset,
    }


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch: features (B, C, T) padded to the longest, mask (B, T), the rest as lists of exact numbers.

    Features lie in memory as in their files, step by step, which is what the network reads. `lengths` says without a
    look at the mask, which may be on a GPU, how many features each sample has.
    """
    batch = pad([{key: sample[key] for key in ("id", "features")} for sample in samples], ["features"])
    batch["lengths"] = [sample["features"].shape[-1] for sample in samples]
    return {**batch, **{key: [sample[key] for sample in samples] for key in LISTS}}
