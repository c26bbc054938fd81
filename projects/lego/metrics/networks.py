"""Networks that see pictures for FID, LPIPS and the CLIP score: built by libraries, loaded from given files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _NoTrainLpips
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from core.checkpoint import Rule, load_weights, read_weights
from projects.lego.metrics.pixels import CLIP_MEAN, CLIP_STD, normalized, scaled


class FidInception(nn.Module):
    """The InceptionV3 of FID up to its 2048 pooled features: blocks of pytorch-fid in torchvision's network."""

    def __init__(self) -> None:
        super().__init__()
        net = torchvision.models.inception_v3(
            num_classes=1008, aux_logits=False, weights=None, init_weights=False, transform_input=False
        )
        net.Mixed_5b, net.Mixed_5c = FIDInceptionA(192, pool_features=32), FIDInceptionA(256, pool_features=64)
        net.Mixed_5d = FIDInceptionA(288, pool_features=64)
        net.Mixed_6b, net.Mixed_6c = FIDInceptionC(768, channels_7x7=128), FIDInceptionC(768, channels_7x7=160)
        net.Mixed_6d, net.Mixed_6e = FIDInceptionC(768, channels_7x7=160), FIDInceptionC(768, channels_7x7=192)
        net.Mixed_7b, net.Mixed_7c = FIDInceptionE_1(1280), FIDInceptionE_2(2048)
        net.fc = nn.Identity()
        self.net = net

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Pictures (3,H,W) in [0, 1], sizes may differ, to (B,2048)."""
        squares = torch.stack([scaled(image, (299, 299)) for image in images])
        out: Tensor = self.net(2 * squares - 1)
        return out


def fid_inception(path: str | Path) -> FidInception:
    """The network with the weights of `pt_inception-2015-12-05-6726825d.pth`."""
    model = FidInception()
    load_weights(model, path, rules=[(r"^", "net.")], drop=[r"(^|\.)fc\."])
    return model.eval().requires_grad_(False)


LpipsNet = Literal["squeeze", "vgg", "alex"]


class Lpips(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018), heads v0.1, on a given ImageNet backbone."""

    def __init__(self, net: LpipsNet, backbone: str | Path | dict[str, Tensor]) -> None:
        super().__init__()
        self.net = _NoTrainLpips(net=net, pnet_rand=True)
        tensors = backbone if isinstance(backbone, dict) else read_weights(backbone)[0]  # torchvision's names
        # The library cuts the backbone into slices, in which layers keep their numbers.
        given = {re.sub(r"^slices?\.?\d+\.", "features.", name): name for name in self.net.net.state_dict()}
        load_weights(self.net.net, {given[name]: value for name, value in tensors.items() if name in given})

    def forward(self, images: Tensor, targets: Tensor, *, corrected: bool = False) -> Tensor:
        """(B,3,H,W) in [0, 1] to distances (B,).

        The network expects [-1, 1]; published numbers were made by feeding it [0, 1], which is the default here.
        """
        out: Tensor = self.net(images, targets, normalize=corrected)
        return out.flatten()


class ClipImages(nn.Module):
    """Unit embeddings of pictures by CLIP ViT-L/14, squashed to a square without antialiasing."""

    def __init__(self, model: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Pictures (3,H,W) in [0, 1], sizes may differ, to (B,D) of length 1."""
        side = self.model.config.image_size
        assert isinstance(side, int)
        squares = torch.stack([scaled(image, (side, side), "bicubic") for image in images])
        return F.normalize(self.model(normalized(squares, CLIP_MEAN, CLIP_STD)).image_embeds, dim=-1)


_CLIP_BLOCK = r"^visual\.transformer\.resblocks\.(\d+)\."
CLIP_RULES: list[Rule] = [
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (_CLIP_BLOCK + r"attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (_CLIP_BLOCK + r"ln_(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (_CLIP_BLOCK + r"mlp\.c_fc\.", r"vision_model.encoder.layers.\1.mlp.fc1."),
    (_CLIP_BLOCK + r"mlp\.c_proj\.", r"vision_model.encoder.layers.\1.mlp.fc2."),
]
"""OpenAI's names of the image tower -> those of transformers, once queries, keys and values are apart."""

VIT_L_14: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip


def clip_images(source: str | Path | dict[str, Tensor]) -> ClipImages:
    """CLIP's image tower from a folder of transformers, or from a file or a state-dict with OpenAI's names.

    Raises:
        ValueError: when the weights are of another network.
    """
    if not isinstance(source, dict) and Path(source).is_dir():
        model = CLIPVisionModelWithProjection.from_pretrained(source, local_files_only=True)
    else:
        tensors = source if isinstance(source, dict) else read_weights(source)[0]
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VIT_L_14))
        load_weights(model, _split(tensors), rules=CLIP_RULES, drop=[r"position_ids$"])
    return ClipImages(model.eval().requires_grad_(False))


def _split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower with one tensor each for queries, keys and values, and the projection as a linear layer."""
    apart = {}
    for name, value in tensors.items():
        if not name.startswith("visual."):
            continue
        if "in_proj_" in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                apart[name.replace("in_proj_", f"{part}_proj.")] = piece
        else:
            apart[name] = value.T if name == "visual.proj" else value
    return apart
