"""BLIP captions of generated pictures (Li et al., ICML 2022), through transformers, from the official files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

from core.checkpoint import Rule, load_weights
from projects.lego.metrics.pixels import CLIP_MEAN, CLIP_STD, floats, normalized

PROMPT = "a picture of"
SIDE = 384
START = 30522  # [DEC], the token that tells the decoder to write

RULES: list[Rule] = [
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
]
"""Official names -> those of transformers; the text decoder's are the same."""

Size = Literal["base", "large"]


def config(size: Size) -> BlipConfig:
    """The published captioners. Layer norms of the image tower use 1e-6, where transformers would take 1e-5."""
    vision: dict[str, Any] = {"image_size": SIDE, "patch_size": 16, "layer_norm_eps": 1e-6}
    if size == "large":
        vision |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    width = vision.get("hidden_size", 768)
    text = BlipTextConfig(vocab_size=30524, hidden_size=768, encoder_hidden_size=width, num_attention_heads=12)
    return BlipConfig(vision_config=BlipVisionConfig(**vision).to_dict(), text_config=text.to_dict())


def captioner(source: str | Path | dict[str, Tensor], size: Size) -> BlipForConditionalGeneration:
    """The captioner of an official file (or its tensors), or of a folder of transformers; ready to write.

    Raises:
        ValueError: when the file holds another network.
    """
    if not isinstance(source, dict) and Path(source).is_dir():
        model = BlipForConditionalGeneration.from_pretrained(source, local_files_only=True)
    else:
        model = BlipForConditionalGeneration(config(size))
        load_weights(model, source, rules=RULES, drop=[r"position_ids$"])
    return model.eval().requires_grad_(False)


class Captions(nn.Module):
    """Writes one caption per picture: beam search of width 3, at most 20 tokens and at least 5, after the prompt.

    The published numbers were made with drop-out left on, hence are noisy; here the network is in evaluation mode.
    """

    def __init__(self, model: BlipForConditionalGeneration, tokenizer: str | Path) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)

    def forward(self, images: Sequence[Tensor]) -> list[str]:
        """uint8 (H,W,3) pictures to captions without the prompt (a leading blank stays, as published)."""
        device = next(self.model.parameters()).device
        pixels = torch.stack([seen(image) for image in images]).to(device)
        prompt = self.tokenizer(PROMPT).input_ids[1:-1]
        given = torch.tensor([[START, *prompt]], device=device).expand(len(images), -1)
        states = self.model.vision_model(pixels).last_hidden_state
        written = self.model.text_decoder.generate(
            input_ids=given,
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=device),
            num_beams=3, max_length=20, min_length=5, do_sample=False, repetition_penalty=1.0,
            bos_token_id=START, eos_token_id=self.tokenizer.sep_token_id, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        return [self.tokenizer.decode(ids[1:], skip_special_tokens=True)[len(PROMPT) :] for ids in written]


def seen(image: Tensor) -> Tensor:
    """uint8 (H,W,3) to what BLIP sees (3,384,384): squashed to a square by Pillow's bicubic filter, normalized."""
    picture = Image.fromarray(image.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return normalized(floats(torch.from_numpy(np.array(picture))), CLIP_MEAN, CLIP_STD)
