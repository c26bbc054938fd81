"""The same evaluation by one and by two processes merges to the same rows in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from core import dist, metrics
from core.metrics import Collector
from tests.dist.pool import Team

ROWS, CLASSES = 13, 5


def evaluate(share: str) -> dict[str, Any]:
    """What one process collects of 13 samples, merged; `share` says which samples are whose."""
    place = dist.world()
    mine = {
        "every other": range(place.rank, ROWS, place.size),
        "first takes all": range(ROWS) if place.rank == 0 else range(0),
        "both take some": range(0, 9) if place.rank == 0 else range(6, ROWS),
    }[share]
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn(ROWS, CLASSES, generator=generator)
    collector = Collector()
    for index in reversed(mine):
        collector.add(
            [f"clip{index:02d}"], scores=scores[index : index + 1], label=[index % CLASSES], words=["x" * index]
        )
    return collector.merge()


@pytest.mark.parametrize("share", ["every other", "first takes all", "both take some"])
def test_two_processes_merge_to_the_rows_of_one(two: Team, share: str) -> None:
    alone = evaluate("every other")
    assert alone["id"] == [f"clip{i:02d}" for i in range(ROWS)]
    for merged in two(evaluate, share):
        assert merged["id"] == alone["id"]
        assert merged["words"] == alone["words"]
        for name in ("scores", "label"):
            np.testing.assert_array_equal(merged[name], alone[name])
            assert merged[name].dtype == alone[name].dtype
        for k in (1, 3):
            ours, expected = (metrics.top_k(rows["scores"], rows["label"], k) for rows in (merged, alone))
            assert ours == expected


def conflict() -> str:
    """The message when both processes hold the same id with values of their own."""
    collector = Collector()
    collector.add(["same"], rank=[dist.world().rank])
    try:
        collector.merge()
    except ValueError as error:
        return str(error)
    return ""


def test_a_conflict_is_named_on_every_process(two: Team) -> None:
    for message in two(conflict):
        assert "'same' came twice with different 'rank': 0 and 1" in message.replace("np.int64(0)", "0").replace(
            "np.int64(1)", "1"
        )


def nothing() -> dict[str, Any]:
    return Collector().merge()


def test_no_rows_anywhere(two: Team) -> None:
    assert two(nothing) == [{"id": []}, {"id": []}]
