"""In which order samples come when the network remembers: clip by clip, forward in time, several clips side by side.

`streams` tells for every sample of a dataset its clip and its place in it. Each row of the global batch is a walk
through such clips; what is remembered belongs to a clip in a row, so all orders give the same results for any number of
processes that share out the rows.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from core import dist
from core.data import Order
from core.data.order import randomness
from projects.lta_memvit.config import Config

Streams = Sequence[tuple[Hashable, int]]


def sampler(streams: Streams, cfg: Config, batch_size: int, *, train: bool, whole: bool = False) -> Order | None:
    """The order that the network's memory needs; None where it has none, and any order does.

    With `whole` an evaluation keeps every clip on one process and in time order even so.
    """
    remembers = cfg.model.backbone.startswith("memvit") and cfg.memory.mode != "off"
    if not remembers and not whole:
        return None
    clips, world = by_clip(streams), dist.world()
    if not train:
        return WholeClips.of(clips, batch_size, world.rank, world.size)
    kind = Runs if cfg.memory.order == "runs" else ReferenceRuns
    return kind(clips, batch_size, cfg.loader.seed, cfg.loader.drop_last, world.rank, world.size)


def by_clip(streams: Streams) -> list[list[int]]:
    """The samples of every clip, forward in time; clips in order of their first sample."""
    clips: dict[Hashable, list[int]] = {}
    for index, (clip, _) in enumerate(streams):
        clips.setdefault(clip, []).append(index)
    return [sorted(indices, key=lambda index: streams[index][1]) for indices in clips.values()]


@dataclass(frozen=True)
class WholeClips:
    """Evaluation: every sample once, each row of a batch one clip after the other, whole and forward in time.

    Long clips come first and each goes to the row that is free first, so that all rows end at about the same time.
    """

    rows: list[list[int]]
    """The samples of each row of this process."""

    @classmethod
    def of(cls, clips: Sequence[Sequence[int]], batch_size: int, rank: int = 0, size: int = 1) -> WholeClips:
        """The rows of process `rank` of `size`."""
        rows: list[list[int]] = [[] for _ in range(batch_size * size)]
        # The first rows of all processes come before the second ones: few clips still keep all of them busy.
        free = [(0, number) for number in range(len(rows))]
        for clip in sorted(clips, key=len, reverse=True):
            length, number = heapq.heappop(free)
            rows[number % size * batch_size + number // size] += clip
            heapq.heappush(free, (length + len(clip), number))
        return cls(rows[rank * batch_size : (rank + 1) * batch_size])

    def __len__(self) -> int:
        """Batches on this process."""
        return max(map(len, self.rows))

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The batches from number `start` on; the last ones may lack rows that have ended."""
        for step in range(start, len(self)):
            yield [row[step] for row in self.rows if step < len(row)]


@dataclass(frozen=True)
class Runs:
    """Training: the clips in random order, joined and cut into equal runs, one for each row of the global batch.

    Every sample comes at least once in an epoch; runs share a sample at some of their borders where they do not divide
    evenly. All batches are full, so nothing is dropped.
    """

    clips: list[list[int]]
    batch_size: int
    seed: int = 0
    drop_last: bool = False
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        """Batches of an epoch on this process."""
        return -(-sum(map(len, self.clips)) // (self.batch_size * self.size))

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from number `start` on."""
        clips = list(self.clips)
        randomness(self.seed, epoch, "order").shuffle(clips)
        line = [index for clip in clips for index in clip]
        rows = self.batch_size * self.size
        first = self.rank * self.batch_size
        begins = [row * len(line) // rows for row in range(first, first + self.batch_size)]
        for step in range(start, len(self)):
            yield [line[begin + step] for begin in begins]


@dataclass(frozen=True)
class ReferenceRuns:
    """Training in the order of MeMViT's published code.

    The clips are shuffled with the epoch as seed. Item d of an epoch is sample d // S + ceil(n / S) * (d % S), modulo
    n, for S rows and n samples, and there are n items: where S does not divide n, some samples come twice and others
    not at all.
    """

    clips: list[list[int]]
    batch_size: int
    seed: int = 0
    drop_last: bool = False
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        """Batches of an epoch on this process."""
        count, rows = sum(map(len, self.clips)), self.batch_size * self.size
        return count // rows if self.drop_last else -(-count // rows)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from number `start` on; the last may be smaller."""
        clips = list(self.clips)
        random.Random(epoch).shuffle(clips)
        line = [index for clip in clips for index in clip]
        count, rows = len(line), self.batch_size * self.size
        length = -(-count // rows)
        for step in range(start, len(self)):
            first = step * rows + self.rank
            items = range(first, min((step + 1) * rows, count), self.size) or [first % count]  # nobody goes without
            yield [line[(item // rows + length * (item % rows)) % count] for item in items]
