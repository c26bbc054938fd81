"""Detections beside golden ones, as sets: ranks and cut-off of nearly equal scores differ between machines."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support import Parity

NEAR = 2e-5  # scores this close to the lowest one may be replaced by another at the cut-off


def compare(
    parity: Parity, name: str, found: tuple[Any, Any, Any], expected: tuple[Any, Any, Any], *, seconds: float = 1e-3
) -> None:
    """Segments (M,2), scores (M,), labels (M,): each expected detection has one of its label at its place and score."""
    segments, scores, labels = map(np.asarray, found)
    spans, values, names = map(np.asarray, expected)
    parity.check(f"{name}.count", len(scores), len(values))
    boundary, score, lost = 0.0, 0.0, 0
    lowest = values.min(initial=np.inf)
    for span, value, label in zip(spans, values, names, strict=True):
        own = np.flatnonzero(labels == label)
        away = np.abs(segments[own] - span).max(1) if len(own) else np.zeros(0)
        # Several detections of a class may lie at one place: the nearest in place and score is meant.
        both = away / seconds + np.abs(scores[own] - value) / NEAR
        best = int(both.argmin()) if len(own) else -1
        if best < 0 or both[best] > 2:
            lost += value > lowest + NEAR
            continue
        boundary, score = max(boundary, float(away[best])), max(score, float(abs(scores[own[best]] - value)))
    parity.check(f"{name}.lost", lost, 0)
    parity.check(f"{name}.segments", boundary, 0, atol=seconds)
    parity.check(f"{name}.scores", score, 0, atol=NEAR)
    parity.check(
        f"{name}.sum",
        np.sum(scores, dtype=np.float64),
        np.sum(values, dtype=np.float64),
        atol=1e-5 * max(len(values), 1),
    )
