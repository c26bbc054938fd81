"""What is minimized: focal classification and the family of 1-D IoU losses, their normalizer, and the terms of a batch.

Offsets are distances from a point to start and end, so two segments of one point always share the point: the union
needs no case for disjoint ones, and the generalized IoU is the IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from core import dist
from projects.actionformer.model.targets import assign, heatmap

if TYPE_CHECKING:
    from projects.actionformer.config import LossConfig
    from projects.actionformer.model import Outputs

EPS = 1e-8


# ------------------------------------------------------------------------------------------------------- classification


def focal(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of each element (Lin et al., 2017); targets in [0, 1], a negative alpha weighs none."""
    logits, targets = logits.float(), targets.float()
    p = logits.sigmoid()
    hit = p * targets + (1 - p) * (1 - targets)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * (1 - hit) ** gamma
    return loss if alpha < 0 else (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def quality_focal(
    logits: Tensor, targets: Tensor, quality: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Quality focal loss of each element (Li et al., 2020): a positive is worth the IoU that its segment reaches.

    logits and targets (...,K), quality (...) in [0, 1].
    """
    logits, targets = logits.float(), targets.float()
    worth = targets * quality.float().unsqueeze(-1)
    loss = F.binary_cross_entropy_with_logits(logits, worth, reduction="none")
    loss = loss * (worth - logits.sigmoid()).abs() ** gamma
    return loss if alpha < 0 else (alpha * targets + (1 - alpha) * (1 - targets)) * loss


def heatmap_focal(logits: Tensor, targets: Tensor, *, alpha: float = 2.0, gamma: float = 4.0) -> Tensor:
    """CornerNet's focal loss of each element (Law and Deng, 2018): only a target of exactly 1 is positive."""
    logits, targets = logits.float(), targets.float()
    p = logits.sigmoid()
    positive = F.softplus(-logits) * (1 - p) ** alpha
    negative = F.softplus(logits) * p**alpha * (1 - targets) ** gamma
    return torch.where(targets == 1, positive, negative)


# ----------------------------------------------------------------------------------------------------------- boundaries


class _Overlap(NamedTuple):
    iou: Tensor
    enclosing: Tensor
    centers: Tensor  # distance of the centers
    lengths: Tensor  # difference of the lengths


def _overlap(offsets: Tensor, targets: Tensor) -> _Overlap:
    p, g = offsets.float(), targets.float()
    shared = torch.minimum(p, g).sum(-1)
    union = p.sum(-1) + g.sum(-1) - shared
    centers = 0.5 * ((p[..., 1] - p[..., 0]) - (g[..., 1] - g[..., 0]))
    return _Overlap(shared / union.clamp(min=EPS), torch.maximum(p, g).sum(-1), centers, p.sum(-1) - g.sum(-1))


def iou(offsets: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of the segments of each point; (...,2) distances, not negative, to (...)."""
    return _overlap(offsets, targets).iou


def iou_loss(offsets: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU of each point; the generalized IoU loss too, which is the same here."""
    return 1 - iou(offsets, targets)


def diou_loss(offsets: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU + the squared distance of the centers, relative to the enclosing segment (Zheng et al., 2020)."""
    both = _overlap(offsets, targets)
    return 1 - both.iou + (both.centers / both.enclosing.clamp(min=EPS)) ** 2


def eiou_loss(offsets: Tensor, targets: Tensor) -> Tensor:
    """DIoU + the squared difference of the lengths, relative to the enclosing segment (Zhang et al., 2022)."""
    both = _overlap(offsets, targets)
    return diou_loss(offsets, targets) + both.lengths**2 / (both.enclosing**2).clamp(min=EPS)


def focal_iou_loss(offsets: Tensor, targets: Tensor, *, gamma: float = 1.0) -> Tensor:
    """(1 - IoU)^(1 + gamma): points that are nearly right count less (the fork's focal regression)."""
    return iou_loss(offsets, targets) ** (1 + gamma)


def iou_weighted(loss: Tensor, offsets: Tensor, targets: Tensor) -> Tensor:
    """A loss of each point times 2 - IoU, without gradient: points that are wrong count more (the fork's)."""
    return loss * (2 - iou(offsets, targets).detach())


REGRESSION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "diou": diou_loss,
    "eiou": eiou_loss,
    "giou": iou_loss,
    "iou": iou_loss,
    "focal": focal_iou_loss,
    "iou_weighted": lambda offsets, targets: iou_weighted(diou_loss(offsets, targets), offsets, targets),
}


def distribution_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to the two bins around a target, weighted by nearness (Li et al., 2020); (...,bins) and (...)."""
    last = logits.shape[-1] - 1
    value = targets.float().clamp(0, last - 0.01)
    low = value.floor()
    share = value - low
    chances = logits.float().log_softmax(-1)
    first, second = (chances.gather(-1, (low.long() + step).unsqueeze(-1)).squeeze(-1) for step in (0, 1))
    return -((1 - share) * first + share * second)


# --------------------------------------------------------------------------------------------------------- of one batch


class Criterion:
    """The loss terms of a batch, for one of the three networks.

    The normalizer is a moving average of the number of positive points, which steadies small batches; it belongs to
    the run and not to the weights: save it with `state_dict`. With `norm_shared` it counts the points of all processes,
    and each takes its share of it: R processes then learn what one with R times the batch would.

    Nothing here waits for the GPU.
    """

    def __init__(self, cfg: LossConfig, name: str, classes: int, device: torch.device | str = "cpu") -> None:
        self.cfg, self.classes = cfg, classes
        self.terms = {"actionformer": self._segments, "tbtformer": self._distributions, "snapformer": self._moments}[
            name
        ]
        self.norm = torch.tensor(cfg.init_norm, dtype=torch.float64, device=device)

    def __call__(self, outputs: Outputs, batch: Mapping[str, Any], *, learn: bool = True) -> dict[str, Tensor]:
        """`total` and its terms, and without gradient `positives` and `mean_iou`, all scalars on the device.

        batch["segments"] and batch["labels"] are lists of (M,2) in features and (M,) int64. With `learn` the
        normalizer moves.
        """
        return self.terms(outputs, batch, learn)

    def state_dict(self) -> dict[str, Tensor]:
        """The normalizer."""
        return {"norm": self.norm.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the normalizer of a saved run."""
        self.norm = state["norm"].to(self.norm)

    def _segments(self, outputs: Outputs, batch: Mapping[str, Any], learn: bool) -> dict[str, Tensor]:
        cfg = self.cfg
        classes, offsets, positive = self._targets(outputs, batch)
        quality = iou(*_where(positive, outputs.offsets.detach(), offsets)) * positive
        norm = self._normalizer(positive, learn)
        if cfg.classification == "qfl":
            by_class = quality_focal(outputs.logits, classes, quality)
        else:
            smooth = classes * (1 - cfg.label_smoothing) + cfg.label_smoothing / (self.classes + 1)
            by_class = focal(outputs.logits, smooth)
        classification = _total(by_class, outputs.mask) / norm
        regression = self._regression(outputs, offsets, positive) / norm
        if cfg.weight > 0:
            weight: float | Tensor = cfg.weight
        else:
            weight = classification.detach() / regression.detach().clamp(min=0.01)
        return {
            "total": classification + weight * regression, "cls_loss": classification, "reg_loss": regression,
            **_statistics(positive, quality),
        }  # fmt: skip

    def _distributions(self, outputs: Outputs, batch: Mapping[str, Any], learn: bool) -> dict[str, Tensor]:
        """As the fork's code and guide intend it (it raises an error), divided by the batch's own positives."""
        assert outputs.distribution is not None
        classes, offsets, positive = self._targets(outputs, batch)
        quality = iou(*_where(positive, outputs.offsets.detach(), offsets)) * positive
        count = self._share(positive.sum())
        classification = _total(focal(outputs.logits, classes), outputs.mask) / count
        regression = self._regression(outputs, offsets, positive) / count
        sides = distribution_focal(outputs.distribution, offsets)
        distribution = self.cfg.distribution_weight * _total(sides, positive) / count
        return {
            "total": classification + regression + distribution, "cls_loss": classification, "reg_loss": regression,
            "dfl_loss": distribution, **_statistics(positive, quality),
        }  # fmt: skip

    def _moments(self, outputs: Outputs, batch: Mapping[str, Any], learn: bool) -> dict[str, Tensor]:
        """Each level is divided by the number of its peaks in the batch, if it has any."""
        targets = heatmap(outputs.points, batch["segments"])
        peaks = (targets == 1) & outputs.mask
        sums = [part.sum() for part in peaks.split(list(outputs.levels), dim=1)]
        shares = [s.expand(n) for s, n in zip(self._share(torch.stack(sums)), outputs.levels, strict=True)]
        total = _total(heatmap_focal(outputs.logits[..., 0], targets) / torch.cat(shares), outputs.mask)
        return {"total": total, "heatmap_loss": total, "positives": peaks.sum()}

    def _targets(self, outputs: Outputs, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        cfg = self.cfg
        classes, offsets = assign(
            outputs.points, batch["segments"], batch["labels"], self.classes,
            center=cfg.center, radius=cfg.center_radius,
        )  # fmt: skip
        return classes, offsets, (classes.sum(-1) > 0) & outputs.mask

    def _regression(self, outputs: Outputs, offsets: Tensor, positive: Tensor) -> Tensor:
        """The sum over positive points."""
        loss = REGRESSION[self.cfg.regression](*_where(positive, outputs.offsets, offsets))
        return _total(loss, positive)

    def _normalizer(self, positive: Tensor, learn: bool) -> Tensor:
        """N = 0.9 N + 0.1 max(positives, 1), of this process or its share of all."""
        if learn:
            count = positive.sum()
            count = dist.total(count) if self.cfg.norm_shared else count
            keep = self.cfg.norm_momentum
            self.norm = keep * self.norm + (1 - keep) * count.clamp(min=1)
        return self.norm / dist.world().size if self.cfg.norm_shared else self.norm

    def _share(self, counts: Tensor) -> Tensor:
        """What to divide by for so many positives: at least 1; over all processes, or of this one."""
        if not self.cfg.norm_shared:
            return counts.clamp(min=1)
        return dist.total(counts).clamp(min=1) / dist.world().size


def _where(positive: Tensor, offsets: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets and targets of positive points, and harmless ones elsewhere, so that no gradient there is NaN."""
    keep = positive.unsqueeze(-1)
    return torch.where(keep, offsets.float(), 1.0), torch.where(keep, targets, 1.0)


def _total(loss: Tensor, keep: Tensor) -> Tensor:
    """The sum over kept points; loss (B,N), (B,N,K) or (B,N,2), keep (B,N)."""
    keep = keep if loss.ndim == keep.ndim else keep.unsqueeze(-1)
    return torch.where(keep, loss, 0.0).sum()


def _statistics(positive: Tensor, quality: Tensor) -> dict[str, Tensor]:
    count = positive.sum()
    return {"positives": count, "mean_iou": quality.sum() / count.clamp(min=1)}
