"""Weights of every layout go in and out: the same numbers, every name accounted for, nothing foreign is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoint import save_weights
from projects.lego import convert, model, train
from projects.lego.config import Config, ModelConfig
from projects.lego.model import Schedule, layouts, names
from projects.lego.model.sizes import sizes
from tests.lego import tiny
from tests.lego.tiny import configured, settings
from tests.runs import newest, same

UNET = "model.diffusion_model."


def cfg_of(home: Path, *more: str) -> Config:
    return configured(home, home / "unused", *more)


def networks(home: Path, seed: int = 1, *more: str) -> tuple:
    """Lego, another one as its average, autoencoder and text encoder, all random."""
    torch.manual_seed(seed)
    cfg = cfg_of(home, *more).model
    return model.build(cfg), model.build(cfg), model.autoencoder(cfg), model.text_encoder(cfg)


def official(home: Path, path: Path, *, average: bool = True, extra: dict | None = None) -> tuple:
    """A tiny official checkpoint and the networks in it."""
    lego, mean, vae, text = networks(home)
    mean.conditioner.load_state_dict(lego.conditioner.state_dict())
    state = layouts.official_state(
        lego, average=mean if average else None, vae=vae, text=text, schedule=Schedule(), blocks=1, updates=12
    )
    torch.save({"state_dict": state, "global_step": 5, **(extra or {})}, path)
    return lego, mean, vae, text


class ModelCheckpoint:
    """Stands for a class of Lightning, which pickles name and we never make."""

    def __init__(self) -> None:
        self.best = 1.0


def test_an_official_checkpoint_goes_in_whole(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "epoch=1.ckpt"
    moments = {"step": 5, "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}
    extra = {
        "callbacks": {ModelCheckpoint: {"best": 1}, "x": ModelCheckpoint()},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "lr_schedulers": [{"last_epoch": 5, "lr_lambdas": [None]}],
        "epoch": 1,
    }
    lego, mean, vae, text = official(home, path, extra=extra)
    parts = layouts.read(path)
    assert (parts.layout, parts.updates, parts.about["global_step"]) == ("compvis", 12, 5)
    assert sizes(parts) == cfg_of(home).model.model_copy(
        update={"init": "", "tokenizer": ModelConfig().tokenizer, "text_heads": 1, "heads": 8}
    )
    fresh, other, vae2, text2 = networks(home, 2)
    layouts.load_unet(fresh, parts, blocks=1)
    layouts.load_unet(other, parts, average=True, blocks=1)
    layouts.load_conditioner(fresh.conditioner, parts)
    layouts.load_vae(vae2, parts)
    layouts.load_text(text2, parts)
    for ours, theirs in ((fresh, lego), (other.unet, mean.unet), (vae2, vae), (text2, text)):
        assert same(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_stable_diffusion_gets_four_more_input_channels_of_zeros(home: Path) -> None:
    parts = layouts.read(home / "sd.ckpt")
    lego = networks(home)[0]
    report = layouts.load_unet(lego, parts, blocks=1)
    weight = lego.unet.conv_in.weight
    assert torch.equal(weight[:, :4], parts.unet["input_blocks.0.0.weight"])
    assert not weight[:, 4:].any()
    assert len(report.loaded) == len(parts.unet)
    noisy, source = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    context, time = torch.randn(2, 77, 32), torch.tensor([3, 500])
    with torch.no_grad():
        same = [lego(noisy, time, each, context) for each in (source, torch.zeros_like(source))]
    assert torch.equal(*same), "at first the source frame changes nothing"


def test_instruct_pix2pix_keeps_its_eight_channels(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "ip2p.ckpt"
    _, mean, _, _ = official(home, path)
    content = torch.load(path, weights_only=True)
    state = {n: v for n, v in content["state_dict"].items() if not n.startswith(names.CONDITIONER)}
    torch.save({"state_dict": state}, path)
    lego = networks(home, 3)[0]
    with tiny.started(cfg_of(home, f"model.init={path}", f"run.out={tmp_path / 'run'}")) as job:
        from projects.lego import weights

        weights.start(lego, cfg_of(home, f"model.init={path}"), job)
    assert same(dict(lego.unet.state_dict()), dict(mean.unet.state_dict())), "its average, which answers"


@pytest.mark.parametrize("broken", ["conditioning", "average", "unet", "shape", "nothing"])
def test_a_wrong_file_is_refused_by_name(home: Path, tmp_path: Path, broken: str) -> None:
    """The reference loads what fits and says nothing."""
    path = tmp_path / "broken.ckpt"
    official(home, path)
    state = torch.load(path, weights_only=True)["state_dict"]
    if broken == "conditioning":
        del state["projection_txt.weight"]
    elif broken == "average":
        del state["model_ema.diffusion_modelout2bias"]
    elif broken == "unet":
        state[UNET + "out.9.bias"] = state.pop(UNET + "out.2.bias")
        state = {n: v for n, v in state.items() if not n.startswith("model_ema")}
    elif broken == "shape":
        state[UNET + "out.2.bias"] = torch.zeros(5)
    else:
        state = {"weight": torch.zeros(2)}
    torch.save({"state_dict": state}, path)
    words = {
        "conditioning": r"broken\.ckpt.*projection_txt\.weight",
        "average": r"moving average lacks 1 weights of the UNet, out\.2\.bias",
        "unet": r"conv_out\.bias",
        "shape": r"conv_out\.bias: \(5,\) in the file",
        "nothing": r"no weights of Stable Diffusion, InstructPix2Pix or LEGO",
    }
    with pytest.raises(ValueError, match=f"(?s)broken.*{words[broken]}"):  # noqa: PT012
        parts = layouts.read(path)
        lego = networks(home)[0]
        layouts.load_unet(lego, parts, blocks=1)
        layouts.load_conditioner(lego.conditioner, parts)


def test_a_folder_of_diffusers_there_and_back(home: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "official.ckpt", tmp_path / "folder"
    lego, mean, vae, _ = official(home, path)
    convert.main([str(path), str(folder), "--to", "diffusers"])
    index = {p.name for p in folder.iterdir()}
    assert index == {"unet", "vae", "text_encoder", "scheduler", "conditioner", "model_index.json"}
    parts = layouts.read(folder)
    assert parts.layout == "diffusers"
    again = networks(home, 5)[0]
    layouts.load_unet(again, parts, blocks=1)
    layouts.load_conditioner(again.conditioner, parts)
    assert same(dict(again.unet.state_dict()), dict(mean.unet.state_dict()))
    assert same(dict(again.conditioner.state_dict()), dict(lego.conditioner.state_dict()))
    from diffusers import AutoencoderKL, UNet2DConditionModel

    assert same(dict(AutoencoderKL.from_pretrained(folder / "vae").state_dict()), dict(vae.state_dict()))
    opened = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert same(dict(opened.state_dict()), dict(mean.unet.state_dict()))
    # Old folders: torch files, a level more in the text encoder, other names in the autoencoder's attention.
    weights = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in old.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        renamed[name] = value
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    torch.save(renamed, folder / "vae/diffusion_pytorch_model.bin")
    text = load_file(folder / "text_encoder/model.safetensors")
    save_file(
        {f"text_model.{name.removeprefix('text_model.')}": v for name, v in text.items()}
        | {"text_model.embeddings.position_ids": torch.arange(77)[None]},
        folder / "text_encoder/model.safetensors",
    )
    parts, fresh = layouts.read(folder), networks(home, 6)
    layouts.load_vae(fresh[2], parts)
    layouts.load_text(fresh[3], parts)
    assert same(dict(fresh[2].state_dict()), dict(vae.state_dict()))
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    with pytest.raises(ValueError, match="unet: no weights"):
        layouts.read(folder)


def test_a_run_becomes_an_official_checkpoint_and_ours_again(home: Path, tmp_path: Path) -> None:
    """Raw weights and average of a checkpoint, with the frozen networks of Stable Diffusion."""
    run = tmp_path / "run"
    train.main(settings(home, run, "optim.epochs=1", "optim.ema=0.5", "model.train_conditioner=true"))
    step = max((run / "checkpoints").glob("step_*.pt"))
    with pytest.raises(SystemExit):
        convert.main([str(step), str(tmp_path / "x.ckpt"), "--to", "official"])
    out = tmp_path / "official.ckpt"
    convert.main([str(step), str(out), "--to", "official", "--init", str(home / "sd.ckpt")])
    parts, saved = layouts.read(out), newest(run)["parts"]
    assert parts.updates == 3
    fresh, other, *_ = networks(home, 7)
    layouts.load_unet(fresh, parts, blocks=1)
    layouts.load_unet(other, parts, average=True, blocks=1)
    layouts.load_conditioner(other.conditioner, parts)
    raw = {n.removeprefix("unet."): v for n, v in saved["model"].items() if n.startswith("unet.")}
    assert all(torch.equal(value, raw[name]) for name, value in fresh.unet.state_dict().items())
    average = saved["step"]["average"]
    assert all(torch.equal(value, average[name]) for name, value in other.state_dict().items())
    ours = tmp_path / "ours.safetensors"
    said = convert.main([str(out), str(ours)])
    assert "moving average" in said
    written = load_file(ours)
    assert written.keys() == average.keys()
    assert all(torch.equal(written[name], average[name]) for name in written)


def test_single_feature_models_convert_too(home: Path, tmp_path: Path) -> None:
    lego = networks(home, 1, "model.features=image")[0]
    save_weights(lego, tmp_path / "image.safetensors")
    out = tmp_path / "image.ckpt"
    convert.main([str(tmp_path / "image.safetensors"), str(out), "--to", "official", "--init", str(home / "sd.ckpt")])
    parts = layouts.read(out)
    assert set(parts.conditioner) == {"projection_img.weight", "projection_img.bias"}
    assert sizes(parts).features == "image"
    both = networks(home, 2)[0]
    with pytest.raises(ValueError, match="projection_txt"):
        layouts.load_conditioner(both.conditioner, parts)


@pytest.mark.parametrize(("levels", "blocks"), [((1, 2, 4, 4), 2), ((1, 2), 1), ((1, 1, 2), 3)])
def test_names_are_a_bijection_for_any_size(levels: tuple[int, ...], blocks: int) -> None:
    with torch.device("meta"):
        lego = model.Lego(width=32, levels=levels, blocks=blocks, image=False, text=False)
        vae = model.build_vae(32, levels)
    unet = names.table(lego.unet.state_dict(), lambda name: names.compvis_unet(name, blocks))
    assert set(unet.values()) == set(lego.unet.state_dict())
    starts = {name.split(".")[0] for name in unet}
    assert starts == {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"}
    entries = {int(name.split(".")[1]) for name in unet if name.startswith("input_blocks")}
    assert entries == set(range(len(levels) * (blocks + 1))), "numbered through without a gap"
    autoencoder = names.table(vae.state_dict(), lambda name: names.compvis_vae(name, len(levels)))
    assert set(autoencoder.values()) == set(vae.state_dict())
    assert not any("_blocks" in name for name in autoencoder)
