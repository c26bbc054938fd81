"""The tree is as documented: files, floor plans, rows, scripts."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from tests.repo.files import MEASURED, ROOT, problems, tracked

FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py"]
PROJECTS = sorted(path.parent for path in ROOT.glob("projects/*/train.py"))
FLOOR_PLAN = ("README.md", "config.py", "configs/demo.yaml", "convert.py", "data.py", "demo.py", "eval.py", "losses.py")
FLOOR_PLAN += ("predict.py", "train.py")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_tree_in_the_readme_exists() -> None:
    block = (ROOT / "README.md").read_text().split("## What is where")[1].split("```")[1]
    rows = [line.split()[0] for line in block.strip().splitlines()]
    assert len(rows) > 10
    assert [row for row in rows if not (ROOT / row).exists()] == []
    folders = {f"{name(path).split('/')[0]}/" for path in FILES if "/" in name(path) and name(path)[0] != "."}
    assert folders <= {f"{row.split('/')[0]}/" for row in rows}, "a top-level folder has no row"


def test_every_file_may_be_published() -> None:
    assert len(FILES) > 50
    assert [line for path in FILES for line in problems(path)] == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("see https://pypi" + ".org/simple\n", "names"),
        ("root: /home" + "/me/data\n", "names"),
        ("path = 'C:" + "\\Users\\me'\n", "names"),
        ("a: 1", "newline"),
        ("a: 1  \n", "spaces"),
        ("a: [1\n", "YAML"),
        ("#" * (1 << 20) + "\n", "MiB"),
    ],
)
def test_what_may_not_be_published_is_found(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    assert any(word in line for line in problems(path))
    path.write_text("root: data/home/root/x\n")
    assert problems(path) == []


@pytest.mark.parametrize("path", [path for path in PYTHON if not path.is_relative_to(MEASURED)], ids=name)
def test_python_parses_and_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(), path)
    assert ast.get_docstring(tree) or path == ROOT / "tests" / "__init__.py", (
        "the file needs a docstring that says what it is for"
    )


@pytest.mark.parametrize("project", PROJECTS, ids=name)
def test_one_floor_plan(project: Path) -> None:
    assert [file for file in FLOOR_PLAN if not (project / file).is_file()] == []
    assert (project / "model.py").is_file() or (project / "model" / "__init__.py").is_file()
    assert list((ROOT / "tests" / project.name).glob("test_*.py")), "a project has its tests"


def test_every_project_stands_in_the_documents() -> None:
    assert PROJECTS
    for project in PROJECTS:
        for document in ("README.md", "NOTICE", "docs/data.md"):
            assert project.name in (ROOT / document).read_text(), f"{document} does not mention {project.name}"


def test_every_module_of_core_has_a_row() -> None:
    rows = re.findall(r"^\| \d \| `(\w+)` \|", (ROOT / "core" / "README.md").read_text(), re.M)
    core = ROOT / "core"
    there = [*core.glob("[!_]*.py"), *(path.parent for path in core.glob("*/__init__.py"))]
    assert sorted(rows) == sorted(path.stem for path in there)


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert [name(path) for path in PYTHON if drawers & set(path.with_suffix("").parts)] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".sh" or name(path) == ".ci/run"], ids=name)
def test_scripts_are_executable(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("path", sorted(ROOT.glob("projects/*/scripts/*.sh")), ids=name)
def test_a_script_of_a_project_is_one_make_line(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", "set -", "cd "))]
    assert len(lines) == 1
    assert re.match(r"(exec )?make ", lines[0])
