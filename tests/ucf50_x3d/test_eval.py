"""What an evaluation says, by values: scores, golden metrics, files, seconds, and what could not be read."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simplejson
import torch
from torch import Tensor, nn

from core.checkpoint import save_weights
from projects.ucf50_x3d import data, eval, report, weights
from projects.ucf50_x3d.eval import evaluate, measure, predictions, score, speed
from tests.support import Case, Parity, cases
from tests.ucf50_x3d.tiny import CLASSES, configured, nano, settings, started


class Table(nn.Module):
    """Answers the logits that a clip's only pixel points to."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, clips: Tensor) -> Tensor:
        assert not self.training
        return self.logits[clips.flatten(1)[:, 0].long()]


def batches(rows: list[list[int]]) -> list[dict[str, Any]]:
    """Clips of one pixel, which is their number and tells their label."""
    numbers = [torch.tensor(row) for row in rows]
    return [
        {"id": [f"c{i}" for i in row.tolist()], "label": row % 3, "video": row.float().view(-1, 1, 1, 1, 1)}
        for row in numbers
    ]


@pytest.fixture
def weights_file(tiny: Path, tmp_path: Path) -> Path:
    """A network that knows the classes of the tiny dataset."""
    path = tmp_path / "net.safetensors"
    save_weights(nano(), path, weights.about(configured(tiny, tmp_path), CLASSES))
    return path


# ------------------------------------------------------------------------------------------------------------ scores


def test_results_come_by_id_whatever_the_batches() -> None:
    logits = torch.randn(7, 3)
    found = evaluate(Table(logits).train(), batches([[4, 2, 6], [0, 5], [1], [3]]))
    assert found is not None
    assert found["id"] == [f"c{i}" for i in range(7)]
    np.testing.assert_array_equal(found["label"], np.arange(7) % 3)
    np.testing.assert_allclose(found["scores"], logits.log_softmax(1).numpy(), atol=1e-6)
    again = evaluate(Table(logits), batches([[0, 1, 2, 3, 4, 5, 6]]))
    assert again is not None
    np.testing.assert_array_equal(found["scores"], again["scores"])


def test_views_are_averaged_as_shares() -> None:
    logits = torch.randn(12, 4) * 3
    clips = torch.arange(12).float().view(2, 6, 1, 1, 1, 1)
    scores = score(Table(logits).eval(), clips)
    torch.testing.assert_close(scores.exp(), logits.softmax(1).view(2, 6, 4).mean(1))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2))
    one = score(Table(logits).eval(), clips[:, 2:3])
    torch.testing.assert_close(one, logits.view(2, 6, 4)[:, 2].log_softmax(1))


def test_views_and_crops_of_real_clips_are_the_mean_of_each_alone(tiny: Path, tmp_path: Path) -> None:
    views = ("clip.sampling=window", "clip.frames=8", "clip.rate=1", "eval.views=2", "eval.crops=3")
    cfg, net = configured(tiny, tmp_path, *views), nano().eval()
    benchmark = data.load(cfg.data)
    many = benchmark.dataset("test", cfg.clip, views=2)
    raw = torch.stack([many.sample(i, None)["video"] for i in range(2)])
    clips = data.transform(cfg, benchmark, crops=3)({"video": raw}, [None, None])["video"]
    assert clips.shape == (2, 2, 3, 3, 8, 40, 40)
    assert not torch.equal(clips[:, 0, 0], clips[:, 1, 0])
    assert not torch.equal(clips[:, 0, 0], clips[:, 0, 2])
    with torch.no_grad():
        expected = torch.stack([net(clips[:, i, j]).softmax(1) for i in range(2) for j in range(3)]).mean(0)
        torch.testing.assert_close(score(net, clips).exp(), expected, atol=1e-6, rtol=1e-5)
    save_weights(net, tmp_path / "net.safetensors", weights.about(cfg, CLASSES))
    eval.main(settings(tiny, tmp_path, *views, f"ckpt={tmp_path / 'net.safetensors'}"))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        shares = [{row["class_1"]: row["share_1"], row["class_2"]: row["share_2"]} for row in csv.DictReader(file)]
    assert [float(row["Fast"]) for row in shares[:2]] == pytest.approx(expected[:, 0].tolist(), abs=2e-6)


def test_a_wish_to_stop_ends_it_without_numbers() -> None:
    seen = []

    def asked() -> bool:
        seen.append(len(seen))
        return len(seen) >= 2

    work = iter(batches([[0], [1], [2], [3]]))
    assert evaluate(Table(torch.randn(4, 3)), work, stopping=asked) is None
    assert next(work)["id"] == ["c2"], "the rest was left alone"


# ----------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("ucf50_x3d", "metrics*"), ids=lambda case: case.path.name)
def test_measures_of_a_whole_evaluation(case: Case, parity: Parity) -> None:
    """The official numbers by the project's own path: a model's logits, evaluated in batches, then measured."""
    with np.load(case.path / "inputs.npz") as inputs:
        logits, labels = torch.from_numpy(inputs["logits"]), torch.from_numpy(inputs["labels"])
    rows = torch.arange(len(logits))
    work = [
        {"id": [f"{i:04d}" for i in part.tolist()], "label": labels[part], "video": part.float().view(-1, 1, 1, 1, 1)}
        for part in rows.flip(0).split(8)
    ]
    found = evaluate(Table(logits), work)
    assert found is not None
    ours, expected = measure(found), case.expected
    names = {"accuracy": "accuracy_percent", "top5_accuracy": "top5_percent"}
    for name, value in ours.items():
        if name == "loss":
            continue
        golden = expected[names.get(name, name)]
        parity.check(name, value, 100 * golden if name == "mean_class_accuracy" else golden, atol=1e-9)
    loss = nn.functional.cross_entropy(logits.double(), labels)
    assert ours["loss"] == pytest.approx(loss.item(), abs=1e-6)
    averages = {name for name in expected if name.startswith("f1_")}
    assert averages | {"accuracy", "top5_accuracy", "mean_class_accuracy", "loss"} == set(ours)


def test_fewer_than_five_classes() -> None:
    found = evaluate(Table(torch.eye(3)), batches([[0, 1, 2]]))
    assert found is not None
    assert (measure(found)["accuracy"], measure(found)["top5_accuracy"]) == (100.0, 100.0)


def test_nothing_to_measure_is_said() -> None:
    found = evaluate(Table(torch.eye(3)), [])
    assert found is not None
    with pytest.raises(ValueError, match="no clip could be read"):
        measure(found)


def test_seconds_by_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per clip; the first batch warms up and counts in the original's average only."""
    ticks = iter([0.0, 6.0, 8.0, 10.0, 10.4, 10.8, 20.0, 20.1, 20.3])  # started, launched, finished of three batches
    monkeypatch.setattr(eval, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    found = evaluate(Table(torch.randn(5, 3)), batches([[0, 1], [2, 3], [4]]))
    assert found is not None
    np.testing.assert_allclose(found["latency_s"], [math.nan, math.nan, 0.4, 0.4, 0.3])
    np.testing.assert_allclose(found["launch_s"], [3.0, 3.0, 0.2, 0.2, 0.1])
    expected = {"latency_mean_s": 1.1 / 3, "latency_median_s": 0.4, "average_inference_time_s": 6.5 / 5}
    assert speed(found) == pytest.approx(expected)
    only_warm_up = speed({"latency_s": np.array([math.nan]), "launch_s": np.array([2.0])})
    assert math.isnan(only_warm_up["latency_mean_s"])
    assert math.isnan(only_warm_up["latency_median_s"])
    assert only_warm_up["average_inference_time_s"] == 2.0


# ------------------------------------------------------------------------------------------------------------- files


def test_text_of_the_predictions() -> None:
    shares = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]])
    found = {"id": ["A/x,1.avi", "B/y.avi"], "label": np.array([1, 2]), "scores": np.log(shares)}
    header = "video_name,label,prediction,class_1,share_1,class_2,share_2\n"
    assert predictions(found, ("A", "B", "C"), 2) == (
        header + '"A/x,1.avi",B,B,B,0.700000,C,0.200000\nB/y.avi,C,A,A,0.500000,B,0.250000\n'
    )
    assert predictions(found, ("A", "B", "C"), 9).startswith(header.replace("\n", ",class_3,share_3\n"))


def test_an_evaluation_through_its_command(tiny: Path, tmp_path: Path, weights_file: Path) -> None:
    """results.json, predictions.csv and report.html say the same; a clip that cannot be read is counted and named."""
    root, out = tmp_path / "clips", tmp_path / "run"
    shutil.copytree(tiny, root)
    cfg = configured(root, out)
    clips = data.load(cfg.data).dataset("val", cfg.clip)
    (root / clips.ids[1]).write_bytes(b"this is no video")
    results = eval.main(settings(root, out, f"ckpt={weights_file}", "eval.split=val", "eval.batch_size=1"))

    assert {name.partition("/")[0] for name in results} == {"val"}
    assert (results["val/clips_expected"], results["val/clips_scored"]) == (4, 3)
    assert simplejson.loads((out / "results.json").read_text()) == results
    assert results["val/latency_median_s"] > 0

    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video_name"] for row in rows] == sorted(set(clips.ids) - {clips.ids[1]})
    net, prepare = nano().eval(), data.pipeline(cfg.clip)
    for row in rows:
        assert row["label"] == row["video_name"].partition("/")[0]
        video = clips.sample(clips.ids.index(row["video_name"]), None)["video"]
        with torch.no_grad():
            shares = net(prepare(video[None], [None])).softmax(1)[0]
        best = int(shares.argmax())
        assert (row["prediction"], row["class_1"]) == (CLASSES[best], CLASSES[best])
        assert [float(row["share_1"]), float(row["share_2"])] == pytest.approx(sorted(shares.tolist())[::-1], abs=2e-6)
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert results["val/accuracy"] == pytest.approx(100 * right / 3)

    html, log = (out / "report.html").read_text(), (out / "run.log").read_text()
    for text in (*CLASSES, clips.ids[1], "3 of 4"):
        assert text in html
    assert f"Test Accuracy: {results['val/accuracy']:.2f}% of 3 clips; 1 of 4 could not be read" in log
    assert f"Average Inference Time per sample: {results['val/average_inference_time_s']:.4f} seconds" in log


def test_surest_mistakes_come_first(tiny: Path, tmp_path: Path) -> None:
    cfg = configured(tiny, tmp_path)
    benchmark = data.load(cfg.data)
    ids = benchmark.dataset("test", cfg.clip).ids
    shares = np.array([[0.4, 0.6], [0.9, 0.1], [0.05, 0.95], [0.2, 0.8]])
    found = {"id": ids, "label": np.array([0, 0, 0, 1]), "scores": np.log(shares)}
    shown = report.mistakes(found, shares.argmax(1), benchmark, cfg)
    assert [label for label, _ in shown] == [
        f"Fast, taken for Still (95%): {ids[2]}",
        f"Fast, taken for Still (60%): {ids[0]}",
    ]
    assert all(picture.shape == (44, 44, 3) for _, picture in shown)


def test_training_curves_of_a_report(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert report.curves(path) == {}
    path.write_text(
        '{"step": 1, "Loss/Train_Batch": 2.5, "lr": 0.1}\n{"step": 2, "Loss/Train_Batch": null, "lr": 0.1}\n'
        '{"step": 2, "Loss/Valid_Epoch": 2.0, "Accuracy/Valid_Epoch": 50.0}\n'
    )
    losses = {"Loss/Train_Batch": ([1], [2.5]), "Loss/Valid_Epoch": ([2], [2.0])}
    assert report.curves(path) == {"loss": losses, "accuracy": {"Accuracy/Valid_Epoch": ([2], [50.0])}}


# ------------------------------------------------------------------------------------------------------------- errors


def test_other_classes_than_the_dataset_are_refused(tiny: Path, tmp_path: Path) -> None:
    cfg = configured(tiny, tmp_path / "run")
    for net, classes, words in (
        (nano(3), ("A", "B", "C"), "3 of them, the dataset has 2"),
        (nano(3), (), "3 of them, the dataset has 2"),
        (nano(2), ("Fast", "Stop"), "number 1 is 'Stop', in the dataset 'Still'"),
    ):
        path = tmp_path / "other.safetensors"
        save_weights(net, path, weights.about(cfg, classes))
        with pytest.raises(ValueError, match="the weights know other classes") as error:
            eval.main(settings(tiny, tmp_path / "run", f"ckpt={path}"))
        assert words in str(error.value)


def test_a_file_without_names_takes_those_of_the_dataset(tiny: Path, tmp_path: Path) -> None:
    """As the original's run_*.pth: a bare state-dict."""
    path = tmp_path / "run_20250228.pth"
    torch.save(nano().state_dict(), path)
    with started(configured(tiny, tmp_path / "run", f"ckpt={path}")) as job:
        cfg = configured(tiny, tmp_path / "run", f"ckpt={path}")
        net, classes = weights.load(cfg, job, CLASSES)
        assert classes == CLASSES
        assert weights.load(cfg, job)[1] == ("class 0", "class 1")
    assert not net.training
    assert torch.equal(net.state_dict()["blocks.5.proj.weight"], nano().state_dict()["blocks.5.proj.weight"])


def test_other_frames_than_in_training_are_a_warning(tiny: Path, tmp_path: Path, weights_file: Path) -> None:
    for name, more in {"same": (), "other": ("clip.crop=48",)}.items():
        cfg = configured(tiny, tmp_path / name, f"ckpt={weights_file}", *more)
        with started(cfg) as job:
            weights.load(cfg, job)
        warned = "trained with clip.crop=40, not 48" in (tmp_path / name / "run.log").read_text()
        assert warned == (name == "other")


def test_a_run_without_weights_says_how_to_get_some(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights; train first"):
        eval.main(settings(tiny, tmp_path / "run"))


def test_a_stopped_evaluation_writes_no_results(
    tiny: Path, tmp_path: Path, weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = eval.score

    def score_and_stop(*args: Any) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(eval, "score", score_and_stop)
    out = tmp_path / "run"
    assert eval.main(settings(tiny, out, f"ckpt={weights_file}", "eval.batch_size=1")) == {}
    assert not (out / "results.json").exists()
    sessions = simplejson.loads((out / "environment.json").read_text())["sessions"]
    assert sessions[0]["outcome"] == "stopped by SIGTERM"
