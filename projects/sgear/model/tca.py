"""Temporal context aggregation: frames attend to their own tokens and, cumulated, to those of earlier frames.

As the paper describes it, attention is causal over time. As it was published, keys and values are running sums over
frames, scores right of the diagonal count as zero, and heads are merged without swapping heads and tokens back
(`merge="published"`), so that a row of the result mixes heads, frames and tokens; trained weights depend on all three.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn import Mlp

Merge = Literal["published", "clean"]


class TemporalAttention(nn.Module):
    """Attention over the tokens of each frame, with keys and values summed over the frames until it."""

    def __init__(self, width: int, heads: int, frames: int, merge: Merge = "published") -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")
        self.heads, self.merge = heads, merge
        self.tmp_weighting = nn.Parameter(torch.ones(frames))
        # Weights a residual from the block before, which the published code never passes on.
        self.alpha = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized tokens (B,T,N,D), shape kept."""
        q, k, v = (split_heads(y, self.heads) for y in self.qkv(x).chunk(3, -1))
        mixed = _mix(q, self._until_now(k), self._until_now(v))  # (B,T,heads,N,d)
        published = self.merge == "published"
        out: Tensor = self.proj((mixed.transpose(1, 2) if published else mixed.transpose(2, 3)).reshape(x.shape))
        return out

    def class_rows(self, x: Tensor) -> Tensor:
        """The rows of the class tokens alone, (B,T,N,D) to (B,T,D): all that the last block is asked for.

        As published, the class row of frame t is made of the first `heads` tokens of one frame and one head, number
        t·heads when (head, frame) pairs are counted head by head.
        """
        batch, frames, tokens, width = x.shape
        if tokens < self.heads:  # rows then reach into a second frame; only toys are so small
            return self.forward(x)[:, :, 0]
        weight = self.qkv.weight
        k, v = (self._until_now(split_heads(y, self.heads)) for y in F.linear(x, weight[width:]).chunk(2, -1))
        if self.merge == "clean":
            q = split_heads(F.linear(x[:, :, :1], weight[:width]), self.heads)  # (B,T,heads,1,d)
        else:
            pair = torch.arange(frames, device=x.device) * self.heads
            head, frame = pair // frames, pair % frames
            k, v = k[:, frame, head], v[:, frame, head]  # (B,T,N,d)
            own = weight[:width].view(self.heads, -1, width)[head]  # (T,d,D): the query weights of these heads
            q = x[:, frame, : self.heads] @ own.mT
        mixed = _mix(q, k, v)
        out: Tensor = self.proj(mixed.reshape(batch, frames, width))
        return out

    def _until_now(self, x: Tensor) -> Tensor:
        """Keys or values (B,T,...): frame t has the value sum_{s<=t} w_s x_s; its gradient goes to x_t and w only."""
        past = x.detach()
        weight = self.tmp_weighting.to(x.dtype).view(-1, *[1] * (x.ndim - 2))
        until: Tensor = x + ((past * weight).cumsum(1) - past)
        return until


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(...,N,heads·d) to (...,heads,N,d)."""
    parts: Tensor = x.view(*x.shape[:-1], heads, -1).transpose(-3, -2)
    return parts


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Values by the softmax of the scores, where scores right of the diagonal count as 0 instead of being left out.

    No fused kernel knows such a softmax.
    """
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.mT
    return scores.tril().softmax(-1) @ v


class TemporalContext(nn.Module):
    """One block: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, frames: int, merge: Merge = "published") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = TemporalAttention(width, heads, frames, merge)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, *, class_only: bool = False) -> Tensor:
        """Tokens (B,T,N,D), shape kept; with `class_only` the class tokens, (B,T,D)."""
        normed = self.norm1(x)
        x = x[:, :, 0] + self.attn.class_rows(normed) if class_only else x + self.attn(normed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
