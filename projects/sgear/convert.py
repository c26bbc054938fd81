"""Official weights as ours and back: S-GEAR checkpoints of both generations, AVT's, and timm's vision transformers.

    python -m projects.sgear.convert checkpoint.pth sgear.safetensors [heads=4]
    python -m projects.sgear.convert runs/x/checkpoints/best.safetensors checkpoint.pth --to official

Our parameter names are those of the last official release, so the rules below only bring the first release's names and
older GPT-2 buffers into line. `--to official` writes the dict {"model", "optimizer", "lr_scheduler", "epoch"} that the
released code resumes from (its optimizer starts anew). The number of decoder heads stands in no official file: give it
where it is not the released 4 (16 or 8 in the EK55 recipes, 8 for 50 Salads).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoint import LoadReport, Rule, fetch, load_weights, read_weights, save_weights
from core.checkpoint.files import replacing
from core.nn import resize_positions
from projects.sgear.config import ModelConfig
from projects.sgear.model import Sgear

RULES: list[Rule] = [
    (r"^org_gamma$", "vis_prototypes"),  # names of the first release
    (r"^CrossModAttn\.", "ProtAttn."),
    (r"^TimeShift\.", "TCA."),
    (r"^.*gpt_model\.h\.\d+\.attn\.(bias|masked_bias)$", lambda match: None),  # causal masks of older transformers
    (r"^.*gpt_model\.wte\.weight$", lambda match: None),  # a word table that was never used
    (r"^(backbone\.(model\.)?)(head|head_dist|pre_logits|fc_norm|norm_pre)\..*", lambda match: None),  # of ImageNet
]

CLASSY = "classy_state_dict.base_model.model.trunk"
"""Where files of ClassyVision keep their weights, which the released code also starts from."""

POSITIONS = "backbone.model.pos_embed"


@dataclass(frozen=True)
class Identity:
    """What a file of weights turned out to hold."""

    model: ModelConfig
    frames: int
    """Steps of a clip, T; 0 where the weights fit any number (AVT)."""
    classes: dict[str, int]

    def __str__(self) -> str:
        kind = "S-GEAR" if self.model.kind == "sgear" else "AVT"
        video = self.model.input == "video"
        source = f"{self.model.vit.image} px frames" if video else f"{self.model.feature_dim} features"
        steps = f", {self.frames} steps" if self.frames else ""
        return f"{kind} on {source}{steps}, " + ", ".join(f"{n} {label}s" for label, n in self.classes.items())


def read(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of any official or own file by their names in it, and what the file says beside them.

    Raises: ValueError naming the file, when it cannot be read safely or holds no weights.
    """
    path = fetch(source)
    try:
        return read_weights(path, allow="inert")
    except ValueError as first:
        try:
            return read_weights(path, CLASSY, allow="inert")
        except ValueError:
            raise first from None


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names; what has no place in ours is left out."""
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        target: str | None = name
        for pattern, replacement in RULES:
            if target is not None and (match := re.search(pattern, target)):
                text = replacement(match) if callable(replacement) else replacement
                target = None if text is None else target[: match.start()] + text + target[match.end() :]
        if target is not None:
            named[target] = value
    return named


def identify(tensors: Mapping[str, Tensor], source: str, *, heads: int = 4) -> Identity:
    """Recognize a network by the names and shapes of its weights; the heads of its decoder have to be told.

    Raises: ValueError when they are of neither S-GEAR nor AVT.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    encoder = "future_predictor.encoder.weight"
    labels = tuple(name.split(".")[1] for name in shapes if re.fullmatch(r"classifiers\.\w+\.weight", name))
    if encoder not in shapes or not labels:
        raise ValueError(
            f"{source}: weights of neither S-GEAR nor AVT; expected names such as {encoder} and classifiers.action."
            f"weight, found {', '.join(list(shapes)[:3])}"
        )
    sgear = "vis_prototypes" in shapes
    inner, width = shapes[encoder]
    wishes: dict[str, Any] = {
        "kind": "sgear" if sgear else "avt",
        "input": "video" if POSITIONS in shapes else "features",
        "width": width,
        "feature_dim": shapes.get("mapper_to_inter.weight", (width, width))[1],
        "labels": labels,
        "tca_blocks": sum(name.endswith("attn.tmp_weighting") for name in shapes),
        "prototype_attention": sgear and "ProtAttn.gate" in shapes,
        "transform_features": "transform_features.0.weight" in shapes,
        "temperature": "learned" if "log_temperature" in shapes else "published",
        "prototypes": {"values": "language" if "lang_prototypes" in shapes else "visual"},
        "decoder": {
            "width": inner,
            "heads": heads,
            "layers": sum(bool(re.search(r"gpt_model\.h\.\d+\.ln_1\.weight", name)) for name in shapes),
            "positions": shapes["future_predictor.gpt_model.wpe.weight"][0],
        },
    }
    if wishes["input"] == "video":
        tokens, channels = shapes[POSITIONS][1:]
        patch = shapes["backbone.model.patch_embed.proj.weight"][-1]
        layers = sum(bool(re.fullmatch(r"backbone\.model\.blocks\.\d+\.norm1\.weight", name)) for name in shapes)
        image = patch * round((tokens - 1) ** 0.5)
        wishes["vit"] = {"image": image, "patch": patch, "width": channels, "layers": layers, "heads": channels // 64}
    steps = [shapes[name] for name in ("TCA.0.attn.tmp_weighting", "ProtAttn.tpl_weights") if name in shapes]
    classes = {label: shapes[f"classifiers.{label}.weight"][0] for label in labels}
    if sgear:
        classes = {"action": shapes["vis_prototypes"][0], **classes}
    return Identity(ModelConfig(**wishes), steps[0][-1] if steps else 0, classes)


def fit_positions(tensors: dict[str, Tensor], image: int, patch: int) -> tuple[dict[str, Tensor], str]:
    """The weights with the ViT's position table for frames of `image` pixels, and what was done to it ("": nothing)."""
    table = tensors.get(POSITIONS)
    if table is None:
        return tensors, ""
    old, new = round((table.shape[1] - 1) ** 0.5), image // patch
    if old == new or old * old + 1 != table.shape[1]:
        return tensors, ""
    resized = resize_positions(table, (old, old), (new, new), antialias=True)
    note = f"position table resized from {old}x{old} to {new}x{new} patches"
    return {**tensors, POSITIONS: resized}, note


def load(net: Sgear, source: str | Path) -> tuple[LoadReport, str]:
    """Put the weights of any file into a network of its kind, every tensor accounted for; and a note of what changed.

    Class maps may be on one side only; position tables are resized.

    Raises: ValueError when the weights are of another network, listing what does not fit.
    """
    tensors, _ = read(source)
    note = ""
    if net.cfg.input == "video":
        tensors, note = fit_positions(tensors, net.cfg.vit.image, net.cfg.vit.patch)
    own = [name for name in net.state_dict() if name.startswith("cls_map_")]
    spare = [f"^{name}$" for name in tensors if name.startswith("cls_map_") and name not in own]
    report = load_weights(net, tensors, rules=RULES, drop=spare, allow_missing=[f"^{name}$" for name in own])
    return report, note


def open_model(source: str | Path, *, heads: int | None = None) -> tuple[Sgear, Identity]:
    """The network that a file holds, with its weights, in eval mode; one of ours knows its heads.

    Raises: ValueError as `read` and `identify`.
    """
    tensors, about = read(source)
    named = rename(tensors)
    found = identify(named, str(source), heads=heads or 4)
    if isinstance(about.get("model"), dict):
        found = Identity(ModelConfig.model_validate(about["model"]), found.frames, found.classes)
    maps = {label: named[f"cls_map_{label}_action"] for label in ("verb", "noun") if f"cls_map_{label}_action" in named}
    net = Sgear(found.model, found.frames or 1, found.classes, maps=maps, language=named.get("lang_prototypes"))
    load_weights(net, tensors, rules=RULES)
    return net.eval(), found


def write_official(net: nn.Module, path: Path, epoch: int = 0) -> None:
    """Write a checkpoint in the official layout, from which the released code initializes, tests or resumes.

    Raises: ValueError for a network with parts that the released code does not know.
    """
    state = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
    foreign = [name for name in state if name in ("log_temperature", "lang_prototypes")]
    if foreign:
        raise ValueError(f"the released code has no place for {', '.join(foreign)}; keep these weights as safetensors")
    schedule: dict[str, dict[str, Any]] = {"base_sched_dict": {}, "other_stuff": {}}
    with replacing(path) as temporary:
        torch.save({"model": state, "optimizer": {}, "lr_scheduler": schedule, "epoch": epoch}, temporary)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert a file and say what it was."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.sgear.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="an official .pth of S-GEAR or AVT, or our .safetensors; or an address")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("heads", nargs="?", help="heads=N: attention heads of the decoder, where it is not 4")
    parser.add_argument("--to", choices=("ours", "official"), default="ours", help="see above")
    args = parser.parse_args(argv)
    try:
        heads = _heads(args.heads)
        net, found = open_model(args.source, heads=heads)
        _, said = read(args.source)
        if args.to == "official":
            write_official(net, args.out, int(said.get("epoch") or 0))
        else:
            kept = {key: value for key, value in said.items() if key in ("classes", "clip")}
            about = {"model": found.model.model_dump(mode="json"), "frames": found.frames}
            save_weights(net, args.out, {**kept, **about, "source": Path(args.source).name})
    except (ValueError, OSError) as error:
        sys.exit(f"convert: {error}")
    sys.stdout.write(f"{args.source}: {found}\n{args.out}: {len(net.state_dict())} tensors, {args.to}\n")


def _heads(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"heads=\d+", text):
        raise ValueError(f"{text!r} is not understood; write heads=8")
    return int(text.removeprefix("heads="))


if __name__ == "__main__":
    main()
