"""What a training step is said to take is what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core import config, summary
from projects.lego import memory, model
from projects.lego.config import Config

CONFIGS = Path(memory.__file__).with_name("configs")
SMALL = (
    "model.width=32", "model.levels=[1,2,2]", "model.blocks=1", "model.heads=4", "model.context=64",
    "model.feature_width=64", "model.vae_levels=[1,2]", "data.size=[32,32]", "loader.batch_size=3",
)  # fmt: skip


def test_counts_what_autograd_keeps() -> None:
    """On networks without memory the count is that of a real forward pass, whose attention is fused."""
    cfg = config.load(Config, None, SMALL)
    lego = model.build(cfg.model)
    lego.conditioner.requires_grad_(False)
    latents, context = torch.zeros(1, 4, 16, 16), torch.zeros(1, 410, 64)
    real = summary.counts(lego.train(), [latents, torch.zeros(1), latents, context])["activation_bytes"]
    counted, again = memory.activations(lego.to("meta"), cfg)
    assert again == 0
    assert counted == pytest.approx(real, rel=0.02)


def test_recomputing_keeps_less() -> None:
    plain, less = (
        memory.estimate(config.load(Config, None, [*SMALL, f"model.checkpointing={on}"])) for on in ("false", "true")
    )
    assert less["activations"] < 0.4 * plain["activations"]
    assert 0 < less["recomputed block"] < plain["activations"] - less["activations"]
    assert all(less[name] == plain[name] for name in ("weights", "gradients", "optimizer", "average"))


def test_weights_are_counted_by_who_learns() -> None:
    cfg = config.load(Config, None, SMALL)
    lego = model.build(cfg.model)
    unet = sum(p.numel() for p in lego.unet.parameters())
    every = sum(p.numel() for p in lego.parameters())
    found = memory.estimate(cfg)
    assert found["weights"] == found["average"] == 4 * every
    assert found["gradients"] == 4 * unet
    assert found["optimizer"] == 8 * unet
    trained = memory.estimate(config.load(Config, None, [*SMALL, "model.train_conditioner=true"]))
    assert trained["gradients"] == 4 * every
    assert memory.estimate(config.load(Config, None, [*SMALL, "optim.ema=0"]))["average"] == 0


def test_the_published_recipe_fits_a_24_gb_card_by_accumulation_and_recomputation() -> None:
    path = CONFIGS / "ego4d_ldm_24gb.yaml"
    small, full = (config.load(Config, each) for each in (path, CONFIGS / "ego4d_ldm.yaml"))
    assert small.loader.batch_size * small.optim.accumulate == 8 * full.loader.batch_size * full.optim.accumulate
    assert memory.estimate(small)["total"] < 0.9 * 24e9
    assert memory.estimate(config.load(Config, path, ["model.checkpointing=false"]))["total"] > 0.95 * 24e9
    assert memory.estimate(config.load(Config, path, ["loader.batch_size=32", "optim.accumulate=32"]))["total"] > 22e9
