"""Linear layers that are faster on a CPU: oneDNN multiplies, some 15 % faster than the default does.

In evaluation their weights are laid out for it once, and the GELU is fused. This is what torch.compile does to frozen
weights, without a compiler. It computes the same sums in another order (measured in bench/actionformer_network.py);
where it is not available nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SAMPLES = 16


class Kept:
    """Something made of a parameter, made again when the parameter has changed.

    A change is told by its memory, its version, and some of its values: fused optimizers leave the version as it is.
    """

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self.make = make
        self.state: tuple[Any, ...] = ()
        self.value: Any = None

    def of(self, weight: Tensor) -> Any:
        """What is made of this weight."""
        weight = weight.detach()
        some = weight.flatten()[:: max(1, weight.numel() // _SAMPLES)].tolist()
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, some)
        if state != self.state:
            self.state, self.value = state, self.make(weight)
        return self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return Kept(self.make)

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self.make,)


def answers_on_cpu(x: Tensor) -> bool:
    """Is this float32 on a CPU, without gradients, not under autocast, and nobody watching (compiler, tracer)?"""
    return not torch.is_grad_enabled() and computes_on_cpu(x)


def computes_on_cpu(x: Tensor) -> bool:
    """As above, with or without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()  # who counts multiplications wants those of the definition
    )


class Linear(nn.Linear):
    """`torch.nn.Linear`, perhaps followed by an exact GELU."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self._packed = Kept(pack)

    def forward(self, x: Tensor, activation: Literal["none", "gelu"] = "none") -> Tensor:
        """x (...,inputs) to (...,outputs)."""
        if answers_on_cpu(x) and has_onednn():
            return _onednn(x, self._packed.of(self.weight), self.bias, activation)
        y = linear(x, self.weight, self.bias)
        return y if activation == "none" else F.gelu(y)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (...,K) times weight (N,K) transposed, plus a bias (N)."""
    if not (computes_on_cpu(x) and has_onednn()):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else multiply(x, weight, bias)
    return y


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same of float32 on a CPU without a gradient; the weight may have gone through `pack`."""
    return _onednn(x, weight, bias) if has_onednn() else F.linear(x, weight, bias)


def pack(weight: Tensor) -> Tensor:
    """A weight (N,K) as oneDNN wants it, for many calls of `multiply`."""
    if not has_onednn():
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


@functools.cache
def has_onednn() -> bool:
    """Does this torch have the operators that the compiler uses?"""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16))
        _onednn(torch.zeros(1, 16), packed, None, "gelu")
    except (AttributeError, RuntimeError):
        return False
    return True


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    algorithm = "none" if activation == "gelu" else ""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return y


class _Linear(torch.autograd.Function):
    """The gradient of `multiply`. That of the weight is left to the default: oneDNN would first have to transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = multiply(grads[0], weight.t().contiguous())
        if ctx.needs_input_grad[1]:
            to_weight = rows.t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias
