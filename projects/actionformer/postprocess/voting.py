"""Boundaries as a vote of the candidates around a detection."""

from __future__ import annotations

import numpy as np

from projects.actionformer.postprocess.overlap import Floats

ROWS = 64  # detections at a time, so that memory stays small


def vote(kept: Floats, segments: Floats, scores: Floats, threshold: float, *, by_overlap: bool = True) -> Floats:
    """Detections (M,2) moved to the mean of the candidates (N,2) that overlap them by `threshold` or more.

    Candidates of all classes vote with their scores (N,) before suppression, times the overlap if `by_overlap`. A
    detection that nothing overlaps stays where it is.
    """
    moved = kept.copy()
    starts, ends = np.ascontiguousarray(segments.T)
    sizes = ends - starts
    for first in range(0, len(kept), ROWS):
        own = kept[first : first + ROWS]
        row, column = ((starts < own[:, 1:]) & (ends > own[:, :1])).nonzero()
        shared = np.minimum(own[row, 1], ends[column]) - np.maximum(own[row, 0], starts[column])
        overlap = shared / ((own[:, 1] - own[:, 0])[row] + sizes[column] - shared)
        near = overlap >= np.float32(threshold)
        row, column, overlap = row[near], column[near], overlap[near]
        weight = scores[column] * overlap if by_overlap else scores[column]
        total, *sums = (np.bincount(row, weight * side, len(own)) for side in (1, starts[column], ends[column]))
        np.divide(np.stack(sums, 1), total[:, None], out=moved[first : first + ROWS], where=total[:, None] > 0,
                  casting="same_kind")  # fmt: skip
    return moved
