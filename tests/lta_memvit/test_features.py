"""Cached features answer as videos do; what is kept, what is made again; features that Ego4D publishes."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from core import config, dist
from core.data import SampleError
from projects.lta_memvit import data, eval, features
from projects.lta_memvit.config import Config, FeaturesConfig
from projects.lta_memvit.ego4d import Action
from projects.lta_memvit.features import Views
from projects.lta_memvit.precomputed import PrecomputedWindows
from projects.lta_memvit.windows import Window
from tests.dist.pool import Team
from tests.lta_memvit.tiny import configured, network, settings, started

CACHE = ("features.source=cache", "model.freeze=true")
BACKBONES = {
    "slowfast": (),  # other frames at each place in a window
    "mvit": ("model.backbone=mvit_nano",),
    "memory": ("model.backbone=memvit_nano", "memory.sampler=all"),
    "one input": ("data.inputs=1",),
}


def computed(root: str, out: str, *more: str, parts: tuple[str, ...] = ("val",)) -> dict[str, Any]:
    """The rows of an evaluation on the cache, made where it lacks something."""
    cfg = configured(Path(root), Path(out), *CACHE, *more)
    benchmark = data.load(cfg.data)
    net = network(cfg)
    with mock.patch.object(dist, "shutdown"), started(cfg) as job:
        assert features.compute(net, benchmark, parts, cfg, job)
        found = eval.evaluate(net, eval.loader("val", net, benchmark, cfg, job), cfg)
    assert found is not None
    return found


def from_videos(root: Path, out: Path, *more: str) -> dict[str, Any]:
    cfg = configured(root, out, *more)
    benchmark = data.load(cfg.data)
    net = network(cfg)
    with started(cfg) as job:
        found = eval.evaluate(net, eval.loader("val", net, benchmark, cfg, job), cfg)
    assert found is not None
    return found


def files(folder: Path) -> list[Path]:
    return sorted((folder / "features").rglob("*.safetensors"))


def equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["id"] == b["id"]
    for name in ("verb_best", "noun_best", "verb_rank", "noun_rank", "verb_futures", "verb", "noun_observed"):
        assert np.array_equal(a[name], b[name]), name
    assert a["verb_share"] == pytest.approx(b["verb_share"], abs=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_evaluation_on_the_cache_is_the_one_on_videos(made: Path, tmp_path: Path, backbone: str) -> None:
    more = BACKBONES[backbone]
    expected = from_videos(made, tmp_path / "video", *more)
    assert len(np.unique(expected["verb_best"])) > 1
    equal(computed(str(made), str(tmp_path / "run"), *more), expected)
    assert [path.stem for path in files(tmp_path)] == ["val-0000", "val-0001", "val-0002"]


@pytest.mark.dist
def test_two_processes_fill_one_cache(two: Team, made: Path, tmp_path: Path) -> None:
    alone = computed(str(made), str(tmp_path / "1" / "run"))
    for found in two(computed, str(made), str(tmp_path / "2" / "run")):
        equal(found, alone)
    assert [path.stem for path in files(tmp_path / "2")] == ["val-0000", "val-0001", "val-0002"]


def test_a_segment_is_encoded_once_though_it_is_in_several_windows(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path / "run", *CACHE)
    benchmark, net, seen = data.load(cfg.data), network(cfg), []
    encode = net.encode
    with mock.patch.object(net, "encode", side_effect=lambda video, streams: seen.append(len(video)) or encode(video)):
        with started(cfg) as job:
            assert features.compute(net, benchmark, ("val",), cfg, job)
            assert sum(seen) == 39  # three clips of 13 actions; 27 windows of two would be 54
            assert features.compute(net, benchmark, ("val",), cfg, job)
        assert sum(seen) == 39


# --- several views for training


def test_training_draws_among_views_that_differ(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path / "run", *CACHE, "features.views=3", "clip.frames=4")
    benchmark, net = data.load(cfg.data), network(cfg)
    with started(cfg) as job:
        assert features.compute(net, benchmark, ("train", "val"), cfg, job)
    found = features.dataset(net, benchmark, "train", cfg, train=True)
    assert len(found) == 36
    samples = [found.sample(5, random.Random(seed)) for seed in range(20)]
    kinds = {sample["features"].numpy().tobytes() for sample in samples}
    assert len(kinds) == 3
    assert samples[0]["features"].shape == (2, net.width)
    plain = benchmark.forecasting("train", cfg.clip).sample(5, random.Random(0))
    for key in ("id", "clip_uid", "position", "stream"):
        assert samples[0][key] == plain[key]
    assert samples[0]["verb"].tolist() == plain["verb"].tolist()
    fixed = features.dataset(net, benchmark, "val", cfg)
    assert len({fixed.sample(5, random.Random(seed))["features"].numpy().tobytes() for seed in range(5)}) == 1


def test_all_segments_of_a_clip_are_scaled_cut_and_mirrored_alike_in_one_view(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path)
    views = Views(data.load(cfg.data), "train", ["train-0000", "train-0001"], cfg, views=4)
    ramp = torch.arange(48, dtype=torch.uint8).mul(5)[None, None, None, :, None].expand(1, 8, 48, 48, 3)
    rows = range(0, len(views), 5)
    batch = {"video": torch.stack([ramp] * len(rows)), "stream": [views.streams[row] for row in rows]}
    seen: dict[str, bytes] = {}
    for (stream, _), pixels in zip(batch["stream"], views.transform(batch, [])["video"], strict=True):
        assert seen.setdefault(stream, pixels.numpy().tobytes()) == pixels.numpy().tobytes()
    assert len(seen) == 8
    assert len(set(seen.values())) > 4


def test_a_view_of_a_segment_is_always_the_same(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path, "clip.frames=4")
    views = Views(data.load(cfg.data), "train", ["train-0001"], cfg, views=2)
    whole = Views(data.load(cfg.data), "train", ["train-0000", "train-0001"], cfg, views=2)
    first, again = views.sample(3, random.Random(0)), whole.sample(26 + 3, random.Random(9))
    assert first["id"] == again["id"] == "train-0001_3/0"
    assert torch.equal(first["video"], again["video"])
    other = views.sample(13 + 3, random.Random(0))
    assert other["id"] == "train-0001_3/1"
    assert (other["place"], other["stream"]) == (("train-0001", 1, 3), ("train-0001/1", 3))


# --- what is made again


def test_a_stopped_extraction_goes_on(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path / "run", *CACHE, "eval.batch_size=2")
    benchmark, net = data.load(cfg.data), network(cfg)
    with started(cfg) as job:
        batches = 0
        progress = job.log.progress

        def stop_soon(loader: Any, name: str) -> Any:
            nonlocal batches
            for batch in progress(loader, name):
                batches += 1
                if batches == 15:  # two clips side by side end after 13 batches, the third after 26
                    signal.raise_signal(signal.SIGUSR1)
                yield batch

        with mock.patch.object(job.log, "progress", stop_soon):
            assert not features.compute(net, benchmark, ("val",), cfg, job)
    there = files(tmp_path)
    assert 0 < len(there) < 3
    stamps = [path.stat().st_mtime_ns for path in there]
    equal(computed(str(made), str(tmp_path / "run"), "eval.batch_size=2"), from_videos(made, tmp_path / "video"))
    assert [path.stat().st_mtime_ns for path in there] == stamps
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize(
    ("change", "fresh"),
    [
        ("clip.rate=2", True),
        ("data.inputs=3", True),
        ("clip.mean=[0.4,0.4,0.4]", True),
        ("precision=bf16", True),
        ("optim.lr=0.5", False),
        ("eval.sequences=3", False),
        ("data.future=2", False),
    ],
)
def test_other_frames_or_pixels_are_other_features(made: Path, tmp_path: Path, change: str, fresh: bool) -> None:
    cfg, other = configured(made, tmp_path), configured(made, tmp_path, change)
    net = network(cfg)
    same = features._cache(net, "val", cfg).folder == features._cache(net, "val", other).folder
    assert same != fresh


def test_other_weights_are_other_features_but_heads_do_not_matter(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path)
    net = network(cfg)
    folder = features._cache(net, "val", cfg).folder
    with torch.no_grad():
        net.decoder.head.projections[0].weight += 1
        net.backbone.head.projection.weight += 1
    assert features._cache(net, "val", cfg).folder == folder
    with torch.no_grad():
        next(net.backbone.parameters()).add_(1e-4)
    assert features._cache(net, "val", cfg).folder != folder
    assert features._cache(network(cfg), "train", cfg).folder != folder


def test_other_annotations_of_a_clip_and_damaged_files_are_made_again(made: Path, tmp_path: Path) -> None:
    computed(str(made), str(tmp_path / "run"))
    first, second, third = files(tmp_path)
    first.write_bytes(b"half")
    shutil.copytree(made / "annotations", tmp_path / "annotations")
    path = tmp_path / "annotations" / "fho_lta_val.json"
    content = json.loads(path.read_text())
    for entry in content["clips"]:
        if entry["clip_uid"] == "val-0001":
            entry["action_clip_end_sec"] += 0.5
    path.write_text(json.dumps(content))
    stamps = {path: path.stat().st_mtime_ns for path in (second, third)}
    found = computed(str(made), str(tmp_path / "run"), f"data.annotations={tmp_path / 'annotations'}")
    assert len(found["id"]) == 27
    assert first.stat().st_size > 1000
    assert second.stat().st_mtime_ns > stamps[second]
    assert third.stat().st_mtime_ns == stamps[third]


def test_segments_that_cannot_be_read_are_tried_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Views.sample

    def broken(self: Views, index: int, rng: random.Random) -> dict[str, Any]:
        if self.items[index][0].id == "val-0001_4":
            raise SampleError("val-0001.mp4", "is damaged here")
        return sample(self, index, rng)

    with monkeypatch.context() as patch:
        patch.setattr(Views, "sample", broken)
        found = computed(str(made), str(tmp_path / "run"))
    assert len(found["id"]) == 25  # two windows need it
    assert not {"val-0001_4", "val-0001_5"} & set(found["id"])
    assert len(computed(str(made), str(tmp_path / "run"))["id"]) == 27


def test_too_many_unreadable_training_segments_end_the_run(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "train-0002.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="13 of 52 training segments cannot be read"):
        computed(str(made), str(tmp_path / "run"), f"data.clips={tmp_path / 'clips'}", "features.views=1",
                 parts=("train",))  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["features.source=cache"], "model.freeze=true model.frozen=eval"),
        ([*CACHE, "model.frozen=reference"], "model.freeze=true model.frozen=eval"),
        ([*CACHE, "task=recognition"], "is for forecasters"),
        (["features.source=ego4d"], "model.backbone=none go together"),
        (["model.backbone=none"], "model.backbone=none go together"),
    ],
)
def test_what_cannot_be_cached_is_refused(more: list[str], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.load(Config, None, more)


# --- features of Ego4D


def window(*spans: tuple[float, float], clip_start_s: float = 0.0, video: str = "v") -> Window:
    actions = tuple(Action("c", k, *span, 1, 2, video, clip_start_s) for k, span in enumerate(spans))
    return Window(actions, (Action("c", 9, 0, 0, 1, 2),), len(spans) - 1)


@pytest.fixture
def published(tmp_path: Path) -> FeaturesConfig:
    """100 features whose value is their number: of frames 16 i to 16 i + 32 of a video at 30 frames a second."""
    torch.save(torch.arange(100.0)[:, None].expand(-1, 3).clone(), tmp_path / "v.pt")
    return FeaturesConfig(source="ego4d", folder=tmp_path)


@pytest.mark.parametrize(
    ("span", "clip_start_s", "expected"),
    [
        ((0.0, 1.7), 0.0, [0, 1, 2]),  # middles at 16, 32, 48 frames; the fourth, at 64, is past frame 51
        ((16 / 30, 32 / 30), 0.0, [0]),  # the end does not belong to it
        ((8.0, 16.0), 0.0, list(range(14, 29))),  # frames 240 to 480
        ((0.0, 8.0), 8.0, list(range(14, 29))),  # the same seconds of the video, in a clip that starts later
        ((0.0, 0.2), 0.0, [0]),  # no middle in it: the nearest
        ((20.0, 20.1), 0.0, [37]),
        ((500.0, 508.0), 0.0, [99]),  # after the end
        ((50.0, 60.0), 0.0, list(range(93, 100))),
    ],
)
def test_seconds_of_a_clip_become_features_of_its_video(
    published: FeaturesConfig, span: tuple[float, float], clip_start_s: float, expected: list[int]
) -> None:
    found = PrecomputedWindows([window(span, clip_start_s=clip_start_s)], published)
    assert list(range(*found.rows(found.windows[0].inputs[0], 100))) == expected
    sample = found.sample(0, random.Random(0))
    assert sample["features"].tolist() == [[pytest.approx(np.mean(expected))] * 3]


def test_a_window_has_a_feature_of_each_input(published: FeaturesConfig) -> None:
    found = pickle.loads(pickle.dumps(PrecomputedWindows([window((0, 1.7), (8, 16))], published)))
    sample = found.sample(0, random.Random(0))
    assert sample["features"][:, 0].tolist() == [1, 21]
    assert (sample["id"], sample["verb"].tolist(), sample["observed_noun"].tolist()) == ("c_1", [1], [2, 2])


def test_windows_of_videos_without_features_are_left_out_and_bad_files_named(published: FeaturesConfig) -> None:
    (published.folder / "w.pt").write_bytes(b"no tensor")
    torch.save({"a": 1}, published.folder / "x.pt")
    found = PrecomputedWindows([window((0, 8), video=name) for name in "uvwx"], published)
    assert [w.inputs[0].video_uid for w in found.windows] == ["v", "w", "x"]
    for row, reason in ((1, "cannot be loaded"), (2, "holds no tensor")):
        with pytest.raises(SampleError, match=reason):
            found.sample(row, random.Random(0))


def test_a_forecaster_is_evaluated_on_published_features(made: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        torch.save(torch.randn(40, 12, generator=generator), tmp_path / f"video-val-{number:04d}.pt")
    more = ("features.source=ego4d", "model.backbone=none", "model.feature_size=12", f"features.folder={tmp_path}")
    cfg = config.load(Config, None, settings(made, tmp_path / "run", *more))
    net, benchmark = network(cfg), data.load(cfg.data)
    with started(cfg) as job:
        found = eval.evaluate(net, eval.loader("val", net, benchmark, cfg, job), cfg)
    assert found is not None
    assert len(found["id"]) == 27
    assert len(np.unique(found["verb_best"])) > 1
