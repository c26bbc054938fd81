"""MViT-B (Fan et al., ICCV 2021): a multiscale transformer with absolute positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.nn import DropPath, Mlp
from projects.lta_memvit.model.memvit import LayerNorm, attend
from projects.lta_memvit.model.plan import BlockPlan, Grid, Variant, blocks, patch_grid
from projects.lta_memvit.model.tokens import PatchEmbed, Pool, grid_of, initialize, pool_skip, to_tokens, to_video


class MViT(nn.Module):
    """Video (B, 3, T, H, W) -> features (B, D): the class token after the last norm.

    Absolute positions fit one size of clips: `frames` and `crop` pixels in height and width.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        frames: int,
        crop: int,
        head: nn.Module,
        drop_path: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        plans = blocks(variant, frames, crop, "mlp")
        self.width, self.recompute = plans[-1].outputs, recompute
        self.grid = patch_grid(frames, crop)
        self.patch_embed = PatchEmbed(variant.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, variant.width))
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, self.grid[1] * self.grid[2], variant.width))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid[0], variant.width))
        self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, variant.width))
        rates = [drop_path * plan.index / max(1, len(plans) - 1) for plan in plans]
        self.blocks = nn.ModuleList(Block(plan, drop_path=rate) for plan, rate in zip(plans, rates, strict=True))
        self.norm = LayerNorm(self.width)
        self.head = head
        initialize(self)

    def features(self, video: Tensor) -> Tensor:
        """Shapes: see the class.

        Raises: ValueError for clips of another size.
        """
        patches, grid = self.patch_embed(video)
        if grid != self.grid:
            raise ValueError(
                f"MViT was built for {self.grid[0]}x{self.grid[1]}x{self.grid[2]} patches (frames, rows, columns), the "
                f"clips {tuple(video.shape)} have {grid[0]}x{grid[1]}x{grid[2]}; set clip.frames and clip.crop"
            )
        positions = self.pos_embed_temporal.unsqueeze(2) + self.pos_embed_spatial.unsqueeze(1)  # (1, T, H·W, D)
        first = (self.cls_token + self.pos_embed_class).expand(len(patches), -1, -1)
        x = torch.cat([first, patches + positions.flatten(1, 2)], 1)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x, grid = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x, grid = block(x, grid)
        token: Tensor = self.norm(x[:, 0])
        return token


class Block(nn.Module):
    """Attention and MLP, each behind a norm; the MLP may widen: tokens (B, 1 + T·H·W, inputs) and grid -> the same."""

    def __init__(self, plan: BlockPlan, *, drop_path: float) -> None:
        super().__init__()
        self.plan = plan
        self.norm1 = LayerNorm(plan.inputs)
        self.attn = Attention(plan)
        self.norm2 = LayerNorm(plan.inner)
        self.mlp = Mlp(plan.inner, 4 * plan.inner, plan.outputs)
        if plan.inner != plan.outputs:
            self.proj = nn.Linear(plan.inner, plan.outputs)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Shapes: see the class."""
        attended, pooled = self.attn(self.norm1(x), grid)
        x = pool_skip(x, grid, self.plan.q_stride) + self.drop_path(attended)
        normed = self.norm2(x)
        if self.plan.inner != self.plan.outputs:
            x = self.proj(normed)
        return x + self.drop_path(self.mlp(normed)), pooled


class Attention(nn.Module):
    """Queries, keys and values are projected, then pooled head by head where a stride is more than 1."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        self.plan = plan
        width = plan.inner // plan.heads
        self.scale = width**-0.5
        self.qkv = nn.Linear(plan.inputs, 3 * plan.inner)
        for name, stride in (("q", plan.q_stride), ("k", plan.kv_stride), ("v", plan.kv_stride)):
            if stride > 1:
                setattr(self, f"pool_{name}", Pool(width, stride))
                setattr(self, f"norm_{name}", nn.LayerNorm(width, eps=1e-5))  # unlike all other norms here
        self.proj = nn.Linear(plan.inner, plan.inner)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens (B, 1 + T·H·W, inputs) -> (B, 1 + pooled, inner) and their grid."""
        q, k, v = self.qkv(x).chunk(3, -1)
        q, q_grid = self._pool("q", q, grid)
        k, _ = self._pool("k", k, grid)
        v, _ = self._pool("v", v, grid)
        q, k, v = (y.unflatten(-1, (self.plan.heads, -1)).transpose(1, 2) for y in (q, k, v))
        attended = attend(q * self.scale, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2)), q_grid

    def _pool(self, name: str, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens of one of the three, pooled and normalized, and their grid; the class token is only normalized."""
        if not hasattr(self, f"pool_{name}"):
            return x, grid
        video = getattr(self, f"pool_{name}")(to_video(x[:, 1:], grid))
        tokens = torch.cat([x[:, :1], to_tokens(video)], 1)
        normed = getattr(self, f"norm_{name}")(tokens.unflatten(-1, (self.plan.heads, -1))).flatten(2)
        return normed, grid_of(video)
