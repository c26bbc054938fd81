"""The whole project through its real commands, on data made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core import config
from projects.actionformer import demo, doctor
from projects.actionformer.config import Config
from projects.actionformer.features import Source


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.mark.demo
@pytest.mark.timeout(600)
def test_data_training_evaluation_and_prediction(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    figures = demo.main([])
    # An untrained network stays below 1 %: random segments of random classes.
    assert figures["features/validation/mAP"] > 80
    assert figures["videos/validation/mAP"] > 40
    for name in ("demo", "demo_videos"):
        run = place / "runs" / "actionformer" / name
        assert (run / "report.html").stat().st_size > 10_000
        assert (run / "predict.html").stat().st_size > 5_000
        assert json.loads((run / "results.json").read_text())
        assert (run / "predictions.json").is_file()


@pytest.mark.demo
def test_the_data_are_sound(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert demo.main(["--data-only"]) == {}
    made = sorted((place / "data").rglob("*.np*")) + sorted((place / "data").rglob("*.mp4"))
    stamps = [path.stat().st_mtime_ns for path in made]
    assert demo.main(["--data-only"]) == {}
    assert [path.stat().st_mtime_ns for path in made] == stamps
    for name in ("demo", "demo_videos"):
        assert doctor.main([str(demo.CONFIGS / f"{name}.yaml")]) == 0
    cfg = config.load(Config, demo.CONFIGS / "demo_videos.yaml")
    source = Source(cfg.data.features[0])
    assert len(source.names) == sum(demo.VIDEOS.values())
    name = sorted(source.names)[0]
    recorded = source.recorded(name)
    assert recorded is not None
    assert recorded[:3] == (12.5, 2, 4)
    assert np.isfinite(source.read(name)).all()


def test_the_layout_of_a_video_does_not_depend_on_what_is_there(tmp_path: Path) -> None:
    overrides = [f"extract.videos={tmp_path / 'videos'}"]
    cfg = config.load(Config, demo.CONFIGS / "demo_videos.yaml", overrides)
    first = demo.make_videos(cfg).read_text()
    (tmp_path / "videos" / "train_03.mp4").unlink()
    assert demo.make_videos(cfg).read_text() == first
    assert (tmp_path / "videos" / "train_03.mp4").is_file()
