"""Clips on disk -> samples: a folder per class (UCF50, UCF101, HMDB51, your own) or EPIC-KITCHENS-100 frames."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core import clips, video
from core.data import SampleError
from core.transforms import (
    CenterCrop,
    Compose,
    Flip,
    Mixup,
    Normalize,
    OnKey,
    RandomCrop,
    RandomShortSide,
    ShortSide,
    Step,
    ThreeCrops,
)
from projects.ucf50_x3d import splits
from projects.ucf50_x3d.config import ClipConfig, Config, DataConfig
from projects.ucf50_x3d.splits import Row, Split

Transform = Callable[[dict[str, Any], list[random.Random]], dict[str, Any]]

HUB_FPS = 30  # the frame rate that the sampling rates of Kinetics models refer to


@dataclass(frozen=True)
class Benchmark:
    """A dataset with its classes in label order and its split; `dataset` opens one part of it."""

    cfg: DataConfig
    classes: tuple[str, ...]
    split: Split | None = None
    segments: Mapping[str, tuple[Sequence[Segment], Sequence[int]]] = field(default_factory=dict)

    def dataset(self, part: str, clip: ClipConfig, *, train: bool = False, views: int = 1) -> FolderClips | EpicFrames:
        """The clips of `train`, `val` or `test`."""
        if self.split is None:
            segments, labels = self.segments[part]
            return EpicFrames(self.cfg.root, segments, labels, clip, train=train, views=views)
        return FolderClips(self.cfg.root, self.split[part], clip, train=train, views=views)

    def describe(self) -> str:
        """One line for the log: sizes, and the leak of a split that is not by source video."""
        sizes = ", ".join(f"{len(self.dataset(part, ClipConfig()))} {part}" for part in splits.SPLITS)
        how = f"protocol {self.cfg.protocol}" if self.split else f"{self.cfg.labels} labels, test is val"
        text = f"{self.cfg.root}: {len(self.classes)} classes, {sizes} clips ({how})"
        if self.split and self.split.leaks("test"):
            text += f"; it LEAKS: {self.split.leaks('test'):.1%} of the test clips share their source video with train"
        return text


def load(cfg: DataConfig) -> Benchmark:
    """Read the annotations of the dataset that the configuration names.

    Raises: ValueError for files that are missing or malformed.
    """
    if cfg.dataset == "ek100":
        return _epic(cfg)
    if cfg.protocol == "files":
        found = splits.read_files(_required(cfg))
    elif cfg.protocol == "lists":
        share = cfg.held_out * (1 - cfg.test_of_held_out)
        rows, folder = splits.scan(cfg.root), _required(cfg)
        found = splits.read_lists(folder, cfg.fold, rows, classes=cfg.classes, val_share=share, seed=cfg.seed)
    else:
        shares = {"held_out": cfg.held_out, "test_of_held_out": cfg.test_of_held_out, "seed": cfg.seed}
        found = splits.split_rows(splits.scan(cfg.root), cfg.protocol, fold=cfg.fold, **shares)
    if cfg.classes:
        found = found.only(cfg.classes)
    return Benchmark(cfg, found.classes, found)


def _required(cfg: DataConfig) -> Path:
    if cfg.annotations is None:
        raise ValueError(f"data.protocol={cfg.protocol} reads files: say where with data.annotations=FOLDER")
    return cfg.annotations


def _epic(cfg: DataConfig) -> Benchmark:
    """EPIC-KITCHENS-100: the official validation part serves as test too, since test labels are not public.

    An action is a pair (verb, noun) of either part: pairs that training never shows stay in validation, as misses.
    """
    folder = cfg.annotations or cfg.root / "annotations"
    train = read_segments(folder / "EPIC_100_train.csv")
    val = read_segments(folder / "EPIC_100_validation.csv")
    if cfg.labels == "action":
        pairs = sorted({(segment.verb, segment.noun) for segment in train + val})
        number = {pair: label for label, pair in enumerate(pairs)}
        classes = tuple(f"verb {verb}, noun {noun}" for verb, noun in pairs)
        labels = [[number[segment.verb, segment.noun] for segment in part] for part in (train, val)]
    else:
        classes = _epic_classes(folder, cfg.labels, train + val)
        labels = [[getattr(segment, cfg.labels) for segment in part] for part in (train, val)]
    parts = {"train": (train, labels[0]), "val": (val, labels[1]), "test": (val, labels[1])}
    return Benchmark(cfg, classes, segments=parts)


def _epic_classes(folder: Path, kind: str, segments: Sequence[Segment]) -> tuple[str, ...]:
    path = folder / f"EPIC_100_{kind}_classes.csv"
    count = 1 + max((getattr(segment, kind) for segment in segments), default=-1)
    if not path.exists():
        return tuple(f"{kind} {label}" for label in range(count))
    with path.open(newline="", encoding="utf-8") as file:
        names = tuple(line.get("key") or "" for line in csv.DictReader(file))
    if len(names) < count or not all(names):
        raise ValueError(f"{path}: expected a column `key` with the names of {count} classes or more, one a line")
    return names


def frame_indices(
    total: int, fps: float, cfg: ClipConfig, *, views: int = 1, rng: random.Random | None = None
) -> list[int]:
    """The frames of a clip, `views` times `cfg.frames` indices into a video of `total` frames.

    `whole` is the original's fixed-size sampler: a short clip repeats its last frame, a long one is thinned evenly.
    `window` takes every `rate`-th frame at 30 fps: at random with `rng`, else from the middle, else `views` windows
    spread over the video as SlowFast tests it (the last of them does not reach the end).
    """
    if cfg.sampling == "whole":
        if views > 1:
            raise ValueError("several temporal views need clip.sampling=window; with whole every view is the same")
        return clips.pad_or_uniform(total, cfg.frames)
    span = cfg.rate * cfg.frames / HUB_FPS * fps
    if rng is not None:
        start = rng.uniform(0, max(total - span, 0.0))
        return clips.between(start, start + span - 1, cfg.frames, total)
    return [index for view in range(views) for index in clips.view(total, span, cfg.frames, view, views)]


class FolderClips:
    """Clips of `root/<Class>/<file>`.

    Samples: id `Class/file`, video uint8 (frames, H, W, 3) as stored, label int; (views, frames, H, W, 3) for several.
    """

    def __init__(
        self, root: Path, rows: Sequence[Row], cfg: ClipConfig, *, train: bool = False, views: int = 1
    ) -> None:
        self.root, self.rows, self.cfg, self.train, self.views = root, tuple(rows), cfg, train, views
        self.ids = [f"{row.action}/{row.video_name}" for row in rows]
        self.labels = [row.label for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> Path:
        """The file of a clip."""
        return self.root / self.ids[index]

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """Decode the frames that are used, nothing else.

        Raises: VideoError for a file that is no video.
        """
        path = self.path(index)
        info = video.probe(path)
        drawn = rng if self.train and self.cfg.augment else None
        frames = frame_indices(info.frames, info.fps, self.cfg, views=self.views, rng=drawn)
        pixels = _views(video.read(path, frames), self.views)
        return {"id": self.ids[index], "video": pixels, "label": self.labels[index]}


@dataclass(frozen=True)
class Segment:
    """One line of an EPIC-KITCHENS-100 csv; frames count from 1 and both ends belong to the segment."""

    id: str
    video_id: str
    start_frame: int
    stop_frame: int
    stop_s: float
    narration: str
    verb: int
    noun: int

    @property
    def folder(self) -> str:
        """The folder of its frames below the dataset root (the official archives unpacked)."""
        return f"{self.video_id.split('_')[0]}/rgb_frames/{self.video_id}"

    @property
    def fps(self) -> float:
        """Frames per second of its video: 50 or about 60, told by the pair of frame number and timestamp."""
        return self.stop_frame / self.stop_s if self.stop_s else 60.0


SEGMENT_COLUMNS = (
    "narration_id", "video_id", "start_frame", "stop_frame", "stop_timestamp", "narration", "verb_class", "noun_class",
)  # fmt: skip


def read_segments(path: Path) -> list[Segment]:
    """The segments of an official EPIC-KITCHENS-100 csv, in file order.

    Raises: ValueError naming file and line, for columns that are missing or values of another form.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(SEGMENT_COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: column {', '.join(sorted(missing))} is missing; found {reader.fieldnames}")
            return [_segment(path, number, line) for number, line in enumerate(reader, 2)]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; expected an official csv such as EPIC_100_train.csv") from None


def _segment(path: Path, number: int, line: dict[str, str]) -> Segment:
    try:
        i, v, first, last, stop, text, verb, noun = (line[name] for name in SEGMENT_COLUMNS)
        return Segment(i, v, int(first), int(last), _seconds(stop), text, int(verb), int(noun))
    except (AttributeError, TypeError, ValueError) as error:  # a short line is filled up with None
        raise ValueError(f"{path}, line {number}: {error}; expected {', '.join(SEGMENT_COLUMNS)}") from None


def _seconds(timestamp: str) -> float:
    hours, minutes, seconds = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


class EpicFrames:
    """EPIC-KITCHENS-100 segments read from `root/<participant>/rgb_frames/<video>/frame_%010d.jpg`.

    Samples: id, video uint8 (frames, 256, 456, 3), label, narration. Frames that are missing on disk are
    skipped, as in the original, which also read every frame of a segment only to keep 32 of them.
    """

    def __init__(
        self, root: Path, segments: Sequence[Segment], labels: Sequence[int], cfg: ClipConfig, *,
        train: bool = False, views: int = 1,
    ) -> None:  # fmt: skip
        self.root, self.segments, self.labels = root, tuple(segments), list(labels)
        self.ids = [segment.id for segment in segments]
        self.cfg, self.train, self.views = cfg, train, views

    def __len__(self) -> int:
        return len(self.segments)

    def frames(self, index: int) -> list[int]:
        """The numbers of a segment's frames that are on disk, in order.

        Raises: SampleError when there is none.
        """
        segment = self.segments[index]
        folder = self.root / segment.folder
        wanted = range(segment.start_frame, segment.stop_frame + 1)
        found = [number for number in wanted if (folder / f"frame_{number:010d}.jpg").exists()]
        if not found:
            raise SampleError(folder, f"no frame of {wanted.start}..{wanted.stop - 1} ({segment.id}) is there")
        return found

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """Read the frames that are used, nothing else."""
        segment, found = self.segments[index], self.frames(index)
        drawn = rng if self.train and self.cfg.augment else None
        taken = frame_indices(len(found), segment.fps, self.cfg, views=self.views, rng=drawn)
        # A folder of pictures counts from 0, its files from 1.
        pixels = video.read(self.root / segment.folder, [found[i] - 1 for i in taken])
        return {
            "id": segment.id,
            "video": _views(pixels, self.views),
            "label": self.labels[index],
            "narration": segment.narration,
        }


def _views(frames: Tensor, views: int) -> Tensor:
    """(views * T, H, W, 3) -> (views, T, H, W, 3); one view stays (T, H, W, 3)."""
    return frames if views == 1 else frames.view(views, -1, *frames.shape[1:])


def transform(cfg: Config, benchmark: Benchmark, *, train: bool = False, crops: int = 1) -> Transform:
    """What a loader does to a batch on the device: `pipeline` on "video" and, in training, mixup with "label"."""
    prepare = OnKey("video", pipeline(cfg.clip, train=train, crops=crops))
    if not (train and cfg.clip.augment and cfg.clip.mixup):
        return prepare
    mix = Mixup(cfg.clip.mixup)

    def prepare_and_mix(batch: dict[str, Any], rngs: list[random.Random]) -> dict[str, Any]:
        batch = prepare(batch, rngs)
        shares = F.one_hot(batch["label"], len(benchmark.classes)).float()
        batch["video"], batch["label"] = mix(batch["video"], shares, rngs[0])
        return batch

    return prepare_and_mix


def example(cfg: ClipConfig) -> Tensor:
    """One clip as the model sees it, (1, 3, frames, crop, crop), of zeros."""
    return torch.zeros(1, 3, cfg.frames, cfg.crop, cfg.crop)


def pipeline(cfg: ClipConfig, *, train: bool = False, crops: int = 1) -> Compose:
    """Raw clips to what the model sees, float (B, 3, frames, crop, crop); views, then crops come after B.

    Cropping comes before normalizing, on bytes: the values are those of the original order, whose zeros around a small
    frame are the mean here.
    """
    normalize = Normalize(cfg.mean, cfg.std)
    scale: list[Step] = [ShortSide(cfg.short_side)] if cfg.short_side else []
    if train and cfg.augment:
        jitter = [RandomShortSide(*cfg.jitter)] if cfg.jitter else scale
        return Compose([*jitter, RandomCrop(cfg.crop), Flip(cfg.flip), normalize])
    size = cfg.crop if train else cfg.test_crop or cfg.crop
    crop = ThreeCrops(size) if crops == 3 else CenterCrop(size, fill=cfg.mean)
    return Compose([*scale, crop, normalize])
