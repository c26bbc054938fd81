"""What a configuration may say, and that the published ones say what the original runs did."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import config
from core.config import ConfigError
from projects.lta_memvit.config import Config

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "lta_memvit" / "configs"

# Of the original: processes x batch, frames x rate, optimizer, rate, epochs, inputs, aggregator, backbone.
PUBLISHED = {
    "ego4d_slowfast_recognition": (8, 8, 32, 2, "sgd", 1e-4, 30, None, None, "slowfast_r101"),
    "ego4d_mvit_recognition": (8, 8, 16, 4, "sgd", 1e-2, 40, None, None, "mvit_b"),
    "ego4d_slowfast_transformer_forecasting": (8, 8, 32, 2, "adam", 1e-4, 50, 4, "transformer", "slowfast_r101"),
    "ego4d_slowfast_concat_forecasting": (8, 8, 32, 2, "adam", 1e-4, 50, 2, "concat", "slowfast_r101"),
    "ego4d_mvit_concat_forecasting": (16, 32, 16, 4, "adam", 4e-2, 45, 2, "concat", "mvit_b"),
    "ego4d_memvit_concat_forecasting": (8, 4, 16, 4, "adam", 3e-4, 45, 2, "concat", "memvit_16"),
}
GLOBAL = {
    "ego4d_slowfast_recognition": 64,
    "ego4d_mvit_recognition": 64,
    "ego4d_slowfast_transformer_forecasting": 64,
    "ego4d_slowfast_concat_forecasting": 64,
    "ego4d_mvit_concat_forecasting": 512,
    "ego4d_memvit_concat_forecasting": 32,
}


def load(name: str, *more: str) -> Config:
    return config.load(Config, CONFIGS / f"{name}.yaml", list(more))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    processes, batch, frames, rate, optimizer, lr, epochs, inputs, aggregator, backbone = PUBLISHED[name]
    cfg = load(name)
    assert processes * batch == GLOBAL[name]
    assert (cfg.loader.batch_size, cfg.loader.workers) == (batch, 8)
    assert (cfg.clip.frames, cfg.clip.rate, cfg.clip.crop, cfg.clip.jitter) == (frames, rate, 224, (256, 320))
    assert (cfg.optim.name, cfg.optim.lr, cfg.optim.epochs) == (optimizer, lr, epochs)
    assert (cfg.optim.schedule, cfg.optim.warmup_steps, cfg.optim.weight_decay) == ("cosine", 1000, 1e-4)
    assert cfg.optim.decay == "reference"
    assert cfg.optim.accumulate == 1
    if optimizer == "sgd":
        assert (cfg.optim.momentum, cfg.optim.nesterov) == (0.9, True)
    assert (cfg.model.backbone, cfg.model.dropout) == (backbone, 0.5)
    assert cfg.model.precise_bn == (200 if name == "ego4d_slowfast_recognition" else 0)
    drop_path = {"mvit_b": 0.2, "memvit_16": 0.4}
    assert cfg.model.drop_path == drop_path.get(backbone, cfg.model.drop_path)
    if inputs:
        assert cfg.task == "forecasting"
        assert (cfg.data.inputs, cfg.data.future) == (inputs, 20)
        assert (cfg.model.aggregator, cfg.model.freeze) == (aggregator, True)
        assert (cfg.model.layers, cfg.model.heads) == (6, 8)
    else:
        assert cfg.task == "recognition"


def test_the_fork_with_its_peculiarities() -> None:
    cfg = load("ego4d_memvit_reference_forecasting")
    assert (cfg.memory.mode, cfg.memory.key, cfg.memory.sampler, cfg.memory.length) == (
        "reference",
        "sample",
        "gap2",
        3,
    )
    assert (cfg.model.causal, cfg.model.widen, cfg.model.frozen, cfg.model.init) == (True, "mlp", "reference", "")
    assert (cfg.clip.flip, cfg.clip.val, cfg.data.windows) == (1.0, "random", "reference")


@pytest.mark.parametrize("name", ["ego4d_memvit24_recognition", "ego4d_memvit24_concat_forecasting"])
def test_memvit_24(name: str) -> None:
    cfg = load(name)
    assert (cfg.clip.frames, cfg.clip.rate, cfg.memory.sampler, cfg.model.backbone) == (32, 3, "gap3", "memvit_24")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["optim.warmup=1", "optim.warmup_steps=10"], "exclude each other"),
        (["optim.schedule=multistep", "optim.milestones=[1]"], "warmup_steps goes with constant, cosine or linear"),
        (["memory.sampler=gap0"], "memory.sampler"),
        (["model.backbone=memvit_32"], "model.backbone"),
        (["memory.mod=off"], "memory.mode"),
        (["features.source=cache"], "model.freeze=true model.frozen=eval"),
        (["features.source=ego4d"], "features need no backbone"),
    ],
)
def test_wrong_settings_are_explained(wrong: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(Config, None, wrong)
    assert words in str(error.value)
