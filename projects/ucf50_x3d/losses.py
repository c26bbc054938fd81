"""Cross-entropy on position-averaged logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from projects.ucf50_x3d.config import LossConfig


def criterion(logits: Tensor, batch: Mapping[str, Any], cfg: LossConfig) -> dict[str, Tensor]:
    """The loss terms of a batch, `total` among them.

    Shapes: logits (B, K); batch["label"] int64 (B,), or float (B, K) where clips were mixed.
    """
    total = F.cross_entropy(logits.float(), batch["label"], label_smoothing=cfg.label_smoothing)
    return {"total": total}
