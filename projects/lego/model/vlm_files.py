"""Folders of language models: opened in LLaVA's own layout and in that of transformers, LoRA parts merged; saved.

Tensors go into the network file by file, so that a 26 GB model needs little more than its own memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.checkpoint import read_weights, write_atomic
from core.checkpoint.files import replacing
from projects.lego.model.vision import Vision
from projects.lego.model.vlm import Vlm

RULES = (
    (r"^(module|base_model\.model)\.", ""),
    (r"^model\.language_model\.|^language_model\.model\.", "language.model."),  # transformers, new and old
    (r"^language_model\.lm_head\.|^lm_head\.", "language.lm_head."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "projector.first."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "projector.2."),
    (r"^(model\.)?mm_projector\.0\.", "projector.first."),  # LLaVA
    (r"^(model\.)?mm_projector\.2\.", "projector.2."),
    (r"^(model\.)?mm_projector\.(?=weight|bias)", "projector.first."),
    (r"^(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision.tower."),
    (r"^vision_model\.", "vision.tower."),  # a folder of CLIP alone
    (r"^model\.(?=embed_tokens|layers|norm\.)", "language.model."),
)
IGNORED = r"rotary_emb\.inv_freq$|position_ids$|^logit_scale$|^text_model\.|^text_projection\.|^visual_projection\."
MEMO = "lego.json"  # our own config, beside that of transformers
ADAPTER, OTHERS, PROJECTOR = "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin"
LORA = r"(.*)\.lora_([AB])(?:\.default)?\.weight$"


@dataclass
class VlmReport:
    """What was found where."""

    folder: Path
    layout: str
    loaded: int = 0
    ignored: list[str] = field(default_factory=list)
    vision: str = ""
    merged: int = 0

    def __str__(self) -> str:
        parts = [f"loaded {self.loaded} tensors from {self.folder} ({self.layout})"]
        parts += [f"image tower from {self.vision}"] if self.vision else []
        parts += [f"merged {self.merged} LoRA pairs"] if self.merged else []
        parts += [f"{len(self.ignored)} ignored ({', '.join(self.ignored[:3])})"] if self.ignored else []
        return ", ".join(parts)


def open_vlm(
    folder: str | Path, *, vision: str | Path = "", dtype: torch.dtype | None = None, empty: bool = False
) -> tuple[Vlm, VlmReport]:
    """The network of a folder, in eval mode; with `empty` its structure alone, on the meta device.

    Layouts: LLaVA's own (`model.mm_projector`, `model.layers`), transformers' LLaVA, ours; and parts that go on top of
    a base model: LoRA pairs (`adapter_config.json`), which are merged, with `non_lora_trainables.bin`, or a projector
    alone (`mm_projector.bin`). LLaVA's own may leave out the image tower: `vision` is then the folder of CLIP.

    Raises:
        ValueError: naming what is missing, unexpected or of another shape.
    """
    folder = _folder(folder)
    net, report, sources = _structure(folder, vision)
    if empty:
        return net.to(dtype).eval(), report
    pairs: dict[str, dict[str, Tensor]] = {}
    for source in sources:
        for tensors in _shards(source):
            whole = {}
            for name, value in tensors.items():
                if match := re.match(LORA, name):
                    pairs.setdefault(match[1], {})[match[2]] = value
                else:
                    whole[name] = value
            _fill(net, whole, report, dtype)
    absent = _absent(net)
    if absent and all(name.startswith("vision.") for name in absent) and vision:
        report.vision = str(vision)
        for tensors in _shards(Path(vision)):
            towers = {name: value for name, value in tensors.items() if "vision_model." in name}
            _fill(net, towers or tensors, report, dtype)
        absent = _absent(net)
    if absent:
        hint = "; name the folder of CLIP with vision=FOLDER" if absent[0].startswith("vision.") else ""
        raise ValueError(f"{folder}: {len(absent)} weights are missing, such as {', '.join(absent[:3])}{hint}")
    if pairs:
        _merge(net, pairs, _json(folder / ADAPTER))
        report.merged = len(pairs)
    net.language.tie_weights()
    return net.eval(), report


def open_vision(folder: str | Path, *, vision: str | Path = "") -> tuple[Vision, nn.Module]:
    """The image tower and the projector of a folder; its language model is not read."""
    folder = _folder(folder)
    net, report, sources = _structure(folder, vision)
    net.language = nn.Module()
    for source in sources:
        for tensors in _shards(source, "vision|projector"):
            _fill(net, tensors, report, torch.float32)
    if vision and _absent(net):
        for tensors in _shards(Path(vision), "vision"):
            _fill(net, tensors, report, torch.float32)
    if absent := _absent(net):
        raise ValueError(
            f"{folder}: the image tower or projector lacks {', '.join(absent[:3])}; name CLIP's folder too"
        )
    return net.vision.eval().requires_grad_(False), net.projector.eval().requires_grad_(False)


def open_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; padding is the unknown token, as LLaVA has it.

    Raises:
        ValueError: when the folder holds none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no tokenizer can be read there ({str(error).splitlines()[0]})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def save_vlm(
    net: Vlm, tokenizer: PreTrainedTokenizerBase | None, folder: str | Path, layout: str = "transformers"
) -> Path:
    """Write a folder that `open_vlm` reads: names of transformers' LLaVA, or of LLaVA's own code (layout="llava")."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: _outside(name, net, layout) for name in net.state_dict()}
    state = {names[name]: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    if net.language.config.tie_word_embeddings:
        state = {name: value for name, value in state.items() if "lm_head" not in name}
    with replacing(folder / "model.safetensors") as path:
        save_file(state, path, metadata={"format": "pt"})
    config = net.config
    text = {**net.language.config.to_dict()}
    if layout == "llava":
        tower = {"mm_hidden_size": net.vision.tower.config.hidden_size, "mm_vision_select_layer": -2}
        kind = {"linear": "linear", "mlp": "mlp2x_gelu"}[net.kind]
        known = {**text, "model_type": "llava", "mm_projector_type": kind, "mm_vision_tower": "in this folder", **tower}
    else:
        known = {
            "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": text,
            "vision_config": net.vision.tower.config.to_dict(), "image_token_index": text["vocab_size"],
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        }  # fmt: skip
    write_atomic(folder / "config.json", json.dumps(known, indent=2, default=str) + "\n")
    write_atomic(folder / MEMO, json.dumps(config, indent=2, default=str) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    return folder


# --------------------------------------------------------------------------------------------------------------- inside


def _folder(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; a language model is a folder with config.json and its weights")
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged or not there ({error})") from None
    assert isinstance(found, dict)
    return found


def _structure(folder: Path, vision: str | Path) -> tuple[Vlm, VlmReport, list[Path]]:
    """The network without its weights, and the folders that hold them, a base model first."""
    base = _base(folder)
    told = folder if base is None or (folder / "config.json").is_file() or (folder / MEMO).is_file() else base
    settings, layout = _settings(told, Path(vision) if vision else None)
    with init_empty_weights(include_buffers=False):
        net = Vlm(**settings)
    return net, VlmReport(folder, layout), [folder] if base is None else [base, folder]


def _base(folder: Path) -> Path | None:
    """The folder of the model that the parts in this one go on top of; None for a whole model.

    Raises:
        ValueError: when it is not there, with its place.
    """
    if (folder / ADAPTER).is_file():
        named = str(_json(folder / ADAPTER).get("base_model_name_or_path", ""))
    elif {path.name for path in folder.glob("*.bin")} == {PROJECTOR} and not any(folder.glob("*.safetensors")):
        named = str(_json(folder / "config.json").get("_name_or_path", ""))
    else:
        return None
    for path in (folder / "base", Path(named)):
        if named and path.is_dir() and path.resolve() != folder.resolve():
            return path
    raise ValueError(f"{folder}: its base model {named or '?'} is no folder here; put it at {folder / 'base'}")


def _settings(folder: Path, vision: Path | None) -> tuple[dict[str, Any], str]:
    """The arguments of Vlm, and the name of the layout."""
    if (folder / MEMO).is_file():
        return _json(folder / MEMO), "ours"
    config = _json(folder / "config.json")
    if "text_config" in config:
        kind = "mlp" if _names(folder, r"projector\.linear_2") else "linear"
        return {"vision": config["vision_config"], "text": config["text_config"], "kind": kind}, "transformers"
    text = {name: value for name, value in config.items() if not name.startswith(("mm_", "architectures"))}
    text["model_type"] = "llama"
    tower = {}
    if vision is not None:
        found = _json(vision / "config.json")
        tower = found.get("vision_config", found)
    elif config.get("mm_vision_tower", "").endswith("clip-vit-large-patch14") or not tower:
        tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14, "projection_dim": 768}  # fmt: skip
    kind = "mlp" if "mlp" in str(config.get("mm_projector_type", "")) else "linear"
    return {"vision": tower, "text": text, "kind": kind}, "LLaVA"


def _files(folder: Path) -> list[Path]:
    """The files of weights: one kind of the model's own, and what LLaVA saves beside.

    Raises:
        ValueError: when there are none, or an index names files that are not there.
    """
    for index in folder.glob("*.index.json"):
        named = set(_json(index)["weight_map"].values())
        if lacking := sorted(name for name in named if not (folder / name).is_file()):
            raise ValueError(f"{index}: names {', '.join(lacking)}, which are not there; get the folder again")
    beside = [path for name in (PROJECTOR, OTHERS) if (path := folder / name).is_file()]
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.bin"):
        found = {path for path in folder.glob(pattern) if not path.name.startswith("training_args")}
        if found - set(beside):
            return [*sorted(found - set(beside)), *beside]
    if beside:
        return beside
    raise ValueError(f"{folder}: no weights there (*.safetensors or pytorch_model*.bin)")


def _shards(folder: Path, wanted: str = "") -> Iterator[dict[str, Tensor]]:
    """The tensors of a folder, file by file; with `wanted` only those whose names it finds."""
    for path in _files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                yield {name: file.get_tensor(name) for name in file.keys() if re.search(wanted, name)}  # noqa: SIM118
        else:
            tensors = read_weights(path, mapped=True)[0]
            yield {name: value for name, value in tensors.items() if re.search(wanted, name)}


def _names(folder: Path, wanted: str) -> list[str]:
    return [name for tensors in _shards(folder, wanted) for name in tensors]


def _inside(name: str, net: Vlm) -> str:
    """The network's name for a tensor of any layout."""
    for pattern, new in RULES:
        name = re.sub(pattern, new, name)
    first = "projector." if net.kind == "linear" else "projector.0."
    name = name.replace("projector.first.", first)
    own = next(iter(net.vision.tower.state_dict()))
    return name.replace("vision.tower.", "vision.tower.vision_model.") if own.startswith("vision_model.") else name


def _outside(name: str, net: Vlm, layout: str) -> str:
    """The name of a tensor in a layout."""
    name = name.replace("vision.tower.vision_model.", "vision.tower.")
    if layout == "llava":
        name = re.sub(r"^language\.(?=lm_head)", "", name)
        name = re.sub(r"^language\.model\.", "model.", name)
        name = re.sub(r"^projector\.", "model.mm_projector.", name)
        return re.sub(r"^vision\.tower\.", "model.vision_tower.vision_tower.vision_model.", name)
    name = re.sub(r"^language\.(?=lm_head)", "", name)
    name = re.sub(r"^language\.model\.", "model.language_model.", name)
    name = re.sub(r"^projector\.(0\.)?(?=weight|bias)", "model.multi_modal_projector.linear_1.", name)
    name = re.sub(r"^projector\.2\.", "model.multi_modal_projector.linear_2.", name)
    return re.sub(r"^vision\.", "model.", name).replace("model.tower.", "model.vision_tower.")


def _absent(net: Vlm) -> list[str]:
    """The weights that no file has filled."""
    return [name for name, value in net.named_parameters() if value.is_meta]


def _fill(net: Vlm, tensors: dict[str, Tensor], report: VlmReport, dtype: torch.dtype | None) -> None:
    """Put tensors into the network."""
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    for theirs, value in tensors.items():
        if re.search(IGNORED, theirs):
            report.ignored.append(theirs)
            continue
        name = _inside(theirs, net)
        if name not in own:
            raise ValueError(f"{report.folder}: {theirs} has no place in the network (expected {name})")
        rows = own[name].shape[0] if own[name].ndim else 0
        if value.shape != own[name].shape and "embed_tokens" in name and value.shape[0] > rows:
            value = value[:rows]  # transformers' LLaVA adds rows for its placeholder
        if value.shape != own[name].shape:
            raise ValueError(
                f"{report.folder}: {theirs} is {tuple(value.shape)}, the network's {tuple(own[name].shape)}"
            )
        parent, _, leaf = name.rpartition(".")
        made = nn.Parameter(value.to(dtype or value.dtype), requires_grad=value.is_floating_point())
        setattr(net.get_submodule(parent), leaf, made)
        report.loaded += 1


@torch.no_grad()
def _merge(net: Vlm, pairs: dict[str, dict[str, Tensor]], settings: dict[str, Any]) -> None:
    """W + B A alpha / r, or alpha / sqrt(r) where the adapter says so."""
    rank, alpha = settings["r"], settings["lora_alpha"]
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    for name, pair in pairs.items():
        weight = net.get_parameter(_inside(f"{name}.weight", net))
        weight.add_((pair["B"].float() @ pair["A"].float() * scale).to(weight.dtype))
