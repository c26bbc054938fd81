"""What each point of the pyramid should say: from annotated segments to targets, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Targets(NamedTuple):
    """What N points should say about B videos."""

    classes: Tensor
    """(B,N,K) float: 1 for the classes of the action a point belongs to; all zero where it belongs to none."""
    offsets: Tensor
    """(B,N,2): distances to its start and end in strides; only meaningful where it belongs to one."""


def assign(
    points: Tensor,
    segments: Sequence[Tensor],
    labels: Sequence[Tensor],
    classes: int,
    *,
    center: str = "radius",
    radius: float = 1.5,
) -> Targets:
    """Give each point the shortest action that it may regress (section 3.3 of the paper; official label_points).

    A point may regress an action when it lies in it, with `center` "radius" no more than `radius` strides from its
    center, and when the larger of its two distances lies in the range of its level, both ends included. Actions as
    long as the shortest, to a thousandth of a feature, give their classes too: one segment may have several labels.

    points (N,4) as in `Outputs`; for each video segments (M,2) in features and labels (M,) int64. A video may have no
    action.
    """
    time, low, high, stride = (points[:, column, None] for column in range(4))
    device = points.device
    spans = pad_sequence([s.to(device).reshape(-1, 2) for s in segments], batch_first=True)  # (B,M,2)
    kinds = pad_sequence([each.to(device) for each in labels], batch_first=True)
    counts = torch.tensor([len(each) for each in labels], device=device)
    if spans.shape[1] == 0:
        shape = (len(spans), len(points))
        return Targets(points.new_zeros(*shape, classes), points.new_zeros(*shape, 2))
    start, end = spans[:, None, :, 0], spans[:, None, :, 1]  # (B,1,M)
    distances = torch.stack([time - start, end - time], dim=-1)  # (B,N,M,2)
    if center == "radius":
        middle = 0.5 * (start + end)
        first, last = torch.maximum(middle - stride * radius, start), torch.minimum(middle + stride * radius, end)
        inside = torch.minimum(time - first, last - time) > 0
    else:
        inside = distances.amin(-1) > 0
    farthest = distances.amax(-1)
    real = torch.arange(spans.shape[1], device=device) < counts[:, None]
    candidate = inside & (farthest >= low) & (farthest <= high) & real[:, None]
    length = (end - start).expand_as(farthest).masked_fill(~candidate, torch.inf)
    shortest, index = length.min(-1)
    belongs = candidate & (length <= shortest.unsqueeze(-1) + 1e-3)
    one_hot = F.one_hot(kinds, classes).to(points.dtype)
    offsets = distances.gather(2, index[..., None, None].expand(-1, -1, 1, 2)).squeeze(2) / stride
    return Targets((belongs.to(points.dtype) @ one_hot).clamp_(max=1.0), offsets)


def heatmap(points: Tensor, segments: Sequence[Tensor]) -> Tensor:
    """(B,N): a Gaussian peak at the middle of each event on every level (the fork's SnapFormer).

    Its sigma is a sixth of the duration and at least one step of the level, it ends at three sigma, and the nearest
    step (halves to even) is exactly 1. points (N,4); for each video segments (M,2) in features, perhaps of no duration.
    """
    stride = points[:, 3, None]
    step = points[:, 0, None] / stride
    spans = pad_sequence([s.to(points.device).reshape(-1, 2) for s in segments], batch_first=True)
    counts = torch.tensor([len(each) for each in segments], device=points.device)
    if spans.shape[1] == 0:
        return points.new_zeros(len(spans), len(points))
    start, end = spans[:, None, :, 0], spans[:, None, :, 1]
    middle = (start + end) / 2 / stride  # (B,N,M)
    sigma = ((end - start) / stride / 6).clamp(min=1)
    near = (step >= (middle - 3 * sigma).clamp(min=0).trunc()) & (step < (middle + 3 * sigma + 1).trunc())
    heat = torch.exp(-((step - middle) ** 2) / (2 * sigma**2)) * near
    heat = torch.where(step == middle.round(), 1.0, heat)
    real = torch.arange(spans.shape[1], device=points.device) < counts[:, None]
    return (heat * real[:, None]).amax(-1)
