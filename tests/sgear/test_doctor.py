"""The doctor names what is missing, what does not fit, and the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core import config
from projects.sgear import doctor
from projects.sgear.config import Config
from projects.sgear.doctor import Finding

CONFIGS = Path(__file__).parents[2] / "projects/sgear/configs"


def findings(kitchen: Path, name: str, *more: str) -> list[Finding]:
    language = f"model.prototypes.language={kitchen / 'encodings_epic100.pth'}"
    return list(doctor.examine(config.load(Config, CONFIGS / name, [f"data.root={kitchen}", language, *more])))


def problems(found: list[Finding]) -> list[str]:
    return [f"{finding.text} {finding.advice}" for finding in found if finding.level != "ok"]


@pytest.mark.parametrize("name", ["demo.yaml", "demo_features.yaml"])
def test_a_complete_dataset_is_fine(kitchen: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(kitchen, name)
    assert problems(found) == []
    text = "\n".join(map(str, found))
    assert "val: 20 of 20 samples looked at can be read" in text
    assert "s before the limit" in text
    assert "language prototypes encodings_epic100.pth: (20, 768)" in text
    assert (
        doctor.main([str(CONFIGS / name), f"data.root={kitchen}", "model.prototypes.language=", "loss.semantic=0"]) == 0
    )
    assert "0 errors" in capsys.readouterr().out


def test_missing_annotations_stop_the_examination(tmp_path: Path) -> None:
    found = list(doctor.examine(config.load(Config, None, [f"data.root={tmp_path}"])))
    assert [finding.level for finding in found][-1] == "error"
    assert "EPIC_100_verb_classes.csv does not exist; docs/data.md" in found[-1].text
    assert doctor.main([f"data.root={tmp_path}"]) == 1


def test_missing_parts_and_videos_are_named(kitchen: Path, tmp_path: Path) -> None:
    root = tmp_path / "kitchen"
    shutil.copytree(kitchen, root)
    (root / "external/epic-kitchens-100-annotations/EPIC_100_test_timestamps.csv").unlink()
    (root / "external/epic-kitchens-100-annotations/EPIC_100_tail_verbs.csv").unlink()
    folder = root / "DATA/videos/EpicKitchens100/videos_extension_ht256px"
    (folder / "P07/P07_201.MP4").unlink()
    for broken in (folder / "P01").iterdir():
        broken.write_bytes(b"broken")
    said = "\n".join(problems(findings(root, "demo.yaml")))
    assert "EPIC_100_test_timestamps.csv does not exist" in said
    assert "only submissions need test" in said
    assert "val: 1 videos are missing. P07/P07_201.MP4: is in none of" in said
    assert "is no video that FFmpeg can read" in said
    assert "the lists of unseen participants and tail classes are not there" in said


def test_what_does_not_fit_is_named(kitchen: Path, tmp_path: Path) -> None:
    said = "\n".join(problems(findings(kitchen, "demo_features.yaml", "model.feature_dim=64")))
    assert "features have 32 channels, the model takes 64 say model.feature_dim=32" in said
    said = "\n".join(problems(findings(kitchen, "demo_features.yaml", "data.features=[flow]")))
    assert "holds no data.mdb" in said
    said = "\n".join(problems(findings(kitchen, "demo_features.yaml", "model.prototypes.language=")))
    assert "loss.semantic needs language prototypes" in said
    (tmp_path / "other.pth").write_bytes(b"nothing")
    said = "\n".join(
        problems(findings(kitchen, "demo_features.yaml", f"model.prototypes.visual={tmp_path / 'other.pth'}"))
    )
    assert "model.prototypes.visual" in said
