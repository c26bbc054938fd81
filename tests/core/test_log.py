"""The log of a run: rows, tensors, progress, resuming, disks that refuse."""

from __future__ import annotations

import json
import logging
import math
import resource
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import dist
from core import log as log_module
from core.log import Log, Meter, NonFiniteLoss, Throughput
from tests.dist.pool import Team


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    opened = Log(tmp_path, tensorboard=False)
    yield opened
    opened.close()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- metrics.jsonl


def test_a_row_holds_step_time_and_values(tmp_path: Path, log: Log) -> None:
    log.scalars(7, {"train/loss": torch.tensor(0.5), "lr": 1e-3, "seen": 12, "norm": torch.tensor([float("inf")])})
    (row,) = rows(tmp_path)
    assert row.pop("time") > 1e9
    assert row == {"step": 7, "train/loss": 0.5, "lr": 1e-3, "seen": 12, "norm": None}


def test_rows_on_a_device_wait_and_are_read_together(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_readable", lambda tensor: False)
    loss = torch.zeros(())
    for step in range(4):
        loss += 1
        log.scalars(step, {"loss": loss, "lr": 0.1})
    assert not (tmp_path / "metrics.jsonl").exists()
    log.scalars(4, {"loss": loss})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4)]
    log.scalars(5, {"loss": loss})
    log.scalars(6, {"accuracy": 0.5})
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4, 5, 6]
    log.scalars(7, {"loss": loss})
    log.close()
    assert rows(tmp_path)[-1]["step"] == 7


def test_a_row_on_a_device_waits_no_longer_than_its_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_readable", lambda tensor: False)
    impatient = Log(tmp_path, tensorboard=False, every=100, patience_s=-1)
    impatient.scalars(0, {"loss": torch.ones(())})
    assert [row["loss"] for row in rows(tmp_path)] == [1.0]
    impatient.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(-math.inf)])
def test_a_loss_that_is_not_finite_is_written_and_then_raises(tmp_path: Path, log: Log, value: Any) -> None:
    log.scalars(1, {"grad_norm": math.nan})
    with pytest.raises(NonFiniteLoss, match=r"train/Loss_total is .* at step 3") as caught:
        log.scalars(3, {"accuracy": 0.1, "train/Loss_total": value})
    assert (caught.value.key, caught.value.step) == ("train/Loss_total", 3)
    assert [(row["step"], row.get("train/Loss_total", 0)) for row in rows(tmp_path)] == [(1, 0), (3, None)]


def test_a_tensor_of_several_numbers_is_refused(log: Log) -> None:
    with pytest.raises(ValueError, match=r"loss: should be one number, got a tensor of shape \(2,\)"):
        log.scalars(0, {"loss": torch.zeros(2)})


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(-1, 9))
@settings(deadline=None, max_examples=30)
def test_rewind_forgets_exactly_the_later_rows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], last: int
) -> None:
    out = tmp_path_factory.mktemp("rewind")
    log = Log(out, tensorboard=False)
    for step in steps:
        log.scalars(step, {"x": 1.0}, console=False)
    log.rewind(last)
    log.scalars(99, {"x": 2.0}, console=False)
    log.close()
    assert [row["step"] for row in rows(out)] == [*(step for step in steps if step <= last), 99]


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_a_file_cut_anywhere_keeps_its_whole_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    out = tmp_path_factory.mktemp("cut")
    content = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(3)).encode()
    cut = data.draw(st.integers(0, len(content)))
    (out / "metrics.jsonl").write_bytes(content[:cut])
    log = Log(out, tensorboard=False)
    log.scalars(9, {"loss": 0.25}, console=False)
    log.close()
    whole = (cut + 1) // (len(content) // 3)  # a row that lacks its newline only is whole
    assert [row["step"] for row in rows(out)] == [*range(whole), 9]


# --- text


def test_everything_that_is_said_is_kept(
    tmp_path: Path, log: Log, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.info("hello")
    log.warning("careful")
    logging.getLogger("some.library").warning("from %s", "logging")
    logging.getLogger("some.library").info("too much")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # pytest has its own hand on warnings; take it back for this block
        logging.captureWarnings(True)
        warnings.warn("from warnings", UserWarning, stacklevel=1)
    log.scalars(3, {"loss": 0.123456, "seen": 5})
    text = (tmp_path / "run.log").read_text()
    assert [line.split(" ", 2)[2] for line in text.splitlines()[:3]] == [
        "hello",
        "WARNING careful",
        "WARNING from logging",
    ]
    assert "UserWarning: from warnings" in text
    assert "too much" not in text
    assert text.splitlines()[-1].endswith("step 3  loss 0.1235  seen 5")
    out, err = capsys.readouterr()
    assert "hello" in out
    assert "loss 0.1235" in out
    assert "WARNING careful" in err
    monkeypatch.undo()


def test_a_closed_log_hears_nothing(tmp_path: Path) -> None:
    Log(tmp_path, tensorboard=False).close()
    logging.getLogger("some.library").warning("later")
    assert not (tmp_path / "run.log").exists()


def test_other_processes_keep_only_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Log(tmp_path, main=False, rank=3)
    other.info("hello")
    other.scalars(1, {"loss": math.nan})
    other.text(1, sentence="x")
    other.images(1, picture=torch.zeros(3, 2, 2))
    assert list(other.progress([1, 2], "eval")) == [1, 2]
    other.rewind(0)
    other.warning("careful")
    other.error("broken")
    other.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.rank3.log"]
    lines = (tmp_path / "run.rank3.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["WARNING careful", "ERROR broken"]
    assert "[rank 3] careful" in capsys.readouterr().err


def test_text_cut_in_mid_line_gets_its_newline(tmp_path: Path, log: Log) -> None:
    (tmp_path / "run.log").write_text("first\nseco")
    log.info("third")
    assert [line.split()[-1] for line in (tmp_path / "run.log").read_text().splitlines()] == ["first", "seco", "third"]


@pytest.mark.parametrize("room", [0, 10])
def test_a_full_disk_loses_lines_and_nothing_else(
    tmp_path: Path, log: Log, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "x": "' + "a" * 60_000 + '"}\n')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + room, hard))  # as full as a disk can be
    try:
        for step in range(3):
            log.scalars(step, {"value": 0.5}, console=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.scalars(9, {"value": 0.5})
    assert [row["step"] for row in rows(tmp_path)] == [0, 9]
    assert capsys.readouterr().err.count("metrics.jsonl: cannot be written") == 1
    assert "cannot be written" in (tmp_path / "run.log").read_text()


def test_a_console_that_went_away_is_no_error(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    log.info("hello")
    assert "hello" in (tmp_path / "run.log").read_text()


def test_progress_says_where_it_is_now_and_then(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 70.0, 70.0, 71.0])
    monkeypatch.setattr(log_module.time, "monotonic", lambda: next(clock))
    assert list(log.progress(["a", "b", "c", "d", "e"], "eval")) == ["a", "b", "c", "d", "e"]
    said = [line.split(" ", 2)[2] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert said == ["eval 1/5 (20%)", "eval 3/5 (60%)"]


# --- TensorBoard


def test_tensorboard_gets_scalars_texts_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Log(tmp_path)
    for step in (10, 20, 30):
        first.scalars(step, {"loss": step / 100}, console=False)
    first.close()
    second = Log(tmp_path)
    second.rewind(10)
    second.scalars(20, {"loss": 0.5}, console=False)
    second.scalars(20, {"val/accuracy": 0.75}, tensorboard_step=2)
    second.text(20, sentence="wash the *cup*")
    second.images(20, picture=torch.zeros(3, 4, 6, dtype=torch.uint8), grid=torch.zeros(2, 3, 4, 6))
    second.histograms(20, {"w": torch.tensor([1.0, 2.0, torch.nan, torch.inf]), "none": torch.tensor([torch.nan])})
    second.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, round(event.value, 4)) for event in board.Scalars("loss")] == [(10, 0.1), (20, 0.5)]
    assert [(event.step, event.value) for event in board.Scalars("val/accuracy")] == [(2, 0.75)]
    assert [event.tensor_proto.string_val[0] for event in board.Tensors("sentence/text_summary")] == [b"wash the *cup*"]
    assert [(image.width, image.height) for image in board.Images("picture")] == [(6, 4)]
    (histogram,) = [event.histogram_value for event in board.Histograms("w")]
    assert (histogram.num, histogram.min, histogram.max) == (2, 1.0, 2.0)
    assert board.Tags()["histograms"] == ["w"]
    assert "wash the *cup*" in (tmp_path / "run.log").read_text()


def test_tensorboard_that_cannot_write_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    log = Log(tmp_path)
    for step in range(3):
        log.scalars(step, {"loss": 0.5}, console=False)
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]
    assert capsys.readouterr().err.count("tensorboard: cannot be written") == 1


# --- meters


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 5)), min_size=1, max_size=12), st.integers(1, 4))
def test_a_meter_is_a_weighted_mean(values: list[tuple[float, int]], window: int) -> None:
    meter = Meter(window)
    for index, (value, weight) in enumerate(values):
        meter.add(torch.tensor(value, dtype=torch.float64) if index % 2 else value, weight)
    every = [value for value, weight in values for _ in range(weight)]
    last = [value for value, weight in values[-window:] for _ in range(weight)]
    assert meter.mean == pytest.approx(statistics.fmean(every), abs=1e-9)
    assert meter.recent == pytest.approx(statistics.fmean(last), abs=1e-9)
    meter.reset()
    assert math.isnan(meter.mean)
    assert math.isnan(meter.recent)


def test_a_meter_goes_on_from_its_state() -> None:
    meter, other = Meter(2), Meter(2)
    for value in (1.0, torch.tensor(3.0), 8.0):
        meter.add(value)
    other.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    meter.add(4.0)
    other.add(4.0)
    assert (other.mean, other.recent) == (meter.mean, meter.recent) == (4.0, 6.0)


def saved_and_restored() -> tuple[float, float]:
    """The mean over processes of an epoch that went on, and of one that was stopped and resumed in its middle."""
    rank = dist.world().rank
    straight, stopped, resumed = Meter(), Meter(), Meter()
    for value in (1.0, 2.0 + 3 * rank):
        straight.add(value)
        stopped.add(value)
    resumed.load_state_dict(dist.broadcast(stopped.state_dict()))  # a checkpoint holds the main process's
    for meter in (straight, resumed):
        meter.add(4.0 + rank)
    return dist.mean({"loss": straight.mean})["loss"], dist.mean({"loss": resumed.mean})["loss"]


@pytest.mark.dist
def test_a_meter_that_was_saved_by_one_process_goes_on_as_the_mean_of_all(two: Team) -> None:
    for straight, resumed in two(saved_and_restored):
        assert straight == resumed == pytest.approx(3.0)


def test_a_meter_keeps_the_value_that_it_was_given() -> None:
    meter, loss = Meter(), torch.ones(())
    meter.add(loss)
    loss.zero_()
    assert (meter.mean, meter.recent) == (1.0, 1.0)


def test_throughput_counts_since_the_last_reading() -> None:
    now = [100.0]
    speed = Throughput(clock=lambda: now[0])
    speed.add(8, waited_s=0.5)
    speed.add(8)
    now[0] += 4
    assert speed.read() == {"samples_per_s": 4.0, "wait_share": 0.125}
    now[0] += 10
    speed.reset()  # an evaluation in between does not count
    speed.add(3, waited_s=9)
    now[0] += 1
    assert speed.read() == {"samples_per_s": 3.0, "wait_share": 1.0}
