"""X3D (Feichtenhofer, CVPR 2020) from XS to L, with the parameter names of the published hub checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn.conv import Depthwise, Pointwise, Spatial, Temporal
from core.nn.norm import BatchNorm
from projects.ucf50_x3d.model.blocks import Activation, Head, ResBlock, Stage, check_clips, initialize


class Variant(NamedTuple):
    """A size of X3D. Frames and crop fix the pooling window, which no state-dict tells."""

    frames: int
    crop: int
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (24, 48, 96, 192)
    features: int = 2048

    @property
    def window(self) -> tuple[int, int, int]:
        """The pooling window (T, H, W): what a clip of this size has become after five halvings, rounded up."""
        return self.frames, -(-self.crop // 32), -(-self.crop // 32)


VARIANTS: dict[str, Variant] = {
    "xs": Variant(4, 160, (3, 5, 11, 7)),
    "s": Variant(13, 160, (3, 5, 11, 7)),
    "m": Variant(16, 224, (3, 5, 11, 7)),
    "l": Variant(16, 312, (5, 10, 25, 15)),
    "nano": Variant(8, 40, (1, 1, 1, 1), (16, 24, 48, 96), 256),  # ours, for demonstrations and tests
}


class X3D(nn.Module):
    """X3D: clips (B, 3, T, H, W) -> scores (B, classes).

    `shortcut_norm` normalizes the very first shortcut too, as SlowFast's checkpoints have it and the hub's do not.
    `head_activation="softmax"` gives SlowFast's output in eval mode, see `Head`.

    Raises: ValueError for an unknown variant, and for clips smaller than the variant's pooling window.
    """

    def __init__(
        self,
        variant: str = "s",
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
        frames, height, width = size.window
        self.smallest = (frames, 32 * height - 31, 32 * width - 31)

        channels, stages = size.widths[0], []
        for number, (depth, outputs) in enumerate(zip(size.depths, size.widths, strict=True)):
            stages.append(_stage(channels, outputs, depth, norm=shortcut_norm or number > 0))
            channels = outputs
        pool = ProjectedPool(channels, size.features, size.window)
        head = Head(size.features, classes, dropout, head_activation, pool)
        self.blocks = nn.ModuleList([Stem(size.widths[0]), *stages, head])
        initialize(self)

    def features(self, video: Tensor) -> Tensor:
        """Features of every position, before dropout and projection: (B, 3, T, H, W) -> (B, 2048, t, h, w)."""
        check_clips(f"X3D-{self.variant.upper()}", video, self.smallest)
        # Channels last from here to the end: the layers are written for it and keep it.
        video = video.contiguous(memory_format=torch.channels_last_3d)
        for block in self.blocks[:-1]:
            video = block(video)
        pooled: Tensor = self.blocks[-1].get_submodule("pool")(video)
        return pooled

    def classify(self, features: Tensor) -> Tensor:
        """Scores of position features: (B, 2048, t, h, w) -> (B, classes)."""
        scores: Tensor = self.blocks[-1](features)
        return scores

    def forward(self, video: Tensor) -> Tensor:
        """Scores of clips: (B, 3, T, H, W) -> (B, classes)."""
        return self.classify(self.features(video))


class Stem(nn.Module):
    """A spatial convolution, then a temporal one of every channel: (B, 3, T, H, W) -> (B, width, T, H/2, W/2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # A trap: the hub's names are the wrong way round and must stay so. `conv_t`, which comes first, is the SPATIAL
        # convolution and `conv_xy` the TEMPORAL one. (SlowFast's files call the same two conv_xy and conv.)
        self.conv = nn.Sequential()
        self.conv.conv_t = Spatial(3, width, 3, stride=2)
        self.conv.conv_xy = Temporal(width, width, 5, groups=width)
        self.norm = BatchNorm(width)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        return F.relu(self.norm(self.conv(video)), inplace=True)


def _stage(inputs: int, outputs: int, depth: int, *, norm: bool) -> Stage:
    """Blocks at one resolution; the first halves the picture, every other one, from the first, excites its channels."""
    inner = int(2.25 * outputs)
    first = ResBlock(inputs, outputs, Bottleneck(inputs, inner, outputs, stride=2, excite=True), stride=2, norm=norm)
    rest = [Bottleneck(outputs, inner, outputs, excite=index % 2 == 0) for index in range(1, depth)]
    return Stage([first, *(ResBlock(outputs, outputs, branch) for branch in rest)])


class Bottleneck(nn.Module):
    """Widen, convolve every channel by itself, narrow: (B, inputs, T, H, W) -> (B, outputs, T, H/stride, W/stride)."""

    def __init__(self, inputs: int, inner: int, outputs: int, *, stride: int = 1, excite: bool) -> None:
        super().__init__()
        self.conv_a = Pointwise(inputs, inner)
        self.norm_a = BatchNorm(inner)
        self.conv_b = Depthwise(inner, stride=stride)
        self.norm_b = nn.Sequential(BatchNorm(inner), Excitation(inner) if excite else nn.Identity())
        self.conv_c = Pointwise(inner, outputs)
        self.norm_c = BatchNorm(outputs)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        video = F.relu(self.norm_a(self.conv_a(video)), inplace=True)
        video = self.norm_b(self.conv_b(video))
        video = F.silu(video, inplace=not video.requires_grad)  # its gradient needs the input
        video = self.norm_c(self.conv_c(video))
        return video


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
        gate: Tensor = self.block(video.mean((2, 3, 4), keepdim=True))
        return video * gate


class ProjectedPool(nn.Module):
    """Widen, average over a window of fixed size, widen again; the window slides over clips larger than the variant's.

    Shapes: (B, C, T, H, W) -> (B, features, T-T0+1, H-H0+1, W-W0+1) for a window (T0, H0, W0).
    """

    def __init__(self, inputs: int, features: int, window: tuple[int, int, int]) -> None:
        super().__init__()
        inner = int(2.25 * inputs)
        self.pre_conv = Pointwise(inputs, inner)
        self.pre_norm = BatchNorm(inner)
        self.pool = nn.AvgPool3d(window, stride=1)
        self.post_conv = Pointwise(inner, features)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        video = F.relu(self.pre_norm(self.pre_conv(video)), inplace=True)
        return F.relu(self.post_conv(self.pool(video)))


def _multiple_of_8(width: float) -> int:
    """The nearest multiple of 8 that is at least 8 and not below nine tenths of `width`."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8
