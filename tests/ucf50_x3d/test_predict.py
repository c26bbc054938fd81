"""Answers for videos: windows over all of it, what the files say, and what becomes of bad ones."""

from __future__ import annotations

import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejson
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import demo, video
from core.checkpoint import save_weights
from core.report import Segment
from projects.ucf50_x3d import data, predict, report, weights
from projects.ucf50_x3d.config import ClipConfig, PredictConfig
from projects.ucf50_x3d.predict import Windows, find, top
from tests.ucf50_x3d.tiny import CLASSES, configured, nano, settings

FPS = 10.0


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds and three frames, of which every frame is another."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    demo.video(path, "fast", random.Random(1), frames=53, size=(44, 44), fps=FPS)
    return path


@pytest.fixture
def weights_file(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_weights(nano(), path, weights.about(configured(tiny, tmp_path), CLASSES))
    return path


# ----------------------------------------------------------------------------------------------------------- windows


def indices(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The frames that each window asks for."""
    asked: list[list[int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(video, "read", lambda path, frames, rotate: asked.append(list(frames)))
        for number in range(len(windows)):
            assert windows.sample(number, None)["id"] == f"{number:06d}"
    return asked


@pytest.mark.parametrize(("window_s", "hop_s"), [(2.0, 1.0), (0.8, 0.8), (2.0, 0.3)])
def test_windows_cover_the_whole_video(
    film: Path, monkeypatch: pytest.MonkeyPatch, window_s: float, hop_s: float
) -> None:
    clip = ClipConfig(frames=round(window_s * FPS), crop=40)
    windows = Windows(film, clip, PredictConfig(hop_s=hop_s, window_s=window_s))
    assert windows.window_s == window_s
    asked = indices(windows, monkeypatch)
    assert {index for frames in asked for index in frames} == set(range(53))
    for frames, start_s in zip(asked, windows.starts_s, strict=True):
        assert frames == sorted(frames)
        assert start_s * FPS - 1 < frames[0]
        assert frames[-1] < (start_s + window_s) * FPS
    steps = [b - a for a, b in pairwise(windows.starts_s)]
    assert steps[:-1] == pytest.approx([hop_s] * (len(steps) - 1))
    assert windows.starts_s[-1] + window_s == pytest.approx(5.3), "the last one ends with the video"


def test_windows_of_a_short_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "short.mp4"
    demo.video(path, "still", random.Random(0), frames=3, size=(44, 44), fps=FPS)
    windows = Windows(path, ClipConfig(frames=8, crop=40), PredictConfig())
    assert (len(windows), windows.window_s) == (1, pytest.approx(0.3))
    (frames,) = indices(windows, monkeypatch)
    assert len(frames) == 8
    assert set(frames) == {0, 1, 2}
    assert windows.sample(0, None)["video"].shape == (8, 44, 44, 3)


def test_a_window_is_what_the_model_was_trained_on(film: Path) -> None:
    seen = ClipConfig(sampling="window", frames=8, rate=6)
    assert Windows(film, seen, PredictConfig()).window_s == pytest.approx(8 * 6 / 30)
    assert Windows(film, ClipConfig(), PredictConfig()).window_s == 4.0
    assert Windows(film, seen, PredictConfig(window_s=9)).window_s == pytest.approx(5.3)


# ----------------------------------------------------------------------------------------------------------- answers


def test_a_video_is_answered_in_json_and_html(tiny: Path, film: Path, tmp_path: Path, weights_file: Path) -> None:
    out = tmp_path / "run"
    args = settings(tiny, out, f"ckpt={weights_file}", f"predict.input={film}", "predict.window_s=2", "eval.topk=2")
    answers = predict.main(args)
    assert simplejson.loads((out / "predictions.json").read_text()) == answers
    (answer,) = answers
    assert answer["video"] == str(film)
    assert (answer["duration_s"], answer["window_s"]) == (pytest.approx(5.3), 2.0)
    assert [window["start_s"] for window in answer["windows"]] == pytest.approx([0, 1, 2, 3, 3.3])
    assert [window["end_s"] for window in answer["windows"]] == pytest.approx([2, 3, 4, 5, 5.3])

    cfg, net = configured(tiny, out, *args), nano().eval()
    windows, prepare = Windows(film, cfg.clip, cfg.predict), data.pipeline(cfg.clip)
    with torch.no_grad():
        shares = torch.cat([net(prepare(windows.sample(i, None)["video"])).softmax(1) for i in range(5)])
    for row, window in zip(shares.tolist(), answer["windows"], strict=True):
        ranked = sorted(zip(row, CLASSES, strict=True), reverse=True)
        assert [entry["class"] for entry in window["top"]] == [name for _, name in ranked]
        assert [entry["share"] for entry in window["top"]] == pytest.approx([share for share, _ in ranked], abs=2e-6)
    means = dict(zip(CLASSES, shares.mean(0).tolist(), strict=True))
    assert {entry["class"]: entry["share"] for entry in answer["top"]} == pytest.approx(means, abs=2e-6)
    for number, name in enumerate(CLASSES):
        assert answer["curves"][name] == pytest.approx(shares[:, number].tolist(), abs=2e-6)

    html = (out / "predict.html").read_text()
    assert "<video" in html
    assert all(word in html for word in (*CLASSES, film.name))


def test_a_folder_is_answered_but_for_what_is_no_video(
    tiny: Path, film: Path, tmp_path: Path, weights_file: Path
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(film, folder / "deep/b.MP4")
    shutil.copy(next((tiny / "Still").iterdir()), folder / "a.mp4")
    (folder / "bad.avi").write_bytes(b"this is no video")
    (folder / "notes.txt").write_text("not asked")
    answers = predict.main(settings(tiny, out, f"ckpt={weights_file}", f"predict.input={folder}"))
    assert [answer["video"] for answer in answers] == [str(folder / "a.mp4"), str(folder / "deep/b.MP4")]
    assert len(answers[0]["windows"]) == 1
    log = (out / "run.log").read_text()
    assert f"left out: {folder / 'bad.avi'}:" in log
    assert "2 videos answered" in log
    assert "notes.txt" not in log


def test_damaged_windows_are_left_out(
    tiny: Path, film: Path, tmp_path: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, broken = video.read, {25}

    def damaged(path: Path, frames: list[int], **options: Any) -> Any:
        if broken & set(frames):
            raise video.VideoError(path, "frame 25 is damaged")
        return read(path, frames, **options)

    monkeypatch.setattr(video, "read", damaged)
    more = (
        f"ckpt={weights_file}",
        f"predict.input={film}",
        "predict.window_s=1",
        "clip.frames=10",
        "eval.batch_size=2",
    )
    (answer,) = predict.main(settings(tiny, tmp_path / "run", *more))
    assert [window["start_s"] for window in answer["windows"]] == pytest.approx([0, 1, 3, 4, 4.3])
    assert len(answer["curves"]["Fast"]) == 5
    assert "frame 25 is damaged" in (tmp_path / "run/run.log").read_text()
    broken |= set(range(53))
    assert predict.main(settings(tiny, tmp_path / "none", *more)) == []
    assert "left out" in (tmp_path / "none/run.log").read_text()
    assert (tmp_path / "none/predict.html").exists()


def test_nothing_to_answer_for_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.mp4"):
        with pytest.raises(ValueError, match="neither a video nor a folder with videos"):
            find(path)


def test_the_best_classes_come_first_and_equal_ones_in_their_order() -> None:
    best = top(np.array([0.2, 0.3, 0.3, 0.2]), ("a", "b", "c", "d"), 3)
    assert best == [{"class": "b", "share": 0.3}, {"class": "c", "share": 0.3}, {"class": "a", "share": 0.2}]


# ------------------------------------------------------------------------------------------------------ on the page


def test_windows_of_one_class_become_one_segment() -> None:
    windows = [Segment(0, 4, "a", 0.6), Segment(1, 5, "a", 0.8), Segment(2, 6, "b", 0.5), Segment(3, 7, "a", 0.9)]
    assert report.merged(windows) == [Segment(0, 3.5, "a", 0.7), Segment(3.5, 4.5, "b", 0.5), Segment(4.5, 7, "a", 0.9)]
    assert report.merged([]) == []


@given(labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=12), window_s=st.floats(0.5, 5))
def test_segments_tile_what_the_windows_cover(labels: list[str], window_s: float) -> None:
    windows = [Segment(float(k), k + window_s, label, 0.5) for k, label in enumerate(labels)]
    found = report.merged(windows)
    assert (found[0].start_s, found[-1].end_s) == (0.0, windows[-1].end_s)
    assert all(segment.start_s < segment.end_s for segment in found)
    for before, after in pairwise(found):
        assert before.label != after.label
        assert before.end_s <= after.start_s
        assert window_s < 1 or before.end_s == after.start_s, "no gap where there was none"
    assert [segment.label for segment in found] == [a for a, b in zip(labels, [None, *labels], strict=False) if a != b]
