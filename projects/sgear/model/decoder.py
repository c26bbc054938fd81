"""The temporal causal decoder: GPT-2's stack over features, with GPT-2's parameter names and a key/value cache.

Radford et al., 2019, as AVT (Girdhar & Grauman, 2021) uses it: features instead of words, linear maps in and out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.nn import attend
from projects.sgear.model.tca import split_heads

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values (B,heads,T,d) of every layer so far."""


class Decoded(NamedTuple):
    """What the decoder says about a clip of T observed steps."""

    past: Tensor
    """(B,T,D): the first observed feature, then the prediction for each later observed step."""
    steps: Tensor
    """(B,T+output_len-1,D): the prediction made after each step; the last `output_len` lie in the future."""
    error: Tensor
    """(B,T-1,D): squared difference of each prediction for an observed step and what was observed."""


class Projection(nn.Module):
    """A linear layer whose weight is stored input x output, as GPT-2 does."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, out))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """x (...,width) to (...,out)."""
        return nn.functional.linear(x, self.weight.mT, self.bias)


class CausalAttention(nn.Module):
    """Multi-head attention to this and earlier steps."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn = Projection(width, 3 * width)
        self.c_proj = Projection(width, width)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B,T,width), the latest steps, to the same; and the keys and values of all steps."""
        q, k, v = (split_heads(y, self.heads) for y in self.c_attn(x).chunk(3, -1))
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        y = attend(q, k, v, causal=True, dropout=self.dropout if self.training else 0.0)
        return self.c_proj(y.transpose(1, 2).flatten(2)), (k, v)


class FeedForward(nn.Module):
    """Two layers around a tanh-GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Projection(width, 4 * width)
        self.c_proj = Projection(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (...,width), shape kept."""
        out: Tensor = self.c_proj(nn.functional.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Layer(nn.Module):
    """x + dropout(attention(norm x)), then x + dropout(feed-forward(norm x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B,T,width), shape kept; and the cache with it."""
        y, cache = self.attn(self.ln_1(x), cache)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.ln_2(x))), cache


class Gpt2(nn.Module):
    """Learned positions, layers, a last norm."""

    def __init__(self, width: int, layers: int, heads: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.wpe = nn.Embedding(positions, width)
        self.h = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self._initialize(layers)

    def _initialize(self, layers: int) -> None:
        nn.init.normal_(self.wpe.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, Projection):
                last = name.endswith("c_proj")  # the layers that write into the residual stream
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Steps x (B,T,width) that follow those of the cache, to the same shape; and the cache with them.

        Raises: ValueError for more steps than there are positions.
        """
        begin = cache[0][0].shape[2] if cache else 0
        end = begin + x.shape[1]
        if end > len(self.wpe.weight):
            raise ValueError(
                f"the decoder has {len(self.wpe.weight)} positions and was given {end} steps; raise "
                "model.decoder.positions, or use fewer frames"
            )
        x = self.dropout(x + self.wpe.weight[begin:end])
        kept: Cache = []
        for number, layer in enumerate(self.h):
            x, pair = layer(x, cache[number] if cache else None)
            kept.append(pair)
        return self.ln_f(x), kept


class CausalDecoder(nn.Module):
    """Predicts, after every step, the feature of the next one (`future_predictor` in official checkpoints)."""

    def __init__(
        self, features: int, width: int = 2048, layers: int = 6, heads: int = 4, *, positions: int = 1024,
        dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = nn.Linear(features, width, bias=False)
        self.decoder = nn.Linear(width, features, bias=False)
        self.gpt_model = Gpt2(width, layers, heads, positions, dropout)

    def forward(self, features: Tensor, output_len: int = 1) -> Decoded:
        """Observed features (B,T,D); `output_len` steps into the future, each after the hidden state of the one before.

        The cache makes a step cost one row instead of the whole sequence.
        """
        hidden, cache = self.gpt_model(self.encoder(features))
        parts = [hidden]
        for _ in range(output_len - 1):
            hidden, cache = self.gpt_model(hidden[:, -1:], cache)
            parts.append(hidden)
        steps = self.decoder(torch.cat(parts, dim=1) if len(parts) > 1 else hidden)
        observed = features.shape[1]
        error = (steps[:, : observed - 1].float() - features[:, 1:].float()).square()
        past = torch.cat([features[:, :1].to(steps.dtype), steps[:, : observed - 1]], dim=1)
        return Decoded(past, steps, error)

    def next(self, feature: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """The prediction (B,1,D) after one more observed feature (B,1,D), and the cache for the step after it."""
        hidden, cache = self.gpt_model(self.encoder(feature), cache)
        return self.decoder(hidden), cache
