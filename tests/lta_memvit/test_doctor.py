"""What a doctor finds: nothing, or everything that would end a run hours later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from core import video
from projects.lta_memvit import data
from projects.lta_memvit.doctor import Finding, examine, main
from tests.lta_memvit.tiny import configured, saved, settings


def findings(root: Path, out: Path, *more: str) -> list[Finding]:
    return list(examine(configured(root, out, *more)))


def texts(found: list[Finding], level: str) -> list[str]:
    return [finding.text for finding in found if finding.level == level]


def test_a_healthy_dataset_with_weights_has_nothing_to_complain_of(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configured(made, tmp_path / "run", "task=recognition")
    path = saved(cfg, tmp_path / "net.safetensors", data.load(cfg.data))
    assert main(settings(made, tmp_path / "run", f"model.init={path}", "model.freeze=true")) == 0
    text = capsys.readouterr().out
    assert "0 errors, 0 warnings" in text
    for words in (
        "4 verbs, 5 nouns",
        "train: 52 actions in 4 clips, 36 windows of 2 + 3 actions",
        "9 of 9 clips can be read: 48x48 at 8 fps (9)",
        "slowfast_nano answers 3x4 and 3x5 for 8 frames of 32x32",
    ):
        assert words in text
    assert "Length of the clips" in (tmp_path / "run" / "doctor.html").read_text()


def test_missing_damaged_large_and_short_clips_are_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "data")
    clips = tmp_path / "data" / "clips"
    (clips / "train-0000.mp4").unlink()
    (clips / "train-0001.mp4").write_bytes(b"nothing")
    video.write(clips / "train-0002.mp4", iter(torch.zeros(104, 360, 400, 3, dtype=torch.uint8)), 8)
    video.write(clips / "val-0000.mp4", iter(torch.zeros(84, 48, 48, 3, dtype=torch.uint8)), 8)
    found = findings(tmp_path / "data", tmp_path / "run")
    warnings, errors = texts(found, "warning"), texts(found, "error")
    assert any("train: 1 of 4 clips are not in" in text and "train-0000" in text for text in warnings)
    assert any(text.startswith("train-0001.mp4: is no video") for text in errors)
    assert any("1 clips are larger than a short side of 320: train-0002" in text for text in warnings)
    assert any("2 segments begin after the end of their clip: val-0000_11, val-0000_12" in text for text in warnings)
    page = (tmp_path / "run" / "doctor.html").read_text()
    assert "missing in train" in page
    assert "begins after the end of its clip" in page


def test_a_dataset_without_clips_or_annotations_is_an_error(made: Path, tmp_path: Path) -> None:
    found = findings(made, tmp_path / "run", f"data.clips={tmp_path / 'nowhere'}")
    assert sum("clips are not in" in text for text in texts(found, "error")) == 3
    found = findings(made, tmp_path / "run", f"data.annotations={tmp_path}")
    assert texts(found, "error") == [f"{tmp_path / 'fho_lta_taxonomy.json'} does not exist; link Ego4D's annotation "
                                     "files there, or say where they are with data.annotations="]  # fmt: skip
    for name in ("fho_lta_taxonomy.json", "fho_lta_val.json"):
        shutil.copy(made / "annotations" / name, tmp_path)
    found = findings(made, tmp_path / "run", f"data.annotations={tmp_path}")
    assert "fho_lta_train.json is missing" in texts(found, "error")
    assert "fho_lta_test_unannotated.json is missing" in texts(found, "warning")


def test_a_frozen_backbone_without_weights_is_an_error(made: Path, tmp_path: Path) -> None:
    found = findings(made, tmp_path / "run", "model.freeze=true")
    assert any("the backbone would stay random" in text for text in texts(found, "error"))
    found = findings(made, tmp_path / "run")
    assert texts(found, "warning") == ["model.init is empty: training starts from nothing"]
    assert texts(found, "error") == []


def test_weights_of_another_network_are_an_error(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path / "run", "task=recognition", "model.backbone=mvit_nano")
    path = saved(cfg, tmp_path / "net.safetensors", data.load(cfg.data))
    assert len(texts(findings(made, tmp_path / "run", f"model.init={path}"), "error")) == 1
    assert any("does not exist" in t or "no such file" in t
               for t in texts(findings(made, tmp_path / "run", "model.init=gone.ckpt"), "error"))  # fmt: skip


def test_published_features_are_counted_and_measured(made: Path, tmp_path: Path) -> None:
    more = ("features.source=ego4d", "model.backbone=none", f"features.folder={tmp_path}", "model.feature_size=9")
    entries = json.loads((made / "annotations" / "fho_lta_train.json").read_text())["clips"]
    for name in {entry["video_uid"] for entry in entries[:20]}:
        torch.save(torch.zeros(30, 12), tmp_path / f"{name}.pt")
    found = findings(made, tmp_path / "run", *more)
    assert any(text.startswith("train: 18 of 36 windows have features") for text in texts(found, "warning"))
    assert any(text.startswith("val: 0 of 27 windows") for text in texts(found, "error"))
    assert "features have 12 channels, the model takes 9" in texts(found, "error")
    assert not any("clips" in text and "read" in text for text in texts(found, "ok"))
