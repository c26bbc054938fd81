"""Training the diffusion stage through its command: what learns, what is drawn, and that stopping changes no bit."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from core.checkpoint import read_weights
from projects.lego import batches, model, train
from projects.lego.losses import criterion
from projects.lego.model import Schedule, layouts
from tests.lego.tiny import configured, settings
from tests.runs import newest, rows, same

EVERYTHING = ("optim.accumulate=2", "loader.batch_size=1", "optim.ema=0.9", "model.dropout=0.1")


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


def result(out: Path) -> tuple[Any, ...]:
    """Everything that a run has learned and said, without the clock."""
    return newest(out), [read_weights(out / f"checkpoints/{name}.safetensors") for name in ("last", "best")], rows(out)


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A whole run of the published kind: cached, frozen conditioning, both features."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, train.main(settings(home, out, "optim.ema=0.9", "show.every=3", "show.count=2", "show.steps=2"))


# -------------------------------------------------------------------------------------------------- what a run leaves


def test_a_run_learns_and_leaves_what_it_says(home: Path, finished: tuple[Path, dict[str, float]]) -> None:
    out, metrics = finished
    names = {"config.yaml", "environment.json", "run.log", "metrics.jsonl", "tensorboard", "checkpoints"}
    assert {path.name for path in out.iterdir()} == names
    assert set(metrics) == {f"val/loss_{name}{ema}" for name in ("simple", "vlb") for ema in ("", "_ema")}
    epochs = [row for row in rows(out) if "train/loss_epoch" in row]
    assert [row["step"] for row in epochs] == [3, 6]
    assert epochs[1]["val/loss_simple"] < epochs[0]["val/loss_simple"] < 1.0
    weights, about = read_weights(out / "checkpoints/last.safetensors")
    assert about["model"]["width"] == 32
    assert about["size"] == [32, 32]
    assert about["metrics"]["val/loss_simple_ema"] == pytest.approx(metrics["val/loss_simple_ema"])
    assert same(weights, newest(out)["parts"]["step"]["average"]), "what is published is the moving average"


def test_the_conditioning_keeps_its_random_values_and_the_unet_learns(
    home: Path, finished: tuple[Path, dict[str, float]]
) -> None:
    learned = newest(finished[0])["parts"]["model"]
    torch.manual_seed(23)
    fresh = model.build(configured(home, finished[0]).model)
    layouts.load_unet(fresh, layouts.read(home / "sd.ckpt"), blocks=1)
    for name, value in fresh.state_dict().items():
        moved = not torch.equal(learned[name], value)
        assert moved == name.startswith("unet."), name
    assert fresh.conditioner.has_clone_layers


def test_samples_of_the_run_are_shown(finished: tuple[Path, dict[str, float]]) -> None:
    events = EventAccumulator(str(finished[0] / "tensorboard"), size_guidance={"images": 0}).Reload()
    (tag, *_) = events.Tags()["images"]
    shown = events.Images(tag)
    assert (tag.split("/")[0], [event.step for event in shown][-1]) == ("samples", 6)
    assert (shown[0].width, shown[0].height) == (3 * 32, 2 * 32), "source, drawn and target of two pairs"


@pytest.mark.parametrize("features", ["both", "image", "text"])
def test_a_trained_conditioner_learns_and_is_averaged(home: Path, tmp_path: Path, features: str) -> None:
    more = ("model.train_conditioner=true", f"model.features={features}", "optim.epochs=1", "optim.ema=0.5")
    train.main(settings(home, tmp_path / "run", *more))
    state = newest(tmp_path / "run")["parts"]
    torch.manual_seed(23)
    fresh = model.build(configured(home, tmp_path, *more).model).conditioner.state_dict()
    assert {name.split(".")[0] for name in fresh} == {
        "both": {"projection_img", "projection_txt", "self_attn_mix"},
        "image": {"projection_img"},
        "text": {"projection_txt", "self_attn_mix"},
    }[features]
    for name, value in fresh.items():
        assert not torch.equal(state["model"][f"conditioner.{name}"], value), name
        average = state["step"]["average"][f"conditioner.{name}"]
        assert not torch.equal(average, state["model"][f"conditioner.{name}"]), name


def test_the_baseline_needs_no_features(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "home"
    shutil.copytree(home, root, ignore=shutil.ignore_patterns("ego4d"))
    more = ("model.features=none", "data.prompt=action", "optim.epochs=1")
    assert train.main(settings(root, tmp_path / "run", *more))["val/loss_simple"] < 2
    assert not any(name.startswith("conditioner") for name in newest(tmp_path / "run")["parts"]["model"])


# ----------------------------------------------------------------------------------------------------------- caches


def test_caches_change_nothing(home: Path, tmp_path: Path) -> None:
    """The same figures with and without them, mirrored pairs included; a second run computes nothing again."""
    more = ("optim.epochs=1", "data.flip=0.5", "model.dropout=0", "loader.batch_size=3")
    found = {}
    for use in ("all", "latents", "text", "none"):
        out = tmp_path / use / "run"
        train.main(settings(home, out, *more, f"cache.use={use}"))
        found[use] = rows(out)
    for use in ("latents", "text", "none"):
        for row, wanted in zip(found[use], found["all"], strict=True):
            assert row == pytest.approx(wanted, rel=2e-4, abs=1e-6), use
    again = tmp_path / "all" / "again"
    train.main(settings(home, again, *more))
    assert "latents of" not in (again / "run.log").read_text()
    assert rows(again) == found["all"]


def test_a_cache_that_was_interrupted_goes_on(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after a file of each kind: what is there is kept, the rest is computed, and training is the same."""
    monkeypatch.setattr("projects.lego.cache.ROWS_PER_FILE", 2)
    args = settings(home, tmp_path / "run", "optim.epochs=1", "sample.batch_size=1")
    encode, calls = batches.cache.encode, []

    def interrupted(*given: Any) -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            terminate()
        return encode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(batches.cache, "encode", interrupted)
        assert train.main(args) == {}
    (folder,) = (tmp_path / "cache").glob("latents-*-flipped")
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(first) == 2
    assert train.main(args)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path in first} == first
    assert len(list(folder.iterdir())) == 3
    train.main(settings(home, tmp_path / "other" / "run", "optim.epochs=1"))
    assert rows(tmp_path / "other" / "run") == rows(tmp_path / "run")


def test_pairs_that_cannot_be_read_are_named_and_left_out(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "home"
    shutil.copytree(home, root)
    frames = sorted((root / "data/EgoGen/ego4d.fho/train").rglob("*.jpg"))
    frames[0].write_bytes(b"no picture")
    frames[2].unlink()
    with pytest.raises(ValueError, match="2 of 6 training pairs cannot be read"):
        train.main(settings(root, tmp_path / "strict" / "run", "optim.epochs=1"))
    out = tmp_path / "run"
    train.main(settings(root, out, "optim.epochs=1", "loader.max_bad=0.5"))
    assert (out / "missing.txt").read_text() == f"{frames[2]}\n"
    log = (out / "run.log").read_text()
    assert f"1 files are missing, {frames[2]}" in log
    assert str(frames[0]) in log
    assert "4 train" in log


# --------------------------------------------------------------------------------------------- stopped, killed, resumed


@pytest.fixture(scope="module")
def straight(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What the run with everything that could go wrong comes to when nothing stops it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("straight") / "run"
    train.main(settings(home, out, *EVERYTHING))
    return result(out)


@pytest.mark.parametrize(
    ("workers", "call", "left"),
    [(0, 4, 2), (2, 15, 4), (0, 6, 3), (0, 9, 3)],
    ids=["mid-epoch", "workers, mid-step", "end of epoch", "in validation"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    workers: int, call: int, left: int, home: Path, tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(home, tmp_path / "run", *EVERYTHING, f"loader.workers={workers}")
    with monkeypatch.context() as patch:
        patch.setattr(train, "criterion", at_batch(call, terminate))
        assert train.main(args) == {}
    assert max((tmp_path / "run/checkpoints").glob("*.pt")).name == f"step_{left:09d}.pt"
    assert train.main(args)
    assert same(result(tmp_path / "run"), straight)


def killed(args: list[str]) -> None:
    """In a process of its own: train until the fourth batch of the second epoch, then die without a word."""
    train.criterion = at_batch(13, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train.main(args)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill without a word")
def test_killed_and_resumed_equals_uninterrupted(home: Path, tmp_path: Path, straight: Any) -> None:
    args = settings(home, tmp_path / "run", *EVERYTHING)
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(args,))  # autograd survives no fork
    process.start()
    process.join(150)
    assert process.exitcode == -signal.SIGKILL
    assert train.main(args)
    assert same(result(tmp_path / "run"), straight)


# -------------------------------------------------------------------------------------------------- what chance decides


def test_draws_depend_on_seed_epoch_and_sample_alone(home: Path, tmp_path: Path) -> None:
    cfg, schedule = configured(home, tmp_path), Schedule()
    moments = torch.randn(3, 8, 4, 4)
    ids = ["a", "b", "c"]
    whole = train.draws(ids, moments, cfg, schedule, epoch=1, number=5)
    part = train.draws(ids[1:], moments[1:], cfg, schedule, epoch=1, number=2)
    assert same(tuple(value[1:] for value in whole), tuple(part))
    later = train.draws(ids, moments, cfg, schedule, epoch=2, number=5)
    assert not torch.equal(whole.noise, later.noise)
    assert not torch.equal(whole.timesteps, later.timesteps)
    reference = configured(home, tmp_path, "diffusion.draws=reference")
    here, there = (
        train.draws(names, moments, reference, schedule, epoch=1, number=5) for names in (ids, ["x", "y", "z"])
    )
    assert same(tuple(here), tuple(there)), "all processes draw alike"
    assert not torch.equal(here.noise, train.draws(ids, moments, reference, schedule, epoch=1, number=6).noise)


def test_conditions_are_dropped_in_the_published_shares() -> None:
    text, source = train.condition_dropout(torch.linspace(0, 1, 20_001)[:-1], 0.05)
    kinds = {(t, s): float(((text == t) & (source == s)).float().mean()) for t in (True, False) for s in (1.0, 0.0)}
    assert kinds == pytest.approx(
        {(True, 1.0): 0.05, (True, 0.0): 0.05, (False, 0.0): 0.05, (False, 1.0): 0.85}, abs=1e-3
    )


def test_times_and_posterior_samples_are_distributed_as_they_should(home: Path, tmp_path: Path) -> None:
    cfg, schedule = configured(home, tmp_path), Schedule()
    moments = torch.cat([torch.full((400, 4, 4, 4), 2.0), torch.full((400, 4, 4, 4), 0.0)], 1)
    drawn = train.draws([str(i) for i in range(400)], moments, cfg, schedule, epoch=0, number=0)
    assert float(drawn.timesteps.float().mean()) == pytest.approx(499.5, abs=60)
    assert int(drawn.timesteps.max()) <= 999
    latents = drawn.latents / cfg.diffusion.scale_factor
    assert float(latents.mean()) == pytest.approx(2.0, abs=0.03)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.03)
    assert float(drawn.noise.std()) == pytest.approx(1.0, abs=0.03)
    assert abs(float((drawn.noise * (latents - 2)).mean())) < 0.03, "independent of each other"


def test_in_reference_mode_drop_out_is_alike_too(home: Path, tmp_path: Path) -> None:
    found = {}
    for mode in ("reference", "sample"):
        for rank in (0, 1):
            torch.manual_seed(23 + rank)  # as a run seeds its processes
            train.seed_alike(configured(home, tmp_path, f"diffusion.draws={mode}"))
            found[mode, rank] = torch.rand(2)
    assert torch.equal(found["reference", 0], found["reference", 1])
    assert not torch.equal(found["sample", 0], found["sample", 1])
