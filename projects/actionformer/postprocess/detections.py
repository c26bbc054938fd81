"""What is found in a video, and how it gets from the grid of features to seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projects.actionformer.config import PostprocessConfig
from projects.actionformer.geometry import Geometry
from projects.actionformer.postprocess.overlap import Floats, Ints


class Detections(NamedTuple):
    """What happens in one video, as single precision numbers in seconds (or features, see `postprocess.units`)."""

    segments_s: Floats
    """(M,2): starts and ends; of a point both are the same"""
    scores: Floats
    """(M,)"""
    labels: Ints
    """(M,)"""
    spread_s: Floats | None = None
    """(M,2): how unsure a boundary distribution is of each end, as standard deviation"""

    def take(self, rows: NDArray[Any]) -> Detections:
        """Some of them: numbers in the order wanted, or True for those that stay."""
        spread = None if self.spread_s is None else self.spread_s[rows]
        return Detections(self.segments_s[rows], self.scores[rows], self.labels[rows], spread)


class Outputs(Protocol):
    """What `decode` reads of a model's answer: B videos, N points of all levels with the finest first, K classes."""

    @property
    def logits(self) -> Tensor:
        """(B,N,K)"""

    @property
    def offsets(self) -> Tensor:
        """(B,N,2) distances to start and end in strides; (B,N,0) of a model of points"""

    @property
    def mask(self) -> Tensor:
        """(B,N) bool"""

    @property
    def points(self) -> Tensor:
        """(N,4): position on the grid, range of distances (2), stride"""

    @property
    def levels(self) -> Sequence[int]:
        """Points of each level."""

    @property
    def distribution(self) -> Tensor | None:
        """(B,N,2,bins) logits of distances, of a model that has them"""


def placed(found: Detections, geometry: Geometry, duration_s: float, cfg: PostprocessConfig) -> Detections:
    """Detections on the grid of a video in seconds, within its duration."""
    if cfg.units == "features":
        return found
    spread = found.spread_s
    if spread is not None:
        spread = spread * np.float32(geometry.stride_frames / geometry.fps)
    return found._replace(
        segments_s=geometry.seconds(found.segments_s).clip(0, np.float32(duration_s)), spread_s=spread
    )


def placed_all(found: Sequence[Detections], batch: Mapping[str, Any], cfg: PostprocessConfig) -> list[Detections]:
    """Detections of every video of a batch, which has a number for each under the names of the geometry."""
    numbers = (batch[key] for key in ("fps", "stride_frames", "window_frames", "duration_s"))
    return [
        placed(one, Geometry(float(fps), float(stride), float(window)), float(duration_s), cfg)
        for one, fps, stride, window, duration_s in zip(found, *numbers, strict=True)
    ]


def spread_of(distribution: Tensor, offsets: Tensor, strides: Floats) -> Floats:
    """Standard deviations (M,2) on the grid of distances with logits (M,2,bins), of which `offsets` are the means.

    The model scales the expectation of each level; the same scale, offsets over expectation, holds for the deviation.
    """
    share = distribution.float().softmax(-1).cpu()
    bins = torch.arange(share.shape[-1], dtype=torch.float32)
    mean = (share * bins).sum(-1)
    deviation = ((share * bins.square()).sum(-1) - mean.square()).clamp(min=0).sqrt()
    scale = offsets / mean.clamp(min=1e-6)
    return (deviation * scale * torch.from_numpy(strides)[:, None]).numpy()
