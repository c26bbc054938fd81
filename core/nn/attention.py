"""Scaled dot-product attention: over everything, over a window at linear cost, with fewer keys than queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn.rope import Rope

_BLOCK = 64  # queries that share their keys in windowed attention: smaller wastes less, larger fills the kernels
_MAX_BATCH = 65535  # the fused CUDA kernels start one grid row per sample, and a grid has no more


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, by PyTorch's fused kernels; a query that may see no key gets zeros.

    q (B,heads,T,D), k and v (B,kv_heads,S,D), heads a multiple of kv_heads; out (B,heads,T,D).

    * `mask` bool, True where a key is real: (B,S), or without a window anything that broadcasts to (B,heads,T,S).
    * `bias` float, finite, broadcasts to (B,heads,T,S); with a window to (B,heads,T,window), its last axis being the
      place in the window from the earliest key to the latest.
    * `causal`: no key after the query; where S > T the queries are the last T positions.
    * `window` keys at most are seen by each query: itself and (window-1)/2 on both sides (odd), or itself and
      window-1 before it when causal. Time and memory are O(T·window), for any T; needs S = T.
    * `dropout` acts whenever it is above 0: pass 0 in evaluation.

    Raises:
        ValueError: for shapes that do not fit each other.
    """
    _check(q, k, v, mask, window)
    if window is not None:
        return _attend_window(q, k, v, mask, bias, window, causal, dropout)
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    # While a graph is traced sizes are tensors, and so is their comparison.
    plain_causal = causal and mask is None and bias is None and bool(q.shape[2] == k.shape[2])
    if causal and not plain_causal:
        order = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        order = order.tril(k.shape[2] - q.shape[2])
        mask = order if mask is None else order & mask
    return _attend(q, k, v, mask, bias, plain_causal, dropout)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"attend takes q (B,heads,T,D), k and v (B,kv_heads,S,D); got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"q and k need the same B and D, and heads a multiple of kv_heads; got {shapes}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True where a key is real; got {mask.dtype}; pass numbers as bias")
    if mask is not None and mask.ndim not in (2, 4):
        raise ValueError(f"mask must be (B,S), or broadcast to (B,heads,T,S) in 4 dimensions; got {tuple(mask.shape)}")
    if mask is not None and mask.ndim == 2 and mask.shape != (k.shape[0], k.shape[2]):
        raise ValueError(f"mask must be (B,S) = {(k.shape[0], k.shape[2])}; got {tuple(mask.shape)}")
    if window is None:
        return
    if window < 1:
        raise ValueError(f"window must be at least 1 key; got {window}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"window needs as many keys as queries; got {shapes}")
    if mask is not None and mask.ndim != 2:
        raise ValueError(f"with a window the mask must be (B,S); got {tuple(mask.shape)}")


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    sees = None
    if mask is not None:
        # What a row without any key gives is up to each kernel (NaN in some): let it see all, and zero it after.
        sees = mask.any(-1, keepdim=True)
        mask = mask | ~sees
    extra = mask
    if bias is not None:
        bias = bias.to(q.dtype)
        extra = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    grouped = bool(q.shape[1] != k.shape[1])
    if grouped and extra is not None:  # kernels that take both groups and a mask are the slow ones
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = False
    out: Tensor = F.scaled_dot_product_attention(q, k, v, extra, dropout, causal, enable_gqa=grouped)
    return out.masked_fill(~sees, 0.0) if sees is not None else out


def _attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    window: int,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Cuts time into blocks; each block of queries sees only the keys that its windows can reach.

    The blocks become samples of one batch, so that a fused kernel does all of them at once.
    """
    batch, _, length, _ = q.shape
    if not causal and window % 2 == 0:
        raise ValueError(f"a window around the query must be odd; got {window}")
    if bias is not None and (bias.ndim != 4 or bias.shape[-1] != window):
        raise ValueError(
            f"with a window the bias must be (B,heads,T,{window}) or broadcast to it; got {tuple(bias.shape)}"
        )
    longest = length if causal else 2 * length - 1  # what a window can reach at all
    if window > longest:
        spare = window - longest
        if bias is not None:
            bias = bias[..., spare:] if causal else bias[..., spare // 2 : -(spare // 2)]
        window = longest
    block = min(length, max(window, _BLOCK, -(-length // max(1, _MAX_BATCH // batch))))
    count = -(-length // block)
    reach = block + window - 1  # keys that a block of queries sees
    before = window - 1 if causal else window // 2
    behind = (count - 1) * block + reach - before - length

    def blocks(x: Tensor) -> Tensor:
        """Keys or values (B,heads,T,D) to (B*count,heads,reach,D); neighbours overlap."""
        x = F.pad(x, (0, 0, before, behind)).unfold(2, reach, block)
        return x.permute(0, 2, 1, 4, 3).flatten(0, 1)

    queries = F.pad(q, (0, 0, 0, count * block - length)).unflatten(2, (count, block)).transpose(1, 2).flatten(0, 1)
    real = mask if mask is not None else torch.ones(1, length, dtype=torch.bool, device=q.device)
    real = F.pad(real, (before, behind)).unfold(1, reach, block)  # (B or 1,count,reach)
    place = torch.arange(reach, device=q.device) - torch.arange(block, device=q.device)[:, None]  # in the window
    allowed = real[:, :, None, :] & ((place >= 0) & (place < window))
    allowed = allowed.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)  # (B*count,1,block,reach)
    if bias is not None:
        bias = _skew(bias, place.clamp(0, window - 1), batch, count, length)
    out = _attend(queries, blocks(k), blocks(v), allowed, bias, False, dropout)
    joined: Tensor = out.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)
    return joined[:, :, :length]


def _skew(bias: Tensor, place: Tensor, batch: int, count: int, length: int) -> Tensor:
    """A bias by place in the window (B,heads,T,window) as one by key of the block (B*count,heads,block,reach)."""
    block, reach = place.shape
    if bias.shape[2] == 1:
        rows = bias[:, :, None].expand(-1, -1, count, block, -1)
    else:
        rows = F.pad(bias, (0, 0, 0, count * block - length)).unflatten(2, (count, block))
    skewed = rows.gather(-1, place.expand(*rows.shape[:3], block, reach))
    return skewed.transpose(1, 2).expand(batch, -1, -1, -1, -1).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves, or to a context.

    `kv_heads` below `heads` shares keys and values between neighbouring heads (grouped queries); `qk_norm` puts an
    RMSNorm on each head's queries and keys; `rope` turns them by position; `window` and `causal` are those of
    `attend`. `qkv` holds the three projections in this order, in one weight.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        qk_norm: bool = False,
        rope: Rope | None = None,
        window: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if dim % heads or heads % kv_heads:
            raise ValueError(
                "dim must be a multiple of heads, and heads of kv_heads; "
                f"got dim={dim}, heads={heads}, kv_heads={kv_heads}"
            )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.window, self.causal, self.dropout = window, causal, dropout
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=bias)
        self.q_norm: nn.Module = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.rope = rope
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """x (B,T,dim) to the same; `context` (B,S,dim) gives keys and values, x itself when left out.

        `mask` (of keys) and `bias` as in `attend`, `positions` as in `Rope`.

        Raises:
            ValueError: as `attend`; and for a context beside rope, whose positions would have no common origin.
        """
        widths = [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim]
        if context is None:
            q, k, v = self.qkv(x).split(widths, dim=-1)
        else:
            if self.rope is not None:
                raise ValueError(
                    "rope sees differences of positions in one sequence: build Attention without it for context"
                )
            weight, bias_ = self.qkv.weight, self.qkv.bias
            q = F.linear(x, weight[: widths[0]], None if bias_ is None else bias_[: widths[0]])
            k, v = F.linear(context, weight[widths[0] :], None if bias_ is None else bias_[widths[0] :]).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, positions), self.rope(k, positions)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, mask=mask, bias=bias, window=self.window, causal=self.causal, dropout=dropout)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out
