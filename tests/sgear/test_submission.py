"""Challenge files: what they hold, that the check finds every fault, and the command."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import config
from core.checkpoint import write_atomic
from projects.sgear import data, metrics, scores, submission
from projects.sgear.config import Config
from projects.sgear.data import Benchmark
from projects.sgear.metrics import Scores

VERBS, NOUNS = 12, 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both editions with 144 actions (a submission lists 100) and test actions, the first of which cannot be seen."""
    root = tmp_path_factory.mktemp("challenge")
    for edition, prefix, key, tests in (
        ("100", "EPIC_100", "key", {"EPIC_100_test_timestamps": "narration_id"}),
        ("55", "EPIC", "class_key", {"EPIC_test_s1_timestamps": "uid", "EPIC_test_s2_timestamps": "uid"}),
    ):
        names, tables = (
            root / f"external/epic-kitchens-{edition}-annotations",
            root / f"external/rulstm/RULSTM/data/ek{edition}",
        )
        names.mkdir(parents=True)
        tables.mkdir(parents=True)
        for kind in ("verb", "noun"):
            rows = "".join(f"{k},{kind}{k}\n" for k in range(12))
            (names / f"{prefix}_{kind}_classes.csv").write_text(f"id,{key}\n{rows}")
        rows = "".join(f"{12 * v + n},{v},{n},verb{v} noun{n}\n" for v in range(VERBS) for n in range(NOUNS))
        (tables / "actions.csv").write_text(f"id,verb,noun,action\n{rows}")
        for number, (name, uid) in enumerate(tests.items()):
            header = f"{uid},participant_id,video_id,start_timestamp,stop_timestamp\n"
            lines = [f"{100 * number + k},P01,P01_1,00:00:{k:02d}.5,00:00:{k:02d}.9\n" for k in range(6)]
            (names / f"{name}.csv").write_text(header + "".join(lines))
    return root


def opened(root: Path, dataset: str = "ek100") -> Benchmark:
    return data.load(config.load(Config, None, [f"data.root={root}", f"data.dataset={dataset}"]).data)


def said(benchmark: Benchmark, part: str) -> Scores:
    ids = tuple(benchmark.clips(part).segments.id.tolist())
    logits = np.random.default_rng(len(ids)).normal(size=(len(ids), 144)).astype(np.float32)
    return metrics.marginal(ids, logits, benchmark.classes)


def made(benchmark: Benchmark, part: str) -> dict[str, Any]:
    head = submission.header(benchmark.cfg.dataset, (1, 4, 4))
    return head | {"results": dict(submission.entries(said(benchmark, part), benchmark, part))}


def test_an_entry_lists_all_classes_and_the_100_best_actions(root: Path) -> None:
    benchmark = opened(root)
    scored = said(benchmark, "test")
    content = made(benchmark, "test")
    assert list(content["results"]) == ["1", "2", "3", "4", "5", "0"], "what cannot be seen comes last"
    entry = content["results"]["2"]
    assert list(entry["verb"]) == list(entry["noun"]) == [str(k) for k in range(12)]
    values = list(entry["action"].values())
    assert values == sorted(values, reverse=True)
    best = np.argsort(-scored.of["action"][1])[:100]
    assert list(entry["action"]) == [f"{k // 12},{k % 12}" for k in best]
    nothing = content["results"]["0"]
    assert set(nothing["verb"].values()) == set(nothing["action"].values()) == {0.0}
    assert list(nothing["action"]) == [f"0,{k}" for k in range(100)]
    short = Scores(scored.id[1:], {space: values[1:] for space, values in scored.of.items()})
    with pytest.raises(ValueError, match="1 of 5 samples of test have no scores, the first is 1"):
        list(submission.entries(short, benchmark, "test"))


def test_a_dataset_with_fewer_than_100_actions_is_refused(kitchen: Path) -> None:
    benchmark = opened(kitchen)
    found = metrics.marginal((), np.zeros((0, 20), dtype=np.float32), benchmark.classes)
    with pytest.raises(ValueError, match="lists 100 actions, and this dataset has 20"):
        next(submission.entries(found, benchmark, "test"))


def test_a_zero_entry_may_name_nouns_that_do_not_exist(root: Path) -> None:
    """With 300 nouns `0,0` to `0,99` are classes; here are 12, so the check has to say it."""
    wrong = submission.problems(made(opened(root), "test"), opened(root), "test")
    assert wrong == ["malformed 0: action '0,12' is no `verb,noun` of the classes"]


@pytest.fixture
def good(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Benchmark]:
    benchmark = opened(root)
    content = made(benchmark, "test")
    content["results"]["0"] = copy.deepcopy(content["results"]["2"])
    return content, benchmark


FAULTS: dict[str, tuple[Any, str]] = {
    "version": (lambda c: c.update(version="0.1"), r"version is '0.1', expected '0.2'"),
    "challenge": (lambda c: c.pop("challenge"), "challenge is None, expected 'action_anticipation'"),
    "level": (lambda c: c.update(sls_td=6), "sls_td is 6, expected a whole number from 0 to 5"),
    "truth": (lambda c: c.update(sls_pt=True), "sls_pt is True"),
    "missing": (lambda c: c["results"].pop("3"), "missing: 1 entries, 3"),
    "extra": (lambda c: c["results"].update(x=c["results"]["2"]), "extra: 1 entries, x"),
    "space": (lambda c: c["results"]["2"].pop("noun"), "malformed 2: expected verb, noun and action"),
    "verb": (lambda c: c["results"]["2"]["verb"].pop("7"), "malformed 2: verb should have the keys 0 to 11; differing"),
    "few": (lambda c: c["results"]["2"]["action"].popitem(), "malformed 2: action should list exactly 100, found 99"),
    "finite": (lambda c: c["results"]["2"]["noun"].update({"1": float("nan")}), "malformed 2: noun 1 scores nan"),
    "text": (lambda c: c["results"]["2"]["noun"].update({"1": "0.5"}), "malformed 2: noun 1 scores '0.5'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(good: tuple[dict[str, Any], Benchmark], fault: str) -> None:
    content, benchmark = good
    assert submission.problems(content, benchmark, "test") == []
    change, message = FAULTS[fault]
    change(content)
    (found,) = submission.problems(content, benchmark, "test")
    assert message in found


def test_many_faults_are_counted(good: tuple[dict[str, Any], Benchmark]) -> None:
    content, benchmark = good
    content["results"] = {f"y{k}": {} for k in range(9)}
    found = submission.problems(content, benchmark, "test")
    assert found[0] == "missing: 6 entries, 1, 2, 3, 4, 5 and 1 more"
    assert found[1] == "extra: 9 entries, y0, y1, y2, y3, y4 and 4 more"
    assert found[-1] == "malformed: 9 entries in all"


@pytest.fixture
def wide(root: Path, tmp_path: Path) -> Path:
    """As many nouns as zero entries name."""
    copied = tmp_path / "wide"
    shutil.copytree(root, copied)
    for edition, prefix, key in (("100", "EPIC_100", "key"), ("55", "EPIC", "class_key")):
        rows = "".join(f"{k},noun{k}\n" for k in range(100))
        path = copied / f"external/epic-kitchens-{edition}-annotations/{prefix}_noun_classes.csv"
        path.write_text(f"id,{key}\n{rows}")
    return copied


@pytest.mark.parametrize("dataset", ["ek100", "ek55"])
def test_the_command_makes_and_checks(
    wide: Path, tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = opened(wide, dataset)
    run = tmp_path / "run"
    cfg = config.load(Config, None, [f"data.root={wide}", f"data.dataset={dataset}"])
    write_atomic(run / "config.yaml", config.dump(cfg))
    parts = submission.FILES[dataset]
    for part in parts:
        found = said(benchmark, part)
        scores.write(scores.file_of(run, part), {"id": found.id, "logits_action": found.of["action"]}, {})
    assert submission.main([str(run), str(run), "--weights", "1", "1.5", "--out", str(tmp_path / "out")]) == 0
    with zipfile.ZipFile(tmp_path / "out/submit.zip") as archive:
        assert archive.namelist() == list(parts.values())
    content = json.loads((tmp_path / "out" / next(iter(parts.values()))).read_text())
    assert content["version"] == {"ek100": "0.2", "ek55": "0.1"}[dataset]
    assert ("sls_pt" in content) == (dataset == "ek100")
    assert len(content["results"]) == 6
    for part, file in parts.items():
        assert submission.main(["--check", str(tmp_path / "out" / file), "--part", part, str(run)]) == 0
    assert "nothing missing, extra or malformed" in capsys.readouterr().out
    path = tmp_path / "out" / next(iter(parts.values()))
    content["results"].popitem()
    path.write_text(json.dumps(content))
    assert submission.main(["--check", str(path), str(run)]) == 1
    assert "missing: 1 entries" in capsys.readouterr().err
    path.write_text("{")
    assert submission.main(["--check", str(path), str(run)]) == 1
    assert "expected a challenge json" in capsys.readouterr().err


def test_nothing_is_left_when_writing_stops(tmp_path: Path) -> None:
    def stopping() -> Any:
        yield "a", {}
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        submission.write(tmp_path / "test.json", {"version": "0.2"}, stopping())
    assert list(tmp_path.iterdir()) == []
