"""What MeMViT remembers of earlier clips: for each stream by itself, or batch by batch as the original does.

A memory sees every forward pass twice: `begin` hears which streams the batch holds and decides which earlier clips are
attended; `exchange`, called by each block that remembers, gives their keys and values and takes those of the present
clips. All bookkeeping is Python on the CPU: nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from core import dist
from projects.lta_memvit.model.plan import Grid

Pair = tuple[Tensor, Tensor]
"""Keys and values."""


class Past(NamedTuple):
    """What a block attends to of earlier clips, oldest first: projected keys and values (B, entries·tokens, D)."""

    keys: Tensor
    values: Tensor
    entries: int
    grid: Grid
    """Of one entry."""
    missing: Tensor | None
    """bool (B, entries): True where a stream has no such entry; None when all have all."""


class Attention(Protocol):
    """What a memory needs of the block that remembers."""

    @property
    def learns(self) -> bool:
        """Will there be gradients for the compression?"""

    def compress(self, k: Tensor, v: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Grid]:
        """Pooled keys and values (B, 1 + tokens, C) of a clip -> fewer of them, and their grid."""

    def project(self, k: Tensor, v: Tensor) -> Pair:
        """(B, tokens, C) -> (B, tokens, D)."""


@dataclass(frozen=True)
class Reach:
    """Which earlier clips are attended: every `gap`-th, up to `count` of them."""

    gap: int
    count: int

    @classmethod
    def of(cls, sampler: str, length: int) -> Reach:
        """From the original's settings: "all" or "gap2", and the number of clips with the present one."""
        return cls(1 if sampler == "all" else int(sampler.removeprefix("gap")), length - 1)

    @property
    def capacity(self) -> int:
        """Clips to keep."""
        return self.gap * self.count

    def select(self, kept: int) -> list[int]:
        """Which of so many kept clips are attended, as indices from the oldest."""
        count = min(kept // self.gap, self.count)
        return [kept - self.gap * back for back in range(count, 0, -1)]


@dataclass
class Stream:
    """The latest clips of one stream, oldest first: for each, what every block keeps of it."""

    clips: list[dict[int, Pair]] = field(default_factory=list)
    seen: int = 0
    """The number of the forward pass that saw it last."""
    window: dict[int, Tensor] = field(default_factory=dict)
    """Features (D,) of its latest segments, by their places."""


class ClipMemory:
    """One stream for each key, so that what a clip sees depends on its own stream alone, whatever else is in the batch.

    In training raw keys and values are kept and compressed when they are attended, so that the compression learns under
    any gap; else they are compressed and projected once, and only these few tokens are kept. Streams that were not seen
    for `patience` forward passes are forgotten: the memory of a long evaluation is bounded.
    """

    def __init__(self, reach: Reach, patience: int = 32) -> None:
        self.reach, self.patience = reach, patience
        self.streams: dict[Hashable, Stream] = {}
        self._passes = 0
        self._raw = False
        self._present: list[Stream] = []
        self._attended: list[list[dict[int, Pair] | None]] = []
        self._missing: Tensor | None = None
        self._grids: dict[int, Grid] = {}

    def begin(self, keys: Sequence[Hashable], attention: Attention, device: torch.device) -> None:
        """A forward pass of one clip of each of these streams begins.

        Raises: ValueError when two clips of a batch belong to one stream: which of them comes first?
        """
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if list(keys).count(key) > 1)
            raise ValueError(
                f"stream {twice!r} is twice in a batch; the clips of a stream come one after the other, as the orders "
                "of order.py give them (or set memory.mode=off)"
            )
        if attention.learns != self._raw:
            self.clear()
            self._raw = attention.learns
        self._passes += 1
        self.streams = {k: s for k, s in self.streams.items() if s.seen >= self._passes - self.patience}
        self._present = [self.streams.setdefault(key, Stream()) for key in keys]
        chosen = [[s.clips[i] for i in self.reach.select(len(s.clips))] for s in self._present]
        count = max(len(clips) for clips in chosen)
        if self._raw:
            count = max(count, 1)  # every parameter gets a gradient in every step, as data parallelism wants
        padded = [[None] * (count - len(clips)) + clips for clips in chosen]  # the newest are aligned
        self._attended = [list(column) for column in zip(*padded, strict=True)]
        missing = [[clip is None for clip in row] for row in padded]
        some = any(any(row) for row in missing)
        self._missing = torch.tensor(missing).to(device, non_blocking=True) if some else None
        for stream in self._present:
            stream.clips = [*stream.clips, {}][-self.reach.capacity :]
            stream.seen = self._passes

    def exchange(self, block: int, attention: Attention, k: Tensor, v: Tensor, grid: Grid) -> Past | None:
        """Take the pooled keys and values (B, 1 + tokens, C) of the present clips; what is attended of earlier ones."""
        past = self._recall(block, attention, k, v, grid)
        with torch.no_grad():
            if self._raw:
                kept_k, kept_v = k.detach(), v.detach()
            else:
                small_k, small_v, self._grids[block] = attention.compress(k, v, grid)
                kept_k, kept_v = attention.project(small_k, small_v)
        for stream, *pair in zip(self._present, kept_k.split(1), kept_v.split(1), strict=True):
            stream.clips[-1][block] = (pair[0], pair[1])
        return past

    def _recall(self, block: int, attention: Attention, k: Tensor, v: Tensor, grid: Grid) -> Past | None:
        entries = len(self._attended)
        if not entries:
            return None
        known = next((clip[block] for clips in self._attended for clip in clips if clip is not None), (k[:1], v[:1]))
        blank = (torch.zeros_like(known[0]), torch.zeros_like(known[1]))  # its keys will be masked
        pairs = [blank if clip is None else clip[block] for clips in self._attended for clip in clips]
        keys, values = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))  # (entries·B, tokens, ...)
        if self._raw:
            keys, values, grid = attention.compress(keys, values, grid)
            keys, values = attention.project(keys, values)
        else:
            grid = self._grids[block]
        keys, values = (x.unflatten(0, (entries, -1)).transpose(0, 1).flatten(1, 2) for x in (keys, values))
        return Past(keys, values, entries, grid, self._missing)

    def window(self, key: Hashable, position: int, size: int) -> dict[int, Tensor]:
        """Known features of the `size` segments up to `position`; a stream that would go back is forgotten first."""
        stream = self.streams.get(key)
        if stream is not None and stream.window and max(stream.window) >= position:
            del self.streams[key]
        known = self.streams[key].window if key in self.streams else {}
        return {place: feature for place, feature in known.items() if place > position - size}

    def keep_window(self, key: Hashable, features: Mapping[int, Tensor]) -> None:
        """Remember the features of the latest segments of a stream, by their places."""
        self.streams[key].window = {place: feature.detach() for place, feature in features.items()}

    def clear(self) -> None:
        """Forget everything: at the start of an epoch or an evaluation, or when the weights have changed."""
        self.streams = {}

    def state_dict(self) -> dict[str, Any]:
        """The streams of every process, on the CPU; all processes have to ask."""
        own = {
            key: {
                "clips": [{block: (k.cpu(), v.cpu()) for block, (k, v) in clip.items()} for clip in stream.clips],
                "window": {place: feature.cpu() for place, feature in stream.window.items()},
                "age": self._passes - stream.seen,
            }
            for key, stream in self.streams.items()
        }
        return {"raw": self._raw, "grids": dict(self._grids), "streams": dist.gather(own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the streams of this process; with another number of processes, with none."""
        self.clear()
        world = dist.world()
        self._raw = state["raw"]
        self._grids = {block: (grid[0], grid[1], grid[2]) for block, grid in state["grids"].items()}
        if len(state["streams"]) != world.size:
            return
        for key, saved in state["streams"][world.rank].items():
            clips = [
                {block: (k.to(world.device), v.to(world.device)) for block, (k, v) in clip.items()}
                for clip in saved["clips"]
            ]
            window = {place: feature.to(world.device) for place, feature in saved["window"].items()}
            self.streams[key] = Stream(clips, self._passes - saved["age"], window)


class BatchMemory:
    """The original's cache: one entry for each forward pass, rows compared by name.

    Rows of an entry whose name is another now become zeros for good and are attended all the same; with a batch of one
    such an entry is removed instead. The newest entry is compressed in the pass after its own.
    """

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.names: list[list[Hashable]] = []
        self.entries: dict[int, list[Pair]] = {}
        self.selection: list[int] = []
        """What the present pass attends to, as indices before it began."""
        self._kept: list[int] = []
        self._selected: list[int] = []
        self._changed: list[list[int]] = []

    def begin(self, keys: Sequence[Hashable], attention: Attention, device: torch.device) -> None:
        """A forward pass of one clip of each of these videos begins.

        Raises: ValueError for a batch larger than the one before it.
        """
        if self.names and len(self.names[-1]) < len(keys):
            raise ValueError(
                f"a batch of {len(keys)} follows one of {len(self.names[-1])}; memory.mode=reference takes no growing "
                "batches: clear it before, or use memory.mode=clip"
            )
        self.selection = self.reach.select(len(self.names))
        self._changed = [
            [row for row, (old, new) in enumerate(zip(names, keys, strict=False)) if old != new] for names in self.names
        ]
        alone = bool(self.names) and len(self.names[0]) == 1
        self._kept = [i for i, rows in enumerate(self._changed) if not (rows and alone)]
        self._selected = [self._kept.index(i) for i in self.selection if i in self._kept]
        self.names = [*(self.names[i] for i in self._kept), list(keys)][-self.reach.capacity :]

    def exchange(self, block: int, attention: Attention, k: Tensor, v: Tensor, grid: Grid) -> Past | None:
        """Take the pooled keys and values (B, 1 + tokens, C) of the present clips; what is attended of earlier ones."""
        entries = self.entries.get(block, [])
        for pair, rows in zip(entries, self._changed, strict=True):
            for tensor in pair:
                for row in rows:
                    tensor[row].zero_()
        entries = [entries[i] for i in self._kept]
        small: Grid = (0, 0, 0)
        if entries:
            keys, values, small = attention.compress(*entries[-1], grid)
            entries[-1] = (keys, values)
        chosen = [entries[i] for i in self._selected]
        past = None
        if chosen:
            keys, values = (torch.cat([pair[i][: len(k)] for pair in chosen], 1) for i in (0, 1))
            past = Past(*attention.project(keys, values), len(chosen), small, None)
        entries = [(k.detach(), v.detach()) for k, v in entries]
        self.entries[block] = [*entries, (k.detach(), v.detach())][-self.reach.capacity :]
        return past

    def clear(self) -> None:
        """Forget everything."""
        self.names, self.entries = [], {}

    def state_dict(self) -> dict[str, Any]:
        """The entries of every process, on the CPU; all processes have to ask."""
        own = {block: [(k.cpu(), v.cpu()) for k, v in pairs] for block, pairs in self.entries.items()}
        return {"names": dist.gather(self.names), "entries": dist.gather(own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the entries of this process; with another number of processes, with none."""
        self.clear()
        world = dist.world()
        if len(state["names"]) == world.size:
            self.names = [list(names) for names in state["names"][world.rank]]
            device = world.device
            for block, pairs in state["entries"][world.rank].items():
                self.entries[block] = [(k.to(device), v.to(device)) for k, v in pairs]


Memory = ClipMemory | BatchMemory
