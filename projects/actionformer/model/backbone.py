"""From features to a pyramid: embedding convolutions, a stem, and branches that each halve the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.actionformer.model.attention import ConvAttention, RotaryAttention
from projects.actionformer.model.blocks import ConvBlock, GatedMlp, Mlp, TransformerBlock, norm
from projects.actionformer.model.conv import MaskedConv

if TYPE_CHECKING:
    from projects.actionformer.config import ModelConfig


class Backbone(nn.Module):
    """The three backbones: convolutions only, transformer, and the fork's modern transformer (convTransformerv2).

    `channels` has one number for each source of features; several are projected apart and joined. Names of modules are
    those of official checkpoints.
    """

    def __init__(self, cfg: ModelConfig, channels: Sequence[int], max_length: int) -> None:
        super().__init__()
        convs, stem, branches = cfg.arch
        windows = cfg.windows
        self.channels, self.stride, self.max_length = tuple(channels), cfg.scale_factor, max_length
        width = sum(cfg.width)
        self.width = width
        self.proj: nn.ModuleList | None = None
        inputs = sum(channels)
        if len(channels) > 1 or len(cfg.width) > 1:
            self.proj = nn.ModuleList(MaskedConv(c, w, 1) for c, w in zip(channels, cfg.width, strict=True))
            inputs = width
        modern = cfg.backbone == "modern"
        rms = modern and cfg.rms_norm
        self.embd = nn.ModuleList(
            MaskedConv(width if index else inputs, width, cfg.embed_kernel, bias=not cfg.embed_norm)
            for index in range(convs)
        )
        self.embd_norm = nn.ModuleList(norm(width, rms) if cfg.embed_norm else nn.Identity() for _ in range(convs))
        if cfg.backbone == "conv":
            self.stem = nn.ModuleList(ConvBlock(width) for _ in range(stem))
            self.branch = nn.ModuleList(ConvBlock(width, self.stride) for _ in range(branches))
        else:
            self.stem = nn.ModuleList(_block(cfg, width, windows[0], 1) for _ in range(stem))
            self.branch = nn.ModuleList(_block(cfg, width, windows[1 + i], self.stride) for i in range(branches))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.positions: Tensor | None
        table = sinusoids(max_length, width) if cfg.abs_positions and cfg.backbone != "conv" else None
        self.register_buffer("positions", table, persistent=False)

    def forward(self, x: Tensor, mask: Tensor, reference: int) -> tuple[list[Tensor], list[Tensor]]:
        """x (B,T,C) and mask (B,T) bool to the levels of the pyramid, finest first, and their masks.

        Level l is (B,T/s^l,W) with zeros at padded steps. `reference` is the length that the official code would have
        padded to, which its positions depend on.
        """
        masks = [mask]
        for _ in self.branch:
            masks.append(masks[-1][:, :: self.stride])
        floats = [m.unsqueeze(2).to(x.dtype) for m in masks]
        if self.proj is not None:
            parts = x.split(self.channels, dim=2)
            x = torch.cat([proj(part, floats[0]) for proj, part in zip(self.proj, parts, strict=True)], dim=2)
        for conv, normalize in zip(self.embd, self.embd_norm, strict=True):
            x = F.relu_(normalize(conv(x, floats[0])))
        if self.positions is not None:
            x = x + self._positions(x.shape[1], reference) * floats[0]
        for block in self.stem:
            x = block(x, floats[0], masks[0])
        levels = [x]
        for block, m, f in zip(self.branch, masks[1:], floats[1:], strict=True):
            levels.append(block(levels[-1], f, m))
        return levels, masks

    def _positions(self, length: int, reference: int) -> Tensor:
        """(T,W): the table, stretched for inputs longer than it, as the official code does in evaluation."""
        table = self.positions
        assert table is not None
        if reference > len(table):
            table = F.interpolate(table.t()[None], reference, mode="linear", align_corners=False)[0].t()
        return table[:length]


def sinusoids(length: int, width: int) -> Tensor:
    """(T,W): sin at even, cos at odd channels j of position / 10000^(2 (j//2) / W), over sqrt(W)."""
    rate = 10000 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    table: Tensor = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).float() / width**0.5
    return table


def _block(cfg: ModelConfig, width: int, window: int, stride: int) -> TransformerBlock:
    """A transformer block; in the modern backbone only blocks that see everything and keep the length are rotary."""
    modern = cfg.backbone == "modern"
    attention: ConvAttention | RotaryAttention
    if modern and window <= 1 and stride == 1:
        attention = RotaryAttention(width, cfg.heads, kv_heads=cfg.kv_heads, rope=cfg.rope, dropout=cfg.dropout)
    else:
        positions = cfg.rope if modern else cfg.rel_positions
        attention = ConvAttention(
            width, cfg.heads, stride=stride, window=window, positions=positions, dropout=cfg.dropout
        )
    gated = modern and cfg.swiglu
    return TransformerBlock(
        width,
        attention,
        GatedMlp(width, cfg.hidden, cfg.dropout) if gated else Mlp(width, cfg.hidden, cfg.dropout),
        stride=stride,
        drop_path=cfg.drop_path,
        rms_norm=modern and cfg.rms_norm,
    )
