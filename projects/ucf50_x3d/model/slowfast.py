"""SlowFast R50 8x8 (Feichtenhofer et al., ICCV 2019), with the parameter names of the hub's `slowfast_r50`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn.conv import Pointwise, Spatial, Temporal
from core.nn.norm import BatchNorm
from projects.ucf50_x3d.model.blocks import Activation, Head, ResBlock, Stage, check_clips, initialize

DEPTHS = (3, 4, 6, 3)
FRAMES = 32  # of the fast pathway
ALPHA = 4  # the slow pathway sees every fourth frame
WINDOW = 7  # positions pooled in height and in width, from 224 pixels


class SlowFast(nn.Module):
    """SlowFast R50: clips (B, 3, 32, H, W), or a list [slow (B, 3, 8, H, W), fast (B, 3, 32, H, W)] -> (B, classes).

    The list is not touched, unlike in the original. `head_activation` is that of `Head`.

    Raises: ValueError for clips of another length or smaller than the pooling window.
    """

    def __init__(self, classes: int = 400, *, dropout: float = 0.5, head_activation: Activation = "none") -> None:
        super().__init__()
        self.smallest = (FRAMES, 32 * WINDOW - 31, 32 * WINDOW - 31)
        stems = Pathways(Stem(64, (1, 7, 7)), Stem(8, (5, 7, 7)), Lateral(8))
        stages, width = [], 64
        for number, depth in enumerate(DEPTHS):
            inner = 64 * 2**number
            outputs, last = 4 * inner, number == len(DEPTHS) - 1
            frames, stride = (1 if number < 2 else 3), (1 if number == 0 else 2)
            # The slow pathway also takes what crosses over, a quarter of its width; it convolves time only late.
            slow = _stage(width + width // 4, inner, outputs, depth, frames=frames, stride=stride)
            fast = _stage(width // 8, inner // 8, outputs // 8, depth, frames=3, stride=stride)
            stages.append(Pathways(slow, fast, nn.Identity() if last else Lateral(outputs // 8)))
            width = outputs
        head = Head(width + width // 8, classes, dropout, head_activation)
        self.blocks = nn.ModuleList([stems, *stages, Pool(), head])
        initialize(self)

    def features(self, video: Tensor | Sequence[Tensor]) -> Tensor:
        """Features of every position, before dropout and projection: (B, 3, 32, H, W) -> (B, 2304, 1, h, w)."""
        pathways = pack(video) if isinstance(video, Tensor) else tuple(video)
        lengths = [clip.shape[2] for clip in pathways if clip.ndim == 5]
        if lengths != [FRAMES // ALPHA, FRAMES]:
            raise ValueError(
                f"SlowFast R50 8x8 takes clips (B, 3, {FRAMES}, H, W), or a pair of {FRAMES // ALPHA} and {FRAMES}; "
                f"not {' and '.join(str(tuple(clip.shape)) for clip in pathways)}"
            )
        check_clips("SlowFast R50", pathways[1], self.smallest)
        slow, fast = (clip.contiguous(memory_format=torch.channels_last_3d) for clip in pathways)
        for block in self.blocks[:-2]:
            slow, fast = block(slow, fast)
        pooled: Tensor = self.blocks[-2](slow, fast)
        return pooled

    def classify(self, features: Tensor) -> Tensor:
        """Scores of position features: (B, 2304, 1, h, w) -> (B, classes)."""
        scores: Tensor = self.blocks[-1](features)
        return scores

    def forward(self, video: Tensor | Sequence[Tensor]) -> Tensor:
        """Scores of clips; shapes: see the class."""
        return self.classify(self.features(video))


def pack(video: Tensor) -> tuple[Tensor, Tensor]:
    """The two pathways of clips (B, 3, T, H, W): T // 4 frames spread evenly (positions truncated), and all of them."""
    frames = video.shape[2]
    count = frames // ALPHA
    indices = [i * (frames - 1) // max(1, count - 1) for i in range(count)]
    return video[:, :, indices], video


class Pathways(nn.Module):
    """One block of each pathway, then what crosses from fast to slow."""

    def __init__(self, slow: nn.Module, fast: nn.Module, lateral: nn.Module) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = lateral

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: those of the blocks; the slow output gains the lateral channels."""
        slow_block, fast_block = self.multipathway_blocks
        slow, fast = slow_block(slow), fast_block(fast)
        if isinstance(self.multipathway_fusion, Lateral):
            slow = torch.cat([slow, self.multipathway_fusion(fast)], 1)
        return slow, fast


class Lateral(nn.Module):
    """Fast features at the slow frame rate, twice as wide: (B, C, T, H, W) -> (B, 2C, T/4, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_fast_to_slow = Temporal(channels, 2 * channels, 7, stride=ALPHA)
        self.norm = BatchNorm(2 * channels)

    def forward(self, fast: Tensor) -> Tensor:
        """Shapes: see the class."""
        return F.relu(self.norm(self.conv_fast_to_slow(fast)), inplace=True)


class Stem(nn.Module):
    """A large convolution and a maximum: (B, 3, T, H, W) -> (B, width, T, H/4, W/4)."""

    def __init__(self, width: int, size: tuple[int, int, int]) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2, size[2] // 2)
        self.conv = nn.Conv3d(3, width, size, stride=(1, 2, 2), padding=padding, bias=False)
        self.norm = BatchNorm(width)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        video = F.relu(self.norm(self.conv(video)), inplace=True)
        return F.max_pool3d(video, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))


def _stage(inputs: int, inner: int, outputs: int, depth: int, *, frames: int, stride: int) -> Stage:
    """Bottleneck blocks of one pathway; the first changes width and resolution."""
    first = ResBlock(inputs, outputs, Bottleneck(inputs, inner, outputs, frames, stride), stride=stride)
    rest = [ResBlock(outputs, outputs, Bottleneck(outputs, inner, outputs, frames)) for _ in range(depth - 1)]
    return Stage([first, *rest])


class Bottleneck(nn.Module):
    """Narrow (over `frames` frames), convolve the picture, widen."""

    def __init__(self, inputs: int, inner: int, outputs: int, frames: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_a = Pointwise(inputs, inner) if frames == 1 else Temporal(inputs, inner, frames)
        self.norm_a = BatchNorm(inner)
        self.conv_b = Spatial(inner, inner, 3, stride=stride)
        self.norm_b = BatchNorm(inner)
        self.conv_c = Pointwise(inner, outputs)
        self.norm_c = BatchNorm(outputs)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: (B, inputs, T, H, W) -> (B, outputs, T, H/stride, W/stride)."""
        video = F.relu(self.norm_a(self.conv_a(video)), inplace=True)
        video = F.relu(self.norm_b(self.conv_b(video)), inplace=True)
        video = self.norm_c(self.conv_c(video))
        return video


class Pool(nn.Module):
    """Both pathways averaged over all frames and a window of positions, side by side: -> (B, 2304, 1, h, w)."""

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        """Shapes: see the class."""
        return torch.cat([F.avg_pool3d(clip, (clip.shape[2], WINDOW, WINDOW), stride=1) for clip in (slow, fast)], 1)
