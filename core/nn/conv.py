"""Convolutions of video, each in the form that is fast on channels-last clips.

Every layer is an `nn.Conv3d` with the usual weight, so names and shapes in state-dicts are untouched; only the
arithmetic is arranged otherwise. On a CPU, PyTorch runs 1x1x1 and (k, 1, 1) convolutions without its fast kernels, and
the gradients of a depthwise 3x3x3 convolution take ten times as long as its forward pass (`python -m bench.x3d`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Stride = tuple[int, ...]
_plane_gradients = torch.ops.aten.convolution_backward.default


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution as one matrix product: (B, C, T, H, W) -> (B, outputs, T, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 1, (1, stride, stride), bias=bias)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        _, down, right = self.stride
        positions = video[..., ::down, ::right].movedim(1, -1)
        return F.linear(positions, self.weight.flatten(1), self.bias).movedim(-1, 1)


class Spatial(nn.Conv3d):
    """A (1, k, k) convolution, frame by frame: (B, C, T, H, W) -> (B, outputs, T, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1) -> None:
        padding = (0, size // 2, size // 2)
        super().__init__(inputs, outputs, (1, size, size), (1, stride, stride), padding, bias=False)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        frames, weight = video.transpose(1, 2), self.weight.squeeze(2)
        planes = F.conv2d(frames.flatten(0, 1), weight, self.bias, self.stride[1:], weight.shape[-1] // 2)
        return planes.view(*frames.shape[:2], *planes.shape[1:]).transpose(1, 2)


class Temporal(nn.Conv3d):
    """A (k, 1, 1) convolution as a (k, 1) one over the plane of frames and positions.

    Shapes: (B, C, T, H, W) -> (B, outputs, T/stride, H, W).
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> None:
        padding = (size // 2, 0, 0)
        super().__init__(inputs, outputs, (size, 1, 1), (stride, 1, 1), padding, groups=groups, bias=False)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        weight = self.weight.squeeze(-1)
        padding = (weight.shape[2] // 2, 0)
        planes = F.conv2d(video.flatten(3), weight, self.bias, self.stride[:2], padding, groups=self.groups)
        return planes.view(*planes.shape[:3], *video.shape[3:])


class Depthwise(nn.Conv3d):
    """A 3x3x3 convolution of every channel by itself: (B, C, T, H, W) -> (B, C, T, H/stride, W/stride)."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__(channels, channels, 3, (1, stride, stride), 1, groups=channels, bias=False)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        return depthwise(video, self.weight, self.bias, self.stride)


def depthwise(video: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Stride = (1, 1, 1)) -> Tensor:
    """Clips (B, C, T, H, W) convolved channel by channel with kernels (C, 1, 3, 3, 3), padded by one all around."""
    on_cpu = video.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if on_cpu and torch.is_grad_enabled():
        convolved: Tensor = _Depthwise.apply(video, weight, bias, stride)
        return convolved
    return F.conv3d(video, weight, bias, stride, padding=1, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    """A depthwise 3x3x3 convolution whose gradients are made of what is fast on a CPU."""

    @staticmethod
    def forward(ctx: Any, video: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride) -> Tensor:
        ctx.save_for_backward(video, weight)
        ctx.stride = stride
        return F.conv3d(video, weight, bias, stride, padding=1, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        video, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        wants_video, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            _video_gradient(grad, video, weight, ctx.stride) if wants_video else None,
            _weight_gradient(grad, video, weight, ctx.stride) if wants_weight else None,
            grad.sum((0, 2, 3, 4)) if wants_bias else None,
            None,
        )


def _video_gradient(grad: Tensor, video: Tensor, weight: Tensor, stride: Stride) -> Tensor:
    """The gradient of the input: the same convolution, kernel mirrored, over the gradient put where it came from."""
    _, down, right = stride
    if (down, right) != (1, 1):
        spread = torch.zeros_like(video)
        spread[..., ::down, ::right] = grad
        grad = spread
    return F.conv3d(grad, weight.flip(2, 3, 4), padding=1, groups=len(weight))


def _weight_gradient(grad: Tensor, video: Tensor, weight: Tensor, stride: Stride) -> Tensor:
    """The gradient of the kernel: for each of its three moments that of a plane convolution over shifted frames."""
    total, frames = torch.zeros_like(weight), video.shape[2]
    for clip, clip_grad in zip(video.transpose(1, 2), grad.transpose(1, 2), strict=True):
        for tap in range(3):
            first, last = max(0, 1 - tap), min(frames, frames + 1 - tap)
            total[:, :, tap] += _plane_gradients(
                clip_grad[first:last], clip[first + tap - 1 : last + tap - 1], weight[:, :, tap], None, stride[1:],
                (1, 1), (1, 1), False, (0, 0), len(weight), (False, True, False),
            )[1]  # fmt: skip
    return total
