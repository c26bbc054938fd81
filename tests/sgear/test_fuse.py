"""Late fusion: weighted sums by sample, norms, the search; scores of every source; the command."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import config
from core.checkpoint import write_atomic
from projects.sgear import data, fuse, scores
from projects.sgear.config import Config
from projects.sgear.data import Benchmark
from projects.sgear.metrics import SPACES, Scores


def said(ids: str, values: Any) -> Scores:
    return Scores(tuple(ids), {"action": np.array(values, dtype=float)})


def test_scores_are_added_by_sample_over_the_union() -> None:
    a, b = said("xy", [[1, 0], [2, 0]]), said("yz", [[0, 1], [0, 3]])
    fused = fuse.fuse([a, b], [2.0, 0.5])
    assert fused.id == ("x", "y", "z")
    assert fused.of["action"].tolist() == [[2, 0], [4, 0.5], [0, 1.5]]
    assert fuse.fuse([a, b], 1.0).of["action"].tolist() == fuse.fuse([a, b], [1, 1]).of["action"].tolist()


def test_a_norm_divides_first() -> None:
    found = fuse.fuse([said("x", [[3.0, -4.0]])], norm=2.0)
    assert found.of["action"][0] == pytest.approx([3 / (5 + 1e-6), -4 / (5 + 1e-6)], abs=1e-15)


def test_what_does_not_fit_is_refused() -> None:
    a = said("x", [[1, 0]])
    with pytest.raises(ValueError, match="1 weights for 2 runs"):
        fuse.fuse([a, a], [1.0])
    with pytest.raises(ValueError, match="runs of 2 and 3 classes"):
        fuse.fuse([a, said("x", [[1, 0, 0]])])
    with pytest.raises(ValueError, match="different spaces"):
        fuse.fuse([a, Scores(("x",), {"verb": np.ones((1, 2))})])
    with pytest.raises(ValueError, match="1 of 2 samples were scored by no run, the first is q"):
        fuse.aligned(a, ["x", "q"])


def test_the_search_finds_who_knows() -> None:
    """One run is right, the other noise: the weight of noise goes to 0; the sum is never worse than equal weights."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    right, noise = rng.normal(0, 1, (2, 200, 5))
    right[np.arange(200), labels] += 1.5
    runs = [Scores(tuple(map(str, range(200))), {"action": values}) for values in (4 * noise, right)]

    def goodness(fused: Scores) -> float:
        return float((fused.of["action"].argmax(1) == labels).mean())

    weights, best = fuse.search(runs, goodness)
    assert weights[0] == 0.0
    assert best == goodness(runs[1]) > goodness(fuse.fuse(runs))
    assert fuse.search(runs[:1], goodness) == ([1.0], goodness(runs[0]))


# --- sources


@pytest.fixture(scope="module")
def benchmark(kitchen: Path) -> Benchmark:
    return data.load(config.load(Config, None, overrides(kitchen)).data)


def overrides(kitchen: Path) -> list[str]:
    return [
        f"data.root={kitchen}", "data.source=features", "model.input=features", "data.frames=4", "data.rate=2.0",
        "data.tau_a=0.5", "data.tau_o=2.0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def logits(benchmark: Benchmark) -> np.ndarray:
    segments = benchmark.clips("val").segments
    values = np.random.default_rng(1).normal(0, 1, (len(segments), 20)).astype(np.float32)
    values[np.arange(len(segments)), segments.action] += 1.5
    return values


@pytest.fixture(scope="module")
def run(benchmark: Benchmark, logits: np.ndarray, kitchen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of ours: a configuration and the scores of val."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    cfg = config.load(Config, None, overrides(kitchen))
    write_atomic(folder / "config.yaml", config.dump(cfg))
    found = {"id": benchmark.clips("val").segments.id.tolist(), "logits_action": logits}
    scores.write(scores.file_of(folder, "val"), found, {"part": "val"})
    return folder


def test_our_own_file(run: Path, benchmark: Benchmark, logits: np.ndarray) -> None:
    found = scores.read(run, benchmark, "val")
    assert found.id == tuple(benchmark.clips("val").segments.id.tolist())
    np.testing.assert_array_equal(found.of["action"], logits)
    assert set(found.of) == set(SPACES)
    assert json.loads(str(scores.read_file(run / "scores_val.npz")["about"])) == {"part": "val"}
    with pytest.raises(ValueError, match=r"no scores of test are there; run eval with eval.split=test"):
        scores.read(run, benchmark, "test")


def test_h5_of_the_published_code(tmp_path: Path, benchmark: Benchmark, logits: np.ndarray) -> None:
    """Two ranks, out of order; what the sampler repeated is averaged."""
    h5py = pytest.importorskip("h5py", reason="h5 files need the package h5py")
    ids = benchmark.clips("val").segments.id
    order = np.random.default_rng(2).permutation(144)
    for rank, rows in enumerate((order[:80], np.append(order[80:], order[0]))):
        (tmp_path / "results").mkdir(exist_ok=True)
        with h5py.File(tmp_path / f"results/{rank}.h5", "w") as file:
            values = logits[rows].astype(np.float64)
            if rank == 1:
                values[-1] += 2.0
            file["logits/action"], file["idx"] = values, rows
            file["uid"], file["epoch"] = ids[rows].astype("S64"), np.zeros(len(rows))
    found = scores.read(tmp_path, benchmark, "val")
    assert found.id == tuple(ids.tolist())
    wanted = logits.astype(np.float64)
    wanted[order[0]] += 1.0
    np.testing.assert_allclose(found.of["action"], wanted, atol=1e-12)
    (tmp_path / "results/0.h5").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"0.h5"):
        scores.read(tmp_path, benchmark, "val")


def test_challenge_files(tmp_path: Path, benchmark: Benchmark) -> None:
    entry = {"verb": {"0": 0.5, "3": 1.0}, "noun": {"1": 2.0}, "action": {"0,1": 7.0, "1,2": 3.0}}
    (tmp_path / "test.json").write_text(json.dumps({"results": {"a": entry}}))
    with zipfile.ZipFile(tmp_path / "submit.zip", "w") as archive:
        archive.write(tmp_path / "test.json", "test.json")
    for source in (tmp_path, tmp_path / "test.json", tmp_path / "submit.zip"):
        found = scores.read(source, benchmark, "test")
        assert found.id == ("a",)
        assert found.of["verb"].tolist() == [[0.5, 0, 0, 1.0]]
        assert dict(enumerate(found.of["action"][0])) == {k: {1: 7.0, 8: 3.0}.get(k, 0.0) for k in range(20)}
    (tmp_path / "test.json").write_text(json.dumps({"results": {"a": {"verb": {"99": 1}, "noun": {}, "action": {}}}}))
    with pytest.raises(ValueError, match="entry 'a' is malformed"):
        scores.read(tmp_path / "test.json", benchmark, "test")


def test_pickled_scores(tmp_path: Path, benchmark: Benchmark, logits: np.ndarray) -> None:
    content = {"verb_scores": np.ones((144, 4)), "noun_scores": np.ones((144, 6)), "action_scores": logits}
    path = tmp_path / "scores.pkl"
    path.write_bytes(pickle.dumps(content))
    found = scores.read(path, benchmark, "val")
    np.testing.assert_array_equal(found.of["action"], logits)
    path.write_bytes(pickle.dumps({**content, "action_scores": logits[:7]}))
    with pytest.raises(ValueError, match="action scores have 7 rows, val has 144 samples"):
        scores.read(path, benchmark, "val")
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="expected a pickled dict of verb_scores"):
        scores.read(path, benchmark, "val")


@pytest.mark.parametrize(
    ("name", "message"), [("x.txt", "is not read"), ("gone.npz", "no such file"), ("x.npz", "no file of")]
)
def test_what_holds_no_scores_is_named(tmp_path: Path, benchmark: Benchmark, name: str, message: str) -> None:
    for there in ("x.txt", "x.npz"):
        (tmp_path / there).write_text("nothing")
    with pytest.raises(ValueError, match=message):
        scores.read(tmp_path / name, benchmark, "val")


# --- the command


def test_the_published_example_is_one_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = fuse.main(
        [str(run), str(run / "scores_val.npz"), "--weights", "2.5", "0.5", "--out", str(tmp_path / "out")]
    )
    alone = fuse.main([str(run)])
    assert results["action/top1"] == pytest.approx(alone["action/top1"]), "three times one run ranks as the run"
    text = capsys.readouterr().out
    assert "fused 2.5 0.5" in text
    assert "official_unseen" in text
    assert json.loads((tmp_path / "out/results.json").read_text())["fused"]["weights"] == [2.5, 0.5]
    again = fuse.main([str(tmp_path / "out"), "--config", str(run / "config.yaml")])
    assert again == pytest.approx(alone)


def test_the_command_searches_and_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fuse.main([str(run), str(run), "--search"])
    assert "weights found on val: " in capsys.readouterr().out
    assert found["action/recall5"] > 60
    with pytest.raises(SystemExit) as stop:
        fuse.main([str(tmp_path)])
    assert stop.value.code == 1
    assert "no run has a config.yaml; say --config" in capsys.readouterr().err
