"""What a model is made of: parameters, multiply-adds and activation memory by module, as papers count them."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Work that papers leave out of "FLOPs": one or a few operations an element, no products of matrices.
_FREE = """
    abs adaptive_avg_pool1d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add amax
    argmax avg_pool1d avg_pool2d avg_pool3d bitwise_and bitwise_or clamp_max clamp_min clone cos cumsum div dropout elu
    embedding eq exp expand_as feature_dropout fill ge gelu gt hardsigmoid hardswish hardtanh index_select le leaky_relu
    lift_fresh log log_softmax logical_and logical_not logical_or lt max_pool1d max_pool2d max_pool3d mean min movedim
    mul ne neg new_zeros ones_like pad pow reciprocal relu6 repeat rms_norm rsqrt rsub scatter sigmoid silu sin softmax
    softplus sqrt square sub sum tanh tensor_split tile topk tril triu unflatten unfold var where
"""


def counts(model: nn.Module, example: Any) -> dict[str, Any]:
    """Count one forward pass in evaluation mode; the model, its buffers and all random states are left as they were.

    `example` is one tensor, a tuple or list of positional arguments, or a mapping of keyword arguments; containers may
    nest. A multiply-add is one operation, as in fvcore, whose rules (norms included) are completed here for attention.

    Returns `parameters`, `trainable`, `multiply_adds`, `activation_bytes` (kept for backward, in the precision of the
    example); the same four for every module in `modules`, by name, the model itself under ""; `operators`, the
    multiply-adds by kind; and `uncounted`, the operators without a rule and how often they ran.

    Raises: ValueError when the example holds no tensor.
    """
    args, kwargs = _arguments(example, _device(model))
    with _undisturbed(model):
        flops = _multiply_adds(model, args, kwargs)
        activations = _activations(model, args, kwargs)
    multiply_adds = {name.removeprefix("model").removeprefix("."): value for name, value in flops.by_module().items()}
    modules: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        modules[name] = {
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "multiply_adds": int(multiply_adds.get(name, 0)),
            "activation_bytes": activations[name],
        }
    operators = {name: int(value) for name, value in flops.by_operator().most_common()}
    uncounted = {name.removeprefix("aten::"): count for name, count in flops.unsupported_ops().most_common()}
    return {**modules[""], "modules": modules, "operators": operators, "uncounted": uncounted}


def describe(model: nn.Module, example: Any, *, depth: int = 2) -> str:
    """Return `counts` as a text table, one row per module down to `depth`; equal neighbors share a row."""
    found = counts(model, example)
    header = ("module", "layer", "parameters", "trainable", "multiply-adds", "activations")
    rows = [header, *(_row(*line) for line in _lines(model, found["modules"], depth))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [_join(row, widths) for row in rows]
    rule = "-" * max(len(line) for line in lines)
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(example))
    kinds = ", ".join(f"{name} {_short(value)}" for name, value in found["operators"].items() if value)
    footer = [
        f"{found['parameters']:,} parameters, {found['trainable']:,} trainable",
        f"{_short(found['multiply_adds'])} multiply-adds for input {shapes}" + (f": {kinds}" if kinds else ""),
        f"{_bytes(found['activation_bytes'])} of activations kept for backward (estimate, in the input's precision)",
    ]
    if found["uncounted"]:
        named = ", ".join(f"{name} ({count}x)" for name, count in found["uncounted"].items())
        footer.append(f"not counted: {named}")
    return "\n".join([lines[0], rule, *lines[1:], rule, *footer])


# --- counting


class _Flat(nn.Module):
    """A model as fvcore's tracer wants it: tensors in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.model, self.args, self.kwargs = model, args, kwargs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        source = iter(tensors)
        args, kwargs = _refill(self.args, source), _refill(self.kwargs, source)
        return tuple(_tensors(self.model(*args, **kwargs)))


def _multiply_adds(model: nn.Module, args: Any, kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts a loss when imported, which newer torch deprecates
        from fvcore.nn import FlopCountAnalysis

        flops = FlopCountAnalysis(_Flat(model, args, kwargs), (*_tensors(args), *_tensors(kwargs)))
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        for name in _FREE.split():
            flops.set_op_handle(f"aten::{name}", None, f"aten::{name}_", None)
        for name, rule in _RULES.items():
            flops.set_op_handle(f"aten::{name}", rule)
        with torch.no_grad():
            flops.total()
    return flops


def _activations(model: nn.Module, args: Any, kwargs: Any) -> Counter[str]:
    """Return the bytes that autograd keeps, by the module that was running and its owners."""
    found: Counter[str] = Counter()
    seen = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    inside: list[str] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            path = inside[-1].split(".") if inside[-1] else []
            found.update({".".join(path[:i]): storage.nbytes() for i in range(len(path) + 1)})
        return tensor

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None, always_call=True))
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = model(*args, **kwargs)  # alive until here, so that no storage address is used twice
            del outputs
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes())


def _matmul(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Every element of the product is a dot product; fvcore's own rule forgets a batch that only the right side has."""
    return Counter({"matmul": math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _added_matmul(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"matmul": math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Q K^T and the weighted sum of V, over all query heads; masked pairs count, as they do in papers."""
    query, key, value = (_shape(item) for item in inputs[:3])
    return Counter({"attention": math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])})


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Convolutions that keep their padding as text ("same"), which the tracer records under a name of their own."""
    return Counter({"conv": math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])})


_RULES = {
    "scaled_dot_product_attention": _attention,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "baddbmm": _added_matmul,
    "addmm": _added_matmul,
    "_convolution_mode": _convolution,
}


# --- arguments and state


def _arguments(example: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), {name: _moved(value, device) for name, value in example.items()}
    values = example if isinstance(example, (tuple, list)) else (example,)
    if not any(True for _ in _tensors(values)):
        raise ValueError(
            f"example holds no tensor: expected a tensor, a tuple of arguments or a dict of keyword arguments, "
            f"got {type(example).__name__}"
        )
    return tuple(_moved(value, device) for value in values), {}


def _moved(value: Any, device: torch.device) -> Any:
    return _refill(value, iter([tensor.to(device) for tensor in _tensors(value)]))


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _refill(value: Any, source: Iterator[Tensor]) -> Any:
    """Return the same nesting with its tensors replaced by those of `source`."""
    if isinstance(value, Tensor):
        return next(source)
    if isinstance(value, Mapping):
        return {name: _refill(item, source) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_refill(item, source) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, then put back modes, buffers and random states."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002, the model may draw from the global generator
    fast = torch.backends.mha.get_fastpath_enabled()
    cuda = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel has no multiply-add rule
    try:
        with torch.random.fork_rng(devices=list(cuda)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        with torch.no_grad():
            for buffer, copy in buffers:
                buffer.copy_(copy)
        for module, training in modes:
            module.training = training


# --- the table


def _lines(
    model: nn.Module, modules: dict[str, dict[str, int]], depth: int, name: str = "", level: int = 0
) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Yield (indented name, class, counts) down to `depth`; runs of equal siblings as one line with their sum."""
    if level == 0:
        yield type(model).__name__, "", modules[""]
    if level >= depth:
        return
    run: list[str] = []
    children = [(child, module) for child, module in model.get_submodule(name).named_children()]
    for i, (child, module) in enumerate(children):
        path = f"{name}.{child}" if name else child
        run.append(child)
        after = children[i + 1] if i + 1 < len(children) else None
        if (
            after is not None
            and type(after[1]) is type(module)
            and modules[f"{name}.{after[0]}" if name else after[0]] == modules[path]
        ):
            continue
        label = run[0] if len(run) == 1 else f"{run[0]} … {run[-1]}"
        kind = type(module).__name__ + (f" × {len(run)}" if len(run) > 1 else "")
        total = {key: value * len(run) for key, value in modules[path].items()}
        yield "  " * (level + 1) + label, kind, total
        if len(run) == 1:
            yield from _lines(model, modules, depth, path, level + 1)
        run = []


def _row(name: str, kind: str, found: dict[str, int]) -> tuple[str, ...]:
    return (
        name,
        kind,
        _short(found["parameters"]),
        _short(found["trainable"]),
        _short(found["multiply_adds"]),
        _bytes(found["activation_bytes"]),
    )


def _join(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _short(value: float) -> str:
    """Three significant digits with a unit: 3.79 M; small counts and zero exactly."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{value:.0f}" if value else "-"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{value:.0f} B" if value else "-"


def _digits(value: float) -> str:
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f}"
