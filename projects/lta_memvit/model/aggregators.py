"""What joins the features of N observed segments (B, N, D), oldest first, into one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LONGEST = 1000  # inputs for which there are positions, as in the published weights


class Concat(nn.Module):
    """(B, N, D) -> (B, N·D)."""

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        return features.flatten(1)


class Mean(nn.Module):
    """(B, N, D) -> (B, D)."""

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        return features.mean(1)


class Positions(nn.Module):
    """Adds sines and cosines of the place (Vaswani et al., 2017) to inputs (N, B, D), then drops some."""

    pe: Tensor

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        place = torch.arange(LONGEST).float()[:, None]
        speed = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10_000.0) / width))
        table = torch.zeros(LONGEST, 1, width)
        table[:, 0, 0::2], table[:, 0, 1::2] = torch.sin(place * speed), torch.cos(place * speed)
        self.register_buffer("pe", table)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        dropped: Tensor = self.dropout(features + self.pe[: len(features)])
        return dropped


class Transformer(nn.Module):
    """(B, N, D) -> (B, D): what a transformer encoder makes of the newest input."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads)
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.pos_encoder = Positions(width, dropout=0.2)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        encoded: Tensor = self.encoder(self.pos_encoder(features.transpose(0, 1)))
        return encoded[-1]
