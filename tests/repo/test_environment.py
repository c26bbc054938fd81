"""The environment is made once, made again when pins change, and survives interruptions; a stand-in plays Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.files import ROOT
from tests.repo.test_commands import make

XY = "{}{}".format(*sys.version_info[:2])
STAND_IN = f"""#!/bin/sh
case "$*" in
    *_base_executable*) echo "$STAND_IN" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$STAND_IN" "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
    "-m pip install"*) echo pip >> "$CALLS"; [ ! -e "$BROKEN" ] ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.fixture
def setup(tmp_path: Path):
    """`make setup` in a copy of what it needs; returns how often pip ran, over all calls."""
    for name in ("Makefile", "requirements"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path)
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*arguments: str, broken: bool = False) -> tuple[subprocess.CompletedProcess[str], int]:
        failure, calls = tmp_path / "broken", tmp_path / "calls"
        failure.touch() if broken else failure.unlink(missing_ok=True)
        places = {"STAND_IN": str(python), "CALLS": str(calls), "BROKEN": str(failure)}
        result = make(f"PYTHON={python}", "setup", *arguments, cwd=tmp_path, **places)
        return result, len(calls.read_text().splitlines()) if calls.exists() else 0

    return run


def test_the_second_call_starts_at_once(setup) -> None:
    result, calls = setup()
    assert (result.returncode, calls) == (0, 1), result.stderr
    assert setup()[1] == 1


def test_changed_pins_are_installed_into_the_same_environment(setup, tmp_path: Path) -> None:
    setup()
    (tmp_path / ".venv" / "kept").touch()
    with (tmp_path / "requirements" / f"py{XY}.txt").open("a") as lock:
        lock.write("another==1.0\n")
    assert setup()[1] == 2
    assert setup()[1] == 2
    assert (tmp_path / ".venv" / "kept").exists()


def test_an_interrupted_installation_is_made_again_from_the_start(setup, tmp_path: Path) -> None:
    result, calls = setup(broken=True)
    assert (result.returncode, calls) == (2, 1)
    (tmp_path / ".venv" / "half").touch()
    result, calls = setup()
    assert (result.returncode, calls) == (0, 2)
    assert not (tmp_path / ".venv" / "half").exists()
    assert setup()[1] == 2


def test_two_calls_at_once_do_not_meet(setup, tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".unfinished").write_text(str(os.getpid()))
    result, calls = setup()
    assert (result.returncode, calls) == (2, 0)
    assert f"process {os.getpid()} is making .venv" in result.stderr
    assert (tmp_path / ".venv" / ".unfinished").exists()


def test_another_python_is_refused_by_name(setup, tmp_path: Path) -> None:
    (tmp_path / "requirements" / f"py{XY}.txt").unlink()
    result, calls = setup()
    assert (result.returncode, calls) == (2, 0)
    assert f"Python 3.11 or 3.12 is needed, {tmp_path}/python is {sys.version.split()[0]}" in result.stderr


def test_a_folder_of_something_else_is_left_alone(setup, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    result, calls = setup("VENV=mine")
    assert (result.returncode, calls) == (2, 0)
    assert "mine is not a virtual environment" in result.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
