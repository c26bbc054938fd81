"""How much segments overlap, in the single precision and the order of operations of the official code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

EPSILON = np.float32(1e-6)  # the official operator adds it to every length


def lengths(segments: Floats) -> Floats:
    """Lengths (N,) of segments (N,2) as the suppression counts them."""
    sizes: Floats = segments[:, 1] - segments[:, 0] + EPSILON
    return sizes


def iou(a: Floats, b: Floats) -> Floats:
    """Overlap (N,M) of all pairs of (N,2) and (M,2); 0 for pairs that touch nowhere."""
    common = np.minimum(a[:, None, 1], b[:, 1]) - np.maximum(a[:, None, 0], b[:, 0])
    np.maximum(common, 0, out=common)
    union = lengths(a)[:, None] + lengths(b) - common
    overlap: Floats = np.divide(common, union, out=np.zeros_like(common), where=common > 0)
    return overlap


def diou(a: Floats, b: Floats) -> Floats:
    """Overlap minus the squared distance of the centers over the enclosing length; (N,M), from -1 to 1."""
    enclosing = np.maximum(a[:, None, 1], b[:, 1]) - np.minimum(a[:, None, 0], b[:, 0])
    distance = ((a[:, 0] + a[:, 1]) / 2)[:, None] - (b[:, 0] + b[:, 1]) / 2
    penalty = np.square(distance) / np.maximum(np.square(enclosing), EPSILON)
    closeness: Floats = iou(a, b) - penalty
    return closeness
