"""Operations on tokens (B, 1 + T·H·W, C) that keep channels last: a class token, then patches in raster order.

Seen as video (B, C, T, H, W) such patches are channels-last already, so convolutions and pooling need no transposition,
and heads that share a kernel are one convolution over all channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn.conv import depthwise
from projects.lta_memvit.model.plan import PATCH_KERNEL, PATCH_PADDING, PATCH_STRIDE, Grid


class PatchEmbed(nn.Module):
    """Video (B, 3, T, H, W) -> tokens (B, T/2·H/4·W/4, width) and their grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, PATCH_KERNEL, PATCH_STRIDE, PATCH_PADDING)

    def forward(self, video: Tensor) -> tuple[Tensor, Grid]:
        """Shapes: see the class."""
        patches: Tensor = self.proj(video.contiguous(memory_format=torch.channels_last_3d))
        return to_tokens(patches), grid_of(patches)


def to_video(patches: Tensor, grid: Grid) -> Tensor:
    """Patches (B, T·H·W, C) as video (B, C, T, H, W), without a copy."""
    video: Tensor = patches.unflatten(1, grid).permute(0, 4, 1, 2, 3)
    return video


def to_tokens(video: Tensor) -> Tensor:
    """Video (B, C, T, H, W) as patches (B, T·H·W, C), without a copy where it is channels-last."""
    return video.permute(0, 2, 3, 4, 1).flatten(1, 3)


def grid_of(video: Tensor) -> Grid:
    """Frames, rows and columns of a video (B, C, T, H, W): plain numbers, also when the network is traced."""
    frames, rows, columns = (int(size) for size in video.shape[2:])
    return frames, rows, columns


class Pool(nn.Conv3d):
    """A depthwise 3x3x3 convolution over the width of one head, the same for all heads.

    With `causal` time is padded in the past only, so that no output sees a later frame.
    """

    def __init__(self, head_width: int, stride: int, *, causal: bool = False) -> None:
        super().__init__(head_width, head_width, 3, (1, stride, stride), 1, groups=head_width, bias=False)
        self.causal = causal

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: video (B, heads·width, T, H, W) -> (B, heads·width, T, H/stride, W/stride)."""
        channels, frames = video.shape[1], video.shape[2]
        weight = self.weight.repeat(channels // self.in_channels, 1, 1, 1, 1)
        if self.causal:  # one more frame before the first, one output less at the end: all outputs move by one
            video = F.pad(video, (0, 0, 0, 0, 1, 0))
        return depthwise(video, weight, None, self.stride)[:, :, :frames]


class Compress(nn.Conv3d):
    """MeMViT's compression of a clip's keys or values: a depthwise 7x3x3 convolution with stride 4x2x2."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, (7, 3, 3), (4, 2, 2), (3, 1, 1), groups=width, bias=False)


def pool_skip(tokens: Tensor, grid: Grid, stride: int) -> Tensor:
    """The residual path of a block that pools its queries: a 3x3 maximum over each frame; the class token passes."""
    if stride == 1:
        return tokens
    frames = tokens[:, 1:].unflatten(1, grid).flatten(0, 1).permute(0, 3, 1, 2)
    pooled = F.max_pool2d(frames, stride + 1, stride, stride // 2).permute(0, 2, 3, 1)
    return torch.cat([tokens[:, :1], pooled.reshape(len(tokens), -1, tokens.shape[2])], 1)


def initialize(model: nn.Module) -> None:
    """Linear layers, tokens and tables of positions as truncated normals of 0.02, norms as identities."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        for name, parameter in module.named_parameters(recurse=False):
            if "token" in name or "pos" in name:
                nn.init.trunc_normal_(parameter, std=0.02)
