"""How much memory a training step takes, counted without running it: does a configuration fit its card?

Networks are built without memory (device "meta") and shown one pair; what autograd would keep is added up. Frozen
networks whose answers are cached are not there while the UNet learns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.lego import model
from projects.lego.config import Config
from projects.lego.model import Lego
from projects.lego.train import BLOCKS, freeze

FLOAT, HALF = 4, 2


def estimate(cfg: Config) -> dict[str, int]:
    """Bytes on each device of a training step that no other process shares, by what holds them, and `total`.

    Activations are counted in single precision, also where most are kept in half of it: an upper bound. What the
    allocator wastes and the convolutions' work space are not in it.
    """
    with torch.device("meta"):
        lego = model.build(cfg.model)
        vae = model.autoencoder(cfg.model)
    freeze(lego, train_conditioner=cfg.model.train_conditioner)
    lego.train()
    weights = sum(p.numel() for p in lego.parameters())
    learned = sum(p.numel() for p in lego.parameters() if p.requires_grad)
    kept, again = activations(lego, cfg)
    half = cfg.precision in ("auto", "bf16", "fp16")
    parts = {
        "weights": FLOAT * weights,
        "gradients": FLOAT * learned,
        "optimizer": 2 * FLOAT * learned,
        "average": FLOAT * weights if cfg.optim.ema else 0,
        "weights in half precision": HALF * weights if half else 0,
        "autoencoder": FLOAT * sum(p.numel() for p in vae.parameters()) if cfg.show.every else 0,
        "activations": cfg.loader.batch_size * kept,
        "recomputed block": cfg.loader.batch_size * again,
    }
    return parts | {"total": sum(parts.values())}


def activations(lego: Lego, cfg: Config) -> tuple[int, int]:
    """Bytes that the UNet keeps of one pair for the backward pass, and the most that a block recomputes, if any do."""
    height, width = (side // 2 ** (len(cfg.model.vae_levels) - 1) for side in cfg.data.size)
    latents = torch.zeros(1, model.LATENT_CHANNELS, height, width, device="meta")
    tokens = 77 + 256 * cfg.model.uses_image + 77 * cfg.model.uses_text
    context = torch.zeros(1, tokens, cfg.model.context, device="meta")
    inputs = (latents, torch.zeros(1, device="meta"), latents, context)
    kept, blocks = _kept(lego, inputs)
    if not cfg.model.checkpointing:
        return kept, 0
    lego.unet.enable_gradient_checkpointing()
    kept, _ = _kept(lego, inputs)
    lego.unet.disable_gradient_checkpointing()
    return kept, blocks


def _kept(lego: Lego, inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Bytes that autograd keeps of one forward pass, in all and at most in one block."""
    fixed = {id_of(tensor) for tensor in (*lego.parameters(), *lego.buffers())}
    found: dict[int, Tensor] = {}
    alone: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in fixed:
            found[id_of(tensor)] = tensor  # held, so that no storage's address is used twice
        return tensor

    def size() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    before: list[int] = []
    hooks = []
    for block in filter(lambda module: isinstance(module, BLOCKS), lego.modules()):
        hooks.append(block.register_forward_pre_hook(lambda *_: before.append(size())))
        hooks.append(block.register_forward_hook(lambda *_: alone.append(size() - before.pop())))
    fused = cast(Callable[..., Tensor], Fused.apply)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, **_: fused(q, k, v)),
    ):
        lego(*inputs)
    for hook in hooks:
        hook.remove()
    return size(), max(alone, default=0)


def id_of(tensor: Tensor) -> int:
    """What tells storages without memory apart."""
    found: int = tensor.untyped_storage()._cdata
    return found


class Fused(torch.autograd.Function):
    """Attention as the fused kernels keep it: its inputs and its output, never the weights of all pairs of tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, H, N, d), (B, H, M, d) twice -> (B, H, N, d)."""
        answer = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, answer)
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        """Never run."""
        return None, None, None


def describe(cfg: Config) -> str:
    """The estimate as lines of text."""
    return "\n".join(f"{name:<28}{size / 1e9:>8.2f} GB" for name, size in estimate(cfg).items() if size)
