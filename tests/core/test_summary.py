"""Counts by hand formula, and that counting leaves no trace."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core import summary


@settings(max_examples=15, deadline=None)
@given(
    groups=st.sampled_from([1, 2]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    bias=st.booleans(),
)
def test_convolution_is_output_size_times_the_filter(groups, kernel, stride, bias):
    conv = nn.Conv3d(4, 6, kernel, stride=stride, padding=1, groups=groups, bias=bias)
    clip = torch.zeros(2, 4, 5, 8, 7)
    found = summary.counts(conv, clip)
    assert found["multiply_adds"] == conv(clip).numel() * (4 // groups) * np.prod(kernel)
    assert found["parameters"] == 6 * (4 // groups) * np.prod(kernel) + 6 * bias


def test_convolution_with_padding_by_name_is_counted_alike():
    clip = torch.zeros(1, 4, 6, 8, 8)
    by_name, by_number = nn.Conv3d(4, 6, 3, padding="same"), nn.Conv3d(4, 6, 3, padding=1)
    assert summary.counts(by_name, clip)["multiply_adds"] == summary.counts(by_number, clip)["multiply_adds"]


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12), (2, 3, 5, 12)])
def test_linear_is_rows_times_in_times_out(shape):
    found = summary.counts(nn.Linear(12, 7), torch.zeros(shape))
    assert found["multiply_adds"] == np.prod(shape[:-1]) * 12 * 7
    assert found["parameters"] == 12 * 7 + 7


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.fused = heads, kv_heads, fused
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim * kv_heads // heads)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        split = lambda t, h: t.unflatten(-1, (h, -1)).transpose(1, 2)  # noqa: E731
        q, (k, v) = self.q(x), self.kv(memory).chunk(2, -1)
        q, k, v = split(q, self.heads), split(k, self.kv_heads), split(v, self.kv_heads)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv_heads != self.heads)
        else:
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("kv_heads", "fused"), [(4, True), (4, False), (2, True)])
def test_attention_is_two_products_of_all_pairs(kv_heads, fused):
    b, t, s, d, h = 2, 6, 9, 16, 4
    found = summary.counts(Attention(d, h, kv_heads, fused), (torch.zeros(b, t, d), torch.zeros(b, s, d)))
    projections = b * t * d * d * 2 + b * s * d * 2 * d * kv_heads // h
    assert found["multiply_adds"] == projections + 2 * b * h * t * s * (d // h)
    assert found["uncounted"] == {}


def test_torch_attention_layers_count_their_products_too():
    b, t, d = 2, 6, 16
    found = summary.counts(nn.MultiheadAttention(d, 4, batch_first=True), (torch.zeros(b, t, d),) * 3)
    assert found["multiply_adds"] == b * t * d * d * 4 + 2 * b * t * t * d


def test_a_product_broadcast_over_the_right_batch_counts_every_copy():
    class Product(nn.Module):
        def forward(self, table: Tensor, x: Tensor) -> Tensor:
            return table @ x

    found = summary.counts(Product(), (torch.zeros(3, 4), torch.zeros(5, 4, 6)))
    assert found["multiply_adds"] == 5 * 3 * 4 * 6
    assert found["parameters"] == 0


class Answer(NamedTuple):
    scores: Tensor
    extra: None


class Small(nn.Module):
    """Two pathways in a list, a named tuple out, dropout, a running statistic, a shared and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 1, bias=False)
        self.norm = nn.BatchNorm3d(8)
        self.blocks = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
        self.head = nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.drop = nn.Dropout(0.5)
        self.norm.eval()
        self.stem.requires_grad_(False)

    def forward(self, pathways: list[Tensor], *, scale: Tensor) -> Answer:
        self.calls += 1
        random.random()
        torch.rand(1)
        x = self.norm(self.stem(pathways[0] + pathways[1])).mean((2, 3, 4))
        return Answer(self.head(self.drop(self.blocks(x * scale + torch.rand(()))))[None], None)


def test_counts_leave_modes_buffers_and_random_states_alone():
    model = Small()
    model.blocks[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random.seed(3)
    rngs = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    example = {"pathways": [torch.ones(2, 3, 2, 4, 4)] * 2, "scale": torch.ones(())}
    summary.counts(model, example)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert random.getstate() == rngs[0]
    assert torch.equal(torch.get_rng_state(), rngs[1])
    assert np.array_equal(np.random.get_state()[1], rngs[2])  # noqa: NPY002
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_modules_have_their_share_and_the_model_has_the_sum():
    model = Small()
    found = summary.counts(model, {"pathways": [torch.ones(2, 3, 2, 4, 4)] * 2, "scale": torch.ones(())})
    modules = found["modules"]
    assert modules["stem"]["multiply_adds"] == 2 * 32 * 3 * 8
    assert modules["blocks"]["multiply_adds"] == 4 * modules["blocks.2"]["multiply_adds"] == 4 * 2 * 64
    assert found["multiply_adds"] == sum(modules[n]["multiply_adds"] for n in ("stem", "norm", "blocks", "head"))
    assert found["parameters"] == 24 + 16 + 4 * 72 + 45
    assert found["trainable"] == found["parameters"] - 24
    assert modules["stem"]["trainable"] == 0
    assert sum(found["operators"].values()) == found["multiply_adds"]


def test_activations_are_what_backward_needs():
    mlp = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    batch = torch.zeros(4, 10)
    found = summary.counts(mlp, batch)
    assert found["activation_bytes"] == 4 * 4 * (10 + 20)  # the input of each layer; ReLU's output is one of them
    assert found["modules"]["0"]["activation_bytes"] == 4 * 4 * 10
    mlp.requires_grad_(False)
    assert summary.counts(mlp, batch)["activation_bytes"] == 0


def test_shared_parameters_count_once():
    tied = nn.Sequential(*[nn.Linear(6, 6)] * 3)
    found = summary.counts(tied, torch.zeros(1, 6))
    assert found["parameters"] == 42
    assert found["multiply_adds"] == 3 * 36


def test_an_operator_without_a_rule_is_named():
    found = summary.counts(nn.GRU(4, 4), torch.zeros(3, 1, 4))
    assert found["uncounted"] == {"gru": 1}
    assert "not counted: gru (1x)" in summary.describe(nn.GRU(4, 4), torch.zeros(3, 1, 4))


def test_describe_is_a_table_with_equal_neighbors_in_one_row():
    example = {"pathways": [torch.ones(2, 3, 2, 4, 4)] * 2, "scale": torch.ones(())}
    text = summary.describe(Small(), example)
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["Small"].split()[1:] == ["373", "349", *lines["Small"].split()[3:]]
    assert "0 … 3" in text
    assert "Linear × 4" in text
    assert "373 parameters, 349 trainable" in text
    assert "0 … 3" not in summary.describe(Small(), example, depth=1)
    assert "(2, 3, 2, 4, 4)" in text


def test_large_counts_have_units():
    text = summary.describe(nn.Linear(2000, 1000), torch.zeros(500, 2000))
    assert "1.00 G" in text
    assert "2.00 M" in text
    assert "3.81 MiB" in text


def test_an_example_without_tensors_is_refused():
    with pytest.raises(ValueError, match="example holds no tensor"):
        summary.counts(nn.Linear(2, 2), "clip.mp4")
