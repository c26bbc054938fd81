"""Evaluation: every sample once on any number of processes, figures, and what a run's folder holds."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import simplejson
import torch
from torch import nn

from core import config, dist
from core.checkpoint import save_weights
from core.data import Loader, LoaderConfig
from projects.sgear import data, eval, report, scores, weights
from projects.sgear.config import Config
from tests.dist.pool import Team

FEATURES = Path(__file__).parents[2] / "projects/sgear/configs/demo_features.yaml"


def settings(kitchen: Path, *more: str) -> Config:
    language = f"model.prototypes.language={kitchen / 'encodings_epic100.pth'}"
    return config.load(Config, FEATURES, [f"data.root={kitchen}", language, "loader.workers=0", *more])


class Known(nn.Module):
    """Says of every sample what its last vector resembles: a stand-in whose answers are known."""

    def forward(self, features: torch.Tensor) -> Any:
        return SimpleNamespace(logits={"action": features.mean(1)[:, :20]})


def found_in(kitchen: Path, batch: int = 32) -> dict[str, Any]:
    benchmark = data.load(settings(kitchen).data)
    loader = Loader(benchmark.dataset("val"), LoaderConfig(batch_size=batch, workers=0), train=False)
    found = eval.evaluate(Known(), loader)
    assert found is not None
    return found


def test_every_sample_comes_once(kitchen: Path) -> None:
    found = found_in(kitchen)
    benchmark = data.load(settings(kitchen).data)
    segments = benchmark.clips("val").segments
    assert sorted(found["id"]) == sorted(segments.id.tolist())
    assert sorted(found["index"].tolist()) == list(range(144))
    np.testing.assert_array_equal(found["label"], segments.action[found["index"]])
    assert found["logits_action"].shape == (144, 20)
    assert float(found["margin_s"].min()) > -1e-9


@pytest.mark.dist
def test_two_processes_find_what_one_finds(two: Team, kitchen: Path) -> None:
    alone = found_in(kitchen, 7)
    for found in two(found_in, kitchen, 7):
        assert found["id"] == alone["id"]
        for name, values in alone.items():
            if name != "id":
                np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_a_stop_is_no_result(kitchen: Path) -> None:
    benchmark = data.load(settings(kitchen).data)
    loader = Loader(benchmark.dataset("val"), LoaderConfig(batch_size=32, workers=0), train=False)
    assert eval.evaluate(Known(), loader, stopping=lambda: True) is None
    with pytest.raises(ValueError, match="no sample could be read"):
        eval.measure({"id": []}, benchmark)


def test_figures_of_known_answers(kitchen: Path) -> None:
    benchmark = data.load(settings(kitchen).data)
    found = found_in(kitchen)
    found["logits_action"] = np.eye(20)[found["label"]] * 9
    measured = eval.measure(found, benchmark)
    assert {measured[f"{space}/top1"] for space in ("verb", "noun", "action")} == {100.0}
    assert measured["official/action"] == 100.0
    assert measured["action/recall5_unseen"] == 100.0
    found["logits_action"] = -found["logits_action"]
    assert eval.measure(found, benchmark)["action/top1"] == 0.0


@pytest.fixture(scope="module")
def tested(kitchen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the evaluation of a network without training, through the command."""
    out = tmp_path_factory.mktemp("eval") / "run"
    cfg = settings(kitchen)
    benchmark = data.load(cfg.data)
    torch.manual_seed(0)
    save_weights(weights.build(cfg, benchmark), out / "w.safetensors", weights.about(cfg, benchmark))
    language = f"model.prototypes.language={kitchen / 'encodings_epic100.pth'}"
    places = [f"data.root={kitchen}", f"run.out={out}", f"ckpt={out / 'w.safetensors'}", language]
    args = [str(FEATURES), *places, "loader.workers=0", "run.device=cpu"]
    with mock.patch.object(dist, "shutdown"):
        eval.main(args)
        eval.main([*args, "eval.split=test"])
        eval.main([*args, "eval.tau_a=[0.25,1.5]"])
    return out


def test_a_run_holds_scores_figures_and_a_report(tested: Path) -> None:
    names = {path.name for path in tested.iterdir()}
    assert {"results.json", "predictions.csv", "report.html", "scores_val.npz", "scores_test.npz"} <= names
    results = simplejson.loads((tested / "results.json").read_text())
    assert results["val/samples_scored"] == results["val/samples_expected"] == 144
    assert results["val/margin_min_s"] == 0.0
    arrays = scores.read_file(tested / "scores_val.npz")
    assert arrays["logits_action"].shape == (144, 20)
    assert "action/top1" not in simplejson.loads(str(scores.read_file(tested / "scores_test.npz")["about"]))
    rows = list(csv.DictReader((tested / "predictions.csv").open()))
    assert len(rows) == 144
    assert float(rows[0]["share_1"]) >= float(rows[0]["share_5"])


def test_other_anticipation_times_are_those_of_data_tau_a(kitchen: Path, tested: Path) -> None:
    results = simplejson.loads((tested / "results.json").read_text())
    net, _ = weights.convert.open_model(tested / "w.safetensors")
    for tau_a in (0.25, 1.5):
        cfg = settings(kitchen, f"data.tau_a={tau_a}")
        benchmark = data.load(cfg.data)
        loader = Loader(benchmark.dataset("val"), LoaderConfig(batch_size=9, workers=0), train=False)
        found = eval.evaluate(net, loader)
        assert found is not None
        for name, value in eval.measure(found, benchmark).items():
            assert results[f"val/tau_{tau_a:g}/{name}"] == pytest.approx(value, nan_ok=True), name
        assert results[f"val/tau_{tau_a:g}/margin_min_s"] >= 0
    assert "Anticipation times" in (tested / "report.html").read_text()


def test_the_report_states_the_protocol(tested: Path) -> None:
    page = (tested / "report.html").read_text()
    assert "No clip reaches the limit, 0.5 s before its action: the latest feature ends 0.0000 s before it." in page
    for text in ("class-mean recall@5", "challenge, unseen kitchens", "take cup", "Confusions of verbs"):
        assert text in page


@pytest.mark.parametrize(
    ("margin_s", "more", "words"),
    [
        (0.02, [], "no clip reaches the limit, 0.5 s before its action: the latest feature ends 0.0200 s before it"),
        (-0.02, [], "PROTOCOL BROKEN: a feature ends 0.0200 s after the limit"),
        (0.0, ["data.source=video", "model.input=video", "model.vit.image=32", "pixels.train_short_side=[32,32]",
               "pixels.short_side=32"], "PROTOCOL BROKEN: a frame begins"),
        (0.0, ["data.tau_a=-1"], "recognition: clips reach into the action"),
    ],
)  # fmt: skip
def test_the_protocol_in_words(kitchen: Path, margin_s: float, more: list[str], words: str) -> None:
    assert report.protocol(margin_s, settings(kitchen, *more)).startswith(words)
