"""Our networks against the released ones: same weights, same clips, every stage; as released and repaired."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core import config
from projects.sgear.config import ModelConfig
from projects.sgear.model import Outputs, Sgear
from projects.sgear.model import sgear as assembly
from projects.sgear.model.decoder import CausalDecoder
from projects.sgear.model.prototypes import PrototypeAttention, nearest, resize_width, unit
from projects.sgear.model.tca import TemporalContext
from tests.support import Case, Parity, cases, fill

pytestmark = pytest.mark.golden


def found(pattern: str) -> list[Any]:
    return [pytest.param(case, id=case.path.name) for case in cases("sgear", pattern)]


def published(case: Case, *more: str) -> Sgear:
    """The network that a case's keys and shapes describe, with the case's weights."""
    salt = re.search(r"salt='([^']*)'", (case.path / "README.md").read_text())
    weights = fill.state_dict(case.json("keys.json"), salt[1] if salt else "")
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    net = Sgear(*described(shapes, *more), maps={key: torch.zeros(shapes[f"cls_map_{key}_action"]) for key in LABELS})
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == shapes
    net.load_state_dict(weights)
    return net.eval()


LABELS = ("verb", "noun")


def described(shapes: dict[str, tuple[int, ...]], *more: str) -> tuple[ModelConfig, int, dict[str, int]]:
    """Configuration, steps and classes of weights with these shapes; the number of heads is not in them."""
    actions, width = shapes["vis_prototypes"]
    inner = shapes["future_predictor.encoder.weight"][0]
    video = "backbone.model.cls_token" in shapes
    changes = {
        "input": "video" if video else "features",
        "width": width,
        "feature_dim": shapes.get("mapper_to_inter.weight", (0, width))[1],
        "tca_blocks": sum("tmp_weighting" in name for name in shapes),
        "prototype_attention": "ProtAttn.gate" in shapes,
        "transform_features": "transform_features.0.weight" in shapes,
        "decoder.width": inner,
        "decoder.layers": sum(name.endswith("ln_1.weight") for name in shapes),
    }
    if video:
        changes["vit.image"] = 16 * round((shapes["backbone.model.pos_embed"][1] - 1) ** 0.5)
    cfg = config.load(ModelConfig, None, [*(f"{key}={value}" for key, value in changes.items()), *more])
    frames = shapes["ProtAttn.tpl_weights"][1] if changes["prototype_attention"] else 10
    return cfg, frames, {"action": actions, "verb": 97, "noun": 300}


def heads_of(case: Case) -> str:
    """The number of decoder heads, which a README may change from the configuration's 4."""
    match = re.search(r"n_head (\d+)", (case.path / "README.md").read_text())
    return f"decoder.heads={match[1] if match else 4}"


TOLERANCE = {"logits__action": 2e-5, "past_logits__action": 1e-4, "similarities": 1e-6, "similarities_past": 1e-6}


def compare(outputs: Outputs, expected: dict[str, np.ndarray], version: str, parity: Parity, scale: float = 1) -> None:
    """All outputs that both sides have; a case keeps large ones as first values and statistics."""
    ours: dict[str, Tensor | None] = {
        "logits__action": outputs.logits["action"],
        "past_logits__action": outputs.past_logits["action"],
        "similarities": outputs.similarities,
        "similarities_past": outputs.similarities_past,
        "future_z": outputs.z,
        "future": outputs.future,
        "future_agg": outputs.future,
        "past": outputs.past,
    }
    seen = set()
    for key in expected:
        which, _, name = key.partition("/")
        name, _, part = name.partition("/")
        value = ours.get(name)
        if which != version or value is None:
            continue
        seen.add(name)
        atol = TOLERANCE.get(name, 1e-4) * (scale if "logits" in name else 1)
        if part == "first64":
            parity.check(f"{version} {name}", value.flatten(1)[:, :64], expected[key], atol=atol)
        elif part == "stats":
            flat = value.double()
            stats = torch.stack([flat.mean(), flat.std(correction=0), flat.abs().max()])
            parity.check(f"{version} {name} stats", stats, expected[key], atol=atol)
        else:
            parity.check(f"{version} {name}", value, expected[key], atol=atol)
    assert seen >= {"logits__action", "past_logits__action", "similarities", "similarities_past", "future_z", "past"}
    error = outputs.feature_error.double()
    parity.check(f"{version} feat mean", error.mean(), expected[f"{version}/loss__feat/mean"], rtol=1e-4)
    first = expected[f"{version}/loss__feat/first64"]
    parity.check(f"{version} feat", error.flatten()[:64], first, atol=1e-4, rtol=1e-4)


def versions(expected: dict[str, np.ndarray]) -> list[str]:
    """`compat`, and `fixed` where it is stored; for one sample the two are equal, and both of ours must be."""
    return sorted({key.split("/")[0] for key in expected} & {"compat", "fixed"})


FEATURES = [case for case in cases("sgear", "forward_*") if "input.features" in (case.path / "README.md").read_text()]
VIDEOS = [case for case in cases("sgear", "forward_*") if "input.video" in (case.path / "README.md").read_text()]


@torch.no_grad()
@pytest.mark.parametrize("case", [pytest.param(case, id=case.path.name) for case in FEATURES])
def test_feature_model(case: Case, parity: Parity) -> None:
    expected = case.expected
    text = (case.path / "README.md").read_text()
    net = published(case, heads_of(case))
    batch, steps = len(expected["compat/future_z"]), int(re.search(r"(\d+) steps", text)[1])  # type: ignore[index]
    salt = re.search(r"salt='([^']*)'", text)
    shape = (batch, steps, net.cfg.feature_dim)
    noise = 50 * fill.array("input.features", (int(np.prod(shape)),), salt=salt[1] if salt else "")
    features = torch.from_numpy(np.abs(noise).reshape(shape))
    for version in versions(expected):
        net.cfg = net.cfg.model_copy(update={"compat": version == "compat"})
        compare(net(features), expected, version, parity)
    if "prototype_topk_indices" in expected:
        seen, directions = net.encode(features)[1], unit(net.vis_prototypes)
        _, near = nearest(seen, directions, net.vis_prototypes, per="clip", compat=False)
        parity.check("nearest prototypes", near, expected["prototype_topk_indices"])
        tokens, _ = nearest(seen, directions, net.vis_prototypes, per="clip", compat=True)
        parity.check("compat tokens", tokens[..., :8], expected["compat/tokens_first8"])
    assert "fixed/future_z" in expected or batch == 1


@torch.no_grad()
@pytest.mark.parametrize("case", [pytest.param(case, id=case.path.name) for case in VIDEOS])
def test_frame_model(case: Case, parity: Parity) -> None:
    expected = case.expected
    net = published(case, heads_of(case))
    batch, size = len(expected["compat/future_z"]), net.cfg.vit.image
    shape = (batch, net.frames, 3, size, size)
    video = torch.from_numpy((50 * fill.array("input.video", (int(np.prod(shape)),))).clip(-1, 1).reshape(shape))
    video = video.transpose(1, 2)
    crops = "Three crops" in (case.path / "README.md").read_text()
    views = [video, video.flip(-1), video.flip(-2)] if crops else [video]
    encoded, means = [], []
    for number, view in enumerate(views):  # the encoder runs once for both versions
        tokens = net.backbone(view)
        means.append(check_encoder(net, tokens, expected if number == 0 else {}, parity))
        encoded.append(net.contextualize(tokens))
    parity.check("token means", torch.stack(means).mean(0), expected["compat/backbone_mean"], atol=1e-5)
    for version in versions(expected):
        net.cfg = net.cfg.model_copy(update={"compat": version == "compat"})
        answers = [net.anticipate(observed, seen) for observed, seen in encoded]
        compare(assembly.mean(answers), expected, version, parity, scale=2.5)


def check_encoder(net: Sgear, tokens: Tensor, expected: dict[str, np.ndarray], parity: Parity) -> Tensor:
    """The ViT's class tokens, and class and patch tokens after every TCA block, in full and as the last block does it.

    Returns the mean of every token after the last block, (B·T,N).
    """
    if "backbone_cls" in expected:
        parity.check("ViT class token", tokens[:, :, 0, :64], expected["backbone_cls"], atol=1e-5)
    x, short = tokens, net.contextualize(tokens)[0]
    for number, block in enumerate(net.TCA):
        x = block(x)
        flat = x.flatten(0, 1)
        if f"tca{number}_cls" in expected:
            parity.check(f"TCA {number} class token", flat[:, 0, :64], expected[f"tca{number}_cls"], atol=1e-5)
            parity.check(f"TCA {number} token 5", flat[:, 5, :64], expected[f"tca{number}_patch5"], atol=1e-5)
    parity.check("class rows alone", short, x[:, :, 0].numpy(), atol=1e-5)
    return x.flatten(0, 1).mean(-1)


def filled(module: nn.Module, case: Case, name: str, salt: str) -> nn.Module:
    module.load_state_dict(fill.state_dict(case.json("keys.json")[name], salt))
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("case", found("module_units*"))
def test_modules(case: Case, parity: Parity) -> None:
    expected = {name: torch.from_numpy(value) for name, value in case.expected.items()}
    text = (case.path / "README.md").read_text()
    for name in ("protattn12", "protattn16"):
        _, steps, width = expected[f"{name}/tokens"].shape
        attention = PrototypeAttention(width, int(name.removeprefix("protattn")), steps)
        filled(attention, case, name, f"{name}.")
        parity.check(f"{name} Toeplitz", attention.toeplitz(), expected[f"{name}/toeplitz"], atol=1e-6)
        parity.check(f"{name} pattern", attention.pattern(), expected[f"{name}/cyclic"], atol=1e-6)
        out = attention(expected[f"{name}/tokens"], expected[f"{name}/features"])
        parity.check(f"{name}", out, expected[f"{name}/out"], atol=1e-5)

    frames = case.json("keys.json")["tca"]["attn.tmp_weighting"][0][0]
    heads = [int(number) for number in re.findall(r"(\d+) heads", text)]  # of both attentions, the block, the decoder
    block = TemporalContext(expected["tca/input"].shape[-1], next(n for n in heads if n not in (12, 16)), frames)
    filled(block, case, "tca", "tca.")
    tokens = expected["tca/input"].unflatten(0, (-1, frames))
    for name in ("out", "out_with_unit_weighting"):
        full = block(tokens)
        parity.check(f"tca {name}", full.flatten(0, 1), expected[f"tca/{name}"], atol=1e-5)
        parity.check(f"tca {name}, class rows", block(tokens, class_only=True), full[:, :, 0], atol=1e-6)
        nn.init.ones_(block.attn.tmp_weighting)

    features = expected["tcd/input"]
    layers = int(re.search(r"(\d+) layers", text)[1])  # type: ignore[index]
    decoder = CausalDecoder(
        features.shape[-1], case.json("keys.json")["tcd"]["encoder.weight"][0][0], layers, heads[-1]
    )
    observed = features.shape[1]
    for name, steps in (("tcd", 1), ("tcd_out3", 3), ("tcd_nopast", 1)):
        filled(decoder, case, name, "tcd.")
        decoded = decoder(features, steps)
        future = decoded.steps[:, observed - 1 :]
        everything = torch.cat([features, future], dim=1)
        wanted = {"tcd": everything[:, -1], "tcd_out3": everything, "tcd_nopast": future}[name]
        parity.check(f"{name} past", decoded.past, expected[f"{name}/past"], atol=1e-5)
        parity.check(f"{name} future", wanted, expected[f"{name}/future"].view(wanted.shape), atol=1e-5)
        kept = min(observed - 1, expected[f"{name}/feat_loss"].shape[1])
        parity.check(f"{name} error", decoded.error[:, :kept], expected[f"{name}/feat_loss"], atol=1e-5)


@pytest.mark.parametrize("case", found("prototype_resize*"))
def test_prototypes_at_another_width(case: Case, parity: Parity) -> None:
    expected = case.expected
    text = (case.path / "README.md").read_text()
    count, width = map(int, re.search(r"Prototypes \((\d+),(\d+)\)", text).groups())  # type: ignore[union-attr]
    target = int(re.search(r"resized to width (\d+)", text)[1])  # type: ignore[index]
    resized = resize_width(torch.from_numpy(fill.array("proto.source", (count, width))), target)
    parity.check("first rows", resized[:8], expected["resized_first8rows"], atol=1e-6)
    parity.check("mean, std", torch.stack([resized.mean(), resized.std()]), expected["stats"], atol=1e-6)
