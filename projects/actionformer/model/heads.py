"""What is said about every point of the pyramid: classes, distances, distributions, heat.

Heads see all levels as one sequence, packed by `Packing`, so that they run once and not once for each level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.actionformer.model.blocks import norm
from projects.actionformer.model.conv import MaskedConv


class Packing:
    """Levels of a pyramid one after the other, `gap` separating steps between them.

    Convolutions must find zeros in the gaps, as beyond the ends of a level of its own: `close` puts them back after a
    norm. `points` are the packed positions of the levels' steps.
    """

    def __init__(self, lengths: Sequence[int], gap: int, device: torch.device) -> None:
        self.lengths, self.gap = tuple(lengths), gap
        starts = [sum(lengths[:level]) + level * gap for level in range(len(lengths))]
        self.spans = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        self.points = torch.cat([torch.arange(*span, device=device) for span in self.spans])
        ends = [torch.arange(end, end + gap, device=device) for _, end in self.spans[:-1]]
        self.gaps = torch.cat(ends) if ends else self.points[:0]

    def pack(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B,T_l,C) to (B,P,C)."""
        first = levels[0]
        between = first.new_zeros(len(first), self.gap, first.shape[2])
        parts = [part for level in levels for part in (level, between)]
        return torch.cat(parts[:-1], dim=1)

    def close(self, x: Tensor) -> Tensor:
        """x (B,P,C) with zeros in the gaps, in place."""
        return x.index_fill_(1, self.gaps, 0.0) if len(self.gaps) else x

    def unpack(self, x: Tensor) -> Tensor:
        """(B,P,K) to (B,N,K): the levels without gaps."""
        return x.index_select(1, self.points) if len(self.gaps) else x


class Trunk(nn.Module):
    """Convolution, norm, relu, layers - 1 times. The deep one begins with a projection and has skips over two layers.

    In the official code this is a part of each head, so names are `head.i` and `norm.i` without a name before them.
    """

    def __init__(self, width: int, hidden: int, layers: int, kernel: int, *, normalize: bool, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        if deep:
            self.input_proj = MaskedConv(width, hidden, 1, bias=not normalize)
            self.input_norm = norm(hidden) if normalize else nn.Identity()
        self.head = nn.ModuleList(
            MaskedConv(hidden if deep or index else width, hidden, kernel, bias=not normalize)
            for index in range(layers - 1)
        )
        self.norm = nn.ModuleList(norm(hidden) if normalize else nn.Identity() for _ in range(layers - 1))

    def trunk(self, x: Tensor, mask: Tensor, packing: Packing) -> Tensor:
        """x (B,P,W) and mask (B,P,1) to (B,P,H)."""
        if self.deep:
            x = F.relu_(packing.close(self.input_norm(self.input_proj(x, mask))))
        for index, (conv, normalize) in enumerate(zip(self.head, self.norm, strict=True)):
            y = F.relu_(packing.close(normalize(conv(x, mask))))
            x = y + x if self.deep and index % 2 else y
        return x


class ClassHead(Trunk):
    """Logits of the classes. The bias says `prior`; for classes without examples a millionth."""

    def __init__(
        self, width: int, hidden: int, classes: int, layers: int, kernel: int, *, normalize: bool = True,
        deep: bool = False, prior: float = 0.01, empty: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__(width, hidden, layers, kernel, normalize=normalize, deep=deep)
        self.cls_head = MaskedConv(hidden, classes, kernel)
        bias = self.cls_head.conv.bias
        assert bias is not None
        nn.init.constant_(bias, _logit(prior))
        if empty:
            with torch.no_grad():
                bias[list(empty)] = _logit(1e-6)

    def forward(self, x: Tensor, mask: Tensor, packing: Packing) -> Tensor:
        """x (B,P,W) to logits (B,N,K), zero at padded steps."""
        return packing.unpack(self.cls_head(self.trunk(x, mask, packing), mask))


class Scale(nn.Module):
    """A learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class OffsetHead(Trunk):
    """Distances to the start and the end of an action, in strides of the level."""

    def __init__(
        self, width: int, hidden: int, levels: int, layers: int, kernel: int, *, normalize: bool = True,
        deep: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(width, hidden, layers, kernel, normalize=normalize, deep=deep)
        self.scale = nn.ModuleList(Scale() for _ in range(levels))
        self.offset_head = MaskedConv(hidden, 2, kernel)

    def forward(self, x: Tensor, mask: Tensor, packing: Packing) -> Tensor:
        """x (B,P,W) to offsets (B,N,2), not negative."""
        offsets = packing.unpack(self.offset_head(self.trunk(x, mask, packing), mask))
        return F.relu(offsets * _by_point(self.scale, packing))


class DistributionHead(Trunk):
    """Distributions over the distances 0, 1, ..., reg_max, whose means are the offsets (Li et al., 2020)."""

    def __init__(
        self, width: int, hidden: int, levels: int, layers: int, kernel: int, *, reg_max: int = 16,
        normalize: bool = True, deep: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(width, hidden, layers, kernel, normalize=normalize, deep=deep)
        self.scale = nn.ModuleList(Scale() for _ in range(levels))
        self.dist_head = MaskedConv(hidden, 2 * (reg_max + 1), kernel)
        self.bins: Tensor
        self.register_buffer("bins", torch.arange(reg_max + 1, dtype=torch.float32))

    def forward(self, x: Tensor, mask: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """x (B,P,W) to offsets (B,N,2) and the distributions' logits (B,N,2,bins)."""
        logits = packing.unpack(self.dist_head(self.trunk(x, mask, packing), mask)).unflatten(2, (2, -1))
        mean = logits.softmax(-1) @ self.bins.to(logits.dtype)
        return F.relu(mean * _by_point(self.scale, packing)), logits


class HeatmapHead(Trunk):
    """One logit for each step: is there an event?"""

    def __init__(
        self, width: int, hidden: int, layers: int, kernel: int, *, normalize: bool = True, deep: bool = False,
        prior: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__(width, hidden, layers, kernel, normalize=normalize, deep=deep)
        self.heatmap_head = MaskedConv(hidden, 1, kernel)
        assert self.heatmap_head.conv.bias is not None
        nn.init.constant_(self.heatmap_head.conv.bias, _logit(prior))

    def forward(self, x: Tensor, mask: Tensor, packing: Packing) -> Tensor:
        """x (B,P,W) to logits (B,N,1)."""
        return packing.unpack(self.heatmap_head(self.trunk(x, mask, packing), mask))


def _by_point(scales: nn.ModuleList, packing: Packing) -> Tensor:
    """(N,1): the scale of each point's level."""
    each = [scale.get_parameter("scale").expand(length) for scale, length in zip(scales, packing.lengths, strict=True)]
    return torch.cat(each).unsqueeze(1)


def _logit(probability: float) -> float:
    return -math.log((1 - probability) / probability)
