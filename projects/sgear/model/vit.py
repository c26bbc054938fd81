"""The frame encoder: a vision transformer with timm's parameter names, so that its published weights load as they are.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021. Pre-norm blocks, erf-GELU, LayerNorm eps 1e-6, biased qkv.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.nn import Attention, Mlp


class PatchEmbed(nn.Module):
    """Cuts frames into patches and maps each to a token; a convolution by name, one product of matrices in fact."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B,3,H,W) to tokens (B,N,D)."""
        batch, channels, height, width = frames.shape
        rows, columns = height // self.patch, width // self.patch
        patches = frames.reshape(batch, channels, rows, self.patch, columns, self.patch)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,D), shape kept."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """All tokens of a frame after the last norm; the class token comes first."""

    def __init__(
        self, image: int = 384, patch: int = 16, width: int = 768, layers: int = 12, heads: int = 12, *,
        checkpoint: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.image, self.patch, self.width, self.checkpoint = image, patch, width, checkpoint
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (image // patch) ** 2, width))
        self.patch_embed = PatchEmbed(patch, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B,3,H,W), normalized, to tokens (B,1+N,D).

        Raises: ValueError for frames of another size than the position table is for.
        """
        if frames.shape[-2:] != (self.image, self.image):
            raise ValueError(
                f"the ViT was built for {self.image}x{self.image} pixels; got frames {tuple(frames.shape)}; set "
                "model.vit.image and the crop of the clips to one size (weights of another size are resized on loading)"
            )
        x = self.patch_embed(frames)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1) + self.pos_embed
        saving = self.checkpoint and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if saving else block(x)
        out: Tensor = self.norm(x)
        return out


class Backbone(nn.Module):
    """Holds the transformer under the name that official checkpoints give it, `backbone.model`."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        """Video (B,3,T,H,W) to tokens (B,T,N,D)."""
        frames = video.transpose(1, 2)
        tokens: Tensor = self.model(frames.flatten(0, 1))
        return tokens.view(*frames.shape[:2], *tokens.shape[1:])
