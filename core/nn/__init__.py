"""Building blocks of networks: channels last, plain arguments, no configuration objects."""

from core.nn.attention import Attention, attend
from core.nn.conv import Depthwise, Pointwise, Spatial, Temporal, depthwise
from core.nn.drop import DropPath
from core.nn.mlp import Mlp, SwiGLU
from core.nn.norm import BatchNorm
from core.nn.position import resize_positions
from core.nn.rope import Rope

__all__ = [
    "Attention",
    "BatchNorm",
    "Depthwise",
    "DropPath",
    "Mlp",
    "Pointwise",
    "Rope",
    "Spatial",
    "SwiGLU",
    "Temporal",
    "attend",
    "depthwise",
    "resize_positions",
]
