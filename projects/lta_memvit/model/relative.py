"""Decomposed relative positions as extra channels of queries and keys.

MViTv2 and MeMViT add q·T[t, t'] + q·H[h, h'] + q·W[w, w'] to the logit of a query and a key. Written as a sum over key
frames, rows and columns this is a scalar product too: a query gets one channel for every frame, row and column of keys,
holding its product with the table, and a key a one in the three channels where it lies. So attention stays a plain
scalar product without a bias as large as the logits, and a mask is one channel more.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.lta_memvit.model.plan import Grid

MASKED = -30_000.0  # e to this power is 0 in every precision, and half precision can hold it


class Lookup(NamedTuple):
    """Which row of a table belongs to a query and a key along one axis."""

    rows: Tensor
    """int64 (queries, keys)."""
    length: int
    """How many rows the table should have, or 0: any."""

    def read(self, table: Tensor) -> Tensor:
        """Table (rows, D) -> (queries, keys, D); one of another length is interpolated."""
        if self.length and len(table) != self.length:
            table = F.interpolate(table.T[None], size=self.length, mode="linear")[0].T
        return table[self.rows.clamp(max=len(table) - 1)]


@functools.lru_cache(maxsize=512)
@torch.inference_mode(False)  # what is kept serves training too
def spatial(queries: Grid, keys: Grid, device: torch.device) -> tuple[Lookup, Lookup]:
    """The rows for heights and for widths between two grids, in steps of the finer one.

    Where the tables of a picture would differ in length, the original counts columns in steps of rows and keeps them in
    the range of rows; for pictures higher than wide it fails, and the same rule serves here.
    """
    (_, q_rows, q_columns), (_, k_rows, k_columns) = queries, keys
    length = 2 * max(q_rows, k_rows) - 1
    square = length == 2 * max(q_columns, k_columns) - 1
    heights = _distances(q_rows, k_rows, q_rows, k_rows)
    widths = _distances(q_columns, k_columns, *((q_columns, k_columns) if square else (q_rows, k_rows)))
    widths = widths.clamp(heights.min(), heights.max())
    return Lookup(heights.long().to(device), length), Lookup(widths.long().to(device), length)


def _distances(queries: int, keys: int, q_scale: int, k_scale: int) -> Tensor:
    """Distances between queries and keys, in a picture of `q_scale` to `k_scale` positions, from 0 upwards."""
    q_ratio, k_ratio = max(k_scale / q_scale, 1.0), max(q_scale / k_scale, 1.0)
    distances = torch.arange(queries)[:, None] * q_ratio - torch.arange(keys)[None] * k_ratio
    return distances + (k_scale - 1) * k_ratio


@functools.lru_cache(maxsize=512)
@torch.inference_mode(False)
def temporal(queries: int, keys: int, stride: int, device: torch.device) -> Lookup:
    """The rows for times; keys are `stride` steps apart, the last of them at the time of the first query.

    So the present clip has stride 1, and the entries of memory are one long time axis that ends where it begins.
    """
    rows = torch.arange(queries)[:, None] + stride * (keys - 1 - torch.arange(keys)[None])
    return Lookup(rows.to(device), 0)


class Tables(NamedTuple):
    """Tables (rows, D) of times, heights and widths."""

    t: Tensor
    h: Tensor
    w: Tensor


class Memory(NamedTuple):
    """How many earlier clips are attended, the grid of one of them, and the tables for them."""

    entries: int
    grid: Grid
    stride: int
    """Frames of the present clip to one of theirs."""
    tables: Tables


def query_channels(
    q: Tensor, queries: Grid, keys: Grid, tables: Tables, memory: Memory | None, *, causal: bool = False
) -> Tensor:
    """Queries (B, heads, 1 + T·H·W, D) -> their channels (B, heads, 1 + T·H·W, channels), 0 for the class token.

    With `causal` the channels of frames after the query's are MASKED.
    """
    axes = [temporal(queries[0], keys[0], 1, q.device), *spatial(queries, keys, q.device)]
    found = [axis.read(table) for axis, table in zip(axes, tables, strict=True)]
    if memory is not None:
        frames = memory.entries * memory.grid[0]
        axes = [temporal(queries[0], frames, memory.stride, q.device), *spatial(queries, memory.grid, q.device)]
        also = [axis.read(table) for axis, table in zip(axes, memory.tables, strict=True)]
        found = [torch.cat(pair, 1) for pair in zip(found, also, strict=True)]
    times, heights, widths = (rows.to(q.dtype).transpose(1, 2) for rows in found)  # (queries, D, keys)

    t, h, w = queries
    patches = q[:, :, 1:].unflatten(2, queries)  # (B, heads, t, h, w, D)
    by_time = (patches.flatten(3, 4) @ times).unflatten(3, (h, w))
    if causal:
        later = torch.ones(t, keys[0], dtype=torch.bool, device=q.device).triu(1)
        later = F.pad(later, (0, by_time.shape[-1] - keys[0]))  # memory is never later
        by_time = by_time.masked_fill(later[:, None, None], MASKED)
    by_row = patches @ heights
    by_column = (patches.transpose(3, 4) @ widths).transpose(3, 4)
    channels = torch.cat([by_time, by_row, by_column], -1).flatten(2, 4)
    return F.pad(channels, (0, 0, 1, 0))


@functools.lru_cache(maxsize=512)
@torch.inference_mode(False)
def key_channels(keys: Grid, entries: int, memory: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The ones of keys (entries of memory, oldest first, then the present clip; each a class token and patches).

    Shape (keys, channels), in the order of `query_channels`: frames, frames of memory, rows, rows of memory, ...
    """
    past = (entries * memory[0], memory[1], memory[2]) if entries else (0, 0, 0)
    starts, total = [], 0
    for present, remembered in zip(keys, past, strict=True):
        starts.append((total, total + present))
        total += present + remembered
    parts = []
    for entry in range(entries):
        offsets = (starts[0][1] + entry * memory[0], starts[1][1], starts[2][1])
        parts.append(_ones(memory, offsets, total))
    parts.append(_ones(keys, (starts[0][0], starts[1][0], starts[2][0]), total))
    return torch.cat(parts).to(device, dtype)


def _ones(grid: Grid, offsets: tuple[int, int, int], channels: int) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    places = torch.stack([axis.flatten() + offset for axis, offset in zip(axes, offsets, strict=True)], 1)
    rows = torch.zeros(len(places), channels).scatter_(1, places, 1.0)
    return F.pad(rows, (0, 0, 1, 0))
