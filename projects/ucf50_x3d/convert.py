"""Official weights as ours: pytorchvideo's hub files, SlowFast's checkpoints, the original project's runs.

    python -m projects.ucf50_x3d.convert X3D_S.pyth x3d_s.safetensors
    python -m projects.ucf50_x3d.convert checkpoint_epoch_00300.pyth x3d_m.safetensors variant=m
    python -m projects.ucf50_x3d.convert runs/x/checkpoints/best.safetensors run.pth --to hub
    python -m projects.ucf50_x3d.convert runs/x/checkpoints/best.safetensors model.pt2 --to program

The hub's names are our own, so hub files need no rules and `--to hub` only changes the container: a bare state-dict in
a torch file, as the original project saves it. `--to program` writes a torch.export program, which answers for any
number of clips of its one size without this code: `torch.export.load("model.pt2").module()(clips)`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from core.checkpoint import LoadReport, Rule, fetch, load_weights, read_weights, save_weights
from core.nn.norm import BatchNorm
from projects.ucf50_x3d.model import VARIANTS, X3D, Activation, SlowFast, fuse
from projects.ucf50_x3d.model.freeze import find_head

Layout = Literal["hub", "slowfast"]


def _stage(match: re.Match[str]) -> str:
    return f"blocks.{int(match[1]) - 1}.res_blocks.{match[2]}."


def _pathway_stage(match: re.Match[str]) -> str:
    return f"blocks.{int(match[1]) - 1}.multipathway_blocks.{match[2]}.res_blocks.{match[3]}."


def _lateral(match: re.Match[str]) -> str:
    return f"blocks.{int(match[1]) - 1}.multipathway_fusion."


# What follows holds for SlowFast's names of X3D and of SlowFast R50 alike.
_BRANCHES: list[Rule] = [
    (r"\.branch1\.", ".branch1_conv."),
    (r"\.branch1_bn\.", ".branch1_norm."),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
    (r"\.branch2\.([abc])_bn\.", r".branch2.norm_\1."),
]

X3D_RULES: list[Rule] = [
    (r"^s1\.pathway0_stem\.conv\.", "blocks.0.conv.conv_xy."),  # SlowFast: conv is temporal; the hub: conv_xy is
    (r"^s1\.pathway0_stem\.conv_xy\.", "blocks.0.conv.conv_t."),  # SlowFast: conv_xy is spatial; the hub: conv_t is
    (r"^s1\.pathway0_stem\.bn\.", "blocks.0.norm."),
    (r"^s([2-5])\.pathway0_res(\d+)\.", _stage),
    *_BRANCHES,
    (r"\.branch2\.norm_b\.(?=[a-z])", ".branch2.norm_b.0."),  # the hub pairs norm_b with the excitation
    (r"\.branch2\.se\.fc1\.", ".branch2.norm_b.1.block.0."),
    (r"\.branch2\.se\.fc2\.", ".branch2.norm_b.1.block.2."),
    (r"^head\.conv_5\.", "blocks.5.pool.pre_conv."),
    (r"^head\.conv_5_bn\.", "blocks.5.pool.pre_norm."),
    (r"^head\.lin_5\.", "blocks.5.pool.post_conv."),
    (r"^head\.projection\.", "blocks.5.proj."),
]

SLOWFAST_RULES: list[Rule] = [
    (r"^s1\.pathway([01])_stem\.conv\.", r"blocks.0.multipathway_blocks.\1.conv."),
    (r"^s1\.pathway([01])_stem\.bn\.", r"blocks.0.multipathway_blocks.\1.norm."),
    (r"^s([1-4])_fuse\.", _lateral),
    (r"(multipathway_fusion)\.conv_f2s\.", r"\1.conv_fast_to_slow."),
    (r"(multipathway_fusion)\.bn\.", r"\1.norm."),
    (r"^s([2-5])\.pathway([01])_res(\d+)\.", _pathway_stage),
    *_BRANCHES,
    (r"^head\.projection\.", "blocks.6.proj."),
]

_HUB_MARK = "blocks.0.conv.conv_t.weight"
_SHORTCUT_NORM = re.compile(r"^(s2\.pathway0_res0\.branch1_bn|blocks\.1\.res_blocks\.0\.branch1_norm)\.")


@dataclass(frozen=True)
class Identity:
    """What a file of weights turned out to hold."""

    network: Literal["x3d", "slowfast_r50"]
    layout: Layout
    classes: int
    variants: tuple[str, ...]
    """The X3D variants it can be: XS, S and M have the same shapes. One only, where the file says more."""
    shortcut_norm: bool

    @property
    def rules(self) -> list[Rule]:
        """How its names become ours."""
        if self.layout == "hub":
            return []
        return X3D_RULES if self.network == "x3d" else SLOWFAST_RULES

    def __str__(self) -> str:
        name = " or ".join(f"X3D-{v.upper()}" for v in self.variants) if self.network == "x3d" else "SlowFast R50"
        return f"{name}, {self.layout} names, {self.classes} classes"


def identify(tensors: Mapping[str, Tensor], about: Mapping[str, Any], source: str) -> Identity:
    """Recognize weights by their names and shapes, and by what the file or its published name says beside them.

    Raises: ValueError when they are of neither network.
    """
    if "blocks.0.multipathway_blocks.0.conv.weight" in tensors:
        return Identity("slowfast_r50", "hub", len(tensors["blocks.6.proj.bias"]), (), False)
    if "s1_fuse.conv_f2s.weight" in tensors:
        return Identity("slowfast_r50", "slowfast", len(tensors["head.projection.bias"]), (), False)
    layouts: dict[str, tuple[Layout, str, str]] = {
        _HUB_MARK: ("hub", r"blocks\.1\.res_blocks\.(\d+)\.", "blocks.5.proj.bias"),
        "s1.pathway0_stem.conv_xy.weight": ("slowfast", r"s2\.pathway0_res(\d+)\.", "head.projection.bias"),
    }
    for mark, (layout, block, bias) in layouts.items():
        if mark in tensors and bias in tensors:
            depth = 1 + max(int(match[1]) for match in map(re.compile(block).match, tensors) if match)
            shape = (depth, len(tensors[mark]))
            fitting = tuple(name for name, v in VARIANTS.items() if (v.depths[0], v.widths[0]) == shape)
            if not fitting:
                break
            said = _said(about, source)
            if said and said not in fitting:
                raise ValueError(f"{source} says it is X3D-{said.upper()}, but its shapes are of {_names(fitting)}")
            norm = any(_SHORTCUT_NORM.match(name) for name in tensors)
            return Identity("x3d", layout, len(tensors[bias]), (said,) if said else fitting, norm)
    raise ValueError(
        f"{source}: weights of neither X3D nor SlowFast R50; expected names such as {_HUB_MARK} (hub) or "
        f"s1.pathway0_stem.conv_xy.weight (SlowFast), found {', '.join(list(tensors)[:3])}"
    )


def load(model: nn.Module, source: str | Path) -> LoadReport:
    """Put the weights of any file that `identify` knows into an X3D or SlowFast; the report names every tensor.

    The last layer keeps its start values where the classes are others. A model without the norm on its first shortcut
    gets it when the weights have one: SlowFast's answers are wrong without.

    Raises: ValueError when the weights are of another network, variant or shape.
    """
    if not isinstance(model, X3D | SlowFast):
        raise ValueError(f"expected an X3D or a SlowFast to fill, not a {type(model).__name__}")
    tensors, about, name = _read(source)
    found = identify(tensors, about, name)
    wanted = f"X3D-{model.variant.upper()}" if isinstance(model, X3D) else "SlowFast R50"
    if isinstance(model, X3D) != (found.network == "x3d"):
        raise ValueError(f"{name} holds {found}, the model is {wanted}; choose the model that belongs to the weights")
    if isinstance(model, X3D):
        if model.variant not in found.variants:
            raise ValueError(
                f"{name} holds {found}, the model is {wanted}; use model.name=x3d_{found.variants[0]}, or other weights"
            )
        block = model.get_submodule("blocks.1.res_blocks.0")
        if found.shortcut_norm and isinstance(block.branch1_norm, nn.Identity):
            like = next(model.parameters())
            block.branch1_norm = BatchNorm(len(like), device=like.device, dtype=like.dtype)
    prefix, head = find_head(model)
    other_classes = found.classes != head.proj.out_features
    return load_weights(model, name, rules=found.rules, drop=[f"^{prefix}.proj"] if other_classes else [])


def open_model(
    source: str | Path, *, variant: str | None = None, head_activation: Activation = "none"
) -> tuple[X3D | SlowFast, Identity]:
    """The network that a file holds, with its weights, in eval mode.

    Raises: ValueError when XS, S and M cannot be told apart and `variant` is not given, or is another than the file's.
    """
    tensors, about, name = _read(source)
    found = identify(tensors, about, name)
    model: X3D | SlowFast
    if found.network == "slowfast_r50":
        model = SlowFast(found.classes, head_activation=head_activation)
    else:
        model = X3D(
            _choose(found, variant, name),
            found.classes,
            shortcut_norm=found.shortcut_norm,
            head_activation=head_activation,
        )
    load_weights(model, name, rules=found.rules)
    return model.eval(), found


def main(argv: Sequence[str] | None = None) -> None:
    """Convert a file and say what it was."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.ucf50_x3d.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a hub .pyth, a SlowFast .pyth, a run_*.pth, our .safetensors; or an address")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("variant", nargs="?", help="variant=xs|s|m: which X3D it is, where the file does not tell")
    parser.add_argument("--to", choices=("ours", "hub", "program"), default="ours", help="see above")
    args = parser.parse_args(argv)
    try:
        if args.variant and not args.variant.startswith("variant="):
            raise ValueError(f"{args.variant!r} is not understood; write variant={args.variant}")
        model, found = open_model(args.source, variant=(args.variant or "").removeprefix("variant=") or None)
        if args.to == "hub":
            _write_hub(model, found, args.out)
        elif args.to == "program":
            _write_program(model, args.out, _clip_size(model, _read(args.source)[1]))
        else:
            _, about, name = _read(args.source)
            kept = {key: value for key, value in about.items() if key in ("classes", "clip")}
            save_weights(model, args.out, {**kept, "model": _model_name(model), "source": Path(name).name})
    except (ValueError, OSError) as error:
        sys.exit(f"convert: {error}")
    sys.stdout.write(f"{args.source}: {found}\n{args.out}: {_model_name(model)}, {len(model.state_dict())} tensors\n")


def _read(source: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    path = fetch(source)
    tensors, about = read_weights(path)
    return tensors, about, str(path)


def _said(about: Mapping[str, Any], source: str) -> str | None:
    """The variant by our metadata, by the configuration in a SlowFast checkpoint, or by a published file name."""
    if match := re.fullmatch(r"x3d_(\w+)", str(about.get("model", ""))):
        return match[1]
    if isinstance(about.get("cfg"), str):
        try:
            data = yaml.safe_load(about["cfg"])
            frames, depth = data["DATA"]["NUM_FRAMES"], data["X3D"]["DEPTH_FACTOR"]
            return "l" if depth > 4 else {4: "xs", 13: "s", 16: "m"}.get(frames)
        except (yaml.YAMLError, KeyError, TypeError):
            return None
    match = re.fullmatch(r"x3d_(xs|s|m|l)\.pyth", Path(source).name.lower())
    return match[1] if match else None


def _choose(found: Identity, variant: str | None, source: str) -> str:
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"there is no X3D variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    if variant is not None and variant not in found.variants:
        raise ValueError(f"{source} holds {found}, not X3D-{variant.upper()}")
    if variant is None and len(found.variants) > 1:
        raise ValueError(
            f"{source} can be {_names(found.variants)}, which differ only in the pooling window and look alike in a "
            f"file; say which, as in variant={found.variants[1]} (the original project's runs are variant=s)"
        )
    return variant or found.variants[0]


def _names(variants: Sequence[str]) -> str:
    return " or ".join(f"X3D-{variant.upper()}" for variant in variants)


def _model_name(model: X3D | SlowFast) -> str:
    return f"x3d_{model.variant}" if isinstance(model, X3D) else "slowfast_r50"


def _write_hub(model: X3D | SlowFast, found: Identity, out: Path) -> None:
    if found.shortcut_norm:
        raise ValueError(
            "these weights come from SlowFast and have a norm on the first shortcut (branch1_norm); the hub's X3D has "
            "no place for it and would answer wrongly without. Keep them as safetensors"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out)


def _clip_size(model: X3D | SlowFast, about: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, height and width: those the weights were trained with, else those the network was made for."""
    if clip := about.get("clip"):
        side = clip.get("test_crop") or clip["crop"]
        return clip["frames"], side, side
    if isinstance(model, X3D):
        size = VARIANTS[model.variant]
        return size.frames, size.crop, size.crop
    return 32, 256, 256


def _write_program(model: X3D | SlowFast, out: Path, size: tuple[int, int, int]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(fuse(model), (torch.zeros(2, 3, *size),), dynamic_shapes={"video": {0: batch}})
    torch.export.save(program, out)


if __name__ == "__main__":
    main()
