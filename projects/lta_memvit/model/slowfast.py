"""SlowFast (Feichtenhofer et al., ICCV 2019) 8x8 with ResNet-101 or 50, under the names of the published weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn.conv import Pointwise, Spatial, Temporal
from core.nn.norm import BatchNorm

ALPHA = 4  # fast frames to one of the slow pathway
BETA = 8  # slow channels to one of the fast pathway
FUSION = 2  # channels that cross over, to one of the fast pathway


@dataclass(frozen=True)
class Size:
    """Blocks of the four stages, and channels of the slow stem."""

    depths: tuple[int, int, int, int]
    width: int = 64


SIZES = {
    "slowfast_r101": Size((3, 4, 23, 3)),
    "slowfast_r50": Size((3, 4, 6, 3)),
    "slowfast_nano": Size((1, 1, 1, 1), width=16),
}


class SlowFast(nn.Module):
    """A pair of clips, slow (B, 3, T/4, H, W) and fast (B, 3, T, H, W) -> features (B, 36·width).

    Features are averages over all frames and a window of crop/32 positions, and of larger pictures over all windows:
    linear heads may come after, as they do here, or before that last average.
    """

    def __init__(self, size: Size, *, crop: int, head: nn.Module) -> None:
        super().__init__()
        self.window = max(1, crop // 32)
        width = size.width
        self.s1 = Stem(width)
        self.s1_fuse = Lateral(width // BETA)
        inputs = width
        for number, depth in enumerate(size.depths, start=2):
            inner = width * 2 ** (number - 2)
            frames, stride = (1 if number < 4 else 3), (1 if number == 2 else 2)
            setattr(self, f"s{number}", Stage(inputs, inner, depth, frames=frames, stride=stride))
            inputs = 4 * inner
            if number < 5:
                setattr(self, f"s{number}_fuse", Lateral(inputs // BETA))
        self.width = inputs + inputs // BETA
        self.head = head
        _initialize(self)

    def features(self, clips: tuple[Tensor, Tensor]) -> Tensor:
        """Shapes: see the class.

        Raises: ValueError when the pathways do not belong together.
        """
        slow, fast = clips
        if slow.shape[2] * ALPHA != fast.shape[2] or slow.shape[3:] != fast.shape[3:]:
            raise ValueError(
                f"the slow pathway needs a quarter of the fast one's frames; got {tuple(slow.shape)} and "
                f"{tuple(fast.shape)}: the number of frames must be a multiple of {ALPHA}"
            )
        slow, fast = (clip.contiguous(memory_format=torch.channels_last_3d) for clip in clips)
        slow, fast = self.s1_fuse(*self.s1(slow, fast))
        for number in range(2, 6):
            slow, fast = getattr(self, f"s{number}")(slow, fast)
            if number < 5:
                slow, fast = getattr(self, f"s{number}_fuse")(slow, fast)
        return torch.cat([self._average(slow), self._average(fast)], 1)

    def _average(self, maps: Tensor) -> Tensor:
        """(B, C, T, h, w) -> (B, C)."""
        window = (maps.shape[2], min(self.window, maps.shape[3]), min(self.window, maps.shape[4]))
        if window == maps.shape[2:]:
            return maps.mean((2, 3, 4))
        return F.avg_pool3d(maps, window, stride=1).mean((2, 3, 4))


def pack(video: Tensor) -> tuple[Tensor, Tensor]:
    """The two pathways of N joined clips: (B, N, 3, T, H, W) -> (B, N, 3, T/4, H, W), (B, N, 3, T, H, W).

    As in the original the slow pathway spreads N·T/4 frames over all N clips together and is cut afterwards, so the
    slow frames of a clip depend on N and on its place: floor(linspace(0, N·T - 1, N·T/4)).

    Raises: ValueError when T is no multiple of 4.
    """
    batch, inputs, channels, frames, *size = video.shape
    if frames % ALPHA:
        raise ValueError(f"SlowFast takes a number of frames that is a multiple of {ALPHA}, not {frames}")
    joined = video.transpose(1, 2).reshape(batch, channels, inputs * frames, *size)
    count = inputs * frames // ALPHA
    chosen = torch.linspace(0, inputs * frames - 1, count).long().tolist()
    slow = joined[:, :, chosen].view(batch, channels, inputs, frames // ALPHA, *size).transpose(1, 2)
    return slow, video


class Stem(nn.Module):
    """A large convolution and a maximum on each pathway: -> (B, width, T/4, H/4, W/4), (B, width/8, T, H/4, W/4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pathway0_stem = StemPathway(width, 1)
        self.pathway1_stem = StemPathway(width // BETA, 5)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: see the class."""
        return self.pathway0_stem(slow), self.pathway1_stem(fast)


class StemPathway(nn.Module):
    """(B, 3, T, H, W) -> (B, width, T, H/4, W/4)."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, width, (frames, 7, 7), (1, 2, 2), (frames // 2, 3, 3), bias=False)
        self.bn = BatchNorm(width)

    def forward(self, clip: Tensor) -> Tensor:
        """Shapes: see the class."""
        clip = F.relu(self.bn(self.conv(clip)), inplace=True)
        return F.max_pool3d(clip, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))


class Lateral(nn.Module):
    """Fast features at the slow frame rate, twice as wide, behind the slow ones: (B, C, ...) -> (B, C + 2c, ...)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_f2s = Temporal(width, FUSION * width, 5, stride=ALPHA)
        self.bn = BatchNorm(FUSION * width)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: see the class; fast is not changed."""
        crossing = F.relu(self.bn(self.conv_f2s(fast)), inplace=True)
        return torch.cat([slow, crossing], 1), fast


class Stage(nn.Module):
    """Bottleneck blocks of both pathways; the first ones change width and resolution."""

    def __init__(self, inputs: int, inner: int, depth: int, *, frames: int, stride: int) -> None:
        super().__init__()
        self.depth = depth
        pathways = ((inputs + FUSION * inputs // BETA, inner, frames), (inputs // BETA, inner // BETA, 3))
        for pathway, (width, narrow, taps) in enumerate(pathways):
            for number in range(depth):
                first = number == 0
                block = Bottleneck(width if first else 4 * narrow, narrow, taps, stride if first else 1)
                setattr(self, f"pathway{pathway}_res{number}", block)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: channels become 4·inner and 4·inner/8, height and width are divided by the stride."""
        for number in range(self.depth):
            slow, fast = getattr(self, f"pathway0_res{number}")(slow), getattr(self, f"pathway1_res{number}")(fast)
        return slow, fast


class Bottleneck(nn.Module):
    """(B, inputs, T, H, W) -> (B, 4·inner, T, H/stride, W/stride), with a shortcut that is projected where it must."""

    def __init__(self, inputs: int, inner: int, frames: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * inner
        if inputs != outputs or stride != 1:
            self.branch1 = Pointwise(inputs, outputs, stride=stride)
            self.branch1_bn = BatchNorm(outputs)
        self.branch2 = Branch(inputs, inner, outputs, frames, stride)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        shortcut = self.branch1_bn(self.branch1(video)) if hasattr(self, "branch1") else video
        return F.relu(shortcut + self.branch2(video))


class Branch(nn.Module):
    """Narrow (over `frames` frames), convolve the picture, widen."""

    def __init__(self, inputs: int, inner: int, outputs: int, frames: int, stride: int) -> None:
        super().__init__()
        self.a = Pointwise(inputs, inner) if frames == 1 else Temporal(inputs, inner, frames)
        self.a_bn = BatchNorm(inner)
        self.b = Spatial(inner, inner, 3, stride=stride)
        self.b_bn = BatchNorm(inner)
        self.c = Pointwise(inner, outputs)
        self.c_bn = BatchNorm(outputs)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: (B, inputs, T, H, W) -> (B, outputs, T, H/stride, W/stride)."""
        video = F.relu(self.a_bn(self.a(video)), inplace=True)
        video = F.relu(self.b_bn(self.b(video)), inplace=True)
        widened: Tensor = self.c_bn(self.c(video))
        return widened


def _initialize(model: nn.Module) -> None:
    """Convolutions by fan-out (He et al., 2015), the last norm of every block zero, linear layers N(0, 0.01)."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Branch):
            nn.init.zeros_(module.c_bn.weight)
