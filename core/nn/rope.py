"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rope(nn.Module):
    """Turns pairs of channels by angles that grow with the position, so that q·k sees only differences of positions.

    Su et al., 2021. The pairs are (i, i + D/2) as in LLaMA. For several axes (time, row, column) the head is divided
    in equal parts, one for each axis. There is nothing to learn or to save; angles are computed in float32 whatever
    the model's precision, and norms are kept.
    """

    def __init__(self, head_dim: int, base: float = 10000.0, axes: int = 1) -> None:
        super().__init__()
        if axes < 1 or head_dim % (2 * axes):
            raise ValueError(f"Rope needs a head_dim divisible by 2 x axes; got head_dim={head_dim} and axes={axes}")
        self.head_dim, self.base, self.axes = head_dim, base, axes

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x (B,heads,T,D) turned, shape kept.

        Positions are (T,) or (B,T) for one axis, (T,axes) or (B,T,axes) for more, of any number type; without them
        0..T-1 (one axis only).

        Raises:
            ValueError: for another head width, or positions that do not fit x.
        """
        if x.ndim != 4 or x.shape[-1] != self.head_dim:
            raise ValueError(f"Rope was built for (B,heads,T,{self.head_dim}); got {tuple(x.shape)}")
        angles = self._angles(x, positions)
        first, second = x.float().unflatten(-1, (self.axes, 2, -1)).unbind(-2)  # (B,heads,T,axes,D/2/axes) each
        cos, sin = angles.cos(), angles.sin()
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2)
        return turned.flatten(-3).to(x.dtype)

    def _angles(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """(B or 1,1,T,axes,D/2/axes)."""
        batch, _, length, _ = x.shape
        if positions is None:
            if self.axes > 1:
                raise ValueError(f"Rope with {self.axes} axes needs positions (T,{self.axes}) or (B,T,{self.axes})")
            positions = torch.arange(length, device=x.device)
        elif self.axes > 1 and positions.shape[-1] != self.axes:
            raise ValueError(f"Rope has {self.axes} axes; got positions {tuple(positions.shape)}")
        where = positions.float() if self.axes > 1 else positions.float().unsqueeze(-1)
        if where.shape[:-1] not in ((length,), (batch, length), (1, length)):
            raise ValueError(f"Rope got positions {tuple(positions.shape)} for x {tuple(x.shape)}; one for each of T")
        width = self.head_dim // self.axes
        speed = self.base ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
        angles = where.unsqueeze(-1) * speed
        return angles.unsqueeze(0).unsqueeze(0) if angles.ndim == 3 else angles.unsqueeze(1)

    def extra_repr(self) -> str:
        """The settings, for printing a model."""
        return f"head_dim={self.head_dim}, base={self.base}, axes={self.axes}"
