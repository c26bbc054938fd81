"""Synthetic frames whose change follows from words, and tiny networks to begin with: what the demo is made of."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import LlamaTokenizer

from core.checkpoint.files import replacing
from projects.lego import model, prompts
from projects.lego.config import Config
from projects.lego.model import Schedule, TextEncoder, layouts, names
from projects.lego.model.vlm import Vlm
from projects.lego.model.vlm_files import save_vlm

VIDEO = {"width": 480, "height": 360, "fps": 30.0}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28,
    "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip
LANGUAGE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 172, "rms_norm_eps": 1e-5,
}  # fmt: skip


class Change(NamedTuple):
    """An action: how it is labeled, how it is described in detail, and the color that the box in the frame gets."""

    label: str
    description: str
    color: tuple[int, int, int]


CHANGES = (
    Change("#C C dips the brush", "The person paints the box red with a brush.", (212, 40, 36)),
    Change("#C C spreads a cloth", "The person lays a blue cloth over the box.", (32, 60, 214)),
    Change("#C C pours corn", "The person fills the box with yellow corn.", (236, 206, 36)),
    Change("#C C shuts the lid", "The person closes the black lid of the box.", (12, 12, 16)),
)
BOX = (210, 208, 204)  # whatever happens to it
SIDE = 3 / 8  # of the box, as a share of the frame's


def frame_pair(rng: random.Random, change: Change, *, height: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The frame before and of an action, uint8 (H, 4/3 H, 3): a room in soft colors, and somewhere a pale box in it."""
    noise = np.random.default_rng(rng.getrandbits(64))
    width = round(VIDEO["width"] / VIDEO["height"] * height)  # what a model that draws so high frames writes
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    room = np.full((height, width, 3), 1.0) * noise.uniform(90, 160, 3)
    for _ in range(3):
        wave = np.sin(2 * np.pi * (noise.uniform(-1.5, 1.5) * x + noise.uniform(-1.5, 1.5) * y + noise.random()))
        room += wave[..., None] * noise.uniform(-24, 24, 3)
    top, left = noise.integers(0, 6, 2) / 8
    inside = (y >= top) & (y <= top + SIDE) & (x >= left) & (x <= left + SIDE)
    before, after = (np.where(inside[..., None], color, room) for color in (BOX, change.color))
    return before.round().clip(0, 255).astype(np.uint8), after.round().clip(0, 255).astype(np.uint8)


def write_pairs(root: Path, *, height: int = 32, train: int = 240, val: int = 24) -> None:
    """The released layout of Ego4D below `root`: frames, labels, sizes, and descriptions of half of the training part.

    Only the instruction data has descriptions: those of the pairs are the language model's to write. The validation
    part has rooms of its own, and in each of them all actions: their frames differ by the words alone.
    """
    folder, sizes, curated = root / "EgoGen" / "ego4d.fho", {}, []
    for split, count in (("train", train), ("val", val)):
        entries: dict[str, dict[str, dict[str, str]]] = {}
        for number in range(count):
            scene, place = divmod(number, len(CHANGES))
            change, room = CHANGES[place], scene if split == "val" else number
            clip, action = f"demo-{split}-{scene:02d}", str(place)
            frames = [f"{clip}/{action}/pre_{time:06d}.jpg" for time in (10 * number, 10 * number + 5)]
            pictures = frame_pair(random.Random(f"{split}/{room}"), change, height=height)
            for name, picture in zip(frames, pictures, strict=True):
                path = folder / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
                path.write_bytes(buffer.getvalue())
            entries.setdefault(clip, {})[action] = {"image_0": frames[0], "image_1": frames[1], "action": change.label}
            sizes[clip] = VIDEO
            if split == "train" and number % 2 == number // 4 % 2:
                asked = f"{prompts.TAG}\n{prompts.question(change.label, 'ego4d')}"
                turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": change.description}]
                curated.append({"id": f"{clip}_{action}", "image": frames[0], "conversations": turns})
        (root / f"ego4d_{split}.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    (root / "ego4d_metadata.json").write_text(json.dumps(sizes) + "\n", encoding="utf-8")
    (root / "curation_from_gpt").mkdir(exist_ok=True)
    path = root / "curation_from_gpt" / "ego4d_for_tuning_forecasting.json"
    path.write_text(json.dumps(curated, indent=1) + "\n", encoding="utf-8")


def words() -> list[str]:
    """Every word of the demo."""
    texts = [text for change in CHANGES for text in (change.label, change.description)]
    return sorted({word for text in texts for word in text.lower().replace("#c c", "").replace(".", "").split()})


def write_merges(path: Path) -> int:
    """A CLIP tokenizer for these words in OpenAI's format; returns the size of its vocabulary."""
    merges: dict[str, None] = {}
    for word in words():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges[f"{parts[0]} {parts[1]}"] = None
            parts = ["".join(parts[:2]), *parts[2:]]
    path.write_text("\n".join(["#version: demo", *merges]) + "\n", encoding="utf-8")
    return 512 + len(merges) + 2


def write_stable_diffusion(path: Path, cfg: Config) -> None:
    """A checkpoint in Stable Diffusion's layout: an autoencoder made by hand, the rest random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lego, vae, text = model.build(cfg.model), model.autoencoder(cfg.model), model.text_encoder(cfg.model)
        let_words_carry(text)
    average_pixels(vae, cfg.diffusion.scale_factor)
    state = layouts.official_state(lego, average=None, vae=vae, text=text, schedule=Schedule(), blocks=cfg.model.blocks)
    first = names.UNET + "input_blocks.0.0.weight"
    state[first] = state[first][:, : model.LATENT_CHANNELS].clone()
    kept = {n: value.contiguous() for n, value in state.items() if not n.startswith(names.CONDITIONER)}
    with replacing(path) as temporary:
        torch.save({"state_dict": kept}, temporary)


@torch.no_grad()
def let_words_carry(text: TextEncoder) -> None:
    """Make states of an encoder that learned nothing differ by prompt, above all at the many places of padding.

    Fresh weights are so small that padding hears next to nothing of the words before it. Here every place attends to
    all words before it alike, and not to padding: queries are a constant that points away from the key of padding.
    """
    tables, last = text.model.embeddings, text.tokenize([""])[0, -1]
    torch.nn.init.normal_(tables.token_embedding.weight)
    torch.nn.init.normal_(tables.position_embedding.weight, std=0.1)
    for layer in text.model.encoder.layers:
        attention, padding = layer.self_attn, layer.layer_norm1(tables.token_embedding.weight[last])
        torch.nn.init.eye_(attention.k_proj.weight)
        attention.q_proj.weight.zero_()
        attention.q_proj.bias.copy_(-padding)
        for linear in (attention.v_proj, attention.out_proj):
            torch.nn.init.orthogonal_(linear.weight, gain=2.0)


@torch.no_grad()
def average_pixels(vae: Any, scale_factor: float) -> None:
    """Make an autoencoder of equal levels by hand: its latents are averages of pixels, red, green, blue and gray.

    Residual blocks and attention add nothing. The norms at both ends cannot forget a signal whose group of four
    channels also holds the constants A, -A and 0: they fix its mean and variance, and signal minus zero comes out as it
    went in; the offset keeps the activation where it is the identity.
    """
    big, offset = 100.0, 20.0
    groups = range(0, 4 * model.LATENT_CHANNELS, 4)  # the first channel of each group that is used
    for parameter in vae.parameters():
        parameter.zero_()

    def enter(conv: Any, weights: Tensor) -> None:  # weights (signals, inputs)
        for group, row in zip(groups, weights, strict=True):
            conv.weight[group, :, 1, 1] = row
            conv.bias[group + 1], conv.bias[group + 2] = big, -big

    def leave(norm: Any, conv: Any, outputs: int) -> None:
        norm.weight.fill_(big / 2**0.5)  # the standard deviation of (A, -A, 0, 0)
        norm.bias.fill_(offset)
        for output, group in list(enumerate(groups))[:outputs]:
            conv.weight[output, group, 1, 1], conv.weight[output, group + 3, 1, 1] = 1.0, -1.0

    every = torch.arange(vae.encoder.conv_in.out_channels)
    enter(vae.encoder.conv_in, torch.cat([torch.eye(3), torch.full((1, 3), 1 / 3)]))
    for level in vae.encoder.down_blocks[:-1]:
        level.downsamplers[0].conv.weight[every, every, :2, :2] = 0.25
    leave(vae.encoder.conv_norm_out, vae.encoder.conv_out, model.LATENT_CHANNELS)
    spread = 0.3 * scale_factor  # the deviation of pixels in [-1, 1]
    for k in range(model.LATENT_CHANNELS):
        vae.quant_conv.weight[k, k, 0, 0] = 1 / spread
        vae.post_quant_conv.weight[k, k, 0, 0] = spread
    vae.quant_conv.bias[model.LATENT_CHANNELS :] = -8.0  # log-variance: a posterior that is nearly a point
    enter(vae.decoder.conv_in, torch.eye(model.LATENT_CHANNELS))
    for level in vae.decoder.up_blocks[:-1]:
        level.upsamplers[0].conv.weight[every, every, 1, 1] = 1.0
    leave(vae.decoder.conv_norm_out, vae.decoder.conv_out, 3)


def write_language_model(folder: Path, texts: Sequence[str]) -> None:
    """A LLaVA of 150 thousand random weights, with a tokenizer made of the texts it will read and write."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, pad_id=-1, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    tokenizer = LlamaTokenizer.from_pretrained(str(folder), legacy=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Vlm(VISION, LANGUAGE | {"vocab_size": len(tokenizer)})
    save_vlm(net, tokenizer, folder)
