"""Candidates, suppression and voting on a GPU: all videos and classes of a batch together, with no wait in between.

Suppression within classes needs no loop over them: scores only fall, so the best candidate of a whole video is the next
pick of its class, and it decays that class alone. Among equal scores the first candidate is picked, where the operator
that `suppression` follows looks at its memory; apart from such ties the detections are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from projects.actionformer.config import PostprocessConfig
from projects.actionformer.postprocess.detections import Detections, Outputs, placed_all, spread_of

EPSILON = 1e-6
GONE = -1.0  # the score of a candidate that was picked or dropped


def supports(cfg: PostprocessConfig) -> bool:
    """Is this kind of suppression here? Picks in their initial order, and none at all, are left to the CPU."""
    return cfg.nms != "none" and not (cfg.nms == "soft" and cfg.diou and cfg.diou_order == "initial")


def decode(outputs: Outputs, batch: Mapping[str, Any], cfg: PostprocessConfig) -> list[Detections]:
    """As `postprocess.decode`; what comes to the CPU is no more than the detections."""
    segments, scores, labels, point = candidates(outputs, cfg)
    index, kept = suppress(segments, scores, labels, cfg)
    pairs = index[..., None].expand(-1, -1, 2)
    found = segments.gather(1, pairs)
    if not cfg.per_class and cfg.voting > 0:
        found = vote(found, segments, scores, cfg)
    point = point.gather(1, index)
    answer = [value.cpu() for value in (found, kept, labels.gather(1, index), point)]
    detections = []
    for i, (spans, values, names, origin) in enumerate(zip(*answer, strict=True)):
        there = values > 0
        one = Detections(spans[there].numpy(), values[there].numpy(), names[there].numpy())
        if outputs.distribution is not None:
            origin = origin[there]
            own = origin.to(outputs.logits.device)
            strides = outputs.points[own, 3].float().cpu().numpy()
            spread = spread_of(outputs.distribution[i, own], outputs.offsets[i, own].float().cpu(), strides)
            one = one._replace(spread_s=spread)
        detections.append(one)
    return placed_all(detections, batch, cfg)


def candidates(outputs: Outputs, cfg: PostprocessConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segments (B,M,2) on the grid, scores (B,M), labels (B,M) and points (B,M); `GONE` scores fill up the rows."""
    classes = outputs.logits.shape[-1]
    probability = (outputs.logits.float() / cfg.temperature).sigmoid() * outputs.mask[..., None]
    parts, first = [], 0
    for count in outputs.levels:
        level = probability[:, first : first + count].flatten(1)
        value, index = level.topk(min(cfg.topk, level.shape[1]))
        parts.append((value, index + first * classes))
        first += count
    scores, flat = (torch.cat(values, 1) for values in zip(*parts, strict=True))
    point, label = flat // classes, flat % classes
    time, stride = outputs.points[point, 0].float(), outputs.points[point, 3].float()
    offsets = outputs.offsets.float().gather(1, point[..., None].expand(-1, -1, 2))
    segments = torch.stack([time - offsets[..., 0] * stride, time + offsets[..., 1] * stride], -1)
    stays = (scores > cfg.score_threshold) & (segments[..., 1] - segments[..., 0] > cfg.min_duration)
    scores = torch.where(stays, scores, GONE)
    if cfg.total_topk is not None and scores.shape[1] > cfg.total_topk:
        scores, best = scores.topk(cfg.total_topk)
        point, label = point.gather(1, best), label.gather(1, best)
        segments = segments.gather(1, best[..., None].expand(-1, -1, 2))
    return segments, scores, label, point


def suppress(segments: Tensor, scores: Tensor, labels: Tensor, cfg: PostprocessConfig) -> tuple[Tensor, Tensor]:
    """Numbers (B,D) and scores (B,D) of the kept candidates of every row, best first; `GONE` where there are fewer.

    Segments (B,M,2), scores (B,M), labels (B,M); D is `max_detections`, or M if that is less.
    """
    starts, ends = segments[..., 0].contiguous(), segments[..., 1].contiguous()
    sizes, left = ends - starts + EPSILON, scores.clone()
    sigma = torch.full_like(scores, cfg.sigma)
    if cfg.per_class:
        for label, own in cfg.class_sigma.items():
            sigma = torch.where(labels == label, own, sigma)
    first = _first_of_class(scores, labels) if cfg.per_class else scores == scores.amax(1, keepdim=True)
    if cfg.nms == "hard":
        left = torch.where(left > cfg.min_score, left, GONE) if cfg.min_score > 0 else left
    indices: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(min(cfg.max_detections, scores.shape[1])):
        value, at = left.max(1, keepdim=True)
        indices.append(at)
        values.append(value)
        common = (torch.minimum(ends, ends.gather(1, at)) - torch.maximum(starts, starts.gather(1, at))).clamp(min=0)
        overlap = common / (sizes + sizes.gather(1, at) - common)
        same = labels == labels.gather(1, at) if cfg.per_class else torch.ones_like(first)
        if cfg.nms == "hard":
            left = torch.where(same & (overlap >= cfg.iou_threshold), GONE, left)
        else:
            if cfg.diou:
                overlap = (overlap - _distance(starts, ends, at)).clamp(min=0)
            decayed = left * torch.exp(-overlap.square() / sigma)
            first = first & ~same
            decayed = torch.where((decayed < cfg.min_score) & ~first, GONE, decayed)
            left = torch.where(same & (left > 0), decayed, left)
        left = left.scatter(1, at, GONE)
    return torch.cat(indices, 1), torch.cat(values, 1)


def vote(kept: Tensor, segments: Tensor, scores: Tensor, cfg: PostprocessConfig) -> Tensor:
    """As `postprocess.vote` for rows: kept (B,D,2), candidates (B,M,2) with scores (B,M)."""
    common = torch.minimum(kept[..., 1:], segments[:, None, :, 1]) - torch.maximum(
        kept[..., :1], segments[:, None, :, 0]
    )
    common = common.clamp(min=0)
    sizes = segments[..., 1] - segments[..., 0]
    union = (kept[..., 1] - kept[..., 0])[..., None] + sizes[:, None] - common
    overlap = torch.where(common > 0, common / union, 0.0)
    weight = torch.where((overlap >= cfg.voting) & (scores > 0)[:, None], scores[:, None], 0.0)
    if cfg.voting_weight == "score_iou":
        weight = weight * overlap
    total = weight.sum(2, keepdim=True)
    return torch.where(total > 0, weight @ segments / total, kept)


def _first_of_class(scores: Tensor, labels: Tensor) -> Tensor:
    """(B,M): True for the first among the best candidates of each class, which soft suppression never drops."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = labels.gather(1, order)
    again = ranked.argsort(dim=1, stable=True)
    grouped = ranked.gather(1, again)
    fresh = torch.ones_like(grouped, dtype=torch.bool)
    fresh[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    return torch.zeros_like(fresh).scatter(1, order.gather(1, again), fresh)


def _distance(starts: Tensor, ends: Tensor, at: Tensor) -> Tensor:
    """What DIoU takes off the overlap with the candidate `at` (B,1) of each row."""
    start, end = starts.gather(1, at), ends.gather(1, at)
    enclosing = torch.maximum(ends, end) - torch.minimum(starts, start)
    distance = (starts + ends) / 2 - (start + end) / 2
    return distance.square() / enclosing.square().clamp(min=EPSILON)
