"""A run from its entry to its end; children are forked, so that torch is imported once for all of them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from core import config, dist, run
from core.checkpoint import Checkpoints
from core.config import ConfigError, Section
from core.log import NonFiniteLoss
from core.run import RunConfig


class Config(Section):
    run: RunConfig = RunConfig(device="cpu")
    lr: float = 0.1


def make(out: Path, **values: Any) -> Config:
    return Config(run=RunConfig(out=out, device="cpu", **values.pop("run", {})), **values)


def sessions(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "environment.json").read_text())["sessions"]


# --- directory and provenance


def test_a_run_leaves_its_configuration_and_environment(tmp_path: Path) -> None:
    cfg = make(tmp_path / "a" / "b", lr=0.3)
    with run.start(cfg, cfg.run) as job:
        assert (job.out, job.device.type, job.world.size) == (tmp_path / "a" / "b", "cpu", 1)
        assert "outcome" not in sessions(job.out)[0]
    assert config.load(Config, job.out / "config.yaml") == cfg
    (session,) = sessions(job.out)
    assert session["outcome"] == "finished"
    assert session["world_size"] == 1
    assert session["libraries"]["torch"] == torch.__version__
    assert session["processes"] == [
        {"host": socket.gethostname(), "device": "cpu", "name": session["processes"][0]["name"]}
    ]
    assert {"started", "ended", "command", "commit", "dirty", "python", "cuda"} <= session.keys()
    assert f"run directory: {job.out}" in (job.out / "run.log").read_text()


def test_a_restart_adds_a_session_and_names_what_changed(tmp_path: Path) -> None:
    for lr in (0.3, 0.2):
        cfg = make(tmp_path, lr=lr)
        with run.start(cfg, cfg.run):
            pass
    first, second = sessions(tmp_path)
    assert (first["config_changes"], second["config_changes"]) == ({}, {"lr": [0.3, 0.2]})
    assert "WARNING" in (tmp_path / "run.log").read_text()
    assert "  lr: 0.3 -> 0.2\n" in (tmp_path / "run.log").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["lr"] == 0.2


def test_a_damaged_record_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text('{"sessions": [{"started"')
    cfg = make(tmp_path)
    with run.start(cfg, cfg.run):
        pass
    assert [session["outcome"] for session in sessions(tmp_path)] == ["finished"]
    (aside,) = tmp_path.glob("environment.damaged-*.json")
    assert aside.read_text() == '{"sessions": [{"started"'


def test_an_exception_is_written_down_and_goes_on(tmp_path: Path) -> None:
    cfg = make(tmp_path)
    with pytest.raises(KeyError, match="weights"), run.start(cfg, cfg.run):
        raise KeyError("weights")
    text = (tmp_path / "run.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert "KeyError: 'weights'" in text
    assert sessions(tmp_path)[0]["outcome"] == "failed: KeyError: 'weights'"


def test_a_loss_that_waits_to_be_read_is_found_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.log._readable", lambda tensor: False)
    cfg = make(tmp_path)
    with pytest.raises(NonFiniteLoss, match="step 4"), run.start(cfg, cfg.run) as job:
        job.log.scalars(4, {"loss": torch.tensor(float("nan"))})
    assert sessions(tmp_path)[0]["outcome"].startswith("failed: NonFiniteLoss")


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cfg = make(tmp_path / "file")
    with pytest.raises(ValueError, match=r"run\.out: .*file cannot be a run directory"), run.start(cfg, cfg.run):
        pass


def test_a_device_is_checked_when_it_is_configured() -> None:
    with pytest.raises(ConfigError, match=r"run\.device: String should match pattern"):
        config.load(Config, None, ["run.device=gpu"])


# --- seeds and numerics


def test_seeds_repeat_every_generator(tmp_path: Path) -> None:
    def draw(seed: int) -> tuple[float, float, float]:
        cfg = make(tmp_path, run={"seed": seed})
        with run.start(cfg, cfg.run):
            return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    first, again, other = draw(3), draw(3), draw(4)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_determinism_and_threads_hold_for_the_run_only(tmp_path: Path) -> None:
    cfg = make(tmp_path, run={"deterministic": True, "threads": 2})
    assert not torch.are_deterministic_algorithms_enabled()
    with run.start(cfg, cfg.run):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert torch.get_num_threads() == 2
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1


# --- signals


def test_a_signal_is_a_wish_and_the_old_handler_hears_of_it_afterwards(tmp_path: Path) -> None:
    heard: list[int] = []
    before = {
        one: signal.signal(one, lambda number, _: heard.append(number)) for one in (signal.SIGTERM, signal.SIGUSR2)
    }
    try:
        cfg = make(tmp_path)
        with run.start(cfg, cfg.run) as job:
            assert not job.stop_requested
            assert not job.stopping(1)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert job.stop_requested
            assert job.stopping(3)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert heard == []
        assert heard == [signal.SIGUSR2]
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGUSR2, signal.SIGTERM]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert sessions(tmp_path)[0]["outcome"] == "stopped by SIGUSR2"


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    cfg = make(tmp_path)
    before = signal.getsignal(signal.SIGINT)

    def interrupted_twice() -> None:
        with run.start(cfg, cfg.run) as job:
            os.kill(os.getpid(), signal.SIGINT)
            assert job.stopping(1)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert signal.getsignal(signal.SIGINT) is before
    assert "interrupted" in (tmp_path / "run.log").read_text()


def test_a_run_in_a_thread_watches_no_signals(tmp_path: Path) -> None:
    cfg, stops = make(tmp_path), []

    def work() -> None:
        with run.start(cfg, cfg.run) as job:
            stops.append(job.stopping(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stops == [False]


# --- children


@contextlib.contextmanager
def child(work: Callable[[], None], **env: str) -> Iterator[int]:
    """A forked process that does the work; exits with 0, or with 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.update(env)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ending(pid: int, limit_s: float = 60.0) -> int:
    """The exit code of a child, which must end by itself."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    raise AssertionError(f"process {pid} did not end within {limit_s} s")


def wait_for(path: Path, limit_s: float = 60.0) -> str:
    until = time.monotonic() + limit_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)
    return path.read_text()


class Tally:
    """A model, a loader and an optimizer in one: what it has seen, in order."""

    def __init__(self, while_saving: Callable[[], None]) -> None:
        self.value, self.step, self.epoch, self.batch, self.scores = 1, 0, 0, 0, []
        self.while_saving = while_saving

    def state_dict(self) -> dict[str, Any]:
        self.while_saving()
        return {name: value for name, value in vars(self).items() if name != "while_saving"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def train(out: Path, pause: Callable[[str], None]) -> None:
    """A loop with the phases of a real one; `pause(phase)` may wait for a signal."""
    cfg = make(out)
    pause("before")
    with run.start(cfg, cfg.run) as job:
        pause("loading")
        tally = Tally(lambda: pause("saving"))
        saved = Checkpoints(job.out, keep=1)
        saved.restore({"tally": tally})
        while tally.epoch < 2:
            while tally.batch < 5:
                if tally.step == 3:
                    pause("training")
                tally.value = (tally.value * 31 + tally.step) % 1_000_003
                tally.step, tally.batch = tally.step + 1, tally.batch + 1
                if job.stopping(tally.step):
                    saved.save(tally.step, {"tally": tally})
                    return
            pause("evaluation")
            score = 0
            for number in range(3):
                if job.stop_requested:
                    break
                score += number * tally.value
            if job.stopping():
                saved.save(tally.step, {"tally": tally})
                return
            tally.scores.append(score)
            tally.epoch, tally.batch = tally.epoch + 1, 0
            saved.save(tally.step, {"tally": tally})
        (out / "result.json").write_text(json.dumps([tally.value, tally.step, tally.scores]))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("uninterrupted")
    train(out, lambda phase: None)
    return (out / "result.json").read_text()


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("entry", signal.SIGTERM),
        ("loading", signal.SIGTERM),
        ("training", signal.SIGTERM),
        ("training", signal.SIGUSR1),
        ("training", signal.SIGUSR2),
        ("training", signal.SIGINT),
        ("evaluation", signal.SIGUSR1),
        ("saving", signal.SIGTERM),
    ],
)
def test_a_signal_in_any_phase_ends_in_a_state_that_resumes(
    tmp_path: Path, phase: str, number: signal.Signals, uninterrupted: str
) -> None:
    received: list[int] = []

    def pause(name: str) -> None:
        if name != phase or received:
            return
        (tmp_path / "here").write_text(name)
        deadline = time.monotonic() + 30
        while not (tmp_path / "sent").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        received.append(number)

    def work() -> None:
        init = dist.init
        if phase == "entry":  # inside `start`, where processes meet and nothing else exists yet
            dist.init = lambda *args: (pause("entry"), init(*args))[1]
        train(tmp_path, pause)

    with child(work) as pid:
        assert wait_for(tmp_path / "here") == phase
        os.kill(pid, number)
        (tmp_path / "sent").touch()
        assert ending(pid) == 0
    assert not (tmp_path / "result.json").exists()
    assert sessions(tmp_path)[0]["outcome"] == f"stopped by {number.name}"
    assert len(list((tmp_path / "checkpoints").glob("step_*.pt"))) == 1
    train(tmp_path, lambda name: None)
    assert (tmp_path / "result.json").read_text() == uninterrupted
    assert [session["outcome"] for session in sessions(tmp_path)][1:] == ["finished"]


def test_a_forked_worker_leaves_stopping_to_its_parent(tmp_path: Path) -> None:
    cfg = make(tmp_path)
    with run.start(cfg, cfg.run) as job:

        def worker() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert not job.stop_requested

        with child(worker) as pid:
            assert ending(pid) == 0


def pair(port: int, rank: int) -> dict[str, str]:
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.dist
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        cfg = make(tmp_path, run={"seed": 5})
        with run.start(cfg, cfg.run) as job:
            draws = dist.gather(torch.rand(()).item())
            for step in range(1, 10_000):
                dist.barrier()
                if rank == 1 and step == 6:
                    os.kill(os.getpid(), signal.SIGUSR1)
                if job.stopping(step):
                    break
            (tmp_path / f"rank{rank}").write_text(json.dumps([step, draws]))

    port = free_port()
    with child(lambda: work(0), **pair(port, 0)) as first, child(lambda: work(1), **pair(port, 1)) as second:
        assert (ending(first), ending(second)) == (0, 0)
    results = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert results[0] == results[1]
    step, draws = results[0]
    assert step == 8  # the first step after the sixth at which processes talk
    assert draws[0] != draws[1]  # each process has its own noise
    (session,) = sessions(tmp_path)
    assert (session["world_size"], len(session["processes"])) == (2, 2)


@pytest.mark.dist
def test_a_failing_process_ends_all_with_its_traceback(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        cfg = make(tmp_path)
        with run.start(cfg, cfg.run):
            if rank == 1:
                raise ZeroDivisionError("only here")
            for _ in range(10_000):
                dist.barrier()

    port = free_port()
    with child(lambda: work(0), **pair(port, 0)) as first, child(lambda: work(1), **pair(port, 1)) as second:
        assert (ending(first), ending(second)) == (1, 1)
    text = (tmp_path / "errors" / "rank1.txt").read_text()
    assert "ZeroDivisionError: only here" in text
    assert "Traceback" in text
    assert "ZeroDivisionError: only here" in (tmp_path / "run.rank1.log").read_text()
    assert sessions(tmp_path)[0]["outcome"].startswith("failed: ")


def test_a_visit_leaves_the_configuration_of_the_run(tmp_path: Path) -> None:
    for cfg, visit in ((make(tmp_path, lr=0.5), False), (make(tmp_path, lr=0.25), True)):
        with run.start(cfg, cfg.run, visit=visit):
            pass
    assert config.load(Config, tmp_path / "config.yaml").lr == 0.5
    assert [session["config_changes"] for session in sessions(tmp_path)] == [{}, {}]
