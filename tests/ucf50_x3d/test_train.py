"""Training through its command: what a run leaves, what is logged where, and that stopping changes no bit of it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejson
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from core.checkpoint import read_weights
from core.step import TrainStep
from projects.ucf50_x3d import eval, model, train
from projects.ucf50_x3d.config import Config, LossConfig
from projects.ucf50_x3d.losses import criterion
from tests.runs import TIMED, newest, rows, same
from tests.support import Case, cases
from tests.ucf50_x3d.tiny import CLASSES, nano, settings

EVERYTHING = (  # what could go wrong with a resumed run: dropout, augmentation, norms that move, momentum, a schedule
    "model.trainable=all", "clip.sampling=window", "clip.rate=1", "clip.augment=true", "clip.mixup=0.4",
    "optim.name=adamw", "optim.lr=0.01", "optim.schedule=cosine",
)  # fmt: skip


def tags_and_steps(batches: int, epochs: int) -> dict[str, list[int]]:
    """TensorBoard as the original fills it: batches counted through all epochs from 1, epochs from 0."""
    by_epoch = list(range(epochs))
    return {
        "Loss/Train_Batch": [e * batches + b for e in by_epoch for b in range(1, batches + 1)],
        "Loss/Train_Epoch": by_epoch,
        "Loss/Valid_Epoch": by_epoch,
        "Accuracy/Valid_Epoch": by_epoch,
    }


def board(out: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that TensorBoard shows for a run."""
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def at_batch(number: int, act: Callable[[], None]) -> Callable[..., dict[str, Tensor]]:
    """The criterion, which acts when it is called for the n-th time."""
    calls: list[None] = []

    def wrapped(*args: Any) -> dict[str, Tensor]:
        calls.append(None)
        if len(calls) == number:
            act()
        return criterion(*args)

    return wrapped


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without their test and its report, and do not count multiply-adds: seconds that say nothing here."""
    monkeypatch.setattr(train, "test", lambda *_: {"tested": 1.0})
    monkeypatch.setattr(train.summary, "describe", lambda *_: "")


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A whole run of the published kind: the last layer learns."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, train.main(settings(tiny, out))


# --------------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_directory_holds_what_the_readme_says(finished: tuple[Path, dict[str, float]]) -> None:
    out, results = finished
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "environment.json", "run.log", "metrics.jsonl", "tensorboard", "checkpoints", "results.json",
        "predictions.csv", "report.html",
    }  # fmt: skip
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        "step_000000003.pt", "step_000000006.pt", "best.safetensors", "last.safetensors",
    }  # fmt: skip
    assert {"test/accuracy", "test/f1_macro_all_labels", "test/clips_scored"} <= set(results)
    saved = simplejson.loads((out / "results.json").read_text())
    assert {name: value for name, value in saved.items() if value is not None} == {
        name: value for name, value in results.items() if not np.isnan(value)
    }
    assert simplejson.loads((out / "environment.json").read_text())["sessions"][0]["outcome"] == "finished"
    _, about = read_weights(out / "checkpoints/last.safetensors")
    assert (about["classes"], about["model"], about["clip"]["crop"], about["step"]) == (
        list(CLASSES),
        "x3d_nano",
        40,
        6,
    )
    assert set(about["metrics"]) >= {"val/accuracy", "val/loss", "val/f1_weighted_seen_labels"}


def test_only_the_head_learns(finished: tuple[Path, dict[str, float]]) -> None:
    learned, _ = read_weights(finished[0] / "checkpoints/last.safetensors")
    torch.manual_seed(0)  # run.seed
    start = model.X3D("nano", 2).state_dict()
    changed = {name for name in start if not torch.equal(start[name], learned[name])}
    assert changed == {"blocks.5.proj.weight", "blocks.5.proj.bias"}


def test_an_evaluation_of_the_run_repeats_its_numbers(tiny: Path, finished: tuple[Path, dict[str, float]]) -> None:
    out, results = finished
    again = eval.main([str(out / "config.yaml")])
    clock = {"test/latency_mean_s", "test/latency_median_s", "test/average_inference_time_s"}
    assert again.keys() == results.keys()
    assert {name: again[name] for name in again.keys() - clock} == {
        name: results[name] for name in results.keys() - clock
    }


# --------------------------------------------------------------------------------------------------------------- logs


def test_tensorboard_has_the_tags_and_steps_of_the_original(finished: tuple[Path, dict[str, float]]) -> None:
    shown = board(finished[0])
    expected = tags_and_steps(batches=3, epochs=2)
    assert {tag: [step for step, _ in points] for tag, points in shown.items() if tag != "lr"} == expected
    losses = [value for _, value in shown["Loss/Train_Batch"]]
    means = [value for _, value in shown["Loss/Train_Epoch"]]
    assert means == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-6), "the mean of batch means"
    assert [value for _, value in shown["lr"]] == pytest.approx([0.05] * 6)

    table = rows(finished[0])
    assert [row["step"] for row in table] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [row["Loss/Train_Batch"] for row in table if "Loss/Train_Batch" in row] == pytest.approx(losses, rel=1e-6)
    epochs = [row for row in table if "Loss/Train_Epoch" in row]
    accuracies = [value for _, value in shown["Accuracy/Valid_Epoch"]]
    assert [row["Accuracy/Valid_Epoch"] for row in epochs] == pytest.approx(accuracies)
    assert set(accuracies) <= {0.0, 25.0, 50.0, 75.0, 100.0}, "percent of four clips"
    _, about = read_weights(finished[0] / "checkpoints/last.safetensors")
    assert about["metrics"]["val/loss"] == epochs[-1]["Loss/Valid_Epoch"]


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("ucf50_x3d", "official_curves*"), ids=lambda case: case.path.name)
def test_the_shipped_curves_have_these_tags_and_steps(case: Case) -> None:
    """With the test above: for as many batches and epochs our tags and steps are those of the original's own runs."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in case.expected.items():
        name, kind = key.rsplit("/", 1)
        if kind == "step":
            run, tag = name.split("/", 1)
            found.setdefault(run, {})[tag] = value
    assert found
    for curves in found.values():
        epochs = len(curves["Loss/Train_Epoch"])
        expected = tags_and_steps(len(curves["Loss/Train_Batch"]) // epochs, epochs)
        assert {"Loss/Train_Batch", "Loss/Train_Epoch", "Loss/Valid_Epoch"} <= set(curves) <= set(expected)
        for tag, steps in curves.items():
            np.testing.assert_array_equal(steps, expected[tag])


@pytest.mark.usefixtures("untested")
def test_validation_only_in_some_epochs_and_after_the_last(tiny: Path, tmp_path: Path) -> None:
    train.main(settings(tiny, tmp_path, "optim.epochs=4", "run.eval_every=3", "loader.batch_size=8"))
    shown = board(tmp_path)
    assert [step for step, _ in shown["Loss/Train_Epoch"]] == [0, 1, 2, 3]
    assert [step for step, _ in shown["Loss/Valid_Epoch"]] == [2, 3]


# --------------------------------------------------------------------------------------------- stopped, killed, resumed


def result(out: Path) -> tuple[Any, ...]:
    """Everything that a run has learned and said, without the clock: the checkpoint holds random states too."""
    weights = [read_weights(out / f"checkpoints/{name}.safetensors") for name in ("last", "best")]
    return newest(out), weights, rows(out)


@pytest.fixture(scope="module")
def straight(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What the run with everything that could go wrong comes to when nothing stops it, without workers."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "test", lambda *_: {})
        out = tmp_path_factory.mktemp("straight") / "run"
        train.main(settings(tiny, out, *EVERYTHING))
    return result(out)


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    ("workers", "batch", "left"),
    [(0, 2, "step_000000002.pt"), (2, 5, "step_000000005.pt"), (0, 3, "step_000000003.pt")],
    ids=["in mid-epoch", "in mid-epoch with workers", "with the last batch of an epoch"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    workers: int, batch: int, left: str, tiny: Path, tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(tiny, tmp_path, *EVERYTHING, f"loader.workers={workers}")
    with monkeypatch.context() as patch:
        patch.setattr(train, "criterion", at_batch(batch, terminate))
        assert train.main(args) == {}
    assert max((tmp_path / "checkpoints").glob("*.pt")).name == left
    assert train.main(args) == {"tested": 1.0}
    assert same(result(tmp_path), straight)
    outcomes = [s["outcome"] for s in simplejson.loads((tmp_path / "environment.json").read_text())["sessions"]]
    assert outcomes == ["stopped by SIGTERM", "finished"]


@pytest.mark.usefixtures("untested")
def test_stopped_in_validation_and_resumed(
    tiny: Path, tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = train.evaluate

    def interrupted(*args: Any, **options: Any) -> Any:
        terminate()
        return evaluate(*args, **options)

    args = settings(tiny, tmp_path, *EVERYTHING)
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        assert train.main(args) == {}
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3], "no row of the epoch yet"
    assert train.main(args) == {"tested": 1.0}
    assert same(result(tmp_path), straight)


def killed(args: list[str]) -> None:
    """In a process of its own: train until the fifth batch, then die without a word."""
    train.criterion = at_batch(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train.summary.describe = lambda *_: ""
    train.main(args)


@pytest.mark.usefixtures("untested")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill without a word")
def test_killed_and_resumed_equals_uninterrupted(tiny: Path, tmp_path: Path, straight: Any) -> None:
    args = settings(tiny, tmp_path, *EVERYTHING)
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(args,))  # autograd survives no fork
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 3, 4]
    assert train.main(args) == {"tested": 1.0}
    assert same(result(tmp_path), straight)


@pytest.mark.usefixtures("untested")
def test_a_crash_with_accumulation_leaves_no_row_twice(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches make a step, so that batches and steps are counted apart; the rows of both sessions join exactly."""
    more = ("optim.accumulate=2", "loader.batch_size=1", "run.save_every=1", "optim.epochs=1")
    train.main(settings(tiny, tmp_path / "straight", *more))

    def crash() -> None:
        raise RuntimeError("out of luck")

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of luck"):  # noqa: PT012
        patch.setattr(train, "criterion", at_batch(6, crash))
        train.main(settings(tiny, out, *more))
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5]
    assert max((out / "checkpoints").glob("*.pt")).name == "step_000000002.pt", "after four batches"
    train.main(settings(tiny, out, *more))
    assert same(result(out), result(tmp_path / "straight"))
    shown = board(out)
    assert shown == board(tmp_path / "straight")
    assert [step for step, _ in shown["Loss/Train_Batch"]] == list(range(1, 9))


def test_a_finished_run_called_again_is_only_tested(
    tiny: Path, tmp_path: Path, finished: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    (out / "results.json").unlink()
    before = {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    table = (out / "metrics.jsonl").read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(train, "criterion", never)
    results = train.main(settings(tiny, out))
    assert results["test/loss"] == finished[1]["test/loss"]
    assert (out / "results.json").exists()
    assert {path: path.read_bytes() for path in (out / "checkpoints").iterdir()} == before
    assert (out / "metrics.jsonl").read_bytes() == table
    assert TIMED[0] in simplejson.loads(table.splitlines()[0])


# ------------------------------------------------------------------------------------------------- which part learns


@pytest.mark.usefixtures("untested")
def test_frozen_norms_drift_only_in_the_reference_mode(tiny: Path, tmp_path: Path) -> None:
    statistics = {}
    for mode in ("eval", "reference"):
        train.main(settings(tiny, tmp_path / mode, f"model.frozen_norm={mode}"))
        tensors, _ = read_weights(tmp_path / mode / "checkpoints/last.safetensors")
        statistics[mode] = {name: value for name, value in tensors.items() if "running" in name or "tracked" in name}
    fresh = model.X3D("nano", 2).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in statistics["eval"].items())
    for name, value in statistics["reference"].items():
        if name.endswith("num_batches_tracked"):
            assert value == 6, "two epochs of three batches, and none of validation"
        else:
            assert not torch.equal(value, fresh[name]), name


@pytest.mark.parametrize("mode", ["eval", "reference"])
def test_steps_are_those_of_the_original_loop(mode: Any) -> None:
    """Model, criterion and TrainStep with the project's defaults against the original's lines, bit for bit.

    The golden case train_head_50 ties the latter to the official numbers (test_golden_models.test_three_steps).
    """
    video, labels = torch.randn(3, 2, 3, 8, 40, 40), torch.tensor([[3, 17], [49, 0], [12, 12]])
    theirs, ours = (model.freeze(nano(50, dropout=0.0)) for _ in range(2))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.001, momentum=0.9)
    for clips, label in zip(video, labels, strict=True):
        model.train(theirs, mode)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(clips), label).backward()
        optimizer.step()

    step = TrainStep(ours, Config().optim, batches_per_epoch=3, precision="fp32")
    for clips, label in zip(video, labels, strict=True):
        model.train(ours, mode)
        with step.forward() as forward:
            loss = criterion(forward(clips), {"label": label}, LossConfig())["total"]
        step.backward(loss)
    assert step.count == 3
    for (name, value), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-7, rtol=0, msg=name)
    assert not torch.equal(ours.blocks[-1].proj.weight, nano(50).blocks[-1].proj.weight)


# ------------------------------------------------------------------------------------------------- cached, and errors


def test_a_run_on_cached_features(tiny: Path, tmp_path: Path) -> None:
    """The second run computes no features; the weights it leaves are a whole network."""
    more = ("features.cache=moments", f"features.folder={tmp_path / 'features'}", "optim.epochs=1")
    results = [train.main(settings(tiny, tmp_path / name, *more)) for name in ("first", "second")]
    logs = [(tmp_path / name / "run.log").read_text() for name in ("first", "second")]
    assert ["features of 8 train clips" in log for log in logs] == [True, False]
    assert ["features of 4 val clips" in log for log in logs] == [True, False]
    assert results[0]["test/loss"] == results[1]["test/loss"]
    assert same(newest(tmp_path / "first"), newest(tmp_path / "second"))
    tensors, _ = read_weights(tmp_path / "first/checkpoints/best.safetensors")
    assert tensors.keys() == nano().state_dict().keys()
    expected = tags_and_steps(batches=3, epochs=1)
    shown = board(tmp_path / "second")
    assert {tag: [step for step, _ in points] for tag, points in shown.items() if tag != "lr"} == expected


@pytest.mark.usefixtures("untested")
def test_parts_without_clips(tiny: Path, tmp_path: Path) -> None:
    """Nothing to train on is an error that says so; nothing to test or to validate on is not."""
    folder = tmp_path / "csv"
    folder.mkdir()
    clips = [f"v_{name}_g01_c01.mp4,{name},{label}" for label, name in enumerate(CLASSES)]

    def write(**parts: list[str]) -> list[str]:
        for part in ("train", "val", "test"):
            lines = ["video_name,action,action_label", *parts.get(part, [])]
            (folder / f"{part}_annotations.csv").write_text("\n".join(lines) + "\n")
        return [f"data.annotations={folder}", "data.protocol=files", "optim.epochs=1"]

    with pytest.raises(ValueError, match="nothing to train on"):
        train.main(settings(tiny, tmp_path / "none", *write(test=clips)))
    out = tmp_path / "only"
    assert train.main(settings(tiny, out, *write(train=clips))) == {}
    assert "not tested: the dataset has no test clips" in (out / "run.log").read_text()
    assert not (out / "checkpoints/best.safetensors").exists()
    assert (out / "checkpoints/last.safetensors").exists()
    assert list(board(out)) == ["Loss/Train_Batch", "lr", "Loss/Train_Epoch"]
