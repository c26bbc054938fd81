"""Published weights under our names, and what network they belong to.

Read are Lightning checkpoints (Ego4D's lta_models), PySlowFast's .pyth (MeMViT's), Caffe2's .pkl and our safetensors.
Only tensors and plain data are taken from a file: objects in it become empty containers, and no code of it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from core.checkpoint import fetch, read_pickle, read_weights
from projects.lta_memvit.config import Backbone
from projects.lta_memvit.model.plan import PATCH_STRIDE, VARIANTS, Widen
from projects.lta_memvit.model.slowfast import SIZES

Kind = Literal["classifier", "recognizer", "forecaster"]
Classes = tuple[int, int]
Source = str | Path | Mapping[str, Tensor]

KNOWN_CLASSES: tuple[Classes, ...] = ((115, 478), (117, 521))
"""Verbs and nouns of Ego4D v1 and v2."""

CAFFE2 = (
    (r"^nonlocal_conv(\d+)_(\d+)_(theta|g|phi|out)_", r"s\1.pathway0_nonlocal\2.conv_\3_"),
    (r"^nonlocal_conv(\d+)_(\d+)_bn_", r"s\1.pathway0_nonlocal\2.bn_"),
    (r"^t_pool1_subsample_bn_", "s1_fuse.bn_"),
    (r"^t_pool1_subsample_", "s1_fuse.conv_f2s_"),
    (r"^t_res(\d+)_\d+_branch2c_bn_subsample_bn_", r"s\1_fuse.bn_"),
    (r"^t_res(\d+)_\d+_branch2c_bn_subsample_", r"s\1_fuse.conv_f2s_"),
    (r"^t_(?:res_)?conv1_bn_", "s1.pathway1_stem.bn_"),
    (r"^(?:res_)?conv1_bn_", "s1.pathway0_stem.bn_"),
    (r"^t_(?:res_)?conv1_", "s1.pathway1_stem.conv_"),
    (r"^(?:res_)?conv1_", "s1.pathway0_stem.conv_"),
    (r"^t_res(\d+)_(\d+)_branch(\d)([a-c])_", r"s\1.pathway1_res\2.branch\3.\4_"),
    (r"^t_res(\d+)_(\d+)_branch(\d)_", r"s\1.pathway1_res\2.branch\3_"),
    (r"^res(\d+)_(\d+)_branch(\d)([a-c])_", r"s\1.pathway0_res\2.branch\3.\4_"),
    (r"^res(\d+)_(\d+)_branch(\d)_", r"s\1.pathway0_res\2.branch\3_"),
    (r"^pred_", "head.projection_"),
    (r"bn_s$", "bn.weight"),
    (r"bn_b$", "bn.bias"),
    (r"bn_rm$", "bn.running_mean"),
    (r"bn_riv$", "bn.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)
"""Names of Caffe2's blobs -> names of PySlowFast, one rule after the other."""


def caffe2_name(blob: str) -> str | None:
    """PySlowFast's name of a blob; None for what the optimizer left."""
    if re.search(r"momentum|^lr$|_lr$|model_iter", blob):
        return None
    for pattern, replacement in CAFFE2:
        blob = re.sub(pattern, replacement, blob)
    return blob


@dataclass(frozen=True)
class Found:
    """What a file of weights turned out to hold."""

    backbone: Backbone
    kind: Kind
    """classifier: one linear layer, as of Kinetics; recognizer: one for verbs and one for nouns."""
    classes: Classes | None
    """Verbs and nouns; None for a classifier, and for a forecaster where only their sum is known."""
    outputs: int
    """Classes of a classifier, else verbs and nouns together."""
    future: int = 0
    width: int = 0
    joined: int = 0
    """Channels that a forecaster's decoder sees: `width` times the inputs where it concatenates."""
    transformer: int = 0
    """Layers of its transformer, if it has one."""
    widen: Widen = "attention"
    frames: int | None = None
    crop: int | None = None
    length: int = 3
    """MeMViT: segments attended at most, the present one included."""

    @property
    def inputs(self) -> int:
        """Segments that a concatenating forecaster sees."""
        return self.joined // self.width

    def __str__(self) -> str:
        many = f"{self.classes[0]} verbs, {self.classes[1]} nouns" if self.classes else f"{self.outputs} classes"
        if self.kind != "forecaster":
            return f"{self.backbone} {self.kind}, {many}"
        how = "transformer" if self.transformer else f"{self.inputs} inputs concatenated" if self.inputs > 1 else "mean"
        return f"{self.backbone} forecaster ({how}), {self.future} actions, {many}"


def read(source: Source) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The tensors of a file, an address or a state-dict by our names, what it says beside them, and its name.

    Raises: ValueError naming the file and the way out, when it cannot be read or is of none of these kinds.
    """
    if isinstance(source, Mapping):
        return our_names(source), {}, "the given weights"
    path = fetch(source)
    about: dict[str, Any] = {}
    if path.suffix == ".pkl":
        tensors = _caffe2(path)
    else:
        tensors, about = read_weights(path, allow="inert")
    return our_names(tensors, str(path)), about, str(path)


def _caffe2(path: Path) -> dict[str, Tensor]:
    content = read_pickle(path)
    blobs = content.get("blobs") if isinstance(content, Mapping) else None
    if not isinstance(blobs, Mapping):
        raise ValueError(f"{path}: expected a Caffe2 model, a pickle with a dict of arrays at `blobs`")
    named = {caffe2_name(str(blob)): value for blob, value in blobs.items()}
    return {name: torch.as_tensor(value) for name, value in named.items() if name is not None}


def our_names(tensors: Mapping[str, Tensor], source: str = "the given weights") -> dict[str, Tensor]:
    """Official names without their wrappers, and those of a network without a forecaster below `backbone`.

    The network for boxes, which detection on AVA needs and nothing here, is left out.

    Raises: ValueError when the names are of none of the networks.
    """
    names = {name: name for name in tensors}
    for prefix in ("module.", "model.", "module."):
        if sum(name.startswith(prefix) for name in names.values()) > len(names) // 2:
            names = {old: name.removeprefix(prefix) for old, name in names.items()}
    if not any(name.startswith(("backbone.", "decoder.")) for name in names.values()):
        names = {old: f"backbone.{name}" for old, name in names.items()}
    renamed = {name: tensors[old] for old, name in names.items() if not name.startswith("backbone.box_blocks.")}
    marks = (_SLOWFAST, _MVIT, "backbone.head.projection.weight")
    if not any(mark in renamed for mark in marks):
        raise ValueError(
            f"{source}: weights of neither SlowFast, MViT nor MeMViT; expected names such as "
            f"s1.pathway0_stem.conv.weight or blocks.0.attn.proj.weight, found {', '.join(list(tensors)[:3])}"
        )
    return renamed


_SLOWFAST = "backbone.s1.pathway0_stem.conv.weight"
_MVIT = "backbone.blocks.0.attn.proj.weight"
_VERB, _NOUN = "backbone.head.projections.0.weight", "backbone.head.projections.1.weight"


def identify(tensors: Mapping[str, Tensor], source: str = "the given weights", classes: Classes | None = None) -> Found:
    """Recognize a network by the names and shapes of its weights, as `read` gives them.

    The verbs and nouns of a forecaster are known together only: `classes` or those of Ego4D tell them apart.

    Raises: ValueError when the weights are of no network that we have.
    """
    facts: dict[str, Any] = {"backbone": _backbone(tensors, source), **_geometry(tensors)}
    future = sum(bool(re.fullmatch(r"decoder\.head\.projections\.\d+\.weight", name)) for name in tensors)
    if future:
        outputs, joined = tensors["decoder.head.projections.0.weight"].shape
        known = [pair for pair in (classes, *KNOWN_CLASSES) if pair and sum(pair) == outputs]
        layers = {name.split(".")[3] for name in tensors if name.startswith("clip_aggregator.encoder.layers.")}
        width = len(tensors["backbone.head.projection.weight"])
        return Found(
            kind="forecaster", classes=known[0] if known else None, outputs=outputs, future=future, width=width,
            joined=joined, transformer=len(layers), **facts,
        )  # fmt: skip
    if _VERB in tensors and _NOUN in tensors:
        pair = len(tensors[_VERB]), len(tensors[_NOUN])
        return Found(kind="recognizer", classes=pair, outputs=sum(pair), **facts)
    head = tensors.get("backbone.head.projection.weight")
    return Found(kind="classifier", classes=None, outputs=0 if head is None else len(head), **facts)


def _backbone(tensors: Mapping[str, Tensor], source: str) -> Backbone:
    names: dict[Backbone, object]
    found: object
    if _SLOWFAST in tensors:
        depths = tuple(_count(tensors, rf"backbone\.s{stage}\.pathway0_res(\d+)\.") for stage in range(2, 6))
        found = depths, len(tensors[_SLOWFAST])
        names = {name: (size.depths, size.width) for name, size in SIZES.items()}  # type: ignore[misc]
    elif _MVIT in tensors:
        family = "memvit" if "backbone.blocks.0.attn.rel_pos_t" in tensors else "mvit"
        depth, width = _count(tensors, r"backbone\.blocks\.(\d+)\."), tensors["backbone.cls_token"].shape[-1]
        found = family, depth, width
        names = {name: (name.split("_")[0], v.depth, v.width) for name, v in VARIANTS.items()}  # type: ignore[misc]
    else:
        return "none"
    fitting = [name for name, value in names.items() if value == found]
    if not fitting:
        raise ValueError(f"{source}: a network of no known size ({found}); known are {', '.join(names)}")
    return fitting[0]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number in a name."""
    found = (re.match(pattern, name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _geometry(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Frames, pixels, memory and the place of widening, as tables and layers tell them."""
    facts: dict[str, Any] = {}
    spatial, temporal = tensors.get("backbone.pos_embed_spatial"), tensors.get("backbone.pos_embed_temporal")
    if spatial is not None and temporal is not None:
        facts |= {"frames": temporal.shape[1] * PATCH_STRIDE[0], "crop": math.isqrt(spatial.shape[1]) * PATCH_STRIDE[1]}
    times, heights = (tensors.get(f"backbone.blocks.0.attn.rel_pos_{axis}") for axis in "th")
    if times is not None and heights is not None:
        steps = (len(times) + 1) // 2
        facts |= {"frames": steps * PATCH_STRIDE[0], "crop": (len(heights) + 1) // 2 * PATCH_STRIDE[1]}
        memory = tensors.get("backbone.blocks.0.attn.rel_pos_mem_t")
        facts |= {} if memory is None else {"length": (len(memory) + 1) // steps}
        inside = any(
            value.shape[0] != value.shape[1]
            for name, value in tensors.items()
            if re.fullmatch(r"backbone\.blocks\.\d+\.attn\.q\.weight", name)
        )
        facts["widen"] = "attention" if inside else "mlp"
    return facts


def official_names(tensors: Mapping[str, Tensor], names: Sequence[str] = ()) -> dict[str, Tensor]:
    """The way back: a network without a forecaster loses its `backbone`."""
    forecasts = any(name.startswith("decoder.") for name in tensors)
    chosen = names or list(tensors)
    return {name if forecasts else name.removeprefix("backbone."): tensors[name] for name in chosen}
