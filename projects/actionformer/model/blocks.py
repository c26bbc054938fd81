"""The blocks that backbones are made of, channels last (B,T,C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn import DropPath
from projects.actionformer.model.attention import ConvAttention, RotaryAttention
from projects.actionformer.model.conv import MaskedConv, erase
from projects.actionformer.model.linear import Linear, answers_on_cpu

_ROWS = 512  # steps that go through a feed-forward layer together in evaluation: its hidden layer then stays in cache


class Branch(nn.Module):
    """What a residual branch is multiplied by: a scale of each channel, and stochastic depth (Touvron, 2021)."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 1e-4))
        self.drop = DropPath(drop)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + scale · y, y dropped for some videos in training; both (B,T,C)."""
        return torch.addcmul(x, self.drop(y), self.scale)


class GatedMlp(nn.Module):
    """w2(silu(w3 x) * w1 x); the hidden width is 8/3 of the width, rounded up to a multiple of 64, unless given."""

    def __init__(self, width: int, hidden: int | None = None, dropout: float = 0.0, *, out: int | None = None) -> None:
        super().__init__()
        hidden = hidden or -(-int(8 * width / 3) // 64) * 64
        self.w1, self.w3 = Linear(width, hidden), Linear(width, hidden)
        self.w2 = Linear(hidden, out or width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,T,width) to (B,T,out)."""
        y: Tensor = self.dropout(self.w2(F.silu(self.w3(x)) * self.w1(x)))
        return y


class Mlp(nn.Sequential):
    """Linear, exact GELU, linear; hidden is 4 x width unless given. The two layers are `0` and `3`, as officially."""

    def __init__(self, width: int, hidden: int | None = None, dropout: float = 0.0) -> None:
        hidden = hidden or 4 * width
        first, second = Linear(width, hidden), Linear(hidden, width)
        super().__init__(first, nn.GELU(), nn.Dropout(dropout), second, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """x (B,T,C), shape kept."""
        first, _, drop, second, drop_too = self
        y: Tensor = drop_too(second(drop(first(x, "gelu"))))
        return y


class TransformerBlock(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x); a stride s > 1 makes the sequence s times shorter."""

    def __init__(
        self,
        width: int,
        attention: ConvAttention | RotaryAttention,
        feed_forward: nn.Module,
        *,
        stride: int = 1,
        drop_path: float = 0.0,
        rms_norm: bool = False,
    ) -> None:
        super().__init__()
        self.ln1, self.ln2 = norm(width, rms_norm), norm(width, rms_norm)
        self.attn, self.mlp, self.stride = attention, feed_forward, stride
        if drop_path:
            self.drop_path_attn, self.drop_path_mlp = Branch(width, drop_path), Branch(width, drop_path)
        self.scaled = drop_path > 0

    def forward(self, x: Tensor, mask: Tensor, real: Tensor) -> Tensor:
        """x (B,T,C) to (B,T/stride,C), with zeros at padded steps.

        mask (B,T/stride,1) of the type of x, and the same as bool, real (B,T/stride): one of steps that come out.
        Padded steps need no care in between: no query sees them, and all else but the convolutions in the attention,
        which read them before, acts on each step alone.
        """
        y = self.attn(self.ln1(x), real)
        x = pool(x, self.stride)
        x = self.drop_path_attn.add(x, y) if self.scaled else x + y
        if not answers_on_cpu(x):
            y = self.mlp(self.ln2(x))
            return erase(self.drop_path_mlp.add(x, y) if self.scaled else x + y, mask)
        for part, own in zip(x.split(_ROWS, dim=1), mask.split(_ROWS, dim=1), strict=True):
            y = self.mlp(self.ln2(part))
            _ = part.addcmul_(y, self.drop_path_mlp.scale) if self.scaled else part.add_(y)
            part.mul_(own)
        return x


class ConvBlock(nn.Module):
    """Two convolutions of kernel 3 around twice the width, and a shortcut, as in a ResNet."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = MaskedConv(width, 2 * width, 3, stride=stride)
        self.conv2 = MaskedConv(2 * width, width, 3)
        self.downsample = MaskedConv(width, width, 1, stride=stride) if stride > 1 else None

    def forward(self, x: Tensor, mask: Tensor, real: Tensor) -> Tensor:
        """As that of `TransformerBlock`."""
        y = self.conv2(F.relu(self.conv1(x, mask)), mask)
        return F.relu(y + (x if self.downsample is None else self.downsample(x, mask)))


def norm(width: int, rms: bool = False) -> nn.Module:
    """Layer norm (eps 1e-5), or RMS norm (eps 1e-6), over channels."""
    return nn.RMSNorm(width, eps=1e-6) if rms else nn.LayerNorm(width)


def pool(x: Tensor, stride: int) -> Tensor:
    """(B,T,C) to (B,T/stride,C): the largest of the stride + 1 steps around each that is kept."""
    if stride == 1:
        return x
    image = x.transpose(1, 2).unsqueeze(2)
    return F.max_pool2d(image, (1, stride + 1), (1, stride), (0, (stride + 1) // 2)).squeeze(2).transpose(1, 2)
