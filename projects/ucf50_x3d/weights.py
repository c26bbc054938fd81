"""From a configuration to a network with weights in it: to start training from, or to answer with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoint import LoadReport, fetch
from core.run import Run
from projects.ucf50_x3d import convert
from projects.ucf50_x3d.annotations import read_classes
from projects.ucf50_x3d.config import Config, ModelConfig
from projects.ucf50_x3d.model import build


def initialize(net: nn.Module, cfg: ModelConfig) -> LoadReport:
    """Fill a new network from `model.init`: all of it, or all but the last layer where the classes are others.

    Raises: ValueError when the file is missing, damaged or of another network.
    """
    raise NotImplementedError


def example(cfg: Config, device: torch.device) -> Tensor:
    """One clip of the configured size, (1, 3, T, H, W)."""
    return torch.zeros(1, 3, cfg.clip.frames, cfg.clip.crop, cfg.clip.crop, device=device)


def metadata(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """What a file of weights says about itself, so that it answers without the dataset it came from."""
    return {"model": cfg.model.name, "classes": list(classes), "clip": cfg.clip.model_dump(mode="json")}
