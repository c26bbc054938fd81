"""EgoGen as released: JSON files of actions, frames before and after, features of the language model -> samples.

    <root>/EgoGen/{ego4d.fho,epickitchen}/{train,val,val_gt_for_metric}/<clip>/<action>/<frame>.jpg
    <root>/{ego4d,epickitchen}_{train,val,metadata}.json
    <root>/{ego4d,epickitchen}/vllm_{image,text}_feature/<vllm>/{train,val}/<clip>/<action>/<source frame>.npy

The JSON files may also lie in EgoGen/, as the first release had them. The test sets are hidden: val is the test set.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.data import SampleError
from projects.lego.config import DataConfig, ModelConfig
from projects.lego.model.vision import clip_pixels

Kind = Literal["image", "text"]
TEXT_ROWS = 77


@dataclass(frozen=True)
class Release:
    """What one dataset is called where, and how many pairs were published."""

    folder: str
    vllm: str
    counts: Mapping[str, int]


RELEASED = {
    "ego4d": Release(
        "ego4d.fho", "llava-llama-2-13b-chat-forecasting-finetune-ckpt450", {"train": 85_521, "val": 9_931}
    ),
    "epickitchen": Release(
        "epickitchen", "llava-llama-2-13b-chat-forecasting-finetune", {"train": 61_841, "val": 8_893}
    ),
}


@dataclass(frozen=True)
class Record:
    """One action: the frame before it, the frame of it, and what is said about it."""

    dataset: str
    split: str
    clip: str
    action: str
    source: str
    """Frame before the action, relative to the frames of its split."""
    target: str
    fields: Mapping[str, Any] = field(repr=False)
    """Everything the JSON says, prompts among it."""
    original_size: tuple[int, int] | None = None
    """Width and height of the original video, from the metadata."""

    @property
    def id(self) -> str:
        """Unique over datasets and splits."""
        return f"{self.dataset}/{self.split}/{self.clip}/{self.action}"

    def prompt(self, key: str) -> str:
        """The text under a field of the JSON.

        Raises: ValueError when the action has no such text, with the way to get it.
        """
        text = self.fields.get(key)
        if not isinstance(text, str):
            texts = [name for name, value in self.fields.items() if isinstance(value, str)]
            raise ValueError(
                f"{self.dataset}_{self.split}.json: action {self.clip}/{self.action} has no text {key!r}, it has "
                f"{', '.join(texts)}; choose one with data.prompt, or let the VLLM write it (extract)"
            )
        return text


def load(cfg: DataConfig, split: str) -> list[Record]:
    """All actions of the configured datasets, in the order of the files: clips, then their actions.

    Raises: ValueError naming the file that is missing or what in it is malformed.
    """
    return [record for name in cfg.datasets for record in _load(cfg.root, name, split, cfg.limit)]


def _load(root: Path, dataset: str, split: str, limit: int) -> list[Record]:
    path = annotation_path(root, dataset, split)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; unpack the released dataset there, or say where with data.root=FOLDER")
    sizes = original_sizes(root, dataset)
    records = []
    for clip, actions in _json(path).items():
        if not isinstance(actions, dict):
            raise ValueError(f"{path}: clip {clip} should hold {{action: {{...}}}}, not {type(actions).__name__}")
        for action, entry in actions.items():
            if not isinstance(entry, dict) or not {"image_0", "image_1"} <= entry.keys():
                raise ValueError(f"{path}: action {clip}/{action} needs image_0 and image_1")
            records.append(
                Record(dataset, split, clip, action, entry["image_0"], entry["image_1"], entry, sizes.get(clip))
            )
    return records[:limit] if limit else records


def annotation_path(root: Path, dataset: str, split: str) -> Path:
    """The JSON file of a split, beside EgoGen/ or inside it."""
    return _beside_or_inside(root, f"{dataset}_{split}.json")


def original_sizes(root: Path, dataset: str) -> dict[str, tuple[int, int]]:
    """Width and height of each clip's video from the metadata; empty when there is no such file."""
    path = _beside_or_inside(root, f"{dataset}_metadata.json")
    if not path.is_file():
        return {}
    known = ((clip, entry) for clip, entry in _json(path).items() if {"width", "height"} <= set(entry))
    return {clip: (int(entry["width"]), int(entry["height"])) for clip, entry in known}


def _beside_or_inside(root: Path, name: str) -> Path:
    inside = root / "EgoGen" / name
    return inside if inside.is_file() and not (root / name).is_file() else root / name


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: damaged or no JSON ({error}); get it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {{clip: {{action: {{...}}}}}}, got a {type(content).__name__}")
    return content


def frames(root: Path, dataset: str, split: str) -> Path:
    """The folder that paths of frames are relative to; `root` may also be EgoGen itself."""
    folder = RELEASED[dataset].folder
    return (root / "EgoGen" if (root / "EgoGen").is_dir() else root) / folder / split


def source_path(root: Path, record: Record) -> Path:
    """The frame before the action."""
    return frames(root, record.dataset, record.split) / record.source


def target_path(root: Path, record: Record, *, metric: bool = False) -> Path:
    """The frame of the action; with `metric` the copy in val_gt_for_metric, where there is one."""
    copy = frames(root, record.dataset, f"{record.split}_gt_for_metric") / record.target
    return copy if metric and copy.is_file() else frames(root, record.dataset, record.split) / record.target


def feature_path(root: Path, record: Record, kind: Kind, vllm: str = "") -> Path:
    """Where the language model's features of a record lie: the source frame's path with another suffix."""
    name = vllm or RELEASED[record.dataset].vllm
    place = Path(record.source).with_suffix(".npy")
    return root / record.dataset / f"vllm_{kind}_feature" / name / record.split / place


def missing(cfg: DataConfig, records: Iterable[Record], kinds: Sequence[Kind] = ()) -> list[Path]:
    """The frames, and the features of these kinds, that the records need and the disk does not have."""
    wanted: list[Path] = []
    for record in records:
        wanted += [source_path(cfg.root, record), target_path(cfg.root, record)]
        wanted += [feature_path(cfg.root, record, kind, cfg.vllm) for kind in kinds]
    return [path for path in wanted if not path.is_file()]


def wanted_features(cfg: DataConfig, model: ModelConfig) -> list[Kind]:
    """The kinds of feature files that a model reads."""
    kinds: list[Kind] = ["image"] if model.uses_image and not sees_frames(cfg, model) else []
    return [*kinds, "text"] if model.uses_text else kinds


def sees_frames(cfg: DataConfig, model: ModelConfig) -> bool:
    """Whether CLIP runs on the frames, so that no image features are read."""
    return model.uses_image and bool(model.vision) and cfg.image_features in ("frames", "projected")


def read_image(path: Path) -> Image.Image:
    """A picture as RGB, whatever it was stored as. Raises: SampleError for what is no picture."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise SampleError(path, f"no readable picture ({error})") from None


def squeeze(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 3) of this height and width: Lanczos, and the frame's shape is given up, as in the reference."""
    height, width = size
    return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.LANCZOS)))


def to_input(frames: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return (2 * frames.float() / 255 - 1).movedim(-1, -3)


def read_features(path: Path, kind: Kind) -> Tensor:
    """Features of one frame in the type they are stored in: image (N, F); text (77, F), cut or followed by zeros.

    A text file of three dimensions holds layers, the last of which is taken; one of one dimension is a description of
    a single token. Raises: SampleError for a file that is missing, damaged or of another shape.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise SampleError(path, "no such file; unpack the released features, or compute them (extract)") from None
    except (OSError, ValueError, EOFError) as error:
        raise SampleError(path, f"no readable array ({error})") from None
    if kind == "text":
        values = values[:, -1, :] if values.ndim == 3 else values[None] if values.ndim == 1 else values
    if values.ndim != 2 or values.dtype.kind != "f" or not values.size:
        raise SampleError(path, f"holds {values.dtype} {values.shape}; expected floats (tokens, width)")
    found = torch.from_numpy(np.ascontiguousarray(values))
    return fixed_rows(found) if kind == "text" else found


def fixed_rows(features: Tensor) -> Tensor:
    """Text features (T, F) as (77, F), cut or followed by zeros."""
    return torch.nn.functional.pad(features[:TEXT_ROWS], (0, 0, 0, max(TEXT_ROWS - len(features), 0)))


def swap_sides(text: str) -> str:
    """The text as it is true of a mirrored frame: left becomes right and right left."""
    sides = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
    return re.sub(r"\b(left|right|Left|Right|LEFT|RIGHT)(?=\b|most\b|hand)", lambda match: sides[match[1]], text)


def mirror_grid(features: Tensor) -> Tensor:
    """Image features (N, F) of a square grid of patches, each row of patches from right to left.

    Raises: ValueError when they are no square.
    """
    side = round(len(features) ** 0.5)
    if side * side != len(features):
        raise ValueError(f"{len(features)} image features are no square grid; data.flip_features cannot mirror them")
    return features.view(side, side, -1).flip(1).reshape(features.shape)


class Lookup(Protocol):
    """Cached tensors by key."""

    def __getitem__(self, key: str, /) -> Tensor: ...


def text_key(prompt: str) -> str:
    """Under which the states of a prompt are cached."""
    return hashlib.sha256(prompt.encode()).hexdigest()


class Pairs:
    """Frames before and of an action, with what the model is told.

    Samples: id, prompt; source and (with `targets`) target uint8 (H, W, 3), or from the cache of latents `moments`
    (12, h, w): the mode of the source, mean and log-variance of the target; `text` (77, D) from the cache of prompts;
    image_features (N, F) and text_features (77, F) where the model uses them; in place of the former `pixels`
    (3, side, side) when they are made on the fly, or from the cache of projected ones `image_tokens` (N, D).
    """

    def __init__(
        self,
        records: Sequence[Record],
        cfg: DataConfig,
        model: ModelConfig,
        *,
        train: bool = False,
        latents: Lookup | None = None,
        texts: Lookup | None = None,
        tokens: Lookup | None = None,
        targets: bool = True,
    ) -> None:
        self.records, self.cfg, self.model, self.train, self.targets = tuple(records), cfg, model, train, targets
        self.latents, self.texts, self.tokens = latents, texts, tokens

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """One pair; mirrored by chance in training, source and target together."""
        record, cfg = self.records[index], self.cfg
        flip = self.train and rng.random() < cfg.flip
        sample: dict[str, Any] = {"id": record.id, "prompt": self.prompt(record, flip)}
        if self.latents is not None:
            sample["moments"] = self.latents[record.id][int(flip)].float()
        else:
            pictures = self.frames(index)
            sample |= {name: picture.flip(1) if flip else picture for name, picture in pictures.items()}
        if self.texts is not None:
            sample["text"] = self.texts[text_key(sample["prompt"])].float()
        if self.model.uses_text:
            sample["text_features"] = read_features(feature_path(cfg.root, record, "text", cfg.vllm), "text")
        if not self.model.uses_image:
            return sample
        seen = self.seen(index) if self.tokens is None else {"image_tokens": self.tokens[record.id]}
        if flip and cfg.flip_features:
            seen = {name: value.flip(-1) if name == "pixels" else mirror_grid(value) for name, value in seen.items()}
        return sample | seen

    def frames(self, index: int) -> dict[str, Tensor]:
        """The frames of one pair, uint8 (H, W, 3), never mirrored."""
        record, root = self.records[index], self.cfg.root
        paths = {"source": source_path(root, record)}
        paths |= {"target": target_path(root, record)} if self.targets else {}
        return {name: squeeze(read_image(path), self.cfg.size) for name, path in paths.items()}

    def seen(self, index: int) -> dict[str, Tensor]:
        """What the language model sees of one pair, not mirrored: `image_features` (N, F), or `pixels` for CLIP."""
        record, cfg = self.records[index], self.cfg
        if sees_frames(cfg, self.model):
            return {"pixels": clip_pixels(read_image(source_path(cfg.root, record)), cfg.vision_side)}
        return {"image_features": read_features(feature_path(cfg.root, record, "image", cfg.vllm), "image")}

    def prompt(self, record: Record, flip: bool = False) -> str:
        """The configured text of a record, with its sides swapped in a mirrored pair when that is wanted."""
        text = record.prompt(self.cfg.prompt)
        return swap_sides(text) if flip and self.cfg.flip_words else text

    def prompts(self) -> list[str]:
        """Every prompt that training may ask for, once, the empty one among them."""
        flips = (False, True) if self.train and self.cfg.flip and self.cfg.flip_words else (False,)
        texts = {self.prompt(record, flip): None for record in self.records for flip in flips}
        return list({"": None} | texts)
