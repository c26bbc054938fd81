"""The conversion of Ego4D's downloads: official numbers, going on after a stop, and what is missing or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.actionformer import ego4d
from projects.actionformer.ego4d_classes import CLASSES
from tests.support import GOLDEN, Case, Parity, cases, fill

CASES = cases("actionformer", "ego4d_convert*")


def downloads(case: Case, root: Path) -> Path:
    """What a user has after Ego4D's own download."""
    recipe = case.json("case.json")
    (root / "annotations").mkdir(parents=True)
    for path in case.path.glob("moments_*.json"):
        shutil.copy(path, root / "annotations")
    for folder, channels in recipe["channels"].items():
        (root / "features" / folder).mkdir(parents=True)
        for video, length in recipe["video_feature_lengths"].items():
            values = 10 * fill.array(f"{folder}/{video}.bias", (length, channels), "float32", recipe["salt"])
            torch.save(torch.from_numpy(values.astype(np.float32)), root / "features" / folder / f"{video}.pt")
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return downloads(CASES[0], tmp_path / "raw")


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path.name)
def test_the_conversion_is_the_official_one(case: Case, tmp_path: Path, parity: Parity) -> None:
    out = tmp_path / "out"
    ego4d.convert(downloads(case, tmp_path / "raw"), out, progress=False)
    assert json.loads((out / "annotations" / "ego4d.json").read_text()) == case.json("ego4d.json")
    expected = case.expected
    files = {name.rsplit(".", 1)[0] for name in expected}
    assert {path.relative_to(out).as_posix() for path in out.glob("*_features/*")} == files
    for name in sorted(files):
        rows = np.load(out / name)
        parity.check(f"{name}.shape", rows.shape, expected[f"{name}.shape"])
        parity.check(f"{name}.first", rows[0], expected[f"{name}.first"])
        parity.check(f"{name}.last", rows[-1], expected[f"{name}.last"])
        parity.check(f"{name}.sum", rows.astype(np.float64).sum(), expected[f"{name}.sum"], rtol=1e-9)


def test_the_classes_are_those_of_the_benchmark() -> None:
    assert list(CLASSES) == json.loads((GOLDEN / "actionformer" / "ego4d_labels.json").read_text())
    assert list(CLASSES) == sorted(CLASSES)


def test_what_is_left_out_is_named(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ego4d.main([str(raw), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "left out: video vid-nofeat: " in said
    assert "left out: clip clip-b: its times and frames contradict each other" in said
    assert "4 clips, 3 of them with entries" in said


def test_a_missing_kind_of_features_leaves_the_video_out_unless_it_was_not_asked_for(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "features" / "slowfast8x8_r101_k400")
    assert ego4d.convert(raw, tmp_path / "both", progress=False).clips == 0
    outcome = ego4d.convert(raw, tmp_path / "one", ["omnivore"], progress=False)
    assert outcome.clips == 4
    assert not (tmp_path / "one" / "slowfast_features").exists()


def test_a_second_run_keeps_what_is_there(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ego4d.convert(raw, out, progress=False)
    kept = out / "omnivore_features" / "clip-a1.npy"
    stamp = kept.stat().st_mtime_ns
    (out / "omnivore_features" / "clip-a2.npy").unlink()
    ego4d.convert(raw, out, progress=False)
    assert kept.stat().st_mtime_ns == stamp
    assert (out / "omnivore_features" / "clip-a2.npy").is_file()


def test_test_clips_keep_how_far_their_features_begin_before_them(raw: Path, tmp_path: Path) -> None:
    clip = {"clip_uid": "clip-t", "video_start_sec": 20 / 3, "video_end_sec": 40, "video_start_frame": 200,
            "video_end_frame": 1200}  # fmt: skip
    content = {"videos": [{"video_uid": "vid-a", "split": "test", "clips": [clip]}]}
    (raw / "annotations" / "moments_test_unannotated.json").write_text(json.dumps(content))
    entry = ego4d.convert(raw, tmp_path / "out", progress=False).database["clip-t"]
    assert entry["subset"] == "test"
    assert entry["annotations"] == []
    assert entry["offset"] == pytest.approx(8 / 30)  # frame 200 is 8 frames after the window that starts at 192


@pytest.mark.parametrize("damage", ["short", "broken", "class", "json", "absent"])
def test_damage_is_named(raw: Path, tmp_path: Path, damage: str) -> None:
    features, train = raw / "features" / "omnivore_video_swinl" / "vid-a.pt", raw / "annotations" / "moments_train.json"
    if damage == "short":
        torch.save(torch.zeros(20, 3), features)
        words = "vid-a.pt has 20 windows, clip clip-a1 needs 111"
    elif damage == "broken":
        features.write_bytes(b"x" * 100)
        words = "vid-a.pt cannot be read"
    elif damage == "class":
        train.write_text(train.read_text().replace("wash_hands", "wash_hand"))
        words = "clip clip-a1: 'wash_hand' is none of the 110 moment classes"
    elif damage == "json":
        train.write_text("[]")
        words = "moments_train.json: expected Ego4D"
    else:
        for path in (raw / "annotations").iterdir():
            path.unlink()
        words = "annotations holds none of moments_train.json"
    with pytest.raises(ValueError, match=words):
        ego4d.convert(raw, tmp_path / "out", progress=False)
