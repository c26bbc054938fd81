"""core.data over several processes: together they see what one process sees."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import pytest
import torch

from core import dist
from core.data import Loader, LoaderConfig, SampleError
from tests.dist.pool import Team

SAMPLES = 26
Rows = list[tuple[str, float, float]]


class Numbers:
    """Sample i is i, with a draw of its generator; some are bad."""

    def __init__(self, count: int = SAMPLES, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        if index in self.bad:
            raise SampleError(f"{index}.mp4", "no frames")
        return {"id": f"s{index:02}", "x": torch.tensor([float(index), rng.random()])}


def jitter(batch: dict[str, Any], rngs: list[random.Random]) -> dict[str, Any]:
    return batch | {"noise": torch.tensor([rng.random() for rng in rngs])}


def rows(batch: dict[str, Any]) -> Rows:
    return list(zip(batch["id"], batch["x"][:, 1].tolist(), batch["noise"].tolist(), strict=True))


def training(batch_size: int, workers: int, start: dict[str, int] | None = None) -> list[Rows]:
    loader = Loader(Numbers(), LoaderConfig(batch_size=batch_size, workers=workers), train=True, transform=jitter)
    if start is not None:
        loader.load_state_dict(start)
    return [rows(batch) for _ in loader.epochs(2) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_the_batches_of_one(two: Team, workers: int) -> None:
    alone = training(8, 0)
    first, second = two(training, 4, workers)
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    resumed = two(training, 4, workers, {"epoch": 0, "batch": 3})
    assert [a + b for a, b in zip(*resumed, strict=True)] == alone[3:]


def test_three_processes_share_an_uneven_tail(three: Team) -> None:
    parts = three(training, 3, 0)
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == training(9, 0)
    assert [[len(batch) for batch in part[:3]] for part in parts] == [[3, 3, 2], [3, 3, 3], [3, 3, 3]]


def evaluation(bad: tuple[int, ...], workers: int) -> dict[str, Any]:
    loader = Loader(Numbers(bad=bad), LoaderConfig(batch_size=4, workers=workers), train=False, transform=jitter)
    batches = [rows(batch) for batch in loader]
    own = sum(float(value) for batch in batches for _, value, _ in batch)
    coverage = loader.coverage()
    return {
        "batches": batches,
        "length": len(loader),
        "metric": dist.mean({"sum": own})["sum"] * dist.world().size / coverage.scored,
        "coverage": (coverage.expected, coverage.scored, coverage.bad),
    }


@pytest.mark.parametrize("bad", [(), (0, 9, 25)])
def test_evaluation_is_the_same_on_one_two_and_three(two: Team, three: Team, bad: tuple[int, ...]) -> None:
    alone = evaluation(bad, 0)
    assert alone["coverage"] == (SAMPLES, SAMPLES - len(bad), {f"{i}.mp4": "no frames" for i in bad})
    for answers in (two(evaluation, bad, 0), three(evaluation, bad, 0)):
        assert sorted(batch for answer in answers for batch in answer["batches"]) == alone["batches"]
        for answer in answers:
            assert answer["coverage"] == alone["coverage"]
            assert answer["metric"] == pytest.approx(alone["metric"], rel=1e-12)
    assert [answer["length"] for answer in three(evaluation, bad, 0)] == [3, 2, 2]


def trained(batch_size: int) -> list[float]:
    """A linear model over two epochs whose last batch is incomplete but divides evenly."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    net = dist.wrap(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    loader = Loader(Numbers(), LoaderConfig(batch_size=batch_size, workers=0), train=True)
    for _ in loader.epochs(2):
        for batch in loader:
            optimizer.zero_grad()
            (net(batch["x"]) - 1).square().mean().backward()
            optimizer.step()
    return [float(value) for p in model.parameters() for value in p.flatten().tolist()]


def test_two_processes_train_as_one_over_whole_epochs(two: Team) -> None:
    alone = trained(8)
    for answer in two(trained, 4):
        assert answer == pytest.approx(alone, rel=1e-5)
