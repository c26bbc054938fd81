"""Classification per position, averaged: the last block of every network here."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Activation = Literal["none", "softmax"]


class Head(nn.Module):
    """Dropout and a linear layer at every position, then the mean over positions: (B, C, t, h, w) -> (B, classes).

    The linear layer and the mean commute, dropout included, so the mean is taken first and the matrix product is
    as small as it can be. With `activation="softmax"` the eval output is SlowFast's: the mean of the softmax of every
    position, which does not commute.
    """

    def __init__(
        self, inputs: int, classes: int, dropout: float, activation: Activation = "none", pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.pool = pool  # X3D's checkpoints keep here what feeds the head; it is not called from here
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(inputs, classes)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        if self.activation == "softmax" and not self.training:
            return self.proj(features.movedim(1, -1)).softmax(-1).mean((1, 2, 3))
        return self.proj(self.dropout(features).mean((2, 3, 4)))


def initialize(model: nn.Module) -> None:
    """The published start of training: Kaiming (fan out) convolutions, N(0, 0.01) classifier, every block starts as identity."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm3d) and name.endswith("branch2.norm_c"):
            nn.init.zeros_(module.weight)
        if isinstance(module, nn.Conv3d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def window_error(name: str, video: Tensor, smallest: tuple[int, int, int]) -> ValueError:
    """What to answer to a clip smaller than the pooling window; `smallest` is (T, H, W)."""
    size = "x".join(map(str, video.shape[2:]))
    return ValueError(
        f"{name} was given clips of {size} (frames x height x width); its pooling window needs at least "
        f"{'x'.join(map(str, smallest))}: sample more frames, use a larger crop, or choose a smaller variant"
    )
