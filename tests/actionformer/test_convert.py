"""Official configurations and checkpoints: read as they are, completely, and written back."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from core import config
from core.config import flatten
from projects.actionformer import convert, official
from projects.actionformer.config import Config
from projects.actionformer.validation import ConfigurationError, suggested_lengths, validate_config
from tests.actionformer import golden
from tests.support import cases

# Of the official network of each configuration: number of tensors, and digest of the sorted lines "name size,size,...".
KEYS = json.loads(Path(__file__).with_name("official_keys.json").read_text())
NAMES = [
    "thumos_i3d", "anet_tsp", "anet_i3d", "epic_slowfast_verb", "epic_slowfast_noun", "ego4d_slowfast",
    "ego4d_omnivore", "ego4d_egovlp", "ego4d_slowfast_egovlp", "ego4d_omnivore_egovlp",
    "ego4d_slowfast_omnivore_egovlp",
]  # fmt: skip
PARAMETERS = {"thumos_i3d": 29.25, "anet_tsp": 6.94, "anet_i3d": 8.12, "epic_slowfast_verb": 29.76,
              "epic_slowfast_noun": 30.08, "ego4d_slowfast": 32.95, "ego4d_omnivore": 34.93, "ego4d_egovlp": 18.68,
              "ego4d_slowfast_egovlp": 78.93, "ego4d_omnivore_egovlp": 77.16,
              "ego4d_slowfast_omnivore_egovlp": 134.05}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_official_configuration_goes_there_and_back(name: str) -> None:
    cfg = config.load(Config, convert.CONFIGS / f"{name}.yaml")
    again = official.config_from(official.export_config(cfg))
    ours, back = flatten(cfg), flatten(again)
    assert {key for key in ours if ours[key] != back[key]} <= {"run.out"}
    assert validate_config(cfg) == []


@pytest.mark.parametrize("name", NAMES)
def test_networks_have_the_official_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        net = convert.build(config.load(Config, convert.CONFIGS / f"{name}.yaml"))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_official_checkpoints_load_completely(name: str) -> None:
    """A file with the official names and shapes: nothing missing, unexpected or dropped."""
    with torch.device("meta"):
        net = convert.build(config.load(Config, convert.CONFIGS / f"{name}.yaml"))
    shapes = {key: value.shape for key, value in convert.official_state(net).items()}
    lines = sorted(f"{key} {','.join(map(str, shape))}" for key, shape in shapes.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert {"tensors": len(lines), "sha256": digest} == KEYS[name]
    state = {key: torch.tensor(1.5).expand(shape) for key, shape in shapes.items()}
    report = convert.load(net.to_empty(device="cpu"), {"epoch": 1, "state_dict_ema": state})
    assert (report.missing, report.unexpected, report.dropped) == ((), (), ())
    assert len(report.loaded) == KEYS[name]["tensors"]
    assert all(bool((value == 1.5).all()) for value in net.parameters())


def test_switches_under_backbone_and_aliases_are_read() -> None:
    tree, notes = official.import_config(
        {
            "dataset_name": "thumos",
            "model": {
                "meta_arch": "TBTFormer", "backbone_type": "convTransformerv2", "fpn_type": "cs_fpn", "oddity": 3,
                "backbone": {"use_rope": True, "n_embd": 64, "n_head": 16, "n_hidden": 384, "mha_win_size": 9},
            },
            "output_folder": "./ckpt/",
        }
    )  # fmt: skip
    model = tree["model"]
    assert (model["name"], model["backbone"], model["neck"], model["rope"]) == ("tbtformer", "modern", "cs_fpn", True)
    assert (model["width"], model["neck_width"], model["head_width"], model["hidden"]) == ([64], 64, 64, 384)
    assert any("oddity" in note for note in notes)
    assert any("output_folder" in note for note in notes)


def test_an_official_checkpoint_is_read_and_written_back(tmp_path: Path) -> None:
    case = next(case for case in cases("actionformer", "small_rel_pe"))
    net = golden.network(case)
    state = convert.official_state(net)
    keys = case.json("keys.json")
    assert {key: list(value.shape) for key, value in state.items()} == {key: shape for key, (shape, _) in keys.items()}
    other = {key: value + 1 for key, value in state.items()}
    schedule = {"milestones": Counter([3, 8]), "last_epoch": 7}
    path = tmp_path / "epoch_034.pth.tar"
    torch.save({"epoch": 35, "state_dict": other, "state_dict_ema": state, "scheduler": schedule}, path)
    fresh = convert.build(golden.config_of(case))
    report = convert.load(fresh, path)
    assert (report.missing, report.unexpected, report.dropped) == ((), (), ())
    assert "state_dict_ema" in str(report)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), net.state_dict().values(), strict=True))
    convert.load(fresh, path, weights="raw")
    assert not torch.equal(fresh.backbone.embd[0].conv.weight, net.backbone.embd[0].conv.weight)


def test_the_validator_counts_as_the_fork_does() -> None:
    for case in cases("actionformer", "utilities*"):
        for name, about in case.json("case.json")["validate_config"].items():
            errors, warned = 0, 0
            try:
                warned = len(validate_config(about["cfg"], automatic_weight=False))
            except ConfigurationError as error:
                errors = len(error.problems)
            assert errors == about["n_errors"], name
            assert warned == about["n_warnings"] or about["raises"], name
            assert suggested_lengths(about["cfg"]) == about["suggested_max_seq_len"], name


def test_a_negative_weight_means_automatic() -> None:
    case = cases("actionformer", "utilities*")[0].json("case.json")["validate_config"]["neg_loss_weight"]
    assert validate_config(case["cfg"]) == []
