"""What the tests of the diffusion stage share: networks of a golden case's size, tiny data, tiny weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.lego import model
from projects.lego.config import ModelConfig
from projects.lego.model import Lego, layouts
from tests.support import Case, fill

Shapes = Mapping[str, Any]


def sized(shapes: Shapes, **more: Any) -> ModelConfig:
    """The configuration of the networks whose official names and shapes a case lists; heads are always eight."""
    found: dict[str, Any] = {}

    def size(name: str, axis: int) -> int:
        return int(shapes[name][0][axis])

    unet = "model.diffusion_model."
    if (first := unet + "input_blocks.0.0.weight") in shapes:
        found["width"] = size(first, 0)
        tops = [f"{unet}input_blocks.{3 * level + 1}.0.in_layers.2.weight" for level in range(4)]
        found["levels"] = tuple(size(name, 0) // found["width"] for name in tops)
        found["context"] = size(unet + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1)
    if (first := "first_stage_model.encoder.conv_in.weight") in shapes:
        found["vae_width"] = size(first, 0)
    if "projection_img.weight" in shapes:
        found["context"], found["feature_width"] = shapes["projection_img.weight"][0]
    return ModelConfig(**found, **more)


def unfilled(cfg: ModelConfig, kind: str) -> Any:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return {"lego": model.build, "vae": model.autoencoder, "text": model.text_encoder}[kind](cfg)


def parts(case: Case, salt: str = "") -> layouts.Parts:
    """The weights of a case, as if its official checkpoint had been read."""
    return layouts.split(case.weights(salt), case.path)


def filled_unet(case: Case, cfg: ModelConfig, *, average: str | None = None, salt: str = "") -> Lego:
    """A Lego whose UNet is filled tensor by tensor, so that only one copy of it exists; with `average` as salt, the
    moving average's values."""
    lego = unfilled(cfg, "lego")
    shapes = case.json("keys.json")
    state = {}
    for name, value in lego.unet.state_dict().items():
        official = "model.diffusion_model." + layouts.names.compvis_unet(name)
        shape, dtype = shapes[official]
        assert list(value.shape) == shape, name
        state[name] = torch.as_tensor(fill.array(official, shape, dtype, salt if average is None else average))
    lego.unet.load_state_dict(state, assign=True)
    if lego.conditioner.state_dict():
        lego.conditioner.to_empty(device="cpu")
        layouts.load_conditioner(lego.conditioner, conditioning(case, salt))
    return lego.eval()


def conditioning(case: Case, salt: str = "") -> layouts.Parts:
    """The conditioning modules of a case alone."""
    shapes = {
        name: value for name, value in case.json("keys.json").items() if name.startswith(layouts.names.CONDITIONER)
    }
    return layouts.split(fill.state_dict(shapes, salt), case.path)


def states(text: str, tokens: int = 77, width: int = 768) -> Tensor:
    """The stand-in for CLIP's states of a prompt that the cases use: (1, tokens, width), never salted."""
    scale = np.sqrt(width)
    return torch.from_numpy((fill.array("text:" + text, (tokens, width)) * np.float32(scale)).astype(np.float32))[None]


def vae_parts(case: Case, salt: str = "") -> layouts.Parts:
    """The autoencoder of a case alone."""
    shapes = {name: value for name, value in case.json("keys.json").items() if name.startswith(layouts.names.VAE)}
    return layouts.split(fill.state_dict(shapes, salt), case.path)
