"""The three networks: features of a video in, what every point of the pyramid says about it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.actionformer.model.backbone import Backbone
from projects.actionformer.model.heads import ClassHead, DistributionHead, HeatmapHead, OffsetHead, Packing
from projects.actionformer.model.length import Padding
from projects.actionformer.model.necks import FPN, CrossScaleFPN, IdentityNeck

if TYPE_CHECKING:
    from projects.actionformer.config import ModelConfig


class Outputs(NamedTuple):
    """What a network says about the N points of all levels, the finest level first.

    Distances are in strides of the level. A point's row of `points` is its time in features, the smallest and largest
    distance its level is responsible for, and its stride.
    """

    logits: Tensor
    """(B,N,K): classes, or heat (K = 1)."""
    offsets: Tensor
    """(B,N,2): distances to start and end, not negative; (B,N,0) of a network that detects points."""
    mask: Tensor
    """(B,N) bool: False at padded steps."""
    points: Tensor
    """(N,4)."""
    levels: tuple[int, ...]
    """How many of the points each level has."""
    distribution: Tensor | None = None
    """(B,N,2,bins): logits of the distributions that the offsets are means of."""


class Detector(nn.Module):
    """What the networks share: padding, backbone, neck, points.

    `channels` has one number for each source of features, `max_length` is the longest training crop. There is no limit
    on the length of a video.
    """

    def __init__(self, cfg: ModelConfig, channels: Sequence[int], max_length: int) -> None:
        super().__init__()
        self.backbone = Backbone(cfg, channels, max_length)
        self.start = cfg.start_level
        every = [cfg.scale_factor**level for level in range(cfg.levels)]
        self.strides, self.ranges = every[self.start :], cfg.ranges
        # The official check of lengths pairs the strides that are used with the windows of the finest levels.
        windows = cfg.windows[: len(self.strides)]
        reach = max(1, cfg.embed_kernel // 2, cfg.head_kernel // 2)
        self.padding = Padding(max_length, tuple(self.strides), tuple(windows), reach)
        self.gap = cfg.head_kernel // 2
        self.input_dropout = cfg.input_dropout
        levels, width = len(self.strides), self.backbone.width
        self.neck: nn.Module
        if cfg.neck == "identity":
            if width != cfg.neck_width:
                raise ValueError(
                    f"neck identity keeps the width: model.neck_width={cfg.neck_width} should be that of the backbone, "
                    f"{width}; or choose model.neck=fpn"
                )
            self.neck = IdentityNeck(width, levels, normalize=cfg.neck_norm)
        else:
            kind = FPN if cfg.neck == "fpn" else CrossScaleFPN
            self.neck = kind(width, cfg.neck_width, levels, cfg.scale_factor, normalize=cfg.neck_norm)

    def pyramid(
        self, features: Tensor, mask: Tensor, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor], Packing]:
        """Features (B,C,T) and mask (B,T) to packed levels (B,P,W), masks (B,T_l) by level, and how they are packed.

        Features are zero at padded steps, as `core.data.pad` makes them.
        `lengths` are the numbers of real features; without them they are read from the mask, which waits for a GPU.

        Raises:
            ValueError: for other channels, or videos that cannot share a batch (`by_length` groups them).
        """
        channels = sum(self.backbone.channels)
        if features.ndim != 3 or features.shape[1] != channels:
            raise ValueError(
                f"features are {tuple(features.shape)}, the model takes (B,{channels},T); check data.input_dim and "
                "that the files are (T,C)"
            )
        lengths = mask.sum(1).tolist() if lengths is None else lengths
        length = self.padding.choose(lengths)
        x, mask = _fit(features.transpose(1, 2), length), _fit(mask.unsqueeze(2), length).squeeze(2)
        if self.input_dropout and self.training:
            x = x * F.dropout(x.new_ones(len(x), 1, channels), self.input_dropout)
        levels, masks = self.backbone(x, mask, self.padding.reference(max(lengths)))
        levels, masks = levels[self.start :], masks[self.start :]
        floats = [m.unsqueeze(2).to(x.dtype) for m in masks]
        packing = Packing([m.shape[1] for m in masks], self.gap, x.device)
        return packing.pack(self.neck(levels, floats)), masks, packing

    def points(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """(N,4): time, smallest and largest distance, stride."""
        rows = []
        for length, stride, (low, high) in zip(lengths, self.strides, self.ranges, strict=True):
            time = torch.arange(length, device=device, dtype=torch.float32) * stride
            rows.append(torch.stack([time, *(torch.full_like(time, v) for v in (low, high, stride))], dim=1))
        return torch.cat(rows)

    def heads(self, x: Tensor, mask: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor | None]:
        """Packed levels (B,P,W) and their mask (B,P,1) to logits, offsets and perhaps distributions."""
        raise NotImplementedError

    def forward(self, features: Tensor, mask: Tensor, lengths: Sequence[int] | None = None) -> Outputs:
        """Features (B,C,T), mask (B,T) bool, True where real, at the start; see `Outputs` and `pyramid`."""
        x, masks, packing = self.pyramid(features, mask, lengths)
        packed = packing.pack([m.unsqueeze(2).to(x.dtype) for m in masks])
        logits, offsets, distribution = self.heads(x, packed, packing)
        points = self.points(packing.lengths, x.device)
        return Outputs(logits, offsets, torch.cat(masks, 1), points, packing.lengths, distribution)


class ActionFormer(Detector):
    """Classes and boundaries at every point (Zhang et al., 2022; official LocPointTransformer)."""

    def __init__(self, cfg: ModelConfig, channels: Sequence[int], classes: int, max_length: int) -> None:
        super().__init__(cfg, channels, max_length)
        sizes, layers = (cfg.neck_width, cfg.head_width), (cfg.head_layers, cfg.head_kernel)
        shape = {"normalize": cfg.head_norm, "deep": cfg.head == "deep"}
        self.cls_head = ClassHead(*sizes, classes, *layers, **shape, prior=cfg.prior, empty=cfg.empty_classes)
        self.reg_head: nn.Module = OffsetHead(*sizes, len(self.strides), *layers, **shape)

    def heads(self, x: Tensor, mask: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor | None]:
        """As said above."""
        return self.cls_head(x, mask, packing), self.reg_head(x, mask, packing), None


class TBTFormer(ActionFormer):
    """ActionFormer whose boundaries are distributions: for labels that nobody can set to the frame (the fork's)."""

    def __init__(self, cfg: ModelConfig, channels: Sequence[int], classes: int, max_length: int) -> None:
        super().__init__(cfg, channels, classes, max_length)
        self.reg_head = DistributionHead(
            cfg.neck_width, cfg.head_width, len(self.strides), cfg.head_layers, cfg.head_kernel,
            reg_max=cfg.reg_max, normalize=cfg.head_norm, deep=cfg.head == "deep",
        )  # fmt: skip

    def heads(self, x: Tensor, mask: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor | None]:
        """As said above."""
        offsets, distribution = self.reg_head(x, mask, packing)
        return self.cls_head(x, mask, packing), offsets, distribution


class SnapFormer(Detector):
    """A heat map of moments without duration (the fork's): one kind of event, whatever `classes` says."""

    def __init__(self, cfg: ModelConfig, channels: Sequence[int], classes: int, max_length: int) -> None:
        super().__init__(cfg, channels, max_length)
        self.heatmap_head = HeatmapHead(
            cfg.neck_width, cfg.head_width, cfg.head_layers, cfg.head_kernel,
            normalize=cfg.head_norm, deep=cfg.head == "deep", prior=cfg.prior,
        )  # fmt: skip

    def heads(self, x: Tensor, mask: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor | None]:
        """As said above."""
        heat = self.heatmap_head(x, mask, packing)
        return heat, heat[..., :0], None


def by_length(net: nn.Module, features: Tensor, mask: Tensor) -> Iterator[tuple[list[int], Outputs]]:
    """The answer for videos of any lengths: for each group that may share a batch, its indices and its outputs."""
    lengths = mask.sum(1).tolist()
    padding: Padding = net.padding  # type: ignore[assignment]
    for group in padding.compatible(lengths):
        own = [lengths[index] for index in group]
        yield group, net(features[group], mask[group], own)


def _fit(x: Tensor, length: int) -> Tensor:
    """x (B,T,C) cut or padded with zeros to a length."""
    return x[:, :length] if x.shape[1] >= length else F.pad(x, (0, 0, 0, length - x.shape[1]))
