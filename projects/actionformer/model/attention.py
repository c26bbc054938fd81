"""The attentions of the backbones, channels last (B,T,C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn import Rope, attend
from projects.actionformer.model.conv import MaskedConv
from projects.actionformer.model.linear import Linear, computes_on_cpu
from projects.actionformer.model.window import window_attention


class ConvAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from depthwise convolutions, strided in a branch.

    With `window` > 1 a query sees the keys up to window // 2 steps away at O(T·window) cost, otherwise all of them;
    `positions` adds to each place in the window a learned bias, the earliest key first. A key at a padded step is seen
    by no query. What comes out at padded steps is meaningless: the caller zeroes it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        stride: int = 1,
        window: int = -1,
        positions: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        if window > 1 and window % 2 == 0:
            raise ValueError(f"a window around the query is odd; got {window}")
        self.heads, self.window, self.dropout = heads, window if window > 1 else None, dropout
        kernel = stride + 1 if stride > 1 else 3
        for name in ("query", "key", "value"):
            self.add_module(f"{name}_conv", MaskedConv(width, width, kernel, stride=stride, groups=width, bias=False))
            self.add_module(f"{name}_norm", nn.LayerNorm(width))
            self.add_module(name, Linear(width, width))
        self.proj = Linear(width, width)
        self.rel_pe: nn.Parameter | None = None
        if positions and self.window:
            self.rel_pe = nn.Parameter(torch.empty(1, 1, heads, window))
            nn.init.trunc_normal_(self.rel_pe, std=(2.0 / width) ** 0.5)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (B,T,C) to (B,T/stride,C); real (B,T/stride) bool says which of the steps that come out are no padding."""
        q, k, v = (
            self.get_submodule(name)(self.get_submodule(f"{name}_norm")(self.get_submodule(f"{name}_conv")(x)))
            for name in ("query", "key", "value")
        )
        if self.window and computes_on_cpu(x):
            bias = None if self.rel_pe is None else self.rel_pe[0, 0]
            y = window_attention(q, k, v, real, heads=self.heads, window=self.window, bias=bias)
        else:
            parts = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
            bias = None if self.rel_pe is None else self.rel_pe.transpose(1, 2)
            y = attend(*parts, mask=real, bias=bias, window=self.window).transpose(1, 2).flatten(2)
        y = self.proj(y)
        return F.dropout(y, self.dropout, self.training)


class RotaryAttention(nn.Module):
    """Attention over everything from plain projections, with rotary positions and shared key heads (the fork's MHAv2).

    The checkpoint's buffer `rope.inv_freq` is what `core.nn.Rope` computes by itself.
    """

    def __init__(self, width: int, heads: int, *, kv_heads: int | None, rope: bool, dropout: float = 0.0) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if width % heads or heads % kv_heads:
            raise ValueError(f"width {width} must be a multiple of heads ({heads}), and those of kv_heads ({kv_heads})")
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        shared = kv_heads * (width // heads)
        self.query, self.key, self.value = Linear(width, width), Linear(width, shared), Linear(width, shared)
        self.proj = Linear(width, width)
        self.rope = Rope(width // heads) if rope else None

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (B,T,C) to the same; real (B,T) bool says which steps are no padding."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = (part(x).unflatten(2, (self.kv_heads, -1)).transpose(1, 2) for part in (self.key, self.value))
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        y = self.proj(attend(q, k, v, mask=real).transpose(1, 2).flatten(2))
        return F.dropout(y, self.dropout, self.training)
