"""Transformer blocks against naive formulas; windows, padding, groups, gradients and devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.nn import Attention, DropPath, Mlp, Rope, SwiGLU, attend, resize_positions
from core.summary import counts

quick = settings(max_examples=40, deadline=None)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Dense attention, written from the docstring: every pair is looked at."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    length, total = q.shape[2], k.shape[2]
    allowed = torch.ones(q.shape[0], q.shape[1], length, total, dtype=torch.bool, device=q.device)
    offset = torch.arange(total, device=q.device) - torch.arange(total - length, total, device=q.device)[:, None]
    if causal:
        allowed &= offset <= 0
    if window is not None:
        earliest = -(window - 1) if causal else -(window // 2)
        allowed &= (offset >= earliest) & (offset < earliest + window)
    if mask is not None:
        allowed &= mask[:, None, None, :] if mask.ndim == 2 else mask
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None and window is not None:
        places = (offset - earliest).clamp(0, window - 1).expand(*scores.shape)
        bias = bias.expand(*scores.shape[:3], window).gather(-1, places)
    if bias is not None:
        scores = scores + bias
    weights = scores.masked_fill(~allowed, -1e30).softmax(-1).masked_fill(~allowed, 0)
    return weights @ v


def tensors(
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    length: int = 10,
    total: int | None = None,
    width: int = 8,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, length), (kv_heads, total or length), (kv_heads, total or length)]
    return [
        torch.randn(batch, *shape, width, generator=generator, dtype=dtype).to(device).requires_grad_()
        for shape in shapes
    ]


def padding(batch: int, total: int, seed: int, device: str = "cpu") -> Tensor:
    """True up to a length of its own for each sample, 0 included."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, total + 1, (batch, 1), generator=generator)
    return (torch.arange(total) < lengths).to(device)


def same(inputs: list[Tensor], ours: Callable[..., Tensor], options: dict[str, Any], atol: float = 1e-9) -> None:
    """Values and gradients of `attend` equal those of the naive formula."""
    leaves = [*inputs, *[x for x in options.values() if isinstance(x, Tensor) and x.requires_grad]]
    out, expected = ours(*inputs, **options), naive(*inputs, **options)
    torch.testing.assert_close(out, expected, atol=atol, rtol=0)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    gradients = torch.autograd.grad((out * weight).sum(), leaves)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, want, atol=10 * atol, rtol=0)


# --- attend


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_dense_attention(device: str, kv_heads: int, causal: bool, masked: bool, biased: bool) -> None:
    for length, total in ((10, 10), (3, 10)):
        inputs = tensors(kv_heads=kv_heads, length=length, total=total, device=device)
        options: dict[str, Any] = {"causal": causal}
        if masked:
            options["mask"] = padding(2, total, seed=5, device=device)
        if biased:
            bias = torch.randn(1, 4, length, total, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            options["bias"] = bias.to(device).requires_grad_()
        same(inputs, attend, options)


@quick
@given(
    length=st.integers(1, 150),
    half=st.integers(0, 80),
    causal=st.booleans(),
    masked=st.booleans(),
    bias_rows=st.sampled_from([None, 1, "all"]),
    kv_heads=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_window_equals_masked_dense_attention(
    length: int, half: int, causal: bool, masked: bool, bias_rows: int | str | None, kv_heads: int, seed: int
) -> None:
    window = 2 * half + 1
    inputs = tensors(heads=2, kv_heads=kv_heads, length=length, width=4, seed=seed)
    options: dict[str, Any] = {"window": window, "causal": causal}
    if masked:
        options["mask"] = padding(2, length, seed)
    if bias_rows is not None:
        rows = length if bias_rows == "all" else 1
        bias = torch.randn(1, 2, rows, window, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        options["bias"] = bias.requires_grad_()
    same(inputs, attend, options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [False, True])
def test_window_on_each_device_in_float32(device: str, causal: bool) -> None:
    inputs = tensors(heads=4, kv_heads=2, length=300, width=16, device=device, dtype=torch.float32)
    mask = padding(2, 300, seed=2, device=device)
    mask[0, 40:120] = False  # some windows are empty
    options = {"window": 19, "causal": causal, "mask": mask}
    expected = naive(*[x.detach().double().cpu() for x in inputs], **{**options, "mask": mask.cpu()})
    out = attend(*inputs, **options)
    torch.testing.assert_close(out.double().cpu(), expected, atol=1e-5, rtol=0)
    assert not out[0, :, 80:100].any()
    out.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


def test_an_even_causal_window() -> None:
    same(tensors(length=70), attend, {"window": 6, "causal": True})


def test_a_window_costs_as_much_as_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of query and key that are looked at, and the elements of the largest mask, grow with T x window."""
    looked_at = []

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *rest: Any, **options: Any) -> Tensor:
        looked_at.append((math.prod(q.shape[:3]) * k.shape[2], mask.numel() * q.shape[1] // mask.shape[1]))
        return v[:, :, : q.shape[2]]

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for length in (1000, 2000, 4000):
        for window in (9, 65, 257):
            looked_at.clear()
            attend(*tensors(batch=1, heads=1, kv_heads=1, length=length), window=window)
            assert max(looked_at[0]) <= length * (2 * window + 64) * 1.3
    looked_at.clear()
    attend(*tensors(batch=1, heads=1, kv_heads=1, length=30), window=100001)
    assert looked_at[0][0] <= 30 * 100


@pytest.mark.parametrize("window", [None, 5])
def test_rows_without_a_key_are_zero_and_padding_changes_nothing(window: int | None) -> None:
    inputs = tensors(length=90)
    mask = torch.zeros(2, 90, dtype=torch.bool)
    mask[0, :60] = True
    out = attend(*inputs, mask=mask, window=window)
    assert not out[1].any()
    short = [x[:1, :, :60] for x in inputs]
    torch.testing.assert_close(out[:1, :, :60], attend(*short, window=window))
    out.sum().backward()
    for x in inputs:
        assert x.grad is not None
        assert not x.grad[1].any()


def test_dropout_is_of_weights_and_scaled() -> None:
    q, k, v = (torch.ones(1, 1, 400, 8) for _ in range(3))
    out = attend(q, k, v, dropout=0.5)
    assert out.std() > 0
    assert abs(float(out.mean()) - 1) < 0.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": torch.ones(2, 10)}, "mask must be bool.*float32.*bias"),
        ({"mask": torch.ones(2, 9, dtype=torch.bool)}, r"mask must be \(B,S\) = \(2, 10\); got \(2, 9\)"),
        ({"mask": torch.ones(2, 10, 10, dtype=torch.bool)}, r"4 dimensions; got \(2, 10, 10\)"),
        ({"window": 4}, "odd; got 4"),
        ({"window": 0}, "at least 1 key; got 0"),
        ({"window": 3, "mask": torch.ones(2, 1, 10, 10, dtype=torch.bool)}, r"mask must be \(B,S\)"),
        ({"window": 3, "bias": torch.zeros(1, 4, 10, 10)}, r"\(B,heads,T,3\)"),
    ],
)
def test_attend_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attend(*tensors(), **options)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"heads": 4, "kv_heads": 3}, "heads a multiple of kv_heads"),
        ({"length": 3, "total": 5, "window": 3}, "as many keys as queries"),
    ],
)
def test_attend_shape_errors(sizes: dict[str, int], words: str) -> None:
    window = sizes.pop("window", None)
    with pytest.raises(ValueError, match=words):
        attend(*tensors(**sizes), window=window)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"q \(2, 10, 8\)"):
        attend(*[x[:, 0] for x in tensors()])


# --- Attention


def test_attention_is_project_attend_project() -> None:
    layer = Attention(32, 4, kv_heads=2, qk_norm=True).double()
    x, mask = torch.randn(2, 7, 32, dtype=torch.float64), padding(2, 7, seed=1)
    q, k, v = F.linear(x, layer.qkv.weight, layer.qkv.bias).split([32, 16, 16], -1)
    q, k, v = (y.reshape(2, 7, -1, 8).transpose(1, 2) for y in (q, k, v))
    q, k = (y / (y.pow(2).mean(-1, keepdim=True) + torch.finfo(y.dtype).eps).sqrt() for y in (q, k))
    expected = layer.proj(naive(q, k, v, mask=mask).transpose(1, 2).reshape(2, 7, 32))
    torch.testing.assert_close(layer(x, mask=mask), expected)


def test_attention_to_a_context_and_to_itself_agree() -> None:
    layer = Attention(32, 4, bias=False)
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(layer(x, x), layer(x))
    assert layer(x, torch.randn(2, 3, 32)).shape == (2, 7, 32)
    with pytest.raises(ValueError, match="rope"):
        Attention(32, 4, rope=Rope(8))(x, x)


def test_attention_with_rope_sees_only_differences_and_reaches_every_parameter() -> None:
    layer = Attention(32, 2, rope=Rope(16), window=5, qk_norm=True)
    x = torch.randn(2, 9, 32)
    out = layer(x, positions=torch.arange(9))
    torch.testing.assert_close(out, layer(x, positions=torch.arange(9) + 100), atol=2e-4, rtol=0)
    torch.testing.assert_close(out, layer(x))
    assert not torch.allclose(out, layer(x, positions=torch.arange(9) * 2), atol=1e-3)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_causal_attention_can_be_counted() -> None:
    """While `summary` traces a model, the sizes of its tensors are tensors."""
    attention = Attention(8, 2, causal=True)
    assert counts(attention, torch.randn(1, 5, 8))["multiply_adds"] > 5 * 8 * 8 * 4


def test_causal_attention_never_looks_ahead() -> None:
    x = torch.randn(1, 80, 16)
    for window in (None, 7):
        layer = Attention(16, 2, causal=True, window=window)
        changed = x.clone()
        changed[:, 50:] += 1
        assert torch.equal(layer(changed)[:, :50], layer(x)[:, :50])


def test_attention_drops_only_in_training() -> None:
    layer, x = Attention(16, 2, dropout=0.5), torch.randn(1, 8, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_attention_refuses_sizes_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="dim=30, heads=4"):
        Attention(30, 4)
    with pytest.raises(ValueError, match="kv_heads=3"):
        Attention(32, 4, kv_heads=3)


# --- Rope


@quick
@given(axes=st.integers(1, 3), shift=st.integers(-50, 50), seed=st.integers(0, 1000))
def test_rope_keeps_norms_and_sees_only_differences(axes: int, shift: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rope = Rope(24, base=100.0, axes=axes)
    q, k = torch.randn(2, 1, 2, 6, 24, generator=generator)
    positions = torch.randint(0, 40, (6, axes), generator=generator).squeeze(-1)
    torch.testing.assert_close(rope(q, positions).norm(dim=-1), q.norm(dim=-1))
    scores = rope(q, positions) @ rope(k, positions).transpose(-1, -2)
    moved = rope(q, positions + shift) @ rope(k, positions + shift).transpose(-1, -2)
    torch.testing.assert_close(scores, moved, atol=1e-3, rtol=0)


def test_rope_turns_pairs_by_falling_speeds() -> None:
    x = torch.zeros(1, 1, 3, 4)
    x[..., 0] = x[..., 1] = 1.0
    out = Rope(4, base=100.0)(x)
    for t in range(3):
        expected = [math.cos(t), math.cos(t / 10), math.sin(t), math.sin(t / 10)]
        np.testing.assert_allclose(out[0, 0, t], expected, atol=1e-6)


def test_rope_axes_are_independent_and_positions_may_differ_by_sample() -> None:
    x = torch.randn(2, 1, 5, 8)
    rope, line = Rope(8, axes=2), Rope(4)
    positions = torch.randint(0, 9, (2, 5, 2))
    out = rope(x, positions)
    torch.testing.assert_close(out[..., :4], line(x[..., :4], positions[..., 0]))
    torch.testing.assert_close(out[..., 4:], line(x[..., 4:], positions[..., 1]))


def test_rope_is_exact_in_half_precision_models_and_saves_nothing() -> None:
    rope = Rope(8).bfloat16()
    assert not rope.state_dict()
    x = torch.randn(1, 1, 3000, 8)
    out = rope(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), Rope(8)(x), atol=0.05, rtol=0)  # angles in bfloat16 would be off by pi


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Rope(6, axes=2), "divisible by 2 x axes; got head_dim=6 and axes=2"),
        (lambda: Rope(8)(torch.zeros(1, 1, 3, 4)), r"built for \(B,heads,T,8\); got \(1, 1, 3, 4\)"),
        (lambda: Rope(8, axes=2)(torch.zeros(1, 1, 3, 8)), r"needs positions \(T,2\)"),
        (lambda: Rope(8, axes=2)(torch.zeros(1, 1, 3, 8), torch.zeros(3, 3)), "has 2 axes"),
        (lambda: Rope(8)(torch.zeros(1, 1, 3, 8), torch.zeros(4)), r"positions \(4,\) for x"),
    ],
)
def test_rope_errors(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# --- Mlp, SwiGLU, DropPath


def test_mlp_and_swiglu_formulas() -> None:
    x = torch.randn(2, 5, 12)
    mlp = Mlp(12, out=7)
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))))
    assert mlp(x).shape == (2, 5, 7)
    assert mlp.fc1.out_features == 48
    assert torch.equal(
        Mlp(4, 4, activation=nn.Identity, dropout=0.0).eval()(torch.zeros(1, 4)).isfinite(), torch.ones(1, 4) > 0
    )
    glu = SwiGLU(12, 20)
    gate = glu.gate(x)
    torch.testing.assert_close(glu(x), glu.down(gate * torch.sigmoid(gate) * glu.up(x)))
    assert glu.gate.bias is None
    assert SwiGLU(768).gate.out_features == 2048
    assert Mlp(16, dropout=0.9)(torch.randn(4, 16)).eq(0).any()


@quick
@given(p=st.floats(0.05, 0.9), seed=st.integers(0, 1000))
def test_drop_path_drops_samples_and_keeps_the_mean(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    layer, x = DropPath(p), torch.ones(4000, 2, 3)
    out = layer(x)
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    np.testing.assert_allclose(out.unique(), [0, 1 / (1 - p)], rtol=1e-5)
    assert abs(float(out.mean()) - 1) < 5 * math.sqrt(p / (1 - p) / 4000)
    torch.manual_seed(seed)
    assert torch.equal(layer(x), out)  # the global generator alone decides
    assert layer.eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_refuses_to_drop_all() -> None:
    with pytest.raises(ValueError, match=r"below 1; got 1\.0"):
        DropPath(1.0)


# --- resize_positions


@pytest.mark.parametrize("batched", [False, True])
def test_resizing_keeps_class_tokens_and_interpolates_the_grid(batched: bool) -> None:
    table = torch.randn(2 + 6 * 5, 8)
    out = resize_positions(table[None] if batched else table, (6, 5), (9, 4))
    assert out.shape == ((1, 38, 8) if batched else (38, 8))
    out = out.reshape(38, 8)
    assert torch.equal(out[:2], table[:2])
    image = table[2:].T.reshape(1, 8, 6, 5)
    expected = F.interpolate(image, (9, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(out[2:], expected[0].flatten(1).T)


def test_resizing_time_is_linear_and_leaves_space_alone() -> None:
    time = torch.arange(4.0)[:, None, None, None].expand(4, 2, 3, 5)
    space = torch.randn(2, 3, 5)
    table = (time + space).reshape(24, 5)
    out = resize_positions(table, (4, 2, 3), (8, 2, 3)).reshape(8, 2, 3, 5)
    steps = [max(0.0, min(3.0, (i + 0.5) / 2 - 0.5)) for i in range(8)]
    torch.testing.assert_close(out, torch.tensor(steps)[:, None, None, None] + space)
    line = resize_positions(torch.arange(4.0)[:, None], (4,), (8,))
    np.testing.assert_allclose(line[:, 0], steps, atol=1e-6)


@quick
@given(
    old=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    new=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)),
    axes=st.integers(1, 3),
    tokens=st.integers(0, 2),
)
def test_resizing_shapes_constants_and_identity(
    old: tuple[int, ...], new: tuple[int, ...], axes: int, tokens: int
) -> None:
    old, new = old[:axes], new[:axes]
    table = torch.full((1, tokens + math.prod(old), 4), 0.7, dtype=torch.float16)
    out = resize_positions(table, old, new)
    assert out.shape == (1, tokens + math.prod(new), 4)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.full_like(out, 0.7))
    assert torch.equal(resize_positions(table, old, old), table)


@pytest.mark.parametrize(
    ("table", "old", "new", "words"),
    [
        (torch.zeros(9, 4), (4, 4), (5, 5), r"fewer rows than its grid \(4, 4\), 16"),
        (torch.zeros(9, 4), (3, 3), (5,), "grids must both be"),
        (torch.zeros(9, 4), (3, 3), (0, 5), "at least 1"),
        (torch.zeros(2, 9, 4), (3, 3), (5, 5), r"\(N,D\) or \(1,N,D\); got \(2, 9, 4\)"),
    ],
)
def test_resizing_errors(table: Tensor, old: tuple[int, ...], new: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resize_positions(table, old, new)
