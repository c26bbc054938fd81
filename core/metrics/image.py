"""How near generated pictures are to real ones: pair by pair, and as two sets of features."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Values: TypeAlias = "Tensor | npt.NDArray[Any]"
Floats: TypeAlias = "npt.NDArray[np.float64]"


def psnr(images: Tensor, targets: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each picture, in dB: 10 log10(data_range^2 / mse), infinite for equal pictures.

    images and targets (B,C,H,W) in [0, data_range]; returns float64 (B,). The figure that papers report is the mean
    over pictures, not the ratio of the mean error.

    Raises:
        ValueError: for unequal shapes.
    """
    if images.shape != targets.shape or images.ndim != 4:
        raise ValueError(f"psnr compares (B,C,H,W) with the same; got {tuple(images.shape)} and {tuple(targets.shape)}")
    error = (images.double() - targets.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def frechet_distance(features_a: Values, features_b: Values) -> float:
    """Distance between the normal distributions fitted to two sets of features, (N,D) and (M,D), N and M at least 2.

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) with unbiased covariances A and B, in float64 (Heusel et al.,
    2017). The trace of the root is taken from the eigenvalues of A^(1/2) B A^(1/2), which are those of A B and never
    negative, so that sets smaller than D need no correction.

    Raises:
        ValueError: for shapes that do not fit, fewer than two rows, or values that are not finite.
    """
    a, b = _matrix(features_a), _matrix(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sets need features of one width; got {a.shape} and {b.shape}")
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)
    apart = a.mean(0) - b.mean(0)
    return float(apart @ apart + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(shared).sum())


def _matrix(values: Values) -> Floats:
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise ValueError(f"a distribution is fitted to features (N,D) of at least two samples; got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("features hold values that are not finite")
    return array
