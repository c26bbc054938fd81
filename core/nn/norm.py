"""Batch normalization with trustworthy statistics on channels-last video."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BatchNorm(nn.BatchNorm3d):
    """`nn.BatchNorm3d`, with statistics that stay exact when a CPU takes them over a million positions.

    PyTorch's CPU kernel for channels-last input adds positions one after the other in single precision; which
    moves the logits of a whole network by 1e-3. Here they are sums of sums, and the variance takes a second pass.
    Shapes: (B, C, T, H, W) -> the same.
    """

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        count = video.numel() // self.num_features
        exact = video.device.type == "cpu" and video.dtype in (torch.float32, torch.float64)
        if not self.training or not exact or count < 2:
            return super().forward(video)
        normalized: Tensor
        normalized, mean, variance = _Normalize.apply(video, self.weight, self.bias, self.eps)
        mean_so_far, variance_so_far, steps = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean_so_far is not None
        assert variance_so_far is not None
        assert steps is not None
        assert self.momentum is not None
        with torch.no_grad():
            steps.add_(1)
            mean_so_far.lerp_(mean, self.momentum)
            variance_so_far.lerp_(variance * (count / (count - 1)), self.momentum)
        return normalized


class _Normalize(torch.autograd.Function):
    """(video, weight, bias, eps) -> normalized video, mean (C,), variance (C,), by the usual equations.

    Everything works on rows (positions, C), which are a view of channels-last video, and on a few megabytes of them at
    a time where something would be computed only to be summed up.
    """

    @staticmethod
    def forward(ctx: Any, video: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(video)
        mean = rows.mean(0)
        variance = torch.zeros_like(mean)
        for part in _parts(rows):
            variance += (part - mean).square_().sum(0)
        variance /= len(rows)
        ctx.save_for_backward(video, weight, mean, torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(video, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        video, weight, mean, inverse_std = ctx.saved_tensors
        rows, grad_rows, count = _rows(video), _rows(grad), video.numel() // len(mean)
        grad_bias = grad_rows.sum(0)
        grad_weight = torch.zeros_like(mean)
        for part, grad_part in zip(_parts(rows), _parts(grad_rows), strict=True):
            grad_weight += (part - mean).mul_(grad_part).sum(0)
        grad_weight *= inverse_std
        # weight / std * (grad - mean of grad - normalized * mean of (grad * normalized)), as a * grad + b * video + c
        a = weight * inverse_std
        b = -a * grad_weight * inverse_std / count
        c = -a * grad_bias / count - b * mean
        grad_video = torch.addcmul(c, b, rows).addcmul_(a, grad_rows)
        return _video(grad_video, video.shape), grad_weight, grad_bias, None


def _rows(video: Tensor) -> Tensor:
    return video.movedim(1, -1).reshape(-1, video.shape[1])


def _video(rows: Tensor, shape: torch.Size) -> Tensor:
    batch, channels, *grid = shape
    return rows.view(batch, *grid, channels).movedim(-1, 1)


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, max(1, 2**20 // rows.shape[1]))
