"""Convolutions and batch norm of video against PyTorch's own in double precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from core.nn.conv import Depthwise, Pointwise, Spatial, Temporal
from core.nn.norm import BatchNorm


def clips(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def results(layer: nn.Module, video: Tensor, call: object = None) -> list[Tensor]:
    """Output and all gradients of a layer."""
    video = video.clone().requires_grad_()
    output = layer(video) if call is None else call(layer, video)
    weights = clips(*output.shape).to(output)
    (output * weights).sum().backward()
    return [output.detach(), video.grad, *(parameter.grad for parameter in layer.parameters())]


LAYERS = {
    "pointwise": lambda: Pointwise(6, 10),
    "pointwise, strided": lambda: Pointwise(6, 10, stride=2),
    "pointwise, bias": lambda: Pointwise(6, 10, bias=True),
    "spatial": lambda: Spatial(6, 4, 3),
    "spatial, strided": lambda: Spatial(6, 4, 3, stride=2),
    "temporal": lambda: Temporal(6, 4, 3),
    "temporal, strided": lambda: Temporal(6, 12, 7, stride=4),
    "temporal, depthwise": lambda: Temporal(6, 6, 5, groups=6),
    "depthwise": lambda: Depthwise(6),
    "depthwise, strided": lambda: Depthwise(6, stride=2),
}


@pytest.mark.parametrize("size", [(2, 6, 8, 9, 11), (1, 6, 1, 4, 4), (3, 6, 2, 1, 1)])
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_equal_pytorchs(name: str, size: tuple[int, ...]) -> None:
    layer = LAYERS[name]()
    reference = copy.deepcopy(layer).double()
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        video = clips(*size).contiguous(memory_format=layout)
        layer.zero_grad()
        reference.zero_grad()
        expected = results(reference, video.double(), nn.Conv3d.forward)
        for ours, theirs in zip(results(layer, video), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-5)


def test_depthwise_with_a_frozen_part_or_a_bias() -> None:
    video = clips(2, 6, 4, 6, 6).requires_grad_()
    layer = Depthwise(6)
    layer.weight.requires_grad_(False)
    layer(video).sum().backward()
    assert layer.weight.grad is None
    assert video.grad is not None
    layer = Depthwise(6)
    layer.bias = nn.Parameter(torch.zeros(6))
    layer(clips(2, 6, 4, 6, 6)).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((6,), 2.0 * 4 * 6 * 6))


def test_layers_keep_channels_last() -> None:
    video = clips(2, 6, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    for name, make in LAYERS.items():
        assert make()(video).is_contiguous(memory_format=torch.channels_last_3d), name


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_batch_norm_equals_pytorchs_in_both_modes(dtype: torch.dtype, near: float) -> None:
    ours, theirs = BatchNorm(6).to(dtype), nn.BatchNorm3d(6).double()
    video = (clips(3, 6, 4, 5, 7) * 2 + 3).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    for _ in range(2):
        ours.zero_grad()
        theirs.zero_grad()
        for got, expected in zip(results(ours, video), results(theirs, video.double()), strict=True):
            torch.testing.assert_close(got.double(), expected, atol=near, rtol=near / 10)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value.double(), theirs.state_dict()[name].double(), atol=near / 100, rtol=near / 100)
    found, expected = ours.eval()(video).double(), theirs.eval()(video.double())
    torch.testing.assert_close(found, expected, atol=near / 10, rtol=near / 10)


def test_batch_norm_statistics_of_a_million_positions() -> None:
    video = (clips(1, 8, 16, 256, 256) + 5).contiguous(memory_format=torch.channels_last_3d)
    norm = BatchNorm(8)
    norm.momentum = 1.0
    norm(video)
    variance, mean = torch.var_mean(video.double(), (0, 2, 3, 4))
    torch.testing.assert_close(norm.running_mean.double(), mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), variance, atol=0, rtol=1e-6)


def test_batch_norm_refuses_a_single_value() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm(6)(clips(1, 6, 1, 1, 1))
