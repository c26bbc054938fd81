"""The whole project through its own commands, and the script it is taught."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simplejson

from core import video
from projects.lta_memvit import data, demo
from projects.lta_memvit.config import DataConfig
from projects.lta_memvit.demo import NOUNS, RECIPES, VERBS, Size


def test_data_is_made_once_and_always_the_same(tmp_path: Path) -> None:
    size = Size(train=2, val=1, test=1, actions=4)
    demo.make(tmp_path / "a", tmp_path / "c", size)
    files = sorted(path for folder in "ac" for path in (tmp_path / folder).iterdir())
    assert [file.name for file in files[4:]] == ["test-0000.mp4", "train-0000.mp4", "train-0001.mp4", "val-0000.mp4"]
    info = video.probe(files[4])
    assert (info.frames, info.fps, info.height, info.width) == (32, 8, 48, 48)
    texts, frames = [file.read_text() for file in files[:4]], video.read(files[5], range(32))
    files[5].unlink()
    stamps = [file.stat().st_mtime_ns for file in files if file.exists()]
    demo.make(tmp_path / "a", tmp_path / "c", size)
    assert [file.read_text() for file in files[:4]] == texts
    assert (video.read(files[5], range(32)).float() - frames.float()).abs().mean() < 3  # encoders may choose otherwise
    assert [file.stat().st_mtime_ns for file in files if file != files[5]] == stamps


def test_it_has_the_layout_of_ego4d(tmp_path: Path) -> None:
    demo.make(tmp_path, tmp_path, Size(train=2, val=1, test=1, actions=4))
    benchmark = data.load(DataConfig(annotations=tmp_path, clips=tmp_path, future=2))
    assert benchmark.taxonomy == (VERBS, NOUNS)
    assert {part: len(benchmark.windows(part)) for part in benchmark.parts} == {"train": 2, "val": 1, "test": 1}
    assert not benchmark.labeled("test")
    assert simplejson.loads((tmp_path / "fho_lta_test_unannotated.json").read_text())["clips"][0].keys() == {
        "video_uid", "clip_uid", "clip_parent_start_sec", "action_idx", "action_clip_start_sec", "action_clip_end_sec",
    }  # fmt: skip


def test_two_actions_tell_the_next_and_one_does_not_repeat() -> None:
    """Every action is in one recipe only: what is recognized says what follows; the last action never comes again."""
    everything = [action for recipe in RECIPES for action in recipe]
    assert len(set(everything)) == len(everything)
    assert {verb for verb, _ in everything} == set(VERBS)
    assert {noun for _, noun in everything} == set(NOUNS)
    followers: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for seed in range(60):
        steps = demo.follow(random.Random(seed), 40)
        for action, following in pairwise(steps):
            assert action != following
            followers.setdefault(action, Counter())[following] += 1
    shares = [counts.most_common(1)[0][1] / counts.total() for counts in followers.values()]
    assert np.mean(shares) == pytest.approx(1 - demo.SLIP, abs=0.03)


def errors_of_the_most_frequent(folder: Path) -> dict[str, float]:
    """Percent of validation actions that are wrong for who always says the most frequent class of training."""
    benchmark = data.load(DataConfig(annotations=folder))
    kinds = {"verb": lambda a: a.verb, "noun": lambda a: a.noun, "action": lambda a: (a.verb, a.noun)}
    found = {}
    for kind, read in kinds.items():
        ((usual, _),) = Counter(map(read, benchmark.actions("train"))).most_common(1)
        found[kind] = 100 * float(np.mean([read(action) != usual for action in benchmark.actions("val")]))
    return found


@pytest.mark.demo
def test_the_demo_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command on its own data, with half of its epochs: what is recognized and forecast is better than chance and
    than repeating; a second call resumes the finished runs and trains no more.
    """
    monkeypatch.chdir(tmp_path)
    args = ["run.out=demo", "run.device=cpu", "optim.epochs=4", "loader.workers=0"]
    args += ["data.annotations=annotations", "data.clips=clips", "features.folder=features"]
    results = demo.main(args)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "config.yaml", "environment.json", "run.log", "metrics.jsonl", "tensorboard", "checkpoints", "results.json",
        "outputs.json", "report.html", "predictions.json", "predict.html", "demo.json",
    }  # fmt: skip

    rows = map(simplejson.loads, (tmp_path / "demo_recognition/metrics.jsonl").read_text().splitlines())
    recognized = [row for row in rows if "val/noun_error" in row][-1]
    chance = errors_of_the_most_frequent(tmp_path / "annotations")
    assert recognized["val/verb_error"] < chance["verb"] - 5
    assert recognized["val/noun_error"] < chance["noun"] / 4
    assert recognized["val/action_error"] < chance["action"] - 20

    figures = simplejson.loads((tmp_path / "demo/demo.json").read_text())
    assert figures["action ED, forecast"] == pytest.approx(results["val/ed_action"])
    assert figures["action ED, forecast"] < figures["action ED, repeated"] - 0.15
    assert results["val/ed_action"] < results["val/repeat_ed_action"] - 0.15  # even of what was truly done last
    assert f"action ED, repeated: {figures['action ED, repeated']:.3f}" in capsys.readouterr().out

    (answer,) = simplejson.loads((tmp_path / "demo/predictions.json").read_text())
    assert len(answer["next"]) == 10
    assert len(answer["seen"]) == 20
    cached = {path.parent.name.split("-")[1] for path in (tmp_path / "features").rglob("*.safetensors")}
    assert cached == {"train", "val"}

    before = {path: path.read_bytes() for path in tmp_path.glob("demo*/metrics.jsonl")}
    assert len(before) == 2
    assert demo.main(args)["val/ed_action"] == results["val/ed_action"]
    assert {path: path.read_bytes() for path in before} == before


def test_data_only_makes_data_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make = demo.make
    monkeypatch.setattr(demo, "make", lambda folder, clips: make(folder, clips, Size(1, 1, 1, 3)))
    assert demo.main(["--data-only", "data.annotations=a", "data.clips=c"]) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
