"""Weights of any known layout into our networks, with every tensor accounted for, and ours into the official layouts.

    python -m projects.lta_memvit.convert lta_slowfast_trf.ckpt lta_slowfast_trf.safetensors
    python -m projects.lta_memvit.convert MeMViT_16L_16x4_K400.pyth memvit16_k400.safetensors
    python -m projects.lta_memvit.convert runs/x/checkpoints/best.safetensors lta.ckpt --to lightning
    python -m projects.lta_memvit.convert runs/x/checkpoints/best.safetensors lta.pyth --to pyslowfast

Names inside a network are the official ones. A file is read without running anything of it; what the network is, how
many classes, inputs and future actions it has, is told by the shapes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core.checkpoint import LoadReport, load_weights, save_weights
from core.checkpoint.files import replacing
from core.nn import resize_positions
from projects.lta_memvit import model
from projects.lta_memvit.config import MemoryConfig, ModelConfig, Task
from projects.lta_memvit.model import Network
from projects.lta_memvit.official import Classes, Found, Source, identify, official_names, read

_MEMORY = r"\.attn\.(compress_|norm_compress_|rel_pos_mem_)"
_HEADS = (r"^backbone\.head\.", r"^clip_aggregator\.", r"^decoder\.")
_ANALYTIC = (r"\.pos_encoder\.pe$", r"\.num_batches_tracked$")  # may be in a file or not, and matter to no answer


@dataclass(frozen=True)
class Report:
    """What `load` did."""

    loaded: LoadReport
    adapted: tuple[str, ...]
    """Names whose values were made to fit: tables interpolated or lengthened, projections split or joined."""
    fresh: tuple[str, ...]
    """Names for memory that the file does not have, and that keep their random start values."""

    def __str__(self) -> str:
        text = str(self.loaded)
        if self.adapted:
            text += f"; {len(self.adapted)} made to fit ({', '.join(self.adapted[:3])}, ...)"
        if self.fresh:
            text += (
                f"; the file has no weights for memory: {len(self.fresh)} keep random start values "
                f"({', '.join(self.fresh[:3])}, ...), so train before you trust the memory, or set memory.mode=off"
            )
        return text


def load(net: Network, source: Source, *, head: bool = True) -> Report:
    """Put the weights of a file into a network; without `head`, those of its backbone below the last layer only.

    Where names or shapes do not fit, nothing is loaded. Tables of positions may have another length, `q`, `k` and `v`
    may be one layer or three, and a file may come without weights for memory.

    Raises: ValueError with the names, when weights are missing, of another shape or unknown, or of another backbone.
    """
    tensors, _, name = read(source)
    return _fill(net, tensors, name, head)


def _fill(net: Network, tensors: Mapping[str, Tensor], name: str, head: bool) -> Report:
    if not head:
        tensors = {key: value for key, value in tensors.items() if not any(re.match(p, key) for p in _HEADS)}
    tensors = {key: value for key, value in tensors.items() if not key.endswith(".pos_encoder.pe")}
    own = net.state_dict()
    fitted, adapted = fit(tensors, own)
    fresh = tuple(key for key in own if re.search(_MEMORY, key) and key not in fitted)
    permitted = [*_ANALYTIC, *((_MEMORY,) if fresh else ()), *(() if head else _HEADS)]
    # All or none of a block's memory: half of it would be a damaged file.
    if fresh and len(fresh) != sum(bool(re.search(_MEMORY, key)) for key in own):
        permitted.remove(_MEMORY)
    try:
        loaded = load_weights(net, fitted, allow_missing=permitted)
    except ValueError as error:
        text = str(error).replace("the given state-dict", name)
        raise ValueError(f"{text}\n  the file holds a {identify(tensors, name)}") from None
    net.forget()
    return Report(LoadReport(name, loaded.loaded, missing=loaded.missing), adapted, fresh)


def fit(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors in the shapes of `own` where a rule leads there, and the names that a rule changed."""
    fitted: dict[str, Tensor] = {}
    adapted: list[str] = []
    for name, value in _projections(tensors, own).items():
        target = own.get(name)
        changed = value if target is None else _resized(name, value, target)
        if name not in tensors or changed is not value:
            adapted.append(name)
        fitted[name] = changed
    return fitted, tuple(adapted)


def _projections(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`qkv` as `q`, `k`, `v`, or these as one, as the network has it."""
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if ".attn.qkv." in name and name not in own:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                result[name.replace(".qkv.", f".{part}.")] = piece
        elif (match := re.search(r"\.attn\.([qkv])\.", name)) and name not in own:
            fused = name.replace(match[0], ".attn.qkv.")
            parts = [tensors.get(name.replace(match[0], f".attn.{part}.")) for part in "qkv"]
            if fused in own and all(part is not None for part in parts):
                result[fused] = torch.cat([part for part in parts if part is not None])
            else:
                result[name] = value
        else:
            result[name] = value
    return result


def _resized(name: str, value: Tensor, target: Tensor) -> Tensor:
    """A table of positions for another number of them; anything else as it is."""
    if value.shape == target.shape or value.ndim != target.ndim or value.shape[-1] != target.shape[-1]:
        return value
    if re.search(r"\.rel_pos_(mem_)?[hw]$", name):
        return F.interpolate(value.T[None].float(), size=len(target), mode="linear")[0].T.to(value.dtype)
    if re.search(r"\.rel_pos_(mem_)?t$", name):  # as MeMViT's loader: the last row stands for what lies beyond
        return value[torch.arange(len(target)).clamp(max=len(value) - 1)]
    if name.endswith("pos_embed_temporal"):
        return resize_positions(value, (value.shape[1],), (target.shape[1],))
    if name.endswith("pos_embed_spatial"):
        old, new = (round(table.shape[1] ** 0.5) for table in (value, target))
        return resize_positions(value, (old, old), (new, new))
    return value


def open_network(
    source: Source,
    *,
    cfg: ModelConfig | None = None,
    memory: MemoryConfig | None = None,
    classes: Classes | None = None,
    future: int = 20,
    repeat: bool = False,
    frames: int | None = None,
    crop: int | None = None,
) -> tuple[Network, Found]:
    """The network that a file holds, with its weights, in eval mode.

    What shapes tell is taken from them, the rest from `cfg` and `memory`: causal attention, what memory attends to.
    `classes` tells verbs and nouns of a forecaster apart where they are not Ego4D's. With `repeat` a recognizer becomes
    the forecaster that repeats itself `future` times. `frames` and `crop` are for SlowFast, whose weights fit any.

    Raises: ValueError when the file holds no network of this project, or a classifier of something else.
    """
    tensors, about, name = read(source)
    known = about.get("classes")
    if classes is None and isinstance(known, Mapping):
        classes = len(known["verbs"]), len(known["nouns"])
    found = identify(tensors, name, classes)
    if found.kind == "classifier":
        raise ValueError(
            f"{name} holds a {found}: it knows neither verbs nor nouns; as model.init={name} it is a start for training"
        )
    if found.classes is None:
        raise ValueError(
            f"{name} holds a {found}: {found.outputs} classes are those of no version of Ego4D; say how many are verbs"
        )
    if repeat and found.kind == "forecaster":
        raise ValueError(f"{name} holds a {found}; model.aggregator=repeat takes a recognizer's weights")
    task: Task = "forecasting" if found.kind == "forecaster" or repeat else "recognition"
    net = model.build(
        _config(found, cfg or ModelConfig(), repeat),
        (memory or MemoryConfig()).model_copy(update={"length": found.length}),
        task=task,
        classes=found.classes,
        inputs=max(found.inputs, 1) if found.kind == "forecaster" else 1,
        future=found.future or future,
        frames=found.frames or frames or 32,
        crop=found.crop or crop or 224,
    )
    _fill(net, tensors, name, head=True)
    return net.eval(), found


def _config(found: Found, cfg: ModelConfig, repeat: bool) -> ModelConfig:
    """The settings of a network as its weights tell them."""
    told: dict[str, object] = {"backbone": found.backbone, "widen": found.widen}
    if found.kind == "forecaster":
        joins = "transformer" if found.transformer else "concat"
        if joins == "concat" and found.inputs == 1 and cfg.aggregator == "mean":
            joins = "mean"
        told |= {"width": found.width, "aggregator": joins, "layers": found.transformer or cfg.layers}
    elif repeat or cfg.aggregator == "repeat":
        told["aggregator"] = "repeat" if repeat else "concat"
    return cfg.model_copy(update=told)


def export(tensors: Mapping[str, Tensor], out: Path, layout: str) -> None:
    """Write the weights of a network as the official code would: a Lightning checkpoint, or one of PySlowFast.

    Raises: OSError when the file cannot be written.
    """
    named = official_names(tensors)
    content: dict[str, object] = {"model_state": named}
    if layout == "lightning":
        content = {"state_dict": {f"model.{name}": value for name, value in named.items()}, "hyper_parameters": {}}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        torch.save(content, temporary)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert a file and say what it was."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.lta_memvit.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a Lightning .ckpt, a PySlowFast .pyth, a Caffe2 .pkl, ours; or an address")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--to", choices=("ours", "lightning", "pyslowfast"), default="ours", help="see above")
    args = parser.parse_args(argv)
    try:
        tensors, about, name = read(args.source)
        found = identify(tensors, name)
        kept = {key: value for key, value in about.items() if key in ("classes", "clip", "model", "memory", "task")}
        if args.to == "ours":
            save_weights(tensors, args.out, {**kept, "backbone": found.backbone, "source": Path(name).name})
        else:
            export(tensors, args.out, args.to)
    except (ValueError, OSError) as error:
        sys.exit(f"convert: {error}")
    sys.stdout.write(f"{args.source}: {found}\n{args.out}: {len(tensors)} tensors\n")


if __name__ == "__main__":
    main()
