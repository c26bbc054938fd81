"""The demo: both stages through their real commands learn to describe and to draw what is taught in minutes."""

from __future__ import annotations

import shutil
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
    cfg = config.load(Config, demo.CONFIG, [f"model.tokenizer={tmp_path / 'merges.txt'}"])
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


def test_words_reach_every_place_of_the_text_encoder(tmp_path: Path) -> None:
    """Prompts differ at the places of padding too: most of what the diffusion stage attends to is padding."""
    cfg = config.load(Config, demo.CONFIG, [f"model.tokenizer={tmp_path / 'merges.txt'}"])
    scenes.write_merges(tmp_path / "merges.txt")
    torch.manual_seed(0)
    text = model.text_encoder(cfg.model)
    prompts = [change.description for change in scenes.CHANGES]
    padding = slice(max(int((row != row[-1]).sum()) for row in text.tokenize(prompts)) + 1, None)
    fresh = text.encode(prompts)[:, padding].var(0).mean()
    scenes.let_words_carry(text)
    assert text.encode(prompts)[:, padding].var(0).mean() > max(0.1, 5 * fresh)


@pytest.mark.demo
@pytest.mark.timeout(900)
def test_drawn_frames_are_nearer_to_the_true_ones_than_the_frames_before(tmp_path: Path) -> None:
    """Both stages through their commands, at half the demo's size. PSNR over new rooms, four actions in each: what was
    drawn for the other actions of the room has to be as far away as the words are wrong."""
    root, out = tmp_path / "data", tmp_path / "run"
    args = [
        f"data.root={root}", f"run.out={out}", f"model.init={root / 'sd.ckpt'}", "run.device=cpu", "run.threads=1",
        f"model.tokenizer={root / 'merges.txt'}", f"cache.folder={tmp_path / 'cache'}", "data.size=[16,16]",
    ]  # fmt: skip
    scores = demo.main(args)
    assert scores["psnr"] > scores["psnr_source"] + 3
    assert scores["psnr"] > scores["psnr_other_words"] + 3
    cfg = config.load(Config, demo.CONFIG, args)
    records = data.load(cfg.data, "val")
    taught = {change.label: change.description for change in scenes.CHANGES}
    right = [record.prompt("llava_forecast_finetune") == taught[record.prompt("action")] for record in records]
    assert sum(right) >= 0.9 * len(right), "descriptions of actions in rooms that the language model was not shown"
    losses = [row["train/loss_epoch"] for row in rows(out) if "train/loss_epoch" in row]
    assert losses[-1] < 0.25 * losses[0] < 0.25
    folder = generate.folder(out / "checkpoints/last.safetensors", cfg.sample)
    assert all(generate.image_path(folder, record).is_file() for record in records)
    results = simplejson.loads((folder / "metric" / "results.json").read_text())["scores"]["psnr"]
    assert results["value"] == pytest.approx(scores["psnr"])
    assert results["source_frame"] < scores["psnr"] - 3, "what doing nothing would reach, scored by the command"
    assert (folder / "metric" / "report.html").is_file()
    for record in records:  # what copies the frame before is refused
        copy = generate.image_path(tmp_path / "unchanged", record)
        copy.parent.mkdir(parents=True)
        shutil.copy(data.source_path(root, record), copy)
    with pytest.raises(ValueError, match="not clearly nearer"):
        demo.judge(cfg, tmp_path / "unchanged")
