"""Building blocks of transformers: channels last, plain arguments, no configuration objects."""

from core.nn.attention import Attention, attend
from core.nn.drop import DropPath
from core.nn.mlp import Mlp, SwiGLU
from core.nn.position import resize_positions
from core.nn.rope import Rope

__all__ = ["Attention", "DropPath", "Mlp", "Rope", "SwiGLU", "attend", "resize_positions"]
