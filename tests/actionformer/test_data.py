"""Features and annotations on disk -> samples: geometry, crops, file formats, sources side by side, what goes wrong."""

from __future__ import annotations

import json
import logging
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.config import ConfigError, load
from core.data import Loader, LoaderConfig, SampleError
from projects.actionformer import data
from projects.actionformer.annotations import Action, read_annotations, without_repetitions
from projects.actionformer.config import Config, DataConfig
from projects.actionformer.features import Source
from projects.actionformer.geometry import Geometry, crop, within
from tests.actionformer.folders import entry, folder, rows, write_annotations

ACTIONS = (("walk", 0, 1.0, 5.0), ("run", 2, 8.0, 12.0))
rng = random.Random


# ------------------------------------------------------------------------------------------------------------ geometry

geometries = st.builds(Geometry, st.floats(5, 120), st.floats(1, 64), st.floats(1, 64))


@given(geometries, st.floats(0, 1e4))
def test_the_grid_and_back_is_the_same_time(geometry: Geometry, seconds: float) -> None:
    assert geometry.seconds(geometry.grid(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(geometries, st.integers(0, 5000))
def test_a_feature_stands_for_the_middle_of_its_window(geometry: Geometry, index: int) -> None:
    middle_s = (index * geometry.stride_frames + geometry.window_frames / 2) / geometry.fps
    assert geometry.seconds(float(index)) == pytest.approx(middle_s)


@given(geometries, st.integers(1, 500), st.integers(1, 300))
def test_stretching_keeps_the_time_that_all_features_span(geometry: Geometry, length: int, wanted: int) -> None:
    stretched = geometry.stretched(length, wanted)
    frames = (length - 1) * geometry.stride_frames + geometry.window_frames
    assert (wanted - 1) * stretched.stride_frames + stretched.window_frames == pytest.approx(frames)
    assert stretched.lead == 0.5


def test_keeping_every_third_feature_keeps_their_times() -> None:
    geometry = Geometry(30, 4, 16)
    assert geometry.every(3).seconds(5.0) == pytest.approx(geometry.seconds(15.0))
    assert geometry.every(1) == geometry


# --------------------------------------------------------------------------------------------------------------- crops


@st.composite
def videos(draw: Any) -> tuple[int, np.ndarray]:
    length = draw(st.integers(1, 300))
    starts = draw(st.lists(st.floats(-1, length, width=32), max_size=6))
    spans = draw(st.lists(st.floats(0.125, 60, width=32), min_size=len(starts), max_size=len(starts)))
    ends = np.asarray(starts, np.float32) + np.asarray(spans, np.float32)
    return length, np.stack([np.asarray(starts, np.float32), ends], 1).reshape(-1, 2)


@given(videos(), st.integers(1, 200), st.sampled_from([None, (0.5, 1.0), (0.9, 1.0)]), st.integers(0, 99))
def test_a_crop_lies_in_the_video_and_keeps_enough_of_its_actions(
    video: tuple[int, np.ndarray], most: int, ratio: tuple[float, float] | None, seed: int
) -> None:
    length, segments = video
    labels = np.arange(len(segments))
    lead, keep = 1.0, 0.5
    found = crop(length, segments, labels, rng(seed), most=most, lead=lead, keep=keep, ratio=ratio)
    taken = found.stop - found.start
    assert 0 <= found.start < found.stop <= length
    assert taken <= most
    if length <= most:
        assert taken >= (length if ratio is None else max(round(ratio[0] * length), 1))
    else:
        assert taken == most
    assert len(found.segments) == len(found.labels)
    whole = segments[found.labels] - found.start
    if taken < length:
        assert (found.segments[:, 0] >= -lead - 1e-3).all()
        assert (found.segments[:, 1] <= taken + lead + 1e-3).all()
    inside = found.segments[:, 1] - found.segments[:, 0]
    assert (inside >= keep * (whole[:, 1] - whole[:, 0]) - 1e-3).all()


def test_the_same_draws_give_the_same_crop() -> None:
    segments = np.array([[5, 15], [60, 80]], np.float32)
    first, again = (
        crop(100, segments, np.array([0, 1]), rng(3), most=32, lead=1, keep=0.5, ratio=(0.9, 1)) for _ in range(2)
    )
    assert (first.start, first.stop) == (again.start, again.stop)
    assert len({crop(100, segments, np.array([0, 1]), rng(s), most=32, lead=1, keep=0.5).start for s in range(20)}) > 5


def test_a_crop_that_cuts_no_action_is_found_if_asked_for() -> None:
    segments = np.array([[10, 20], [30, 40]], np.float32)
    for seed in range(20):
        found = crop(64, segments, np.array([0, 1]), rng(seed), most=16, lead=0, keep=0.3, whole=True)
        assert (found.segments[:, 1] - found.segments[:, 0] == 10).all()


def test_a_video_without_actions_is_cut_with_one_draw() -> None:
    none = np.zeros((0, 2), np.float32)
    drawn = rng(1)
    found = crop(100, none, np.zeros(0, int), drawn, most=30, lead=1, keep=0.5)
    assert found.stop - found.start == 30
    expected = rng(1)
    expected.randint(0, 70)
    assert drawn.random() == expected.random()


def test_point_events_are_lost_as_officially_unless_they_count() -> None:
    points = np.array([[10, 10], [50, 50]], np.float32)
    lost = crop(100, points, np.array([0, 1]), rng(0), most=90, lead=1, keep=0.5)
    kept = crop(100, points, np.array([0, 1]), rng(0), most=90, lead=1, keep=0.5, points=True)
    assert len(lost.segments) == 0
    assert len(kept.segments) >= 1
    assert (kept.segments[:, 0] == kept.segments[:, 1]).all()


def test_actions_beyond_the_features_go_or_are_cut() -> None:
    segments = np.array([[2, 8], [8, 14], [9, 40], [12, 13]], np.float32)
    found, labels = within(10.5, segments, np.arange(4), 0.4)
    np.testing.assert_array_equal(found, [[2, 8], [8, 10.5]])
    np.testing.assert_array_equal(labels, [0, 1])


# --------------------------------------------------------------------------------------------------------- annotations


def test_repetitions_and_slips_are_taken_out_as_the_evaluator_does() -> None:
    a = Action("x", 0, 1.0, 2.0)
    near, point = a._replace(start_s=1.0009), a._replace(end_s=1.0)
    actions = (a, a, near, a._replace(label_id=1), a._replace(start_s=1.002), point)
    assert without_repetitions(actions) == (a, a._replace(label_id=1), a._replace(start_s=1.002))
    assert point in without_repetitions(actions, points=True)


def test_truth_is_every_action_of_a_subset_in_order(tmp_path: Path) -> None:
    path = write_annotations(
        tmp_path, {"b": entry("Test", ACTIONS), "a": entry("test", ACTIONS[:1] * 2), "c": entry("training", ACTIONS)}
    )
    found = read_annotations(path)
    assert [row.video for row in found.truth("TEST")] == ["b", "b", "a", "a"]
    assert found.truth("test")[1] == ("b", 8.0, 12.0, 2)
    assert found.classes(4) == ("walk", "class 1", "run", "class 3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", '{"database"'),
        ('{"database": {"v": 3}}', "video 'v': expected a mapping"),
        ('{"database": {"v": {"annotations": [{"label": "a", "segment": [1, 2]}]}}}', "label_id"),
        ('{"database": {"v": {"annotations": [{"label": "a", "label_id": 0, "segment": [1]}]}}}', "segment"),
        ('{"database": {"v": {"annotations": [{"label": "a", "label_id": [0, 1], "segment": [1, 2]}]}}}', "one whole"),
        ('{"database": {"v": {"annotations": [{"label": "a", "label_id": 0, "segment": ["x", 2]}]}}}', "a number"),
        ('{"database": {"v": {"duration": "long", "annotations": []}}}', "duration: expected a number"),
    ],
)
def test_a_malformed_annotation_file_is_explained(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a.json") as caught:
        read_annotations(path)
    assert words in str(caught.value)


def test_a_missing_annotation_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.annotations=FILE"):
        read_annotations(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("ids", "keys", "words"),
    [
        ((1, 3), {}, "count from 1"),
        ((0, 7), {}, "data.classes=8"),
        ((0, 1), {"dataset": "thumos"}, "names 2 labels"),
        ((0, 1), {"dataset": "anet"}, "names 2 labels"),
    ],
)
def test_labels_are_checked_when_the_data_are_opened(
    tmp_path: Path, ids: tuple[int, int], keys: dict[str, Any], words: str
) -> None:
    actions = [("walk", ids[0], 1.0, 2.0), ("run", ids[1], 3.0, 4.0)]
    cfg = folder(tmp_path, {"a": entry("training", actions)}, {"a": 40}, **keys)
    with pytest.raises(ValueError, match=r"annotations.json") as caught:
        data.load(cfg)
    assert words in str(caught.value)


def test_proposals_have_one_class_and_the_names_of_the_truth(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS, duration=20)}, {"a": 40}, dataset="anet", classes=1)
    benchmark = data.load(cfg)
    assert benchmark.dataset("train").sample(0, rng())["labels"].tolist() == [0, 0]
    assert benchmark.classes == ("walk", "class 1", "run")
    assert [row.label_id for row in benchmark.truth("training")] == [0, 2]


def test_an_unknown_reader_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"none of thumos, anet, epic, ego4d, own"):
        load(Config, overrides=["data.dataset=hacs"])


# ------------------------------------------------------------------------------------------------------------- samples


def test_a_sample_is_on_the_grid_of_its_features(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS, duration=20)}, {"a": 50})
    sample = data.load(cfg).dataset("train").sample(0, rng())
    assert sample["features"].shape == (4, 50)
    torch.testing.assert_close(sample["features"][:, 7], torch.tensor([7.0, 7.01, 7.02, 7.03]))
    torch.testing.assert_close(sample["segments"], torch.tensor([[2.0, 14.0], [23.0, 35.0]]))  # seconds * 3 - 1
    assert sample["labels"].tolist() == [0, 2]
    assert (sample["fps"], sample["duration_s"], sample["stride_frames"], sample["window_frames"]) == (24, 20, 8, 16)


def test_a_training_crop_reads_its_own_rows(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {"a": 50}, max_length=16)
    videos = data.load(cfg).dataset("train", train=True)
    for seed in range(5):
        sample = videos.sample(0, rng(seed))
        first = int(sample["features"][0, 0])
        torch.testing.assert_close(sample["features"][0], torch.arange(first, first + 16, dtype=torch.float32))
        assert len(sample["segments"]) >= 1


def test_downsampling_keeps_every_third_row(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {"a": 50}, downsample=3)
    videos = data.load(cfg).dataset("train")
    sample = videos.sample(0, rng())
    assert sample["features"][0].tolist() == [float(3 * i) for i in range(17)]
    assert videos.length(0) == 17
    assert (sample["stride_frames"], sample["window_frames"]) == (24, 16)


def test_training_crops_of_downsampled_videos_take_the_right_rows(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {"a": 50}, downsample=2, max_length=8)
    sample = data.load(cfg).dataset("train", train=True).sample(0, rng(1))
    steps = sample["features"][0].diff()
    assert steps.tolist() == [2.0] * 7
    assert sample["features"][0, 0] % 2 == 0


def test_videos_without_actions_train_as_background_unless_told_otherwise(tmp_path: Path) -> None:
    database = {"a": entry("training", ACTIONS), "empty": entry("training")}
    cfg = folder(tmp_path, database, {"a": 50, "empty": 200})
    videos = data.load(cfg).dataset("train", train=True)
    sample = videos.sample(1, rng())
    assert sample["features"].shape == (4, 64)
    assert sample["segments"].shape == (0, 2)
    assert sample["labels"].dtype == torch.int64
    without = data.load(cfg.model_copy(update={"background": False})).dataset("train", train=True)
    assert without.ids == ("a",)


def test_a_video_whose_actions_all_lie_outside_trains_without_any(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", [("walk", 0, 900.0, 950.0)], duration=20)}, {"a": 50})
    assert len(data.load(cfg).dataset("train", train=True).sample(0, rng())["segments"]) == 0


def test_missing_features_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = {name: entry("training", ACTIONS) for name in "abc"}
    cfg = folder(tmp_path, database, {"b": 20})
    with caplog.at_level(logging.WARNING):
        assert data.load(cfg).dataset("train").ids == ("b",)
    assert "2 of 3 videos of training have no features" in caplog.text
    assert str(tmp_path / "features" / "a.npy") in caplog.text
    (tmp_path / "features" / "b.npy").unlink()
    with pytest.raises(ValueError, match=r"no video of training .* can be used; the first missing file is .*a.npy"):
        data.load(cfg).dataset("train")


def test_a_subset_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("Train", ACTIONS)}, {"a": 20})
    with pytest.raises(ValueError, match=r"no video of training; it has train \(1\)"):
        data.load(cfg).dataset("train")


def test_recorded_geometry_is_used_where_the_configuration_says_none(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS), "b": entry("training")}, {"a": 50, "b": 9},
                 stride_frames=None, fps=None)  # fmt: skip
    about = {"fps": 12.5, "stride": 5, "window": 10, "duration": 20.0, "model": "i3d"}
    (tmp_path / "features" / "a.json").write_text(json.dumps(about))
    videos = data.load(cfg).dataset("train")
    sample = videos.sample(0, rng())
    assert (sample["fps"], sample["stride_frames"], sample["window_frames"]) == (12.5, 5, 10)
    torch.testing.assert_close(sample["segments"], torch.tensor([[1.5, 11.5], [19.0, 29.0]]))
    with pytest.raises(SampleError, match=r"b.npy: has no record of its geometry"):
        videos.sample(1, rng())
    (tmp_path / "features" / "b.json").write_text("{}")
    with pytest.raises(SampleError, match=r"b.json: is no record"):
        videos.sample(1, rng())


def test_a_video_without_frame_rate_is_named(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {"a": 20}, fps=None)
    with pytest.raises(SampleError, match=r"says no fps of a; set data.fps"):
        data.load(cfg).dataset("train").sample(0, rng())


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["npy", "npy16", "fortran", "npz", "zipped", "only.npz", "pt", "dict.pt", "hdf5"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    values, place, suffix = rows(40, 6), tmp_path, ".npy"
    if kind == "npy":
        np.save(tmp_path / "v_x.npy", values)
    elif kind == "npy16":
        values = values.astype(np.float16).astype(np.float32)
        np.save(tmp_path / "v_x.npy", values.astype(np.float16))
    elif kind == "fortran":
        np.save(tmp_path / "v_x.npy", np.asfortranarray(values))
    elif kind.endswith("npz") or kind == "zipped":
        suffix = ".npz"
        if kind == "zipped":
            np.savez_compressed(tmp_path / "v_x.npz", feats=values, other=np.zeros(3))
        else:
            np.savez(tmp_path / "v_x.npz", **{"feats" if kind == "npz" else "data": values})
    elif kind.endswith("pt"):
        suffix = ".pt"
        tensor = torch.from_numpy(values)
        torch.save({"feats": tensor} if kind == "dict.pt" else tensor, tmp_path / "v_x.pt")
    else:
        h5py = pytest.importorskip("h5py", reason="h5py is an extra")
        place = tmp_path / "all.hdf5"
        with h5py.File(place, "w") as file:
            file["v_x"] = values
    source = Source(place, "v_", suffix)
    assert source.names == {"x"}
    assert source.shape("x") == (40, 6)
    np.testing.assert_array_equal(source.read("x"), values)
    np.testing.assert_array_equal(source.read("x", 5, 20, 3), values[5:20:3])
    assert source.read("x").dtype == np.float32
    assert source.read("x", 0, 3).flags.writeable


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_crop_of_a_long_video_costs_its_own_bytes(tmp_path: Path, suffix: str) -> None:
    values = np.zeros((40_000, 64), np.float32)  # 10 MB
    np.save(tmp_path / "x.npy", values) if suffix == ".npy" else np.savez(tmp_path / "x.npz", feats=values)
    source = Source(tmp_path, "", suffix)
    source.read("x", 0, 1)
    tracemalloc.start()
    source.read("x", 20_000, 20_100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut", "cannot be read"),
        ("pickle", "cannot be read"),
        ("3d", r"shape \(1, 20, 4\), expected \(T, C\)"),
        ("empty", r"shape \(0, 4\)"),
        ("wide", r"has 5 channels, data.input_dim=\[4\] expects others; data.input_dim=\[5\] would fit"),
        ("turned", "it lies on its side"),
    ],
)
def test_a_bad_feature_file_is_named(tmp_path: Path, damage: str, words: str) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {"a": 20})
    path = tmp_path / "features" / "a.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:150])
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        shape = {"3d": (1, 20, 4), "empty": (0, 4), "wide": (20, 5), "turned": (4, 20)}[damage]
        np.save(path, np.zeros(shape, np.float32))
    with pytest.raises(SampleError, match=rf"a.npy: .*{words}"):
        data.load(cfg).dataset("train").sample(0, rng())


def test_sources_lie_side_by_side(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS), "b": entry("training", ACTIONS)}, {"a": 50, "b": 50})
    other = tmp_path / "more"
    other.mkdir()
    np.save(other / "a.npy", rows(49, 3, 1000))
    cfg = cfg.model_copy(update={"features": (*cfg.features, other), "input_dim": (4, 3)})
    videos = data.load(cfg).dataset("train")
    assert videos.ids == ("a",)  # b is missing from the second folder
    sample = videos.sample(0, rng())
    assert sample["features"].shape == (7, 49)
    assert sample["features"][:, 2].tolist() == pytest.approx([2, 2.01, 2.02, 2.03, 1002, 1002.01, 1002.02], abs=1e-3)
    assert videos.length(0) == 49
    np.save(other / "a.npy", rows(30, 3))
    with pytest.raises(SampleError, match=r"has 50 rows, the other sources \[30\]"):
        videos.sample(0, rng())
    np.save(other / "a.npy", rows(50, 2))
    with pytest.raises(SampleError, match=r"more.a.npy: has 2 channels"):
        videos.sample(0, rng())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {"a": 20}, features=(tmp_path / "none",))
    with pytest.raises(ValueError, match=r"none does not exist; data.features"):
        data.load(cfg).dataset("train")


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_pads_features_and_keeps_the_rest_exact(tmp_path: Path) -> None:
    database = {"a": entry("training", ACTIONS, duration=20.1), "b": entry("training", offset=2.5)}
    cfg = folder(tmp_path, database, {"a": 50, "b": 20}, fps=30000 / 1001)
    loader = Loader(
        data.load(cfg).dataset("train"), LoaderConfig(batch_size=2, workers=0), train=False, collate=data.collate
    )
    (batch,) = loader
    assert batch["features"].shape == (2, 4, 50)
    assert batch["mask"].sum(1).tolist() == batch["lengths"] == [50, 20]
    assert not batch["features"][1, :, 20:].any()
    assert [len(segments) for segments in batch["segments"]] == [2, 0]
    assert batch["fps"] == [30000 / 1001] * 2
    assert batch["duration_s"] == [20.1, data.ENDLESS_S]
    assert batch["offset"] == [0, 2.5]


def test_segments_of_a_batch_stay_lists_when_shapes_agree(tmp_path: Path) -> None:
    cfg = folder(tmp_path, {name: entry("training", ACTIONS) for name in "ab"}, {"a": 50, "b": 50})
    videos = data.load(cfg).dataset("train")
    batch = data.collate([videos.sample(i, rng()) for i in range(2)])
    assert isinstance(batch["segments"], list)
    assert isinstance(batch["labels"], list)


# ------------------------------------------------------------------------------------------------- readers of one's own


class Words:
    """A reader as somebody wrote it for the original code."""

    def __init__(self, is_training: bool, split: list[str], json_file: str, num_classes: int, **others: Any) -> None:
        self.is_training, self.split, self.json_file = is_training, split, json_file
        self.others = others

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = random.randint(0, 1000) if self.is_training else 0
        return {
            "video_id": f"w{index}", "feats": torch.full((4, 10 + index), float(start)), "fps": 25, "duration": 4.0,
            "segments": None if index else np.array([[1, 2]]), "labels": None if index else np.array([1]),
            "feat_stride": self.others["feat_stride"], "feat_num_frames": self.others["num_frames"],
        }  # fmt: skip

    def get_attributes(self) -> dict[str, Any]:
        return {"dataset_name": "words", "tiou_thresholds": np.linspace(0.2, 0.4, 3), "empty_label_ids": []}


def test_a_reader_written_for_the_original_is_used_as_it_is(tmp_path: Path) -> None:
    keys = {"dataset": "words", "custom_class": f"{__name__}:Words", "options": {"extra": 3}}
    cfg = folder(tmp_path, {"w0": entry("training", ACTIONS)}, {}, **keys)
    benchmark = data.load(cfg)
    assert benchmark.layout.title == "words"
    assert benchmark.layout.tiou == pytest.approx((0.2, 0.3, 0.4))
    videos = benchmark.dataset("train", train=True)
    assert videos.items.split == ["training"]
    assert videos.items.others["extra"] == 3
    assert videos.ids == ("w0", "w1")
    before = random.getstate()
    sample = videos.sample(0, rng(1))
    assert random.getstate() == before
    assert torch.equal(videos.sample(0, rng(1))["features"], sample["features"])
    assert not torch.equal(videos.sample(0, rng(2))["features"], sample["features"])
    assert sample["segments"].tolist() == [[1, 2]]
    assert videos.sample(1, rng())["segments"].shape == (0, 2)
    assert (sample["stride_frames"], sample["window_frames"]) == (8, 16)
    assert videos.length(1) == 11
    data.collate([videos.sample(i, rng()) for i in range(2)])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.at_all:Class", "cannot be imported"),
        (f"{__name__}:Nobody", "cannot be imported"),
        (f"{__name__}:rows", "does not take"),
    ],
)
def test_a_reader_that_cannot_be_used_is_explained(tmp_path: Path, name: str, words: str) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {}, dataset="mine", custom_class=name)
    with pytest.raises(ValueError, match=words):
        data.load(cfg)


def test_a_known_name_keeps_its_own_reader(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = folder(tmp_path, {"a": entry("training", ACTIONS)}, {"a": 20}, custom_class=f"{__name__}:Words")
    assert isinstance(data.load(cfg).dataset("train"), data.FeatureVideos)
    assert "is not used" in caplog.text


def test_keys_that_contradict_each_other_are_refused() -> None:
    for override, words in (
        ("data.crop=[0.9, 0.5]", "must rise"),
        ("data.input_dim=[2, 3, 4]", "input_dim"),
        ("data.resample=true data.downsample=2", "downsample has to be 1"),
    ):
        overrides = override.split(" data.") if "resample" in override else [override]
        overrides = [o if o.startswith("data.") else f"data.{o}" for o in overrides]
        with pytest.raises(ConfigError, match=words):
            load(Config, overrides=["data.features=[a, b]", *overrides])
    assert DataConfig(features=(Path("a"),), input_dim=(2, 3)).input_dim == (2, 3)
