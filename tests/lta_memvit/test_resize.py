"""Scaled clips: sizes, shares of an array job, going on after an interruption, what cannot be read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from core import demo, video
from projects.lta_memvit import resize_clips
from projects.lta_memvit.resize_clips import main, resize

FRAMES = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips, one of them upright."""
    folder = tmp_path_factory.mktemp("clips_hq")
    for number in range(5):
        size = (96, 64) if number == 3 else (64, 96)
        demo.video(folder / f"clip-{number}.mp4", "right", random.Random(number), frames=FRAMES, size=size)
    return folder


def test_clips_are_scaled_as_ffmpeg_does(source: Path, tmp_path: Path) -> None:
    result = resize(source, tmp_path, short_side=32, progress=False)
    assert [path.name for path in result.done] == [f"clip-{number}.mp4" for number in range(5)]
    for path in result.done:
        info = video.probe(path)
        assert (info.width, info.height) == ((32, 48) if path.stem == "clip-3" else (48, 32))
        assert (info.frames, info.audio, info.codec) == (FRAMES, False, "h264")
        small = video.read(path, [0, FRAMES - 1]).float()
        like = torch.nn.functional.interpolate(
            video.read(source / path.name, [0, FRAMES - 1]).permute(0, 3, 1, 2).float(), small.shape[1:3], mode="area"
        )
        assert (small - like.permute(0, 2, 3, 1)).abs().mean() < 12


def test_a_job_goes_on_and_repairs_what_is_not_whole(source: Path, tmp_path: Path) -> None:
    resize(source, tmp_path, short_side=32, progress=False)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "clip-1.mp4").unlink()
    (tmp_path / "clip-2.mp4").write_bytes((tmp_path / "clip-2.mp4").read_bytes()[:700])  # another tool was stopped
    short = torch.from_numpy(np.zeros((4, 32, 48, 3), np.uint8))
    video.write(tmp_path / "clip-4.mp4", iter(short), 25)  # some frames are missing
    result = resize(source, tmp_path, short_side=32, progress=False)
    assert [path.stem for path in result.done] == ["clip-1", "clip-2", "clip-4"]
    assert [path.stem for path in result.skipped] == ["clip-0", "clip-3"]
    for path in result.skipped:
        assert path.stat().st_mtime_ns == stamps[path]
    assert [video.probe(path).frames for path in sorted(tmp_path.iterdir())] == [FRAMES] * 5
    assert resize(source, tmp_path, short_side=32, progress=False).done == []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_tasks_of_an_array_share_all_clips_between_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    taken: list[str] = []

    def note(files: list[Path], out: Path, **options: object) -> video.Transcoded:
        taken.extend(path.name for path in files)
        return video.Transcoded()

    monkeypatch.setattr(video, "transcode", note)
    for index in range(count):
        resize(source, tmp_path, index=index, count=count, progress=False)
    assert sorted(taken) == [f"clip-{number}.mp4" for number in range(5)]


def test_several_processes_do_as_one(source: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    resize(source, one, short_side=32, progress=False)
    resize(source, two, short_side=32, workers=2, progress=False)
    assert resize(source, two, short_side=32, workers=2, progress=False).done == []  # compared by two processes too
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "broken.mp4").write_bytes(b"x" * 100)
    (folder / "good.mp4").write_bytes((source / "clip-0.mp4").read_bytes())
    assert main([str(folder), str(tmp_path / "out"), "short_side=32"]) == 1
    text = capsys.readouterr().out
    assert f"FAILED   {folder / 'broken.mp4'}: is no video that FFmpeg can read" in text
    assert "1 written, 0 were complete, 1 failed" in text
    (folder / "broken.mp4").unlink()
    assert main([str(folder), str(tmp_path / "out"), "short_side=32"]) == 0
    assert "0 written, 1 were complete, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([".", "out", "more"], "expected SOURCE and OUT, got 3 folders"),
        (["index=3", "count=3"], "index=3 is not one of count=3 tasks"),
        (["workers=many"], "workers=many is no whole number"),
        (["side=3"], "side is no option; known are workers, index"),
    ],
)
def test_a_wrong_command_is_explained(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_help_names_the_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "clips_hq" in capsys.readouterr().out
    assert resize_clips.SHORT_SIDE == 320
