"""Convolutions over time, channels last: (B,T,C) in, (B,T,O) out.

Kernels of 1 are plain matrix products. On a CPU, dense kernels of 3 are done by Winograd's minimal filtering F(4,3)
(Lavin and Gray, 2016): six products where the definition has twelve, about twice as fast, forward and backward; its
rounding error is about three times that of the plain sum (some 1e-6 relative to the largest output). F(6,3) is faster
still, but its rounding, seven times, adds up to what separates one implementation of the network from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.actionformer.model.linear import Kept, computes_on_cpu, linear, multiply, pack

# F(4,3) on these points and infinity; these, rather than the textbook's 0, 1, -1, 2, -2, keep the transforms well
# conditioned, and all entries but three are exact in binary.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_OUT, _IN = 4, 6  # outputs of a tile, and the inputs it needs
_FEW = 64  # from this many output channels on the transforms pay
_PIECE = 512  # tiles that are transformed, multiplied and transformed back together: what is between stays in cache


def _transforms() -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """The matrices A (4,6) for outputs, G (6,3) for kernels and B (6,6) for inputs, by Cook and Toom's construction."""
    others = [[b for b in _POINTS if b != a] for a in _POINTS]
    norms = [
        torch.tensor([a - b for b in rest], dtype=torch.float64).prod().item()
        for a, rest in zip(_POINTS, others, strict=True)
    ]
    outputs = [[a**i for a in _POINTS] + [float(i == _OUT - 1)] for i in range(_OUT)]
    kernels = [[a**k / norm for k in range(3)] for a, norm in zip(_POINTS, norms, strict=True)] + [[0.0, 0.0, 1.0]]
    inputs = [[*_polynomial(rest), 0.0] for rest in others] + [_polynomial(_POINTS)]
    return outputs, kernels, inputs


def _polynomial(roots: Any) -> list[float]:
    """Coefficients of the product of (x - root), the lowest power first."""
    found = [1.0]
    for root in roots:
        found = [low - root * high for low, high in zip([0.0, *found], [*found, 0.0], strict=True)]
    return found


_A, _G, _B = (torch.tensor(matrix) for matrix in _transforms())


class MaskedConv(nn.Module):
    """A convolution over time with odd kernel and "same" padding; what comes out at padded steps is zero.

    The weights lie in a `torch.nn.Conv1d` named `conv`, as in official checkpoints. With a stride s output t stands at
    input s*t; the length has to be a multiple of s.
    """

    def __init__(
        self, channels: int, out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel over time has a middle, so its length is odd; got {kernel}")
        self.conv = nn.Conv1d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self._kernels = Kept(_pack_kernels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B,T,C) to (B,T/stride,O), zero where mask (B,T/stride,1), of the type of x, is zero."""
        conv = self.conv
        if conv.kernel_size[0] == 1 and conv.stride[0] == 1:
            y = linear(x, conv.weight[:, :, 0], conv.bias)
        elif winograd_pays(x, conv):
            y = (
                _Winograd.apply(x, conv.weight)
                if torch.is_grad_enabled()
                else _filter(x, self._kernels.of(conv.weight), conv.out_channels)
            )
            y = y if conv.bias is None else y + conv.bias
        elif conv.stride[0] == conv.groups == 1 and conv.out_channels < _FEW and computes_on_cpu(x):
            y = _sum_of_products(x, conv.weight, conv.bias)
        else:
            y = convolve(x, conv.weight, conv.bias, conv.stride[0], conv.groups)
        return y if mask is None else erase(y, mask)


def erase(x: Tensor, mask: Tensor) -> Tensor:
    """x · mask, in the place of x when no gradient needs it."""
    return x * mask if torch.is_grad_enabled() else x.mul_(mask)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, groups: int = 1) -> Tensor:
    """F.conv1d with "same" padding on channels-last data, through kernels that take this layout as it is."""
    image = x.transpose(1, 2).unsqueeze(2)
    padding = (0, weight.shape[2] // 2)
    y = F.conv2d(image, weight.unsqueeze(2), bias, (1, stride), padding, 1, groups)
    return y.squeeze(2).transpose(1, 2)


def _sum_of_products(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same of few outputs, stride 1: what each step adds to its neighbours in one product, then the sums."""
    out, _, kernel = weight.shape
    parts = linear(x, weight.permute(2, 0, 1).flatten(0, 1)).unflatten(2, (kernel, out))
    parts = F.pad(parts, (0, 0, 0, 0, kernel // 2, kernel // 2))
    y = parts[:, : x.shape[1], 0]
    for place in range(1, kernel):
        y = y + parts[:, place : place + x.shape[1], place]
    return y if bias is None else y + bias


def winograd_pays(x: Tensor, conv: nn.Conv1d) -> bool:
    """Is it float32 on a CPU, dense, of kernel 3 and wide enough?"""
    return (
        computes_on_cpu(x)
        and conv.kernel_size[0] == 3
        and conv.stride[0] == conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= _FEW
    )


def _transform_kernels(weight: Tensor) -> Tensor:
    """(O,C,3) to (6,O,C)."""
    return torch.einsum("jk,ock->joc", _G, weight)


def _pack_kernels(weight: Tensor) -> list[Tensor]:
    """Those six, each as `multiply` is fastest with."""
    return [pack(kernel) for kernel in _transform_kernels(weight)]


def _tiles(x: Tensor, before: int, size: int) -> Tensor:
    """(B,T,C) to tiles (B*n,size,C) that begin every 4 rows, the first `before` rows early; zeros beyond the ends.

    The tiles of one video follow those of the one before in memory, so that all are one strided view. The last tile of
    a video may reach into the next one: only for outputs that are cut off, see `_filter`.
    """
    batch, length, channels = x.shape
    rows = -(-(length + 2) // _OUT) * _OUT
    flat = x.new_empty(batch * rows + _IN - _OUT, channels)
    videos = flat[: batch * rows].view(batch, rows, channels)
    videos[:, :before] = 0
    videos[:, before : before + length] = x
    videos[:, before + length :] = 0
    flat[batch * rows :] = 0
    return flat.unfold(0, size, _OUT).transpose(1, 2)[: batch * rows // _OUT]


def _spectra(matrix: Tensor, tiles: Tensor) -> Tensor:
    """The transform (6,size) of tiles (n,size,C) as (6,n,C), contiguous: the products then read it row by row."""
    count, _, channels = tiles.shape
    spectra = tiles.new_empty(_IN, count, channels)
    torch.bmm(matrix.expand(count, -1, -1), tiles, out=spectra.transpose(0, 1))
    return spectra


def _filter(x: Tensor, kernels: Sequence[Tensor], out: int) -> Tensor:
    """The convolution of x (B,T,C) with six transformed and packed kernels (O,C): (B,T,O)."""
    tiles = _tiles(x, 1, _IN)
    y = x.new_empty(len(tiles), _OUT, out)
    for part, into in zip(tiles.split(_PIECE), y.split(_PIECE), strict=True):
        spectra = _spectra(_B, part)
        products = torch.stack([multiply(*pair) for pair in zip(spectra, kernels, strict=True)])  # (6,n,O)
        torch.bmm(_A.expand(len(part), -1, -1), products.transpose(0, 1), out=into)
    return y.view(len(x), -1, out)[:, : x.shape[1]]


class _Winograd(torch.autograd.Function):
    """`_filter` with its gradients by the same trick; transformed inputs are made anew rather than kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _filter(x, _pack_kernels(weight), len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:  # correlation with the kernel reversed
            to_x = _filter(grad, _pack_kernels(weight.flip(2).transpose(0, 1)), x.shape[2])
        if ctx.needs_input_grad[1]:
            sums = x.new_zeros(_IN, *weight.shape[:2])
            given, wanted = _tiles(x, 1, _IN), _tiles(grad, 0, _OUT)
            for part, slope in zip(given.split(2 * _PIECE), wanted.split(2 * _PIECE), strict=True):
                sums.baddbmm_(_spectra(_A.t(), slope).transpose(1, 2), _spectra(_B, part))
            to_weight = torch.einsum("jk,joc->ock", _G, sums)
        return to_x, to_weight
