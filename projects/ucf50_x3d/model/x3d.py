"""X3D (Feichtenhofer, CVPR 2020), XS to L, with the names of the published hub checkpoints."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.ucf50_x3d.model.conv import Depthwise, Pointwise, Spatial, Temporal
from projects.ucf50_x3d.model.head import Activation, Head, initialize, window_error
from projects.ucf50_x3d.model.norm import BatchNorm

VariantName = Literal["xs", "s", "m", "l", "nano"]


class Variant(NamedTuple):
    """A size of X3D. Frames and crop fix the pooling window, which no state-dict records."""

    frames: int
    crop: int
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (24, 48, 96, 192)
    features: int = 2048


VARIANTS: dict[str, Variant] = {
    "xs": Variant(4, 160, (3, 5, 11, 7)),
    "s": Variant(13, 160, (3, 5, 11, 7)),
    "m": Variant(16, 224, (3, 5, 11, 7)),
    "l": Variant(16, 312, (5, 10, 25, 15)),
    "nano": Variant(8, 64, (1, 1, 1, 1), (16, 24, 48, 96), 256),  # not published: for demonstrations and tests
}


class X3D(nn.Module):
    """X3D: (B, 3, T, H, W) -> (B, classes).

    `shortcut_norm` normalizes the first shortcut too, as SlowFast's checkpoints need; hub checkpoints have no such norm.
    `head_activation="softmax"` gives SlowFast's eval output, see `Head`.

    Raises: ValueError for an unknown variant, and for clips smaller than the variant's pooling window.
    """

    def __init__(
        self,
        variant: VariantName = "s",
        classes: int = 400,
        *,
        dropout: float = 0.5,
        shortcut_norm: bool = False,
        head_activation: Activation = "none",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"there is no X3D variant {variant!r}; choose one of {', '.join(VARIANTS)}")
        self.variant, size = variant, VARIANTS[variant]
        window = (size.frames, _halved(size.crop), _halved(size.crop))
        self.smallest = (size.frames, *(32 * (side - 1) + 1 for side in window[1:]))

        stem = size.widths[0]
        stages, width = [], stem
        for depth, outputs in zip(size.depths, size.widths, strict=True):
            stages.append(Stage(width, outputs, depth, shortcut_norm=shortcut_norm))
            width = outputs
        head = Head(size.features, classes, dropout, head_activation, pool=ProjectedPool(width, size.features, window))
        self.blocks = nn.ModuleList([Stem(stem), *stages, head])
        initialize(self)

    def features(self, video: Tensor) -> Tensor:
        """Position features before dropout and projection: (B, 3, T, H, W) -> (B, 2048, t, h, w)."""
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"X3D expects clips of shape (B, 3, T, H, W), not {tuple(video.shape)}")
        if any(given < needed for given, needed in zip(video.shape[2:], self.smallest, strict=True)):
            raise window_error(f"X3D-{self.variant.upper()}", video, self.smallest)
        # Channels last from here to the end: the convolutions are chosen for it and keep it.
        video = video.contiguous(memory_format=torch.channels_last_3d)
        for block in self.blocks[:-1]:
            video = block(video)
        return self.blocks[-1].pool(video)

    def classify(self, features: Tensor) -> Tensor:
        """Class scores of position features: (B, 2048, t, h, w) -> (B, classes)."""
        return self.blocks[-1](features)

    def forward(self, video: Tensor) -> Tensor:
        """Class scores (logits) of clips: (B, 3, T, H, W) -> (B, classes)."""
        return self.classify(self.features(video))


class Stem(nn.Module):
    """A spatial convolution, then a temporal one per channel: (B, 3, T, H, W) -> (B, width, T, H/2, W/2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The published checkpoints have the two names the wrong way round, and we keep them: `conv_t` is the SPATIAL
        # convolution and comes first, `conv_xy` is the TEMPORAL one. SlowFast's files call them conv_xy and conv.
        self.conv = nn.Sequential()
        self.conv.conv_t = Spatial(3, width, 3, stride=2)
        self.conv.conv_xy = Temporal(width, width, 5, groups=width)
        self.norm = BatchNorm(width)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        return F.relu(self.norm(self.conv(video)), inplace=True)


class Stage(nn.Module):
    """Residual blocks at one resolution; the first halves it. Every other block has squeeze and excitation."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut_norm: bool) -> None:
        super().__init__()
        blocks = [ResBlock(inputs, outputs, stride=2, excite=True, norm=shortcut_norm or inputs != outputs)]
        blocks += [ResBlock(outputs, outputs, excite=index % 2 == 0) for index in range(1, depth)]
        self.res_blocks = nn.ModuleList(blocks)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: (B, inputs, T, H, W) -> (B, outputs, T, H/2, W/2)."""
        for block in self.res_blocks:
            video = block(video)
        return video


class ResBlock(nn.Module):
    """A bottleneck beside a shortcut, which is a convolution where the block changes shape (with a norm if `norm`)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, excite: bool = False, norm: bool = False) -> None:
        super().__init__()
        reshapes = inputs != outputs or stride != 1
        self.branch1_conv = Pointwise(inputs, outputs, stride=stride) if reshapes else nn.Identity()
        self.branch1_norm = BatchNorm(outputs) if reshapes and norm else nn.Identity()
        self.branch2 = Bottleneck(inputs, int(2.25 * outputs), outputs, stride=stride, excite=excite)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: (B, inputs, T, H, W) -> (B, outputs, T, H/stride, W/stride)."""
        shortcut = self.branch1_norm(self.branch1_conv(video))
        return F.relu(self.branch2(video).add_(shortcut), inplace=True)


class Bottleneck(nn.Module):
    """Widen, convolve every channel by itself, narrow."""

    def __init__(self, inputs: int, inner: int, outputs: int, *, stride: int, excite: bool) -> None:
        super().__init__()
        self.conv_a = Pointwise(inputs, inner)
        self.norm_a = BatchNorm(inner)
        self.conv_b = Depthwise(inner, stride=stride)
        self.norm_b = nn.Sequential(BatchNorm(inner), Excitation(inner) if excite else nn.Identity())
        self.conv_c = Pointwise(inner, outputs)
        self.norm_c = BatchNorm(outputs)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: (B, inputs, T, H, W) -> (B, outputs, T, H/stride, W/stride)."""
        video = F.relu(self.norm_a(self.conv_a(video)), inplace=True)
        video = F.silu(self.norm_b(self.conv_b(video)))
        return self.norm_c(self.conv_c(video))


class Excitation(nn.Module):
    """Squeeze and excitation: every channel is scaled by a gate computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _multiple_of_8(channels / 16)
        self.block = nn.Sequential(
            Pointwise(channels, squeezed, bias=True), nn.ReLU(), Pointwise(squeezed, channels, bias=True), nn.Sigmoid()
        )

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: (B, C, T, H, W) -> the same."""
        return video * self.block(video.mean((2, 3, 4), keepdim=True))


class ProjectedPool(nn.Module):
    """Widen, average over a window of fixed size that slides over larger inputs, widen again."""

    def __init__(self, inputs: int, features: int, window: tuple[int, int, int]) -> None:
        super().__init__()
        inner = int(2.25 * inputs)
        self.pre_conv = Pointwise(inputs, inner)
        self.pre_norm = BatchNorm(inner)
        self.pool = nn.AvgPool3d(window, stride=1)
        self.post_conv = Pointwise(inner, features)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: (B, C, T, H, W) -> (B, features, T-T0+1, H-H0+1, W-W0+1) for a window (T0, H0, W0)."""
        video = F.relu(self.pre_norm(self.pre_conv(video)), inplace=True)
        return F.relu(self.post_conv(self.pool(video)))


def _halved(side: int) -> int:
    """A side after the five halvings of the network; every halving rounds up."""
    return -(-side // 32)


def _multiple_of_8(width: float) -> int:
    """The nearest multiple of 8 that is at least 8 and not below nine tenths of `width`."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
