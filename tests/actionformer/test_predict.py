"""From a video or features without annotations to JSON, subtitles and a page."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import demo
from projects.actionformer import data, predict, report, subtitles
from projects.actionformer.blocks import MARGIN, Answer, detect, tile
from projects.actionformer.config import Config
from projects.actionformer.geometry import Geometry
from projects.actionformer.postprocess import Detections
from tests.actionformer import small

CLASSES = ("Jump & run", "Throw")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    small.saved(small.configured(root), root / "net.safetensors")
    return root


def answer(root: Path, out: Path, given: Path | str, *overrides: str) -> dict[str, list[dict[str, Any]]]:
    """The answer to an input, by settings that know nothing of the annotations."""
    return predict.main(
        [str(root / "config.yaml"), f"ckpt={root / 'net.safetensors'}", f"run.out={out}", f"predict.input={given}",
         "data.annotations=nowhere.json", *overrides]
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- inputs


def test_a_feature_file_a_folder_and_a_name_give_the_same(root: Path, tmp_path: Path) -> None:
    one = answer(root, tmp_path / "one", root / "features" / "c.npy")
    assert list(one) == ["c"]
    assert len(one["c"]) > 5
    assert {row["label"] for row in one["c"]} <= set(small.CLASSES), "the weights know the names"
    assert answer(root, tmp_path / "name", "c") == one
    several = answer(root, tmp_path / "all", root / "features")
    assert sorted(several) == sorted(small.LENGTHS)
    assert several["c"] == one["c"]
    content = json.loads((tmp_path / "all" / "predictions.json").read_text())["results"]
    assert content == dict(sorted(several.items()))
    assert (tmp_path / "all" / "subtitles" / "c.srt").exists()
    html = (tmp_path / "all" / "predict.html").read_text()
    assert all(name in html for name in small.LENGTHS)


def test_it_is_what_the_evaluation_finds(root: Path, tmp_path: Path) -> None:
    from projects.actionformer import eval

    eval.main(
        [str(root / "config.yaml"), f"ckpt={root / 'net.safetensors'}", f"run.out={tmp_path}", "eval.timelines=0"]
    )
    found = json.loads((tmp_path / "predictions.json").read_text())["results"]
    assert answer(root, tmp_path / "one", root / "features" / "c.npy")["c"] == found["c"]


def test_a_recorded_geometry_goes_before_the_configuration(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "x.npy").write_bytes((root / "features" / "c.npy").read_bytes())
    record = {"fps": 12.0, "stride": 8, "window": 16, "duration": 50.0, "model": "motion"}
    (folder / "x.json").write_text(json.dumps(record))
    slow = answer(root, tmp_path / "out", folder / "x.npy")["x"]
    fast = answer(root, tmp_path / "out", root / "features" / "c.npy")["c"]
    inside = [(a, b) for a, b in zip(slow, fast, strict=True) if b["segment"][0] > 0 and b["segment"][1] < 24]
    assert len(inside) > 3
    for a, b in inside:
        np.testing.assert_allclose(a["segment"], np.multiply(b["segment"], 2), atol=1e-3)


def test_features_without_any_geometry_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing says how its features lie in time; set data\.fps"):
        answer(root, tmp_path, root / "features" / "c.npy", "data.fps=null")
    with pytest.raises(ValueError, match="no such file or folder, and no features of that name"):
        answer(root, tmp_path, "unheard")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder without videos and without feature files"):
        answer(root, tmp_path, tmp_path / "empty")


def test_what_cannot_be_read_is_left_out(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "good.npy").write_bytes((root / "features" / "c.npy").read_bytes())
    (folder / "bad.npy").write_bytes(b"nothing")
    assert list(answer(root, tmp_path / "out", folder)) == ["good"]
    assert "left out" in (tmp_path / "out" / "run.log").read_text()
    (folder / "good.npy").unlink()
    with pytest.raises(ValueError, match="none of the inputs could be read"):
        answer(root, tmp_path / "out", folder)


def test_a_video_becomes_features_detections_and_a_page_that_plays_it(root: Path, tmp_path: Path) -> None:
    """Motion features need no weights; the network is one for their 48 channels."""
    path = tmp_path / "clip.mp4"
    demo.video(path, demo.MOTIONS[0], random.Random(0), frames=60, size=(64, 64))
    mine = tmp_path / "mine"
    keys = ("data.input_dim=[48]", "extract.model=motion", "extract.fps=null", "extract.stride=2", "extract.window=4")
    small.configured(mine)
    small.saved(small.configured(mine, *keys), mine / "net.safetensors")
    found = answer(mine, tmp_path / "out", path, *keys, "predict.min_score=0.0")["clip"]
    assert found
    assert all(0 <= row["segment"][0] <= row["segment"][1] <= 60 / 8 + 60 for row in found)
    html = (tmp_path / "out" / "predict.html").read_text()
    assert "<video" in html
    assert "data:video/mp4;base64" in html
    assert (tmp_path / "out" / "subtitles" / "clip.vtt").read_text().startswith("WEBVTT\n")


def test_points_and_boundaries_that_are_unsure(root: Path, tmp_path: Path) -> None:
    for name in ("snapformer", "tbtformer"):
        keys = (f"model.name={name}", "postprocess.min_score=0.0")
        path = small.saved(small.configured(root, *keys), tmp_path / f"{name}.safetensors")
        rows = answer(root, tmp_path / name, root / "features" / "c.npy", f"ckpt={path}", *keys)["c"]
        assert rows
        if name == "snapformer":
            assert all(row["segment"][0] == row["segment"][1] for row in rows)
        else:
            assert all(len(row["spread_s"]) == 2 and min(row["spread_s"]) >= 0 for row in rows)


# --------------------------------------------------------------------------------------------------------------- blocks


@given(st.integers(1, 3000), st.integers(8, 500))
def test_blocks_answer_for_every_position_once(length: int, size: int) -> None:
    blocks = tile(length, size)
    assert blocks[0].first == 0
    assert blocks[-1].last == length
    for one, other in itertools.pairwise(blocks):
        assert one.last == other.first
    for block in blocks:
        assert 0 <= block.start <= block.first < block.last <= block.stop <= length
        assert block.stop - block.start == min(size, length)
        assert block.start == 0 or block.first - block.start >= int(size * MARGIN)
        assert block.stop == length or block.stop - block.last >= int(size * MARGIN)


class Local(torch.nn.Module):
    """A network whose points look at their own feature only: an action of the length that feature 0 says."""

    def forward(self, features: torch.Tensor, mask: torch.Tensor, lengths: Any = None) -> Any:
        from tests.actionformer.test_postprocess import Said

        count = features.shape[2]
        time = torch.arange(count, dtype=torch.float32)
        points = torch.stack([time, torch.zeros(count), torch.full((count,), 9.0), torch.ones(count)], 1)
        offsets = features[:, :1].transpose(1, 2).repeat(1, 1, 2)
        return Said(features[:, 1:].transpose(1, 2), offsets, mask, points, (count,))


def test_a_long_video_in_blocks_is_the_video_at_once() -> None:
    torch.manual_seed(0)
    features = torch.cat([torch.rand(1, 700) * 5, torch.randn(2, 700)])
    cfg, sizes = Config().postprocess.model_copy(update={"topk": 10_000}), []

    def read(start: int, stop: int) -> torch.Tensor:
        sizes.append(stop - start)
        return features[:, start:stop]

    geometry = Geometry(24.0, 8.0, 16.0)
    both = [detect(Local(), read, 700, geometry, 240.0, cfg, size=size) for size in (None, 128)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(both[0].scores, both[1].scores)
    torch.testing.assert_close(torch.from_numpy(both[0].scores), features[1:].t().sigmoid())
    np.testing.assert_allclose(both[0].times_s[[0, 699]], [8 / 24, (699 * 8 + 8) / 24], rtol=1e-6)
    whole, parts = (one.found for one in both)
    assert (max(sizes), max(sizes[1:])) == (700, 128)
    np.testing.assert_array_equal(whole.labels, parts.labels)
    np.testing.assert_allclose(whole.segments_s, parts.segments_s, atol=1e-4)
    np.testing.assert_allclose(whole.scores, parts.scores, atol=1e-4)


@pytest.mark.parametrize("name", ["actionformer", "snapformer", "tbtformer"])
def test_networks_in_blocks(root: Path, name: str) -> None:
    """Far from the seams the answer of a block is nearly that of the whole; one block is exactly it."""
    cfg = small.configured(root, f"model.name={name}", "postprocess.min_score=0.05")
    net, features = small.network(cfg), torch.randn(4, 400)
    geometry, post = Geometry(24.0, 8.0, 16.0), cfg.postprocess
    whole = detect(net, lambda a, b: features[:, a:b], 400, geometry, 134.0, post).found
    one = detect(net, lambda a, b: features[:, a:b], 400, geometry, 134.0, post, size=400).found
    np.testing.assert_array_equal(whole.segments_s, one.segments_s)
    parts = detect(net, lambda a, b: features[:, a:b], 400, geometry, 134.0, post, size=256).found
    assert (parts.spread_s is None) == (name != "tbtformer")
    assert len(parts.scores) == pytest.approx(len(whole.scores), rel=0.2)
    if name == "snapformer":
        assert (np.diff(parts.segments_s[:, 0]) > 0).all()
        near = np.isin(np.round(whole.segments_s[:, 0], 3), np.round(parts.segments_s[:, 0], 3))
        assert near.mean() > 0.8


def test_resampled_and_thinned_features(root: Path) -> None:
    cfg = small.configured(root, "data.resample=true", "data.max_length=32")
    rows = torch.randn(90, 4)
    given = predict._input("x", rows, Geometry(24.0, 8.0, 16.0), 30.0, None, cfg)
    wanted = torch.nn.functional.interpolate(rows.t()[None], size=32, mode="linear", align_corners=False)[0]
    torch.testing.assert_close(given.read(3, 9), wanted[:, 3:9])
    assert (given.length, given.geometry) == (32, Geometry(24.0, 8.0, 16.0).stretched(90, 32))
    thin = predict._input("x", rows, Geometry(24.0, 8.0, 16.0), 30.0, None, small.configured(root, "data.downsample=4"))
    torch.testing.assert_close(thin.read(0, 23), rows[::4].t())
    torch.testing.assert_close(thin.read(5, 7), rows[[20, 24]].t())
    assert (thin.length, thin.geometry.stride_frames) == (23, 32.0)


# ------------------------------------------------------------------------------------------------------------ subtitles


def detections(*rows: tuple[float, float, int, float]) -> Detections:
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Detections(table[:, :2].astype(np.float32), table[:, 3].astype(np.float32), table[:, 2].astype(np.int64))


def test_subtitles_say_what_happens_at_a_time() -> None:
    found = detections((1, 4, 0, 0.5), (2, 6, 1, 0.8), (10, 10, 0, 0.3), (3, 4, 0, 0.2))
    assert subtitles.lines(found, CLASSES, 12.0) == [
        (1, 2, "Jump & run (50%)"),
        (2, 4, "Throw (80%)\nJump & run (50%)"),
        (4, 6, "Throw (80%)"),
        (10, 11, "Jump & run (30%)"),
    ]
    assert subtitles.lines(detections(), CLASSES, 5.0) == []


def test_subtitle_files(tmp_path: Path) -> None:
    subtitles.write(tmp_path / "a" / "clip.v1", detections((3661.5, 3662.25, 0, 0.5)), CLASSES, 4000.0)
    assert (tmp_path / "a" / "clip.v1.srt").read_text() == "1\n01:01:01,500 --> 01:01:02,250\nJump & run (50%)\n"
    assert (tmp_path / "a" / "clip.v1.vtt").read_text() == (
        "WEBVTT\n\n01:01:01.500 --> 01:01:02.250\nJump &amp; run (50%)\n"
    )


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20), st.integers(0, 1), st.floats(0.01, 1)), max_size=12))
def test_subtitles_never_overlap(rows: list[Any]) -> None:
    found = detections(*((start, start + length, label, score) for start, length, label, score in rows))
    cues = subtitles.lines(found, CLASSES, 80.0)
    assert all(one[0] < one[1] for one in cues)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(cues))
    covered = sum(end - start for start, end, _ in cues)
    assert bool(cues) == bool(rows) or covered == 0


def test_the_page_of_a_prediction(tmp_path: Path) -> None:
    times, scores = np.arange(9, dtype=np.float32), np.full((9, 3), 0.25, np.float32)
    found = detections((1, 4, 0, 0.5))
    shown = report.Shown("film", found, Answer(found, times, scores), 10.0, None)
    report.write_predictions(tmp_path / "predict.html", [shown], CLASSES)
    html = (tmp_path / "predict.html").read_text()
    assert html.count("film") >= 2
    assert "Jump &amp; run" in html
    assert 'data-start="1"' in html
    assert "data-curves" in html
    unsure = shown._replace(found=found._replace(spread_s=np.array([[0.25, 0.5]], np.float32)))
    report.write_predictions(tmp_path / "unsure.html", [unsure], CLASSES)
    assert "4.00 ± 0.50" in (tmp_path / "unsure.html").read_text()
    report.write_predictions(tmp_path / "none.html", [shown._replace(found=detections())], CLASSES)
    assert "film" in (tmp_path / "none.html").read_text()


def test_samples_of_predictions_have_no_truth() -> None:
    sample = data.sample_of("x", torch.zeros(4, 9), Geometry(24.0, 8.0, 16.0), 3.0)
    assert (sample["segments"].shape, sample["labels"].shape) == ((0, 2), (0,))
