"""The two feed-forward layers of transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, activation, linear; `hidden` is 4 x dim unless given."""

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        out: int | None = None,
        *,
        bias: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * dim
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.activation = activation()
        self.fc2 = nn.Linear(hidden, out or dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (...,dim) to (...,out)."""
        x = self.dropout(self.activation(self.fc1(x)))
        y: Tensor = self.dropout(self.fc2(x))
        return y


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, 2020); `hidden` is 8/3 x dim, rounded up to a multiple of 8, unless given.

    So its parameters are as many as those of an `Mlp` of the usual width.
    """

    def __init__(self, dim: int, hidden: int | None = None, out: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        hidden = hidden or -(-8 * dim // 24) * 8
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, out or dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (...,dim) to (...,out)."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y
