"""Attention within a window on a CPU, in evaluation: blocks of queries multiply strided views of the keys."""

from __future__ import annotations

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
    batch, length, width = q.shape
    half, depth = window // 2, width // heads
    count = -(-(length + half) // _BLOCK)  # blocks of a video
    rows, reach = count * _BLOCK, _BLOCK + window - 1

    def laid(x: Tensor, before: int) -> Tensor:
        """(B,T,C) as rows (B·rows + window - 1, C), each video `before` rows late, with zeros around it.

        A video's last block reaches into the next one, where real queries see no more than the zeros before it.
        """
        flat = x.new_empty(batch * rows + window - 1, x.shape[2])
        videos = flat[: batch * rows].view(batch, rows, -1)
        videos[:, :before] = 0
        videos[:, before : before + length] = x
        videos[:, before + length :] = 0
        flat[batch * rows :] = 0
        return flat

    queries = laid(q, 0)[: batch * rows].view(batch * count, _BLOCK, width)
    keys, values = (laid(x, half).unfold(0, reach, _BLOCK) for x in (k, v))  # (B·count,C,reach)
    shown = laid(real.unsqueeze(2), half).squeeze(1).unfold(0, reach, _BLOCK)
    place = torch.arange(reach, device=q.device) - torch.arange(_BLOCK, device=q.device)[:, None]
    near = (place >= 0) & (place < window)
    hidden = torch.where(shown[:, None] & near, 0.0, _HIDDEN)  # (B·count,block,reach)
    y = torch.empty_like(queries)
    for head in range(heads):
        own = slice(head * depth, (head + 1) * depth)
        added = hidden if bias is None else hidden + bias[head][place.clamp(0, window - 1)]
        scores = torch.baddbmm(added, queries[:, :, own], keys[:, own], alpha=depth**-0.5)
        torch.bmm(scores.softmax(-1), values[:, own].transpose(1, 2), out=y[:, :, own])
    return y.view(batch, rows, width)[:, :length]
