"""Attention within a window on a CPU: blocks of queries multiply strided views of the keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 16  # queries that share their keys
_HIDDEN = -1e4  # added to the score of a hidden key, as officially: it vanishes, and a row of them stays finite


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, real: Tensor, *, heads: int, window: int, bias: Tensor | None = None
) -> Tensor:
    """What `core.nn.attend` gives with this window, on q, k, v (B,T,C) whose heads are groups of channels; (B,T,C).

    real (B,T) bool is False at padded keys; bias (heads,window) is added to the scores, the earliest key first. What
    comes out of a query that sees no key is finite and meaningless.
    """
    y: Tensor
    if torch.is_grad_enabled():
        y = _WindowAttention.apply(q, k, v, bias, real, heads, window)
    else:
        y = _answer(q, k, v, bias, _Blocks(q.shape, window), real, heads)[0]
    return y


class _Blocks(NamedTuple):
    """How videos (B,T,C) are cut: each into n blocks of queries."""

    shape: torch.Size
    window: int

    @property
    def half(self) -> int:
        """Keys on each side of a query."""
        return self.window // 2

    @property
    def reach(self) -> int:
        """Keys that a block sees."""
        return _BLOCK + self.window - 1

    @property
    def number(self) -> int:
        """Blocks of a video."""
        return -(-(self.shape[1] + self.half) // _BLOCK)

    @property
    def place(self) -> Tensor:
        """(block,reach): where in the window of a query a key stands."""
        return torch.arange(self.reach) - torch.arange(_BLOCK)[:, None]

    def laid(self, x: Tensor, before: int) -> Tensor:
        """(B,T,C) as rows (B·rows + window - 1, C), each video `before` rows late, with zeros around it.

        A video's last block reaches into the next one, where real queries see no more than the zeros before it.
        """
        batch, length = self.shape[:2]
        rows = self.number * _BLOCK
        flat = x.new_empty(batch * rows + self.window - 1, x.shape[2])
        videos = flat[: batch * rows].view(batch, rows, -1)
        videos[:, :before] = 0
        videos[:, before : before + length] = x
        videos[:, before + length :] = 0
        flat[batch * rows :] = 0
        return flat

    def queries(self, x: Tensor) -> Tensor:
        """(B,T,C) as (B·n,block,C)."""
        return self.laid(x, 0)[: self.shape[0] * self.number * _BLOCK].view(-1, _BLOCK, x.shape[2])

    def keys(self, x: Tensor) -> Tensor:
        """(B,T,C) as (B·n,C,reach): a view in which neighbours overlap."""
        return self.laid(x, self.half).unfold(0, self.reach, _BLOCK)

    def unblocked(self, y: Tensor, before: int = 0) -> Tensor:
        """Rows (B·rows,C) as (B,T,C): what `laid` did, undone."""
        videos = y[: self.shape[0] * self.number * _BLOCK].view(self.shape[0], -1, y.shape[-1])
        return videos[:, before : before + self.shape[1]]

    def summed(self, parts: Tensor, into: Tensor) -> None:
        """Add parts (B·n,reach,D), one for each key of each block, to rows (B·rows + reach,D) of the keys."""
        for first in range(0, self.reach, _BLOCK):
            own = parts[:, first : first + _BLOCK]
            rows = into[first : first + len(parts) * _BLOCK].view(len(parts), _BLOCK, -1)
            rows[:, : own.shape[1]] += own


def _answer(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, blocks: _Blocks, real: Tensor, heads: int, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The attention (B,T,C), and with `keep` the weights (B·n,block,reach) of each head."""
    queries, keys, values = blocks.queries(q), blocks.keys(k), blocks.keys(v)
    shown = blocks.laid(real.unsqueeze(2), blocks.half).squeeze(1).unfold(0, blocks.reach, _BLOCK)
    place = blocks.place
    near = (place >= 0) & (place < blocks.window)
    hidden = torch.where(shown[:, None] & near, 0.0, _HIDDEN)  # (B·n,block,reach)
    y = torch.empty_like(queries)
    kept = []
    for head, own in enumerate(_heads(q, heads)):
        added = hidden if bias is None else hidden + bias[head][place.clamp(0, blocks.window - 1)]
        scores = torch.baddbmm(added, queries[:, :, own], keys[:, own], alpha=_scale(q, heads))
        weights = scores.softmax(-1)
        torch.bmm(weights, values[:, own].transpose(1, 2), out=y[:, :, own])
        if keep:
            kept.append(weights)
    return blocks.unblocked(y.flatten(0, 1)), kept


def _heads(x: Tensor, heads: int) -> list[slice]:
    depth = x.shape[2] // heads
    return [slice(head * depth, (head + 1) * depth) for head in range(heads)]


def _scale(x: Tensor, heads: int) -> float:
    return float((x.shape[2] // heads) ** -0.5)


class _WindowAttention(torch.autograd.Function):
    """`_answer` with its gradients, which sum over the blocks that a key is seen from."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, real: Tensor, heads: int, window: int
    ) -> Tensor:
        ctx.blocks, ctx.heads, ctx.biased = _Blocks(q.shape, window), heads, bias is not None
        y, weights = _answer(q, k, v, bias, ctx.blocks, real, heads, keep=True)
        ctx.save_for_backward(q, k, v, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        blocks: _Blocks = ctx.blocks
        scale = _scale(q, ctx.heads)
        queries, keys, values, slopes = blocks.queries(q), blocks.keys(k), blocks.keys(v), blocks.queries(grads[0])
        to_q = torch.empty_like(queries)
        to_k, to_v = (q.new_zeros(len(queries) * _BLOCK + 2 * blocks.reach, q.shape[2]) for _ in range(2))
        to_bias = q.new_zeros(ctx.heads, blocks.window) if ctx.biased else None
        place = blocks.place
        near = (place >= 0) & (place < blocks.window)
        for head, own in enumerate(_heads(q, ctx.heads)):
            weight, slope = weights[head], slopes[:, :, own]
            blocks.summed(weight.transpose(1, 2) @ slope, to_v[:, own])
            to_score = torch.bmm(slope, values[:, own])
            to_score = torch._softmax_backward_data(to_score, weight, -1, weight.dtype)
            torch.bmm(to_score, keys[:, own].transpose(1, 2), out=to_q[:, :, own])
            blocks.summed(torch.bmm(to_score.transpose(1, 2), queries[:, :, own]), to_k[:, own])
            if to_bias is not None:
                to_bias[head].index_add_(0, place[near], to_score.sum(0)[near])
        return (
            blocks.unblocked(to_q.flatten(0, 1)).mul(scale), blocks.unblocked(to_k, blocks.half).mul(scale),
            blocks.unblocked(to_v, blocks.half), to_bias, None, None, None,
        )  # fmt: skip
