"""Ego4D FHO-LTA on disk -> samples: windows of segments to forecast from, or single segments to recognize.

    data/long_term_anticipation/annotations/fho_lta_{train,val,test_unannotated,taxonomy}.json
    data/long_term_anticipation/clips/<clip_uid>.mp4

`load` reads the annotations, `Benchmark.dataset` opens one part. Nothing of a video is read but the frames that a
model sees, each of them once for a window.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import clips, video
from core.transforms import CenterCrop, Compose, Flip, Normalize, OnKey, RandomCrop, RandomShortSide, ShortSide
from projects.lta_memvit import ego4d, windows
from projects.lta_memvit.config import ClipConfig, Config, DataConfig
from projects.lta_memvit.ego4d import FILES, UNKNOWN, Action, Taxonomy
from projects.lta_memvit.windows import Frames, Window

Transform = Callable[[dict[str, Any], list[random.Random]], dict[str, Any]]


@dataclass(frozen=True)
class Benchmark:
    """Annotations of all parts that are there, and the names of the classes."""

    cfg: DataConfig
    taxonomy: Taxonomy
    parts: Mapping[str, Sequence[Action]]  # in file order

    @property
    def classes(self) -> tuple[int, int]:
        """Numbers of verbs and of nouns."""
        return len(self.taxonomy.verbs), len(self.taxonomy.nouns)

    @cached_property
    def files(self) -> frozenset[str]:
        """Clips that are on disk."""
        folder = self.cfg.clips
        return frozenset(path.stem for path in folder.glob("*.mp4")) if folder.is_dir() else frozenset()

    def actions(self, part: str) -> Sequence[Action]:
        """The actions of `train`, `val` or `test`, in file order.

        Raises: ValueError when the annotation file of the part is not there.
        """
        if part not in FILES:
            raise ValueError(f"there is no part {part!r}; choose from {', '.join(FILES)}")
        if part not in self.parts:
            raise ValueError(f"{self.cfg.annotations / FILES[part]} is not there, so there is no {part} part")
        return self.parts[part]

    def clips(self, part: str) -> dict[str, tuple[Action, ...]]:
        """The actions of every clip in time order."""
        return ego4d.by_clip(self.actions(part))

    def windows(self, part: str, inputs: int | None = None) -> list[Window]:
        """All windows of a part, also those of clips that are missing on disk."""
        count = self.cfg.inputs if inputs is None else inputs
        return windows.windows(self.clips(part), count, self.cfg.future, rule=self.cfg.windows)

    def missing(self, part: str) -> list[str]:
        """Clips that the annotations name and the disk lacks. Ego4D itself does: one in train, one in test."""
        return [name for name in self.clips(part) if name not in self.files]

    def labeled(self, part: str) -> bool:
        """Whether the classes of the part are published."""
        return any(action.verb != UNKNOWN for action in self.actions(part))

    def forecasting(self, part: str, clip: ClipConfig, *, train: bool = False) -> Windows:
        """The windows of a part whose clips are on disk."""
        there = [window for window in self.windows(part) if window.clip_uid in self.files]
        return Windows(self.cfg.clips, there, clip, jitter=train or (part == "val" and clip.val == "random"))

    def recognition(self, part: str, clip: ClipConfig, *, train: bool = False, views: int = 1) -> Segments:
        """The single actions of a part, in file order, whose clips are on disk."""
        there = [action for action in self.actions(part) if action.clip_uid in self.files]
        jitter = train or (part == "val" and clip.val == "random")
        return Segments(self.cfg.clips, there, self.clips(part), clip, jitter=jitter, views=views)

    def dataset(self, part: str, cfg: Config, *, train: bool = False) -> Windows | Segments:
        """What the task of a configuration reads."""
        if cfg.task == "forecasting":
            return self.forecasting(part, cfg.clip, train=train)
        return self.recognition(part, cfg.clip, train=train, views=1 if train else cfg.eval.views)

    def describe(self) -> str:
        """One line for the log: classes, sizes, and the clips that are missing."""
        sizes = ", ".join(
            f"{len(self.windows(part))} {part} windows ({len(self.clips(part))} clips)" for part in self.parts
        )
        lost = {part: self.missing(part) for part in self.parts}
        texts = [f"{len(names)} {part} clips are missing ({listed(names)})" for part, names in lost.items() if names]
        return "; ".join([f"{self.cfg.annotations}: {self.taxonomy}; {sizes}", *texts])


def load(cfg: DataConfig) -> Benchmark:
    """Read the taxonomy and every part whose annotation file is there.

    Raises: ValueError for files that are missing or malformed, and for labels without a name.
    """
    taxonomy = ego4d.read_taxonomy(cfg.annotations / ego4d.TAXONOMY)
    parts = {}
    for part, name in FILES.items():
        path = cfg.annotations / name
        if path.exists():
            parts[part] = ego4d.read_actions(path)
            ego4d.check_labels(path, parts[part], taxonomy)
    if not parts:
        raise ValueError(f"{cfg.annotations}: none of {', '.join(FILES.values())} is there; link Ego4D's annotations")
    return Benchmark(cfg, taxonomy, parts)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Windows:
    """Windows of observed segments, with what follows.

    Samples: id `<clip_uid>_<action_idx of the last input>`, video uint8 (N, T, H, W, 3) as stored, verb and noun int64
    (Z,), observed_verb and observed_noun int64 (N,), clip_uid, position of the last input in its clip, stream
    (clip_uid, position), clamped: inputs whose seconds lie outside of the video. Labels that are not published are -1.

    Args: `jitter` draws the seconds of each input from the sample's generator, else they are the middle ones.
    """

    def __init__(self, folder: Path, found: Sequence[Window], clip: ClipConfig, *, jitter: bool = False) -> None:
        self.folder, self.windows, self.clip, self.jitter = folder, tuple(found), clip, jitter
        self.ids = [window.id for window in found]
        self.streams = [(window.clip_uid, window.position) for window in found]

    def __len__(self) -> int:
        return len(self.windows)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """Decode the frames that are used, each of them once.

        Raises: VideoError for a file that cannot be read.
        """
        window = self.windows[index]
        drawn = rng if self.jitter else None
        spans = [windows.seconds(action, self.clip.seconds, drawn) for action in window.inputs]
        pixels, clamped = read(self.folder / f"{window.clip_uid}.mp4", spans, self.clip.frames)
        return {"id": window.id, "video": pixels, **labels(window), "clamped": clamped}


def labels(window: Window) -> dict[str, Any]:
    """What a sample of a window holds besides its pixels or features."""
    return {
        "verb": torch.tensor([action.verb for action in window.future]),
        "noun": torch.tensor([action.noun for action in window.future]),
        "observed_verb": torch.tensor([action.verb for action in window.inputs]),
        "observed_noun": torch.tensor([action.noun for action in window.inputs]),
        "clip_uid": window.clip_uid,
        "position": window.position,
        "stream": (window.clip_uid, window.position),
    }


class Segments:
    """Single actions to recognize.

    Samples: id `<clip_uid>_<action_idx>`, video uint8 (T, H, W, 3) as stored, or (views, T, H, W, 3), verb and noun
    int, clip_uid, position of the action in its clip, stream (clip_uid, position), clamped.

    Args: `jitter` as for `Windows`; `views` parts spread evenly over the segment.
    """

    def __init__(
        self, folder: Path, actions: Sequence[Action], in_time: Mapping[str, Sequence[Action]], clip: ClipConfig, *,
        jitter: bool = False, views: int = 1,
    ) -> None:  # fmt: skip
        self.folder, self.actions, self.clip, self.jitter, self.views = folder, tuple(actions), clip, jitter, views
        places = {action: place for sequence in in_time.values() for place, action in enumerate(sequence)}
        self.ids = [action.id for action in actions]
        self.streams = [(action.clip_uid, places[action]) for action in actions]

    def __len__(self) -> int:
        return len(self.actions)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """Decode the frames that are used.

        Raises: VideoError for a file that cannot be read.
        """
        action = self.actions[index]
        if self.views > 1:
            length_s = max(action.end_s - action.start_s, self.clip.seconds)
            spread = clips.spread(length_s, self.clip.seconds, self.views)
            spans = [(action.start_s + start, action.start_s + end) for start, end in spread]
        else:
            spans = [windows.seconds(action, self.clip.seconds, rng if self.jitter else None)]
        path = self.folder / f"{action.clip_uid}.mp4"
        pixels, clamped = read(path, spans, self.clip.frames, several=False)
        clip_uid, position = self.streams[index]
        return {
            "id": action.id,
            "video": pixels if self.views > 1 else pixels[0],
            "verb": action.verb,
            "noun": action.noun,
            "clip_uid": clip_uid,
            "position": position,
            "stream": (clip_uid, position),
            "clamped": clamped,
        }


def read(
    path: Path, spans_s: Sequence[tuple[float, float]], count: int, *, several: bool | None = None, rotate: bool = False
) -> tuple[Tensor, int]:
    """`count` frames of every span of a video as uint8 (spans, count, H, W, 3), and how many spans lie outside of it.

    All frames are wanted at once, so that spans which overlap or share a keyframe are decoded together.

    Args: `several` says by which rule frames are chosen, see `windows.chosen`; by default by the number of spans.
    """
    twice = len(spans_s) > 1 if several is None else several
    times_s, tick_s = video.frame_times(path), video.probe(path).tick_s
    found: list[Frames] = [windows.frames(times_s, tick_s, span, count, several=twice) for span in spans_s]
    pixels = video.read(path, [index for one in found for index in one.indices], rotate=rotate)
    return pixels.view(len(spans_s), count, *pixels.shape[1:]), sum(one.clamped for one in found)


def transform(cfg: ClipConfig, *, train: bool = False) -> Transform:
    """What a loader does to a batch on the device: `pipeline` on "video"."""
    return OnKey("video", pipeline(cfg, train=train))


def pipeline(cfg: ClipConfig, *, train: bool = False) -> Compose:
    """Raw clips to float (B, ..., 3, T, crop, crop): all inputs of a window are scaled, cut and mirrored alike."""
    normalize = Normalize(cfg.mean, cfg.std)
    if train:
        return Compose([RandomShortSide(*cfg.jitter), RandomCrop(cfg.crop), Flip(cfg.flip), normalize])
    return Compose([ShortSide(cfg.jitter[0]), CenterCrop(cfg.crop), normalize])


def example(cfg: Config) -> Tensor:
    """One sample as the model sees it, of zeros: (1, N, 3, T, crop, crop), or (1, 3, T, crop, crop) to recognize."""
    inputs = (cfg.data.inputs,) if cfg.task == "forecasting" else ()
    return torch.zeros(1, *inputs, 3, cfg.clip.frames, cfg.clip.crop, cfg.clip.crop)
