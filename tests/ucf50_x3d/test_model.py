"""Shapes, refusals, gradients and modes of the networks."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.nn.conv import Depthwise
from projects.ucf50_x3d.model import (
    NAMES,
    VARIANTS,
    X3D,
    SlowFast,
    build,
    freeze,
    frozen_eval,
    fuse,
    pack,
    replace_head,
    train,
)


def nano(classes: int = 5, **options: object) -> X3D:
    """A small X3D with random norms, so that every block adds something."""
    torch.manual_seed(0)
    model = X3D("nano", classes, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def clips(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("variant", "parameters", "entries"),
    [("xs", 3794274, 563), ("s", 3794274, 563), ("m", 3794274, 563), ("l", 6153384, 1141)],
)
def test_size(variant: str, parameters: int, entries: int) -> None:
    model = X3D(variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    frames, height, width = VARIANTS[variant].window
    assert (frames, height, width) == {"xs": (4, 5, 5), "s": (13, 5, 5), "m": (16, 7, 7), "l": (16, 10, 10)}[variant]


def test_fifty_classes() -> None:
    model = replace_head(X3D("s"), 50)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3077124
    freeze(model, "head")
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 102450


def test_start_values() -> None:
    model = X3D("xs")
    for block in (block for stage in model.blocks[1:5] for block in stage.res_blocks):
        assert not block.branch2.norm_c.weight.any()
        assert block.branch2.norm_a.weight.eq(1).all()
        assert not any(bias.any() for name, bias in block.branch2.norm_b.named_parameters() if name.endswith("bias"))
    proj = model.blocks[-1].proj
    assert not proj.bias.any()
    assert proj.weight.std().item() == pytest.approx(0.01, rel=0.01)
    post = model.blocks[-1].pool.post_conv.weight  # fan out 2048
    assert post.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
    depthwise = model.blocks[4].res_blocks[1].branch2.conv_b.weight  # fan out 432 * 27 by PyTorch's counting
    assert depthwise.std().item() == pytest.approx((2 / (432 * 27)) ** 0.5, rel=0.02)
    assert replace_head(model, 50).blocks[-1].proj.weight.abs().max() <= 2048**-0.5


def test_more_positions_are_averaged() -> None:
    model = nano().eval()
    larger = clips(2, 3, 9, 96, 70)
    with torch.no_grad():
        features = model.features(larger)
        assert features.shape == (2, 256, 2, 2, 2)
        per_position = model.blocks[-1].proj(features.movedim(1, -1))
        torch.testing.assert_close(model(larger), per_position.mean((1, 2, 3)), atol=1e-6, rtol=1e-5)
        softmax = nano(head_activation="softmax").eval()
        torch.testing.assert_close(softmax(larger), per_position.softmax(-1).mean((1, 2, 3)), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(softmax(larger).sum(1), torch.ones(2))


def test_dropout_acts_on_every_position() -> None:
    model = nano(dropout=0.5).train()
    features = torch.ones(1, 256, 2, 20, 20)
    torch.manual_seed(3)
    averaged = model.classify(features)
    torch.manual_seed(3)
    expected = model.blocks[-1].proj(F.dropout(features, 0.5).movedim(1, -1)).mean((1, 2, 3))
    torch.testing.assert_close(averaged, expected, atol=1e-5, rtol=1e-4)
    assert (
        averaged - model.blocks[-1].proj(torch.ones(1, 256))
    ).abs().max() < 0.05  # 800 positions: little noise is left


@pytest.mark.parametrize(("variant", "smallest"), [("xs", (4, 129, 129)), ("nano", (8, 33, 33))])
def test_clips_that_are_too_small(variant: str, smallest: tuple[int, int, int]) -> None:
    model = X3D(variant, 3).eval()
    with torch.no_grad():
        assert model(clips(1, 3, *smallest)).shape == (1, 3)
    for axis in range(3):
        size = [extent - (index == axis) for index, extent in enumerate(smallest)]
        with pytest.raises(ValueError, match="x".join(map(str, smallest))):
            model(clips(1, 3, *size))


def test_shapes_that_are_no_clips() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\).*\(8, 64, 64, 3\)"):
        nano()(clips(8, 64, 64, 3))
    with pytest.raises(ValueError, match=r"\(1, 8, 3, 64, 64\)"):
        nano()(clips(1, 8, 3, 64, 64))


def test_the_input_is_left_alone() -> None:
    video = clips(2, 3, 8, 64, 64).contiguous(memory_format=torch.channels_last_3d)
    kept = video.clone()
    nano().train()(video)
    with torch.no_grad():
        nano().eval()(video)
    assert torch.equal(video, kept)


def test_gradients_reach_everything_and_are_right() -> None:
    """Against the same network in double precision, whose depthwise convolutions PyTorch differentiates."""
    model = nano(dropout=0.0).train()
    double = copy.deepcopy(model).double()
    for module in double.modules():
        if isinstance(module, Depthwise):
            module.forward = lambda video, module=module: nn.Conv3d.forward(module, video)
    video, labels = clips(3, 3, 8, 64, 64), torch.tensor([0, 3, 4])
    for network, given in ((model, video), (double, video.double())):
        F.cross_entropy(network(given), labels).backward()
    for (name, ours), theirs in zip(model.named_parameters(), double.parameters(), strict=True):
        assert ours.grad is not None, name
        error = (ours.grad.double() - theirs.grad).norm() / (theirs.grad.norm() + 1e-6)
        assert error < 2e-3, f"{name}: {error:.1e}"


def test_shortcut_norm() -> None:
    plain, normed = X3D("nano"), X3D("nano", shortcut_norm=True)
    extra = normed.state_dict().keys() - plain.state_dict().keys()
    assert len(extra) == 5
    assert all(name.startswith("blocks.1.res_blocks.0.branch1_norm.") for name in extra)


@pytest.mark.parametrize("name", NAMES)
def test_build(name: str) -> None:
    model = build(SimpleNamespace(name=name, dropout=0.25), 7)
    assert model.blocks[-1].proj.out_features == 7
    assert model.blocks[-1].dropout.p == 0.25
    assert isinstance(model, SlowFast if name == "slowfast_r50" else X3D)


def test_build_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"x3d_xxl.*x3d_xs, x3d_s"):
        build(SimpleNamespace(name="x3d_xxl", dropout=0.5), 7)
    with pytest.raises(ValueError, match=r"'xxl'.*xs, s, m, l"):
        X3D("xxl")


# ------------------------------------------------------------------------------------------------- what learns, and how


@pytest.mark.parametrize("mode", ["eval", "reference"])
def test_frozen_statistics(mode: str) -> None:
    model = freeze(nano(), "head")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, mode)
    assert model.blocks[-1].dropout.training
    model(clips(2, 3, 8, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    head = {"blocks.5.proj.weight", "blocks.5.proj.bias"}
    assert head <= changed
    statistics = {name for name in before if "running" in name or "tracked" in name}
    assert changed - head == (statistics if mode == "reference" else set())


def test_freeze_by_regex() -> None:
    model = freeze(nano(), r"^blocks\.(4|5)\.")
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith(("blocks.4.", "blocks.5."))}
    train(model)
    assert not model.blocks[3].res_blocks[0].branch2.norm_a.training
    assert model.blocks[4].res_blocks[0].branch2.norm_a.training
    frozen_eval(freeze(model, "all"))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("trainable", "words"), [("heads", "head, all"), ("(", "regular expression")])
def test_freeze_refuses(trainable: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        freeze(nano(), trainable)


# --------------------------------------------------------------------------------------------------------------- fusion


def test_fused_copy() -> None:
    model = nano(shortcut_norm=True).train()
    fused = fuse(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(isinstance(module, nn.BatchNorm3d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    video = clips(2, 3, 8, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(video), model.eval()(video), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fused(video), model(video), atol=1e-5, rtol=1e-4)  # and with gradients enabled


# ------------------------------------------------------------------------------------------------------------- slowfast


def test_pack_truncates() -> None:
    video = torch.arange(32.0).view(1, 1, 32, 1, 1).expand(1, 3, 32, 2, 2)
    slow, fast = pack(video)
    assert slow[0, 0, :, 0, 0].tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert fast is video


def test_slowfast_refuses_other_lengths() -> None:
    model = SlowFast(3)
    with pytest.raises(ValueError, match=r"\(B, 3, 32, H, W\).*\(1, 3, 4, 64, 64\) and \(1, 3, 16, 64, 64\)"):
        model(clips(1, 3, 16, 64, 64))
    with pytest.raises(ValueError, match="32x193x193"):
        model(clips(1, 3, 32, 64, 64))
    with pytest.raises(ValueError, match="a pair of 8 and 32"):
        model([clips(1, 3, 32, 64, 64)])
