"""EgoVLP (Lin et al., NeurIPS 2022): videos and sentences of egocentric action in one space of 256 dimensions.

The video tower is the space-time transformer of Frozen in Time (Bain et al., ICCV 2021): in each block every patch
looks at its own place in all frames, then at all places of its own frame; the class token looks at everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel

from core.checkpoint import load_weights, read_weights
from core.nn import Mlp
from projects.lego.metrics.pixels import cropped, normalized

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, PATCH = 224, 16


class EgoVLP(nn.Module):
    """Both towers; `frames` is the length the temporal positions were learned for (4: Ego4D, 16: EPIC-Kitchens).

    Names are those of the released files (`egovlp.pth`, `epic_mir_plus.pth`). `width`, `depth`, `heads` and `text` (the
    settings of DistilBERT) make smaller towers, for tests.
    """

    def __init__(
        self, frames: int, *, width: int = 768, depth: int = 12, heads: int = 12, text: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.frames = frames
        self.video_model = SpaceTimeTransformer(frames, width, depth, heads)
        self.text_model = DistilBertModel(DistilBertConfig(**(text or {})))
        self.vid_proj = nn.Sequential(nn.Linear(width, 256))
        self.txt_proj = nn.Sequential(nn.ReLU(), nn.Linear(self.text_model.config.dim, 256))

    def embed_video(self, video: Tensor) -> Tensor:
        """Normalized frames (B,T,3,224,224), T at most `frames`, to (B,256), not of unit length."""
        out: Tensor = self.vid_proj(self.video_model(video))
        return out

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B,L) and their mask to (B,256), from the first token."""
        hidden = self.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
        out: Tensor = self.txt_proj(hidden[:, 0])
        return out


class SpaceTimeTransformer(nn.Module):
    """A ViT whose blocks attend along time, then in space."""

    def __init__(self, frames: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        places = (SIZE // PATCH) ** 2
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places + 1, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, frames, width))
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, video: Tensor) -> Tensor:
        """(B,T,3,224,224) to the class token (B,width)."""
        batch, frames = video.shape[:2]
        longest = self.temporal_embed.shape[1]
        if frames > longest or video.shape[2:] != (3, SIZE, SIZE):
            raise ValueError(f"EgoVLP takes (B,T,3,{SIZE},{SIZE}), T up to {longest}; got {tuple(video.shape)}")
        patches = self.patch_embed["proj"](video.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B*T,places,width)
        patches = patches.unflatten(0, (batch, frames)) + self.pos_embed[:, None, 1:]
        patches = patches + self.temporal_embed[:, :frames, None]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        tokens = torch.cat([first, patches.flatten(1, 2)], dim=1)  # frame after frame
        for block in self.blocks:
            tokens = block(tokens, frames)
        out: Tensor = self.norm(tokens[:, 0])
        return out


class SpaceTimeBlock(nn.Module):
    """Time, space, MLP; the space branch is added to the block's input, not to the time branch, as released."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.attn = DividedAttention(width, heads, "space")
        self.timeattn = DividedAttention(width, heads, "time")
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        """(B,1+T*places,width) to the same."""
        moved = tokens + self.timeattn(self.norm3(tokens), frames)
        tokens = tokens + self.attn(self.norm1(moved), frames)
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class DividedAttention(nn.Module):
    """Patches attend to the class token and to one axis only: their place over time, or their frame."""

    def __init__(self, width: int, heads: int, axis: str) -> None:
        super().__init__()
        self.heads, self.axis = heads, axis
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        """(B,1+T*places,width) to the same."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B,heads,L,d) each
        first = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        patches = F.scaled_dot_product_attention(self._groups(q, frames), self._keys(k, frames), self._keys(v, frames))
        patches = patches.unflatten(0, (len(tokens), -1))
        order = (0, 2, 1, 3, 4) if self.axis == "space" else (0, 2, 3, 1, 4)
        joined = torch.cat([first, patches.permute(order).flatten(2, 3)], dim=2)
        out: Tensor = self.proj(joined.transpose(1, 2).flatten(2))
        return out

    def _groups(self, x: Tensor, frames: int) -> Tensor:
        """Patches of (B,heads,1+T*places,d) as (B*T,heads,places,d) for space, (B*places,heads,T,d) for time."""
        order = (0, 2, 1, 3, 4) if self.axis == "space" else (0, 3, 1, 2, 4)
        groups: Tensor = x[:, :, 1:].unflatten(2, (frames, -1)).permute(order).flatten(0, 1)
        return groups

    def _keys(self, x: Tensor, frames: int) -> Tensor:
        """The same groups, each with the class token in front."""
        members = self._groups(x, frames)
        first = x[:, :, :1].repeat_interleave(len(members) // len(x), dim=0)
        return torch.cat([first, members], dim=2)


def seen(image: Tensor) -> Tensor:
    """A picture (3,H,W) in [0, 1] as EgoVLP sees it (3,224,224): the central square, normalized."""
    return normalized(cropped(image, SIZE), MEAN, STD)


class Clips(nn.Module):
    """Embeds still pictures as clips that do not move; given source frames, they are the clips' first half."""

    def __init__(self, model: EgoVLP) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Sequence[Tensor], sources: Sequence[Tensor] | None = None) -> Tensor:
        """Pictures (3,H,W) in [0, 1], sizes may differ, to (B,256), not of unit length."""
        stills = torch.stack([seen(image) for image in images])
        video = stills[:, None].expand(-1, self.model.frames, -1, -1, -1)
        if sources is not None:
            half = self.model.frames // 2
            before = torch.stack([seen(source) for source in sources])[:, None].expand(-1, half, -1, -1, -1)
            video = torch.cat([before, video[:, half:]], dim=1)
        out: Tensor = self.model.embed_video(video)
        return out


def load(source: str | Path | dict[str, Tensor], frames: int) -> EgoVLP:
    """The model of a released file (or of its tensors) for `frames` frames.

    Temporal positions are cut, or followed by zeros, to fit.

    Raises:
        ValueError: when the file holds another model.
    """
    model = EgoVLP(frames)
    tensors = dict(source) if isinstance(source, dict) else read_weights(source, allow="inert")[0]
    for name in [name for name in tensors if name.endswith("video_model.temporal_embed")]:
        learned = tensors[name]
        tensors[name] = F.pad(learned, (0, 0, 0, max(0, frames - learned.shape[1])))[:, :frames]
    load_weights(model, tensors, rules=[(r"^module\.", "")], drop=[r"position_ids$"])
    return model.eval().requires_grad_(False)
