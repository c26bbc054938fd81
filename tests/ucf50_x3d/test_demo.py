"""The whole project through its own commands, in a smaller setting than the demo's."""

from __future__ import annotations

from pathlib import Path

import pytest
import simplejson

from core import video
from projects.ucf50_x3d import demo

CLASSES = ("Blink", "Fast", "Slow", "Still")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four source videos of one clip for each motion, one epoch."""
    monkeypatch.setattr(demo, "GROUPS", 4)
    monkeypatch.setattr(demo, "CLIPS", 1)
    monkeypatch.chdir(tmp_path)
    return ["data.root=clips", "run.out=run", "run.device=cpu", "optim.epochs=1", "loader.workers=0"]


def test_data_is_made_once_and_always_the_same(small: list[str], tmp_path: Path) -> None:
    assert demo.main(["--data-only", *small]) == {}
    files = sorted((tmp_path / "clips").rglob("*.mp4"))
    assert [file.parent.name for file in files] == [name for name in CLASSES for _ in range(4)]
    assert files[0].name == "v_Blink_g01_c01.mp4"
    info = video.probe(files[0])
    assert (info.frames, info.height, info.width) == (24, 44, 44)
    content = files[0].read_bytes()
    files[0].unlink()
    times = [file.stat().st_mtime_ns for file in files[1:]]
    demo.main(["--data-only", *small])
    assert files[0].read_bytes() == content
    assert [file.stat().st_mtime_ns for file in files[1:]] == times
    assert not (tmp_path / "run").exists()


@pytest.mark.demo
def test_the_demo_end_to_end(small: list[str], tmp_path: Path) -> None:
    """Data, training, evaluation, prediction; the second call resumes the finished run and trains no more."""
    results = demo.main(small)
    out = tmp_path / "run"
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "environment.json", "run.log", "metrics.jsonl", "tensorboard", "checkpoints", "results.json",
        "predictions.csv", "report.html", "predictions.json", "predict.html",
    }  # fmt: skip
    assert results["test/clips_scored"] == results["test/clips_expected"] == 4
    assert simplejson.loads((out / "results.json").read_text())["test/accuracy"] == results["test/accuracy"]
    (answer,) = simplejson.loads((out / "predictions.json").read_text())
    assert Path(answer["video"]).parent.name in CLASSES
    assert {entry["class"] for entry in answer["top"]} == set(CLASSES)
    for page in ("report.html", "predict.html"):
        assert all(name in (out / page).read_text() for name in CLASSES)

    table, newest = (out / "metrics.jsonl").read_bytes(), sorted((out / "checkpoints").iterdir())
    assert demo.main(small)["test/accuracy"] == results["test/accuracy"]
    assert (out / "metrics.jsonl").read_bytes() == table
    assert sorted((out / "checkpoints").iterdir()) == newest
