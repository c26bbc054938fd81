"""Our networks against the official ones: same weights, same clips, every stage."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.ucf50_x3d import convert
from projects.ucf50_x3d.model import VARIANTS, X3D, SlowFast, freeze, fuse, pack, train
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden


def found(pattern: str) -> list[object]:
    return [pytest.param(case, id=case.path.name) for case in cases("ucf50_x3d", pattern)]


def variant_of(case: Case) -> str:
    """The variant in the name of a case: x3d_<variant>_hub, slowfast_x3d_<variant>."""
    match = re.search(r"x3d_([a-z]+)", case.path.name)
    assert match
    assert match[1] in VARIANTS
    return match[1]


def stages(model: nn.Module, video: Tensor) -> list[Tensor]:
    """What comes out of the stem and the four stages."""
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: outputs.append(call[2].clone())) for block in model.blocks[:5]]
    model.features(video)
    for hook in hooks:
        hook.remove()
    return outputs


def input_shape(stem: np.ndarray) -> tuple[int, ...]:
    """The shape of the clips, all of even size, from that of the stem's output."""
    batch, _, frames, height, width = (int(size) for size in stem)
    return batch, 3, frames, 2 * height, 2 * width


def check_summary(
    parity: Parity, name: str, actual: Tensor, expected: dict[str, np.ndarray], **tolerance: float
) -> None:
    """Compare with what a case keeps of a large tensor: shape, first 64 values, mean, deviation, largest."""
    assert list(actual.shape) == list(expected[f"{name}/shape"]), name
    flat = actual.detach().contiguous().flatten().double()
    parity.check(f"{name}/head", flat[:64], expected[f"{name}/head"], **tolerance)
    parity.check(f"{name}/mean", flat.mean(), expected[f"{name}/mean"], **tolerance)
    parity.check(f"{name}/std", flat.std(), expected[f"{name}/std"], **tolerance)
    parity.check(f"{name}/absmax", flat.abs().max(), expected[f"{name}/absmax"], **tolerance)


@torch.no_grad()
@pytest.mark.parametrize("case", found("x3d_*_hub"))
def test_hub_x3d(case: Case, parity: Parity) -> None:
    model = X3D(variant_of(case))
    assert list(model.state_dict()) == list(case.json("keys.json"))
    model.load_state_dict(case.weights())
    model.eval()
    expected = case.expected
    fused = fuse(model)
    for name in sorted({name.partition("/")[0] for name in expected}):
        video = case.noise("input", input_shape(expected[f"{name}/stage0/shape"]))
        for index, output in enumerate(stages(model, video)):
            check_summary(parity, f"{name}/stage{index}", output, expected, atol=2e-5, rtol=1e-4)
        features = model.features(video)
        check_summary(parity, f"{name}/head_pool", features, expected, atol=2e-5, rtol=1e-4)
        parity.check(f"{name}/logits", model.classify(features), expected[f"{name}/logits"], atol=2e-5, rtol=1e-4)
        parity.check(f"{name}/logits, fused", fused(video), expected[f"{name}/logits"], atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", found("slowfast_x3d_*"))
def test_slowfast_x3d(case: Case, parity: Parity) -> None:
    variant = variant_of(case)
    weights = case.weights()
    model = X3D(variant, shortcut_norm=True, head_activation="softmax").eval()
    report = convert.load_weights(model, weights, rules=convert.X3D_RULES)
    norm = ("s2.pathway0_res0.branch1_bn", "blocks.1.res_blocks.0.branch1_norm")
    assert report.renamed == {old: hub or old.replace(*norm) for old, hub in case.json("mapping.json").items()}
    expected = case.expected
    video = case.noise("input", input_shape(expected["s1/shape"]))
    for index, output in enumerate(stages(model, video), start=1):
        check_summary(parity, f"s{index}", output, expected, atol=2e-5)
    parity.check("probs", model(video), expected["probs"], atol=2e-6)
    parity.check("probs, fused", fuse(model)(video), expected["probs"], atol=2e-6)

    naive = X3D(variant).eval()
    convert.load_weights(naive, weights, rules=convert.X3D_RULES, drop=[r"^s2\.pathway0_res0\.branch1_bn"])
    wrong = naive(video).flatten()[:16]
    known = expected["_dropbn_logits_head"]
    parity.check("wrong logits without the norm", wrong, known, atol=2e-5, rtol=1e-4)
    right = model.blocks[-1].proj(model.features(video).mean((2, 3, 4))).flatten()[:16]
    assert (wrong - right).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("case", found("slowfast_r50_hub*"))
def test_slowfast_r50(case: Case, parity: Parity) -> None:
    model = SlowFast()
    assert list(model.state_dict()) == list(case.json("keys.json"))
    model.load_state_dict(case.weights())
    model.eval()
    expected = case.expected
    video = case.noise("input", (1, 3, 32, 256, 256))
    outputs: list[tuple[Tensor, Tensor]] = []
    for block in model.blocks[:5]:
        block.register_forward_hook(lambda *call: outputs.append(call[2]))
    given = list(pack(video))
    kept = list(given)
    logits = model(given)
    for index, pair in enumerate(outputs):
        for pathway, output in zip(("slow", "fast"), pair, strict=True):
            check_summary(parity, f"block{index}/{pathway}", output, expected, atol=1e-4, rtol=1e-3)
    tolerance = 1e-3 * float(np.std(expected["logits"]))
    parity.check("logits", logits, expected["logits"], atol=tolerance, rtol=1e-3)
    parity.check("logits, fused", fuse(model)(video), expected["logits"], atol=tolerance, rtol=1e-3)
    assert all(a is b for a, b in zip(given, kept, strict=True)), "the input list was changed"


@pytest.mark.parametrize("case", found("train_head_50*"))
@pytest.mark.parametrize("mode", ["ref", "frozen"])
def test_three_steps(case: Case, mode: str, parity: Parity) -> None:
    """The original's training of the last layer: `ref` lets the frozen batch norms drift, `frozen` does not."""
    atol = 2e-4 if mode == "ref" else 2e-5
    expected = {name.removeprefix(f"{mode}/"): value for name, value in case.expected.items()}
    labels = torch.tensor([[3, 17], [49, 0], [12, 12]])
    batches = [case.noise(f"batch{i}", (2, 3, 32, 256, 256)) for i in range(3)]
    model = X3D("s", 50, dropout=0.0)
    model.load_state_dict(case.weights())
    freeze(model, "head")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    train(model, "reference" if mode == "ref" else "eval")
    head, losses = model.blocks[-1].proj, []
    for index, (batch, label) in enumerate(zip(batches, labels, strict=True)):
        optimizer.zero_grad()
        logits = model(batch)
        loss = F.cross_entropy(logits, label)
        loss.backward()
        losses.append(loss.item())
        if index == 0:
            parity.check("logits0", logits, expected["logits0"], atol=atol)
            if mode == "frozen":  # with everything before the last layer in eval mode this is the evaluation too
                parity.check("eval0/logits", logits, expected["eval0/logits"], atol=atol)
                parity.check("eval0/loss", loss, expected["eval0/loss"], atol=atol)
            check_summary(parity, "grad0_weight", head.weight.grad, expected, atol=atol)
            check_summary(parity, "grad0_bias", head.bias.grad, expected, atol=atol)
        optimizer.step()
    parity.check("losses", losses, expected["losses"], atol=atol)
    check_summary(parity, "proj.weight", head.weight, expected, atol=atol)
    check_summary(parity, "proj.bias", head.bias, expected, atol=atol)
    state = model.state_dict()
    for name in {name.rpartition("/")[0] for name in expected if name.startswith("blocks.")}:
        check_summary(parity, name, state[name], expected, atol=atol)
    assert state["blocks.0.norm.num_batches_tracked"] == expected["num_batches_tracked"]
    model.eval()
    with torch.no_grad():
        parity.check("eval_after_logits", model(batches[0]), expected["eval_after_logits"], atol=atol)
