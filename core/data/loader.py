"""The loader: workers, resuming, the way to the device, and the account of what could not be read."""

import logging
import multiprocessing
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from core import dist
from core.config import Section
from core.data.batches import Batch, Sample, stack, to_device
from core.data.order import Order, Sampler, randomness
from core.data.reader import Dataset, Packet, Plans, Reader, as_it_is, prepare_worker

FIRST_SAMPLES = 1000  # the share of bad samples is taken of at least so many, so that a bad start does not end a run
OPEN_FILES = 65_536


class LoaderConfig(Section):
    """How batches are made."""

    batch_size: int = Field(8, ge=1, description="samples per batch, on each process")
    workers: int = Field(2, ge=0, description="processes that read samples; 0 reads them in the main process")
    prefetch: int = Field(2, ge=1, description="batches that each worker holds ready")
    seed: int = Field(0, description="seed of the order and of each sample's randomness")
    drop_last: bool = Field(False, description="leave out the incomplete last batch of a training epoch")
    max_bad: float = Field(0.01, ge=0, le=1, description="share of unreadable samples above which training stops")


class TooManyBadFiles(ValueError):  # noqa: N818 - it names the event, like StopIteration
    """More samples could not be read than `LoaderConfig.max_bad` allows."""


class WorkerDied(RuntimeError):  # noqa: N818 - it names the event, like StopIteration
    """A worker process was killed or crashed; the message says what to change."""


@dataclass(frozen=True)
class Coverage:
    """How many samples were asked for and read, and which files were bad and why, over all processes."""

    expected: int
    scored: int
    bad: dict[str, str]

    def __str__(self) -> str:
        files = "; ".join(f"{path} ({reason})" for path, reason in sorted(self.bad.items()))
        return f"{self.scored} of {self.expected} samples" + (f"; unreadable: {files}" if files else "")


class Loader:
    """Batches of a dataset, on `device`; this process's part according to `dist.world()`, see `Sampler`, or in another
    order of one's own: `sampler`.

    `collate` makes a batch of samples in the workers; `transform(batch, rngs)` changes it in the main process, on the
    device, with one generator for each sample of the batch.

    Training goes through epochs, from where `load_state_dict` put it: `for epoch in loader.epochs(until)`, and in it
    `for batch in loader`. Evaluation goes through all samples each time.

    A bad file is named once as a warning and kept in `bad`, path -> reason. In training another sample takes its
    place, until more than the share `max_bad` of the samples seen, or of the first 1000, were replaced (one always may
    be, unless `max_bad` is 0). In evaluation it is left out. `coverage()` counts.

    `wait_s` is how long the loop waited for its latest batch, `wait_share` the share of this pass spent waiting.

    Raises, on the way: TooManyBadFiles; WorkerDied; whatever else the dataset raises.
    """

    def __init__(
        self,
        dataset: Dataset,
        cfg: LoaderConfig,
        *,
        train: bool,
        device: torch.device | str = "cpu",
        collate: Callable[[Sequence[Sample]], Batch] = stack,
        transform: Callable[[Batch, list[random.Random]], Batch] | None = None,
        sampler: Order | None = None,
    ) -> None:
        world = dist.world()
        self.dataset, self.cfg, self.train, self.transform = dataset, cfg, train, transform
        self.device = torch.device(device)
        if sampler is None:
            drop_last = cfg.drop_last and train
            sampler = Sampler(len(dataset), cfg.batch_size, train, cfg.seed, drop_last, world.rank, world.size)
        self.sampler: Order = sampler
        if len(dataset) == 0:
            raise ValueError(f"the dataset {type(dataset).__name__} has no samples; check its paths and its split")
        if train and len(self) == 0:
            raise ValueError(
                f"{len(dataset)} samples are not one batch of {cfg.batch_size} on each of {world.size} processes; "
                "lower loader.batch_size or set loader.drop_last=false"
            )
        self.bad: dict[str, str] = {}
        self.expected = self.scored = 0
        self.wait_s = self.wait_share = 0.0
        self._reader = Reader(dataset, collate, cfg.seed, train)
        self._plans = Plans(self.sampler)
        self._torch: torch.utils.data.DataLoader[Packet] | None = None
        self._stream: Iterator[Packet] | None = None
        self._next = (0, 0)  # the epoch and batch that the stream gives next
        self._workers: set[Any] = set()
        self._epoch = self._batch = 0

    def __len__(self) -> int:
        """Batches of an epoch on this process; in training the same number on all."""
        return len(self.sampler)

    def epochs(self, until: int) -> Iterator[int]:
        """The epochs from the present one to before `until`; after each the loader stands at the start of the next."""
        if until != self._plans.until:
            self._plans.until, self._stream = until, None
        while (epoch := self._epoch) < until:
            yield epoch
            if self._epoch == epoch:
                self.end_epoch()

    def end_epoch(self) -> None:
        """Stand at the start of the next epoch: for what is saved once this one is evaluated too."""
        self._epoch, self._batch = self._epoch + 1, 0

    @property
    def batch(self) -> int:
        """Batches of the present epoch that the loop was given so far."""
        return self._batch

    def state_dict(self) -> dict[str, int]:
        """Where training is: in an epoch, after as many batches as the loop was given."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there; if the epoch was at its end, with that epoch and none of its batches.

        Raises: ValueError when an epoch has not so many batches.
        """
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(
                f"the saved state is at batch {batch} of epoch {epoch}, but an epoch has {len(self)} batches; resume "
                "with the dataset, loader.batch_size and number of processes of the run that was saved"
            )
        self._epoch, self._batch = epoch, batch

    def coverage(self) -> Coverage:
        """How much was asked for and read, summed over all processes, which must all ask.

        In evaluation of the latest pass; in training of all batches so far, a replaced sample counting as not read.
        """
        parts = dist.gather((self.expected, self.scored, self.bad))
        bad = {path: reason for _, _, files in parts for path, reason in files.items()}
        return Coverage(sum(part[0] for part in parts), sum(part[1] for part in parts), bad)

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the present epoch in training, everything in evaluation."""
        if not self.train:
            self._plans.until = 1
            self.bad, self.expected, self.scored = {}, 0, 0
        packets = self._packets(self._epoch, self._batch) if self.train else self._packets(0, 0)
        if self.device.type == "cuda":
            packets = self._sent_ahead(packets)
        begin = since = time.perf_counter()
        waited = 0.0
        for packet in packets:
            now = time.perf_counter()
            self.wait_s = now - since
            waited += self.wait_s
            self.wait_share = waited / max(now - begin, 1e-9)
            self._count(packet)
            if self.train:
                self._batch += 1
            if packet.batch is not None:
                batch = to_device(packet.batch, self.device)
                if self.transform is not None:
                    rngs = [randomness(self.cfg.seed, packet.plan.epoch, i, "transform") for i in packet.indices]
                    batch = self.transform(batch, rngs)
                yield batch
            since = time.perf_counter()

    def close(self) -> None:
        """End the workers, also one that is stuck in a file; iterating again starts others."""
        self._stream = self._torch = None  # torch asks them to end, and waits a few seconds
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        self._workers = set()

    def __del__(self) -> None:
        with suppress(Exception):  # only half made, or the interpreter is ending
            self.close()

    def _packets(self, epoch: int, batch: int) -> Iterator[Packet]:
        """What is left of an epoch. The workers then go on with the next one, so that it starts without a pause."""
        for number in range(batch, len(self)):
            if self._stream is None or self._next != (epoch, number):
                self._stream = self._open(epoch, number)
            packet = self._receive(self._stream)
            self._next = (epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0)
            yield packet

    def _open(self, epoch: int, batch: int) -> Iterator[Packet]:
        """A stream of packets from there on; workers are started unless there are some already."""
        workers = self.cfg.workers
        if self._torch is None:
            self._torch = torch.utils.data.DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._plans,
                num_workers=workers,
                prefetch_factor=self.cfg.prefetch if workers else None,
                persistent_workers=workers > 0,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=prepare_worker,
                collate_fn=as_it_is,  # type: ignore[arg-type]  # it is given what the reader gives, not a list
                generator=torch.Generator().manual_seed(self.cfg.seed),  # else it draws from the global one
            )
        self._plans.start = (epoch, batch)
        if workers == 0:
            return iter(self._torch)
        _allow_open_files()
        others = set(multiprocessing.active_children())
        # Torch would raise from a signal handler whenever a worker dies: anywhere, even while a checkpoint is written.
        # Without the handler it is noticed where the batch is missing, and `_receive` can say what to do.
        death = getattr(signal, "SIGCHLD", None)  # Windows knows no such signal
        handler = None if death is None else signal.getsignal(death)
        stream = iter(self._torch)
        if death is not None and handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(death, handler)
        self._workers |= set(multiprocessing.active_children()) - others
        return stream

    def _receive(self, stream: Iterator[Packet]) -> Packet:
        """The next packet. Raises: WorkerDied; after any error the next pass opens another stream."""
        try:
            return next(stream)
        except BaseException as error:
            dead = [worker for worker in self._workers if worker.exitcode not in (None, 0)]
            self._stream, self._torch, self._workers = None, None, set()  # they end when the error is dealt with
            if isinstance(error, RuntimeError) and dead:
                raise WorkerDied(_obituary(dead[0].pid, dead[0].exitcode)) from error
            raise

    def _sent_ahead(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """Packets on the GPU: each is copied, on a stream of its own, while the loop works on the one before."""
        side = torch.cuda.Stream(self.device)

        def send(packet: Packet) -> tuple[Packet, torch.cuda.Event]:
            with torch.cuda.stream(side):
                return packet.apply(lambda tensor: tensor.to(self.device, non_blocking=True)), side.record_event()

        def arrive(packet: Packet, sent: torch.cuda.Event) -> Packet:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent)

            def used(tensor: Tensor) -> Tensor:
                tensor.record_stream(current)  # the side stream owns the memory and must not reuse it too early
                return tensor

            return packet.apply(used)

        ahead: tuple[Packet, torch.cuda.Event] | None = None
        for packet in packets:
            before, ahead = ahead, send(packet)
            if before is not None:
                yield arrive(*before)
        if ahead is not None:
            yield arrive(*ahead)

    def _count(self, packet: Packet) -> None:
        """Keep account of what was read. Raises: TooManyBadFiles in training."""
        fate = "another sample takes its place" if self.train else "it is left out of the results"
        for path, reason in packet.bad.items():
            if path not in self.bad:
                logging.getLogger(__name__).warning("%s: %s; %s", path, reason, fate)
        self.bad |= packet.bad
        self.expected += len(packet.plan.indices)
        self.scored += len(packet.indices) - packet.replaced
        if not self.train:
            return
        lost = self.expected - self.scored
        seen = max(self.expected, min(len(self) * self.cfg.batch_size, FIRST_SAMPLES))
        allowed = max(1.0, self.cfg.max_bad * seen) if self.cfg.max_bad > 0 else 0.0
        alone = len(packet.indices) < len(packet.plan.indices)
        if lost > allowed or alone:
            self.close()
            limit = "nor could others instead" if alone else f"loader.max_bad={self.cfg.max_bad:g} allows {allowed:.0f}"
            files = [f"{path}: {reason}" for path, reason in self.bad.items()]
            more = [f"... and {len(files) - 10} more"] if len(files) > 10 else []
            raise TooManyBadFiles(
                f"{lost} of {self.expected} samples could not be read, {limit}. Is the dataset complete, and its disk "
                "there? Repair or remove these files, or raise loader.max_bad:\n  " + "\n  ".join(files[:10] + more)
            )


def _obituary(pid: int, exitcode: int) -> str:
    """What became of a worker, and what to do."""
    cause = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
    less = "lower loader.workers, loader.prefetch or loader.batch_size"
    advice = {
        "SIGKILL": f"the machine was probably out of memory: {less}",
        "SIGBUS": f"/dev/shm is probably full: {less}, or enlarge it (docker run --shm-size=8g)",
    }.get(cause, "a library probably crashed on a file: loader.workers=0 shows on which")
    return f"loader worker {pid} died ({cause}); {advice}"


def _allow_open_files() -> None:
    """Every tensor on its way from a worker holds a file open, and the usual limit of 1024 is soon reached."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wish = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wish:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))
    if wish < 4096:
        torch.multiprocessing.set_sharing_strategy("file_system")  # names in /dev/shm instead of open files
