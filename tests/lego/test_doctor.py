"""What the doctor finds wrong, and what it advises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projects.lego import data, doctor
from projects.lego.config import DataConfig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pairs in both parts, with features of width 8."""
    for split in ("train", "val"):
        entries: dict[str, dict] = {}
        for k in range(2):
            frames = {f"image_{i}": f"c/{k}/{i}.jpg" for i in range(2)}
            for place in frames.values():
                path = tmp_path / "EgoGen" / "ego4d.fho" / split / place
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 10)).save(path)
            words = {"action": f"#C C cuts {k}", "llava_forecast_finetune": "the hand cuts"}
            entries.setdefault("c", {})[str(k)] = {**frames, **words}
        (tmp_path / f"ego4d_{split}.json").write_text(json.dumps(entries))
        for record in data.load(DataConfig(root=tmp_path), split):
            for kind in ("image", "text"):
                path = data.feature_path(tmp_path, record, kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, np.zeros((3, 8), np.float16))
    return tmp_path


def said(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    arguments = [f"run.out={root / 'run'}", f"data.root={root}", f"eval.weights={root / 'w'}"]
    status = doctor.main([*arguments, "model.feature_width=8", *more])
    return status, capsys.readouterr().out


def test_all_is_well(root: Path, capsys) -> None:
    status, text = said(root, capsys)
    assert status == 0
    assert "train: all frames are there, of 20x10" in text
    assert "val: all text features are there" in text
    assert "ego4d train: 2 pairs; the release has 85521" in text
    assert "ego4d_metadata.json is missing" in text
    assert "lacks 11 of 11 networks of the metrics" in text
    assert text.endswith("warnings\n")
    assert "0 errors" in text


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("frame", "1 frames are missing, such as"),
        ("picture", "no readable picture"),
        ("feature", "1 of 2 files of text features are missing"),
        ("width", "has width 9, the model 8\n         -> model.feature_width=9"),
        ("prompt", "1 pairs have no text 'llava_forecast_finetune', such as c/0"),
        ("json", "damaged or no JSON"),
        ("exchange", "does not come before"),
    ],
)
def test_what_is_wrong_is_named(root: Path, capsys, harm: str, words: str) -> None:
    frame = root / "EgoGen" / "ego4d.fho" / "val" / "c" / "0" / "1.jpg"
    (record, _) = data.load(DataConfig(root=root), "val")
    path = root / "ego4d_val.json"
    tree = json.loads(path.read_text())
    match harm:
        case "frame":
            frame.unlink()
        case "picture":
            frame.write_bytes(b"no picture")
        case "feature":
            data.feature_path(root, record, "text").unlink()
        case "width":
            np.save(data.feature_path(root, record, "text"), np.zeros((3, 9), np.float16))
        case "prompt":
            del tree["c"]["0"]["llava_forecast_finetune"]
            path.write_text(json.dumps(tree))
        case "json":
            path.write_text("{")
        case "exchange":
            one = tree["c"]["0"]
            one["image_0"], one["image_1"] = one["image_1"], one["image_0"]
            path.write_text(json.dumps(tree))
    status, text = said(root, capsys)
    assert words in text
    assert status == 1
