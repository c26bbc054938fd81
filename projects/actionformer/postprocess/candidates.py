"""From what the network says at every point to scored candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from projects.actionformer.config import PostprocessConfig
from projects.actionformer.postprocess.overlap import Floats, Ints


class Candidates(NamedTuple):
    """Candidates of one video on its grid: segments (N,2), scores (N,), labels (N,), and their points (N,)."""

    segments: Floats
    scores: Floats
    labels: Ints
    points: Ints


def probabilities(logits: Tensor, mask: Tensor, temperature: float = 1.0) -> Floats:
    """Scores (N,K) of logits (N,K); 0 where the mask (N,) is False."""
    scores: Floats = ((logits.float() / temperature).sigmoid() * mask[:, None]).numpy()
    return scores


def select(
    scores: Floats, offsets: Floats, points: Floats, levels: Sequence[int], cfg: PostprocessConfig
) -> Candidates:
    """The best candidates of every level, finest level first, each by falling score.

    Scores (N,K), offsets (N,2) to start and end in strides, points (N,4) as the model gives them, `levels` the number
    of points of each level. Equal scores rank by point, then class.
    """
    classes = scores.shape[1]
    chosen, first = [], 0
    for count in levels:
        chosen.append(first * classes + best(scores[first : first + count].ravel(), cfg.score_threshold, cfg.topk))
        first += count
    flat = np.concatenate(chosen)
    point, label = np.divmod(flat, classes)
    time, stride = points[point, 0], points[point, 3]
    segments = np.stack([time - offsets[point, 0] * stride, time + offsets[point, 1] * stride], 1)
    found = Candidates(segments, scores.ravel()[flat], label, point)
    found = take(found, np.flatnonzero(segments[:, 1] - segments[:, 0] > np.float32(cfg.min_duration)))
    if cfg.total_topk is not None and len(found.scores) > cfg.total_topk:
        found = take(found, np.argsort(-found.scores, kind="stable")[: cfg.total_topk])
    return found


def take(found: Candidates, index: Ints) -> Candidates:
    """Some of the candidates, in the order of `index`."""
    return Candidates(found.segments[index], found.scores[index], found.labels[index], found.points[index])


def best(scores: Floats, threshold: float, count: int) -> Ints:
    """Where the `count` highest of the scores (N,) above the threshold are, best first; equal ones by place."""
    index = np.flatnonzero(scores > np.float32(threshold))
    values = scores[index]
    if len(index) > count:
        last = np.partition(values, len(values) - count)[len(values) - count]
        above, equal = np.flatnonzero(values > last), np.flatnonzero(values == last)
        kept = np.sort(np.concatenate([above, equal[: count - len(above)]]))
        index, values = index[kept], values[kept]
    return index[np.argsort(-values, kind="stable")]
