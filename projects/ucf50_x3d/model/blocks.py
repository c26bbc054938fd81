"""What X3D and SlowFast have in common: residual blocks, the classifier, the start values, the smallest clip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from core.nn.conv import Pointwise
from core.nn.norm import BatchNorm

Activation = Literal["none", "softmax"]


class ResBlock(nn.Module):
    """A branch beside a shortcut: (B, inputs, T, H, W) -> (B, outputs, T, H/stride, W/stride).

    The shortcut is a convolution where the block changes the shape, with a norm after it if `norm`.
    """

    def __init__(self, inputs: int, outputs: int, branch: nn.Module, *, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        reshapes = inputs != outputs or stride != 1
        self.branch1_conv = Pointwise(inputs, outputs, stride=stride) if reshapes else nn.Identity()
        self.branch1_norm = BatchNorm(outputs) if reshapes and norm else nn.Identity()
        self.branch2 = branch

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: see the class."""
        shortcut = self.branch1_norm(self.branch1_conv(video))
        return F.relu(self.branch2(video).add_(shortcut), inplace=True)


class Stage(nn.Module):
    """Residual blocks, one after the other."""

    def __init__(self, blocks: Iterable[ResBlock]) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(blocks)

    def forward(self, video: Tensor) -> Tensor:
        """Shapes: those of the blocks."""
        for block in self.res_blocks:
            video = block(video)
        return video


class Head(nn.Module):
    """Dropout and a linear layer at every position, then the mean over positions: (B, D, t, h, w) -> (B, classes).

    The linear layer and the mean commute, dropout or not, so the mean is taken first and the matrix product is as small
    as it can be. With `activation="softmax"` the output in eval mode is SlowFast's: the mean of the positions' softmax.
    """

    def __init__(
        self, inputs: int, classes: int, dropout: float, activation: Activation = "none", pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.pool = pool  # X3D's checkpoints keep here what feeds the head; the network calls it
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(inputs, classes)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        if self.activation == "softmax" and not self.training:
            scores: Tensor = self.proj(features.movedim(1, -1)).softmax(-1).mean((1, 2, 3))
        else:
            scores = self.proj(self.dropout(features).mean((2, 3, 4)))
        return scores


def initialize(model: nn.Module) -> None:
    """The published start: Kaiming (fan out) convolutions, blocks that add nothing, a classifier N(0, 0.01)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, BatchNorm) and name.endswith("branch2.norm_c"):
            nn.init.zeros_(module.weight)
        if isinstance(module, nn.Conv3d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def check_clips(name: str, video: Tensor, smallest: tuple[int, int, int]) -> None:
    """Refuse what the pooling window of a network cannot take; `smallest` is (T, H, W).

    Raises: ValueError that says what would fit.
    """
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"{name} expects clips of shape (B, 3, T, H, W), not {tuple(video.shape)}")
    if any(given < needed for given, needed in zip(video.shape[2:], smallest, strict=True)):
        raise ValueError(
            f"{name} was given clips of {'x'.join(map(str, video.shape[2:]))} (frames x height x width); its pooling "
            f"window needs at least {'x'.join(map(str, smallest))}: sample more frames or use a larger crop"
        )
