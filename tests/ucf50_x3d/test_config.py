"""Which configurations are refused and what the published ones say."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import config
from core.config import ConfigError
from projects.ucf50_x3d import data
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.model import NAMES, VARIANTS

CONFIGS = Path(data.__file__).with_name("configs")
YAMLS = sorted(CONFIGS.glob("*.yaml"))
PUBLISHED = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics"


def load(name: str = "", *overrides: str) -> Config:
    return config.load(Config, CONFIGS / f"{name}.yaml" if name else None, overrides)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_file_is_whole(path: Path, tmp_path: Path) -> None:
    """It loads, comes back equal from its own dump, and its clips suit the network."""
    cfg = config.load(Config, path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.dump(cfg))
    assert config.load(Config, copy) == cfg
    if cfg.model.name.startswith("x3d"):
        variant = VARIANTS[cfg.model.name.removeprefix("x3d_")]
        smallest = min(cfg.clip.crop, cfg.clip.test_crop or cfg.clip.crop)
        assert cfg.clip.frames >= variant.frames
        assert -(-smallest // 32) >= variant.window[1], "the pooling window does not fit into the crop"
        assert data.example(cfg.clip).shape == (1, 3, cfg.clip.frames, cfg.clip.crop, cfg.clip.crop)
    assert not cfg.model.init or cfg.model.init.startswith(PUBLISHED)
    assert str(cfg.run.out).startswith("runs/ucf50_x3d/")


def test_no_two_files_write_to_one_folder() -> None:
    folders = [config.load(Config, path).run.out for path in YAMLS]
    assert len(set(folders)) == len(folders)


def test_every_published_network_has_a_file() -> None:
    assert {config.load(Config, path).model.name for path in YAMLS} >= set(NAMES)


def test_the_reference_is_the_published_run() -> None:
    """Spec, sections 2.7 and 4: everything that the published 98.60 % came from."""
    cfg = config.flatten(load("ucf50_x3d_s_reference"))
    wanted = {
        "data.dataset": "folder",
        "data.protocol": "random",
        "data.seed": 42,
        "data.held_out": 0.3,
        "data.test_of_held_out": 0.5,
        "data.classes": (),
        "clip.sampling": "whole",
        "clip.frames": 32,
        "clip.crop": 256,
        "clip.test_crop": None,
        "clip.short_side": None,
        "clip.mean": (0.45, 0.45, 0.45),
        "clip.std": (0.225, 0.225, 0.225),
        "clip.augment": False,
        "loader.batch_size": 2,
        "loader.workers": 4,
        "loader.drop_last": False,
        "model.name": "x3d_s",
        "model.init": f"{PUBLISHED}/X3D_S.pyth",
        "model.dropout": 0.5,
        "model.trainable": "head",
        "model.frozen_norm": "reference",
        "features.cache": "none",
        "loss.label_smoothing": 0.0,
        "optim.name": "sgd",
        "optim.lr": 1e-3,
        "optim.momentum": 0.9,
        "optim.nesterov": False,
        "optim.weight_decay": 0.0,
        "optim.epochs": 10,
        "optim.warmup": 0.0,
        "optim.schedule": "constant",
        "optim.clip_norm": 0.0,
        "optim.accumulate": 1,
        "optim.ema": 0.0,
        "precision": "fp32",
        "compile": False,
        "eval.views": 1,
        "eval.crops": 1,
        "run.log_every": 50,
    }
    assert {key: cfg[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("variant", "frames", "rate", "crop", "jitter", "test_crop"),
    [
        ("xs", 4, 12, 160, (182, 228), 182),
        ("s", 13, 6, 160, (182, 228), 182),
        ("m", 16, 5, 224, (256, 320), 256),
        ("l", 16, 5, 312, (356, 446), 356),
    ],
)
def test_each_variant_sees_its_own_clips(
    variant: str, frames: int, rate: int, crop: int, jitter: tuple[int, int], test_crop: int
) -> None:
    """SlowFast's table of the spec, section 4."""
    cfg = load(f"ucf50_x3d_{variant}")
    clip = cfg.clip
    assert (clip.sampling, clip.frames, clip.rate, clip.augment) == ("window", frames, rate, True)
    assert (clip.crop, clip.jitter, clip.test_crop, clip.short_side) == (crop, jitter, test_crop, test_crop)
    assert (cfg.model.name, cfg.model.trainable) == (f"x3d_{variant}", "all")
    assert cfg.model.init == f"{PUBLISHED}/X3D_{variant.upper()}.pyth"
    assert (cfg.optim.nesterov, cfg.optim.schedule, cfg.optim.weight_decay) == (True, "cosine", 5e-5)


def test_only_the_reference_leaks_or_drifts() -> None:
    for path in YAMLS:
        cfg = config.load(Config, path)
        reference = path.stem == "ucf50_x3d_s_reference"
        assert (cfg.data.protocol == "random") == reference, path.stem
        assert (cfg.model.frozen_norm == "reference") == reference, path.stem
    assert (load().data.protocol, load().model.frozen_norm) == ("grouped", "eval")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["features.cache=moments", "model.trainable=all"], "features.cache needs a frozen backbone"),
        (["features.cache=positions", "model.frozen_norm=reference"], "model.trainable=head model.frozen_norm=eval"),
        (["features.cache=moments", "clip.augment=true"], "clips that never change: clip.augment=false"),
        (["features.cache=moments", "optim.ema=0.99"], "optim.ema=0"),
        (["clip.jitter=[182,228]"], r"jitter \[182, 228\] must rise and start at the crop \(256\) or above"),
        (["clip.crop=160", "clip.jitter=[228,182]"], r"jitter \[228, 182\] must rise"),
        (["clip.augment=true", "clip.short_side=240"], "short_side 240 leaves no room for a random crop of 256"),
        (["eval.views=10"], "eval.views > 1 needs clip.sampling=window"),
        (["eval.crops=2"], "eval.crops"),
        (["clip.frames=0"], "clip.frames"),
        (["clip.short_side=0"], "clip.short_side"),
        (["clip.test_crop=0"], "clip.test_crop"),
        (["data.dataset=ek100", "data.classes=[Biking]"], "ek100 has none"),
        (["data.fold=0"], "data.fold"),
        (["data.held_out=1"], "data.held_out"),
        (["data.test_of_held_out=0"], "data.test_of_held_out"),
        (["data.protocol=grupped"], "grouped"),
        (["model.name=x3d_xl"], "x3d_l"),
        (["model.dropout=1"], "model.dropout"),
        (["clip.frame=16"], "clip.frames"),  # no such key; the nearest one
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_anything_runs(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        load("", *overrides)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["clip.sampling=window", "eval.views=10", "eval.crops=3"],
        ["clip.crop=160", "clip.jitter=[160,160]"],
        ["clip.augment=true", "clip.short_side=240", "clip.jitter=[256,320]"],
        ["clip.short_side=240"],  # the middle of a smaller frame is filled up
        ["features.cache=moments"],
        ["clip.jitter=null", "clip.test_crop=null"],
    ],
    ids=" ".join,
)
def test_what_works_is_taken(overrides: list[str]) -> None:
    load("", *overrides)


def test_the_published_protocol_of_30_views_is_one_override_away() -> None:
    cfg = load("ucf50_x3d_s", "eval.views=10", "eval.crops=3")
    assert (cfg.eval.views, cfg.eval.crops) == (10, 3)
    with pytest.raises(ConfigError, match=r"needs clip\.sampling=window"):
        load("ucf50_x3d_s_head", "eval.views=10")
