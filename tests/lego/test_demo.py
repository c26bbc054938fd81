"""The demo: both stages through their real commands; what is taught in a minute is learned, no more is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest
import simplejson
import torch

from core import config
from projects.lego import data, demo, generate, model, scenes
from projects.lego.config import Config
from projects.lego.model import layouts
from tests.runs import rows


def test_the_autoencoder_made_by_hand_gives_averages_of_pixels(tmp_path: Path) -> None:
    cfg = config.load(Config, demo.CONFIG)
    assert scenes.write_merges(tmp_path / "merges.txt") <= cfg.model.vocabulary
    scenes.write_stable_diffusion(tmp_path / "sd.ckpt", cfg)
    vae = model.autoencoder(cfg.model)
    layouts.load_vae(vae, layouts.read(tmp_path / "sd.ckpt"))
    frames = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = cfg.diffusion.scale_factor * model.encode(vae, frames)[:, :4]
    averages = torch.nn.functional.avg_pool2d(frames, 4)
    found = model.decode(vae, latents, cfg.diffusion.scale_factor)
    expected = averages.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


@pytest.mark.demo
@pytest.mark.timeout(900)
def test_both_stages_run_through_their_commands(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    args = [
        f"data.root={root}", f"run.out={out}", f"model.init={root / 'sd.ckpt'}", "run.device=cpu",
        f"model.tokenizer={root / 'merges.txt'}", f"cache.folder={tmp_path / 'cache'}",
    ]  # fmt: skip
    scores = demo.main(args)
    cfg = config.load(Config, demo.CONFIG, args)
    records = data.load(cfg.data, "val")
    taught = {change.label: change.description for change in scenes.CHANGES}
    right = [record.prompt("llava_forecast_finetune") == taught[record.prompt("action")] for record in records]
    assert sum(right) >= 0.7 * len(right), "descriptions of actions that the language model was not shown"
    losses = [row["train/loss_epoch"] for row in rows(out) if "train/loss_epoch" in row]
    assert losses[-1] < 0.25 * losses[0] < 0.25
    folder = generate.folder(out / "checkpoints/last.safetensors", cfg.sample)
    assert all(generate.image_path(folder, record).is_file() for record in records)
    results = simplejson.loads((folder / "metric" / "results.json").read_text())["scores"]["psnr"]
    assert scores["psnr"] == pytest.approx(results["value"])
    assert results["source_frame"] > 0, "what doing nothing would reach"
    assert (folder / "metric" / "report.html").is_file()
