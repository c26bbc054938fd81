"""What the doctor says before hours are spent, and with which exit code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from core import video
from core.checkpoint import save_weights
from core.run import RunConfig
from projects.ucf50_x3d import data, doctor, splits
from projects.ucf50_x3d.config import ClipConfig, Config, DataConfig, LoaderConfig, ModelConfig
from projects.ucf50_x3d.doctor import Finding
from projects.ucf50_x3d.model import X3D
from tests.support import cases

SIZE, FRAMES = (44, 60), 10


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    frames = torch.randint(0, 256, (FRAMES, *SIZE, 3), dtype=torch.uint8)
    return video.write(tmp_path_factory.mktemp("clip") / "one.mp4", frames, 25).read_bytes()


@pytest.fixture
def root(clip_file: bytes, tmp_path: Path) -> Path:
    """Two classes of three groups of two clips."""
    for name in ("Jump", "Walk"):
        for group in range(1, 4):
            for clip in range(1, 3):
                path = tmp_path / "set" / name / f"v_{name}_g{group:02d}_c{clip:02d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(clip_file)
    return tmp_path / "set"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of four classes."""
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(X3D("nano", 4), path, {"model": "x3d_nano"})
    return path


def settings(root: Path, **sections: Any) -> Config:
    chosen = {
        "run": RunConfig(out=root.parent / "run"),
        "data": DataConfig(root=root),
        "clip": ClipConfig(frames=8, crop=40),
        "loader": LoaderConfig(workers=0),
        "model": ModelConfig(name="x3d_nano"),
    }
    return Config(**(chosen | sections))


def said(found: list[Finding], level: str) -> list[str]:
    return [finding.text for finding in found if finding.level == level]


def command(root: Path, *more: str) -> list[str]:
    return [
        f"run.out={root.parent / 'run'}",
        f"data.root={root}",
        "clip.frames=8",
        "clip.crop=40",
        "loader.workers=0",
        "model.name=x3d_nano",
        *more,
    ]


def test_all_is_well(root: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(command(root, f"model.init={weights}")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok ", " ")) for line in lines[:-1]), lines
    assert lines[-1] == "0 errors, 0 warnings"
    text = "\n".join(lines)
    assert f"{root}: 2 classes, 4 train, 4 val, 4 test clips (protocol grouped)" in text
    assert "12 of 12 clips can be read: 10 to 10 frames, 60x44 (12)" in text
    assert f"{weights}: " in text
    assert "x3d_nano takes 8 frames of 40x40" in text
    page = (root.parent / "run" / "doctor.html").read_text()
    assert "Frames per clip" in page
    assert "v_Walk_g03_c02.mp4" in page


def test_broken_clips_are_named_and_end_with_1(
    root: Path, weights: Path, clip_file: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "Jump/v_Jump_g01_c02.mp4").write_text("not a video")
    (root / "Walk/v_Walk_g02_c01.mp4").write_bytes(b"")
    (root / "Walk/v_Walk_g03_c01.mp4").write_bytes(clip_file[: len(clip_file) // 2])
    assert doctor.main(command(root, f"model.init={weights}", "clip.sampling=window")) == 1
    out = capsys.readouterr().out
    assert f"error    {root / 'Jump/v_Jump_g01_c02.mp4'}: " in out
    assert f"error    {root / 'Walk/v_Walk_g02_c01.mp4'}: " in out
    assert f"warning  {root / 'Walk/v_Walk_g03_c01.mp4'}: damaged, 4 of 10 frames can be read" in out
    assert out.count("-> repair or remove it") == 3
    assert "10 of 12 clips can be read: 4 to 10 frames" in out
    assert out.splitlines()[-1] == "2 errors, 1 warnings"
    page = (root.parent / "run" / "doctor.html").read_text()
    assert "v_Jump_g01_c02.mp4" in page
    assert "v_Jump_g01_c01.mp4" not in page, "with broken clips the table is about them"


def test_a_dataset_without_one_readable_clip_ends_with_errors(root: Path) -> None:
    for path in root.rglob("*.mp4"):
        path.write_bytes(b"")
    cfg = settings(root)
    found = list(doctor.clips(data.load(cfg.data), cfg))
    assert len(found) == 12
    assert {finding.level for finding in found} == {"error"}


def test_a_clip_of_the_csv_files_that_is_not_there(root: Path, tmp_path: Path) -> None:
    rows = splits.scan(root)
    splits.write(rows, splits.split_rows(rows, "grouped"), tmp_path / "csv")
    (root / "Jump/v_Jump_g01_c01.mp4").unlink()
    cfg = settings(root, data=DataConfig(root=root, protocol="files", annotations=tmp_path / "csv"))
    (error,) = said(list(doctor.clips(data.load(cfg.data), cfg)), "error")
    assert str(root / "Jump/v_Jump_g01_c01.mp4") in error


def test_a_leaking_split_is_a_warning(root: Path) -> None:
    benchmark = data.load(DataConfig(root=root, protocol="random", held_out=0.5))
    assert benchmark.split is not None
    assert benchmark.split.leaks("test")
    sizes, *found = doctor.split(benchmark)
    assert said(found, "error") == []
    warnings = [finding for finding in found if "share their source video with train" in finding.text]
    parts = {name for name in ("val", "test") if benchmark.split.leaks(name)}
    assert {finding.text.split("of the ")[1].split()[0] for finding in warnings} == parts != set()
    assert all("data.protocol=grouped" in finding.advice for finding in warnings)
    assert {finding.level for finding in warnings} == {"warning"}
    assert "LEAKS" in sizes.text


def test_classes_that_a_part_lacks(root: Path) -> None:
    for path in [*root.glob("Walk/*_g02_*"), *root.glob("Walk/*_g03_*")]:
        path.unlink()
    found = list(doctor.split(data.load(DataConfig(root=root))))
    assert said(found, "warning") == ["val has no clip of Walk", "test has no clip of Walk"]
    assert "three groups" in found[1].advice


def test_classes_that_no_clip_trains(root: Path, tmp_path: Path) -> None:
    rows = splits.scan(root)
    splits.write(rows, splits.split_rows(rows, "grouped"), tmp_path)
    (tmp_path / "train_annotations.csv").write_text("video_name,action,action_label\n")
    found = list(doctor.split(data.load(DataConfig(root=root, protocol="files", annotations=tmp_path))))
    assert said(found, "error") == ["train has no clip of Jump, Walk"]


def test_names_without_groups_are_a_warning(root: Path) -> None:
    for number, path in enumerate(sorted(root.glob("Walk/*.mp4"))):
        path.rename(path.with_name(f"walk {number}.mp4"))
    (warning,) = said(list(doctor.split(data.load(DataConfig(root=root)))), "warning")
    assert warning.startswith("6 file names do not tell their source video")


def test_no_dataset_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(command(tmp_path / "nowhere")) == 1
    out = capsys.readouterr().out
    assert f"error    dataset folder {tmp_path / 'nowhere'} does not exist" in out
    assert out.splitlines()[-1] == "1 errors, 0 warnings"


def test_lengths_and_sizes_against_the_clip_configuration(root: Path) -> None:
    def found(**clip: Any) -> list[Finding]:
        cfg = settings(root, clip=ClipConfig(**clip))
        return list(doctor.clips(data.load(cfg.data), cfg))

    assert said(found(frames=12, crop=40), "warning") == ["12 clips have fewer than clip.frames=12 frames"]
    assert said(found(frames=12, crop=40, sampling="window"), "warning") == []
    assert "12 clips are smaller than clip.crop=64 and get zeros around them" in said(found(frames=8, crop=64), "ok")
    (error,) = said(found(frames=8, crop=64, augment=True), "error")
    assert error.startswith("12 clips are smaller than clip.crop=64, which is cut at random")
    assert said(found(frames=8, crop=64, augment=True, jitter=(64, 80)), "error") == []
    assert said(found(frames=8, crop=64, short_side=64), "error") == []


def test_an_incomplete_ucf50_is_noticed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = settings(root)
    monkeypatch.setattr(doctor, "UCF50_CLASSES", 2)
    (warning,) = said(list(doctor.clips(data.load(cfg.data), cfg)), "warning")
    assert warning == "UCF50 has 6681 clips, here are 12"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"name": "x3d_nano", "init": "{folder}/absent.pyth"}, "absent.pyth"),
        ({"name": "x3d_s", "init": "{weights}"}, "holds X3D-NANO.*the model is X3D-S; use model.name=x3d_nano"),
        ({"name": "slowfast_r50", "init": "{weights}"}, "the model is SlowFast R50; choose the model that belongs"),
        ({"name": "x3d_m"}, "X3D-M"),  # larger than the clips of 8 frames
    ],
    ids=["no file", "other variant", "other network", "clips too small"],
)
def test_a_model_that_does_not_fit(root: Path, weights: Path, model: dict[str, str], text: str) -> None:
    named = {key: value.format(weights=weights, folder=root.parent) for key, value in model.items()}
    cfg = settings(root, model=ModelConfig(**named))
    found = list(doctor.model(data.load(cfg.data), cfg))
    (error,) = said(found, "error")
    assert re.search(text, error), error


def test_the_official_weights_of_another_variant_are_refused(root: Path, tmp_path: Path) -> None:
    """XS, S and M have equal shapes; the file's published name tells them apart."""
    path = tmp_path / "X3D_M.pyth"
    torch.save({"model_state": cases("ucf50_x3d", "x3d_m_hub")[0].weights()}, path)
    cfg = settings(root, model=ModelConfig(name="x3d_s", init=str(path)), clip=ClipConfig(frames=13, crop=160))
    (error,) = said(list(doctor.model(data.load(cfg.data), cfg)), "error")
    assert "holds X3D-M" in error
    assert "model.name=x3d_m" in error


def test_training_from_nothing_is_a_warning(root: Path) -> None:
    cfg = settings(root)
    found = list(doctor.model(data.load(cfg.data), cfg))
    assert said(found, "warning") == ["model.init is empty: training starts from nothing"]
    assert said(found, "ok") == ["x3d_nano takes 8 frames of 40x40"]


def test_kitchens_without_frames(tmp_path: Path) -> None:
    notes = tmp_path / "annotations"
    notes.mkdir()
    header = "narration_id,video_id,start_frame,stop_frame,stop_timestamp,narration,verb_class,noun_class\n"
    for name, seen in (("train", "P01_01"), ("validation", "P02_03")):
        (notes / f"EPIC_100_{name}.csv").write_text(f"{header}x,{seen},1,9,00:00:00.18,open door,3,3\n")
    (tmp_path / "P01/rgb_frames/P01_01").mkdir(parents=True)
    cfg = settings(tmp_path, data=DataConfig(dataset="ek100", root=tmp_path))
    benchmark = data.load(cfg.data)
    assert len(list(doctor.split(benchmark))) == 1
    found = list(doctor.clips(benchmark, cfg))
    assert said(found, "ok") == ["1 of 2 frame folders are there"]
    assert said(found, "error") == [
        f"1 frame folders are missing, the first is {tmp_path / 'P02/rgb_frames/P02_03'}",
    ]
