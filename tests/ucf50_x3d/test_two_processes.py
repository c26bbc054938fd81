"""Two processes train what one does with their common batch; an evaluation says the same at one, two and three."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import simplejson
import torch

from core import dist
from core.checkpoint import read_weights, save_weights
from projects.ucf50_x3d import eval, train, weights
from tests.dist.pool import Team
from tests.runs import rows
from tests.ucf50_x3d.tiny import CLASSES, configured, nano, settings

pytestmark = pytest.mark.dist


def command(which: str, args: list[str]) -> dict[str, float]:
    """A command of the project in this process of a pool, which a run must not leave; without pages and tables."""
    main = {"train": train.main, "eval": eval.main}[which]
    with (
        mock.patch.object(dist, "shutdown"),
        mock.patch.object(eval.report, "write"),
        mock.patch.object(train.summary, "describe", return_value=""),
    ):
        return main(args)


@pytest.mark.parametrize("cache", ["none", "moments"])
def test_two_processes_train_as_one(two: Team, tiny: Path, tmp_path: Path, cache: str) -> None:
    """Without dropout and with frozen norms in eval mode: what differs is the order of sums.

    On video everything but the norms learns, from the features the head.
    """
    start = tmp_path / "start.pt"
    torch.save(nano().state_dict(), start)
    more = ["model.dropout=0", f"model.init={start}", "optim.lr=0.02", f"features.cache={cache}"]
    more += ["model.trainable=conv|proj"] if cache == "none" else []
    args = {}
    for size in (1, 2):
        own = (f"loader.batch_size={4 // size}", f"features.folder={tmp_path / f'features{size}'}")
        args[size] = settings(tiny, tmp_path / f"{size}", *more, *own)
    alone = command("train", args[1])
    both = two(command, "train", args[2])
    assert both[0].keys() == both[1].keys() == alone.keys()

    tensors, other = (read_weights(tmp_path / f"{size}/checkpoints/last.safetensors")[0] for size in (1, 2))
    fresh = nano().state_dict()
    moved = {name for name in tensors if not torch.equal(tensors[name], fresh[name])}
    learns = ("conv", "proj") if cache == "none" else ("blocks.5.proj",)
    assert moved == {name for name in fresh if any(word in name for word in learns)}
    for name, value in tensors.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    for ours, theirs in zip(rows(tmp_path / "2"), rows(tmp_path / "1"), strict=True):
        assert ours.keys() == theirs.keys()
        shown = ours.keys() - {"Loss/Train_Batch"}  # that is the main process's share
        assert {key: ours[key] for key in shown} == pytest.approx({key: theirs[key] for key in shown}, abs=1e-5)
    for result in both:
        for name in ("accuracy", "loss", "f1_macro_all_labels", "clips_scored"):
            assert result[f"test/{name}"] == pytest.approx(alone[f"test/{name}"], abs=1e-5)


def test_an_evaluation_is_the_same_at_one_two_and_three_processes(
    two: Team, three: Team, tiny: Path, tmp_path: Path
) -> None:
    """Eight clips, two at a time: three processes get two, one and one batches."""
    path = tmp_path / "net.safetensors"
    save_weights(nano(), path, weights.about(configured(tiny, tmp_path), CLASSES))
    files, numbers = [], []
    clock = ("latency_mean_s", "latency_median_s", "average_inference_time_s")
    for size, run in {1: lambda *call: [call[0](*call[1:])], 2: two, 3: three}.items():
        out = tmp_path / f"{size}"
        args = settings(tiny, out, f"ckpt={path}", "eval.split=train", "eval.batch_size=2")
        for result in run(command, "eval", args):
            numbers.append({name: value for name, value in result.items() if not name.endswith(clock)})
        files.append((out / "predictions.csv").read_text())
        assert simplejson.loads((out / "results.json").read_text())["train/clips_scored"] == 8
    assert len(numbers) == 6
    assert all(found == numbers[0] for found in numbers)
    assert files[1] == files[0]
    assert files[2] == files[0]
