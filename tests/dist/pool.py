"""Processes that stay: importing torch costs seconds, so tests send them functions instead of starting their own."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from typing import Any

LIMIT_S = 120.0


def free_port() -> int:
    """A port nobody listens on. Raises: OSError where sockets are forbidden."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pool:
    """Gloo processes, started when first needed; those of a smaller world are the first ones of a larger.

    A function is sent by name, so it stands at the top of its test module. When it fails on one process the others
    may wait for it forever: all are ended, the traceback is raised here, and the next call starts fresh ones.
    """

    def __init__(self) -> None:
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []
        self.size, self.port = 0, 0

    def run(self, size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The results of `function(*args)` in a world of `size` processes, in order of rank."""
        while len(self.processes) < size:
            self._start()
        if size != self.size:
            self.size, self.port = size, free_port()
        pipes = self.pipes[:size]
        for pipe in pipes:
            pipe.send((size, self.port, function, args))
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + LIMIT_S
        while len(answers) < size:
            for rank, pipe in enumerate(pipes):
                if rank in answers or not pipe.poll(0.01):
                    continue
                try:
                    answers[rank] = pipe.recv()
                except EOFError:
                    answers[rank] = (False, "it died")
            failed = {rank: text for rank, (ok, text) in answers.items() if not ok}
            if failed or time.monotonic() > end:
                self.close()
                late = [rank for rank in range(size) if rank not in answers]
                text = "\n".join(f"on process {rank}: {text}" for rank, text in sorted(failed.items()))
                raise AssertionError(text or f"no answer of processes {late} within {LIMIT_S:.0f} s")
        return [answers[rank][1] for rank in range(size)]

    def _start(self) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, len(self.processes)))
        process.start()
        theirs.close()
        self.processes.append(process)
        self.pipes.append(ours)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes, self.size = [], [], 0


class Team:
    """`team(function, *args)` runs it in `size` processes of the pool and returns their results by rank."""

    def __init__(self, pool: Pool, size: int) -> None:
        self.pool, self.size = pool, size

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        return self.pool.run(self.size, function, *args)


def _serve(pipe: Connection, rank: int) -> None:
    """One process of the pool: answer calls until the pipe closes, joining another world when the port changes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a test machine's own name often leads nowhere
    import torch

    from core import dist

    torch.set_num_threads(1)
    set_start_method("fork", force=True)  # loader workers would otherwise be spawned as we were, importing torch again
    joined = 0
    while True:
        try:
            size, port, function, args = pipe.recv()
        except EOFError:
            return
        try:
            if port != joined or dist.world().size != size:  # another world, or a whole run left it at its end
                dist.shutdown()
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                dist.init("cpu")
                joined = port
            torch.manual_seed(0)
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
