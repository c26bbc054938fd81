"""Which samples form which batch on which process, and the randomness that each of them gets."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch


def randomness(seed: int, epoch: int, *purpose: int | str) -> random.Random:
    """A generator for one purpose, such as one sample of one epoch; its seed is text, which Python hashes well."""
    return random.Random("/".join(map(str, (seed, epoch, *purpose))))


class Order(Protocol):
    """Which samples form which batch on this process; in training as many batches on every process."""

    def __len__(self) -> int:
        """Batches of an epoch on this process."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from number `start` on, as indices of samples."""


@dataclass(frozen=True)
class Sampler:
    """The batches of one process, `rank` of `size`, as indices of samples.

    Training: a permutation by (seed, epoch), cut into global batches of R·b samples for R processes and the batch size
    b; process r takes samples r·b to (r+1)·b of each, so that R processes train on what one with batch size R·b would.
    All have equally many batches. The incomplete last global batch is shared out as evenly as possible; if it has
    fewer samples than there are processes, those left over repeat one of them; with `drop_last` it is left out.

    Evaluation: every sample once on exactly one process, in order of index, nothing repeated. Batch k of the
    one-process order goes to process k mod R: batches hold the same samples for any R, and a process may have one less.
    """

    samples: int
    batch_size: int
    train: bool
    seed: int = 0
    drop_last: bool = False
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        """Batches of an epoch on this process."""
        if self.train:
            group = self.batch_size * self.size
            return self.samples // group if self.drop_last else _ceil(self.samples, group)
        return max(0, _ceil(_ceil(self.samples, self.batch_size) - self.rank, self.size))

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from number `start` on."""
        if self.train:
            generator = torch.Generator().manual_seed(randomness(self.seed, epoch, "order").getrandbits(63))
            order = torch.randperm(self.samples, generator=generator)
            group = self.batch_size * self.size
            for batch in range(start, len(self)):
                yield self.share(order[batch * group : (batch + 1) * group].tolist())
        else:
            for batch in range(start, len(self)):
                first = (batch * self.size + self.rank) * self.batch_size
                yield list(range(first, min(first + self.batch_size, self.samples)))

    def share(self, group: list[int]) -> list[int]:
        """This process's part of a global batch."""
        count = len(group)
        if count < self.size:
            return [group[self.rank % count]]
        return group[self.rank * count // self.size : (self.rank + 1) * count // self.size]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
