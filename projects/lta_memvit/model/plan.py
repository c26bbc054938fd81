"""The shapes of multiscale transformers: how wide each block is, how it pools, and on what grid it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grid = tuple[int, int, int]
"""Frames, rows and columns of tokens."""
Widen = Literal["attention", "mlp"]

PATCH_KERNEL, PATCH_STRIDE, PATCH_PADDING = (3, 7, 7), (2, 4, 4), (1, 3, 3)


@dataclass(frozen=True)
class Variant:
    """A published (or, for tests and demos, a very small) architecture."""

    depth: int
    width: int
    """Channels of the first block; so wide is also every attention head."""
    steps: tuple[int, ...]
    """Blocks in which width and heads double and the queries are pooled 2 x 2."""
    kv_stride: int
    """Spatial stride at which the first block pools keys and values; halved at each of `steps`."""
    frames: int
    """Frames of a clip in the published weights."""
    gap: int = 2
    """MeMViT: every so many-th earlier clip is attended."""


VARIANTS = {
    "mvit_b": Variant(16, 96, (1, 3, 14), 8, 16),
    "mvit_nano": Variant(3, 16, (1,), 2, 8),
    "memvit_16": Variant(16, 96, (1, 3, 14), 8, 16),
    "memvit_24": Variant(24, 96, (2, 5, 21), 8, 32, gap=3),
    "memvit_nano": Variant(3, 16, (1,), 2, 8),
}


@dataclass(frozen=True)
class BlockPlan:
    """One block."""

    index: int
    inputs: int
    """Width of its input."""
    inner: int
    """Width of its attention."""
    outputs: int
    heads: int
    q_stride: int
    kv_stride: int
    grid: Grid
    """Of its input tokens."""

    @property
    def q_grid(self) -> Grid:
        """Of its queries, and so of its output, as the tables of positions count it."""
        return self.grid[0], self.grid[1] // self.q_stride, self.grid[2] // self.q_stride

    @property
    def kv_grid(self) -> Grid:
        """Of its keys and values, likewise."""
        return self.grid[0], self.grid[1] // self.kv_stride, self.grid[2] // self.kv_stride


def patch_grid(frames: int, crop: int) -> Grid:
    """Tokens that the patch embedding makes of a square clip."""
    return frames // PATCH_STRIDE[0], crop // PATCH_STRIDE[1], crop // PATCH_STRIDE[2]


def blocks(variant: Variant, frames: int, crop: int, widen: Widen) -> list[BlockPlan]:
    """The plans of all blocks.

    With `widen="attention"` a step changes the width in its own attention; with "mlp" in the MLP of the block before
    (MViT, and the LTA fork of MeMViT).
    """

    def width(index: int) -> int:
        return variant.width << sum(step <= index for step in variant.steps)

    plans: list[BlockPlan] = []
    grid, kv_stride = patch_grid(frames, crop), variant.kv_stride
    for index in range(variant.depth):
        q_stride = 2 if index in variant.steps else 1
        kv_stride = max(kv_stride // q_stride, 1)
        inputs = width(index - 1) if widen == "attention" and index else width(index)
        outputs = width(index) if widen == "attention" or index + 1 == variant.depth else width(index + 1)
        heads = width(index) // variant.width
        plan = BlockPlan(index, inputs, width(index), outputs, heads, q_stride, kv_stride, grid)
        plans.append(plan)
        grid = plan.q_grid
    return plans
