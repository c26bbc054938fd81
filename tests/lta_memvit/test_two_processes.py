"""Several processes train what one does with their common batch, memory and all, and evaluations agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import simplejson
import torch

from core import dist
from core.checkpoint import read_weights, save_weights
from core.run import Run
from projects.lta_memvit import data, eval, train, weights
from projects.lta_memvit.data import Benchmark
from tests.dist.pool import Team
from tests.lta_memvit.tiny import configured, network, settings

pytestmark = pytest.mark.dist

MEMVIT = ("model.backbone=memvit_nano", "clip.crop=16", "clip.jitter=[16,20]", "clip.flip=0")
LEARNING = ("model.dropout=0", "model.drop_path=0", "optim.name=sgd", "optim.lr=0.001", "optim.schedule=constant")


def command(which: str, args: list[str], stop_at: int = -1) -> dict[str, float]:
    """A command of the project in this process of a pool, which a run must not leave; without pages and tables.

    A training is asked to stop after its batch number `stop_at`.
    """
    main = {"train": train.main, "eval": eval.main}[which]
    with (
        mock.patch.object(dist, "shutdown"),
        mock.patch.object(Run, "stopping", lambda self, step=None: step == stop_at),
        mock.patch.object(eval.report, "write"),
        mock.patch.object(train.summary, "describe", return_value=""),
    ):
        return main(args)


def benchmark(root: Path, out: Path) -> Benchmark:
    return data.load(configured(root, out).data)


@pytest.mark.parametrize("task", ["recognition", "forecasting"])
def test_two_and_three_processes_train_as_one(two: Team, three: Team, made: Path, tmp_path: Path, task: str) -> None:
    """MeMViT with a stream in every row of the common batch: what differs is the order of sums."""
    start = tmp_path / "start.safetensors"
    cfg = configured(made, tmp_path, *MEMVIT, f"task={task}")
    save_weights(network(cfg, benchmark(made, tmp_path).classes), start)
    args = {
        size: settings(
            made, tmp_path / f"{size}", *MEMVIT, *LEARNING, f"task={task}", f"model.init={start}",
            "model.init_head=true", f"loader.batch_size={6 // size}",
        )
        for size in (1, 2, 3)
    }  # fmt: skip
    alone = command("train", args[1])
    assert alone
    for result in two(command, "train", args[2]) + three(command, "train", args[3]):
        assert result.keys() == alone.keys()
    tensors, *others = (read_weights(tmp_path / f"{size}/checkpoints/last.safetensors")[0] for size in (1, 2, 3))
    fresh = read_weights(start)[0]
    moved = [name for name, value in tensors.items() if not torch.equal(value, fresh[name])]
    assert any("compress" in name for name in moved)
    assert any("rel_pos_mem" in name for name in moved)
    for name, value in tensors.items():
        for other in others:
            torch.testing.assert_close(
                other[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("task", ["recognition", "forecasting"])
def test_two_processes_that_were_stopped_go_on_bit_for_bit(two: Team, made: Path, tmp_path: Path, task: str) -> None:
    """In the middle of an epoch, and so of clips: each process finds the streams that it remembered."""
    more = (*MEMVIT, f"task={task}", "loader.batch_size=2", "optim.lr=0.001", "memory.sampler=all")
    whole, parts = (settings(made, tmp_path / name, *more) for name in ("whole", "parts"))
    expected = two(command, "train", whole)
    assert expected[0]
    assert two(command, "train", parts, 5) == [{}, {}]
    assert two(command, "train", parts) == expected
    ours, theirs = (read_weights(tmp_path / f"{name}/checkpoints/last.safetensors")[0] for name in ("parts", "whole"))
    assert all(ours[name].equal(value) for name, value in theirs.items())


@pytest.mark.parametrize("task", ["recognition", "forecasting"])
def test_an_evaluation_with_memory_is_the_same_at_one_two_and_three_processes(
    two: Team, three: Team, made: Path, tmp_path: Path, task: str
) -> None:
    """And for batches of one, two and four."""
    path = tmp_path / "net.safetensors"
    cfg = configured(made, tmp_path, *MEMVIT, f"task={task}")
    found = benchmark(made, tmp_path)
    save_weights(network(cfg, found.classes), path, weights.about(cfg, found.taxonomy))
    results: list[dict[str, Any]] = []
    files: list[Any] = []
    alone = lambda *call: [call[0](*call[1:])]  # noqa: E731
    for number, (run, batch) in enumerate([(alone, 1), (alone, 4), (two, 2), (three, 1)]):
        out = tmp_path / f"{number}"
        args = settings(
            made, out, *MEMVIT, f"task={task}", f"ckpt={path}", f"eval.batch_size={batch}", "eval.split=val"
        )
        results += run(command, "eval", args)
        if task == "forecasting":
            files.append(simplejson.loads((out / "outputs.json").read_text()))
    assert len(results) == 7
    for result in results:
        assert result == pytest.approx(results[0], abs=1e-9)
    assert all(file == files[0] for file in files)


def reference(args: list[str]) -> str:
    try:
        command("train", args)
    except ValueError as error:
        return str(error)
    return ""


def test_the_original_memory_trains_in_one_process_only(two: Team, made: Path, tmp_path: Path) -> None:
    args = settings(made, tmp_path / "run", *MEMVIT, *LEARNING, "task=recognition", "memory.mode=reference")
    for message in two(reference, args):
        assert "memory.mode=reference leaves weights without gradient" in message
