"""Histograms of gradients: right, for TensorBoard and for the report, and without any effect on what is learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejson
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.log import Log
from core.optim import OptimConfig
from core.step import TrainStep
from projects.lta_memvit import eval, histograms, train
from projects.lta_memvit.histograms import FILE, HIGHEST, LOWEST, PER_DECADE, group, magnitudes, pictures, watch
from tests.lta_memvit.test_train import MEMVIT, weights_of
from tests.lta_memvit.tiny import settings

BINS = (HIGHEST - LOWEST) * PER_DECADE


def row(path: Path, step: int, **gradients: list[int]) -> None:
    with path.open("a") as file:
        file.write(simplejson.dumps({"step": step, "gradients": gradients}) + "\n")


@given(st.lists(st.floats(width=32), max_size=50))
def test_every_value_counts_once_where_it_belongs(values: list[float]) -> None:
    counts = magnitudes(torch.tensor(values))
    assert counts.shape == (BINS,)
    assert counts.sum() == len(values)
    for value in values:
        place = BINS - 1
        if not np.isnan(value):
            power = np.clip(np.log10(abs(np.float64(value))) if value else LOWEST, LOWEST, HIGHEST)
            place = min(int((power - LOWEST) * PER_DECADE + 1e-5), BINS - 1)
        assert counts[max(place - 1, 0) : place + 1].sum() > 0  # single precision rounds at the borders of bins


def test_known_values() -> None:
    counts = magnitudes(torch.tensor([0.0, 1e-20, 2.0, -3.0, 50.0, torch.nan, torch.inf]))
    zero = -LOWEST * PER_DECADE
    assert {i: int(n) for i, n in enumerate(counts) if n} == {0: 2, zero + 1: 2, zero + 6: 1, BINS - 1: 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone.blocks.12.attn.q.weight", "backbone.blocks.12"),
        ("backbone.s3.pathway0_res1.branch2.a.weight", "backbone.s3"),
        ("backbone.cls_token", "backbone.cls_token"),
        ("decoder.head.projections.19.bias", "decoder.head"),
        ("weight", "weight"),
    ],
)
def test_groups(name: str, expected: str) -> None:
    assert group(name) == expected


def test_gradients_are_seen_as_the_optimizer_gets_them(tmp_path: Path) -> None:
    """Of two accumulated batches together, at every second step."""
    net, log = nn.Linear(2, 1, bias=False), Log(tmp_path, tensorboard=False)
    step = TrainStep(net, OptimConfig(lr=0.0, accumulate=2, epochs=4), batches_per_epoch=2)
    watch(step, 2, log)
    for number in range(8):
        with step.forward() as forward:
            loss = forward(torch.tensor([[10.0, 1000.0]])).sum() * (1 if number % 2 else 3)  # 2 on the average
        step.backward(loss)
    log.close()
    rows = [simplejson.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [one["step"] for one in rows] == [0, 2]
    expected = magnitudes(torch.tensor([20.0, 2000.0])).tolist()
    assert all(one["gradients"] == {"weight": expected} for one in rows)


def test_nothing_is_watched_by_default(tmp_path: Path) -> None:
    net, log = nn.Linear(2, 1), Log(tmp_path, tensorboard=False)
    step = TrainStep(net, OptimConfig(), batches_per_epoch=2)
    watch(step, 0, log)
    assert not step.optimizer._optimizer_step_pre_hooks


def test_pictures_grow_to_the_right_and_large_gradients_are_at_the_top(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert pictures(path) == []
    at = {power: (power - LOWEST) * PER_DECADE for power in (-3, 1)}
    small, large = [0] * BINS, [0] * BINS
    small[at[-3]], large[at[1]] = 4, 4
    row(path, 0, a=large)
    row(path, 5, a=large, b=small)
    row(path, 5, a=small, b=small)  # a resumed run took it again
    with path.open("a") as file:
        file.write('{"step": 9, "gra')  # the disk was full
    (first, picture), (second, _) = pictures(path)
    assert first == "a: 10^2 at the top, 10^-3 at the bottom; steps 0 to 5"
    assert second.startswith("b: ")
    half = picture.shape[1] // 2
    bins = (2 + 3) * PER_DECADE
    assert picture.shape[0] % bins == 0
    cell = picture.shape[0] // bins
    dark = (picture.astype(int).sum(2) < 3 * 255).nonzero()
    assert set(zip((dark[0] // cell).tolist(), (dark[1] // half).tolist(), strict=True)) == {(3, 0), (bins - 1, 1)}


def test_many_looks_are_thinned(tmp_path: Path) -> None:
    for step in range(1000):
        row(tmp_path / FILE, step, a=[1] * BINS)
    ((text, picture),) = pictures(tmp_path / FILE)
    assert picture.shape[1] == histograms.COLUMNS * histograms.CELL
    assert text.endswith("steps 0 to 999")


def test_a_watched_run_learns_the_same_and_shows_its_gradients(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(train.summary, "describe", lambda *_, **__: "")
    more = (*MEMVIT, "optim.epochs=1")
    train.main(settings(made, tmp_path / "plain", *more))
    watched = settings(made, tmp_path / "watched", *more, "train.histograms=5")
    train.main(watched)
    plain = weights_of(tmp_path / "plain")
    assert all(value.equal(plain[name]) for name, value in weights_of(tmp_path / "watched").items())
    assert not (tmp_path / "plain" / FILE).exists()
    rows = [simplejson.loads(line) for line in (tmp_path / "watched" / FILE).read_text().splitlines()]
    assert [one["step"] for one in rows] == [0, 5, 10, 15]
    sizes: dict[str, int] = {}
    for name, value in plain.items():
        if "num_batches" not in name:
            sizes[group(name)] = sizes.get(group(name), 0) + value.numel()
    assert sum(rows[0]["gradients"]["backbone.patch_embed"]) == sizes["backbone.patch_embed"]
    board = EventAccumulator(str(tmp_path / "watched" / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    name = "backbone.patch_embed.proj.weight"
    assert {name, f"{name}.grad"} <= set(board.Tags()["histograms"])
    assert [event.step for event in board.Histograms(f"{name}.grad")] == [0, 5, 10, 15]
    eval.main(watched)
    page = (tmp_path / "watched" / "report.html").read_text()
    assert "How large gradients were" in page
    assert "backbone.blocks.0: 10^" in page
