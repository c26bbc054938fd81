"""The networks: shapes, independence of the batch, gradients, options, rollout, errors and their words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core import config
from projects.sgear.config import ModelConfig
from projects.sgear.model import Outputs, Sgear, Stream
from projects.sgear.model.decoder import CausalDecoder
from projects.sgear.model.prototypes import PrototypeAttention, Subset, cosines, nearest, unit
from projects.sgear.model.tca import TemporalContext
from projects.sgear.model.vit import PatchEmbed, VisionTransformer

CLASSES = {"action": 12, "verb": 4, "noun": 5}
FRAMES = 4
TINY = [
    "width=64", "vit.image=32", "vit.patch=8", "vit.width=128", "vit.layers=2", "vit.heads=2", "feature_dim=24",
    "decoder.width=32", "decoder.layers=2", "decoder.heads=2", "decoder.positions=32",
]  # fmt: skip


def tiny(*more: str, seed: int = 0, **given: Any) -> Sgear:
    """A small network whose parts all say something: fresh linear layers are too small to."""
    torch.manual_seed(seed)
    net = Sgear(config.load(ModelConfig, None, [*TINY, *more]), FRAMES, CLASSES, **given)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, VisionTransformer):
            nn.init.normal_(module.cls_token)
    return net


def clip(input: str, batch: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(7)
    shape = (batch, 3, FRAMES, 32, 32) if input == "video" else (batch, FRAMES, 24)
    return torch.randn(shape, generator=g)


def flat(outputs: Outputs) -> dict[str, Tensor]:
    """Every tensor of an answer by name."""
    found = {}
    for name, value in outputs._asdict().items():
        if isinstance(value, dict):
            found |= {f"{name}/{key}": item for key, item in value.items()}
        elif value is not None:
            found[name] = value
    return found


KINDS = [["input=video"], ["input=features"], ["input=video", "kind=avt"], ["input=features", "kind=avt"]]
OPTIONS = [
    ["prototype_attention=false"],
    ["nearest=frame"],
    ["merge=clean"],
    ["temperature=learned"],
    ["prototypes.share=0.5"],
    ["tca_blocks=0"],
    ["tca_blocks=1"],
    ["gradients=both"],
    ["labels=[action, verb, noun]"],
    ["decoder.output_len=3", "decoder.average_last=2"],
]
ALL = [*KINDS, *([f"input={kind}", *option] for kind in ("video", "features") for option in OPTIONS)]
ALL += [["input=features", "transform_features=true"], ["input=features", "feature_mixup=true"]]


def kind_of(options: list[str]) -> str:
    return options[0].partition("=")[2]


@pytest.mark.parametrize("options", ALL, ids=",".join)
def test_shapes(options: list[str]) -> None:
    net, x = tiny(*options).eval(), clip(kind_of(options))
    outputs = net(x)
    count, share = len(x), 0.5 if "prototypes.share=0.5" in options else 1
    for label in net.cfg.labels:
        assert outputs.logits[label].shape == (count, CLASSES[label])
        assert outputs.past_logits[label].shape == (count, FRAMES, CLASSES[label])
    assert outputs.z.shape == outputs.future.shape == (count, 64)
    assert outputs.past.shape == (count, FRAMES, 64)
    assert outputs.feature_error.shape == (count, FRAMES - 1, 64)
    if net.cfg.kind == "avt":
        assert outputs.similarities is None
        assert torch.equal(outputs.z, outputs.future)
        assert not any("proto" in name.lower() or "TCA" in name for name in net.state_dict())
    else:
        assert outputs.similarities is not None
        assert outputs.similarities_past is not None
        assert outputs.similarities.shape == (count, 12 * share)
        assert outputs.similarities_past.shape == (count, FRAMES, 12 * share)
        assert outputs.similarities.abs().max() <= 1 + 1e-6
    assert all(value.isfinite().all() for value in flat(outputs).values())


@pytest.mark.parametrize("options", ALL, ids=",".join)
@torch.no_grad()
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(options: list[str]) -> None:
    """The default: alone, in another order or among others, a sample gets the same answer."""
    net, x = tiny(*options).eval(), clip(kind_of(options), 4)
    together = flat(net(x))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = flat(net(x[order]))
    alone = [flat(net(one[None])) for one in x]
    for name, value in together.items():
        torch.testing.assert_close(shuffled[name], value[order], atol=1e-5, rtol=1e-4, msg=name)
        torch.testing.assert_close(torch.cat([one[name] for one in alone]), value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("input", ["video", "features"])
@torch.no_grad()
def test_compat_mixes_samples_as_released_and_one_sample_tells_no_difference(input: str) -> None:
    net, x = tiny(f"input={input}").eval(), clip(input)
    fixed, single = net(x), net(x[:1])
    net.cfg = net.cfg.model_copy(update={"compat": True})
    assert (net(x).z - fixed.z).abs().max() > 1e-4
    assert (net(x).z - net(x.flip(0)).z.flip(0)).abs().max() > 1e-4
    near = nearest(net.encode(x)[1], unit(net.vis_prototypes), net.vis_prototypes, per="clip", compat=True)[1]
    if torch.equal(near, near.sort(stable=True).values):  # pragma: no cover - the order is the kernel's choice
        torch.testing.assert_close(net(x[:1]).z, single.z)


@torch.no_grad()
def test_crops_are_averaged_in_both_versions() -> None:
    net = tiny("input=video").eval()
    crops = torch.stack([clip("video"), clip("video").flip(-1), clip("video") * 0.5], dim=1)
    for compat in (False, True):
        net.cfg = net.cfg.model_copy(update={"compat": compat})
        each = [flat(net(crop)) for crop in crops.unbind(1)]
        for name, value in flat(net(crops)).items():
            mean = torch.stack([one[name] for one in each]).mean(0)
            torch.testing.assert_close(value, mean, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("options", ALL, ids=",".join)
def test_gradients_reach_every_trainable_parameter(options: list[str]) -> None:
    net = tiny(*options).train()
    outputs = net(clip(kind_of(options)))
    terms = [*outputs.logits.values(), *outputs.past_logits.values(), outputs.feature_error]
    terms += [outputs.similarities, outputs.similarities_past] if net.cfg.kind == "sgear" else []
    sum(term.float().square().sum() for term in terms).backward()
    silent = [name for name, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # Positions beyond the clip are never used, and of unused prototypes only rows stay without.
    assert silent == []


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        (["input=video", "vit.freeze=true"], "backbone."),
        (["input=features", "prototypes.freeze=true"], "vis_prototypes"),
        (["input=features", "freeze_decoder=true"], "future_predictor."),
        (["input=features", "transform_features=true", "freeze_transform=true"], "transform_features."),
    ],
)
def test_what_is_to_be_frozen_is(options: list[str], frozen: str) -> None:
    still = {name for name, p in tiny(*options).named_parameters() if not p.requires_grad}
    assert {name for name in still if not name.endswith("attn.alpha")} == {
        name for name, _ in tiny(*options).named_parameters() if name.startswith(frozen)
    }


def test_on_features_semantic_losses_teach_the_prototypes_alone_unless_told() -> None:
    for gradients, taught in (("published", False), ("both", True)):
        net = tiny("input=features", f"gradients={gradients}")
        outputs = net(clip("features"))
        assert outputs.similarities is not None
        outputs.similarities.sum().backward()
        assert net.vis_prototypes.grad is not None
        assert (net.future_predictor.encoder.weight.grad is not None) is taught
    net = tiny("input=video")
    outputs = net(clip("video"))
    assert outputs.similarities is not None
    outputs.similarities.sum().backward()
    assert net.future_predictor.encoder.weight.grad is not None


@pytest.mark.parametrize("options", KINDS, ids=",".join)
def test_what_no_loss_looks_at_is_not_computed_in_training(options: list[str]) -> None:
    net, x = tiny(*options, "dropout=0", "decoder.dropout=0"), clip(kind_of(options))
    full = net.train()(x)
    net.teach_past = False
    short = net(x)
    assert short.past_logits == {}
    assert short.similarities_past is None
    assert torch.equal(short.logits["action"], full.logits["action"])
    assert torch.equal(short.feature_error, full.feature_error)
    assert set(net.eval()(x).past_logits) == {"action"}, "an evaluation has everything"


def test_feature_mixup_acts_in_training_only() -> None:
    net, x = tiny("input=features", "feature_mixup=true", "dropout=0", "decoder.dropout=0"), clip("features")
    quiet = net.eval()(x).z
    assert torch.equal(net(x).z, quiet)
    net.train()
    first, second = net(x).z, net(x).z
    assert (first - second).abs().max() > 0
    assert net(x[:1]).z.shape == (1, 64)


def test_a_batch_of_one_keeps_its_axis() -> None:
    for input in ("video", "features"):
        assert tiny(f"input={input}").train()(clip(input, 1)).logits["action"].shape == (1, 12)


# -------------------------------------------------------------------------------------------------------------- options


@torch.no_grad()
def test_language_prototypes_can_be_what_is_mixed_in() -> None:
    language = torch.randn(12, 32)
    net = tiny("input=features", "prototypes.values=language", language=language).eval()
    x = clip("features")
    before = net(x)
    net.lang_prototypes.mul_(-1)
    assert (net(x).z - before.z).abs().max() > 1e-4
    assert torch.equal(net(x).similarities_past, before.similarities_past), "they do not choose"
    with pytest.raises(ValueError, match=r"model\.prototypes\.language"):
        tiny("prototypes.values=language")


@torch.no_grad()
def test_a_learned_temperature_starts_at_the_published_one_and_can_sharpen() -> None:
    fixed, learned = tiny("input=features").eval(), tiny("input=features", "temperature=learned").eval()
    learned.load_state_dict(fixed.state_dict(), strict=False)
    x = clip("features")
    torch.testing.assert_close(learned(x).future, fixed(x).future)
    learned.log_temperature.fill_(-6.0)
    outputs = learned(x)
    assert outputs.similarities is not None
    best = learned.vis_prototypes[outputs.similarities.argmax(1)]
    share = learned.balancer.sigmoid()
    torch.testing.assert_close(outputs.future, share * outputs.z + (1 - share) * best, atol=1e-2, rtol=1e-2)


@given(classes=st.integers(1, 400), share=st.floats(0.01, 1.0))
def test_a_subset_of_prototypes(classes: int, share: float) -> None:
    subset = Subset(classes, share)
    ids = subset.ids
    assert len(ids) == max(1, round(classes * share)) == len(ids.unique())
    table = torch.arange(classes * 2).view(classes, 2)
    assert torch.equal(subset(table), table[ids])
    assert torch.equal((subset.row >= 0).nonzero()[:, 0], ids)
    assert torch.equal(subset.row[ids], torch.arange(len(ids)))


def test_wrong_prototypes_are_refused() -> None:
    with pytest.raises(ValueError, match="visual prototypes are of 11 actions, the dataset has 12"):
        tiny("input=features", prototypes=torch.zeros(11, 64))
    start = torch.randn(12, 32)
    net = tiny("input=features", prototypes=start)
    assert net.vis_prototypes.shape == (12, 64)
    assert torch.equal(tiny("input=features", prototypes=torch.ones(12, 64)).vis_prototypes, torch.ones(12, 64))


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        (["input=video"], (2, 4, 24), r"takes video \(B,3,T,H,W\)"),
        (["input=features"], (2, 4, 25), r"features \(B,T,24\).*model.feature_dim"),
        (["input=video"], (2, 3, 4, 40, 40), "built for 32x32 pixels"),
        (["input=features"], (2, 5, 24), "built for 4 steps and was given 5"),
        (["input=features", "decoder.positions=3"], (2, 4, 24), "model.decoder.positions"),
    ],
)
def test_wrong_input_is_refused(options: list[str], shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(*options)(torch.zeros(shape))


def test_too_few_prototypes() -> None:
    with pytest.raises(ValueError, match=r"4 prototypes are wanted.*there are 3"):
        tiny("input=features", "prototypes.share=0.25")(clip("features"))


# --------------------------------------------------------------------------------------------------------------- online


@pytest.mark.parametrize("options", KINDS, ids=",".join)
@torch.no_grad()
def test_a_stream_answers_as_the_network_does_for_each_window(options: list[str]) -> None:
    net, input = tiny(*options).eval(), kind_of(options)
    long = torch.cat([clip(input), clip(input).flip(2 if input == "video" else 1)], 2 if input == "video" else 1)
    steps = long.unbind(2 if input == "video" else 1)
    stream = Stream(net)
    for number, step in enumerate(steps):
        window = [steps[max(0, k)] for k in range(number - FRAMES + 1, number + 1)]
        expected = flat(net(torch.stack(window, 2 if input == "video" else 1)))
        for name, value in flat(stream.add(step)).items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=f"{number}: {name}")
        ahead = stream.ahead(3)
        torch.testing.assert_close(ahead[:, 0], expected["logits/action"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(stream.ahead(2), ahead[:, :2])
    assert stream.count == 8
    stream.reset()
    with pytest.raises(ValueError, match="nothing to look ahead from"):
        stream.ahead(1)
    torch.testing.assert_close(stream.add(steps[0]).z, net(torch.stack([steps[0]] * 4, 2 if input == "video" else 1)).z)


@pytest.mark.parametrize("input", ["video", "features"])
@torch.no_grad()
def test_a_stream_of_avt_can_remember_everything(input: str) -> None:
    net = tiny(f"input={input}", "kind=avt").eval()
    axis = 2 if input == "video" else 1
    steps = torch.cat([clip(input), clip(input).flip(axis)], axis).unbind(axis)
    stream = Stream(net, grow=True)
    for number, step in enumerate(steps):
        expected = net(torch.stack(steps[: number + 1], axis))
        torch.testing.assert_close(stream.add(step).logits, expected.logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"model\.kind=avt"):
        Stream(tiny("input=features"), grow=True)


# ---------------------------------------------------------------------------------------------------------------- parts


@given(seed=st.integers(0, 99), batch=st.integers(1, 3), classes=st.integers(5, 20))
@settings(max_examples=20)
def test_cosines_and_the_nearest(seed: int, batch: int, classes: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, prototypes = torch.randn(batch, 5, 16, generator=g), torch.randn(classes, 16, generator=g)
    expected = nn.CosineSimilarity(-1, 1e-8)(x[:, :, None], prototypes)
    torch.testing.assert_close(cosines(x, unit(prototypes)), expected, atol=1e-6, rtol=0)
    tokens, near = nearest(x, unit(prototypes), prototypes, per="clip", compat=False)
    scores = nn.CosineSimilarity(-1, 1e-8)(x.mean(1, keepdim=True), prototypes)
    for row, ids in zip(scores, near, strict=True):
        assert torch.equal(row[ids], row.sort(descending=True).values[:5])
    assert torch.equal(tokens, prototypes[near])
    tokens, near = nearest(x, unit(prototypes), prototypes, per="frame", compat=False)
    assert torch.equal(near, expected.argmax(-1))


def test_prototype_attention_merges_heads_as_published_or_cleanly() -> None:
    torch.manual_seed(1)
    tokens, features = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    published, clean = PrototypeAttention(8, 2, 3), PrototypeAttention(8, 2, 3, "clean")
    clean.load_state_dict(published.state_dict())
    for attention, merged in ((published, False), (clean, True)):
        nn.init.eye_(attention.proj.weight)
        nn.init.zeros_(attention.proj.bias)
        out = attention(tokens, features)
        weights = attention.gate.sigmoid() * torch.stack(
            [(tokens[..., h : h + 4] @ features[..., h : h + 4].mT / 2).softmax(-1) for h in (0, 4)], dim=1
        ) + (1 - attention.gate.sigmoid()) * torch.cos(attention.toeplitz())
        heads = [weights[:, i] @ tokens[..., 4 * i : 4 * i + 4] for i in (0, 1)]
        expected = torch.cat(heads, -1) if merged else torch.stack(heads, 1).reshape(2, 3, 8)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("merge", ["published", "clean"])
@pytest.mark.parametrize(("frames", "heads", "tokens"), [(3, 4, 5), (5, 2, 7), (4, 4, 3), (1, 2, 2), (6, 4, 4)])
def test_the_last_block_computes_only_what_is_used(merge: str, frames: int, heads: int, tokens: int) -> None:
    """Values and gradients of the class rows alone are those of the whole block."""
    torch.manual_seed(2)
    block = TemporalContext(8 * heads, heads, frames, merge)  # type: ignore[arg-type]
    nn.init.normal_(block.attn.tmp_weighting)
    x = torch.randn(2, frames, tokens, 8 * heads, requires_grad=True)
    whole, short = block(x)[:, :, 0], block(x, class_only=True)
    torch.testing.assert_close(short, whole)
    inputs = [x, *(p for p in block.parameters() if p.requires_grad)]
    weight = torch.randn_like(whole)
    for a, b in zip(
        torch.autograd.grad((short * weight).sum(), inputs), torch.autograd.grad((whole * weight).sum(), inputs),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_clean_block_is_causal_over_frames_and_the_published_one_is_not() -> None:
    torch.manual_seed(3)
    x = torch.randn(1, 4, 5, 16)
    later = x.clone()
    later[:, 3] = torch.randn(1, 5, 16)
    for merge, causal in (("clean", True), ("published", False)):
        block = TemporalContext(16, 2, 4, merge).eval()  # type: ignore[arg-type]
        same = torch.allclose(block(x)[:, :3], block(later)[:, :3], atol=1e-6)
        assert same is causal


def test_the_decoder_is_causal_and_its_cache_changes_nothing() -> None:
    torch.manual_seed(4)
    decoder = CausalDecoder(8, 16, 2, 2, positions=12).eval()
    features = torch.randn(2, 6, 8)
    whole = decoder(features)
    cache, steps = None, []
    for step in features.split(1, dim=1):
        predicted, cache = decoder.next(step, cache)
        steps.append(predicted)
    torch.testing.assert_close(torch.cat(steps, 1), whole.steps, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(decoder(features[:, :4]).steps, whole.steps[:, :4], atol=1e-6, rtol=1e-5)


def test_rollout_feeds_the_last_hidden_state_back() -> None:
    torch.manual_seed(5)
    decoder = CausalDecoder(8, 16, 2, 2, positions=12).eval()
    features = torch.randn(2, 5, 8)
    gpt = decoder.gpt_model
    states, _ = gpt(decoder.encoder(features))
    sequence = decoder.encoder(features)
    for _ in range(3):
        sequence = torch.cat([sequence, gpt(sequence)[0][:, -1:]], dim=1)
    expected = decoder.decoder(gpt(sequence)[0])
    torch.testing.assert_close(decoder(features, 4).steps, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoder(features).steps, decoder.decoder(states))
    with pytest.raises(ValueError, match="12 positions"):
        decoder(features, 9)


def test_training_and_evaluation_can_look_ahead_differently() -> None:
    net = tiny(
        "input=features", "decoder.output_len_eval=3", "decoder.average_last=3", "dropout=0", "decoder.dropout=0"
    )
    x = clip("features")
    short, long = net.train()(x).z, net.eval()(x).z
    assert (short - long).abs().max() > 1e-5


def test_patches_are_a_convolution() -> None:
    embed = PatchEmbed(4, 6)
    frames = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(embed(frames), embed.proj(frames).flatten(2).mT, atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_changes_no_number() -> None:
    grads = []
    for saving in ("false", "true"):
        net = tiny("input=video", f"vit.checkpoint={saving}", "dropout=0", "decoder.dropout=0").train()
        net(clip("video")).logits["action"].square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", KINDS, ids=",".join)
@torch.no_grad()
def test_cuda_equals_cpu(options: list[str]) -> None:
    net, x = tiny(*options).eval(), clip(kind_of(options))
    here = flat(net(x))
    there = flat(net.cuda()(x.cuda()))
    for name, value in here.items():
        torch.testing.assert_close(there[name].cpu(), value, atol=2e-3, rtol=2e-3, msg=name)
