"""The same command as a SLURM job: `python -m core.slurm nodes=2 gpus=8 hours=24 -- MODULE ARGUMENTS...`.

A job that is told to leave (time limit, preemption) saves through `core.run`, queues again and resumes in its run
directory. Without SLURM `cluster=local` runs the job on this machine.
"""

import importlib.util
import math
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from core.config import Section, parse


class SubmitError(ValueError):
    """The job cannot be queued, and why."""


class SlurmConfig(Section):
    """What a job asks of the cluster: one task for each GPU, or one on each node without GPUs."""

    nodes: int = Field(1, ge=1, description="machines")
    gpus: int = Field(1, ge=0, description="GPUs on each node")
    cpus: int = Field(8, ge=1, description="CPU cores for each task; about the loader's workers and two")
    mem: str = Field("", pattern=r"^(\d+(\.\d+)?(MB|GB|TB)|0)?$", description="memory of a node (200GB); 0: all of it")
    hours: float = Field(24.0, gt=0, description="time limit of one stretch; the job goes on in the next")
    partition: str = Field("", description="partition; empty: the cluster's default, as below")
    account: str = Field("", description="account that pays")
    qos: str = Field("", description="quality of service")
    constraint: str = Field("", description="features that the nodes must have")
    extra: dict[str, str] = Field({}, description="any other flag of sbatch: extra.reservation=NAME")
    setup: tuple[str, ...] = Field((), description="shell lines before the job: module load, exports")
    name: str = Field("", description="name of the job; empty: the module's")
    log_dir: Path = Field(Path("runs/slurm"), description="folder for scripts and output, on a disk that all nodes see")
    requeue: int = Field(10, ge=0, description="time limits after which the job goes on; 0: it ends when told to leave")
    signal_delay_s: int = Field(120, ge=1, description="seconds before the limit at which the job is told to save")
    cluster: Literal["slurm", "local"] = Field("slurm", description="local runs the job here, without SLURM")
    check: bool = Field(True, description="check the command's configuration before it waits in a queue")
    dry_run: bool = Field(False, description="print the sbatch script and submit nothing")


@dataclass
class Command:
    """`python -m module *argv` as a job that can be queued again; `hold_s` is how long it waits for SLURM's decision.

    SIGUSR2 (time limit, preemption with a user signal) means: save, queue again. SIGTERM alone comes from `scancel` and
    from preemption alike, and only SLURM knows which; so the job saves, then waits to be ended or requeued by it.
    """

    module: str
    argv: tuple[str, ...]
    requeue: bool = True
    hold_s: float = 0.0
    _terminated: bool = field(default=False, repr=False)

    def __call__(self) -> None:
        """Run the module as `python -m` would, in this process."""
        signal.signal(signal.SIGTERM, self._note)
        sys.argv = [self.module, *self.argv]
        try:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        if self._terminated and self.requeue:
            time.sleep(self.hold_s)

    def checkpoint(self) -> Any:
        """What is queued again: the same command, which resumes from its run directory; None when the job shall end."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Command(self.module, self.argv, True, self.hold_s)) if self.requeue else None

    def _note(self, *_: object) -> None:
        self._terminated = True


def submit(module: str, argv: Sequence[str], cfg: SlurmConfig) -> str:
    """Queue `python -m module *argv`; returns the id of the job.

    Raises:
        SubmitError: when the module is unknown, its configuration is wrong, or submitit or SLURM is not there.
    """
    _check(module, argv, cfg)
    command = Command(
        module, tuple(argv), cfg.requeue > 0, float(cfg.signal_delay_s) if cfg.cluster == "slurm" else 0.0
    )
    job = _executor(cfg, module).submit(command)
    return str(job.job_id)


def script(module: str, cfg: SlurmConfig) -> str:
    """The sbatch script that `submit` would hand in."""
    executor = _executor(cfg.model_copy(update={"cluster": "slurm"}), module, dry=True)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def main(argv: Sequence[str] | None = None) -> None:
    """`[SLURM.yaml] [KEY=VALUE ...] -- MODULE ARGUMENTS...`: submit, or print the script."""
    args = list(sys.argv[1:] if argv is None else argv)
    split = args.index("--") if "--" in args else len(args)
    cfg = parse(SlurmConfig, args[:split])
    module, *rest = args[split + 1 :] or [""]
    try:
        if not module:
            raise SubmitError(f"no command: write {_USAGE}")
        if cfg.dry_run:
            _check(module, rest, cfg)
            sys.stdout.write(f"# {shlex.join(['python', '-m', module, *rest])}\n{script(module, cfg)}")
            return
        job = submit(module, rest, cfg)
    except SubmitError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    sys.stdout.write(f"job {job} submitted; its output: {cfg.log_dir / job}_0_log.out\n")


_USAGE = "python -m core.slurm nodes=2 gpus=8 hours=24 -- projects.ucf50_x3d.train CONFIG.yaml KEY=VALUE..."


def _check(module: str, argv: Sequence[str], cfg: SlurmConfig) -> None:
    """Find now what would otherwise be found when the job starts."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise SubmitError(f"{module}: no such module; write {_USAGE}, in the folder where `python -m {module}` works")
    if cfg.check:
        command = [sys.executable, "-m", module, *argv, "--print"]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            shown = shlex.join(["python", *command[1:]])
            raise SubmitError(f"the command fails here already (check=false skips this): {shown}\n{tried.stderr}")


def _executor(cfg: SlurmConfig, module: str, dry: bool = False) -> Any:
    """The submitit executor of a configuration; a dry one needs no SLURM and only makes scripts."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise SubmitError("submitting needs submitit; install the extra: pip install -e '.[slurm]'") from None
    folder = cfg.log_dir.absolute()
    tasks = max(1, cfg.gpus)
    minutes = math.ceil(cfg.hours * 60)
    if cfg.cluster == "local":
        if cfg.nodes * tasks > 1:
            raise SubmitError("cluster=local runs one task: give nodes=1 gpus=1 (or 0), or start torchrun instead")
        local = submitit.LocalExecutor(folder, max_num_timeout=cfg.requeue)
        local.update_parameters(timeout_min=minutes, signal_delay_s=cfg.signal_delay_s, gpus_per_node=cfg.gpus)
        return local

    class Scripts(submitit.SlurmExecutor):
        """Makes scripts on a machine without SLURM."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    try:
        executor = (Scripts if dry else submitit.SlurmExecutor)(folder, max_num_timeout=cfg.requeue)
    except RuntimeError as error:
        hint = "submit on a login node; dry_run=true shows the script, cluster=local runs the job here"
        raise SubmitError(f"{error} {hint}") from None
    wishes = {"partition": cfg.partition, "account": cfg.account, "qos": cfg.qos, "constraint": cfg.constraint}
    executor.update_parameters(
        job_name=cfg.name or module.removeprefix("projects."),
        nodes=cfg.nodes,
        ntasks_per_node=tasks,
        cpus_per_task=cfg.cpus,
        gpus_per_node=cfg.gpus or None,
        mem=cfg.mem or None,
        time=minutes,
        signal_delay_s=cfg.signal_delay_s,
        setup=list(cfg.setup) or None,
        additional_parameters={("requeue" if cfg.requeue else "no-requeue"): True, **cfg.extra},
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cfg.cpus}"],
        **{name: value for name, value in wishes.items() if value},
    )
    return executor


if __name__ == "__main__":
    from core.slurm import main as importable_main  # jobs must find `Command` under its own module's name

    importable_main()
