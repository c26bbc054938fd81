"""The pinned versions cover what is asked for, exactly and on every platform."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repo.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("py311", "py312")
LOCKED = ("dev", "slurm", "download", "actionformer", "sgear", "lego")  # all but the tools of `make bench`
ONLY_LINUX = re.compile(r"nvidia-|cuda-|triton")


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines]
    assert len({requirement.name for requirement in found}) == len(lines), "a package is pinned twice"
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def version(requirement: Requirement) -> str:
    (exact,) = requirement.specifier
    assert exact.operator == "=="
    return exact.version


@pytest.mark.parametrize("name", [*LOCKS, "bench"])
def test_every_pin_is_exact_and_names_no_place(name: str) -> None:
    for requirement in pins(name).values():
        assert version(requirement)
        assert requirement.url is None


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_satisfies_the_project(name: str) -> None:
    extras = PROJECT["optional-dependencies"]
    locked = pins(name)
    for text in [*PROJECT["dependencies"], *(text for extra in LOCKED for text in extras[extra])]:
        wanted = Requirement(text)
        pin = locked.get(canonicalize_name(wanted.name))
        assert pin, f"{wanted.name} is not in {name}.txt: make lock"
        assert wanted.specifier.contains(version(pin)), (
            f"{name}.txt has {pin}, pyproject.toml wants {wanted}: make lock"
        )


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize(
    ("system", "platform", "machine"),
    [("Darwin", "darwin", "arm64"), ("Windows", "win32", "AMD64")],
    ids=["mac", "windows"],
)
def test_what_only_linux_has_is_asked_of_linux_only(name: str, system: str, platform: str, machine: str) -> None:
    environment = {"sys_platform": platform, "platform_system": system, "platform_machine": machine}
    chosen = [r.name for r in pins(name).values() if r.marker is None or r.marker.evaluate(environment)]
    assert [package for package in chosen if ONLY_LINUX.match(package)] == []
    assert {"torch", "torchvision", "av", "numpy"} <= set(chosen)


def test_the_bench_extra_is_pinned() -> None:
    wanted = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"]["bench"]}
    assert set(pins("bench")) == wanted
