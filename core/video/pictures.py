"""From decoded frames to one array of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.video.info import VideoError

CHUNK = 32  # pictures that exist in full size at once while they are scaled


class Stack:
    """Collects pictures in one preallocated uint8 array, scaled in batches when wanted."""

    def __init__(self, path: Path, total: int, short_side: int | None) -> None:
        self.path = path
        self.total = total
        self.short_side = short_side
        self.clear()

    def clear(self) -> None:
        """Start over."""
        self.filled = self.done = 0
        self.raw: np.ndarray = np.empty((0, 0, 0, 3), np.uint8)
        self.out = self.raw

    def add(self, picture: np.ndarray) -> None:
        """Append one picture, uint8 (H,W,3); all have to have one size."""
        if not self.raw.size:
            self._allocate(*picture.shape[:2])
        if picture.shape != self.raw.shape[1:]:
            _, height, width, _ = self.raw.shape
            h, w, _ = picture.shape
            raise VideoError(
                self.path, f"changes from {width}x{height} to {w}x{h}; make it one size with core.video.transcode"
            )
        self.raw[self.filled] = picture
        self.filled += 1
        if self.short_side is not None and self.filled == len(self.raw):
            self._scale()

    def result(self) -> Tensor:
        """All pictures, (T,H,W,3)."""
        if self.short_side is not None and self.filled:
            self._scale()
        return torch.from_numpy(self.out)

    def _allocate(self, height: int, width: int) -> None:
        # numpy asks the system for huge pages, torch does not: filling fresh memory takes a quarter of the time.
        keep = self.total if self.short_side is None else min(self.total, CHUNK)
        self.raw = np.empty((keep, height, width, 3), np.uint8)
        self.out = self.raw
        if self.short_side is not None:
            self.out = np.empty((self.total, *scaled(height, width, self.short_side), 3), np.uint8)

    def _scale(self) -> None:
        images = torch.from_numpy(self.raw[: self.filled]).permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(images, self.out.shape[1:3], mode="bilinear", antialias=True)
        self.out[self.done : self.done + self.filled] = small.permute(0, 2, 3, 1).numpy()
        self.done += self.filled
        self.filled = 0


def scaled(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Height and width after scaling the shorter side to `short_side`; the longer one is floored."""
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"short_side={short_side} is not positive")
    if height <= width:
        return short_side, width * short_side // height
    return height * short_side // width, short_side


def rgb(frame: Any, reformatter: Any) -> np.ndarray:
    """A decoded frame as uint8 (H,W,3), a view that keeps its memory alive.

    `threads=1`: otherwise swscale starts threads for every single frame, which costs four times the conversion.
    """
    picture = reformatter.reformat(frame, format="rgb24", threads=1)
    plane = picture.planes[0]
    rows: np.ndarray = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: picture.height, : picture.width * 3].reshape(picture.height, picture.width, 3)
