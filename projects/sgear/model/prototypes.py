"""Prototypes: which of them are near, and the attention that mixes the nearest into the features of a clip."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.sgear.model.tca import Merge, split_heads

EPS = 1e-8


def unit(x: Tensor) -> Tensor:
    """Vectors (...,D) at length 1, in float32."""
    return F.normalize(x.float(), dim=-1, eps=EPS)


def cosines(x: Tensor, directions: Tensor) -> Tensor:
    """Cosines of x (...,D) to prototypes (K,D) that have length 1 already: (...,K), in float32 under autocast too.

    A product of two small matrices; comparing pairs elementwise would build (B,T,K,D). Float32, because the softmax and
    the losses look at differences in the third digit.
    """
    with torch.autocast(x.device.type, enabled=False):
        return unit(x) @ directions.T


def resize_width(prototypes: Tensor, width: int) -> Tensor:
    """Prototypes (K,D) at another width, interpolated along it with half-pixel centers, as the official code does."""
    if prototypes.shape[1] == width:
        return prototypes
    return F.interpolate(prototypes[None].float(), width, mode="linear", align_corners=False)[0].to(prototypes.dtype)


class Subset(nn.Module):
    """The actions that have a prototype: all, or a share of them spread evenly over the ids."""

    def __init__(self, classes: int, share: float = 1.0) -> None:
        super().__init__()
        count = max(1, round(classes * share))
        ids = torch.linspace(0, classes - 1, count).round().long()
        self.whole = count == classes
        self.register_buffer("ids", ids, persistent=False)
        row = torch.full((classes,), -1)
        row[ids] = torch.arange(count)
        self.register_buffer("row", row, persistent=False)
        self.ids: Tensor
        self.row: Tensor
        """(K,): the row of each action among the chosen ones, -1 without a prototype."""

    def forward(self, table: Tensor) -> Tensor:
        """The rows (K',...) of a table (K,...)."""
        return table if self.whole else table[self.ids]


def nearest(
    clip: Tensor, directions: Tensor, values: Tensor, *, per: Literal["clip", "frame"], compat: bool
) -> tuple[Tensor, Tensor]:
    """The tokens (B,T,D) that a clip (B,T,D) chooses by cosine, rows of `values` (K,D), and their ids (B,T).

    `per="clip"`: the T rows nearest to the mean over time, best first; `"frame"`: the nearest one for each frame.
    `directions` are the prototypes at length 1. `compat` repeats what the released code does with the chosen rows: it
    leaves their order to the kernel and hands row i·B+b of all to sample b as its number i, whoever chose it, so that
    an answer depends on the rest of the batch.

    Raises: ValueError when there are fewer prototypes than steps.
    """
    batch, steps, width = clip.shape
    if per == "clip":
        if len(directions) < steps:
            raise ValueError(
                f"{steps} prototypes are wanted for as many frames and there are {len(directions)}; use fewer frames, "
                "model.nearest=frame, a larger model.prototypes.share or model.prototype_attention=false"
            )
        near = cosines(clip.mean(1), directions).topk(steps, sorted=not compat).indices
    else:
        near = cosines(clip, directions).argmax(-1)
    if compat:
        return values[near.flatten()].view(steps, batch, width).transpose(0, 1), near
    return values[near], near


class PrototypeAttention(nn.Module):
    """Prototype tokens ask the clip which of them matter, blended with a learned pattern over distances in time.

    The pattern is a symmetric Toeplitz matrix per head, bent by cosine and sine in turns. With `merge="published"`
    heads are merged without swapping heads and steps back, as trained weights expect it.
    """

    def __init__(self, width: int, heads: int, steps: int, merge: Merge = "published") -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")
        self.heads, self.merge = heads, merge
        self.tpl_weights = nn.Parameter(torch.full((heads, steps), 0.5))
        self.gate = nn.Parameter(torch.tensor([0.5]))
        self.proj = nn.Linear(width, width)

    def toeplitz(self) -> Tensor:
        """(heads,T,T): entry (i,j) is the head's weight for the distance |i-j|."""
        step = torch.arange(self.tpl_weights.shape[1], device=self.tpl_weights.device)
        return self.tpl_weights[:, (step[:, None] - step).abs()]

    def pattern(self) -> Tensor:
        """(heads,T,T): cosine for the heads 0-2, sine for 3-5, cosine for 6-8, sine for the rest, of `toeplitz`."""
        matrix = self.toeplitz()
        waves = [torch.cos(matrix[:3]), torch.sin(matrix[3:6]), torch.cos(matrix[6:9]), torch.sin(matrix[9:])]
        return torch.cat(waves)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Tokens (B,T,D) and the features (B,T,D) they ask, to (B,T,D).

        Raises: ValueError for another number of steps than the pattern has.
        """
        if tokens.shape[1] != self.tpl_weights.shape[1]:
            raise ValueError(
                f"the model was built for {self.tpl_weights.shape[1]} steps and was given {tokens.shape[1]}; set "
                "clip.frames to the number the weights were trained with"
            )
        values, keys = (split_heads(x.contiguous(), self.heads) for x in (tokens, features))
        scores = values * values.shape[-1] ** -0.5 @ keys.mT
        gate = self.gate.sigmoid()
        weights = gate * scores.softmax(-1) + (1 - gate) * self.pattern()
        mixed = weights.to(values.dtype) @ values  # (B,heads,T,d)
        rows = mixed.reshape(tokens.shape) if self.merge == "published" else mixed.transpose(1, 2).flatten(2)
        out: Tensor = self.proj(rows)
        return out
