"""Dense anticipation: every frame of what comes is labeled from what was seen, and counted by class."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import simplejson
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import config, dist
from core.checkpoint import save_weights
from projects.sgear import average, data, dense, features, predict, weights
from projects.sgear.config import Config
from projects.sgear.dense import Outlook

FPS, LENGTH = 10.0, 200
ACTIONS = ["cut_tomato", "add_oil", "mix_dressing"]
RUNS = {"rgb-01-1": [(0, 70), (1, 130)], "rgb-02-1": [(0, 50), (1, 30), (2, 120)]}


@pytest.fixture(scope="module")
def salads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos with a label for each frame, and features that show the action of the moment."""
    root = tmp_path_factory.mktemp("salads")
    base = root / "external/breakfast_50salad_anticipation_annotations"
    splits, labels = base / "cvpr18_data/50s_splits", base / "annotations/50salads"
    (labels / "groundTruth").mkdir(parents=True)
    splits.mkdir(parents=True)
    (labels / "mapping.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(ACTIONS)))
    rows = []
    for part, name in (("train", "rgb-01-1"), ("test", "rgb-02-1")):
        (splits / f"{part}.split1.bundle").write_text(f"#bundle.txt\n{name}.txt\n")
        shown = [action for action, count in RUNS[name] for _ in range(count)]
        (labels / f"groundTruth/{name}.txt").write_text("".join(f"{ACTIONS[action]}\n" for action in shown))
        rows += [(name, n, np.eye(4)[shown[min((n - 1) // 3, LENGTH - 1)]]) for n in range(1, 3 * LENGTH + 1)]
    features.write(root / "db", rows)
    return root


def settings(root: Path, out: Path, *more: str) -> list[str]:
    return [
        "data.dataset=salads", f"data.root={root}", "data.source=features", f"data.features=[{root / 'db'}]",
        f"data.fps={FPS}", "data.frames=4", "data.rate=1", "data.tau_a=1", "data.tau_o=5", f"run.out={out}",
        "run.device=cpu", "model.input=features", "model.feature_dim=4", "model.width=64", "model.tca_blocks=0",
        "model.prototypes.share=1", "model.nearest=frame", "model.decoder.width=32", "model.decoder.layers=1",
        "model.decoder.heads=2", "model.decoder.positions=64", "loader.workers=0", *more,
    ]  # fmt: skip


def saved(args: list[str], out: Path) -> None:
    cfg = config.load(Config, None, args)
    torch.manual_seed(0)
    benchmark = data.load(cfg.data)
    save_weights(weights.build(cfg, benchmark), out / "checkpoints/best.safetensors", weights.about(cfg, benchmark))


def test_the_command_measures_eight_settings(salads: Path, tmp_path: Path) -> None:
    args = settings(salads, tmp_path / "run")
    saved(args, tmp_path / "run")
    seen: list[tuple[float, list[int], int]] = []
    choose, ahead = predict.Moments.choose, dense.Sgear.ahead

    def chosen(self: predict.Moments, end_s: float) -> object:
        choice = choose(self, end_s)
        seen.append((end_s, choice.numbers, 0))
        return choice

    def rolled(self: dense.Sgear, observed: torch.Tensor, before: torch.Tensor, steps: int) -> torch.Tensor:
        """Knows what comes: add_oil after 5 s, mix_dressing after 8 s of the video, whose steps are 1 s apart."""
        real = ahead(self, observed, before, steps)
        assert real.shape == (1, steps, 3)
        begins_s = seen[len(rollouts)][0]
        rollouts.append(steps)
        actions = [0 if begins_s + k + 1 < 5 else 1 if begins_s + k + 1 < 8 else 2 for k in range(steps)]
        return torch.eye(3)[actions][None]

    rollouts: list[int] = []
    with (
        mock.patch.object(dist, "shutdown"),
        mock.patch.object(predict.Moments, "choose", chosen),
        mock.patch.object(dense.Sgear, "ahead", rolled),
    ):
        results = dense.main(args)
    assert [end_s for end_s, _, _ in seen] == [4.0, 6.0], "20 and 30 % of 20 s"
    for end_s, numbers, _ in seen:
        assert max(numbers) / 30 <= end_s + 1e-9, "protocol: nothing is seen of what is to be labeled"
    assert rollouts == [10, 10], "half the video in steps of a second"
    assert len([name for name in results if "observe" in name]) == 8
    # The first step, 5 s, stands for all frames until 5.5 s, that at 8 s for those from 7.5 s on.
    assert results["dense/observe20_predict50"] == pytest.approx(100 * (0 / 10 + 25 / 30 + 60 / 60) / 3)
    assert results["dense/observe30_predict10"] == pytest.approx(100 * 15 / 20)
    assert simplejson.loads((tmp_path / "run/dense.json").read_text()) == results
    page = (tmp_path / "run/dense.html").read_text()
    assert all(name in page for name in ("rgb-02-1", "add_oil", "mix_dressing"))
    (value, _) = average.main([str(tmp_path / "run/dense.json")] * 2)["dense/observe20_predict50"]
    assert value == results["dense/observe20_predict50"]


def test_the_real_rollout_runs(salads: Path, tmp_path: Path) -> None:
    args = settings(salads, tmp_path / "run", "dense.observe=[0.25]", "dense.predict=[0.5]")
    saved(args, tmp_path / "run")
    with mock.patch.object(dist, "shutdown"):
        results = dense.main(args)
    assert 0 <= results["dense/observe25_predict50"] <= 100
    assert results["dense/samples_scored"] == 1


@given(
    videos=st.lists(st.lists(st.integers(-1, 3), min_size=10, max_size=60), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_moc_is_the_mean_over_classes_of_frame_accuracy(videos: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    cfg = Config.model_validate({"dense": {"observe": (0.2,), "predict": (0.5,)}})
    found, right, total = [], [0] * 4, [0] * 4
    for truth in videos:
        first, end = int(0.2 * len(truth)), int(0.7 * len(truth))
        expected = rng.integers(0, 4, end - first)
        found.append(Outlook("v", 1.0, 0.2, np.array(truth), expected))
        for label, answer in zip(truth[first:end], expected, strict=True):
            if label >= 0:
                total[label] += 1
                right[label] += label == answer
    shares = [r / t for r, t in zip(right, total, strict=True) if t]
    value = dense.measure(found, cfg)["dense/observe20_predict50"]
    assert np.isnan(value) if not shares else value == pytest.approx(100 * np.mean(shares))


def test_frames_take_the_nearest_step() -> None:
    assert dense.nearest_step(8, 2.0, 1.0).tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert dense.nearest_step(3, 1.0, 2.0).tolist() == [0, 0, 0]


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="no label for every frame"):
        dense.main(["data.dataset=ek100"])
    with pytest.raises(ValueError, match="exceed the video"):
        Config.model_validate({"dense": {"observe": (0.6,)}})
