"""Training through its command: what a run leaves, that it learns, and that stopping changes no bit of it."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simplejson
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from core.checkpoint import read_weights
from core.optim import groups
from projects.sgear import eval, make_prototypes, optim, train
from projects.sgear.config import ModuleRate, SgearOptim
from projects.sgear.losses import Criterion
from tests.runs import newest, rows, same
from tests.sgear.tiny import ACTIONS, NOUNS, VERBS, configured, settings, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny EK100 with language prototypes; tests only read it."""
    root = tmp_path_factory.mktemp("tiny") / "data"
    write_dataset(root)
    labels = root / "external/rulstm/RULSTM/data/ek100/actions.csv"
    make_prototypes.language("epic100", labels, root, "words")
    return root


def semantic(root: Path) -> tuple[str, ...]:
    """Everything that a loss can ask for, and everything that could go wrong with a resumed run."""
    return (
        f"model.prototypes.language={root / 'encodings_epic100.pth'}", "loss.semantic=2", "loss.past_semantic=0.5",
        "loss.mixup=0.4", "model.dropout=0.3", "model.decoder.dropout=0.2", "model.feature_mixup=true",
        "model.labels=[action, verb, noun]", "loss.past_cls_verb=0.5", "loss.past_cls_noun=0.5", "optim.warmup=1",
        "optim.accumulate=2", "optim.plateau=1", "data.strategy=random_clip", "data.dynamic=true",
    )  # fmt: skip


def at_batch(number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """A maker of criteria that act when they are called for the n-th time."""
    make = train.make_criterion

    def making(*args: Any) -> Any:
        criterion = make(*args)
        calls: list[None] = []

        class Watched(Criterion):
            def __init__(self) -> None:
                self.__dict__ = criterion.__dict__

            def __call__(self, *given: Any) -> dict[str, Tensor]:
                if given[1]["label"].shape[0] > 1:  # the probe of idle parts has one sample
                    calls.append(None)
                if len(calls) == number:
                    act()
                return super().__call__(*given)

        return Watched()

    return making


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without their test and its report, and do not count multiply-adds: seconds that say nothing here."""
    monkeypatch.setattr(train.eval, "test", lambda *_: {"tested": 1.0})
    monkeypatch.setattr(train.summary, "describe", lambda *_: "")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A whole run that has time to learn."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    more = (f"model.prototypes.language={data / 'encodings_epic100.pth'}", "loss.semantic=1", "optim.name=adamw")
    return out, train.main(settings(data, out, *more, "optim.lr=1e-2", "optim.epochs=20"))


# --------------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_learns_what_comes_next(finished: tuple[Path, dict[str, float]]) -> None:
    """Features before an action tell it; a fifth of the samples would be right by chance."""
    assert finished[1]["val/action/top1"] >= 50


def test_a_run_directory_holds_what_others_read(finished: tuple[Path, dict[str, float]]) -> None:
    out, results = finished
    names = {"config.yaml", "environment.json", "run.log", "metrics.jsonl", "checkpoints", "results.json"}
    assert names <= {path.name for path in out.iterdir()}
    files = {path.name for path in (out / "checkpoints").iterdir()}
    assert {"best.safetensors", "last.safetensors"} <= files
    assert simplejson.loads((out / "results.json").read_text())["val/action/top1"] == results["val/action/top1"]
    tensors, about = read_weights(out / "checkpoints/last.safetensors")
    assert about["classes"] == [f"{VERBS[verb]} {NOUNS[noun]}" for verb, noun in ACTIONS]
    assert (about["verbs"], about["nouns"]) == (list(VERBS), list(NOUNS))
    assert about["clip"] == {"frames": 4, "rate": 2.0, "tau_a": 0.5, "tau_o": 2.0, "strategy": "last_clip"}
    assert about["model"]["width"] == 64
    assert {"cls_map_verb_action", "cls_map_noun_action", "vis_prototypes"} <= set(tensors)


def test_every_term_is_logged(finished: tuple[Path, dict[str, float]]) -> None:
    table = rows(finished[0])
    terms = {"total", "cls_action", "past_cls_action", "feat", "semantic", "distance"}
    batches = [row for row in table if "train/lr" in row]
    assert len(batches) == 60
    assert all({f"train/loss_{term}" for term in terms} <= set(row) for row in batches)
    assert batches[-1]["train/loss_cls_action"] < 1 < batches[0]["train/loss_cls_action"]
    epochs = [row for row in table if "train/epoch_loss" in row]
    assert [row["step"] for row in epochs] == [3 * (epoch + 1) for epoch in range(20)]
    assert all("val/action/recall5" in row for row in epochs)


def test_testing_alone(data: Path, finished: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    """test_only, with the weights of another run, as the published -t and test_only=true."""
    weights = finished[0] / "checkpoints/best.safetensors"
    language = f"model.prototypes.language={data / 'encodings_epic100.pth'}"
    results = train.main(settings(data, tmp_path / "other", language, "test_only=true", f"ckpt={weights}"))
    assert results["val/action/top1"] == finished[1]["val/action/top1"]
    assert not (tmp_path / "other" / "checkpoints").exists()
    with pytest.raises(ValueError, match="holds no weights; train first"):
        train.main(settings(data, tmp_path / "empty", "test_only=true"))


def test_a_finished_run_called_again_is_only_tested(
    data: Path, finished: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    before = {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it trained")

    monkeypatch.setattr(train.TrainStep, "backward", never)
    more = (f"model.prototypes.language={data / 'encodings_epic100.pth'}", "loss.semantic=1", "optim.name=adamw")
    results = train.main(settings(data, out, *more, "optim.lr=1e-2", "optim.epochs=20"))
    assert results["val/action/top1"] == finished[1]["val/action/top1"]
    assert {path: path.read_bytes() for path in (out / "checkpoints").iterdir()} == before


def test_weights_of_other_classes_are_refused(
    data: Path, finished: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data")
    table = tmp_path / "data/external/rulstm/RULSTM/data/ek100/actions.csv"
    table.write_text(table.read_text().replace("take cup", "grab cup"))
    weights = finished[0] / "checkpoints/best.safetensors"
    with pytest.raises(ValueError, match="trained on other classes"):
        eval.main(settings(tmp_path / "data", tmp_path / "run", f"ckpt={weights}"))


# ---------------------------------------------------------------------------------------------------- stopped, resumed


def result(out: Path) -> tuple[Any, ...]:
    """Everything that a run has learned and said, without the clock: the checkpoint holds random states too."""
    weights = [read_weights(out / f"checkpoints/{name}.safetensors") for name in ("last", "best")]
    return newest(out), weights, rows(out)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What the run with everything that could go wrong comes to when nothing stops it, without workers."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.eval, "test", lambda *_: {})
        out = tmp_path_factory.mktemp("straight") / "run"
        train.main(settings(data, out, *semantic(data), "optim.epochs=3"))
    return result(out)


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    ("workers", "batch"), [(0, 2), (2, 7), (0, 3), (0, 4)],
    ids=["in mid-epoch", "with workers", "at an epoch's end", "in mid-step"],
)  # fmt: skip
def test_stopped_and_resumed_equals_uninterrupted(
    workers: int, batch: int, data: Path, tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(data, tmp_path, *semantic(data), "optim.epochs=3", f"loader.workers={workers}")
    with monkeypatch.context() as patch:
        patch.setattr(train, "make_criterion", at_batch(batch, terminate))
        assert train.main(args) == {}
    assert train.main(args) == {"tested": 1.0}
    assert same(result(tmp_path), straight)
    outcomes = [s["outcome"] for s in simplejson.loads((tmp_path / "environment.json").read_text())["sessions"]]
    assert outcomes == ["stopped by SIGTERM", "finished"]


# ---------------------------------------------------------------------------------------------- rates and what learns


@pytest.mark.usefixtures("untested")
def test_accumulated_gradients_are_summed_as_released_or_averaged(data: Path, tmp_path: Path) -> None:
    """With SGD, a sum over two batches is a mean at twice the rate and half the decay; momentum follows."""
    more = ("optim.accumulate=3", "optim.epochs=1", "optim.schedule=constant", "run.seed=5")
    pairs = {"sum": ("0.01", "1e-3"), "mean": ("0.03", str(1e-3 / 3))}
    for way, (lr, decay) in pairs.items():
        wishes = (f"optim.accumulation={way}", f"optim.lr={lr}", f"optim.weight_decay={decay}")
        train.main(settings(data, tmp_path / way, *more, *wishes))
    found = [read_weights(tmp_path / way / "checkpoints/last.safetensors")[0] for way in pairs]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.usefixtures("untested")
def test_parts_have_rates_of_their_own(data: Path, tmp_path: Path) -> None:
    parts = "[{module: future_predictor, lr: 0, weight_decay: 0}, {module: classifiers, lr: 0.5, weight_decay: 0}]"
    train.main(settings(data, tmp_path / "run", f"optim.modules={parts}", "optim.epochs=1"))
    learned, _ = read_weights(tmp_path / "run/checkpoints/last.safetensors")
    cfg = configured(data, tmp_path / "run")
    torch.manual_seed(cfg.run.seed)
    start = train.weights.build(cfg, train.data.load(cfg.data)).state_dict()
    changed = {name for name in start if not torch.equal(start[name], learned[name])}
    assert not any(name.startswith("future_predictor") for name in changed)
    assert {"classifiers.action.weight", "ProtAttn.gate", "balancer"} <= changed


def test_groups_as_released() -> None:
    """Two groups, biases (and `.bn`) and the rest; norms decay, biases by their share."""
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    cfg = SgearOptim(name="sgd", lr=0.1, weight_decay=0.01, bias_decay_scale=0.5)
    found = {
        (group["weight_decay"], group["lr_scale"]): len(group["params"])
        for group in groups(net, 0.0, optim.rules(net, cfg))
    }
    assert found == {(0.01, 1.0): 2, (0.005, 1.0): 2}
    with pytest.raises(ValueError, match=r"optim\.modules names 'head'; the model has 0, 1"):
        optim.rules(net, cfg.model_copy(update={"modules": (ModuleRate(module="head", lr=1, weight_decay=0),)}))


def test_rates_can_follow_processes_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim.dist, "world", lambda: type("World", (), {"size": 4}))
    parts = (ModuleRate(module="a", lr=0.5, weight_decay=0),)
    for way, factor in (("none", 1), ("processes", 4), ("samples", 12)):
        cfg = optim.scaled(SgearOptim(lr=0.1, scale_lr=way, modules=parts), 3)  # type: ignore[arg-type]
        assert (cfg.lr, cfg.modules[0].lr) == (pytest.approx(0.1 * factor), pytest.approx(0.5 * factor))


@examples(max_examples=25)
@given(batches=st.integers(1, 12), accumulate=st.integers(1, 5), warmup=st.integers(0, 2))
def test_a_step_has_the_rate_of_its_last_batch(batches: int, accumulate: int, warmup: int) -> None:
    cfg = SgearOptim(lr=1.0, epochs=4, warmup=warmup, accumulate=accumulate)
    at = optim.per_step(cfg, batches, optim.Plateau(0, 0.1))
    last = [
        epoch * batches + min(begin + accumulate, batches) - 1
        for epoch in range(4)
        for begin in range(0, batches, accumulate)
    ]
    assert [at(step) for step in range(len(last))] == [optim.factor(batch, cfg, batches) for batch in last]
    assert all(0 <= optim.factor(batch, cfg, batches) <= 1 for batch in range(4 * batches))


def test_other_schedules_are_cores() -> None:
    cfg = SgearOptim(lr=1.0, epochs=4, schedule="linear")
    assert [optim.factor(i, cfg, 2) for i in (0, 4, 8)] == [1.0, 0.5, 0.0]


def test_a_plateau_lowers_the_rate_and_remembers() -> None:
    plateau = optim.Plateau(patience=1, gamma=0.1)
    for value, scale in ((1.0, 1.0), (0.5, 1.0), (0.9, 0.1), (2.0, 0.1), (1.0, 0.1), (1.0, 0.01)):
        plateau.see(value)
        assert plateau.scale == pytest.approx(scale)
    again = optim.Plateau(patience=1, gamma=0.1)
    again.load_state_dict(plateau.state_dict())
    assert again.state_dict() == plateau.state_dict()
    never = optim.Plateau(patience=0, gamma=0.1)
    for _ in range(5):
        never.see(-math.inf)
    assert never.scale == 1.0


# ---------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    "more",
    [
        ("model.kind=avt", "loss.distance=0"),
        ("loss.cls_action=0", "loss.past_cls_action=0"),
        ("loss.balance=true", "loss.label_smoothing=0.1"),
        ("model.compat=true", "loss.mask=false"),
        ("optim.name=adam", "optim.schedule=multistep", "optim.milestones=[1]"),
        ("precision=bf16",),
    ],
    ids=",".join,
)
def test_other_ways_to_train(more: tuple[str, ...], data: Path, tmp_path: Path) -> None:
    train.main(settings(data, tmp_path, *more))
    table = rows(tmp_path)
    assert [row["step"] for row in table if "train/epoch_loss" in row] == [3, 6]
    assert all(math.isfinite(row["train/loss_total"]) for row in table if "train/loss_total" in row)
