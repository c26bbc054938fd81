"""Two processes train what one does with their common batch; visual prototypes are the same at one and two."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from core import dist
from core.checkpoint import read_weights
from projects.sgear import make_prototypes, prototype_files, train
from tests.dist.pool import Team
from tests.runs import rows
from tests.sgear.tiny import settings, write_dataset

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "data"
    write_dataset(root, train=22)  # the last batch is incomplete and shared out unevenly
    labels = root / "external/rulstm/RULSTM/data/ek100/actions.csv"
    make_prototypes.language("epic100", labels, root, "words")
    return root


def command(which: str, args: list[str]) -> object:
    """A command of the project in this process of a pool, which a run must not leave; without tests and tables."""
    main = {"train": train.main, "prototypes": make_prototypes.main}[which]
    with (
        mock.patch.object(dist, "shutdown"),
        mock.patch.object(train.eval, "test", return_value={}),
        mock.patch.object(train.summary, "describe", return_value=""),
    ):
        main(args)


@pytest.mark.parametrize(
    "more",
    [
        ("loss.past_semantic=0.5", "model.labels=[action, verb, noun]", "loss.past_cls_verb=1"),
        ("optim.accumulate=2", "optim.warmup=1"),
        ("loss.cls_action=0", "loss.past_cls_action=0", "loss.distance=0"),
        ("model.kind=avt", "loss.semantic=0", "loss.distance=0"),
    ],
    ids=["every term", "accumulation", "idle parts", "avt"],
)
def test_two_processes_train_as_one(two: Team, data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Unlabeled past steps lie unevenly on the two; what differs is the order of sums."""
    language = () if "model.kind=avt" in more else (f"model.prototypes.language={data / 'encodings_epic100.pth'}",)
    args = {
        size: settings(
            data, tmp_path / f"{size}", *language, "loss.semantic=2", *more, f"loader.batch_size={8 // size}"
        )
        for size in (1, 2)
    }
    command("train", args[1])
    two(command, "train", args[2])
    tensors, other = (read_weights(tmp_path / f"{size}/checkpoints/last.safetensors")[0] for size in (1, 2))
    for name, value in tensors.items():
        torch.testing.assert_close(
            other[name], value, atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    ours, theirs = ([row for row in rows(tmp_path / f"{size}") if "train/epoch_loss" in row] for size in (1, 2))
    assert len(ours) == 2
    for one, both in zip(ours, theirs, strict=True):
        shown = one.keys() - {"train/epoch_loss"}  # the mean over unequal last batches
        assert {key: both[key] for key in shown} == pytest.approx({key: one[key] for key in shown}, abs=1e-4)


def test_visual_prototypes_are_the_same_at_one_and_two(two: Team, data: Path, tmp_path: Path) -> None:
    args = settings(data, tmp_path / "run", "data.tau_a=-1", "loss.distance=0", "optim.epochs=1")
    command("train", args)
    for size, run in ((1, lambda *call: [call[0](*call[1:])]), (2, two)):
        run(command, "prototypes", ["visual", *args, "--exemplars", "3", "--out", str(tmp_path / f"{size}")])
    names = ("exemplars_ek100_train.pth", "visual_ek100_train.pth")
    first, second = ([torch.load(tmp_path / f"{size}" / name, weights_only=True) for name in names] for size in (1, 2))
    assert {key: len(value) for key, value in first[0].items()} == {key: len(value) for key, value in second[0].items()}
    tables = [prototype_files.read(tmp_path / f"{size}" / names[1]) for size in (1, 2)]
    torch.testing.assert_close(tables[1], tables[0])
