"""The official networks and ours give the same numbers: every level, with weights and inputs of the golden cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data import pad
from core.nn import Rope
from projects.actionformer.config import ModelConfig
from projects.actionformer.losses import Criterion
from projects.actionformer.model import Detector, Outputs
from projects.actionformer.model.backbone import Backbone
from projects.actionformer.model.blocks import GatedMlp, norm
from projects.actionformer.model.heads import ClassHead, DistributionHead, OffsetHead, Packing
from projects.actionformer.model.necks import FPN, CrossScaleFPN
from projects.actionformer.model.targets import heatmap
from tests.actionformer import golden
from tests.support import Case, Parity, cases, fill

pytestmark = pytest.mark.golden

NETWORKS = [
    case
    for case in cases("actionformer")
    if {"constants.json", "expected.npz"} <= {p.name for p in case.path.iterdir()}
]
ANSWERS = [case for case in NETWORKS if any(key.endswith(".len0") for key in case.expected)]
POINTS = [case for case in ANSWERS if any(key.startswith("train.") for key in case.expected)]
ATOL = 2e-5  # of logits and offsets of size 1 to 10; the official code differs from itself by 6e-6 with two threads


def name(case: Case) -> str:
    return case.path.name


def by_level(outputs: Outputs, values: Tensor) -> list[Tensor]:
    """(1,N,...) as one (T_l,...) for each level."""
    return list(values[0].split(list(outputs.levels)))


@pytest.mark.parametrize("case", ANSWERS, ids=name)
def test_every_level_says_what_the_official_network_says(case: Case, parity: Parity) -> None:
    net, expected = golden.network(case), case.expected
    for video in case.json("case.json")["videos"]:
        key, length = video["video_id"], video["T"]
        features = golden.video(case, key, length)[None]
        mask = torch.ones(1, length, dtype=torch.bool)
        with torch.no_grad():
            outputs = net(features, mask)
            pyramid = levels(net, features, mask)
        for level, real in enumerate(by_level(outputs, outputs.mask)):
            padded, valid = expected[f"{key}.len{level}"]
            parity.check(f"{key}.valid{level}", int(real.sum()), valid)
            assert len(real) <= padded, "no level is longer than the official one"
        for level, logits in enumerate(by_level(outputs, outputs.logits)):
            if f"{key}.heat_logits{level}" in expected:
                heat = expected[f"{key}.heat_logits{level}"].reshape(-1)
                valid = int(expected[f"{key}.len{level}"][1])
                parity.check(f"{key}.heat{level}", logits[:valid, 0], heat[:valid], atol=ATOL)
                continue
            steps = expected[f"{key}.idx{level}"]
            parity.check(f"{key}.logits{level}", logits[steps], expected[f"{key}.logits{level}"], atol=ATOL)
            valid = int(expected[f"{key}.len{level}"][1])
            real = logits[:valid]
            mean, std, low, high = expected[f"{key}.logits_stat{level}"]
            parity.check(f"{key}.logits_stat{level}", [real.mean(), real.std(correction=0), real.min(), real.max()],
                         [mean, std, low, high], atol=1e-4)  # fmt: skip
            offsets = by_level(outputs, outputs.offsets)[level][:valid]
            parity.check(f"{key}.offsets{level}", offsets, expected[f"{key}.offsets{level}"], atol=ATOL)
            if outputs.distribution is not None:
                said = by_level(outputs, outputs.distribution)[level][steps]
                parity.check(f"{key}.dist{level}", said, expected[f"{key}.dist{level}"], atol=ATOL)
        for level, found in enumerate(pyramid):
            if f"{key}.feat{level}" in expected:
                steps, wanted = expected[f"{key}.idx{level}"], expected[f"{key}.feat{level}"]
                parity.check(f"{key}.feat{level}", found[0, steps, : wanted.shape[1]], wanted, atol=ATOL)


@pytest.mark.parametrize("case", POINTS, ids=name)
def test_heat_maps_and_their_loss(case: Case, parity: Parity) -> None:
    net, expected, cfg = golden.network(case), case.expected, golden.config_of(case)
    names = sorted(key.split(".")[1] for key in expected if key.startswith("train.") and key.endswith(".T"))
    samples = [{"id": key, "features": golden.video(case, key, int(expected[f"train.{key}.T"]))} for key in names]
    batch = pad(samples, ["features"])
    segments = [torch.from_numpy(expected[f"train.{key}.segments"]) for key in names]
    with torch.no_grad():
        outputs = net(batch["features"], batch["mask"])
    targets = heatmap(outputs.points, segments).split(list(outputs.levels), dim=1)
    for level, target in enumerate(targets):
        wanted = expected[f"train.targets{level}"]
        parity.check(f"targets{level}", target, wanted[:, : target.shape[1]], atol=1e-6)
    terms = Criterion(cfg.loss, cfg.model.name, cfg.data.classes)(outputs, {"segments": segments})
    parity.check("heatmap_loss", terms["heatmap_loss"], expected["heatmap_loss"], rtol=1e-5)
    parity.check("total", terms["total"], expected["heatmap_loss"], rtol=1e-5)


MODULES = cases("actionformer", "modules_*")


def noise(case: Case, key: str, *shape: int) -> Tensor:
    """(B,C,T) input of a module."""
    return torch.from_numpy(10 * fill.array(f"{key}.bias", shape, "float32", case.json("case.json")["salt"]))


def filled(case: Case, key: str, module: nn.Module) -> nn.Module:
    """The module with the weights that the case gives to `key`."""
    keys, constants = case.json("keys.json")[key], case.json("constants.json").get(key, {})
    state = fill.state_dict(keys, case.json("case.json")["salt"])
    own = module.state_dict()
    for tensor, value in state.items():
        if constants.get(tensor) != "init":
            value = torch.full_like(value, constants[tensor]) if tensor in constants else value
            own[tensor].copy_(value.view_as(own[tensor]))
    assert own.keys() == {tensor for tensor in state if not tensor.endswith("inv_freq")}
    return module.eval()


@pytest.mark.parametrize("case", MODULES, ids=name)
@torch.no_grad()
def test_modern_backbones_alone(case: Case, parity: Parity) -> None:
    expected = case.expected
    for key, about in case.json("case.json")["backbones"].items():
        cfg = ModelConfig(
            backbone="modern", arch=about["arch"], width=(about["n_embd"],), neck_width=about["n_embd"],
            heads=about["n_head"], kv_heads=about["n_kv_head"], window=about["mha_win_size"],
            embed_kernel=about["n_embd_ks"], embed_norm=about["with_ln"], drop_path=about["path_pdrop"],
            abs_positions=about["use_abs_pe"], rope=about["use_rope"], swiglu=about["use_swiglu"],
            rms_norm=about["use_rms_norm"], ranges=((0, 4), (4, 8), (8, 16), (16, 100)),
        )  # fmt: skip
        net = filled(case, key, Backbone(cfg, (about["n_in"],), about["max_len"]))
        mask = torch.arange(128) < torch.tensor([[128], [70]])
        x = noise(case, "gqa_x", 2, about["n_in"], 128) * mask[:, None]
        levels, _ = net(x.transpose(1, 2), mask, 128)
        for level, found in enumerate(levels):
            parity.check(f"{key}.{level}", found.transpose(1, 2), expected[f"{key}.feat{level}"], atol=1e-5)


@pytest.mark.parametrize("case", MODULES, ids=name)
@torch.no_grad()
def test_heads_and_necks_alone(case: Case, parity: Parity) -> None:
    expected = case.expected
    masks = [torch.arange(96 >> level) < -(-torch.tensor([[96], [53]]) // 2**level) for level in range(3)]
    floats = [mask.unsqueeze(2).float() for mask in masks]
    inputs = [noise(case, f"head_x{level}", 2, 24, 96 >> level).transpose(1, 2) for level in range(3)]
    packing = Packing([96, 48, 24], 1, torch.device("cpu"))
    packed = packing.pack(inputs), packing.pack(floats), packing
    lengths = list(packing.lengths)

    def check(key: str, found: Tensor, what: str = "out") -> None:
        for level, part in enumerate(found.split(lengths, dim=1)):
            wanted = expected[f"{key}.{what}{level}"]
            part = part if part.ndim == 4 else part.transpose(1, 2)
            parity.check(f"{key}.{what}{level}", part, wanted, atol=1e-5)

    check("head_cls_v2", filled(case, "head_cls_v2", ClassHead(24, 32, 5, 4, 3, deep=True))(*packed))
    plain = ClassHead(24, 32, 5, 5, 3, normalize=False, deep=True)
    check("head_cls_v2_5layers_noln", filled(case, "head_cls_v2_5layers_noln", plain)(*packed))
    check("head_reg_v2", filled(case, "head_reg_v2", OffsetHead(24, 32, 3, 4, 3, deep=True))(*packed))
    offsets, logits = filled(case, "head_bdr", DistributionHead(24, 32, 3, 3, 3, reg_max=16))(*packed)
    check("head_bdr", offsets, "offsets")
    check("head_bdr", logits, "dists")

    necks = {
        "neck_cs_fpn": (CrossScaleFPN(24, 32, 3, 2), 0),
        "neck_fpn": (FPN(24, 32, 3, 2), 0),
        "neck_cs_fpn_start1_noln": (CrossScaleFPN(24, 32, 2, 2, normalize=False), 1),
    }
    for key, (neck, start) in necks.items():
        for level, found in enumerate(filled(case, key, neck)(inputs[start:], floats[start:])):
            parity.check(f"{key}.{level}", found.transpose(1, 2), expected[f"{key}.feat{level}"], atol=1e-5)


@pytest.mark.parametrize("case", MODULES, ids=name)
@torch.no_grad()
def test_norms_gates_and_rotations_alone(case: Case, parity: Parity) -> None:
    expected, x = case.expected, noise(case, "norm_x", 2, 24, 10).transpose(1, 2)
    single = {
        "rms": norm(24, rms=True), "ln": norm(24), "swiglu": GatedMlp(24), "swiglu_h40": GatedMlp(24, 40, out=16)
    }  # fmt: skip
    for key, module in single.items():
        parity.check(key, filled(case, key, module)(x).transpose(1, 2), expected[f"{key}.out"], atol=1e-5)
    rope = Rope(8)
    for key, heads in (("q", 4), ("k", 2)):
        rows = noise(case, f"rope_{key}", 1, heads, 160).view(1, heads, 20, 8)
        parity.check(f"rope.{key}", rope(rows), expected[f"rope.{key}"], atol=1e-5)


def levels(net: Detector, features: Tensor, mask: Tensor) -> list[Tensor]:
    """The backbone's answer (1,T_l,W), without the levels that are not used."""
    own = features.shape[2]
    padding = (0, net.padding.choose([own]) - own)
    x, real = F.pad(features, padding).transpose(1, 2), F.pad(mask, padding)
    found, _ = net.backbone(x, real, net.padding.reference(own))
    return found[net.start :]
