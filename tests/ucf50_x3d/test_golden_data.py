"""From files to what the network sees and answers, against the original: UCF50 clips and EPIC-KITCHENS frames."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core import video
from core.data import SampleError
from projects.ucf50_x3d import data
from projects.ucf50_x3d.config import ClipConfig
from projects.ucf50_x3d.data import EpicFrames, FolderClips, frame_indices, read_segments
from projects.ucf50_x3d.model import X3D, pack
from projects.ucf50_x3d.splits import Row
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden

REFERENCE = ClipConfig(sampling="whole", frames=32, crop=256)
FORWARDS = 2  # clips of a case that go through the network: a second or two each


def found(pattern: str) -> list[Any]:
    return [pytest.param(case, id=case.path.name) for case in cases("ucf50_x3d", pattern)]


def rows_of(case: Case, root: Path) -> Iterator[tuple[int, dict[str, Any], Row]]:
    """Number, facts and row of the case's clips; skips the test where one is not there."""
    for number, facts in enumerate(case.json("clips.json")):
        if not (root / facts["file"]).exists():
            pytest.skip(f"needs the clip {facts['file']}, which is not among the real clips here")
        action, name = facts["file"].split("/")
        yield number, facts, Row(name, action, 0)


def means(frames: Tensor) -> np.ndarray:
    """The mean of each frame of (T,H,W,3)."""
    return frames.flatten(1).double().mean(1).numpy()


def check_summary(
    parity: Parity, name: str, actual: Tensor, expected: dict[str, np.ndarray], *, atol: float, pixels: bool
) -> None:
    """What a case keeps of a large tensor; without `pixels` its moments and shape only."""
    assert list(actual.shape) == expected[f"{name}/shape"].tolist(), name
    values = actual.double()
    parity.check(f"{name}/mean", values.mean(), expected[f"{name}/mean"], atol=atol)
    parity.check(f"{name}/std", values.std(), expected[f"{name}/std"], atol=atol)
    if pixels:
        parity.check(f"{name}/head", actual.flatten()[:64], expected[f"{name}/head"], atol=atol)
        parity.check(f"{name}/absmax", values.abs().max(), expected[f"{name}/absmax"], atol=atol)


@pytest.mark.parametrize("case", found("pipeline_clips*"))
def test_clips_reach_the_network_as_in_the_original(case: Case, clips: Path, parity: Parity) -> None:
    """Count, indices, frames, input and logits.

    The converter from YUV to RGB is FFmpeg's, and differs from version to version: where the frames' means are not
    those of the golden run, single pixels are not compared, and the other tolerances are the wider ones of the case.
    """
    expected, root = case.expected, clips / "ucf50"
    prepare = data.pipeline(REFERENCE)
    net: X3D | None = None
    for number, facts, row in rows_of(case, root):
        name = f"clip{number}"
        dataset = FolderClips(root, [row], REFERENCE)
        info = video.probe(dataset.path(0))
        assert (info.frames, info.width, info.height) == (facts["frames"], *facts["size"]), row
        assert frame_indices(info.frames, info.fps, REFERENCE) == facts["indices"], row

        frames = dataset.sample(0, random.Random(0))["video"]
        wanted = expected[f"{name}/frame_means"][facts["indices"]]
        exact = bool(np.abs(means(frames) - wanted).max() < 1e-4)
        parity.check(f"{name}/frame_means", means(frames), wanted, atol=1e-4 if exact else 0.2)

        model_input = prepare(frames)
        atol = 1e-6 if exact else 5e-3
        check_summary(parity, f"{name}/input", model_input[0], expected, atol=atol, pixels=exact)
        sampled = model_input[0][:, ::8, [0, 7, 8, 100, 247, 248], ::32]
        if exact:
            parity.check(f"{name}/input_rows", sampled, expected[f"{name}/input_rows"], atol=1e-6)
        border = max(256 - info.height, 0) // 2  # the frame lies in the middle of zeros
        assert not model_input[..., :border, :].any()
        assert not model_input[..., 256 - border :, :].any()

        if number < FORWARDS:
            net = network(case) if net is None else net
            with torch.inference_mode():
                logits = net(model_input)[0]
            parity.check(f"{name}/logits", logits, expected[f"{name}/logits"], atol=2e-5 if exact else 5e-3)


def network(case: Case) -> X3D:
    """X3D-S of 50 classes with the weights of the case, read as the original's saved runs are."""
    weights = case.weights()
    net = X3D("s", len(weights["blocks.5.proj.bias"]))
    net.load_state_dict(weights)
    return net.eval()


@pytest.fixture
def kitchen(clips: Path) -> Path:
    """The mini dataset of the golden run."""
    root = clips / "other" / "epic_rgb_frames"
    if not root.is_dir():
        pytest.skip("needs the frames of EPIC-KITCHENS, which are not ours to publish (../shared/data/clips/other)")
    return root


@pytest.mark.parametrize("case", found("ek100_frames*"))
def test_epic_segments_are_those_of_the_original(case: Case, kitchen: Path, parity: Parity) -> None:
    expected, golden = case.expected, case.json("rows.json")
    segments = read_segments(kitchen / "annotations" / "mini.csv")
    assert len(segments) == len(golden)
    labels = [segment.verb for segment in segments]
    dataset = EpicFrames(kitchen, segments, labels, REFERENCE)
    prepare = data.pipeline(REFERENCE)
    for number, (facts, segment) in enumerate(zip(golden, segments, strict=True)):
        asked = segment.stop_frame - segment.start_frame + 1
        if "error" in facts:
            with pytest.raises(SampleError, match=segment.id) as caught:
                dataset.sample(number, random.Random(0))
            assert caught.value.path == str(kitchen / segment.folder)
            assert asked == facts["missing_printed_per_read"]
            continue
        count, _, height, width = facts["frames"]
        there = dataset.frames(number)
        assert (len(there), asked - len(there)) == (count, facts["missing_printed_per_read"])
        every = video.read(kitchen / segment.folder, [frame - 1 for frame in there])
        parity.check(f"{number}/frame_means", means(every), expected[f"{number}/frame_means"], atol=0.05)
        exact = bool(np.abs(means(every) - expected[f"{number}/frame_means"]).max() < 1e-4)

        sample = dataset.sample(number, random.Random(0))
        assert sample["video"].shape == (32, height, width, 3)
        assert (sample["narration"], sample["label"]) == (facts["narration"], facts["verb_class"])
        assert segment.video_id == facts["video_id"]
        fast = prepare(sample["video"])
        slow = pack(fast)[0]
        atol = 1e-5 if exact else 2e-3
        check_summary(parity, f"{number}/x3d", fast[0], expected, atol=atol, pixels=exact)
        check_summary(parity, f"{number}/slow", slow[0], expected, atol=atol, pixels=exact)
        assert (list(fast[0].shape), list(slow[0].shape)) == (facts["fast_shape"], facts["slow_shape"])


def test_the_same_segments_through_the_configured_dataset(kitchen: Path, tmp_path: Path) -> None:
    """data.dataset=ek100: official file names, verbs as labels, the frames where the archives put them."""
    notes = tmp_path / "annotations"
    notes.mkdir()
    for name in ("EPIC_100_train.csv", "EPIC_100_validation.csv"):
        shutil.copy(kitchen / "annotations" / "mini.csv", notes / name)
    cfg = data.DataConfig(dataset="ek100", root=kitchen, annotations=notes)
    benchmark = data.load(cfg)
    with (notes / "EPIC_100_train.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for part in ("train", "val", "test"):
        dataset = benchmark.dataset(part, REFERENCE)
        assert dataset.ids == [line["narration_id"] for line in lines]
        assert dataset.labels == [int(line["verb_class"]) for line in lines]
    assert len(benchmark.classes) == 5
