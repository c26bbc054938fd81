"""Every configuration that is published loads, and as many as published results were found."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from core import config
from tests.repo.files import ROOT

YAMLS = sorted(ROOT.glob("projects/*/configs/*.yaml"))
EXPECTED = {
    "ucf50_x3d": {"demo", "ucf50_x3d_xs", "ucf50_x3d_s", "ucf50_x3d_m", "ucf50_x3d_l"},
    "sgear": {
        *("demo", "demo_features", "ek100_vit", "ek100_vit224", "ek100_vit_recognition", "ek100_vit_trainval"),
        *("ek100_tsn_rgb", "ek100_tsn_obj", "ek100_tsn_flow", "ek100_ircsn", "ek100_avt_vit", "ek100_avt_tsn_rgb"),
        *("ek55_vit", "ek55_vit_recognition", "ek55_tsn_rgb", "ek55_tsn_rgb_pretrain", "ek55_tsn_obj", "ek55_ircsn"),
        *("ek55_ircsn_pretrain", "egtea_vit", "egtea_vit_recognition", "egtea_avt_vit", "salads_vit"),
    },
    "lta_memvit": {
        *("demo", "ego4d_slowfast_recognition", "ego4d_mvit_recognition", "ego4d_memvit_recognition"),
        *("ego4d_slowfast_transformer_forecasting", "ego4d_slowfast_concat_forecasting"),
        *("ego4d_mvit_concat_forecasting", "ego4d_memvit_concat_forecasting", "ego4d_slowfast_repeat_forecasting"),
    },
    "actionformer": {
        *(
            "demo",
            "demo_videos",
            "own",
            "thumos_i3d",
            "anet_tsp",
            "anet_i3d",
            "epic_slowfast_verb",
            "epic_slowfast_noun",
        ),
        *("ego4d_slowfast", "ego4d_omnivore", "ego4d_egovlp", "ego4d_slowfast_egovlp", "ego4d_omnivore_egovlp"),
        *("ego4d_slowfast_omnivore_egovlp", "thumos_i3d_modern", "thumos_i3d_snapformer", "thumos_i3d_tbtformer"),
    },
    "lego": {
        *("demo", "ego4d_ldm", "ego4d_ldm_24gb", "epic_ldm", "both_ldm", "ego4d_instruct_pix2pix", "ego4d_description"),
        *("ego4d_image_features", "ego4d_text_features", "ego4d_trained_conditioner"),
        *("ego4d_vlm", "ego4d_vlm_lora", "epic_vlm"),
    },
}


def section_of(project: str, stage: str = "") -> type[config.Section]:
    """The configuration of a project, or of one of its stages: train_vlm reads VlmConfig, train reads Config."""
    found: type[config.Section] = getattr(
        importlib.import_module(f"projects.{project}.config"), f"{stage.title()}Config"
    )
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_a_configuration_loads_and_says_what_it_gives(path: Path) -> None:
    project = path.parts[-3]
    head = re.match(r"(#.*\n)+", path.read_text())
    assert head, "the first lines are a comment: the command, the expected result, time and memory"
    stage = re.search(r"STAGE=(\w+)", head[0])
    section = section_of(project, stage[1] if stage else "")
    cfg = config.load(section, path)
    assert config.load(section, overrides=[]) != cfg, "a file that changes nothing is not needed"
    assert f"PROJECT={project}" in head[0]
    assert path.stem == "demo" or f"CONFIG={path.stem}" in head[0]


@pytest.mark.parametrize("project", EXPECTED)
def test_as_many_configurations_as_results(project: str) -> None:
    found = {path.stem for path in YAMLS if path.parts[-3] == project}
    assert found >= EXPECTED[project]
