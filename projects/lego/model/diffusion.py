"""The networks of latent diffusion: LEGO's UNet with its conditioning, and Stable Diffusion's autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from projects.lego.model.conditioner import Condition, Conditioner

LATENT_CHANNELS = 4


class Lego(nn.Module):
    """Predicts the noise in the latents of the target frame, given the source frame's latents and the conditions.

    The UNet is Stable Diffusion's with the source latents as four more input channels (InstructPix2Pix). In parity
    mode only the UNet learns: the reference's optimizer never saw the conditioning.
    """

    def __init__(
        self,
        *,
        width: int = 320,
        levels: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        heads: int = 8,
        groups: int = 32,
        context: int = 768,
        feature_width: int = 5120,
        image: bool = True,
        text: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        attending = len(levels) - 1  # all levels but the lowest attend to the conditions
        self.unet = UNet2DConditionModel(
            in_channels=2 * LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=tuple(width * level for level in levels),
            down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
            layers_per_block=blocks,
            cross_attention_dim=context,
            norm_num_groups=groups,
            attention_head_dim=heads,  # diffusers' name for the number of heads
        )
        self.conditioner = Conditioner(feature_width, context, image=image, text=text, dropout=dropout)

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        source: Tensor,
        condition: Condition | Tensor,
        dropped: Tensor | None = None,
        null: Tensor | None = None,
    ) -> Tensor:
        """Noise (B, 4, h, w) in `noisy` (B, 4, h, w) at `timesteps` (B,), which may be fractional.

        `source` (B, 4, h, w) is the mode of the source frame's latents, not scaled. `condition` may also be the tokens
        (B, N, D) that the conditioner made of it; `dropped` and `null` are for the conditioner.
        """
        context = condition if isinstance(condition, Tensor) else self.conditioner(condition, dropped, null)
        noise: Tensor = self.unet(torch.cat([noisy, source], 1), timesteps, context, return_dict=False)[0]
        return noise


def build_vae(width: int = 128, levels: Sequence[int] = (1, 2, 4, 4), groups: int = 32) -> AutoencoderKL:
    """Stable Diffusion's autoencoder, frozen; its stride is 2 to the power of the levels but one."""
    vae = AutoencoderKL(
        block_out_channels=tuple(width * level for level in levels),
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        layers_per_block=2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=groups,
    )
    vae.requires_grad_(False).eval()
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Moments of the latents, (B, 8, h, w): mean and log-variance (in [-30, 20]) of images (B, 3, H, W) in [-1, 1]."""
    found = vae.encode(images).latent_dist
    return torch.cat([found.mean, found.logvar], 1)


def posterior_sample(moments: Tensor, noise: Tensor) -> Tensor:
    """A sample (B, 4, h, w) of the latents whose moments `encode` gave."""
    mean, logvar = moments.chunk(2, 1)
    return mean + (0.5 * logvar).exp() * noise


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, scale_factor: float = 0.18215) -> Tensor:
    """Images (B, 3, H, W), about in [-1, 1] and not clamped, of scaled latents (B, 4, h, w)."""
    images: Tensor = vae.decode(latents / scale_factor, return_dict=False)[0]
    return images
