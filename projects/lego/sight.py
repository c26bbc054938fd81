"""Image features without files: they are CLIP's patches after one linear map, and need no language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.data import Batch
from core.run import Run
from projects.lego.config import Config
from projects.lego.model import Conditioner
from projects.lego.model.vlm_files import open_vision


class Sight:
    """Makes the image features of a batch, from its frames as CLIP sees them or from stored patches.

    With a frozen conditioning and a linear projector both maps become one (`Conditioner.fold`), and patches are passed
    on as they are.
    """

    def __init__(self, cfg: Config, conditioner: Conditioner, job: Run) -> None:
        vision, projector = open_vision(cfg.model.vision, vision=cfg.model.clip)
        self.vision = vision.to(job.device).requires_grad_(False).eval()
        self.projector = projector.to(job.device).requires_grad_(False).eval()
        self.folds = isinstance(projector, nn.Linear) and not cfg.model.train_conditioner
        if isinstance(projector, nn.Linear) and self.folds:
            conditioner.fold(projector)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """(B, N, F) from `pixels` (B, 3, side, side), or from `image_features`, which are patches (B, N, W)."""
        dtype = next(self.vision.parameters()).dtype
        patches: Tensor = self.vision(batch["pixels"].to(dtype)) if "pixels" in batch else batch["image_features"]
        if self.folds:
            return patches
        weights = next(self.projector.parameters())
        features: Tensor = self.projector(patches.to(weights.dtype))
        return features


def open_sight(cfg: Config, conditioner: Conditioner, job: Run) -> Sight | None:
    """What a configuration needs: None where image features come from files, or are not used."""
    if not cfg.model.uses_image or not cfg.model.vision or cfg.data.image_features == "files":
        return None
    return Sight(cfg, conditioner, job)
