"""The kitchen made on the spot, and the whole project through its own commands in a smaller setting."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import simplejson

from core import video
from projects.sgear import demo


def test_scripts_follow_a_recipe() -> None:
    names = [name for videos in demo.names().values() for name in videos]
    assert len(set(names)) == demo.TRAIN_VIDEOS + demo.VAL_VIDEOS
    pairs = [
        (a.label, b.label) for name in names for a, b in zip(demo.script(name), demo.script(name)[1:], strict=False)
    ]
    follows = {a: max({b for x, b in pairs if x == a}, key=lambda b, a=a: pairs.count((a, b))) for a, _ in pairs}
    share = sum(follows[a] == b for a, b in pairs) / len(pairs)
    assert 0.85 < share < 0.97, "an action tells the next one, but for some surprises"
    assert len(set(follows.values())) == len(demo.PAIRS), "every action comes from another one"
    for name in names:
        actions = demo.script(name)
        assert all(a.end_s + 0.15 < b.start_s for a, b in itertools.pairwise(actions))


def test_data_is_made_once_and_always_the_same(kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAIN_VIDEOS", 1)
    monkeypatch.setattr(demo, "VAL_VIDEOS", 1)
    assert demo.main(["--data-only", f"data.root={tmp_path}"]) == {}
    (path,) = tmp_path.rglob("P01_101.MP4")
    (same,) = kitchen.rglob("P01_101.MP4")
    count = int((demo.script("P01_101")[-1].end_s + 0.4) * demo.FPS)
    assert video.probe(path).frames == count
    frames = [video.read(file, range(0, count, 5)).float() for file in (path, same)]
    assert float((frames[0] - frames[1]).abs().mean()) < 2
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    demo.main(["--data-only", f"data.root={tmp_path}"])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == times


@pytest.mark.demo
def test_the_demo_end_to_end(kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths, prediction and fusion through the commands; features are learned, far above the chance of 25 %."""
    monkeypatch.chdir(tmp_path)  # where no data lies: all of it is below data.root
    results = demo.main([f"data.root={kitchen}", "run.out=run", "optim.epochs=10", "loader.workers=0"])
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"results.json", "scores_val.npz", "report.html", "predictions.json", "predict.html", "fused"}
    assert results["val/samples_scored"] == 144
    assert 0.009 < results["val/margin_min_s"] <= 0.1
    alone = simplejson.loads((tmp_path / "run_features/results.json").read_text())
    assert alone["val/action/recall5"] > 60
    assert results["fused/action/recall5"] >= max(alone["val/action/recall5"], results["val/action/recall5"])
