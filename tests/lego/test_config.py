"""What a configuration says about itself, and what it refuses."""

from __future__ import annotations

import pytest

from core import config
from projects.lego.config import Config
from tests.repo.files import ROOT

CONFIGS = ROOT / "projects/lego/configs"


def test_the_defaults_are_the_published_ones() -> None:
    cfg = Config()
    assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.betas, cfg.optim.eps) == (1e-4, 0.01, (0.9, 0.999), 1e-8)
    assert (cfg.optim.schedule, cfg.optim.warmup, cfg.optim.ema, cfg.optim.ema_per) == ("constant", 0, 0.9999, "batch")
    assert cfg.loader.batch_size * 8 * cfg.optim.accumulate == 1024
    assert (cfg.sample.steps, cfg.sample.text_scale, cfg.sample.image_scale, cfg.sample.seed) == (100, 7.5, 1.5, 0)
    assert (cfg.diffusion.drop, cfg.diffusion.scale_factor, cfg.run.seed, cfg.data.flip) == (0.05, 0.18215, 23, 0.5)
    assert not cfg.model.train_conditioner
    assert (cfg.run.save_every, cfg.run.eval_every, cfg.show.every) == (1000, 4, 2000)


@pytest.mark.parametrize(
    ("name", "pairs", "epochs", "steps"), [("ego4d", 85_521, 240, 20_160), ("epic", 61_841, 330, 20_130)]
)
def test_epochs_come_to_the_published_number_of_steps(name: str, pairs: int, epochs: int, steps: int) -> None:
    cfg = config.load(Config, CONFIGS / f"{name}_ldm.yaml")
    batches = -(-pairs // (8 * cfg.loader.batch_size))
    per_epoch = -(-batches // cfg.optim.accumulate)
    assert (cfg.optim.epochs, per_epoch * cfg.optim.epochs) == (epochs, steps)


def test_ablations_differ_from_the_model_in_what_they_leave_out() -> None:
    full = config.flatten(config.load(Config, CONFIGS / "ego4d_ldm.yaml"))
    expected = {
        "ego4d_instruct_pix2pix": {"data.prompt": "action", "model.features": "none"},
        "ego4d_description": {"model.features": "none"},
        "ego4d_image_features": {"model.features": "image"},
        "ego4d_text_features": {"model.features": "text"},
        "ego4d_trained_conditioner": {"model.train_conditioner": True},
    }
    for name, wanted in expected.items():
        other = config.flatten(config.load(Config, CONFIGS / f"{name}.yaml"))
        assert {key: other[key] for key in full if other[key] != full[key] and key != "run.out"} == wanted


def test_on_one_card_a_step_has_as_many_pairs() -> None:
    cfg = config.load(Config, CONFIGS / "ego4d_ldm_24gb.yaml")
    assert cfg.loader.batch_size * cfg.optim.accumulate == 1024
    assert cfg.model.checkpointing


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.size=[250,256]"], "multiples of 64"),
        (["model.train_conditioner=true", "model.features=none"], "nothing to train"),
        (["data.image_features=patches"], "name the VLLM's folder with model.vision"),
        (["data.datasets=[]"], "at least 1"),
        (["model.features=images"], "'both', 'image', 'text' or 'none'"),
        (["diffusion.drop=0.5"], "less than or equal to 0.333"),
        (["sample.solver=ddim"], "euler_ancestral"),
        (["model.widht=320"], "did you mean model.width"),
    ],
)
def test_what_cannot_work_is_refused_with_words(overrides: list[str], words: str) -> None:
    with pytest.raises(config.ConfigError, match=words):
        config.load(Config, None, overrides)
