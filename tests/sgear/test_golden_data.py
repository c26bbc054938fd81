"""The data side against the published code: annotations, clips, frames, features, 50 Salads, transforms."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.transforms import Normalize, ShortSide, ToFloat
from projects.sgear import annotations, clips, data, features, salads, taxonomy
from projects.sgear.annotations import Segments
from projects.sgear.config import DataConfig, PixelConfig
from projects.sgear.pixels import CornerCrops
from tests.support import SHARED, Case, Parity, cases

pytestmark = pytest.mark.golden

FOLDERS = {"ek100": "epic_kitchens100", "ek55": "epic_kitchens55", "egtea": "egtea"}


def folder(dataset: str) -> Path:
    path = SHARED / "data" / FOLDERS[dataset]
    if not path.is_dir():
        pytest.skip(f"needs the real annotations of {dataset}, which are not ours to publish ({path.name} is absent)")
    return path


def benchmark(dataset: str, **options: Any) -> data.Benchmark:
    path = folder(dataset)
    csv = path if dataset == "egtea" else path / "rulstm"
    return data.load(DataConfig(dataset=dataset, annotations=path, rulstm=csv, **options))


# The setting of each annotated set, by the words of its name.
TAUS = {"ek100": (1.0, 15.0), "ek55": (1.0, 10.0), "egtea": (0.5, 10.0)}


def annotated(name: str) -> tuple[data.Benchmark, Segments, float, float]:
    """The benchmark, the actions and tau_a, tau_o of a set of the case, such as ek100_validation_rulstm_csv."""
    dataset = name.split("_")[0]
    tau_a, tau_o = (-1.0, 5.0) if "recognition" in name else TAUS[dataset]
    options: dict[str, Any] = {"tau_a": tau_a, "tau_o": tau_o}
    if name.endswith("rulstm_csv"):
        options["table"] = "rulstm"
    if dataset == "egtea":
        options["fold"] = int(name[-1])
    found = benchmark(dataset, **options)
    words = name.removeprefix(dataset)
    part = "train"
    if "test" in words:
        part = {"s1": "test_seen", "s2": "test_unseen"}.get(name[-2:], "test")
    elif "train_all" in words:
        return found, found.read("train+val"), tau_a, tau_o
    elif "val" in words and "minus_val" not in words:
        part = "val"
    return found, found.segments(part), tau_a, tau_o


SETS = [(case, name) for case in cases("sgear", "annotations*") for name in case.json()]


@pytest.mark.parametrize(("case", "name"), SETS, ids=[name for _, name in SETS])
def test_annotations(case: Case, name: str, parity: Parity) -> None:
    expected = case.json()[name]
    found, segments, tau_a, tau_o = annotated(name)
    seen = annotations.observe(segments, tau_a, tau_o)
    kept = seen.segments
    assert len(kept) == expected["kept"]
    assert len(seen.dropped) == expected["discarded"]
    assert len(segments) == expected["total"]
    assert seen.dropped.id.tolist() == expected["discarded_ids"]
    assert int((segments.action == -1).sum()) == expected["undefined_action"] + int((seen.dropped.action == -1).sum())
    assert len(set(kept.path)) == expected["videos"]
    assert len(set(kept.action[kept.action >= 0])) == expected["action_classes_present"]
    # The published code keeps no names of EGTEA's verbs and nouns.
    verbs, nouns = (0, 0) if name.startswith("egtea") else (len(found.verbs), len(found.nouns))
    assert {"verb": verbs, "noun": nouns, "action": len(found.actions)} == expected["num_classes"]
    assert len({tuple(pair) for pair in found.classes.pairs}) == expected["verb_noun_to_action"]

    rows = expected["first_rows"]
    first = slice(len(rows))
    assert kept.id[first].tolist() == [row["id"] for row in rows]
    assert kept.path[first].tolist() == [row["video_path"] for row in rows]
    for column, values in {"action_class": kept.action, "verb_class": kept.verb, "noun_class": kept.noun}.items():
        assert values[first].tolist() == [row[column] for row in rows]
    times = {"start": seen.start_s, "end": seen.end_s, "orig_start": kept.start_s, "orig_end": kept.end_s}
    for column, values in times.items():
        parity.check(column, values[first], [row[column] for row in rows], atol=1e-9)
    sums = {"start_sum": seen.start_s, "end_sum": seen.end_s, "orig_end_sum": kept.end_s}
    for column, values in sums.items():
        parity.check(column, values.sum(), expected[column], rtol=1e-12)
    assert int(kept.action.sum()) == expected["action_class_sum"]


CLIPS = [(case, name) for case in cases("sgear", "clip_sampling*") for name in case.json()["cases"]]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of the case: the vector of frame n says n."""
    case = cases("sgear", "clip_sampling*")[0].json()
    missing, video = set(case["missing_frames"]), case["video"]
    path = tmp_path_factory.mktemp("features") / "numbered"
    numbers = (n for n in range(1, case["frames_stored"] + 1) if n not in missing)
    features.write(path, ((video, n, [n, n / 2, -n, 6.0]) for n in numbers))
    return path


@pytest.mark.parametrize(("case", "name"), CLIPS, ids=[name for _, name in CLIPS])
def test_clip_sampling(case: Case, name: str, numbered: Path, parity: Parity) -> None:
    content = case.json()
    expected = content["cases"][name]
    options = {"tau_a": expected["tau_a"], "tau_o": expected["tau_o"], "strategy": expected["strategy"]}
    found = benchmark(
        "ek100", source="features", features=(str(numbered),), frames=expected["num_frames"],
        rate=expected["frame_rate"], compat=True, **options,
    )  # fmt: skip
    dataset = found.dataset("val")
    rows = np.flatnonzero(dataset.clips.segments.video == content["video"])[: len(expected["rows"])]
    assert len(rows) == len(expected["rows"])
    for row, wanted in zip(rows.tolist(), expected["rows"], strict=True):
        sample = dataset.sample(row, random.Random(0))
        path, limit_s = dataset.clips.segments.path[row], dataset.clips.end_s[row]
        where = clips.span(dataset.clips.start_s[row], limit_s, clips.FEATURE_FPS, dataset.rule, random.Random(0))
        choice = clips.feature_frames(where, dataset.rule)
        parity.check(f"frames of {sample['id']}", sample["features"][:, 0], wanted["frames"])
        parity.check(f"times of {sample['id']}", choice.times_s, wanted["time"], atol=1e-5)
        assert sample["past_label"].tolist() == wanted["past_labels"]
        assert (sample["past_label"] >= 0).astype(int).tolist() == wanted["past_wts"]
        assert sample["label"] == wanted["target"]
        assert dataset.past.at(path, choice.times_s).tolist() == wanted["past_labels"]


SELECTIONS = [(case, name) for case in cases("sgear", "video_frame_selection*") for name in case.json()]


@pytest.mark.parametrize(("case", "name"), SELECTIONS, ids=[name for _, name in SELECTIONS])
def test_video_frame_selection(case: Case, name: str, parity: Parity) -> None:
    wanted = case.json()[name]
    fps = wanted["fps"]
    times_s = np.arange(int(fps * (wanted["end"] + 5))) / fps
    rule = clips.Rule(wanted["num_frames"], wanted["frame_rate"], wanted["strategy"], compat=True)
    where = clips.span(wanted["start"], wanted["end"], fps, rule, random.Random(0))
    choice = clips.video_frames(times_s, where, rule)
    parity.check("frames", choice.numbers, wanted["frames"])
    parity.check("times", choice.times_s, wanted["times"], atol=1e-5)
    assert (rule.rate or fps) == wanted["fps_out"]


@pytest.mark.parametrize("case", cases("sgear", "lmdb*"), ids=lambda case: case.path.name)
def test_lmdb(case: Case, parity: Parity) -> None:
    store = features.Features([case.path / "obj"])
    for name, wanted in case.expected.items():
        start_s, end_s = map(float, name.split("_")[-2:])
        rule = clips.Rule(frames=len(wanted), rate=None)
        where = clips.Span(start_s, end_s, end_s, 1)
        choice = (clips.rulstm_frames if "exact" in name else clips.feature_frames)(where, rule)
        vectors = store.read("P01_11", choice.numbers, choice.among)
        assert vectors.shape == (len(wanted), 352)
        parity.check(name, vectors[:, : wanted.shape[1]], wanted)


@pytest.mark.parametrize("case", cases("sgear", "salads50*"), ids=lambda case: case.path.name)
def test_salads50(case: Case, parity: Parity) -> None:
    expected = case.json()
    classes = salads.read_mapping(case.path / "mapping.txt")
    assert dict(zip(classes.actions, range(len(classes.actions)), strict=True)) == expected["classes"]
    names = salads.read_bundle(next((case.path / "splits").glob("*.bundle")))
    options: dict[str, Any] = {"rate": lambda path: 30.0, "place": salads.salads_video}
    half = salads.read_segments(names, case.path / "groundTruth", classes, half=True, **options)
    exact = salads.read_segments(names, case.path / "groundTruth", classes, **options)
    wanted = expected["segments_float16"]
    assert half.path.tolist() == [row["video"] for row in wanted]
    assert half.action.tolist() == exact.action.tolist() == [row["label"] for row in wanted]
    for column, values in {"start": half.start_s, "end": half.end_s}.items():
        parity.check(f"segments {column}", values, [row[column] for row in wanted])
    parity.check("true times are within 1/8 s", exact.end_s, half.end_s, atol=0.125)

    seen = annotations.observe(half, 1.0, 20.0)
    wanted = expected["anticipation_tau1_o20"]
    assert seen.segments.id.tolist() == [str(row["uid"]) for row in wanted]
    assert seen.dropped.id.tolist() == [str(uid) for uid in expected["discarded_uids"]]
    assert seen.segments.action.tolist() == [row["label"] for row in wanted]
    columns = {"start": seen.start_s, "end": seen.end_s, "orig_start": seen.segments.start_s}
    for column, values in columns.items():
        parity.check(column, values, [row[column] for row in wanted])
    assert taxonomy.of_names(classes.actions).pairs.shape == (len(classes.actions), 0)


@pytest.mark.parametrize("case", cases("sgear", "transforms*"), ids=lambda case: case.path.name)
def test_transforms(case: Case, parity: Parity) -> None:
    expected = case.expected
    video = torch.from_numpy(expected.pop("video"))
    normalized = Normalize(0.5, 0.5)
    for name, wanted in expected.items():
        if match := re.fullmatch(r"resize_(\d+)", name):
            found = ShortSide(int(match[1]))(video)
        elif match := re.fullmatch(r"resize_hw_(\d+)x(\d+)", name):
            size = int(match[1]), int(match[2])
            found = F.interpolate(ToFloat()(video), size, mode="bilinear", align_corners=False)
        elif name == "normalized_first":
            found = normalized(video)[:, 0]
        elif match := re.fullmatch(r"multicrop_([13])_([01])", name):
            crops, flips = int(match[1]), match[2] == "1"
            cfg = PixelConfig(train_short_side=(16, 17), short_side=17)
            found = data.pipeline(cfg, wanted.shape[-1], crops=crops, flips=flips)(video)[0]
            found = found[None, :, 0] if crops == 1 and not flips else found[:, :, 0]
        else:
            raise AssertionError(f"{name}: no rule for this array of the case")
        parity.check(name, found, wanted, atol=1e-6)

    for name, wanted in case.json("shapes.json").items():
        if match := re.fullmatch(r"(\d+)x(\d+)->(\d+)", name):
            height, width, size = map(int, match.groups())
            small = torch.zeros(1, height, width, 3, dtype=torch.uint8)
            assert list(ShortSide(size)(small).shape[-2:]) == wanted
        elif match := re.fullmatch(r"crop_offsets_(\d+)x(\d+)_(\d+)", name):
            height, width, size = map(int, match.groups())
            place = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width).expand(3, 1, -1, -1)
            corners = CornerCrops(size)(place)[1:, 0, 0, 0, 0].long()
            assert [[int(k) // width, int(k) % width] for k in corners] == wanted
        else:
            raise AssertionError(f"{name}: no rule for this entry of the case")


REAL = ["ek100 val", "ek100 test", "ek55 val", "ek55 test_unseen", "egtea val"]


@pytest.mark.parametrize("name", REAL)
def test_no_clip_of_a_real_action_reaches_its_limit(name: str, parity: Parity) -> None:
    """All actions of the real files: features, and frames of videos at the datasets' own frame rates."""
    dataset, part = name.split()
    tau_a, tau_o = TAUS[dataset]
    seen = benchmark(dataset, tau_a=tau_a, tau_o=tau_o).clips(part)
    rule = clips.Rule(15, 1.0)
    fps = {"egtea": 24.0, "ek55": 60000 / 1001, "ek100": 50.0}[dataset]
    times_s = np.arange(int(fps * (seen.end_s.max() + 5))) / fps
    late: dict[str, float] = {"features": -np.inf, "frames": -np.inf}
    for start_s, end_s, action_s in zip(seen.start_s, seen.end_s, seen.segments.start_s, strict=True):
        limit_s = action_s - tau_a
        where = clips.span(start_s, end_s, clips.FEATURE_FPS, rule, random.Random(0))
        late["features"] = max(late["features"], max(clips.feature_frames(where, rule).numbers) / 30 - limit_s)
        where = clips.span(start_s, end_s, fps, rule, random.Random(0))
        late["frames"] = max(late["frames"], times_s[max(clips.video_frames(times_s, where, rule).numbers)] - limit_s)
    parity.check("seconds by which the latest feature ends after the limit", max(late["features"], 0.0), 0.0, atol=1e-9)
    assert late["frames"] < -1e-6
