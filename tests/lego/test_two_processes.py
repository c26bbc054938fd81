"""Two processes train what one does with their common batch, and draw the same frames."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from core import dist
from core.checkpoint import read_weights
from projects.lego import generate, train
from tests.dist.pool import Team
from tests.lego.tiny import settings
from tests.runs import newest, rows

pytestmark = pytest.mark.dist


def command(which: str, args: list[str]) -> object:
    """A command of the project in this process of a pool, which a run must not leave."""
    main = {"train": train.main, "generate": generate.main}[which]
    with mock.patch.object(dist, "shutdown"):
        return main(args)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one(two: Team, home: Path, tmp_path: Path, strategy: str) -> None:
    """With accumulation and a last step of fewer micro-batches; what differs is the order of sums.

    Plain SGD: Adam would make steps of full size out of gradients that are zero but for rounding.
    """
    more = ["model.dropout=0", "optim.ema=0.9", "optim.accumulate=2", "optim.name=sgd", "optim.lr=0.02"]
    more += ["show.every=2", "show.steps=1"]
    args = {}
    for size in (1, 2):
        own = (f"loader.batch_size={2 // size}", *((f"strategy={strategy}",) if size == 2 else ()))
        args[size] = settings(home, tmp_path / f"{size}" / "run", *more, *own)
    alone = command("train", args[1])
    both = two(command, "train", args[2])
    assert both[0] == both[1]
    assert both[0] == pytest.approx(alone, abs=1e-5)
    one, other = (newest(tmp_path / f"{size}/run")["parts"] for size in (1, 2))
    start = read_weights(tmp_path / "1/run/checkpoints/last.safetensors")[0]
    assert start.keys() == other["model"].keys()
    for name, value in one["model"].items():
        torch.testing.assert_close(other["model"][name], value, atol=2e-6, rtol=1e-4, msg=name)
        torch.testing.assert_close(other["step"]["average"][name], one["step"]["average"][name], atol=2e-6, rtol=1e-4)
    for ours, theirs in zip(rows(tmp_path / "2/run"), rows(tmp_path / "1/run"), strict=True):
        keys = [key for key in theirs if key == "step" or key.startswith(("val/", "grad_norm", "train/loss_epoch"))]
        assert {key: ours[key] for key in keys} == pytest.approx({key: theirs[key] for key in keys}, rel=1e-3)


def test_two_processes_draw_the_same_frames(two: Team, home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.main(settings(home, run, "optim.epochs=1"))
    written = {}
    for size in (1, 2):
        args = settings(home, run, f"sample.out={tmp_path / f'frames{size}'}", "sample.batch_size=1")
        folders = [command("generate", args)] if size == 1 else two(command, "generate", args)
        assert len(set(folders)) == 1
        images = Path(str(folders[0])) / "images"
        written[size] = {path.relative_to(images): path.read_bytes() for path in images.rglob("*.jpg")}
    assert len(written[1]) == 3
    assert written[1] == written[2]
