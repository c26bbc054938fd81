"""From indices to a batch, in a worker process or in the main one."""

import gc
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from core.data.batches import Batch, Sample, map_tensors
from core.data.order import Order, randomness

SUBSTITUTES = 20  # samples tried in place of one that cannot be read


class Dataset(Protocol):
    """Samples by number."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: random.Random) -> Sample:
        """One sample: a unique "id" and what the model needs, on the CPU and not yet normalized.

        All chance comes from `rng`. It runs in worker processes, so a file that is kept open is opened there.

        Raises: SampleError or core.video.VideoError for a bad file; any other error ends the run.
        """
        ...


class SampleError(ValueError):
    """A sample that cannot be used: `path` is its file, `reason` what is wrong with it."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Plan(NamedTuple):
    """One batch to read."""

    epoch: int
    indices: list[int]


class Plans:
    """The batches to read from `start` (epoch, batch) to the end of the epoch before `until`, with no pause between."""

    def __init__(self, sampler: Order) -> None:
        self.sampler = sampler
        self.start = (0, 0)
        self.until: int | None = None

    def __iter__(self) -> Iterator[Plan]:
        epoch, batch = self.start
        while self.until is None or epoch < self.until:
            for indices in self.sampler.batches(epoch, batch):
                yield Plan(epoch, indices)
            epoch, batch = epoch + 1, 0


@dataclass
class Packet:
    """What a plan became: a batch of the samples `indices`, `replaced` of which are substitutes.

    `batch` is None when no sample was left. `bad` maps the files that could not be read to reasons.
    """

    plan: Plan
    batch: Batch | None = None
    indices: list[int] = field(default_factory=list)
    replaced: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Packet":
        """The packet with each tensor of its batch replaced by the function's answer."""
        return replace(self, batch=map_tensors(self.batch, function))

    def pin_memory(self) -> "Packet":
        """Called by torch's DataLoader before a copy to a GPU."""
        return self.apply(Tensor.pin_memory)


class Reader(torch.utils.data.Dataset[Packet]):
    """Reads and collates the samples of a plan. Workers get a copy of it, so with spawned ones it must pickle."""

    def __init__(self, dataset: Dataset, collate: Callable[[Sequence[Sample]], Batch], seed: int, train: bool) -> None:
        self.dataset, self.collate, self.seed, self.train = dataset, collate, seed, train

    def __getitem__(self, plan: Plan) -> Packet:
        packet, samples = Packet(plan), []
        for index in plan.indices:
            sample = self._read(index, randomness(self.seed, plan.epoch, index), packet)
            if sample is None and self.train:
                sample = self._substitute(index, packet)
                packet.replaced += sample is not None
            if sample is not None:
                samples.append(sample)
                packet.indices.append(index)
        if samples:
            packet.batch = self.collate(samples)
        if torch.utils.data.get_worker_info() is None:
            return packet
        # A thread of the worker would do this later, but when /dev/shm is full nobody hears of its error.
        return packet.apply(Tensor.share_memory_)

    def _read(self, index: int, rng: random.Random, packet: Packet) -> Sample | None:
        """The sample, or None for a bad file, which goes on record."""
        try:
            return self.dataset.sample(index, rng)
        except Exception as error:
            path, reason = getattr(error, "path", None), getattr(error, "reason", None)
            if not isinstance(error, ValueError) or path is None or reason is None:
                error.add_note(f"while reading sample {index} of {type(self.dataset).__name__}, {packet.plan.epoch=}")
                raise
            packet.bad[str(path)] = str(reason)
            return None

    def _substitute(self, index: int, packet: Packet) -> Sample | None:
        """Another sample in place of a bad one, the same one whoever reads it."""
        rng = randomness(self.seed, packet.plan.epoch, index, "substitute")
        others = (self._read(rng.randrange(len(self.dataset)), rng, packet) for _ in range(SUBSTITUTES))
        return next((sample for sample in others if sample is not None), None)


def prepare_worker(_: int) -> None:
    """Make the process a quiet servant: one thread, deaf to signals meant for the run, little memory of its own.

    The main process ends its workers by a message, or by SIGKILL.
    """
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # Windows has two of them
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.freeze()  # garbage collection writes into the objects it visits, and so would copy the parent's memory


def as_it_is(packet: Packet) -> Packet:
    """For torch's DataLoader, which would collate: the reader has done it."""
    return packet
