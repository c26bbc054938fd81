"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training zeroes whole samples with probability `p` and scales the others by 1/(1-p) (Huang et al., 2016).

    Around the branch of a residual block, so that a dropped sample skips the block. Identity in evaluation.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"DropPath.p must be from 0 to below 1; got {p!r}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (B,...), shape kept."""
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        kept = x.new_empty((len(x), *[1] * (x.ndim - 1))).bernoulli_(keep)
        return x * kept.div_(keep)

    def extra_repr(self) -> str:
        """The probability, for printing a model."""
        return f"p={self.p}"
