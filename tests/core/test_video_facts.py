"""A first look at videos, good, damaged and none at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core import video
from core.video.facts import Fact, look, survey


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        frames = torch.randint(0, 255, (20, 32, 48, 3), dtype=torch.uint8, generator=generator)
        video.write(folder / f"good-{number}.mp4", iter(frames), 10)
    (folder / "none.mp4").write_bytes(b"nothing")
    return folder


def test_a_good_video(folder: Path) -> None:
    path = folder / "good-0.mp4"
    assert look(path) == Fact(path, frames=20, fps=10.0, height=32, width=48, seconds=2.0)


def test_a_file_that_is_no_video_and_one_that_is_not_there(folder: Path) -> None:
    fact = look(folder / "none.mp4")
    assert fact.frames == 0
    assert "is no video" in fact.problem
    assert look(folder / "gone.mp4").problem


def test_a_video_that_was_cut_off_says_how_much_is_left(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "good-1.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 7 // 10])
    fact = look(path)
    assert 0 < fact.frames < 20
    assert fact.problem == f"damaged, {fact.frames} of 20 frames can be read"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_many_are_looked_at_in_their_order_by_any_number_of_processes(folder: Path, workers: int) -> None:
    paths = sorted(folder.iterdir(), reverse=True)
    assert survey(paths, workers=workers) == [look(path) for path in paths]
    assert survey([], workers=workers) == []
