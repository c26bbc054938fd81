"""Jobs: the script as SLURM gets it, real local jobs, and SLURM played by three shell scripts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import slurm
from core.config import load
from core.slurm import Command, SlurmConfig, SubmitError

submitit = pytest.importorskip("submitit", reason="needs the extra `slurm`")

CONFIGURED = """
import sys
from core.config import Section, parse
class Config(Section):
    lr: float = 0.1
if __name__ == "__main__":
    cfg = parse(Config)
    print("lr is", cfg.lr)
"""

# Counts to six through a real run; in its first life it waits at the third step until it is told to stop.
COUNTING = """
import json, os, pathlib, sys, time
from core import run
from core.config import Section, parse
from core.run import RunConfig
class Config(Section):
    run: RunConfig = RunConfig(device="cpu")
def main():
    cfg = parse(Config)
    state = cfg.run.out / "state.json"
    with run.start(cfg, cfg.run) as job:
        steps = json.loads(state.read_text()) if state.exists() else []
        first = not steps
        while len(steps) < 6:
            steps.append(os.getpid())
            if first and len(steps) == 3:
                (cfg.run.out / "pid").write_text(str(os.getpid()))
                while not job.stop_requested:
                    time.sleep(0.01)
            if job.stopping(len(steps)):
                state.write_text(json.dumps(steps))
                return
        (cfg.run.out / "result.json").write_text(json.dumps(steps))
if __name__ == "__main__":
    main()
"""

WAITING = """
import os, pathlib, sys, time
here = pathlib.Path(sys.argv[1])
(here / "pid").write_text(str(os.getpid()))
while not (here / "go").exists():
    time.sleep(0.01)
(here / "done").write_text(os.environ["SLURM_PROCID"])
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `python -m configured`, `counting` and `waiting` work."""
    root = str(Path(__file__).parents[2])
    for name, text in (("configured", CONFIGURED), ("counting", COUNTING), ("waiting", WAITING)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def process_state() -> Iterator[None]:
    """A command runs in this process as if it had started it; put back what that changes."""
    argv, before = sys.argv, signal.getsignal(signal.SIGTERM)
    yield
    sys.argv = argv
    signal.signal(signal.SIGTERM, before)


def wait_for(path: Path, limit_s: float = 120.0) -> str:
    until = time.monotonic() + limit_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


# --- the script


def flags(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE)
    return {name: value.strip("'") for name, value in found}


def test_the_script_asks_for_what_the_configuration_says() -> None:
    wishes = ["nodes=2", "gpus=8", "hours=1.5", "partition=long", "mem=200GB", "cpus=12", "signal_delay_s=90"]
    wishes += ["extra.reservation=us", "setup=[module load cuda, export A=1]", "name=try", "log_dir=out"]
    script = slurm.script("projects.ucf50_x3d.train", load(SlurmConfig, None, wishes))
    found = flags(script)
    log = Path("out").absolute()
    assert {name: found.get(name) for name in ("qos", "account", "constraint", "no-requeue")} == dict.fromkeys(
        ("qos", "account", "constraint", "no-requeue")
    )
    assert found == found | {
        "nodes": "2",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "12",
        "time": "90",
        "partition": "long",
        "mem": "200GB",
        "signal": "USR2@90",
        "reservation": "us",
        "requeue": "",
        "job-name": "try",
        "open-mode": "append",
        "output": f"{log}/%j_0_log.out",
    }
    assert "\nmodule load cuda\nexport A=1\n" in script
    (srun,) = re.findall(r"^srun .*$", script, re.MULTILINE)
    assert "--kill-on-bad-exit=1" in srun
    assert srun.endswith(f"-m submitit.core._submit {log}")


def test_a_job_without_gpus_has_one_task_on_each_node_and_may_refuse_to_return() -> None:
    found = flags(slurm.script("projects.x.train", SlurmConfig(nodes=3, gpus=0, requeue=0)))
    assert (found["nodes"], found["ntasks-per-node"], "gpus-per-node" in found) == ("3", "1", False)
    assert "no-requeue" in found
    assert "requeue" not in found
    assert found["job-name"] == "x.train"


def test_dry_run_prints_the_script(modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.main(["dry_run=true", "gpus=2", "--", "configured", "lr=1e-3"])
    text = capsys.readouterr().out
    assert text.startswith("# python -m configured lr=1e-3\n#!/bin/bash\n")
    assert flags(text)["ntasks-per-node"] == "2"


# --- what is refused before a queue is waited in


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nodes=2"], "no command: write python -m core.slurm"),
        (["--", "projects.nowhere.train"], "projects.nowhere.train: no such module"),
        (["--", "configured", "lr=fast"], "lr: should be a valid number"),
        (["cluster=local", "nodes=2", "--", "configured"], "cluster=local runs one task"),
        (["nods=2", "--", "configured"], "nods: unknown key; did you mean nodes?"),
    ],
)
def test_what_cannot_run_is_refused_at_once(
    modules: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        slurm.main(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (modules / "runs").exists()


def test_a_machine_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SubmitError, match="submit on a login node; dry_run=true shows the script"):
        slurm.submit("json.tool", [], SlurmConfig(check=False))


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SubmitError, match=r"pip install -e '\.\[slurm\]'"):
        slurm.submit("json.tool", [], SlurmConfig(check=False))


# --- the command inside a job


def test_a_command_runs_as_python_m_would(
    modules: Path, process_state: None, capsys: pytest.CaptureFixture[str]
) -> None:
    job = submitit.DebugExecutor(modules / "debug").submit(Command("configured", ("lr=0.25",)))
    assert job.results() == [None]
    assert "lr is 0.25" in capsys.readouterr().out
    Command("configured", ("--print",))()  # exits with 0, which is an end like any other
    with pytest.raises(SystemExit) as ended:
        Command("configured", ("lr=fast",))()
    assert ended.value.code == 2


def test_a_requeued_command_is_the_same_command() -> None:
    command = Command("configured", ("lr=0.25",), requeue=True, hold_s=3.0)
    delayed = command.checkpoint()
    assert delayed.function == command
    assert Command("configured", (), requeue=False).checkpoint() is None


@pytest.mark.parametrize(("requeue", "held"), [(True, [7.0]), (False, [])])
def test_after_sigterm_a_job_waits_for_the_decision_of_slurm(
    modules: Path, process_state: None, monkeypatch: pytest.MonkeyPatch, requeue: bool, held: list[float]
) -> None:
    (modules / "ended.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    slept: list[float] = []
    monkeypatch.setattr(slurm.time, "sleep", slept.append)
    Command("ended", (), requeue=requeue, hold_s=7.0)()
    assert slept == held


# --- real jobs


def test_a_preempted_local_job_saves_comes_back_and_finishes(modules: Path) -> None:
    said = modules / "said.txt"  # a file: the job would keep a pipe open
    options = ["cluster=local", "gpus=0", f"log_dir={modules / 'jobs'}", "check=false"]
    with said.open("w") as stdout:
        command = [sys.executable, "-m", "core.slurm", *options, "--", "counting", "run.out=runs/a"]
        subprocess.run(command, stdout=stdout, check=True)
    number = re.fullmatch(r"job (\d+) submitted; its output: (.*_0_log\.out)\n", said.read_text())
    assert number
    out = modules / "runs" / "a"
    first = int(wait_for(out / "pid"))
    os.kill(first, signal.SIGUSR2)
    steps = json.loads(wait_for(out / "result.json"))
    assert steps[:3] == [first] * 3  # saved at the step at which the signal came, not at one before
    assert len(steps) == 6
    assert first not in steps[3:]
    text = Path(number[2]).read_text() + Path(number[2]).with_suffix(".err").read_text()
    assert "Requeued job" in text
    until = time.monotonic() + 30
    while (sessions := json.loads((out / "environment.json").read_text())["sessions"])[-1].get("outcome") is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert [session["outcome"] for session in sessions] == ["stopped by SIGUSR2", "finished"]
    assert sessions[1]["command"] == "python -m counting run.out=runs/a"


def test_the_script_runs_under_slurm_and_requeues_its_job(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = modules / "tools"
    tools.mkdir()
    for name, text in {
        "sbatch": 'cp "$1" "$HERE/job.sh"; echo "Submitted batch job 77"',
        "srun": 'while [[ $1 == --* ]]; do case $1 in --output | --error) shift 2 ;; *) shift ;; esac; done; exec "$@"',
        "scontrol": 'echo "$@" >> "$HERE/scontrol.log"',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(modules))
    assert slurm.submit("waiting", [str(modules)], SlurmConfig(gpus=0, log_dir=modules / "jobs", check=False)) == "77"

    env = os.environ | {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
    env |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    with subprocess.Popen(["bash", str(modules / "job.sh")], env=env, stderr=subprocess.DEVNULL) as job:
        pid = int(wait_for(modules / "pid"))
        os.kill(pid, signal.SIGUSR2)
        assert job.wait(60) == 255
    assert (modules / "scontrol.log").read_text() == "requeue 77\n"
    (modules / "go").touch()
    subprocess.run(["bash", str(modules / "job.sh")], env=env, check=True, timeout=60, stderr=subprocess.DEVNULL)
    assert (modules / "done").read_text() == "0"
