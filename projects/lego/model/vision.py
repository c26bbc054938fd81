"""What the language model sees of a frame: CLIP's patches, projected into the space of its words."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LAYER = -2  # the last but one; its class token is dropped


class Vision(nn.Module):
    """Patches of CLIP's image tower (B,N,width), from its last layer but one, without the class token."""

    def __init__(self, cfg: CLIPVisionConfig) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(cfg)
        self.side: int = cfg.image_size
        self.patches = (cfg.image_size // cfg.patch_size) ** 2

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,side,side) as `clip_pixels` makes it, to (B,N,width)."""
        states: Tensor = self.tower(pixels, output_hidden_states=True).hidden_states[LAYER]
        return states[:, 1:]


def projector(width: int, out: int, kind: str = "linear") -> nn.Module:
    """LLaVA's projector: one linear layer (LEGO), or two with a GELU between (LLaVA-1.5: kind="mlp")."""
    if kind == "linear":
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def clip_pixels(image: Image.Image, side: int = 224) -> Tensor:
    """A frame as CLIP sees it, float (3,side,side): short side scaled by Pillow's bicubic filter, centre cut out.

    The left and right borders of wide frames are lost, as in the original.
    """
    width, height = image.size
    short = min(width, height)
    width, height = int(side * width / short), int(side * height / short)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    return (
        torch.from_numpy((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32))
        .permute(2, 0, 1)
        .contiguous()
    )
