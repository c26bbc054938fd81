"""Losses as they are watched: moving averages of the last steps, overlaps reached, positive points by level."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from projects.actionformer.losses import iou


class LossLogger:
    """Averages of the last `window_size` values of each loss.

    Values may be tensors on a GPU: they are only read when an average is asked for.
    """

    def __init__(self, window_size: int = 100) -> None:
        if window_size < 1:
            raise ValueError(f"a moving average is over at least one value; got window_size={window_size}")
        self.step_count = 0
        self._values: defaultdict[str, deque[float | Tensor]] = defaultdict(lambda: deque(maxlen=window_size))

    def update(self, losses: Mapping[str, float | Tensor], extra: Mapping[str, float | Tensor] | None = None) -> None:
        """Add the losses of a step, and whatever else was measured in it."""
        for name, value in {**losses, **(extra or {})}.items():
            self._values[name].append(value.detach() if isinstance(value, Tensor) else value)
        self.step_count += 1

    def averages(self) -> dict[str, float]:
        """The mean of each loss over its last values."""
        return {name: _mean(values) for name, values in self._values.items()}

    def tensorboard(self, prefix: str = "train") -> dict[str, float]:
        """`averages` by the names of their curves."""
        return {f"{prefix}/{name}": value for name, value in self.averages().items()}


def compute_iou_stats(offsets: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean, smallest and largest IoU of predicted and true distances (M,2); zeros where there are none."""
    if not len(offsets):
        return {"mean_iou": 0.0, "min_iou": 0.0, "max_iou": 0.0}
    found = iou(offsets, targets)
    return {"mean_iou": found.mean().item(), "min_iou": found.min().item(), "max_iou": found.max().item()}


def compute_loss_breakdown(classes: Sequence[Tensor] | Tensor, masks: Sequence[Tensor]) -> dict[str, int]:
    """How many points of each level are real, and how many of those belong to an action.

    classes: for each video (N,K) targets of all levels; masks: for each level (B,T_l), or (B,1,T_l), bool.
    """
    flat = [mask.reshape(len(mask), -1) for mask in masks]
    positive = (torch.stack(list(classes)).sum(-1) > 0).split([mask.shape[1] for mask in flat], dim=1)
    counts = {}
    for level, (mask, found) in enumerate(zip(flat, positive, strict=True)):
        counts[f"level_{level}_pos"] = int((found & mask).sum())
        counts[f"level_{level}_total"] = int(mask.sum())
    return counts


def _mean(values: Sequence[float | Tensor]) -> float:
    tensors = [value for value in values if isinstance(value, Tensor)]
    total = torch.stack([value.double() for value in tensors]).sum().item() if tensors else 0.0
    return (total + sum(value for value in values if not isinstance(value, Tensor))) / len(values)
