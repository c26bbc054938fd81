"""The file for the challenge: what is missing, unknown or malformed, and the command that says so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import simplejson

from projects.lta_memvit import check_submission, data, demo
from projects.lta_memvit.check_submission import REQUIRED_INPUTS, check, main
from projects.lta_memvit.config import DataConfig
from projects.lta_memvit.data import Benchmark
from projects.lta_memvit.demo import Size

FUTURE, SEQUENCES = 3, 5


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Two test clips of 13 actions: each has three windows with eight observed and three future ones."""
    root = tmp_path_factory.mktemp("annotated")
    demo.make(root, root, Size(train=0, val=1, test=2, actions=13))
    return data.load(DataConfig(annotations=root, clips=root, future=FUTURE))


@pytest.fixture
def outputs(benchmark: Benchmark) -> dict[str, Any]:
    """A forecast for every window with two observed actions."""
    rows = {"verb": [[0, 1, 3]] * SEQUENCES, "noun": [[0, 2, 4]] * SEQUENCES}
    return {window.id: copy.deepcopy(rows) for window in benchmark.windows("test", 2)}


def test_a_complete_file_may_hold_more_than_is_required(benchmark: Benchmark, outputs: dict[str, Any]) -> None:
    found = check(outputs, benchmark)
    assert found.ok
    assert (found.required, found.given) == (6, 18)
    assert str(found) == "18 forecasts, 6 are required; complete and well formed"
    only = {window.id for window in benchmark.windows("test", REQUIRED_INPUTS)}
    assert only == {f"test-{clip:04d}_{position}" for clip in range(2) for position in (7, 8, 9)}  # positions 7 .. n-4
    assert check({name: outputs[name] for name in only}, benchmark).ok


def test_missing_and_unknown_keys_are_listed(benchmark: Benchmark, outputs: dict[str, Any]) -> None:
    entry = outputs.pop("test-0001_8")
    outputs.pop("test-0001_2")  # not required
    outputs["test-0001_12"] = entry  # no three actions follow it
    outputs["elsewhere_3"] = entry
    found = check(outputs, benchmark)
    assert not found.ok
    assert found.missing == ["test-0001_8"]
    assert found.unknown == ["test-0001_12", "elsewhere_3"]
    assert "1 are missing: test-0001_8; 2 belong to no window: test-0001_12, elsewhere_3" in str(found)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda entry: entry.pop("noun"), "expected the keys verb and noun and no others"),
        (lambda entry: entry.update(action=[]), "expected the keys verb and noun and no others"),
        (lambda entry: entry["verb"].pop(), "verb: expected 5 lists, found 4"),
        (lambda entry: entry.update(verb={"0": 1}), "verb: expected 5 lists, found a dict"),
        (lambda entry: entry["noun"].__setitem__(2, 7), "noun: expected 5 lists, found 5"),
        (lambda entry: entry["noun"].__setitem__(2, [1, 2]), "noun: expected 3 actions in each list, found 2"),
        (lambda entry: entry["verb"].__setitem__(4, [0, 1, 4]), "verb: 4 is no class id from 0 to 3"),
        (lambda entry: entry["verb"].__setitem__(4, [0, -1, 1]), "verb: -1 is no class id from 0 to 3"),
        (lambda entry: entry["noun"].__setitem__(0, [0, 1.0, 1]), "noun: 1.0 is no class id from 0 to 4"),
        (lambda entry: entry["noun"].__setitem__(0, [0, True, 1]), "noun: True is no class id"),
        (lambda entry: entry["noun"].__setitem__(0, [0, "1", 1]), "noun: '1' is no class id"),
    ],
)
def test_a_malformed_forecast_is_explained(
    benchmark: Benchmark, outputs: dict[str, Any], change: Any, fault: str
) -> None:
    change(outputs["test-0000_4"])
    found = check(outputs, benchmark)
    assert list(found.malformed) == ["test-0000_4"]
    assert found.malformed["test-0000_4"].startswith(fault)
    assert "1 are malformed: test-0000_4 (" in str(found)


def test_something_else_is_no_submission(benchmark: Benchmark) -> None:
    with pytest.raises(ValueError, match="a submission is an object"):
        check([1, 2], benchmark)
    assert check({"test-0000_8": [1]}, benchmark).malformed == {
        "test-0000_8": "expected the keys verb and noun and no others"
    }


def test_the_command(
    benchmark: Benchmark, outputs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, options = tmp_path / "outputs.json", [f"annotations={benchmark.cfg.annotations}", f"future={FUTURE}"]
    path.write_text(simplejson.dumps(outputs))
    assert main([str(path), *options]) == 0
    assert "complete and well formed" in capsys.readouterr().out
    assert main([str(path), *options, "sequences=4"]) == 1
    assert "malformed  test-0000_1: verb: expected 4 lists, found 5" in capsys.readouterr().out
    outputs.pop("test-0000_7")
    path.write_text(simplejson.dumps(outputs | {"x_1": {}}))
    assert main([str(path), *options]) == 1
    text = capsys.readouterr().out
    assert "missing    test-0000_7\n" in text
    assert "unknown    x_1\n" in text


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, [], "does not exist"),
        ("{", [], "is no JSON"),
        ("[]", [], "a submission is an object"),
        ("{}", ["future=many"], "invalid literal"),
        ("{}", ["part=train2"], "train2"),
    ],
)
def test_a_command_that_cannot_work_says_why(
    benchmark: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: list[str],
    message: str,
) -> None:  # fmt: skip
    path = tmp_path / "outputs.json"
    if content is not None:
        path.write_text(content)
    assert main([str(path), f"annotations={benchmark.cfg.annotations}", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert main(["a.json", "b=1"]) == 2
    assert capsys.readouterr().out.count("Will the challenge server take this file?") == 3
    assert (check_submission.SERVER_SEQUENCES, check_submission.SERVER_FUTURE) == (5, 20)
