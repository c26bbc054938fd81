"""The networks: SlowFast, MViT and MeMViT as recognizers and as backbones of forecasters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from projects.lta_memvit.config import MemoryConfig, ModelConfig, Task
from projects.lta_memvit.model.aggregators import Concat, Mean, Transformer
from projects.lta_memvit.model.heads import Outputs, Projection, Projections
from projects.lta_memvit.model.memory import BatchMemory, ClipMemory, Memory, Reach
from projects.lta_memvit.model.memvit import MeMViT
from projects.lta_memvit.model.mvit import MViT
from projects.lta_memvit.model.networks import Backbone, Forecaster, Given, Network, Place, Recognizer, Repeat
from projects.lta_memvit.model.plan import VARIANTS
from projects.lta_memvit.model.slowfast import SIZES, SlowFast, pack

__all__ = [
    "SIZES",
    "VARIANTS",
    "Backbone",
    "Forecaster",
    "Given",
    "MViT",
    "MeMViT",
    "Memory",
    "Network",
    "Outputs",
    "Place",
    "Recognizer",
    "Repeat",
    "SlowFast",
    "build",
    "freeze",
    "pack",
    "streams",
    "train",
]


def build(
    cfg: ModelConfig,
    memory: MemoryConfig,
    *,
    task: Task,
    classes: tuple[int, int],
    inputs: int = 1,
    future: int = 20,
    frames: int = 16,
    crop: int = 224,
) -> Network:
    """A network with fresh weights for clips of `frames` frames of `crop` pixels, and so many verbs and nouns.

    Raises: ValueError when a repeating baseline is asked to recognize, or precomputed features are.
    """
    repeats = cfg.aggregator == "repeat"
    if task == "recognition" and repeats:
        raise ValueError("model.aggregator=repeat is a forecaster; set task=forecasting")
    if cfg.backbone == "none" and (task == "recognition" or repeats):
        raise ValueError("model.backbone=none has features and no clips; it forecasts with concat, mean or transformer")
    trunk_width = _trunk_width(cfg)
    if task == "recognition" or repeats:
        backbone = _backbone(cfg, memory, Projections(trunk_width, classes, cfg.dropout), frames, crop)
        return Repeat(backbone, future) if repeats else Recognizer(backbone, softmax_head=cfg.softmax_head)

    width = cfg.width or (2048 if cfg.backbone in ("slowfast_r101", "slowfast_r50") else trunk_width)
    backbone = _backbone(cfg, memory, Projection(trunk_width, width, cfg.dropout), frames, crop)
    aggregator: nn.Module
    if cfg.aggregator == "transformer":
        aggregator = Transformer(width, cfg.heads, cfg.layers)
    else:
        aggregator = Concat() if cfg.aggregator == "concat" else Mean()
    joined = width * inputs if cfg.aggregator == "concat" else width
    decoder = Projections(joined, [sum(classes)] * future, cfg.dropout)
    return Forecaster(backbone, aggregator, decoder, classes[0])


def _trunk_width(cfg: ModelConfig) -> int:
    """Channels of what the backbone's head sees."""
    if cfg.backbone == "none":
        return cfg.feature_size
    if cfg.backbone in SIZES:
        return 36 * SIZES[cfg.backbone].width
    variant = VARIANTS[cfg.backbone]
    return variant.width << len(variant.steps)


def _backbone(cfg: ModelConfig, memory: MemoryConfig, head: nn.Module, frames: int, crop: int) -> Backbone:
    if cfg.backbone == "none":
        return Given(cfg.feature_size, head)
    if cfg.backbone in SIZES:
        return SlowFast(SIZES[cfg.backbone], crop=crop, head=head)
    variant = VARIANTS[cfg.backbone]
    if cfg.backbone.startswith("mvit"):
        return MViT(variant, frames=frames, crop=crop, head=head, drop_path=cfg.drop_path, recompute=cfg.recompute)
    reach = Reach.of(memory.sampler, memory.length)
    kept: dict[str, Memory | None] = {"clip": ClipMemory(reach), "reference": BatchMemory(reach), "off": None}
    return MeMViT(
        variant,
        frames=frames,
        crop=crop,
        head=head,
        widen=cfg.widen,
        causal=cfg.causal,
        drop_path=cfg.drop_path,
        memory=kept[memory.mode],
        length=memory.length,
        recompute=cfg.recompute,
    )


def streams(batch: Mapping[str, Any], memory: MemoryConfig, *, train: bool = False) -> list[Place] | None:
    """Where the samples of a batch belong, by their `stream` (clip, place) and `id`; None where nothing is remembered.

    In training a row of the batch walks through a run of its own, and two runs may pass through one clip: there a
    stream is a clip in a row.
    """
    if memory.mode == "off":
        return None
    places: Sequence[tuple[str, int]] = batch["stream"]
    if memory.mode == "reference":
        names = batch["id"] if memory.key == "sample" else [clip for clip, _ in places]
        return [Place(name, position) for name, (_, position) in zip(names, places, strict=True)]
    if train:
        return [Place((row, clip), position) for row, (clip, position) in enumerate(places)]
    return [Place(clip, position) for clip, position in places]


def freeze(net: Network) -> Network:
    """Let only the backbone's head and what follows it learn."""
    net.backbone.requires_grad_(False)
    net.backbone.head.requires_grad_(True)
    return net


def train(net: Network, cfg: ModelConfig) -> Network:
    """Training mode, to be set at the start of every epoch.

    A frozen backbone stays in eval mode, unless `cfg.frozen` is "reference": it then drops paths, and its batch norms
    use and move batch statistics, as in the original.
    """
    net.train()
    if cfg.freeze and cfg.frozen == "eval":
        net.backbone.eval()
        net.backbone.head.train()
    return net
