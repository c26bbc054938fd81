"""From decoded clips to model input: crop, resize, flip, jitter, erase, normalize and mix.

A clip has two states, and its dtype tells which:

    raw    uint8 (T,H,W,3), values 0..255, as it leaves the decoder
    float  (3,T,H,W), values 0..1 until `Normalize`, the order every model takes

Every step is called `step(clip, rng)` and takes both states, with any dimensions in front (views, batch). Steps that
only cut or mirror leave a raw clip raw, because cutting bytes is far cheaper than cutting floats. Chance comes from
`random.Random` on the host, one draw per clip and the same for all its frames; pixels are worked on the device where
the clip lies. `Compose` runs the steps over a batch, all clips at once wherever sizes and chance allow it.
"""

from core.transforms.clip import Normalize, Step, ToFloat
from core.transforms.color import ColorJitter, RandAugment
from core.transforms.compose import Compose, OnKey
from core.transforms.geometry import (
    CenterCrop,
    Erase,
    Flip,
    RandomCrop,
    RandomResizedCrop,
    RandomShortSide,
    ShortSide,
    ThreeCrops,
)
from core.transforms.mix import CutMix, Mixup

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "CutMix",
    "Erase",
    "Flip",
    "Mixup",
    "Normalize",
    "OnKey",
    "RandAugment",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomShortSide",
    "ShortSide",
    "Step",
    "ThreeCrops",
    "ToFloat",
]
