"""Training through its command: what a run leaves, and that stopping changes no bit of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from core.checkpoint import read_weights, save_weights
from projects.lta_memvit import convert, data, model, precise, schedule, train
from projects.lta_memvit.config import MemoryConfig, ModelConfig, OptimConfig
from projects.lta_memvit.losses import criterion
from tests.lta_memvit.tiny import configured, network, settings, started

MEMVIT = (
    "task=recognition", "model.backbone=memvit_nano", "clip.crop=16", "clip.jitter=[16,20]", "optim.name=sgd",
    "optim.lr=0.01", "optim.momentum=0.9", "optim.nesterov=true", "optim.warmup_steps=3", "optim.epochs=2",
    "model.drop_path=0.2", "loader.batch_size=3",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _without_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.summary, "describe", lambda *_, **__: "")


def at_batch(number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """The criterion, which acts when it is called for the n-th time."""
    calls: list[None] = []

    def wrapped(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            act()
        return criterion(*args)

    return wrapped


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return read_weights(out / "checkpoints" / "last.safetensors")[0]


@pytest.mark.parametrize(
    "more",
    [
        MEMVIT,
        ("model.backbone=memvit_nano", "clip.crop=16", "clip.jitter=[16,20]", "optim.epochs=2", "optim.lr=0.001"),
        ("optim.epochs=2", "optim.lr=0.001", "model.aggregator=transformer", "model.heads=2", "model.layers=1"),
    ],
    ids=["memvit recognition", "memvit forecasting", "slowfast transformer"],
)
def test_a_stopped_run_goes_on_bit_for_bit(made: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Stopped in the middle of an epoch, and so in the middle of clips that are remembered."""
    whole = settings(made, tmp_path / "whole", *more)
    figures = train.main(whole)
    assert figures
    parts = settings(made, tmp_path / "parts", *more)
    with mock.patch.object(train, "criterion", at_batch(5, lambda: os.kill(os.getpid(), signal.SIGTERM))):
        assert train.main(parts) == {}
    assert train.main(parts) == figures
    ours, theirs = weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole")
    assert all(ours[name].equal(value) for name, value in theirs.items())


def test_a_frozen_backbone_stays_as_it_is(made: Path, tmp_path: Path) -> None:
    """Recognition first, then a forecaster on its backbone; by name the original's drifting statistics."""
    recognition = settings(made, tmp_path / "recognition", "task=recognition", "optim.lr=0.001")
    assert train.main(recognition).keys() >= {"val/verb_error", "val/noun_error"}
    start = tmp_path / "recognition" / "checkpoints" / "best.safetensors"
    before = read_weights(start)[0]
    for frozen in ("eval", "reference"):
        out = tmp_path / frozen
        figures = train.main(
            settings(made, out, f"model.init={start}", "model.freeze=true", f"model.frozen={frozen}", "optim.lr=0.001")
        )
        assert figures.keys() >= {"val/ed_verb", "val/ed_noun", "val/ed_action"}
        after = weights_of(out)
        trunk = [name for name in after if name.startswith("backbone.") and ".head." not in name]
        changed = {name for name in trunk if not after[name].equal(before[name])}
        drifting = {name for name in trunk if "running_" in name or "num_batches" in name}
        assert changed == (set() if frozen == "eval" else drifting)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("model.aggregator=repeat",), "nothing to learn; train its recognizer with task=recognition"),
        (("task=recognition", "model.aggregator=repeat"), "repeat"),
    ],
)
def test_what_cannot_be_trained_is_said(made: Path, tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train.main(settings(made, tmp_path / "run", *more))


def test_precise_statistics_are_plain_averages(made: Path, tmp_path: Path) -> None:
    cfg = configured(made, tmp_path, "task=recognition", "model.precise_bn=3")
    net = network(cfg).train()
    videos = [torch.randn(2, 3, 8, 32, 32) for _ in range(3)]
    norm = net.backbone.s1.pathway0_stem.bn
    maps = [net.backbone.s1.pathway0_stem.conv(model.pack(video[:, None])[0][:, 0]) for video in videos]
    assert precise.update(net, videos) == 3
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3, 4)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3, 4)) for m in maps]).mean(0))
    assert norm.momentum == 0.1
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    assert precise.update(net.eval(), videos) == 0
    assert all(kept[name].equal(value) for name, value in net.state_dict().items())


def test_precise_statistics_end_every_epoch_and_move_nothing_else(made: Path, tmp_path: Path) -> None:
    found = {}
    for count in (0, 2):
        out = tmp_path / f"{count}"
        train.main(settings(made, out, "task=recognition", f"model.precise_bn={count}", "optim.lr=0.001"))
        found[count] = weights_of(out)
    differing = {name for name, value in found[0].items() if not value.equal(found[2][name])}
    assert differing
    assert all("running_" in name or "num_batches" in name for name in differing)


def test_decay_of_biases_and_norms() -> None:
    cfg = ModelConfig(backbone="slowfast_nano")
    with_norms = model.build(cfg, MemoryConfig(), task="recognition", classes=(2, 3), frames=8, crop=32)
    assert [pattern for pattern, _ in schedule.decay(with_norms, OptimConfig())] == ["bn", ""]
    assert [pattern for pattern, _ in schedule.decay(nn.Linear(2, 2), OptimConfig())] == [""]
    assert schedule.decay(with_norms, OptimConfig(decay="matrices")) == []


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_schedules_rise_in_a_line_and_are_continuous(name: str) -> None:
    cfg = OptimConfig(schedule=name, epochs=4, warmup_steps=10, final_lr=0.1)
    rates = [schedule.lr_factor(step, cfg, 40, 10) for step in range(41)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert all(before >= after for before, after in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1.0 if name == "constant" else 0.1)
    short = OptimConfig(schedule=name, epochs=4, warmup_steps=100)
    assert max(schedule.lr_factor(step, short, 40, 10) for step in range(41)) == pytest.approx(0.4)


def test_weights_for_training_name_what_is_fresh(made: Path, tmp_path: Path) -> None:
    """A recognition network without weights for memory starts a MeMViT; the log says what is random."""
    cfg = configured(made, tmp_path / "run", *MEMVIT)
    bare = {k: v for k, v in network(cfg).state_dict().items() if "compress" not in k and "_mem_" not in k}
    start = tmp_path / "bare.safetensors"
    save_weights(bare, start)
    wish = configured(made, tmp_path / "run", *MEMVIT, f"model.init={start}")
    with started(wish) as job:
        net = train.build(wish, data.load(wish.data), job)
    assert "the file has no weights for memory" in (tmp_path / "run" / "run.log").read_text()
    assert net.get_parameter("backbone.patch_embed.proj.weight").equal(bare["backbone.patch_embed.proj.weight"])
    assert convert.identify(net.state_dict()).backbone == "memvit_nano"
