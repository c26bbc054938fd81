"""What the metrics' networks see of a picture; scaled without antialiasing, as the published numbers were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def floats(image: Tensor) -> Tensor:
    """uint8 (H,W,3) to float32 (3,H,W) in [0, 1]."""
    return image.permute(2, 0, 1).float() / 255


def scaled(image: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """float (3,H,W) to (3,*size), without antialiasing; the aspect ratio goes where `size` sends it."""
    return F.interpolate(image[None], size=tuple(size), mode=mode, align_corners=False)[0]


def cropped(image: Tensor, side: int) -> Tensor:
    """float (3,H,W): the short side scaled to `side`, then the central square."""
    height, width = image.shape[1:]
    short = min(height, width)
    size = (int(side * height / short), int(side * width / short))
    image = scaled(image, size)
    top, left = (round((length - side) / 2) for length in size)
    return image[:, top : top + side, left : left + side]


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(...,3,H,W) in [0, 1], minus mean, over std, by channel."""
    center, spread = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images - center) / spread
