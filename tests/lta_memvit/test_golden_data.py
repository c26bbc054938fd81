"""From annotation files and clips to what a model sees, against the official code: windows, seconds, frames, pixels."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core import clips, video
from core.video.transcoder import _size
from projects.lta_memvit import data, ego4d, windows
from projects.lta_memvit.config import ClipConfig, DataConfig
from projects.lta_memvit.data import Benchmark
from projects.lta_memvit.windows import Window
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden

PARTS = {"train": "train", "val": "val", "test_unannotated": "test"}
ALPHA = 4  # frames of the fast pathway for one of the slow one


def found(pattern: str, needed: str = "expected.json") -> list[Any]:
    there = [case for case in cases("lta_memvit", pattern) if (case.path / needed).exists()]
    return [pytest.param(case, id=case.path.name) for case in there]


def named(key: str) -> tuple[str, int]:
    """`<name>_N<inputs>`."""
    name, inputs = key.rsplit("_N", 1)
    return name, int(inputs)


def shown(name: str) -> ClipConfig:
    """The frames of an official network."""
    return ClipConfig(frames=32, rate=2) if name.startswith("slowfast") else ClipConfig(frames=16, rate=4)


# --- annotations and windows


def official(case: Case, key: str, rule: str) -> list[Window]:
    """Our windows under a rule of the case. `minus_one` also left out clips without a file: those it never lists."""
    part, inputs = named(key)
    actions = ego4d.by_clip(ego4d.read_actions(case.path / ego4d.FILES[PARTS[part]]))
    if not rule.startswith("minus_one"):
        return windows.windows(actions, inputs, 20)
    lists = case.json()[rule]
    there = {entry["clip_uid"] for name, entries in lists.items() if named(name)[0] == part for entry in entries}
    ours = windows.windows(actions, inputs, 20, rule="reference")
    return [window for window in ours if window.clip_uid in there]


@pytest.mark.parametrize("case", found("dataset_windows*"))
def test_windows_hold_the_actions_of_the_official_ones(case: Case, parity: Parity) -> None:
    for rule, lists in case.json().items():
        for key, expected in lists.items():
            ours = official(case, key, rule)
            assert [window.id for window in ours] == [entry["clip_id"] for entry in expected], (rule, key)
            assert [window.clip_uid for window in ours] == [entry["clip_uid"] for entry in expected]
            for name, read in {
                "input_idx": lambda window: [action.number for action in window.inputs],
                "forecast_idx": lambda window: [action.number for action in window.future],
                "forecast_verbs": lambda window: [action.verb for action in window.future],
                "forecast_nouns": lambda window: [action.noun for action in window.future],
            }.items():
                parity.check(f"{rule}/{key}/{name}", [read(w) for w in ours], [entry[name] for entry in expected])


@pytest.mark.parametrize("case", found("dataset_windows*", "times.json"))
def test_the_seconds_of_an_input_are_the_official_ones(case: Case, parity: Parity) -> None:
    rule = next(rule for rule in case.json() if rule.startswith("minus_one"))  # of the code that was measured
    for name, expected in case.json("times.json").items():
        how, key = name.split("_", 1)
        rng = random.Random(7) if how == "random" else None
        ours = official(case, key, rule)[: len(expected)]
        clip_s = ClipConfig(frames=32, rate=2).seconds
        times = [[windows.seconds(action, clip_s, rng) for action in window.inputs] for window in ours]
        parity.check(name, times, expected, atol=1e-9)


@pytest.mark.parametrize("case", found("dataset_windows*"))
def test_every_entry_is_a_sample_of_recognition_in_file_order(case: Case, tmp_path: Path) -> None:
    content = case.json(ego4d.FILES["train"])["clips"]
    for entry in content:
        (tmp_path / f"{entry['clip_uid']}.mp4").touch()
    benchmark = data.load(DataConfig(annotations=case.path, clips=tmp_path))
    ours = benchmark.recognition("train", ClipConfig(), train=True)
    keys = ("clip_uid", "action_clip_start_sec", "action_clip_end_sec", "verb_label", "noun_label", "action_idx")
    fields = ("clip_uid", "start_s", "end_s", "verb", "noun", "number")
    assert [[getattr(action, name) for name in fields] for action in ours.actions] == [
        [entry[key] for key in keys] for entry in content
    ]
    for (clip_uid, position), action in zip(ours.streams, ours.actions, strict=True):
        assert benchmark.clips("train")[clip_uid][position] == action


# --- frames and pixels


def opened(case: Case, folder: Path, inputs: int) -> Benchmark:
    """The case as a dataset, by the window rule it was made with."""
    for path in case.path.glob("*.mp4"):
        shutil.copy(path, folder)
    (name,) = [path.name for path in case.path.glob("fho_lta_*.json")]
    part = next(part for part, file in ego4d.FILES.items() if file == name)
    parts = {part: ego4d.read_actions(case.path / name)}
    cfg = DataConfig(annotations=case.path, clips=folder, inputs=inputs, future=1, windows="reference")
    return Benchmark(cfg, ego4d.Taxonomy(("verb",), ("noun",)), parts)


def numbers(pixels: torch.Tensor) -> np.ndarray:
    """The numbers that frames (..., H, W, 3) of the case show, bits as cells of a grid of 4 x 3."""
    height, width = pixels.shape[-3:-1]
    total = np.zeros(pixels.shape[:-3], int)
    for bit in range(12):
        row, column = bit // 4, bit % 4
        y, x = int((row + 0.5) * height / 3), int((column + 0.5) * width / 4)
        total += (pixels[..., y, x, :].float().mean(-1).numpy() > 127) << bit
    return total


def slow(inputs: int, count: int) -> np.ndarray:
    """Places of the slow pathway in each input: the joined clip is thinned, then cut into inputs."""
    places = np.array(clips.slow_pathway(inputs * count, ALPHA)).reshape(inputs, -1)
    return places - count * np.arange(inputs)[:, None]


@pytest.mark.parametrize("case", found("clip_frames*"))
def test_the_frames_of_a_window_are_the_official_ones(case: Case, tmp_path: Path, parity: Parity) -> None:
    """By the numbers that the decoded pixels show, so reading is checked too."""
    for key, expected in case.json().items():
        name, inputs = named(key)
        benchmark, clip = opened(case, tmp_path, inputs), shown(name)
        (part,) = benchmark.parts
        dataset = benchmark.forecasting(part, clip)
        assert dataset.ids == [entry["clip_id"] for entry in expected]
        for index, entry in enumerate(expected):
            sample = dataset.sample(index, random.Random(0))
            fast = numbers(sample["video"])
            parity.check(f"{key}/{entry['clip_id']}/fast", fast, entry["fast"])
            thinned = np.take_along_axis(fast, slow(inputs, clip.frames), 1)
            parity.check(f"{key}/{entry['clip_id']}/slow", thinned, entry["slow"])
            assert sample["clamped"] == 0


@pytest.mark.parametrize("case", found("clip_frames*"))
def test_the_frames_found_and_their_first_choice_are_the_official_ones(case: Case, tmp_path: Path) -> None:
    for key, expected in case.json().items():
        name, inputs = named(key)
        clip = shown(name)
        benchmark = opened(case, tmp_path, inputs)
        (part,) = benchmark.parts
        for window, entry in zip(benchmark.windows(part), expected, strict=True):
            path = tmp_path / f"{window.clip_uid}.mp4"
            times_s, tick_s = video.frame_times(path), video.probe(path).tick_s
            spans = [windows.seconds(action, clip.seconds) for action in window.inputs]
            ranges = [windows.between(times_s, tick_s, *span)[0] for span in spans]
            assert [[one[0], one[-1], len(one)] for one in ranges] == entry["raw_first_last_count"]
            if entry["after_64"]:
                first = [[one[i] for i in clips.uniform(len(one), windows.BUFFER)] for one in ranges]
                assert first == entry["after_64"]


@pytest.mark.parametrize("case", found("clip_frames*", "pixels.npz"))
def test_the_pixels_of_a_window_are_the_official_ones(case: Case, tmp_path: Path, parity: Parity) -> None:
    with np.load(case.path / "pixels.npz") as file:
        expected = dict(file)
    for key in sorted(name.removesuffix("_fast") for name in expected if name.endswith("_fast")):
        name, wanted = key.split("_", 1)
        shapes = expected[f"{key}_shapes"]
        inputs, clip = int(shapes[0][0]), shown(name)
        benchmark = opened(case, tmp_path, inputs)
        (part,) = benchmark.parts
        dataset = benchmark.forecasting(part, clip)
        sample = dataset.sample(dataset.ids.index(wanted), random.Random(0))
        batch = data.transform(clip)({"video": sample["video"][None]}, [random.Random(0)])
        fast = batch["video"][0]
        places = torch.from_numpy(slow(inputs, clip.frames))[:, None, :, None, None]
        thinned = torch.take_along_dim(fast, places, 2)
        for pathway, pixels, shape in (("slow", thinned, shapes[0]), ("fast", fast, shapes[1])):
            assert list(pixels.shape) == shape.tolist()
            cut = pixels[:, :, ::3, 5::53, 7::53]
            parity.check(f"{key}/{pathway}", cut, expected[f"{key}_{pathway}"], atol=0.03)
            parity.check(f"{key}/{pathway}_mean", pixels.mean((3, 4)), expected[f"{key}_{pathway}_mean"], atol=0.03)


# --- the size of scaled clips


@pytest.mark.parametrize("case", found("resize_geometry*"))
def test_scaled_clips_have_the_official_size(case: Case, parity: Parity) -> None:
    ours = []
    for entry in case.json():
        width, height = _size(*entry["in"], 320, "pad")
        ours.append([width + width % 2, height + height % 2])
    parity.check("size", ours, [entry["out"] for entry in case.json()])
