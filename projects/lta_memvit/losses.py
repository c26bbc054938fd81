"""Cross-entropy of verbs and nouns, of one action or summed over all future ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.lta_memvit.config import LossConfig
from projects.lta_memvit.model import Outputs


def criterion(outputs: Outputs, batch: Mapping[str, Any], cfg: LossConfig) -> dict[str, Tensor]:
    """The loss terms of a batch: `verb`, `noun` and their sum, `total`; means over samples, sums over positions.

    Shapes: logits (B, C) with labels int64 (B,), or logits (B, Z, C) with labels (B, Z).
    """
    terms = {name: _cross_entropy(scores, batch[name], cfg) for name, scores in outputs._asdict().items()}
    return {"total": terms["verb"] + terms["noun"], **terms}


def _cross_entropy(scores: Tensor, labels: Tensor, cfg: LossConfig) -> Tensor:
    each = F.cross_entropy(
        scores.flatten(0, -2).float(), labels.flatten(), label_smoothing=cfg.label_smoothing, reduction="none"
    )
    return each.sum() / len(scores)


@torch.no_grad()
def errors(outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Percent of samples whose label is not among the one and the five best, on the device.

    `verb_error` and `verb_top5_error` are means over positions; a forecaster has `verb_error_at_1` and so on too, by
    the position counted from 1. The same for nouns.
    """
    found: dict[str, Tensor] = {}
    for name, scores in outputs._asdict().items():
        best = scores.detach().topk(min(5, scores.shape[-1])).indices
        hits = best == batch[name].unsqueeze(-1)  # (B, 5) or (B, Z, 5)
        for label, misses in (("error", ~hits[..., 0]), ("top5_error", ~hits.any(-1))):
            percent = 100 * misses.float().mean(0)
            found[f"{name}_{label}"] = percent.mean()
            if percent.ndim:
                found |= {f"{name}_{label}_at_{z}": value for z, value in enumerate(percent, 1)}
    return found
