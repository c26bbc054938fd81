"""Official checkpoints as ours, and ours as theirs.

    python -m projects.actionformer.convert epoch_034.pth.tar thumos.safetensors
    python -m projects.actionformer.convert epoch_034.pth.tar thumos.safetensors config=my.yaml --weights raw
    python -m projects.actionformer.convert runs/x/checkpoints/best.safetensors epoch_034.pth.tar --to official
    python -m projects.actionformer.convert epoch_034.pth.tar thumos.pt2 --to program

Which official configuration the weights belong to is found by their shapes; `config=` names it, or a file of one's own,
where several fit. The official evaluation uses the moving average of the weights (`state_dict_ema`), and so do we,
unless `--weights raw` asks for the others. eval and predict read all these files as they are: converting is needed for
nothing but smaller, safer files.

The names of modules are the official ones; only shapes differ, in dimensions of size 1. `--to program` writes a
torch.export program that answers for the one length that its network was made for, without this code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import config
from core.checkpoint import LoadReport, fetch, load_weights, read_weights, save_weights
from core.checkpoint.files import replacing
from core.nn import Rope
from projects.actionformer import model
from projects.actionformer.config import Config
from projects.actionformer.model.blocks import Branch

CONFIGS = Path(__file__).parent / "configs"
ROPE = r"\.rope\.inv_freq$"  # a constant that the fork saves beside its weights
KEYS = {"ema": "state_dict_ema", "raw": "state_dict"}


def load(net: nn.Module, source: str | Path | Mapping[str, Any], *, weights: str | None = None) -> LoadReport:
    """Put the weights of an official checkpoint, of a bare state-dict or of our own file into a network.

    `weights` is "ema" or "raw"; without it the moving average if the file has one. The report says which it was.
    Schedules, optimizers and other objects in the file are not made: nothing of it runs.

    Raises: ValueError naming what is missing, unexpected or of another shape.
    """
    key = KEYS[weights] if weights else None
    return load_weights(net, source, rules=[(r"^module\.", "")], drop=[ROPE], key=key, allow="inert")


def identify(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the configurations here whose network has tensors of these names and sizes."""
    sizes = {name: tensor.numel() for name, tensor in tensors.items() if not name.endswith("rope.inv_freq")}
    found = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        with torch.device("meta"):
            net = build(config.load(Config, path))
        if {name: tensor.numel() for name, tensor in net.state_dict().items()} == sizes:
            found.append(path.stem)
    return found


def build(cfg: Config) -> model.Detector:
    """The network of a configuration, with new weights."""
    data = cfg.data
    return model.build(cfg.model, channels=data.input_dim, classes=data.classes, max_length=data.max_length)


def official_state(net: model.Detector) -> dict[str, Tensor]:
    """Weights in official names and shapes: norms and scales (1,C,1), linear layers (O,I,1), below `module.`."""
    state = {f"module.{name}": value.detach() for name, value in net.state_dict().items()}
    for name, module in net.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            for part in ("weight", "bias"):
                if f"module.{name}.{part}" in state:
                    state[f"module.{name}.{part}"] = state[f"module.{name}.{part}"].view(1, -1, 1)
        elif isinstance(module, Branch):
            state[f"module.{name}.scale"] = state[f"module.{name}.scale"].view(1, -1, 1)
        elif isinstance(module, nn.Linear):
            state[f"module.{name}.weight"] = state[f"module.{name}.weight"].unsqueeze(2)
        elif isinstance(module, Rope):
            width = module.head_dim
            state[f"module.{name}.inv_freq"] = module.base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    return state


def main(argv: Sequence[str] | None = None) -> None:
    """Convert a file and say what it was."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.actionformer.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", help="an official epoch_XXX.pth.tar, a bare state-dict, our .safetensors; or an address"
    )
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("config", nargs="?", help="config=NAME or config=FILE.yaml, where the shapes do not tell")
    parser.add_argument("--weights", choices=tuple(KEYS), help="the moving average, or what it follows")
    parser.add_argument("--to", choices=("ours", "official", "program"), default="ours", help="see above")
    args = parser.parse_args(argv)
    try:
        if args.config and not args.config.startswith("config="):
            raise ValueError(f"{args.config!r} is not understood; write config={args.config}")
        path = fetch(args.source)
        tensors, about = read_weights(path, KEYS[args.weights] if args.weights else None, allow="inert")
        name, cfg = _configuration((args.config or "").removeprefix("config="), tensors, about, path)
        net = build(cfg)
        report = load(net, path, weights=args.weights)
        if args.to == "official":
            _write_official(net.eval(), args.out, about)
        elif args.to == "program":
            _write_program(net.eval(), args.out, cfg)
        else:
            kept = {key: about[key] for key in ("classes",) if key in about}
            sections = {"model": cfg.model.model_dump(mode="json"), "config": name, "source": path.name}
            save_weights(net, args.out, kept | sections)
    except (ValueError, OSError) as error:
        sys.exit(f"convert: {error}")
    sys.stdout.write(f"{name}: {report}\n{args.out}: written\n")


def _configuration(
    wish: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path
) -> tuple[str, Config]:
    """The configuration that was named, that the file says it is of, or that its shapes say."""
    if wish:
        file = Path(wish) if wish.endswith(".yaml") else CONFIGS / f"{wish}.yaml"
        return file.stem, config.load(Config, file)
    if isinstance(about.get("model"), dict) and isinstance(about.get("data"), dict):
        return "our weights", Config.model_validate({"model": about["model"], "data": about["data"]})
    found = identify(tensors)
    if not found:
        raise ValueError(
            f"{path}: {len(tensors)} tensors that fit no configuration in {CONFIGS}; name your own: config=FILE.yaml "
            "(the official YAML file, imported by `python -m projects.actionformer.official`)"
        )
    if len({_network(name) for name in found}) > 1:
        raise ValueError(f"{path} fits {', '.join(found)}, which compute differently; say which: config={found[0]}")
    return found[0], config.load(Config, CONFIGS / f"{found[0]}.yaml")


def _network(name: str) -> str:
    """The model section of a configuration, by which networks of equal shapes may still differ."""
    return config.load(Config, CONFIGS / f"{name}.yaml").model.model_dump_json()


def _write_official(net: model.Detector, out: Path, about: Mapping[str, Any]) -> None:
    """What the official eval.py reads. It has no optimizer: a run goes on where it began."""
    state = {name: value.cpu() for name, value in official_state(net).items()}
    with replacing(out) as temporary:
        torch.save({"epoch": int(about.get("epoch", 0)), "state_dict": state, "state_dict_ema": state}, temporary)


def _write_program(net: model.Detector, out: Path, cfg: Config) -> None:
    """Features (1,C,max_length) and mask (1,max_length) to logits, offsets, mask, points."""
    length = cfg.data.max_length
    example = (torch.zeros(1, sum(cfg.data.input_dim), length), torch.ones(1, length, dtype=torch.bool))
    program = torch.export.export(Program(net, length), example)
    with replacing(out) as temporary:
        torch.export.save(program, temporary)


class Program(nn.Module):
    """A network for videos padded to the length of a training crop, whatever their own."""

    def __init__(self, net: model.Detector, length: int) -> None:
        super().__init__()
        self.net, self.length = net, length

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features (1,C,T), mask (1,T) bool to logits (1,N,K), offsets (1,N,2), mask (1,N) and points (N,4)."""
        outputs = self.net(features, mask, [self.length])
        return outputs.logits, outputs.offsets, outputs.mask, outputs.points


if __name__ == "__main__":
    main()
