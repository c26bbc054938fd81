"""MeMViT (Wu et al., CVPR 2022): a multiscale transformer whose every other block also attends to earlier clips."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.nn import DropPath, Mlp
from projects.lta_memvit.model import relative
from projects.lta_memvit.model.memory import Memory, Pair, Past
from projects.lta_memvit.model.plan import BlockPlan, Grid, Variant, Widen, blocks
from projects.lta_memvit.model.tokens import (
    Compress,
    PatchEmbed,
    Pool,
    grid_of,
    initialize,
    pool_skip,
    to_tokens,
    to_video,
)

COMPRESSION = (4, 2, 2)  # strides of the compression
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class MeMViT(nn.Module):
    """Video (B, 3, T, H, W) -> features (B, D): the class token after the last norm.

    Blocks of even number attend to what `memory` holds of earlier clips; all own the weights for it, as the published
    files do, and those of the others never learn. Without a memory, or without `streams`, every clip stands alone.
    With `causal` no token sees a later one of its clip, and none the class token. With `recompute` the activations of
    blocks without memory are computed again in the backward pass (an exchange with memory happens once).
    """

    def __init__(
        self,
        variant: Variant,
        *,
        frames: int,
        crop: int,
        head: nn.Module,
        widen: Widen = "attention",
        causal: bool = False,
        drop_path: float = 0.0,
        memory: Memory | None = None,
        length: int = 3,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.memory, self.recompute = memory, recompute
        plans = blocks(variant, frames, crop, widen)
        self.width = plans[-1].outputs
        self.cls_token = nn.Parameter(torch.zeros(1, 1, variant.width))
        self.patch_embed = PatchEmbed(variant.width)
        rates = [drop_path * plan.index / max(1, len(plans) - 1) for plan in plans]
        self.blocks = nn.ModuleList(
            Block(plan, causal=causal, drop_path=rate, length=length) for plan, rate in zip(plans, rates, strict=True)
        )
        self.norm = LayerNorm(self.width)
        self.head = head
        initialize(self)
        for block in self._blocks:
            block.attn.remember(memory is not None and block.plan.index % 2 == 0)

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def features(self, video: Tensor, streams: Sequence[Hashable] | None = None) -> Tensor:
        """Shapes: see the class. `streams` tells for each clip which stream it continues.

        Raises: ValueError for clips shorter than two frames or smaller than a patch.
        """
        patches, grid = self.patch_embed(video)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)
        memory = self.memory if streams is not None else None
        if memory is not None:
            memory.begin(streams or (), self._blocks[0].attn, video.device)
        for block in self._blocks:
            if self.recompute and torch.is_grad_enabled() and not (memory is not None and block.attn.remembers):
                x, grid = checkpoint(block, x, grid, memory, use_reentrant=False)
            else:
                x, grid = block(x, grid, memory)
        token: Tensor = self.norm(x[:, 0])
        return token


class Block(nn.Module):
    """Attention and MLP, each behind a norm: tokens (B, 1 + T·H·W, inputs) and grid -> the same, pooled and widened."""

    def __init__(self, plan: BlockPlan, *, causal: bool, drop_path: float, length: int) -> None:
        super().__init__()
        self.plan = plan
        self.norm1 = LayerNorm(plan.inputs)
        self.attn = Attention(plan, causal=causal, length=length)
        self.norm2 = LayerNorm(plan.inner)
        self.mlp = Mlp(plan.inner, 4 * plan.inner, plan.outputs)
        if plan.inputs != plan.outputs:
            self.proj = nn.Linear(plan.inputs, plan.outputs)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid, memory: Memory | None = None) -> tuple[Tensor, Grid]:
        """Shapes: see the class."""
        plan, normed = self.plan, self.norm1(x)
        attended, pooled = self.attn(normed, grid, memory)
        if plan.inputs != plan.inner:
            x = self.proj(normed)
        x = pool_skip(x, grid, plan.q_stride) + self.drop_path(attended)
        normed = self.norm2(x)
        if plan.inner != plan.outputs:
            x = self.proj(normed)
        return x + self.drop_path(self.mlp(normed)), pooled


class Attention(nn.Module):
    """Pooling attention: tokens are pooled head by head, then projected; the queries are added to the result.

    Tokens (B, 1 + T·H·W, inputs) -> (B, 1 + pooled, inner) and their grid.
    """

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    compress_k: Compress

    def __init__(self, plan: BlockPlan, *, causal: bool, length: int) -> None:
        super().__init__()
        self.plan, self.causal = plan, causal
        self.remembers = True
        pooled, width = plan.inputs // plan.heads, plan.inner // plan.heads
        self.scale = width**-0.5
        for name, stride in (("q", plan.q_stride), ("k", plan.kv_stride), ("v", plan.kv_stride)):
            setattr(self, f"pool_{name}", Pool(pooled, stride, causal=causal))
            setattr(self, f"norm_{name}", LayerNorm(pooled))
            setattr(self, name, nn.Linear(plan.inputs, plan.inner))
        self.proj = nn.Linear(plan.inner, plan.inner)
        for name in ("k", "v"):
            setattr(self, f"compress_{name}", Compress(plan.inputs))
            setattr(self, f"norm_compress_{name}", LayerNorm(plan.inputs))

        def table(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(size, width))

        side, frames = plan.q_grid[1], plan.grid[0]
        self.rel_pos_h, self.rel_pos_w = (table(2 * max(side, plan.kv_grid[1]) - 1) for _ in range(2))
        self.rel_pos_t = table(2 * frames - 1)
        small = plan.kv_grid[1] // COMPRESSION[1]
        self.rel_pos_mem_h, self.rel_pos_mem_w = (table(2 * max(side, small) - 1) for _ in range(2))
        self.rel_pos_mem_t = table(length * frames - 1)

    def remember(self, wanted: bool) -> None:
        """Attend to memory from now on or not; the weights that only memory needs learn accordingly."""
        self.remembers = wanted
        for name, parameter in self.named_parameters():
            if "compress" in name or "_mem_" in name:
                parameter.requires_grad_(wanted)

    @property
    def learns(self) -> bool:
        """Will there be gradients for the compression?"""
        return torch.is_grad_enabled() and bool(self.compress_k.weight.requires_grad)

    def forward(self, x: Tensor, grid: Grid, memory: Memory | None = None) -> tuple[Tensor, Grid]:
        """Shapes: see the class."""
        q, q_grid = self._pool("q", x, grid)
        k, kv_grid = self._pool("k", x, grid)
        v, _ = self._pool("v", x, grid)
        past = None
        if memory is not None and self.remembers:
            past = memory.exchange(self.plan.index, self, k, v, kv_grid)
        keys, values = self.project(k, v)
        if past is not None:
            keys, values = torch.cat([past.keys, keys], 1), torch.cat([past.values, values], 1)
        q, keys, values = (y.unflatten(-1, (self.plan.heads, -1)).transpose(1, 2) for y in (self.q(q), keys, values))

        attended = attend(*self._with_positions(q, keys, q_grid, kv_grid, past), values)
        attended = attended + F.pad(q[:, :, 1:], (0, 0, 1, 0))  # the class token's query is not added
        return self.proj(attended.transpose(1, 2).flatten(2)), q_grid

    def _pool(self, name: str, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens pooled with the kernel and norm of `name`, and their grid; the class token is only normalized."""
        video = getattr(self, f"pool_{name}")(to_video(x[:, 1:], grid))
        tokens = torch.cat([x[:, :1], to_tokens(video)], 1)
        normed = getattr(self, f"norm_{name}")(tokens.unflatten(-1, (self.plan.heads, -1))).flatten(2)
        return normed, grid_of(video)

    def _with_positions(self, q: Tensor, k: Tensor, q_grid: Grid, kv_grid: Grid, past: Past | None) -> Pair:
        """Queries and keys (B, heads, tokens, D) with the channels of relative positions and masks."""
        tables = relative.Tables(self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        also, entries, small = None, 0, (0, 0, 0)
        if past is not None:
            entries, small = past.entries, past.grid
            memory_tables = relative.Tables(self.rel_pos_mem_t, self.rel_pos_mem_h, self.rel_pos_mem_w)
            also = relative.Memory(entries, small, COMPRESSION[0], memory_tables)
        q_more = [relative.query_channels(q, q_grid, kv_grid, tables, also, causal=self.causal)]
        k_more = [relative.key_channels(kv_grid, entries, small, q.device, q.dtype).expand(*k.shape[:2], -1, -1)]
        hidden = self._hidden(k, kv_grid, past)
        if hidden is not None:
            q_more.append(q.new_ones(1, 1, 1, 1).expand(*q.shape[:3], 1))
            k_more.append(hidden[:, None, :, None].to(q.dtype).expand(*k.shape[:3], 1) * relative.MASKED)
        return torch.cat([q * self.scale, *q_more], -1), torch.cat([k, *k_more], -1)

    def _hidden(self, k: Tensor, kv_grid: Grid, past: Past | None) -> Tensor | None:
        """bool (B, keys): keys that no query may see; None when all may be seen."""
        missing = None if past is None else past.missing
        if missing is None and not self.causal:
            return None
        hidden = torch.zeros(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        present = 1 + kv_grid[0] * kv_grid[1] * kv_grid[2]
        if missing is not None:
            hidden[:, :-present] = missing.repeat_interleave((k.shape[2] - present) // missing.shape[1], 1)
        if self.causal:
            hidden[:, -present] = True  # the class token knows all frames
        return hidden

    def compress(self, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Grid]:
        """Pooled keys and values (B, 1 + tokens, inputs) of a clip -> a dozenth of them, and their grid."""
        small = []
        for name, tokens in (("k", k), ("v", v)):
            video = getattr(self, f"compress_{name}")(to_video(tokens[:, 1:], grid))
            together = torch.cat([tokens[:, :1], to_tokens(video)], 1)
            small.append(getattr(self, f"norm_compress_{name}")(together))
        return small[0], small[1], grid_of(video)

    def project(self, k: Tensor, v: Tensor) -> Pair:
        """Keys and values (B, tokens, inputs) -> (B, tokens, inner)."""
        return self.k(k), self.v(v)


CHUNK = 2**18  # logits that a CPU keeps in its cache


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of q·k, unscaled, times v: (B, heads, tokens, D or other) -> (B, heads, queries, width of v).

    A fused kernel on a GPU. On a CPU some queries at a time, so that their logits are still in the cache when the
    softmax and the values come: twice as fast as all at once.
    """
    if q.device.type != "cpu":
        width = -(-q.shape[-1] // 8) * 8  # fused kernels want multiples of 8, and one width for all three
        q, k, wide = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, wide, scale=1.0)[..., : v.shape[-1]]
    rows = max(64, CHUNK // (k.shape[0] * k.shape[1] * k.shape[2]))
    keys = k.transpose(-1, -2)
    parts = [(part @ keys).softmax(-1) @ v for part in q.split(rows, 2)]
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]
