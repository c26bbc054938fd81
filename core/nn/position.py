"""Learned position tables for inputs of another size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize_positions(
    table: Tensor, old_grid: Sequence[int], new_grid: Sequence[int], *, antialias: bool = False
) -> Tensor:
    """A learned position table for another grid; tokens in front of the grid's (class tokens) are kept as they are.

    Table (N,D) or (1,N,D) with N = class tokens + product of old_grid, to the same with new_grid. Grids are (T,),
    (H,W) or (T,H,W): rows and columns are resized bicubic, time linear, both with half-pixel centers. `antialias`
    averages over rows and columns when they get fewer.

    Raises:
        ValueError: for grids of another length, or a table smaller than its grid.
    """
    old, new = tuple(old_grid), tuple(new_grid)
    if len(old) != len(new) or not 1 <= len(old) <= 3 or min(*old, *new, 1) < 1:
        raise ValueError(f"grids must both be (T,), (H,W) or (T,H,W) with sizes of at least 1; got {old} and {new}")
    if table.ndim not in (2, 3) or (table.ndim == 3 and len(table) != 1):
        raise ValueError(f"a position table is (N,D) or (1,N,D); got {tuple(table.shape)}")
    extra = table.shape[-2] - math.prod(old)
    if extra < 0:
        raise ValueError(f"the table {tuple(table.shape)} has fewer rows than its grid {old}, {math.prod(old)}")
    if old == new:
        return table
    rows = table.reshape(-1, table.shape[-1]).float()
    grid = rows[extra:].unflatten(0, old)
    if old[-2:] != new[-2:] and len(old) > 1:
        planes = grid.unflatten(0, (1, old[0])) if len(old) == 2 else grid  # (T or 1,H,W,D)
        planes = F.interpolate(
            planes.movedim(-1, 1), new[-2:], mode="bicubic", align_corners=False, antialias=antialias
        ).movedim(1, -1)
        grid = planes.squeeze(0) if len(old) == 2 else planes
    if len(old) != 2 and old[0] != new[0]:
        line = grid.flatten(1).T[None]  # (1,H*W*D,T)
        line = F.interpolate(line, new[0], mode="linear", align_corners=False)[0]
        grid = line.T.unflatten(1, grid.shape[1:])
    tokens = rows.new_empty((extra + math.prod(new), rows.shape[1]))
    tokens[:extra], tokens[extra:] = rows[:extra], grid.reshape(-1, rows.shape[1])
    return tokens.to(table.dtype).view(*table.shape[:-2], *tokens.shape)
