"""From noise to latents: two-way guidance and the solvers of the probability flow, as k-diffusion has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from core.data.order import randomness
from projects.lego.model import Lego, Schedule

Solver = Literal["euler_ancestral", "dpmpp_2m"]
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(latents (B, 4, h, w), sigma ()) -> the latents without noise, as the network believes."""
Noise = Callable[[], Tensor]
"""Fresh unit noise for all latents of a batch."""
PASSES = 3


def guide(both: Tensor, image: Tensor, none: Tensor, text_scale: float, image_scale: float) -> Tensor:
    """InstructPix2Pix's two-way guidance, on noise or on denoised latents alike: predictions given text and image, the
    image alone, nothing."""
    return none + text_scale * (both - image) + image_scale * (image - none)


def guided(
    predict: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, text_scale: float, image_scale: float
) -> Denoise:
    """Denoised latents under guidance; `predict` gives the noise of three passes (3B, 4, h, w) at times (3B,).

    The passes are: text and image, image, nothing. The network's input is scaled to unit variance.
    """

    def denoise(latents: Tensor, sigma: Tensor) -> Tensor:
        time = schedule.time(sigma).expand(PASSES * len(latents))
        scaled = latents * (sigma**2 + 1) ** -0.5
        noise = predict(scaled.repeat(PASSES, 1, 1, 1), time).float()
        both, image, none = (latents.repeat(PASSES, 1, 1, 1) - sigma * noise).chunk(PASSES)
        return guide(both, image, none, text_scale, image_scale)

    return denoise


def euler_ancestral(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
    """Euler steps that go below the next noise level and come back up with fresh noise (eta = 1).

    `latents` are unit noise times sigmas[0]; n levels and a final 0 take n calls and n - 1 draws of noise.
    """
    for number, (now, after) in enumerate(itertools.pairwise(sigmas), 1):
        slope = (latents - denoise(latents, now)) / now
        up = torch.minimum(after, (after**2 * (now**2 - after**2) / now**2) ** 0.5)
        down = (after**2 - up**2) ** 0.5
        latents = latents + slope * (down - now)
        if number < len(sigmas) - 1:
            latents = latents + noise() * up
    return latents


def dpmpp_2m(denoise: Denoise, latents: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Tensor:
    """DPM-Solver++(2M) in its form for noise levels: second order, no fresh noise, first order at both ends."""
    before: Tensor | None = None
    step_before = math.nan
    levels = sigmas.tolist()
    for number, (now, after) in enumerate(itertools.pairwise(levels)):
        found = denoise(latents, sigmas[number])
        if after == 0:
            return found
        step = math.log(now) - math.log(after)
        target = found
        if before is not None:
            share = step / (2 * step_before)
            target = (1 + share) * found - share * before
        latents = (after / now) * latents - math.expm1(-step) * target
        before, step_before = found, step
    return latents


SOLVERS = {"euler_ancestral": euler_ancestral, "dpmpp_2m": dpmpp_2m}


class SampleNoise:
    """Unit noise of a generator of its own for each sample, made of (seed, its name): the batch does not matter."""

    def __init__(self, seed: int, samples: Sequence[str], shape: Sequence[int], device: torch.device | str) -> None:
        self.shape, self.device = tuple(shape), device
        seeds = [randomness(seed, 0, name, "generate").getrandbits(63) for name in samples]
        self.generators = [torch.Generator().manual_seed(each) for each in seeds]

    def __call__(self) -> Tensor:
        """(B, *shape) on the device, the next of each sample."""
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(rows).to(self.device)


@torch.inference_mode()
def sample(
    lego: Lego,
    schedule: Schedule,
    *,
    source: Tensor,
    context: Tensor,
    null: Tensor,
    noise: Noise,
    steps: int = 100,
    solver: Solver = "euler_ancestral",
    text_scale: float = 7.5,
    image_scale: float = 1.5,
    shortcut: bool = True,
) -> Tensor:
    """Scaled latents (B, 4, h, w) of the target frames.

    `source` (B, 4, h, w) are the modes of the source frames, `context` (B, N, D) the conditions, `null` (1, N, D) those
    of an unconditional pass. With `shortcut` keys and values of the conditions are computed once for all steps.
    """
    sigmas = schedule.sigmas(steps)
    sources = torch.cat([source, source, torch.zeros_like(source)])
    contexts = torch.cat([context, null.expand(2 * len(context), -1, -1)])

    def predict(latents: Tensor, times: Tensor) -> Tensor:
        predicted: Tensor = lego(latents, times, sources, contexts)
        return predicted

    denoise = guided(predict, schedule, text_scale, image_scale)
    start = noise() * sigmas[0]
    if not shortcut:
        return SOLVERS[solver](denoise, start, sigmas, noise)
    with remembered(lego.unet, context, null):
        return SOLVERS[solver](denoise, start, sigmas, noise)


# --------------------------------------------------------------------------------- conditions are the same at all steps


@contextmanager
def remembered(unet: UNet2DConditionModel, context: Tensor, null: Tensor) -> Iterator[None]:
    """Inside, the UNet's three passes attend to these conditions, whose keys and values are computed once.

    `to_k` and `to_v` have no bias, so the zero tokens at the end of `null` all have zero keys and values: n of them act
    as one whose logit is ln n higher. Two of the three passes then attend to 78 tokens in place of 410, exactly.
    """
    before = unet.attn_processors
    real = int(null[0].abs().sum(-1).nonzero().max()) + 1
    zeros = null.shape[1] - real
    short = null[:, : real + 1] if zeros else null
    processors: dict[str, Any] = {}
    for name, processor in before.items():
        layer = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = _Remembering(layer, context, short, zeros) if ".attn2" in name else processor
    unet.set_attn_processor(processors)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


class _Remembering:
    """Cross-attention to conditions that never change: a third of the batch to `context`, the rest to `null`."""

    def __init__(self, layer: Attention, context: Tensor, null: Tensor, zeros: int) -> None:
        self.context = self._keys_and_values(layer, context)
        self.null = self._keys_and_values(layer, null)
        self.bias: Tensor | None = None
        if zeros:
            self.bias = torch.zeros(1, 1, 1, null.shape[1], device=null.device, dtype=self.null[0].dtype)
            self.bias[..., -1] = math.log(zeros)

    @staticmethod
    def _keys_and_values(layer: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, heads, N, d)."""
        key, value = (
            map_to(tokens).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for map_to in (layer.to_k, layer.to_v)
        )
        return key, value

    def __call__(self, layer: Attention, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        query = layer.to_q(hidden_states).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        given, nothing = query.tensor_split([len(query) // PASSES])
        key, value = (each.expand(len(nothing), -1, -1, -1) for each in self.null)
        answers = [
            F.scaled_dot_product_attention(given, *self.context),
            F.scaled_dot_product_attention(nothing, key, value, attn_mask=self.bias),
        ]
        output: Tensor = layer.to_out[0](torch.cat(answers).transpose(1, 2).flatten(2))
        return output
