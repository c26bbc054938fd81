"""Samples to batches, and batches to devices."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Sample = dict[str, Any]
Batch = dict[str, Any]


def stack(samples: Sequence[Sample]) -> Batch:
    """One batch of samples that have the same keys.

    Tensors and arrays of one shape and type become a tensor (B, ...), others a list of tensors; ints become int64 (B,),
    floats float32 (B,), bools bool (B,); everything else a list.

    Raises: ValueError naming the samples whose keys differ.
    """
    for sample in samples:
        if sample.keys() != samples[0].keys():
            raise ValueError(
                f"samples {samples[0].get('id')!r} and {sample.get('id')!r} differ in their keys: "
                f"{', '.join(sorted(sample.keys() ^ samples[0].keys()))}; all samples of a dataset have the same"
            )
    return {key: _stacked([_tensor(sample[key]) for sample in samples]) for key in samples[0]}


def pad(samples: Sequence[Sample], keys: Sequence[str], length: int | None = None, multiple: int = 1) -> Batch:
    """As `stack`, with zeros after the end of the tensors or arrays (..., T) under `keys`, and `mask`, bool (B, T).

    T is `length`, or that of the longest sample, rounded up to a multiple of `multiple`. The mask is True where real.
    In memory the padded ones lie step by step, as features lie in files: (B, ..., T) is a view of (B, T, ...).

    Raises: ValueError naming a sample longer than `length`, or one whose `keys` differ in T.
    """
    lengths = [_length(sample, keys) for sample in samples]
    total = max(lengths) if length is None else length
    if max(lengths) > total:
        longest = samples[lengths.index(max(lengths))].get("id")
        raise ValueError(
            f"sample {longest!r} is {max(lengths)} long, more than length={total}; crop it in sample(), or raise length"
        )
    total = -(-total // multiple) * multiple
    padded = [
        sample | {key: _extended(_tensor(sample[key]).movedim(-1, 0), total - own) for key in keys}
        for sample, own in zip(samples, lengths, strict=True)
    ]
    batch = stack(padded)
    for key in keys:
        found = batch[key]
        batch[key] = found.movedim(1, -1) if isinstance(found, Tensor) else [each.movedim(0, -1) for each in found]
    return batch | {"mask": torch.arange(total) < torch.tensor(lengths)[:, None]}


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with its tensors on the device, those inside lists, tuples and dicts too; the rest as it is."""
    moved: Batch = map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))
    return moved


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of dicts, lists and tuples, with each tensor replaced by the function's answer."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [map_tensors(item, function) for item in value]
    if isinstance(value, tuple):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _extended(steps: Tensor, missing: int) -> Tensor:
    """(T, ...) with zeros for the missing steps after its end."""
    return F.pad(steps, (0, 0) * (steps.ndim - 1) + (0, missing))


def _length(sample: Sample, keys: Sequence[str]) -> int:
    """The T that the sample's tensors under `keys` share."""
    lengths = {key: int(sample[key].shape[-1]) for key in keys}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"sample {sample.get('id')!r} has lengths {lengths}; keys padded together share one")
    return lengths[keys[0]]


def _stacked(values: list[Any]) -> Any:
    first = values[0]
    if all(isinstance(value, Tensor) for value in values):
        alike = all(value.shape == first.shape and value.dtype == first.dtype for value in values)
        return torch.stack(values) if alike else values
    kinds = {type(value) for value in values}
    if kinds == {bool} or kinds == {int}:
        return torch.tensor(values)
    if kinds <= {int, float}:
        return torch.tensor(values, dtype=torch.float32)
    return values


def _tensor(value: Any) -> Any:
    """Arrays and numbers of numpy as tensors, without a copy where torch can share them; other values as they are."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    return value
