"""Feature databases: which vector answers for which frame, shared handles, writing whole or not at all."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.data import Loader, LoaderConfig, SampleError
from projects.sgear import features
from projects.sgear.features import BACKWARDS, Features


def numbered(path: Path, numbers: Any, video: str = "P01_01", channels: int = 2) -> Path:
    features.write(path, ((video, n, np.full(channels, n)) for n in numbers))
    return path


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames 1 to 100 without 20..40 and 60; another video that begins where the first ends."""
    path = tmp_path_factory.mktemp("features") / "gaps"
    there = [n for n in range(1, 101) if not 20 <= n <= 40 and n != 60]
    rows = [("P01_01", n, [n, -n]) for n in there] + [("P01_02", 1, [7.0, 7.0])]
    features.write(path, rows)
    return path


@given(st.lists(st.integers(1, 130), min_size=1, max_size=20))
def test_a_missing_frame_is_answered_by_an_earlier_one(gaps: Path, numbers: list[int]) -> None:
    there = {n for n in range(1, 101) if not 20 <= n <= 40 and n != 60}
    wanted = [next((k for k in range(n, n - BACKWARDS - 1, -1) if k in there), 0) for n in numbers]
    if any(wanted):
        found = Features([gaps]).read("P01_01", numbers)
        assert found[:, 0].tolist() == wanted
        assert found[:, 1].tolist() == [-k for k in wanted]


def test_a_dark_stretch_of_a_clip_is_zeros_a_missing_clip_an_error(gaps: Path) -> None:
    store = Features([gaps])
    assert store.read("P01_01", [30, 31], range(15, 32)).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(SampleError, match=r"no feature of P01_01 from frame 111 to 130.*data_full"):
        store.read("P01_01", [125], range(120, 131))
    with pytest.raises(SampleError, match="no feature of P09_09"):
        store.read("P09_09", [1])


def test_databases_are_concatenated(gaps: Path, tmp_path: Path) -> None:
    other = numbered(tmp_path / "other", range(1, 101), channels=3)
    found = Features([gaps, other]).read("P01_01", [5, 60])
    assert found.tolist() == [[5, -5, 5, 5, 5], [59, -59, 60, 60, 60]]
    assert found.dtype == torch.float32


def test_one_process_opens_a_database_once(gaps: Path) -> None:
    """python-lmdb refuses a second environment of one path, which training and evaluation data would be."""
    a, b = Features([gaps]), Features([gaps / ".." / gaps.name])
    assert a.read("P01_01", [1]).tolist() == b.read("P01_01", [1]).tolist()
    environments = features._environments
    assert environments.get(gaps) is environments.get(gaps / ".." / gaps.name)


def test_the_length_of_a_video(gaps: Path, tmp_path: Path) -> None:
    assert Features([gaps]).length("P01_01") == 100
    assert Features([gaps, numbered(tmp_path / "short", [1, 50])]).length("P01_01") == 50
    with pytest.raises(ValueError, match="no feature of P03_01"):
        Features([gaps]).length("P03_01")


class Rows:
    def __init__(self, path: Path) -> None:
        self.store = Features([path])

    def __len__(self) -> int:
        return 40

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        return {"id": str(index), "features": self.store.read("P01_01", [index + 41])}


def test_workers_open_for_themselves(gaps: Path) -> None:
    """The parent reads, then forks: the children open anew."""
    rows = Rows(gaps)
    assert rows.sample(0, random.Random(0))["features"].tolist() == [[41, -41]]
    loader = Loader(rows, LoaderConfig(batch_size=8, workers=2), train=False)
    found = {name: row for batch in loader for name, row in zip(batch["id"], batch["features"], strict=True)}
    loader.close()
    assert {name: row[0, 0].item() for name, row in found.items()} == {
        str(k): (k + 41 if k != 19 else 59) for k in range(40)
    }


def _in_a_fork(path: Path, queue: Any) -> None:
    queue.put(Features([path]).read("P01_01", [3]).tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_fork_does_not_use_the_parents_handle(gaps: Path) -> None:
    Features([gaps]).read("P01_01", [1])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_fork, args=(gaps, queue))
    child.start()
    assert queue.get(timeout=60) == [[3, -3]]
    child.join()


def test_faults_of_a_database_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere holds no data.mdb; docs/data.md"):
        Features([tmp_path / "nowhere"]).read("P01_01", [1])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "data.mdb").write_bytes(b"\1" * 8192)
    with pytest.raises(ValueError, match=r"data.mdb.*is the database whole"):
        Features([broken]).read("P01_01", [1])
    odd = tmp_path / "odd"
    with lmdb.open(str(odd)) as environment, environment.begin(write=True) as transaction:
        transaction.put(features.key("P01_01", 1), b"abc")
        transaction.put(features.key("P01_01", 2), b"abcd")
        transaction.put(features.key("P01_01", 3), b"abcdabcd")
    with pytest.raises(SampleError, match="frame 1 of P01_01 has 3 bytes"):
        Features([odd]).read("P01_01", [1])
    with pytest.raises(SampleError, match="frame 3 of P01_01 has 2 channels, others 1"):
        Features([odd]).read("P01_01", [2, 3])


def test_a_database_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def stopping() -> Any:
        yield "P01_01", 1, [1.0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features.write(tmp_path / "out", stopping())
    assert list(tmp_path.iterdir()) == []
    numbered(tmp_path / "out", range(1, 4))
    with pytest.raises(ValueError, match="is there already"):
        numbered(tmp_path / "out", range(1, 4))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"data.mdb"}


def test_a_database_outgrows_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FIRST_MAP", 1 << 16)
    path = numbered(tmp_path / "grown", range(1, 3001), channels=16)
    assert Features([path]).read("P01_01", [1, 3000])[:, 15].tolist() == [1, 3000]


def test_arrays_become_a_database(tmp_path: Path) -> None:
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.save(arrays / "P01_01.npy", np.arange(10, dtype=np.float64)[:, None])
    assert features.main([str(arrays), str(tmp_path / "out"), "--fps", "10"]) == 0
    found = Features([tmp_path / "out"]).read("P01_01", [1, 4, 7, 9])
    assert found[:, 0].tolist() == [0, 1, 2, 2], "at 10 a second every third feature frame is there"
    assert features.main([str(arrays), str(tmp_path / "out")]) == 1, "it is there already"
    np.save(arrays / "P01_02.npy", np.zeros(3))
    assert features.main([str(arrays), str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()
