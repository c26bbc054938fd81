"""One experiment: its directory, device, seeds, provenance, and the wish to stop."""

import os
import platform
import random
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import simplejson
import torch
import yaml
from pydantic import Field

from core import config, dist
from core.checkpoint import write_atomic
from core.log import Log, NonFiniteLoss

# Every process asks the others only at these steps; asking costs one small message over the CPU.
ASK_EVERY = 4


class RunConfig(config.Section):
    """Where and how a run takes place; nothing here changes what is learned, except the seed."""

    out: Path = Field(Path("runs/run"), description="run directory; a run that is found there goes on")
    seed: int = Field(0, ge=0, description="seed of Python, NumPy and torch; each process adds its rank")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto (a GPU where there is one), cpu, cuda"
    )
    deterministic: bool = Field(False, description="only algorithms that repeat bit for bit; slower on a GPU")
    threads: int = Field(0, ge=0, description="threads of torch on the CPU; 0 leaves its own choice")
    log_every: int = Field(10, ge=1, description="optimizer steps between two rows of the log")
    save_every: int = Field(
        500, ge=0, description="optimizer steps between two checkpoints; 0: at the ends of epochs only"
    )
    eval_every: int = Field(1, ge=1, description="epochs between two evaluations")
    keep: int = Field(2, ge=1, description="checkpoints that are kept")


@dataclass
class Run:
    """What a loop needs from its run."""

    out: Path
    device: torch.device
    log: Log
    world: dist.World
    _signals: "_Signals" = field(repr=False)
    _agreed: bool = field(default=False, repr=False)

    @property
    def stop_requested(self) -> bool:
        """Was this process asked to stop? Asks nobody else: for loops whose length differs between processes.

        Such a loop (an evaluation) leaves early when this is true, and all processes call `stopping()` before they
        meet again, so that none merges what another has not finished.
        """
        return bool(self._signals.received)

    def stopping(self, step: int | None = None) -> bool:
        """Was any process asked to stop? Every process calls this with the same `step` and gets the same answer.

        Processes talk at every fourth step only; without a step they talk now.
        """
        if not self._agreed and (self.world.size == 1 or step is None or step % ASK_EVERY == 0):
            self._agreed = dist.any_true(self.stop_requested)
            if self._agreed:
                self.log.info(f"stopping{'' if step is None else f' at step {step}'}: {self._signals.names()}")
        return self._agreed


@contextmanager
def start(cfg: config.Section, run_cfg: RunConfig, *, visit: bool = False) -> Iterator[Run]:
    """Enter a run: stop signals, processes, seeds, directory, provenance, log; leave all of it in order.

    A `visit` (evaluation, prediction) leaves the `config.yaml` of the run that it looks at as the training wrote it.

    From here on SIGTERM, SIGUSR1, SIGUSR2 and the first SIGINT only raise the flag behind `Run.stopping`; a handler
    that was there before (submitit's) hears of its signal when the run has been left. An exception is written to
    `run.log`, and by every process of several to `errors/rank<k>.txt`; then it goes on and waits for nobody.

    Raises:
        ValueError: when the device is not there or `run_cfg.out` cannot be a directory.
    """
    with _Signals() as signals, _torch_policy(run_cfg):
        world = dist.init(None if run_cfg.device == "auto" else run_cfg.device)
        try:
            _seed(run_cfg.seed + world.rank)
            out = _directory(run_cfg.out)
            with _logged(out, world, signals) as log, _recorded(cfg, out, world, log, signals, visit):
                log.info(f"run directory: {out}")
                yield Run(out, world.device, log, world, signals)
                log.flush()
        finally:
            dist.shutdown()


class _Signals:
    """Context that notes stop signals instead of dying of them; a second SIGINT is a KeyboardInterrupt."""

    NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")  # Windows has two of them
    WATCHED = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def names(self) -> str:
        """The signals that came, for a message."""
        return ", ".join(one.name for one in self.received) or "another process was asked to"

    def __enter__(self) -> "_Signals":
        with suppress(ValueError):  # only the main thread may set handlers; elsewhere nothing is watched
            for one in self.WATCHED:
                self._before[one] = signal.signal(one, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        for one in self.received:
            handler = self._before[one]
            if one is not signal.SIGINT and callable(handler):
                handler(one, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        one = signal.Signals(number)
        if os.getpid() != self._process:  # a forked worker has inherited us; stopping is its parent's matter
            return
        if one is signal.SIGINT and one in self.received:
            raise KeyboardInterrupt
        if one not in self.received:
            self.received.append(one)
            again = " (again: stop at once)" if one is signal.SIGINT else ""
            with suppress(OSError):  # not through the log: it may be what was interrupted
                os.write(2, f"{one.name}: the run stops at its next step and saves{again}\n".encode())


@contextmanager
def _torch_policy(cfg: RunConfig) -> Iterator[None]:
    """Threads, TF32, cuDNN search and determinism for the time of the run."""
    cudnn = torch.backends.cudnn
    with ExitStack() as restore:
        if cfg.threads:
            restore.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(cfg.threads)
        if cfg.device != "cpu" and torch.cuda.is_available():
            restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high")
            restore.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
            cudnn.benchmark = not cfg.deterministic
        if cfg.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
            restore.callback(setattr, cudnn, "deterministic", cudnn.deterministic)
            cudnn.deterministic = True
            restore.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
            torch.use_deterministic_algorithms(True)  # imports the compiler: seconds, so only on request
        yield


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


def _directory(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run.out: {out} cannot be a run directory ({error}); choose another with run.out=..."
        ) from None
    return out


@contextmanager
def _logged(out: Path, world: dist.World, signals: _Signals) -> Iterator[Log]:
    """The log of the run; what ends the run early is its last entry."""
    log = Log(out, main=world.rank == 0, rank=world.rank)
    try:
        yield log
    except KeyboardInterrupt:
        log.error("interrupted before the state could be saved; the newest checkpoint stays")
        raise
    except Exception:
        trace = traceback.format_exc()
        log.error(trace.rstrip())
        if world.size > 1:
            path = out / "errors" / f"rank{world.rank}.txt"
            _write(path, f"{socket.gethostname()}, {_now()}\n{trace}", log)
        raise
    finally:
        with suppress(NonFiniteLoss):  # on success `start` has flushed; after an error the first one counts
            log.close()


@contextmanager
def _recorded(
    cfg: config.Section, out: Path, world: dist.World, log: Log, signals: _Signals, visit: bool
) -> Iterator[None]:
    """Write `config.yaml`, and add this session to `environment.json`, now and again at its end."""
    places = dist.gather(_place(world))
    if world.rank != 0:
        yield
        return
    path = out / "environment.json"
    keep = visit and (out / "config.yaml").exists()
    session = _session(places) | {"config_changes": {} if keep else _config_changes(cfg, out / "config.yaml", log)}
    sessions = [*_sessions(path, log), session]

    def save() -> None:
        _write(path, simplejson.dumps({"sessions": sessions}, indent=2, ignore_nan=True) + "\n", log)

    if not keep:
        _write(out / "config.yaml", config.dump(cfg), log)
    save()
    try:
        yield
        session["outcome"] = f"stopped by {signals.names()}" if signals.received else "finished"
    except BaseException as error:
        session["outcome"] = f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        session["ended"] = _now()
        save()


def _write(path: Path, text: str, log: Log) -> None:
    """Write a small record of the run; a disk that refuses it is no reason to end the run."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        log.warning(f"{path}: cannot be written ({error}); the run goes on")


def _sessions(path: Path, log: Log) -> list[Any]:
    """What earlier sessions of this run have recorded; a damaged record is set aside, never overwritten."""
    if not path.exists():
        return []
    try:
        return list(simplejson.loads(path.read_text(encoding="utf-8"))["sessions"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        aside = path.with_name(f"environment.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S}.json")
        log.warning(f"{path}: damaged ({error!r}); it is kept as {aside.name}")
        with suppress(OSError):
            path.rename(aside)
        return []


def _config_changes(cfg: config.Section, path: Path, log: Log) -> dict[str, list[Any]]:
    """{key: [before, now]} against the configuration that the run directory already holds, with a warning."""
    if not path.exists():
        return {}
    try:
        before = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning(f"{path}: cannot be compared with the configuration of now: {error}")
        return {}
    now = _flat(yaml.safe_load(config.dump(cfg)))
    keys = [*now, *(key for key in before if key not in now)]
    missing = "(absent)"
    pairs = {key: [before.get(key, missing), now.get(key, missing)] for key in keys}
    changes = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if changes:
        lines = (f"  {key}: {old!r} -> {value!r}" for key, (old, value) in changes.items())
        log.warning("\n".join([f"{path.parent} holds a run with another configuration; it goes on with", *lines]))
    return changes


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat


def _place(world: dist.World) -> dict[str, str]:
    """Where one process runs."""
    cuda = world.device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "device": str(world.device),
        "name": torch.cuda.get_device_name(world.device) if cuda else platform.processor() or platform.machine(),
    }


def _session(places: list[dict[str, str]]) -> dict[str, Any]:
    """Who computes what with which software, from now on."""
    libraries = {name: _version(name) for name in ("torchvision", "av", "numpy", "pydantic")}
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {
        "started": _now(),
        "command": " ".join([config.program(), *map(shlex.quote, sys.argv[1:])]),
        "commit": commit,
        "dirty": None if changed is None else bool(changed),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {"torch": torch.__version__} | libraries,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "world_size": len(places),
        "processes": places,
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _git(*arguments: str) -> str | None:
    """The answer of git about the folder of this code; None where there is no git or no repository."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
