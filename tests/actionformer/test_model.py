"""The networks: padding that changes nothing, videos of any length, gradients everywhere, batches of any mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.nn import attend
from projects.actionformer.config import LossConfig, ModelConfig
from projects.actionformer.losses import Criterion
from projects.actionformer.model import Detector, Padding, build, by_length
from projects.actionformer.model.conv import MaskedConv
from projects.actionformer.model.linear import Linear
from projects.actionformer.model.window import window_attention

SMALL: dict[str, Any] = {
    "arch": (2, 1, 3),
    "width": (16,),
    "neck_width": 16,
    "head_width": 16,
    "heads": 4,
    "window": (5,),
    "ranges": ((0, 4), (4, 8), (8, 16), (16, 10000)),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "positions": {"abs_positions": True, "rel_positions": True},
    "conv": {"backbone": "conv"},
    "global": {"window": (-1,), "abs_positions": True},
    "fpn": {"neck": "fpn", "neck_width": 24, "head_width": 20},
    "cs_fpn": {"neck": "cs_fpn", "start_level": 1, "ranges": ((0, 8), (8, 16), (16, 10000))},
    "modern": {"backbone": "modern", "rope": True, "swiglu": True, "rms_norm": True, "kv_heads": 2, "window": (-1,)},
    "wide kernels": {"head_kernel": 5, "embed_kernel": 5, "head_layers": 4},
    "deep heads": {"head": "deep", "head_layers": 4},
    "no norms": {"embed_norm": False, "neck_norm": False, "head_norm": False, "drop_path": 0.0},
    "snapformer": {"name": "snapformer", "neck": "cs_fpn"},
    "tbtformer": {"name": "tbtformer", "reg_max": 8},
}


class Untrimmed(Padding):
    """The padding of the official code: all the way."""

    def choose(self, lengths: Sequence[int]) -> int:
        return self.reference(max(lengths))


def network(seed: int = 0, **settings: Any) -> Detector:
    """A small network whose norms have biases, which is what padded steps say."""
    torch.manual_seed(seed)
    net = build(ModelConfig(**{**SMALL, **settings}), channels=(6,), classes=3, max_length=64)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias") or "scale" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("scale" in name))
    return net.eval()


def videos(*lengths: int) -> tuple[Tensor, Tensor]:
    """Features (B,C,T) and mask (B,T)."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), 6, max(lengths)) * mask[:, None], mask


def real(net: Detector, features: Tensor, mask: Tensor) -> list[Tensor]:
    """What is said about real steps, level by level, for one video."""
    outputs = net(features, mask)
    masks = outputs.mask[0].split(list(outputs.levels))
    found = []
    for values in (outputs.logits, outputs.offsets):
        found += [part[0][m] for part, m in zip(values.split(list(outputs.levels), 1), masks, strict=True)]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_shorter_padding_says_the_same(variant: str) -> None:
    net = network(**VARIANTS[variant])
    trimmed, whole = net.padding, Untrimmed(**vars(net.padding))
    shorter = 0
    for length in (1, 2, 7, 23, 31, 32, 33, 48, 55, 56, 57, 63, 64, 65, 90, 128, 130):
        features, mask = videos(length)
        net.padding = trimmed
        ours = real(net, features, mask)
        shorter += trimmed.choose([length]) < whole.choose([length])
        net.padding = whole
        for a, b in zip(ours, real(net, features, mask), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    assert shorter >= 8


@torch.no_grad()
def test_without_a_spare_step_padding_is_as_long_as_officially() -> None:
    # 64 steps fill the official length: no padded step is read. One more padded step would change the answer.
    net = network()
    features, mask = videos(64)
    ours = real(net, features, mask)
    assert net.padding.choose([64]) == 64
    net.padding = Padding(128, net.padding.strides, net.padding.windows, net.padding.reach)
    assert max((a - b).abs().max() for a, b in zip(ours, real(net, features, mask), strict=True)) > 1e-3


@pytest.mark.parametrize("variant", ["plain", "positions", "cs_fpn", "modern", "tbtformer"])
@torch.no_grad()
def test_a_batch_says_what_its_videos_say_alone(variant: str) -> None:
    net = network(**VARIANTS[variant])
    features, mask = videos(20, 100, 64, 5, 101, 61)
    seen = []
    for group, outputs in by_length(net, features, mask):
        seen += group
        for place, index in enumerate(group):
            own = int(mask[index].sum())
            alone = net(features[index : index + 1, :, :own], mask[index : index + 1, :own])
            for ours, theirs in ((outputs.logits, alone.logits), (outputs.offsets, alone.offsets)):
                together = ours[place][outputs.mask[place]]
                torch.testing.assert_close(together, theirs[0][alone.mask[0]], atol=2e-5, rtol=0)
    assert sorted(seen) == list(range(6))


def test_videos_whose_padding_differs_do_not_share_a_batch() -> None:
    net = network()
    with pytest.raises(ValueError, match="compatible"):
        net(*videos(20, 100))


@torch.no_grad()
def test_a_video_may_be_of_any_length() -> None:
    net = network(abs_positions=True)
    for length in (1, 64 * 6 + 1, 3000):  # official: at most six training crops
        outputs = net(*videos(length))
        assert outputs.mask.sum() == sum(-(-length // stride) for stride in net.strides)
        assert outputs.logits.isfinite().all()


def test_padded_steps_carry_what_their_norms_say() -> None:
    """The leak itself: with other biases of the first norm, the last real step changes, though no input does."""
    net, features, mask = network(), *videos(20)
    with torch.no_grad():
        before = net(features, mask).logits[0, 19].clone()
        net.backbone.embd_norm[0].bias[:] = 0
        assert (net(features, mask).logits[0, 19] - before).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant: str) -> None:
    net = network(**VARIANTS[variant]).train()
    for name, parameter in net.named_parameters():
        if "offset_head.conv.bias" in name:
            parameter.data.fill_(2.0)  # behind a relu that is off there is no gradient
    torch.manual_seed(1)
    features, mask = videos(60, 41)
    batch = {
        "segments": [torch.tensor([[1.0, 4.0], [3.0, 9.0], [5.0, 17.0], [2.0, 30.0], [1.0, 55.0]])] * 2,
        "labels": [torch.tensor([0, 1, 2, 0, 1])] * 2,
    }
    criterion = Criterion(LossConfig(init_norm=10), net_name(variant), 3)
    criterion(net(features, mask), batch)["total"].backward()
    idle = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert idle == []
    still = [name for name, parameter in net.named_parameters() if not parameter.grad.any()]
    # Drop path may drop a branch of both videos.
    assert [name for name in still if not any(part in name for part in ("drop_path", "attn", "mlp", "ln"))] == []


def net_name(variant: str) -> str:
    return VARIANTS[variant].get("name", "actionformer")


def test_features_of_another_width_are_named() -> None:
    with pytest.raises(ValueError, match="input_dim"):
        network()(torch.zeros(1, 7, 10), torch.ones(1, 10, dtype=torch.bool))


def test_points_say_their_time_range_and_stride() -> None:
    outputs = network()(*videos(60))
    assert outputs.levels == (64, 32, 16, 8)
    assert outputs.points[:3].tolist() == [[0, 0, 4, 1], [1, 0, 4, 1], [2, 0, 4, 1]]
    assert outputs.points[64:66].tolist() == [[0, 4, 8, 2], [2, 4, 8, 2]]


def test_an_untrained_head_says_its_prior() -> None:
    net = build(ModelConfig(**SMALL, prior=0.02, empty_classes=(1,)), channels=(6,), classes=3, max_length=64)
    bias = net.cls_head.cls_head.conv.bias.sigmoid()  # type: ignore[union-attr]
    torch.testing.assert_close(bias, torch.tensor([0.02, 1e-6, 0.02]))


# ------------------------------------------------------------------------------------------------------ fast arithmetic


@settings(max_examples=25)
@given(batch=st.integers(1, 3), length=st.integers(1, 40), out=st.sampled_from([2, 64, 96]), bias=st.booleans())
@example(batch=1, length=3300, out=64, bias=False)  # more than is transformed at a time
def test_convolutions_by_other_sums_are_the_convolution(batch: int, length: int, out: int, bias: bool) -> None:
    torch.manual_seed(length)
    conv = MaskedConv(64, out, 3, bias=bias)
    x = torch.randn(batch, length, 64, requires_grad=True)
    expected = conv.conv(x.transpose(1, 2)).transpose(1, 2)
    slope = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, conv.conv.weight), slope)
    ours = conv(x)
    found = torch.autograd.grad(ours, (x, conv.conv.weight), slope)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_learn_as_those_of_torch(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x, slope = Linear(48, 20, bias=bias), torch.randn(2, 7, 48, requires_grad=True), torch.randn(2, 7, 20)
    given = (x, *layer.parameters())
    found = torch.autograd.grad(layer(x), given, slope)
    wanted = torch.autograd.grad(nn.functional.linear(x, layer.weight, layer.bias), given, slope)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [MaskedConv(64, 64, 3), Linear(64, 32)], ids=["convolution", "linear"])
def test_what_is_kept_of_weights_follows_them(layer: nn.Module) -> None:
    """Evaluation keeps transformed weights: after any change of the weights it must make them again."""
    x = torch.randn(1, 9, 64)
    weight = next(parameter for name, parameter in layer.named_parameters() if name.endswith("weight"))

    def answers_agree() -> bool:
        with torch.no_grad():
            fast = layer(x)
        slow = layer(x).detach()  # with gradients nothing is kept
        return bool((fast - slow).abs().max() < 1e-4)

    assert answers_agree()
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert answers_agree()
    with torch.no_grad():
        torch._foreach_lerp_([weight.detach()], [torch.randn_like(weight)], 0.5)
    assert answers_agree()
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    assert answers_agree()


@settings(max_examples=25)
@given(batch=st.integers(1, 3), length=st.integers(1, 70), half=st.integers(1, 12), biased=st.booleans())
def test_window_attention_is_attention_in_a_window(batch: int, length: int, half: int, biased: bool) -> None:
    torch.manual_seed(length)
    window, heads = 2 * half + 1, 2
    q, k, v = (torch.randn(batch, length, 8, requires_grad=True) for _ in range(3))
    shown = torch.arange(length) < torch.randint(1, length + 1, (batch, 1))
    bias = torch.randn(heads, window, requires_grad=True) if biased else None
    ours = window_attention(q, k, v, shown, heads=heads, window=window, bias=bias)
    parts = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    theirs = attend(*parts, mask=shown, window=window, bias=None if bias is None else bias[None, :, None])
    theirs = theirs.transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours[shown], theirs[shown], atol=1e-5, rtol=0)
    assert ours.isfinite().all()
    given = [part for part in (q, k, v, bias) if part is not None]
    slope = torch.randn_like(ours) * shown[..., None]
    found, wanted = (torch.autograd.grad(y, given, slope) for y in (ours, theirs))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        again = window_attention(q, k, v, shown, heads=heads, window=window, bias=bias)
    assert torch.equal(again, ours)


@given(length=st.integers(1, 400), more=st.integers(0, 60), reach=st.integers(1, 2))
def test_padding_is_the_shortest_with_a_spare_step_at_every_level(length: int, more: int, reach: int) -> None:
    padding = Padding(64, (1, 2, 4, 8), (5, 5, 5, 5), reach)
    whole = padding.reference(length)
    chosen = padding.choose([length])
    assert length <= chosen <= whole
    assert chosen % 8 == 0
    spare = [chosen // s - -(-length // s) for s in padding.strides]
    official = [whole // s - -(-length // s) for s in padding.strides]
    assert chosen == whole or min(spare) >= reach
    assert (min(spare) >= reach) == (min(official) >= reach)
    if min(official) >= reach:  # and eight steps less would be too few
        assert chosen - 8 < length or min((chosen - 8) // s - -(-length // s) for s in padding.strides) < reach
    groups = padding.compatible([length, length + more])
    assert sorted(index for group in groups for index in group) == [0, 1]
    assert (len(groups) == 1) == (padding.reference(length) == padding.reference(length + more))
