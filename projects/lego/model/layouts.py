"""Files of weights as others write them, read into our networks and written again.

Three layouts: CompVis checkpoints (Stable Diffusion, InstructPix2Pix, official LEGO), folders of diffusers, and our own
safetensors. Foreign pickles are read without running them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from core.checkpoint import LoadReport, fetch, load_weights, read_weights
from projects.lego.model import names
from projects.lego.model.conditioner import Conditioner
from projects.lego.model.diffusion import Lego
from projects.lego.model.schedule import Schedule
from projects.lego.model.text import TextEncoder

Weights = dict[str, Tensor]

FOLDERS = ("unet", "vae", "text_encoder", "conditioner")
_OWN = {"parts.model", "parts.step.average"}
FILES = ("diffusion_pytorch_model", "model", "pytorch_model")


@dataclass
class Parts:
    """What a file or folder holds, network by network, in its own names without their prefix."""

    source: Path
    layout: Literal["compvis", "diffusers", "ours"]
    unet: Weights = field(default_factory=dict)
    average: Weights = field(default_factory=dict)
    """The moving average of the UNet, under the names of `unet`."""
    vae: Weights = field(default_factory=dict)
    text: Weights = field(default_factory=dict)
    conditioner: Weights = field(default_factory=dict)
    average_conditioner: Weights = field(default_factory=dict)
    """The moving average of the conditioning, which only our own checkpoints have."""
    tokenizer: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    updates: int = 0
    """How often the moving average was updated."""

    def __str__(self) -> str:
        kinds = ("unet", "average", "conditioner", "vae", "text")
        counts = ", ".join(f"{kind} {len(getattr(self, kind))}" for kind in kinds if getattr(self, kind))
        return f"{self.source} ({self.layout}: {counts or 'nothing known'})"


def read(source: str | Path) -> Parts:
    """Open weights of any of the layouts.

    Raises: ValueError when there are none, or nothing in them is a network of Stable Diffusion's kind.
    """
    path = Path(source).expanduser()
    parts = _read_folder(path) if path.is_dir() else _read_file(fetch(source))
    if not (parts.unet or parts.vae or parts.text or parts.conditioner):
        raise ValueError(
            f"{parts.source}: no weights of Stable Diffusion, InstructPix2Pix or LEGO; expected names like "
            f"{names.UNET}input_blocks.0.0.weight (CompVis), folders unet/ and vae/ (diffusers), or unet.conv_in.weight"
        )
    return parts


def _read_file(path: Path) -> Parts:
    tensors, about = read_weights(path, allow="inert", mapped=True)
    places = {about.get("key"), *about.get("others", ())}
    if not {"parts.model", "parts.step.average"} <= places:
        return split(tensors, path, about)
    # A checkpoint of a run: raw weights, and their average beside the optimizer.
    parts, average = (split(read_weights(path, key, mapped=True)[0], path, about) for key in sorted(places & _OWN))
    parts.average, parts.average_conditioner = average.unet, average.conditioner
    parts.updates = int(torch.load(path, weights_only=True, mmap=True)["parts"]["step"]["averaged"])
    return parts


def split(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, Any] | None = None) -> Parts:
    """The networks in one state-dict, ours or CompVis; `path` is for messages.

    Raises: ValueError when a moving average is there in part only.
    """
    about = dict(about or {})
    if "unet.conv_in.weight" in tensors:
        return Parts(
            path, "ours", unet=_below(tensors, "unet."), conditioner=_below(tensors, "conditioner."), about=about
        )
    parts = Parts(path, "compvis", about=about)
    parts.unet, parts.vae = _below(tensors, names.UNET), _below(tensors, names.VAE)
    parts.text = _plain_text(_below(tensors, names.TEXT))
    parts.conditioner = {name: value for name, value in tensors.items() if name.startswith(names.CONDITIONER)}
    stored = {name: tensors[names.averaged(name)] for name in parts.unet if names.averaged(name) in tensors}
    if stored and len(stored) < len(parts.unet):
        lacking = [name for name in parts.unet if name not in stored]
        raise ValueError(f"{path}: its moving average lacks {len(lacking)} weights of the UNet, {lacking[0]} for one")
    parts.average = stored
    parts.updates = int(tensors.get(names.AVERAGE + "num_updates", torch.tensor(0)))
    return parts


def _read_folder(path: Path) -> Parts:
    found = {kind: _folder_weights(path / kind) for kind in FOLDERS if (path / kind).is_dir()}
    vae: Weights = {}
    for name, value in found.get("vae", {}).items():
        for pattern, text in names.OLD_DIFFUSERS:
            assert isinstance(text, str)
            name = re.sub(pattern, text, name)
        vae[name] = value
    text_encoder = _plain_text(found.get("text_encoder", {}))
    tokenizer = path / "tokenizer" if (path / "tokenizer").is_dir() else None
    return Parts(
        path, "diffusers", unet=found.get("unet", {}), vae=vae, text=text_encoder,
        conditioner=found.get("conditioner", {}), tokenizer=tokenizer,
    )  # fmt: skip


def _folder_weights(folder: Path) -> Weights:
    """The weights of one network in a folder of diffusers: one file, or shards with an index; safetensors first.

    Raises: ValueError for a folder without any, or whose index names a file that is not there.
    """
    for suffix in ("safetensors", "bin"):
        for name in FILES:
            index = folder / f"{name}.{suffix}.index.json"
            if index.is_file():
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                if absent := [file for file in files if not (folder / file).is_file()]:
                    raise ValueError(f"{index}: names {', '.join(absent)}, which are not there; get the folder again")
                shards = [read_weights(folder / file, allow="inert", mapped=True)[0] for file in files]
                return {key: value for shard in shards for key, value in shard.items()}
            for path in (folder / f"{name}.{suffix}", folder / f"{name}.fp16.{suffix}"):
                if path.is_file():
                    return read_weights(path, allow="inert", mapped=True)[0]
    raise ValueError(f"{folder}: no weights; expected {FILES[0]}.safetensors or {FILES[1]}.safetensors in it")


def _plain_text(tensors: Weights) -> Weights:
    """The text encoder's weights under the names of today's class: one level less, and no table of positions."""
    return {
        name.removeprefix("text_model."): value for name, value in tensors.items() if not name.endswith("position_ids")
    }


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------------------------ into networks


def load_unet(lego: Lego, parts: Parts, *, average: bool = False, blocks: int = 2) -> LoadReport:
    """Put the UNet's weights, or their moving average, into a network; four input channels become eight by zeros.

    InstructPix2Pix starts so: at first the source frame changes nothing.

    Raises: ValueError when there is no such UNet in `parts`, or it is another network.
    """
    weights = parts.average if average else parts.unet
    if not weights:
        raise ValueError(f"{parts.source}: has no {'moving average of a UNet' if average else 'UNet'}")
    known = names.table(lego.unet.state_dict(), lambda name: names.compvis_unet(name, blocks))
    first = "input_blocks.0.0.weight" if parts.layout == "compvis" else "conv_in.weight"
    widened = dict(weights)
    if first in widened:
        widened[first] = _widened(widened[first], lego.unet.conv_in.in_channels)
    rules = names.rules(known) if parts.layout == "compvis" else ()
    return _load(lego.unet, widened, parts, rules)


def _widened(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (O, I, 3, 3) with zeros for the input channels it lacks."""
    lacking = max(channels - weight.shape[1], 0)
    return torch.cat([weight, weight.new_zeros(weight.shape[0], lacking, *weight.shape[2:])], 1)


def load_vae(vae: AutoencoderKL, parts: Parts) -> LoadReport:
    """Put the autoencoder's weights into a network. Raises: ValueError when there are none, or of another network."""
    if not parts.vae:
        raise ValueError(f"{parts.source}: has no autoencoder; model.init should name Stable Diffusion 1.5")
    known = names.table(vae.state_dict(), lambda name: names.compvis_vae(name, len(vae.config.block_out_channels)))
    return _load(vae, parts.vae, parts, names.rules(known) if parts.layout == "compvis" else ())


def load_text(text: TextEncoder, parts: Parts) -> LoadReport:
    """Put the text encoder's weights into a network. Raises: ValueError when there are none, or of another network."""
    if not parts.text:
        raise ValueError(f"{parts.source}: has no text encoder; model.init should name Stable Diffusion 1.5")
    return _load(text.model, parts.text, parts, ())


def load_conditioner(conditioner: Conditioner, parts: Parts, *, average: bool = False) -> LoadReport:
    """Put the conditioning, or its moving average where there is one, into a network.

    Modules of the file that an ablation does without are left out.

    Raises: ValueError when any weight that the network has is missing: a wrong file must not load silently.
    """
    wanted = {name.split(".")[0] for name in conditioner.state_dict()}
    extra = [rf"^{prefix[:-1]}\." for prefix in names.CONDITIONER if prefix[:-1] not in wanted]
    weights = parts.average_conditioner if average and parts.average_conditioner else parts.conditioner
    return _load(conditioner, weights, parts, (), extra)


def _load(net: nn.Module, weights: Weights, parts: Parts, rules: Any, drop: Any = ()) -> LoadReport:
    try:
        report = load_weights(net, weights, rules=rules, drop=drop)
    except ValueError as error:
        raise ValueError(f"{parts.source}: {str(error).replace('the given state-dict', parts.source.name)}") from None
    return replace(report, source=str(parts.source))


# --------------------------------------------------------------------------------------------------------- out of them


def official_state(
    lego: Lego,
    *,
    average: Lego | None,
    vae: AutoencoderKL,
    text: TextEncoder,
    schedule: Schedule,
    blocks: int = 2,
    decay: float = 0.9999,
    updates: int = 0,
) -> Weights:
    """The state-dict of an official LEGO checkpoint: 1859 entries at the official size, 1171 without an average.

    The reference keeps no moving average of the conditioning; where ours was trained, its average is written in place
    of the raw weights, since that is what generation uses.
    """
    state: Weights = {name: getattr(schedule, name) for name in Schedule.NAMES}
    raw = {names.compvis_unet(name, blocks): value for name, value in lego.unet.state_dict().items()}
    state |= {names.UNET + name: value for name, value in raw.items()}
    if average is not None:
        state[names.AVERAGE + "decay"] = torch.tensor(decay, dtype=torch.float32)
        state[names.AVERAGE + "num_updates"] = torch.tensor(updates, dtype=torch.int32)
        mean = {names.compvis_unet(name, blocks): value for name, value in average.unet.state_dict().items()}
        state |= {names.averaged(name): value for name, value in mean.items()}
    levels = len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        compvis = names.compvis_vae(name, levels)
        state[names.VAE + compvis] = value[..., None, None] if names.is_pointwise(compvis) else value
    tokens = text.model.config.max_position_embeddings
    state[names.TEXT + "text_model.embeddings.position_ids"] = torch.arange(tokens)[None]
    state |= {f"{names.TEXT}text_model.{name}": value for name, value in text.model.state_dict().items()}
    return state | dict((average or lego).conditioner.state_dict())
