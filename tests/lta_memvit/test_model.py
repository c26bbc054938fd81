"""Shapes, refusals, portrait clips, gradients, and the fast forms against the plain ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.nn import conv, norm
from projects.lta_memvit import model
from projects.lta_memvit.config import MemoryConfig, ModelConfig
from projects.lta_memvit.model import VARIANTS, Forecaster, Network, Place, Recognizer, Repeat, pack, relative
from projects.lta_memvit.model.memvit import CHUNK, attend
from projects.lta_memvit.model.plan import blocks
from projects.lta_memvit.model.tokens import Pool, pool_skip, to_tokens, to_video


def build(backbone: str, task: str = "forecasting", **options: Any) -> Network:
    torch.manual_seed(0)
    wish = {key: options.pop(key) for key in list(options) if key in ModelConfig.model_fields}
    geometry = {"classes": (5, 7), "inputs": 2, "future": 3, "frames": 8, "crop": 32} | options
    return model.build(ModelConfig(backbone=backbone, **wish), MemoryConfig(), task=task, **geometry).eval()


# ---------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("backbone", "widen", "parameters"),
    [("memvit_16", "attention", 35_388_832), ("memvit_24", "attention", 52_601_344), ("slowfast_r101", "mlp", None)],
)
def test_published_sizes(backbone: str, widen: str, parameters: int | None) -> None:
    """With the 400 classes of Kinetics."""
    with torch.device("meta"):
        wish = ModelConfig(backbone=backbone, widen=widen)
        frames = VARIANTS[backbone].frames if backbone in VARIANTS else 32
        net = model.build(wish, MemoryConfig(), task="recognition", classes=(399, 1), frames=frames)
    count = sum(p.numel() for p in net.parameters())
    assert parameters is None or count == parameters
    if backbone == "slowfast_r101":  # 66.6 M with 2048 outputs
        assert round((count - 2305 * 400 + 2305 * 2048) / 1e6, 1) == 66.6


def test_plans() -> None:
    plan = blocks(VARIANTS["memvit_16"], 16, 224, "attention")
    assert [p.inner for p in plan] == [96, 192, 192, *[384] * 11, 768, 768]
    assert [p.q_stride for p in plan] == [1, 2, 1, 2, *[1] * 10, 2, 1]
    assert [p.kv_stride for p in plan] == [8, 4, 4, *[2] * 11, 1, 1]
    assert [p.outputs for p in blocks(VARIANTS["mvit_b"], 16, 224, "mlp")][:4] == [192, 192, 384, 384]


# ------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("aggregator", ["concat", "mean", "transformer"])
@pytest.mark.parametrize("backbone", ["slowfast_nano", "mvit_nano", "memvit_nano", "none"])
def test_a_forecaster_is_its_encoder_and_its_conclusion(backbone: str, aggregator: str) -> None:
    net = build(backbone, aggregator=aggregator, heads=2, layers=1, width=16, feature_size=12)
    assert isinstance(net, Forecaster)
    if backbone == "none":
        with pytest.raises(ValueError, match="precomputed features; clips need a backbone"):
            net(torch.zeros(2, 2, 3, 8, 32, 32))
        features = torch.randn(2, 2, 12)
    else:
        clips = torch.randn(2, 2, 3, 8, 32, 32)
        features = net.encode(clips)
        torch.testing.assert_close(net(clips), net(features=features))
    assert features.shape == (2, 2, net.width)
    outputs = net(features=features)
    assert outputs.verb.shape == (2, 3, 5)
    assert outputs.noun.shape == (2, 3, 7)


def test_repeating_says_the_recognized_action_of_the_first_input() -> None:
    repeat, net = build("slowfast_nano", aggregator="repeat"), build("slowfast_nano", "recognition")
    assert isinstance(repeat, Repeat)
    assert isinstance(net, Recognizer)
    repeat.load_state_dict(net.state_dict())
    clips = torch.randn(2, 1, 3, 8, 32, 32)
    outputs, once = repeat(clips), net(clips[:, 0])
    assert all(outputs.verb[:, z].equal(once.verb) for z in range(3))


def test_probabilities_in_training_by_name_only() -> None:
    net = build("mvit_nano", "recognition", softmax_head=True, dropout=0.0)
    clips = torch.randn(2, 3, 8, 32, 32)
    assert not torch.allclose(net(clips).verb.sum(-1), torch.ones(2))
    torch.testing.assert_close(net.train()(clips).verb.sum(-1), torch.ones(2))


@pytest.mark.parametrize("height_width", [(48, 32), (32, 48), (64, 40)])
@pytest.mark.parametrize("backbone", ["slowfast_nano", "memvit_nano"])
def test_any_shape_of_pictures(backbone: str, height_width: tuple[int, int]) -> None:
    """Portrait clips, for which the original fails; with memory too."""
    net = build(backbone, "recognition")
    for position in range(4):
        outputs = net(torch.randn(1, 3, 8, *height_width), streams=[Place("a", position)])
        assert outputs.verb.isfinite().all()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"set clip\.frames and clip\.crop"):
        build("mvit_nano")(torch.zeros(1, 2, 3, 8, 48, 48))
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        build("slowfast_nano")(torch.zeros(1, 2, 3, 6, 32, 32))
    with pytest.raises(ValueError, match=r"video is \(B, 3, T, H, W\)"):
        build("slowfast_nano").encode(torch.zeros(3, 8, 32, 32))
    with pytest.raises(ValueError, match="one of both"):
        build("slowfast_nano")()


@pytest.mark.parametrize("backbone", ["slowfast_nano", "mvit_nano", "memvit_nano"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_reach_every_weight_that_learns(backbone: str, recompute: bool) -> None:
    found = []
    for again in {False, recompute}:
        net = build(backbone, recompute=again, dropout=0.0, drop_path=0.0).train()
        torch.manual_seed(1)
        for name, parameter in net.named_parameters():
            if "c_bn.weight" in name:
                torch.nn.init.ones_(parameter)  # else the branch says nothing yet
        clips = torch.randn(2, 2, 3, 8, 32, 32)
        for position in (1, 2):
            net.zero_grad()
            outputs = net(clips, streams=[Place("a", position), Place("b", position)])
            (outputs.verb.square().sum() + outputs.noun.square().sum()).backward()
        grads = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
        assert all(grad is not None for grad in grads.values())
        found.append(grads)
    for name, grad in found[0].items():
        torch.testing.assert_close(found[-1][name], grad, atol=1e-5, rtol=1e-4)


def test_freezing_leaves_the_heads() -> None:
    net = model.freeze(build("memvit_nano"))
    learning = {name.split(".")[0] + "." + name.split(".")[1] for name, p in net.named_parameters() if p.requires_grad}
    assert learning == {"backbone.head", "decoder.head"}
    model.train(net, ModelConfig(freeze=True))
    assert not net.backbone.blocks[0].training
    assert net.backbone.head.training
    assert net.decoder.training
    model.train(net, ModelConfig(freeze=True, frozen="reference"))
    assert net.backbone.blocks[0].training


# ------------------------------------------------------------------------------------------------------------- pathways


def test_the_slow_pathway_is_taken_of_joined_clips() -> None:
    """Spelled out for four inputs of 32 frames."""
    video = torch.arange(4 * 32.0).view(1, 4, 1, 32, 1, 1)
    slow, fast = pack(video)
    assert fast is video
    places = [[int(value) % 32 for value in part.flatten()] for part in slow[0]]
    assert places == [
        [0, 4, 8, 12, 16, 20, 24, 28],
        [0, 4, 8, 13, 17, 21, 25, 29],
        [1, 5, 9, 13, 17, 22, 26, 30],
        [2, 6, 10, 14, 18, 22, 26, 31],
    ]


@given(inputs=st.integers(1, 8), quarters=st.integers(1, 8))
def test_slow_frames_are_floors_of_a_line(inputs: int, quarters: int) -> None:
    frames = 4 * quarters
    video = torch.arange(inputs * frames * 1.0).view(1, inputs, 1, frames, 1, 1)
    count = inputs * quarters
    line = [math.floor(k * (inputs * frames - 1) / max(1, count - 1)) for k in range(count)]
    found = pack(video)[0].flatten().tolist()
    assert all(abs(a - b) <= 1 for a, b in zip(found, line, strict=True))  # floats of the original round as they do
    assert found == torch.linspace(0, inputs * frames - 1, count).long().tolist()


# -------------------------------------------------------------------------------------------- fast forms and plain ones


def test_gradients_of_slowfast_are_those_of_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight of a training pass, with convolutions and batch norms as PyTorch has them.

    In double precision: in single precision the depth of the network makes noise of it (test_golden_train has figures).
    """
    found = []
    for plain in (False, True):
        if plain:
            for layer in (conv.Pointwise, conv.Spatial, conv.Temporal):
                monkeypatch.setattr(layer, "forward", nn.Conv3d.forward)
            monkeypatch.setattr(norm.BatchNorm, "forward", nn.BatchNorm3d.forward)
        net = build("slowfast_r50", "recognition", dropout=0.0, crop=64).double().train()
        for name, parameter in net.named_parameters():
            if "bn.weight" in name:  # of fresh blocks they are zero, so that these say nothing
                torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
        outputs = net(torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1)).double())
        (outputs.verb.square().sum() + outputs.noun.square().sum()).backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    ours, theirs = found
    for name, expected in theirs.items():
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours[name], expected, atol=1e-9 * scale, rtol=0, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("rows", [3, 700])
def test_attention_in_parts_is_attention(rows: int) -> None:
    q, k, v = torch.randn(2, 3, rows, 5), torch.randn(2, 3, 400, 5), torch.randn(2, 3, 400, 6)
    assert rows < 10 or rows * 400 * 6 > CHUNK
    torch.testing.assert_close(attend(q, k, v), (q @ k.transpose(-1, -2)).softmax(-1) @ v, atol=1e-6, rtol=1e-5)


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)), stride=st.sampled_from([1, 2, 4]),
    entries=st.integers(0, 2), causal=st.booleans(),
)  # fmt: skip
@settings(max_examples=40)
def test_channels_equal_added_biases(grid: tuple[int, int, int], stride: int, entries: int, causal: bool) -> None:
    """Queries times keys with the channels of positions, against the tables looked up pair by pair."""
    torch.manual_seed(0)
    t, h, w = grid
    keys = (t, -(-h // stride), -(-w // stride))
    small = (1, -(-keys[1] // 2), -(-keys[2] // 2))
    rows = 2 * max(h, keys[1]) - 1
    tables = relative.Tables(torch.randn(2 * t - 1, 4), torch.randn(rows, 4), torch.randn(rows, 4))
    memory_rows = 2 * max(h, small[1]) - 1
    others = relative.Tables(torch.randn(3 * t + 7, 4), torch.randn(memory_rows, 4), torch.randn(memory_rows, 4))
    memory = relative.Memory(entries, small, 4, others) if entries else None
    q = torch.randn(1, 1, 1 + t * h * w, 4)
    channels = relative.query_channels(q, grid, keys, tables, memory, causal=causal)
    ones = relative.key_channels(keys, entries, small, q.device, q.dtype)
    found = (channels @ ones.T)[0, 0]

    each = 1 + small[0] * small[1] * small[2]
    wanted = torch.zeros(len(q[0, 0]), entries * each + 1 + keys[0] * keys[1] * keys[2])
    axes = [*relative.spatial(grid, keys, q.device)]
    memory_axes = [*relative.spatial(grid, small, q.device)]
    for i in range(t * h * w):
        qt, qh, qw = i // (h * w), i // w % h, i % w
        query = q[0, 0, 1 + i]
        for j in range(keys[0] * keys[1] * keys[2]):
            kt, kh, kw = j // (keys[1] * keys[2]), j // keys[2] % keys[1], j % keys[2]
            value = query @ (tables.h[axes[0].rows[qh, kh]] + tables.w[axes[1].rows[qw, kw]])
            later = causal and kt > qt
            value = value + (relative.MASKED if later else query @ tables.t[qt - kt + t - 1])
            wanted[1 + i, entries * each + 1 + j] = value
        for entry in range(entries):
            for j in range(each - 1):
                kt, kh, kw = entry * small[0] + j // (small[1] * small[2]), j // small[2] % small[1], j % small[2]
                value = query @ (others.h[memory_axes[0].rows[qh, kh]] + others.w[memory_axes[1].rows[qw, kw]])
                value = value + query @ others.t[qt + 4 * (entries * small[0] - 1 - kt)]
                wanted[1 + i, entry * each + 1 + j] = value
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_pooling_of_heads_is_one_convolution(causal: bool, stride: int) -> None:
    """Two heads with one kernel, against each by itself, padded as the original does."""
    pool, grid = Pool(4, stride, causal=causal), (3, 6, 5)
    tokens = torch.randn(2, 3 * 6 * 5, 8)
    found = to_tokens(pool(to_video(tokens, grid)))
    padding = (2 if causal else 1, 1, 1)
    parts = []
    for head in tokens.chunk(2, -1):
        video = to_video(head, grid).contiguous()
        pooled = F.conv3d(video, pool.weight, None, (1, stride, stride), padding, groups=4)
        parts.append(to_tokens(pooled[:, :, :3]))
    torch.testing.assert_close(found, torch.cat(parts, -1), atol=1e-6, rtol=1e-5)


def test_the_skip_takes_maxima_of_frames() -> None:
    tokens = torch.randn(2, 1 + 2 * 6 * 4, 3)
    pooled = pool_skip(tokens, (2, 6, 4), 2)
    video = to_video(tokens[:, 1:], (2, 6, 4)).contiguous()
    expected = to_tokens(F.max_pool3d(video, (1, 3, 3), (1, 2, 2), (0, 1, 1)))
    assert pooled[:, 1:].equal(expected)
    assert pooled[:, 0].equal(tokens[:, 0])
    assert pool_skip(tokens, (2, 6, 4), 1) is tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backbone", ["slowfast_nano", "mvit_nano", "memvit_nano"])
def test_a_gpu_says_the_same_and_is_never_waited_for(backbone: str) -> None:
    net = build(backbone, "recognition")
    gpu = build(backbone, "recognition").cuda()
    gpu.load_state_dict(net.state_dict())
    for position in range(5):
        clips, places = torch.randn(2, 3, 8, 32, 32), [Place("a", position), Place("b", position)]
        on_device = clips.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.inference_mode():
                found = gpu(on_device, streams=places)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        with torch.inference_mode():
            torch.testing.assert_close(found.verb.cpu(), net(clips, streams=places).verb, atol=2e-3, rtol=2e-3)
