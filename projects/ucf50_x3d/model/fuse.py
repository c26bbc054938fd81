"""A copy for inference only, in which batch norms have become part of the convolutions before them."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)

# A convolution and the norm that follows it, by their names inside a block.
PAIRS = (
    ("conv", "norm"),
    ("conv.conv_xy", "norm"),
    ("conv_fast_to_slow", "norm"),
    ("conv_a", "norm_a"),
    ("conv_b", "norm_b"),
    ("conv_b", "norm_b.0"),
    ("conv_c", "norm_c"),
    ("branch1_conv", "branch1_norm"),
    ("pre_conv", "pre_norm"),
)


def fuse(model: M) -> M:
    """A copy of an X3D or SlowFast for inference: the same answers (to rounding) in less time; it cannot be trained.

    Its state-dict has other entries than the model's.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for block in list(fused.modules()):
        for names in PAIRS:
            conv, norm = (_find(block, name) for name in names)
            if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                block.set_submodule(names[0], fuse_conv_bn_eval(conv, norm).requires_grad_(False))
                block.set_submodule(names[1], nn.Identity())
    return fused


def _find(block: nn.Module, name: str) -> nn.Module | None:
    try:
        return block.get_submodule(name)
    except AttributeError:
        return None
