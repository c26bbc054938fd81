"""Annotations and files -> samples: what is seen before an action, and which action it is.

EPIC-KITCHENS-55 and -100, EGTEA Gaze+, 50 Salads and Breakfast; frames of videos, of JPEG folders or tars, or features.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core import video
from core.data import SampleError
from projects.sgear import annotations as files
from projects.sgear import clips, frames, layout, salads, taxonomy
from projects.sgear.annotations import Clips, Segments
from projects.sgear.clips import PastLabels, Rule
from projects.sgear.config import Config, DataConfig
from projects.sgear.features import Features
from projects.sgear.layout import Layout
from projects.sgear.pixels import example, pipeline, transform
from projects.sgear.taxonomy import Subset, Taxonomy

__all__ = ["Anticipation", "Benchmark", "Part", "example", "load", "pipeline", "transform"]

Part = Literal["train", "val", "test", "test_seen", "test_unseen"]

# The file of a part, the list that restricts it to some videos, and its RULSTM file.
_EPIC: dict[str, dict[str, tuple[str, str, str]]] = {
    "ek100": {
        "train": ("EPIC_100_train", "", "training.csv"),
        "val": ("EPIC_100_validation", "", "validation.csv"),
        "test": ("EPIC_100_test_timestamps", "", "test_timestamps.csv"),
    },
    "ek55": {
        "train": ("EPIC_train_action_labels", "training_videos.csv", "training.csv"),
        "val": ("EPIC_train_action_labels", "validation_videos.csv", "validation.csv"),
        "train+val": ("EPIC_train_action_labels", "", ""),
        "test_seen": ("EPIC_test_s1_timestamps", "", "test_seen.csv"),
        "test_unseen": ("EPIC_test_s2_timestamps", "", "test_unseen.csv"),
    },
}


@dataclass(frozen=True)
class Benchmark:
    """A dataset with its classes; `segments` are the actions of a part, `dataset` its samples."""

    cfg: DataConfig
    layout: Layout
    classes: Taxonomy
    read: Callable[[str], Segments]

    @property
    def actions(self) -> tuple[str, ...]:
        """Names by class id."""
        return self.classes.actions

    @property
    def verbs(self) -> tuple[str, ...]:
        """Names by class id; empty where an action is no verb and noun."""
        return self.classes.verbs

    @property
    def nouns(self) -> tuple[str, ...]:
        """Names by class id; empty where an action is no verb and noun."""
        return self.classes.nouns

    @property
    def verb_of(self) -> Tensor:
        """The verb of every action, int64 (K,); (0,) where there is none."""
        return torch.from_numpy(self.classes.pairs[:, 0].copy()) if self.classes.has_pairs else torch.zeros(0).long()

    @property
    def noun_of(self) -> Tensor:
        """The noun of every action, int64 (K,); (0,) where there is none."""
        return torch.from_numpy(self.classes.pairs[:, 1].copy()) if self.classes.has_pairs else torch.zeros(0).long()

    @property
    def primary(self) -> str:
        """The figure that chooses the best weights."""
        return "action/recall5" if self.cfg.dataset == "ek100" else "action/top1"

    @cached_property
    def many_shot(self) -> Subset | None:
        """The many-shot classes, which EPIC-KITCHENS-55 reports apart."""
        return taxonomy.many_shot(self.layout.annotations, self.classes) if self.cfg.dataset == "ek55" else None

    @cached_property
    def rates(self) -> dict[str, float]:
        """Frames per second of the official JPEG frames, by video."""
        folder = self.layout.annotations
        return dict(files.frame_rates([folder / "EPIC_100_video_info.csv", folder / "EPIC_video_info.csv"]))

    def parts(self) -> tuple[str, ...]:
        """The parts that the dataset has."""
        if self.cfg.dataset in _EPIC:
            return tuple(part for part in _EPIC[self.cfg.dataset] if part != "train+val")
        return ("train", "val")

    def segments(self, part: str) -> Segments:
        """The actions of a part, in file order; `train` as data.train and data.persons want it.

        Raises: ValueError for a part that the dataset does not have, or a file that is missing or malformed.
        """
        if part not in self.parts():
            raise ValueError(f"{self.cfg.dataset} has no part {part}; it has {', '.join(self.parts())}")
        found = self.read(self.cfg.train if part == "train" else part)
        return files.of_persons(found, *self.cfg.persons) if part == "train" and self.cfg.persons else found

    def clips(self, part: str, *, train: bool = False) -> Clips:
        """What may be seen of each action of a part."""
        cfg = self.cfg
        tau_o = cfg.tau_o if train else cfg.tau_o_eval or cfg.tau_o
        return files.observe(self.segments(part), cfg.tau_a, tau_o, cfg.drop)

    def counts(self, part: str) -> Tensor:
        """How many samples every action has, int64 (K,); those without a label count nowhere."""
        action = self.clips(part).segments.action
        return torch.from_numpy(np.bincount(action[action >= 0], minlength=len(self.actions)))

    def label_fps(self, path: str) -> float:
        """Labels per second of a video of 50 Salads or Breakfast, where every frame has one."""
        assert isinstance(self.read, _SaladsParts)
        return self.read.rate(path)

    def dataset(self, part: str, cfg: Config | None = None, *, train: bool = False) -> Anticipation:
        """The samples of a part; `train` switches on what only training does."""
        return Anticipation(self, part, train=train)

    def describe(self) -> str:
        """One line for the log."""
        sizes = []
        for part in ("train", "val"):
            try:
                found = self.clips(part)
                sizes.append(f"{part} {len(found)} ({len(found.dropped)} dropped)")
            except ValueError:
                sizes.append(f"{part} not there")
        kinds = f"{len(self.actions)} actions" + (
            f", {len(self.verbs)} verbs, {len(self.nouns)} nouns" if self.classes.has_pairs else ""
        )
        cfg = self.cfg
        seen = f"{cfg.frames} of {cfg.tau_o:g} s until {cfg.tau_a:g} s before"
        return f"{cfg.dataset}: {kinds}; {', '.join(sizes)}; {cfg.source}, {seen}"


def load(cfg: DataConfig) -> Benchmark:
    """Read the classes of the dataset that the configuration names; its parts are read when asked for.

    Raises: ValueError for files that are missing or malformed.
    """
    places = layout.resolve(cfg)
    if cfg.dataset in _EPIC:
        edition = 100 if cfg.dataset == "ek100" else 55
        classes = taxonomy.read_epic(places.annotations, places.rulstm / "actions.csv", edition=edition)
        return Benchmark(cfg, places, classes, _EpicParts(cfg, places, classes))
    if cfg.dataset == "egtea":
        classes = taxonomy.read_egtea(places.rulstm / "actions.csv")
        return Benchmark(cfg, places, classes, _EgteaParts(cfg, places))
    classes = salads.read_mapping(places.rulstm / "mapping.txt")
    return Benchmark(cfg, places, classes, _SaladsParts(cfg, places, classes))


class _Parts:
    """Reads each part once."""

    def __init__(self) -> None:
        self._known: dict[str, Segments] = {}

    def __call__(self, part: str) -> Segments:
        if part not in self._known:
            self._known[part] = self.read(part)
        return self._known[part]

    def read(self, part: str) -> Segments:
        raise NotImplementedError


class _EpicParts(_Parts):
    def __init__(self, cfg: DataConfig, places: Layout, classes: Taxonomy) -> None:
        super().__init__()
        self.cfg, self.places, self.classes = cfg, places, classes

    def read(self, part: str) -> Segments:
        known = _EPIC[self.cfg.dataset]
        if part not in known or (self.cfg.table == "rulstm" and part == "train+val"):
            return files.join([self(one) for one in part.split("+")])
        name, videos, rulstm = known[part]
        if self.cfg.table == "rulstm":
            return files.read_rulstm(self.places.rulstm / rulstm)
        found = files.read_official(self._official(name), self.classes)
        return files.of_videos(found, files.read_list(self.places.rulstm / videos)) if videos else found

    def _official(self, name: str) -> Path:
        """The csv file, or the pickle of the same table; csv names are what the error shows."""
        csv, pickled = (self.places.annotations / f"{name}{suffix}" for suffix in (".csv", ".pkl"))
        if not csv.exists() and not pickled.exists():
            raise ValueError(
                f"{csv} does not exist, nor does the pickle; get the official annotations (docs/data.md), or use "
                "RULSTM's csv files with data.table=rulstm"
            )
        return csv if csv.exists() else pickled


class _EgteaParts(_Parts):
    def __init__(self, cfg: DataConfig, places: Layout) -> None:
        super().__init__()
        self.cfg, self.places = cfg, places

    def read(self, part: str) -> Segments:
        if part == "train+val":
            return files.join([self("train"), self("val")])
        name = {"train": "training", "val": "validation"}[part]
        return files.read_rulstm(self.places.rulstm / f"{name}{self.cfg.fold}.csv", participants=False)


class _SaladsParts(_Parts):
    def __init__(self, cfg: DataConfig, places: Layout, classes: Taxonomy) -> None:
        super().__init__()
        self.cfg, self.places, self.classes = cfg, places, classes

    def read(self, part: str) -> Segments:
        names = [
            name
            for one in part.split("+")
            for name in salads.read_bundle(
                self.places.annotations / f"{'train' if one == 'train' else 'test'}.split{self.cfg.fold}.bundle"
            )
        ]
        original = self.cfg.labels == "timestamps"
        return salads.read_segments(
            names,
            self.places.extra / "activityAnnotations" if original else self.places.rulstm / "groundTruth",
            self.classes,
            rate=self.rate,
            place=self._place,
            runs=salads.activities(self.places.extra / "timestamps") if original else None,
            half=self.cfg.compat,
        )

    def _place(self, name: str) -> str:
        if self.cfg.dataset == "salads":
            return salads.salads_video(name)
        return salads.breakfast_video(name, self.places.videos)

    def rate(self, path: str) -> float:
        """The labels per second of a video."""
        if self.cfg.fps:
            return self.cfg.fps
        if self.cfg.dataset == "breakfast":
            return salads.BREAKFAST_FPS
        try:
            return video.probe(frames.find(self.places.videos, path, "video")).fps
        except SampleError as error:
            raise ValueError(f"{error}; without the videos, say data.fps=29.97") from None


class Anticipation:
    """The samples of one part: what is seen until `data.tau_a` seconds before an action, and its label.

    Samples: id str, index int; `video` uint8 (T,H,W,3) or `features` float32 (T,C); label, verb, noun int (-1 unknown),
    past_label int64 (T,); margin_s, the seconds from the end of the latest feature, or the begin of the latest frame,
    to the limit that no frame may reach.
    """

    def __init__(self, benchmark: Benchmark, part: str, *, train: bool = False) -> None:
        cfg = benchmark.cfg
        self.cfg, self.layout, self.train = cfg, benchmark.layout, train
        self.clips = benchmark.clips(part, train=train)
        everything = self.clips.segments if cfg.compat else benchmark.segments(part)
        self.past = PastLabels(everything, compat=cfg.compat)
        strategy = "center_clip" if cfg.strategy == "random_clip" and not train else cfg.strategy
        self.rule = Rule(cfg.frames, cfg.rate, strategy, cfg.dynamic and train, cfg.compat)
        self.rates = benchmark.rates if cfg.source == "frames" and not cfg.fps else {}
        self.features = Features(self.layout.features) if cfg.source == "features" else None
        if self.features is None:
            self._check_videos()
        action = self.clips.segments.action
        self.ids: list[str] = self.clips.segments.id.tolist()
        self._rows_of = [np.flatnonzero(action == k) for k in np.unique(action[action >= 0])] if cfg.balanced else []

    def __len__(self) -> int:
        return int(len(self.clips) * self.cfg.repeat) if self.train else len(self.clips)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """Read the frames that are used, nothing else."""
        row = self._row(index, rng)
        segments = self.clips.segments
        path, limit_s = str(segments.path[row]), float(self.clips.end_s[row])
        seen, times_s, margin_s = self._seen(row, path, limit_s, rng)
        return {
            "id": self.ids[row],
            "index": row,
            **seen,
            "label": int(segments.action[row]),
            "verb": int(segments.verb[row]),
            "noun": int(segments.noun[row]),
            "past_label": self.past.at(path, times_s),
            "margin_s": margin_s,
        }

    def _row(self, index: int, rng: random.Random) -> int:
        if not self.train:
            return index
        if self._rows_of:
            return int(rng.choice(rng.choice(self._rows_of)))
        place = index / self.cfg.repeat
        if self.cfg.repeat < 1:  # every epoch shows another part of the samples
            place += rng.randrange(int(1 / self.cfg.repeat))
        return int(place) % len(self.clips)

    def _seen(self, row: int, path: str, limit_s: float, rng: random.Random) -> tuple[dict[str, Tensor], Any, float]:
        start_s = float(self.clips.start_s[row])
        if self.features is not None:
            where = clips.span(start_s, limit_s, clips.FEATURE_FPS, self.rule, rng)
            try:
                choice = (clips.rulstm_frames if self.cfg.exact_rulstm else clips.feature_frames)(where, self.rule)
            except ValueError as error:
                raise SampleError(path, f"{error} (sample {self.ids[row]})") from error
            vectors = self.features.read(str(self.clips.segments.video[row]), choice.numbers, choice.among)
            return {"features": vectors}, choice.times_s, limit_s - max(choice.numbers) / clips.FEATURE_FPS
        file = frames.find(self.layout.videos, path, "frames" if self.cfg.source == "frames" else "video")
        video_id = str(self.clips.segments.video[row])
        clock = frames.clock(
            file, self.cfg.fps or self.rates.get(video_id, 0.0) if self.cfg.source == "frames" else 0.0
        )
        where = clips.span(start_s, limit_s, clock.fps, self.rule, rng)
        try:
            choice = clips.video_frames(clock.times_s, where, self.rule)
        except ValueError as error:
            if self.cfg.compat:  # what the published code makes of it
                nothing = torch.zeros(self.rule.frames, 100, 100, 3, dtype=torch.uint8)
                return {"video": nothing}, np.full(self.rule.frames, -1, dtype=np.float32), limit_s
            ends = f"the video has frames until {clock.times_s[-1]:.3f} s"
            raise SampleError(file, f"{error} (sample {self.ids[row]}); {ends}") from error
        margin_s = limit_s - float(clock.times_s[max(choice.numbers)])
        return {"video": frames.read(file, choice.numbers)}, choice.times_s, margin_s

    def _check_videos(self) -> None:
        """Leave out samples without a video where the configuration allows it. Raises: ValueError where not."""
        source: frames.Source = "frames" if self.cfg.source == "frames" else "video"
        lost: set[str] = set()
        reason = ""
        for path in map(str, np.unique(self.clips.segments.path)):
            try:
                frames.find(self.layout.videos, path, source)
            except SampleError as error:
                lost.add(path)
                reason = reason or str(error)
        if not lost:
            return
        if self.cfg.missing == "error" or len(lost) == len(np.unique(self.clips.segments.path)):
            raise ValueError(
                f"{len(lost)} videos are missing. {reason}. To go on without their samples, say data.missing=skip"
            )
        kept = ~np.isin(self.clips.segments.path, list(lost))
        self.clips = replace(
            self.clips,
            segments=self.clips.segments[kept],
            start_s=self.clips.start_s[kept],
            end_s=self.clips.end_s[kept],
        )
