"""Convolutions over time, channels last: (B,T,C) in, (B,T,O) out.

Kernels of 1 are plain matrix products. On a CPU, dense kernels of 3 are done by Winograd's minimal filtering F(4,3)
(Lavin and Gray, 2016): six products where the definition has twelve, about twice as fast, forward and backward; its
rounding error is about three times that of the plain sum (some 1e-6 relative to the largest output).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# F(4,3) on the points 0, 3/4, -3/4, 3/2, -3/2 and infinity; these, rather than the textbook's 0, 1, -1, 2, -2, keep
# the transforms well conditioned, and all entries but three are exact in binary.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_OUT, _IN = 4, 6  # outputs of a tile, and the inputs it needs
_FEW = 64  # from this many output channels on the transforms pay


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
        self._kernels: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B,T,C) to (B,T/stride,O), zero where mask (B,T/stride,1), of the type of x, is zero."""
        conv = self.conv
        if conv.kernel_size[0] == 1 and conv.stride[0] == 1:
            y = F.linear(x, conv.weight[:, :, 0], conv.bias)
        elif winograd_pays(x, conv):
            y = _Winograd.apply(x, conv.weight) if torch.is_grad_enabled() else _filter(x, self._transformed())
            y = y if conv.bias is None else y + conv.bias
        else:
            y = convolve(x, conv.weight, conv.bias, conv.stride[0], conv.groups)
        return y if mask is None else y * mask

    def _transformed(self) -> Tensor:
        """The kernels as F(4,3) takes them; kept until the weights change."""
        weight = self.conv.weight
        state = (weight.data_ptr(), weight._version)
        if self._kernels is None or self._kernels[0] != state:
            self._kernels = (state, _transform_kernels(weight))
        return self._kernels[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernels": None}


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, groups: int = 1) -> Tensor:
    """F.conv1d with "same" padding on channels-last data, through kernels that take this layout as it is."""
    image = x.transpose(1, 2).unsqueeze(2)
    padding = (0, weight.shape[2] // 2)
    y = F.conv2d(image, weight.unsqueeze(2), bias, (1, stride), padding, 1, groups)
    return y.squeeze(2).transpose(1, 2)


def winograd_pays(x: Tensor, conv: nn.Conv1d) -> bool:
    """Is it float32 on a CPU, dense, of kernel 3, wide enough, and not being exported?"""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and conv.kernel_size[0] == 3
        and conv.stride[0] == conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= _FEW
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()  # who counts multiplications wants those of the definition
    )


def _transform_kernels(weight: Tensor) -> Tensor:
    """(O,C,3) to (6,C,O)."""
    return torch.einsum("jk,ock->jco", _G, weight)


def _tiles(x: Tensor, before: int, step: int, size: int) -> Tensor:
    """(B,T,C) to overlapping tiles (B*n,size,C) that begin every `step` rows, the first `before` rows early.

    The tiles of one video follow those of the one before in memory, so that all are one strided view. The last tile of
    a video may reach into the next one: only for outputs that are cut off, see `_filter`.
    """
    batch, length, channels = x.shape
    count = -(-(length + 2) // _OUT)
    flat = x.new_zeros(batch * count * _OUT + _IN - _OUT, channels)
    rows = flat[: batch * count * _OUT].view(batch, count * _OUT, channels)
    rows[:, before : before + length] = x
    return flat.unfold(0, size, step).transpose(1, 2)


def _filter(x: Tensor, kernels: Tensor) -> Tensor:
    """The convolution of x (B,T,C) with transformed kernels (6,C,O)."""
    batch, length, _ = x.shape
    tiles = _tiles(x, 1, _OUT, _IN)
    spectra = torch.bmm(_B.expand(len(tiles), -1, -1), tiles)
    products = torch.bmm(spectra.transpose(0, 1), kernels)
    y = torch.bmm(_A.expand(len(tiles), -1, -1), products.transpose(0, 1))
    return y.view(batch, -1, kernels.shape[2])[:, :length]


class _Winograd(torch.autograd.Function):
    """`_filter` with its gradients by the same trick; nothing but the input is kept for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _filter(x, _transform_kernels(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:  # correlation with the kernel reversed
            to_x = _filter(grad, _transform_kernels(weight.flip(2).transpose(0, 1)))
        if ctx.needs_input_grad[1]:
            inputs = _tiles(x, 1, _OUT, _IN)
            outputs = _tiles(grad, 0, _OUT, _OUT)[: len(inputs)]
            spectra = torch.bmm(_B.expand(len(inputs), -1, -1), inputs).transpose(0, 1)  # (6,n,C)
            slopes = torch.bmm(_A.t().expand(len(outputs), -1, -1), outputs).transpose(0, 1)  # (6,n,O)
            products = torch.bmm(slopes.transpose(1, 2), spectra)  # (6,O,C)
            to_weight = torch.einsum("jk,joc->ock", _G, products)
        return to_x, to_weight
