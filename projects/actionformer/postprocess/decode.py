"""Detections of a batch of videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from projects.actionformer.config import PostprocessConfig
from projects.actionformer.postprocess import batched
from projects.actionformer.postprocess.candidates import Candidates, probabilities, select
from projects.actionformer.postprocess.detections import Detections, Outputs, placed_all, spread_of
from projects.actionformer.postprocess.overlap import Floats, Ints
from projects.actionformer.postprocess.suppression import suppress
from projects.actionformer.postprocess.voting import vote


@torch.inference_mode()
def decode(outputs: Outputs, batch: Mapping[str, Any], cfg: PostprocessConfig) -> list[Detections]:
    """The detections of every video of a batch, best first; those of a model of points in the order of time.

    The batch has a number for each video under fps, stride_frames, window_frames and duration_s. On a GPU candidates
    are suppressed there, all videos and classes together, where `on_gpu` asks for it and `batched.supports` it.
    """
    if outputs.logits.is_cuda and cfg.on_gpu and outputs.offsets.shape[-1] and batched.supports(cfg):
        return batched.decode(outputs, batch, cfg)
    answers = [value.cpu() for value in (outputs.logits, outputs.offsets.float(), outputs.mask)]
    points = outputs.points.float().cpu().numpy()
    found = []
    for i, (logits, offsets, mask) in enumerate(zip(*answers, strict=True)):
        scores = probabilities(logits, mask, cfg.temperature)
        if not offsets.shape[-1]:
            found.append(_peaks(scores[: outputs.levels[0]], points, cfg))
            continue
        candidates = select(scores, offsets.numpy(), points, outputs.levels, cfg)
        detections, source = reduce(candidates, cfg)
        if outputs.distribution is not None:
            origin = candidates.points[source]
            spread = spread_of(outputs.distribution[i, torch.from_numpy(origin)], offsets[origin], points[origin, 3])
            detections = detections._replace(spread_s=spread)
        found.append(detections)
    return placed_all(found, batch, cfg)


def reduce(candidates: Candidates, cfg: PostprocessConfig) -> tuple[Detections, Ints]:
    """Suppression and, without classes, voting: what is left, on the grid, and which candidates (M,) that was."""
    kept = suppress(candidates.segments, candidates.scores, candidates.labels, cfg)
    segments = candidates.segments[kept.numbers]
    if cfg.nms != "none" and not cfg.per_class and cfg.voting > 0:
        by_overlap = cfg.voting_weight == "score_iou"
        segments = vote(segments, candidates.segments, candidates.scores, cfg.voting, by_overlap=by_overlap)
    return Detections(segments, kept.scores, candidates.labels[kept.numbers]), kept.numbers


def _peaks(scores: Floats, points: Floats, cfg: PostprocessConfig) -> Detections:
    """Points of the finest level (N,K) that score more than both neighbors, outside counting as 0, and `min_score`."""
    around = np.pad(scores, ((1, 1), (0, 0)))
    high = (scores > around[:-2]) & (scores > around[2:]) & (scores > np.float32(cfg.min_score))
    at, label = high.nonzero()
    return Detections(np.repeat(points[at, :1], 2, 1), scores[at, label], label)
