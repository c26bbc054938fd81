"""The networks: Lego (UNet and conditioning), the autoencoder and the text encoder of Stable Diffusion."""

from __future__ import annotations

from diffusers import AutoencoderKL

from projects.lego.config import ModelConfig
from projects.lego.model.conditioner import Condition, Conditioner
from projects.lego.model.diffusion import LATENT_CHANNELS, Lego, build_vae, decode, encode, posterior_sample
from projects.lego.model.schedule import Schedule
from projects.lego.model.text import TextEncoder

__all__ = [
    "LATENT_CHANNELS", "Condition", "Conditioner", "Lego", "Schedule", "TextEncoder", "autoencoder", "build", "decode",
    "encode", "posterior_sample", "text_encoder",
]  # fmt: skip


def build(cfg: ModelConfig) -> Lego:
    """UNet and conditioning with fresh weights."""
    return Lego(
        width=cfg.width, levels=cfg.levels, blocks=cfg.blocks, heads=cfg.heads, groups=cfg.groups,
        context=cfg.context, feature_width=cfg.feature_width, image=cfg.uses_image, text=cfg.uses_text,
        dropout=cfg.dropout,
    )  # fmt: skip


def autoencoder(cfg: ModelConfig) -> AutoencoderKL:
    """The autoencoder with fresh weights."""
    return build_vae(cfg.vae_width, cfg.vae_levels, cfg.vae_groups)


def text_encoder(cfg: ModelConfig, tokenizer: str = "") -> TextEncoder:
    """The text encoder with fresh weights; `tokenizer` goes before the configured one."""
    return TextEncoder(
        width=cfg.context, layers=cfg.text_layers, heads=cfg.text_heads, vocabulary=cfg.vocabulary,
        tokenizer=tokenizer or cfg.tokenizer,
    )  # fmt: skip
