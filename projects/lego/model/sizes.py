"""The size of a network, told by the shapes of its weights: files then need no configuration beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from projects.lego.config import ModelConfig
from projects.lego.model.layouts import Parts

Shapes = Mapping[str, Tensor]


def sizes(parts: Parts) -> ModelConfig:
    """The model section that fits these weights. The number of heads leaves no trace; Stable Diffusion 1 has 8.

    Raises: ValueError when a weight that would tell is missing.
    """
    compvis = parts.layout == "compvis"
    found: dict[str, object] = {"features": "none"}
    try:
        if parts.unet:
            found |= _compvis_unet(parts.unet) if compvis else _diffusers_unet(parts.unet)
        if parts.vae:
            found |= _compvis_vae(parts.vae) if compvis else _diffusers_vae(parts.vae)
        if parts.text:
            words = parts.text["embeddings.token_embedding.weight"]
            layers = _count(parts.text, r"^encoder\.layers\.(\d+)\.")
            found |= {"vocabulary": words.shape[0], "context": words.shape[1], "text_layers": layers}
            found["text_heads"] = max(words.shape[1] // 64, 1)
        if parts.conditioner:
            image, text = (f"projection_{kind}.weight" in parts.conditioner for kind in ("img", "txt"))
            found["features"] = {(1, 1): "both", (1, 0): "image", (0, 1): "text"}[int(image), int(text)]
            width = parts.conditioner[f"projection_{'img' if image else 'txt'}.weight"].shape[1]
            found["feature_width"] = width
    except KeyError as error:
        raise ValueError(f"{parts.source}: {error} is missing, by which its size would be known") from None
    return ModelConfig.model_validate(found)


def _count(weights: Shapes, pattern: str) -> int:
    """One more than the greatest number that the pattern finds in names."""
    numbers = [int(match[1]) for name in weights if (match := re.search(pattern, name))]
    return max(numbers, default=-1) + 1


def _context(weights: Shapes) -> int:
    return next(int(value.shape[1]) for name, value in weights.items() if name.endswith("attn2.to_k.weight"))


def _compvis_unet(weights: Shapes) -> dict[str, object]:
    width = int(weights["input_blocks.0.0.weight"].shape[0])
    downs = sorted(
        int(match[1]) for name in weights if (match := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name))
    )
    step = downs[0]
    tops = [weights[f"input_blocks.{level * step + 1}.0.out_layers.3.weight"] for level in range(len(downs) + 1)]
    levels = tuple(int(top.shape[0]) // width for top in tops)
    return {"width": width, "levels": levels, "blocks": step - 1, "context": _context(weights)}


def _diffusers_unet(weights: Shapes) -> dict[str, object]:
    width = int(weights["conv_in.weight"].shape[0])
    count = _count(weights, r"^down_blocks\.(\d+)\.")
    tops = [weights[f"down_blocks.{level}.resnets.0.conv2.weight"] for level in range(count)]
    levels = tuple(int(top.shape[0]) // width for top in tops)
    blocks = _count(weights, r"^down_blocks\.0\.resnets\.(\d+)\.")
    return {"width": width, "levels": levels, "blocks": blocks, "context": _context(weights)}


def _compvis_vae(weights: Shapes) -> dict[str, object]:
    width = int(weights["encoder.conv_in.weight"].shape[0])
    count = _count(weights, r"^encoder\.down\.(\d+)\.")
    tops = [weights[f"encoder.down.{level}.block.0.conv2.weight"] for level in range(count)]
    return {"vae_width": width, "vae_levels": tuple(int(top.shape[0]) // width for top in tops)}


def _diffusers_vae(weights: Shapes) -> dict[str, object]:
    width = int(weights["encoder.conv_in.weight"].shape[0])
    count = _count(weights, r"^encoder\.down_blocks\.(\d+)\.")
    tops = [weights[f"encoder.down_blocks.{level}.resnets.0.conv2.weight"] for level in range(count)]
    return {"vae_width": width, "vae_levels": tuple(int(top.shape[0]) // width for top in tops)}
