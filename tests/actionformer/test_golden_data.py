"""The readers give the items of the official ones: every case of `golden/actionformer/datasets*`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projects.actionformer.annotations import read_annotations
from projects.actionformer.config import DataConfig
from projects.actionformer.data import Benchmark, FeatureVideos
from projects.actionformer.layouts import LAYOUTS
from tests.support import Case, Parity, cases, fill

FOLDERS = cases("actionformer", "datasets*")
READINGS = [(case, name) for case in FOLDERS for name in case.json("case.json")]


def write_features(case: Case, root: Path, dataset: str) -> tuple[Path, ...]:
    """The feature files of one dataset by the recipe of files.json; returns their folders."""
    files = case.json("files.json")
    about = files[dataset]
    folders: dict[str, int] = about.get("folders") or {about["folder"]: about["C"]}
    for folder, channels in folders.items():
        (root / folder).mkdir(exist_ok=True)
        for video, length in about["T"].items():
            values = 10 * fill.array(f"{folder}/{video}.bias", (length, channels), "float32", files["salt"])
            path = root / folder / f"{about['prefix']}{video}{about['ext'].split()[0]}"
            if path.suffix == ".npz":
                np.savez(path, feats=values)
            else:
                np.save(path, values)
    return tuple(root / folder for folder in folders)


def config(dataset: str, annotations: Path, features: tuple[Path, ...], reading: dict[str, Any]) -> DataConfig:
    """The official keyword arguments in our words."""
    given = reading["kwargs"]
    splits = tuple(reading["split"])
    return DataConfig(
        dataset=dataset,
        annotations=annotations,
        features=features,
        prefix=given["file_prefix"] or "",
        suffix=given["file_ext"],
        train_splits=splits,
        eval_splits=splits,
        input_dim=(given["input_dim"],),
        classes=given["num_classes"],
        stride_frames=given["feat_stride"],
        window_frames=given["num_frames"],
        fps=given["default_fps"],
        downsample=given["downsample_rate"],
        max_length=given["max_seq_len"],
        resample=given["force_upsampling"],
        min_overlap=given["trunc_thresh"],
        crop=given["crop_ratio"],
    )


def seed_of(reading: dict[str, Any]) -> int:
    text = reading["random_seed"]
    return 0 if text is None else int(text.split("(")[1].split("+")[0])


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, ...]]:
    """The feature folders of every case and dataset."""
    made = {}
    for case in FOLDERS:
        for dataset in {reading["dataset"] for reading in case.json("case.json").values()}:
            root = tmp_path_factory.mktemp(f"{case.path.name}_{dataset}")
            made[case.path.name, dataset] = write_features(case, root, dataset)
    return made


@pytest.mark.golden
@pytest.mark.parametrize(("case", "name"), READINGS, ids=[f"{case.path.name}-{name}" for case, name in READINGS])
def test_items_equal_the_official_readers(case: Case, name: str, parity: Parity, roots: dict) -> None:
    reading, expected = case.json("case.json")[name], case.expected
    dataset = reading["dataset"]
    cfg = config(dataset, case.path / f"{dataset}.json", roots[case.path.name, dataset], reading)
    benchmark = Benchmark(cfg, read_annotations(cfg.annotations), LAYOUTS[dataset])
    videos = FeatureVideos(benchmark, reading["split"], train=reading["is_training"])
    plain = FeatureVideos(benchmark, reading["split"], train=False)

    assert benchmark.layout.title == reading["attributes"]["dataset_name"]
    parity.check("tiou", benchmark.layout.tiou, reading["attributes"]["tiou_thresholds"], atol=1e-9)
    if dataset == "epic":
        assert list(benchmark.empty_classes) == reading["attributes"]["empty_label_ids"]
    assert dict(benchmark.annotations.label_ids) == reading["label_dict"]
    assert list(videos.ids) == [item["video_id"] for item in reading["items"]]
    assert len(videos) == reading["n"]

    for i, item in enumerate(reading["items"]):
        # The original leaves videos without actions whole, and then cannot train on them; ours are cut to max_length.
        source = videos if item["has_segments"] else plain
        sample = source.sample(i, random.Random(seed_of(reading) + i))
        assert sample["id"] == item["video_id"]
        features = sample["features"].numpy()
        assert features.dtype == np.float32
        parity.check(f"{i}.shape", features.shape, expected[f"{name}.{i}.feats_shape"])
        head, tail = expected[f"{name}.{i}.feats_head"], expected[f"{name}.{i}.feats_tail"]
        parity.check(f"{i}.head", features[: head.shape[0], : head.shape[1]], head, atol=1e-6)
        parity.check(f"{i}.tail", features[-tail.shape[0] :, -tail.shape[1] :], tail, atol=1e-6)
        total = features.astype(np.float64)
        parity.check(f"{i}.sums", [total.sum(), np.abs(total).sum()], expected[f"{name}.{i}.feats_sum"], rtol=1e-6)
        for ours, theirs in (("fps", "fps"), ("stride_frames", "feat_stride"), ("window_frames", "feat_num_frames")):
            parity.check(f"{i}.{ours}", sample[ours], item[theirs], rtol=1e-12)
        parity.check(f"{i}.duration_s", sample["duration_s"], item["duration"])
        assert sample["offset"] == (item.get("offset") or 0)
        if item["has_segments"]:
            parity.check(f"{i}.segments", sample["segments"], expected[f"{name}.{i}.segments"], atol=1e-6, rtol=1e-7)
            parity.check(f"{i}.labels", sample["labels"], expected[f"{name}.{i}.labels"])
        else:
            assert sample["segments"].shape == (0, 2)


def test_cases_are_there() -> None:
    assert len(READINGS) >= 17
    assert all(json.loads((case.path / "files.json").read_text())["salt"] for case in FOLDERS)
