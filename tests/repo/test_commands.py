"""Every command that is written down resolves: READMEs, scripts, the heads of configurations, CI."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from core import config
from tests.repo.files import ROOT, tracked
from tests.repo.test_configs import section_of

DOCUMENTS = [path for path in tracked() if path.suffix == ".md" and "golden" not in path.parts]
CONFIGURED = re.compile(r"projects\.(\w+)\.(?:train_(\w+)|train|eval|predict|doctor)$")  # take a configuration
WORK = ["setup", "train", "eval", "predict", "convert", "doctor", "demo", "slurm"]
LOOK = ["help", "config", "summary", "tensorboard", "bench"]
TRUST = ["test", "test-dist", "test-gpu", "test-all", "golden", "check", "format", "clean"]


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user would: the interpreter of the tests, but nothing of the `make test` around it."""
    inherited = {key: value for key, value in os.environ.items() if not re.match("MAKE|MFLAGS|VENV$", key)}
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=inherited | environment)


def launched(output: str) -> list[list[str]]:
    """The python commands of a dry run, `-m` and what follows."""
    commands = [shlex.split(line) for line in output.replace("\\\n", " ").splitlines() if " -m " in line]
    return [command[command.index("-m") :] for command in commands]


def resolve(arguments: Sequence[str]) -> None:
    """Assert that `-m module argument ...` names a module, files that are there and keys that exist."""
    if arguments[1] in {"torch.distributed.run", "core.slurm"}:
        inner = list(arguments[2:])
        start = inner.index("-m") + 1 if "-m" in inner else inner.index("--") + 1
        return resolve(["-m", *inner[start:]])
    module, *rest = arguments[1:]
    if module.split(".")[0] not in {"core", "projects", "bench"}:
        return None
    file = ROOT.joinpath(*module.split("."))
    assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), f"no module {module}"
    assert [word for word in rest if word.startswith("projects/") and not (ROOT / word).is_file()] == []
    if (match := CONFIGURED.match(module)) and not any(word.startswith("runs/") for word in rest):
        path = next((ROOT / word for word in rest if word.endswith(".yaml")), None)
        overrides = [word for word in rest if re.match(r"[\w.]+=", word)]
        config.load(section_of(match[1], match[2] or ""), path, overrides)
    return None


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks, and of comments at the head of a YAML file, that are commands of ours."""
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"(?:[#$] +)*((?:exec )?make\b[^#]*|python -m (?:core|projects|bench)\b[^#]*)", line.strip())
        if match and not re.search(r"\.\.\.|<\w+>", match[1]):
            yield match[1].strip()


def written() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        for block in re.findall(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", path.read_text(), re.M | re.S):
            for command in commands(block):
                yield path.relative_to(ROOT).as_posix(), command
    for path in sorted(ROOT.glob("projects/*/configs/*.yaml")):
        head = path.read_text().split("\n\n")[0]
        for command in commands("\n".join(line for line in head.splitlines() if line.startswith("#"))):
            yield path.relative_to(ROOT).as_posix(), command
    for name in (".ci/run", ".github/workflows/ci.yml"):
        for command in re.findall(r"^(?:\s*- run: )?(make [^$\n]*)$", (ROOT / name).read_text(), re.M):
            yield name, command


WRITTEN = sorted(set(written()))


@pytest.mark.parametrize(("place", "command"), WRITTEN, ids=[f"{place}: {command}" for place, command in WRITTEN])
def test_a_written_command_resolves(place: str, command: str) -> None:
    words = shlex.split(command)
    if words[0] == "python":
        resolve(words[1:])
        return
    result = make("-n", *words[1:])
    assert result.returncode == 0, result.stderr
    for arguments in launched(result.stdout):
        resolve(arguments)


def test_the_readme_has_commands() -> None:
    assert sum(place == "README.md" for place, _ in WRITTEN) >= 5
    assert any(place.endswith("configs/demo.yaml") for place, _ in WRITTEN)


@pytest.mark.parametrize("path", sorted(ROOT.glob("projects/*/scripts/*.sh")), ids=lambda path: path.name)
def test_a_script_resolves(path: Path) -> None:
    environment = {**os.environ, "MAKEFLAGS": "n", "PYTHON": sys.executable}
    result = subprocess.run([path, "runs/here"], cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    found = launched(result.stdout)
    assert found
    for arguments in found:
        resolve(arguments)


@pytest.mark.parametrize("project", sorted(path.parent.name for path in ROOT.glob("projects/*/train.py")))
@pytest.mark.parametrize("target", [*WORK[1:], "config", "summary"])
def test_every_project_has_what_every_target_runs(project: str, target: str) -> None:
    result = make("-n", target, f"PROJECT={project}")
    assert result.returncode == 0, result.stderr
    found = launched(result.stdout.replace("$name", project))
    assert found
    for arguments in found:
        resolve(arguments)


def test_make_alone_lists_every_target_by_group() -> None:
    listed = make().stdout
    groups = dict(re.findall(r"^(\w+)\n((?:  .*\n)+)", listed, re.M))
    assert list(groups) == ["work", "look", "trust", "variables", "projects"]
    for group, targets in [("work", WORK), ("look", LOOK), ("trust", TRUST)]:
        assert set(re.findall(r"^  ([a-z-]+) ", groups[group], re.M)) >= set(targets)
    assert "ucf50_x3d" in groups["projects"].split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "PROJECT is missing; valid: "),
        (["train", "PROJECT=ucf50x3d"], "PROJECT=ucf50x3d is not known here; valid: ucf50_x3d"),
        (["test", "PROJECT=ucf101"], "valid: ucf50_x3d"),
        (["train", "PROJECT=ucf50_x3d", "CONFIG=x3d_xl"], "CONFIG=x3d_xl is not known here; valid: ucf50_x3d_"),
        (["eval", "PROJECT=ucf50_x3d", "CONFIG=demmo"], "valid: demo, "),
        (["train", "PROJECT=ucf50_x3d", "CONFIG=runs/gone.yaml"], "CONFIG=runs/gone.yaml: no such file"),
        (["train", "PROJECT=ucf50_x3d", "STAGE=vlm"], "STAGE=vlm is not known here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_is_answered_with_the_nearest_before_anything_is_installed(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = make(*arguments, f"VENV={tmp_path}/environment")
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "environment").exists()


def last(*arguments: str) -> list[str]:
    result = make("-n", "train", "PROJECT=ucf50_x3d", "CONFIG=ucf50_x3d_m", *arguments)
    assert result.returncode == 0, result.stderr
    return shlex.split(result.stdout.splitlines()[-1])


def test_one_command_line_from_a_process_to_a_cluster() -> None:
    train = ["projects.ucf50_x3d.train", "projects/ucf50_x3d/configs/ucf50_x3d_m.yaml"]
    assert last()[1:] == ["-m", *train]
    assert last("GPUS=0")[1:] == ["-m", *train]
    assert last("GPUS=4")[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", *train]
    cluster = ["-m", "core.slurm", "nodes=2", "gpus=8", "hours=24", "--"]
    assert last("GPUS=8", "NODES=2", "SLURM=hours=24")[1:] == [*cluster, *train]


def test_spaces_and_quotes_reach_the_command() -> None:
    words = last("OUT=runs/it's here", "ARGS=optim.lr=1e-4 'data.root=my clips'")
    # OUT comes last, so that it also holds against the run.out of an @file in ARGS.
    assert words[-3:] == ["optim.lr=1e-4", "data.root=my clips", "run.out=runs/it's here"]


def test_variables_of_the_environment_do_not_leak_in() -> None:
    result = make(
        "-n", "train", "PROJECT=ucf50_x3d", OUT="/elsewhere", ARGS="run.seed=1", CONFIG="ucf50_x3d_m", GPUS="8"
    )
    assert shlex.split(result.stdout.splitlines()[-1])[-1] == "projects/ucf50_x3d/configs/demo.yaml"


def test_without_an_environment_the_interpreter_is_used_as_it_is() -> None:
    result = make("-n", "test", "VENV=")
    assert "install.sh" not in result.stdout
    assert f"{sys.executable} -m pytest" in result.stdout
