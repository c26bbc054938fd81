"""Weights between the official checkpoints, folders of diffusers and our own files; and what a file holds.

    python -m projects.lego.convert ego4d_diffusion_with_vllm_feature.ckpt ego4d.safetensors
    python -m projects.lego.convert ego4d_diffusion_with_vllm_feature.ckpt folder --to diffusers
    python -m projects.lego.convert runs/x/checkpoints/step_000020160.pt x.ckpt --to official --init v1-5-pruned.ckpt
    python -m projects.lego.convert runs/lego/ego4d_vlm/vlm folder --to llava

Our file holds the UNet and the conditioning; autoencoder and text encoder come from `--init` where the other layouts
want them. A checkpoint of a run (step_*.pt) has raw weights and their moving average, as official ones do. Folders of
language models become such of transformers or of LLaVA's own code, LoRA pairs merged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import nn

from core.checkpoint import save_weights
from core.checkpoint.files import replacing
from projects.lego import model
from projects.lego.config import ModelConfig
from projects.lego.model import Lego, Schedule, layouts
from projects.lego.model.layouts import Parts
from projects.lego.model.sizes import sizes
from projects.lego.model.text import open_tokenizer as open_clip_tokenizer
from projects.lego.model.vlm_files import open_tokenizer, open_vlm, save_vlm

IMAGES, WORDS = ("ours", "official", "diffusers"), ("transformers", "llava")
"""Layouts of the diffusion stage, and of language models."""


def main(argv: Sequence[str] | None = None) -> str:
    """Convert, and say what was read and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a checkpoint, a folder of diffusers, or one of a language model")
    parser.add_argument("out", help="file or folder to write", type=Path)
    parser.add_argument(
        "--to", choices=(*IMAGES, *WORDS), help="the first, or for language models transformers, if none"
    )
    parser.add_argument("--init", default="", help="Stable Diffusion weights with the autoencoder and the text encoder")
    parser.add_argument("--raw", action="store_true", help="the raw weights in place of their moving average")
    parser.add_argument("--vision", default="", help="folder of CLIP, when a language model leaves its image tower out")
    args = parser.parse_args(argv)
    try:
        if is_language_model(Path(args.source)):
            said = convert_vlm(args.source, args.out, to=args.to or "transformers", vision=args.vision)
        else:
            said = convert(args.source, args.out, to=args.to or "ours", init=args.init, raw=args.raw)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(said + "\n")
    return said


def is_language_model(source: Path) -> bool:
    """Whether a folder holds a language model or an adapter of one, and not networks of diffusion side by side."""
    return any((source / name).is_file() for name in ("config.json", "adapter_config.json"))


def convert_vlm(source: str, out: Path, *, to: str = "transformers", vision: str = "") -> str:
    """Write a language model, whatever its layout, as a folder in one; what was done, in words.

    Raises: ValueError when something is missing, or for a layout of diffusion.
    """
    if to not in WORDS:
        raise ValueError(
            f"{source} is a language model; --to {to} is for the diffusion stage, take {' or '.join(WORDS)}"
        )
    net, report = open_vlm(source, vision=vision)
    save_vlm(net, open_tokenizer(source), out, to)
    return f"{report} -> {out} ({to})"


def convert(source: str, out: Path, *, to: str = "ours", init: str = "", raw: bool = False) -> str:
    """Write the weights of `source` in another layout; what was done, in words.

    Raises: ValueError when something is missing that the layout wants.
    """
    if to not in IMAGES:
        raise ValueError(f"--to {to} is for folders of language models; take {', '.join(IMAGES)}")
    parts = layouts.read(source)
    if not parts.unet:
        raise ValueError(f"{parts.source}: has no UNet to convert")
    average = bool(parts.average) and not raw
    cfg = sizes(parts)
    if to == "ours":
        lego = _network(cfg, parts, average)
        save_weights(lego, out, {"project": "lego", "model": cfg.model_dump(mode="json"), "source": parts.source.name})
        return f"{parts} -> {out} ({'moving average' if average else 'raw weights'}, features: {cfg.features})"
    frozen = parts if parts.vae and parts.text else _frozen(init, parts)
    shape = sizes(frozen)
    vae, text = model.autoencoder(shape), model.text_encoder(shape)
    layouts.load_vae(vae, frozen)
    layouts.load_text(text, frozen)
    if to == "diffusers":
        lego = _network(cfg, parts, average)
        _write_folder(out, lego, vae, text.model, frozen)
    else:
        both = _network(cfg, parts, True) if parts.average else None
        state = layouts.official_state(
            _network(cfg, parts, False), average=both, vae=vae, text=text, schedule=Schedule(),
            blocks=cfg.blocks, updates=parts.updates,
        )  # fmt: skip
        with replacing(out) as temporary:
            content = {"state_dict": {name: value.contiguous() for name, value in state.items()}}
            torch.save(content | {"global_step": int(parts.about.get("step", 0))}, temporary)
    return f"{parts} with {frozen.source.name} -> {out} ({to})"


def _network(cfg: ModelConfig, parts: Parts, average: bool) -> Lego:
    """UNet and conditioning; the conditioning has an average of its own only in our runs, where it may have learned."""
    lego = model.build(cfg)
    layouts.load_unet(lego, parts, average=average, blocks=cfg.blocks)
    if parts.conditioner:
        layouts.load_conditioner(lego.conditioner, parts, average=average)
    return lego.eval()


def _frozen(init: str, parts: Parts) -> Parts:
    if not init:
        raise ValueError(f"{parts.source}: has no autoencoder or text encoder; name Stable Diffusion with --init")
    return layouts.read(init)


def _write_folder(out: Path, lego: Lego, vae: Any, text: nn.Module, frozen: Parts) -> None:
    """A folder that diffusers' InstructPix2Pix pipeline opens, and conditioner/ beside it, which is LEGO's own."""
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    vae.register_to_config(scaling_factor=0.18215)
    networks: dict[str, Any] = {"unet": lego.unet, "vae": vae, "text_encoder": text, "scheduler": scheduler}
    if frozen.tokenizer is not None:
        networks["tokenizer"] = open_clip_tokenizer(frozen.tokenizer)
    for name, network in networks.items():
        network.save_pretrained(out / name)
    if lego.conditioner.state_dict():
        save_weights(lego.conditioner, out / "conditioner" / "model.safetensors")
    libraries = {"text_encoder": "transformers", "tokenizer": "transformers"}
    index: dict[str, Any] = {"_class_name": "StableDiffusionInstructPix2PixPipeline"}
    index |= {name: [libraries.get(name, "diffusers"), type(net).__name__] for name, net in networks.items()}
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
