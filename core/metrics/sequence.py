"""Edit distances between sequences of symbols: whole, at every length, and the area under that curve.

One table of dynamic programming per pair of sequences holds the distances of all their prefixes, and one pass over its
rows works on all pairs at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def edit_distance(first: ArrayLike, second: ArrayLike, *, transpositions: bool = False) -> Counts:
    """How many insertions, deletions and substitutions of one symbol turn one sequence into the other.

    With `transpositions`, swapping two neighbours also costs one, and a swapped pair is not edited again (restricted
    Damerau-Levenshtein, which is symmetric but, unlike the plain distance, breaks the triangle inequality).

    Shapes: integers (..., L) and (..., M), leading dimensions broadcast -> (...).
    """
    a, b, shape = _pairs(first, second)
    table = np.empty(0)
    for table in _rows(a, b, transpositions):  # noqa: B007 - the last row is what counts
        pass
    return np.asarray(table[-1].reshape(shape), dtype=np.int64)


def prefix_distances(first: ArrayLike, second: ArrayLike, *, transpositions: bool = False) -> Counts:
    """`edit_distance` of the first z symbols of both sequences, for z = 1..Z.

    Shapes: integers (..., Z) twice, leading dimensions broadcast -> (..., Z).

    Raises: ValueError when the sequences are not equally long.
    """
    a, b, shape = _pairs(first, second)
    if len(a) != len(b):
        raise ValueError(f"prefixes are compared of sequences of one length; got {len(a)} and {len(b)} symbols")
    rows = _rows(a, b, transpositions)
    next(rows)  # of the empty prefix
    diagonal = [row[z].astype(np.int64) for z, row in enumerate(rows, 1)]
    return np.stack(diagonal, -1).reshape(*shape, len(a)) if diagonal else np.empty((*shape, 0), np.int64)


def edit_distance_at(predictions: ArrayLike, targets: ArrayLike, *, transpositions: bool = False) -> Floats:
    """ED@z of every sample for z = 1..Z: the smallest prefix distance of its K predicted sequences, divided by z.

    The mean over samples at z = Z is what Ego4D's long-term anticipation benchmark ranks by (smaller is better); its
    official code computes the plain distance, its paper calls it Damerau-Levenshtein (`transpositions`).

    Shapes: integers (N, K, Z) and (N, Z) -> (N, Z).

    Raises: ValueError for other shapes or K = 0.
    """
    predicted, wanted = _integers(predictions), _integers(targets)
    if predicted.ndim != 3 or wanted.shape != (len(predicted), predicted.shape[-1]) or not predicted.shape[1]:
        raise ValueError(
            f"expected predictions (N, K, Z) with K > 0 and targets (N, Z); got {predicted.shape} and {wanted.shape}"
        )
    best = prefix_distances(predicted, wanted[:, None], transpositions=transpositions).min(1)
    return np.asarray(best / np.arange(1, best.shape[-1] + 1))


def aued(curve: ArrayLike) -> Floats:
    """Area under a curve of ED@1..Z by the trapezoid rule, divided by Z - 1; for Z = 1 the single value.

    Shapes: (..., Z) -> (...).
    """
    values = np.asarray(curve, dtype=np.float64)
    if values.shape[-1] == 1:
        return np.asarray(values[..., 0])
    return np.asarray((values[..., :-1] + values[..., 1:]).sum(-1) / 2 / (values.shape[-1] - 1))


def _pairs(first: ArrayLike, second: ArrayLike) -> tuple[Any, Any, tuple[int, ...]]:
    """Both as (length, pairs) with equal numbers of pairs, and the shape of those."""
    a, b = _integers(first), _integers(second)
    if not a.ndim or not b.ndim:
        raise ValueError(f"expected sequences (..., length); got shapes {a.shape} and {b.shape}")
    try:
        shape = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    except ValueError:
        raise ValueError(f"{a.shape[:-1]} and {b.shape[:-1]} sequences cannot be paired") from None
    count = int(np.prod(shape))
    columns = (np.broadcast_to(x, (*shape, x.shape[-1])).reshape(count, x.shape[-1]) for x in (a, b))
    a, b = (np.ascontiguousarray(x.T) for x in columns)
    return a, b, shape


def _integers(values: ArrayLike) -> Any:
    array = np.asarray(values)
    if array.dtype.kind not in "iub" and array.size:
        raise ValueError(f"symbols are integers; got {array.dtype}")
    if array.size and np.abs(array).max() < 2**31:
        return array.astype(np.int32, copy=False)  # half the memory to compare
    return array.astype(np.int64, copy=False)


def _rows(a: Any, b: Any, transpositions: bool) -> Iterator[Any]:
    """Rows of the table, (M + 1, pairs) each: entry j of row i is the distance of a[:i] and b[:j]."""
    longest = max(len(a), len(b))
    dtype = np.int8 if longest < 2**7 - 1 else np.int16 if longest < 2**15 - 1 else np.int64
    row = np.repeat(np.arange(len(b) + 1, dtype=dtype)[:, None], b.shape[1], axis=1)
    before = row
    yield row
    for i in range(len(a)):
        following = np.empty_like(row)
        following[0] = i + 1
        np.minimum(row[1:] + 1, row[:-1] + (b != a[i]), out=following[1:])  # delete, substitute
        if transpositions and i:
            swapped = (b[1:] == a[i - 1]) & (b[:-1] == a[i])
            np.minimum(following[2:], before[:-2] + 1, out=following[2:], where=swapped)
        for j in range(1, len(following)):  # insert
            np.minimum(following[j], following[j - 1] + 1, out=following[j])
        before, row = row, following
        yield row
