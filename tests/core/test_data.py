"""core.data in one process: the same samples for any number of workers, restarts and bad files."""

from __future__ import annotations

import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import (
    Loader,
    LoaderConfig,
    SampleError,
    Sampler,
    TooManyBadFiles,
    WorkerDied,
    pad,
    stack,
    to_device,
)

# Four workers, on however few cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Numbers:
    """Sample i holds i, a draw of its generator, a clip-like tensor and the process that read it."""

    def __init__(self, count: int, bad: Sequence[int] = (), action: Callable[[int], None] | None = None) -> None:
        self.count, self.bad, self.action = count, frozenset(bad), action

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        if self.action is not None:
            self.action(index)
        if index in self.bad:
            raise SampleError(f"videos/{index}.mp4", "no frames")
        video = torch.full((2, 4, 4, 3), index % 256, dtype=torch.uint8)
        return {"id": f"s{index}", "label": index, "draw": rng.random(), "video": video, "pid": str(os.getpid())}


def jitter(batch: dict[str, Any], rngs: list[random.Random]) -> dict[str, Any]:
    assert len(rngs) == len(batch["id"])
    return batch | {"jitter": torch.tensor([rng.random() for rng in rngs])}


def make(dataset: Any, train: bool = True, **settings: Any) -> Loader:
    return Loader(dataset, LoaderConfig(**{"batch_size": 4, "workers": 0} | settings), train=train, transform=jitter)


def summary(batch: dict[str, Any]) -> tuple[Any, ...]:
    return (batch["id"], batch["draw"].tolist(), batch["jitter"].tolist(), batch["video"][:, 0, 0, 0, 0].tolist())


def run(loader: Loader, until: int) -> list[tuple[int, Any]]:
    return [(epoch, summary(batch)) for epoch in loader.epochs(until) for batch in loader]


# ---------------------------------------------------------------------------------------------------------- sampler


class Backwards:
    """Pairs of samples, the last ones first; swapped in every second epoch."""

    def __len__(self) -> int:
        return 3

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        pairs = [[5, 4], [3, 2], [1, 0]]
        return iter([pair[::-1] if epoch % 2 else pair for pair in pairs][start:])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_order_of_ones_own(workers: int) -> None:
    settings = LoaderConfig(batch_size=4, workers=workers)
    loader = Loader(Numbers(6), settings, train=True, sampler=Backwards())
    seen = [(epoch, batch["id"]) for epoch in loader.epochs(2) for batch in loader]
    assert seen[:3] == [(0, ["s5", "s4"]), (0, ["s3", "s2"]), (0, ["s1", "s0"])]
    assert seen[3:] == [(1, ["s4", "s5"]), (1, ["s2", "s3"]), (1, ["s0", "s1"])]
    again = Loader(Numbers(6), settings, train=True, sampler=Backwards())
    again.load_state_dict({"epoch": 1, "batch": 2})
    assert [batch["id"] for _ in again.epochs(2) for batch in again] == [["s0", "s1"]]
    everything = Loader(Numbers(6), settings, train=False, sampler=Backwards())
    assert [batch["id"] for batch in everything] == [["s5", "s4"], ["s3", "s2"], ["s1", "s0"]]
    assert everything.coverage().scored == 6
    for each in (loader, again, everything):
        each.close()


@given(
    samples=st.integers(1, 200),
    size=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
    drop=st.booleans(),
)
def test_training_batches_are_the_parts_of_one_order(
    samples: int, size: int, batch_size: int, epoch: int, drop: bool
) -> None:
    whole = [list(s) for s in Sampler(samples, batch_size * size, True, 3, drop).batches(epoch)]
    ranks = [Sampler(samples, batch_size, True, 3, drop, rank, size) for rank in range(size)]
    parts = [list(sampler.batches(epoch)) for sampler in ranks]
    assert all(len(part) == len(sampler) == len(whole) for part, sampler in zip(parts, ranks, strict=True))
    for number, group in enumerate(whole):
        shares = [part[number] for part in parts]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        if len(group) >= size:
            assert [index for share in shares for index in share] == group
        else:  # fewer samples than processes: nobody is empty, nobody is left out
            assert {index for share in shares for index in share} == set(group)
            assert all(len(share) == 1 for share in shares)
    if not drop:
        assert sorted(index for group in whole for index in group) == list(range(samples))
    else:
        assert all(len(group) == batch_size * size for group in whole)


@given(samples=st.integers(1, 200), size=st.integers(1, 5), batch_size=st.integers(1, 9))
def test_evaluation_gives_each_sample_to_one_process(samples: int, size: int, batch_size: int) -> None:
    whole = list(Sampler(samples, batch_size, False).batches(0))
    assert [index for batch in whole for index in batch] == list(range(samples))
    ranks = [Sampler(samples, batch_size, False, rank=rank, size=size) for rank in range(size)]
    parts = [list(sampler.batches(0)) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [len(part) for part in parts]
    assert sorted(batch for part in parts for batch in part) == whole, "the very batches of one process"
    assert all(part == sorted(part) for part in parts)


def test_an_order_is_made_of_seed_and_epoch() -> None:
    orders = [tuple(next(Sampler(50, 50, True, seed).batches(epoch))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(next(Sampler(50, 50, True, 0).batches(0)))
    assert list(Sampler(50, 8, True).batches(0, start=3)) == list(Sampler(50, 8, True).batches(0))[3:]


# ----------------------------------------------------------------------------------------------- the same for anyone


@pytest.fixture(scope="module")
def plain() -> list[tuple[int, Any]]:
    """Three epochs of 22 samples without workers: the truth for all others."""
    return run(make(Numbers(22)), 3)


def test_epochs_cover_everything_in_other_orders_with_other_chance(plain: list[tuple[int, Any]]) -> None:
    epochs = [[b for e, b in plain if e == epoch] for epoch in range(3)]
    ids = [[i for batch in epoch for i in batch[0]] for epoch in epochs]
    assert all(sorted(order) == sorted(f"s{i}" for i in range(22)) for order in ids)
    assert len({tuple(order) for order in ids}) == 3
    draws = {x for _, batch in plain for x in (*batch[1], *batch[2])}
    assert len(draws) == 3 * 22 * 2, "each sample of each epoch has two generators of its own"
    assert [len(batch[0]) for batch in epochs[0]] == [4, 4, 4, 4, 4, 2], "the incomplete last batch is kept"


def test_workers_change_nothing(plain: list[tuple[int, Any]]) -> None:
    loader = make(Numbers(22), workers=4)
    pids: set[str] = set()
    got = []
    for epoch in loader.epochs(3):
        for batch in loader:
            got.append((epoch, summary(batch)))
            pids |= set(batch["pid"])
    assert got == plain
    assert len(pids) == 4, "the same four workers served all epochs"
    assert str(os.getpid()) not in pids


@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("stop", [1, 6, 8])
def test_a_resumed_run_equals_the_uninterrupted_one(plain: list[tuple[int, Any]], workers: int, stop: int) -> None:
    def until(loader: Loader) -> Iterator[tuple[int, Any]]:
        for epoch in loader.epochs(3):
            for batch in loader:
                yield epoch, summary(batch)

    first = make(Numbers(22), workers=workers)
    begun = list(islice(until(first), stop))
    state = first.state_dict()
    first.close()
    assert state == {"epoch": (stop - 1) // 6, "batch": (stop - 1) % 6 + 1}
    second = make(Numbers(22), workers=workers)
    second.load_state_dict(state)
    assert begun + run(second, 3) == plain


def test_the_end_of_an_epoch_leads_to_its_evaluation() -> None:
    loader = make(Numbers(8))
    loader.load_state_dict({"epoch": 1, "batch": 2})
    assert [(epoch, len(list(loader)), loader.state_dict()) for epoch in loader.epochs(3)] == [
        (1, 0, {"epoch": 1, "batch": 2}),
        (2, 2, {"epoch": 2, "batch": 2}),
    ]
    assert loader.state_dict() == {"epoch": 3, "batch": 0}
    assert list(loader.epochs(3)) == []


def test_an_epoch_that_is_ended_before_it_is_saved() -> None:
    loader = make(Numbers(8))
    places = []
    for epoch in loader.epochs(2):
        for _ in loader:
            places.append((epoch, loader.batch))
        loader.end_epoch()
        places.append((epoch, loader.state_dict()))
    assert places == [
        (0, 1),
        (0, 2),
        (0, {"epoch": 1, "batch": 0}),
        (1, 1),
        (1, 2),
        (1, {"epoch": 2, "batch": 0}),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_early_and_more_epochs_than_first_asked_for(plain: list[tuple[int, Any]], workers: int) -> None:
    loader = make(Numbers(22), workers=workers)
    for _ in loader.epochs(1):
        next(iter(loader))
    assert run(loader, 2) == [item for item in plain if item[0] == 1]
    assert run(loader, 3) == [item for item in plain if item[0] == 2]


def test_a_state_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch 7 of epoch 0, but an epoch has 2 batches.*loader\.batch_size"):
        make(Numbers(8)).load_state_dict({"epoch": 0, "batch": 7})


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_from_the_global_generators(workers: int) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[index] # noqa: NPY002

    before = states()
    run(make(Numbers(9), workers=workers), 2)
    list(make(Numbers(9), train=False, workers=workers))
    assert states() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_repeats_itself(workers: int) -> None:
    loader = make(Numbers(10), train=False, workers=workers)
    first, second = ([summary(batch) for batch in loader] for _ in range(2))
    assert first == second
    assert [i for batch in first for i in batch[0]] == [f"s{i}" for i in range(10)]
    assert len(loader) == len(first) == 3
    assert str(loader.coverage()) == "10 of 10 samples"


def test_waiting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("core.data.loader.time.perf_counter", lambda: clock[0])

    def read(index: int) -> None:
        clock[0] += 0.25

    loader = make(Numbers(4, action=read), batch_size=2)
    shares = []
    for _ in loader:
        shares.append((loader.wait_s, loader.wait_share))
        clock[0] += 1.5  # the step
    assert shares == [(0.5, 1.0), (0.5, 1.0 / 2.5)]


def test_empty_datasets_and_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="Numbers has no samples"):
        make(Numbers(0))
    with pytest.raises(ValueError, match=r"3 samples are not one batch of 4.*loader\.drop_last"):
        make(Numbers(3), drop_last=True)
    assert len(make(Numbers(7), drop_last=True)) == 1


# --------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("workers", [0, 3])
def test_a_bad_file_is_replaced_in_training(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    loader = make(Numbers(40, bad=[7]), workers=workers, max_bad=0.05)
    good = run(make(Numbers(40)), 2)
    got = run(loader, 2)
    assert loader.bad == {"videos/7.mp4": "no frames"}
    assert caplog.messages == ["videos/7.mp4: no frames; another sample takes its place"], "named once"
    coverage = loader.coverage()
    assert (coverage.expected, coverage.scored) == (80, 78)
    differing = 0
    for (_, (ids, draws, jitters, _)), (_, (good_ids, good_draws, good_jitters, _)) in zip(got, good, strict=True):
        assert jitters == good_jitters
        for i, draw, good_i, good_draw in zip(ids, draws, good_ids, good_draws, strict=True):
            differing += (i, draw) != (good_i, good_draw)
            assert ((i, draw) == (good_i, good_draw)) == (good_i != "s7")
    assert differing == 2
    assert got == run(make(Numbers(40, bad=[7]), max_bad=0.05), 2), "the same substitutes without workers"


def test_training_stops_above_the_cap() -> None:
    allowed = make(Numbers(1000, bad=range(10)))
    assert len(run(allowed, 1)) == 250
    loader = make(Numbers(1000, bad=range(11)))
    with pytest.raises(TooManyBadFiles, match=r"11 of \d+ samples.*max_bad=0\.01 allows 10") as error:
        run(loader, 1)
    assert "videos/3.mp4: no frames" in str(error.value)
    assert "... and 1 more" in str(error.value)


def test_the_cap_on_small_data_and_on_nothing_but_bad_files() -> None:
    run(make(Numbers(8, bad=[1])), 1)  # one of eight is above 1 %, but one is always allowed
    with pytest.raises(TooManyBadFiles, match="1 of 8"):
        run(make(Numbers(8, bad=[1]), batch_size=8, max_bad=0.0), 1)
    with pytest.raises(TooManyBadFiles, match=r"4 of 4 .*nor could others"):
        run(make(Numbers(8, bad=range(8)), max_bad=1.0), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_left_out_of_evaluation(workers: int) -> None:
    loader = make(Numbers(10, bad=[1, 4, 5, 6, 7]), train=False, workers=workers)
    for _ in range(2):  # counts start again with every pass
        batches = [summary(batch) for batch in loader]
        assert [i for batch in batches for i in batch[0]] == ["s0", "s2", "s3", "s8", "s9"]
        assert (loader.expected, loader.scored, len(loader.bad)) == (10, 5, 5)
    assert len(batches) == 2, "a batch with nothing left is none"
    whole = {
        i: draw for batch in make(Numbers(10), train=False) for i, draw in zip(*summary(batch)[0:3:2], strict=True)
    }
    assert all(whole[i] == draw for batch in batches for i, draw in zip(batch[0], batch[2], strict=True))
    assert "5 of 10 samples; unreadable: videos/1.mp4 (no frames); videos/4.mp4" in str(loader.coverage())


def test_an_error_like_core_video_counts_as_a_bad_file() -> None:
    class VideoError(ValueError):
        path, reason = "a.mp4", "truncated"

    def fail(index: int) -> None:
        if index == 2:
            raise VideoError

    loader = make(Numbers(4, action=fail), train=False)
    assert [batch["id"] for batch in loader] == [["s0", "s1", "s3"]]
    assert loader.bad == {"a.mp4": "truncated"}


def test_sample_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SampleError("a.mp4", "empty")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "empty", "a.mp4: empty")


# ------------------------------------------------------------------------------------------------------------ workers


def _crash(index: int) -> None:
    if index == 5:
        raise KeyError("annotation")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_dataset_names_the_sample(workers: int) -> None:
    loader = make(Numbers(8, action=_crash), train=False, workers=workers)
    with pytest.raises(KeyError) as error:
        list(loader)
    words = str(error.value) + "".join(getattr(error.value, "__notes__", []))
    assert "while reading sample 5 of Numbers" in words


def _die(index: int) -> None:
    if index == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_that_says_what_to_do() -> None:
    loader = make(Numbers(8, action=_die), train=False, workers=1)
    with pytest.raises(WorkerDied, match=r"\(SIGKILL\).*out of memory: lower loader\.workers"):
        list(loader)
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, signal.SIG_IGN, None)


def _interrupt(index: int) -> None:
    if index == 2:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)


def test_workers_leave_signals_to_the_main_process() -> None:
    loader = make(Numbers(8, action=_interrupt), train=False, workers=1)
    assert len(list(loader)) == 2


class Surroundings:
    """Reports what a worker's process looks like."""

    def __len__(self) -> int:
        return 2

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        limit = __import__("resource").getrlimit(__import__("resource").RLIMIT_NOFILE)
        return {"id": index, "threads": torch.get_num_threads(), "files": limit[0], "hard": limit[1]}


def test_workers_have_one_thread_and_many_files() -> None:
    torch.set_num_threads(2)
    (batch,) = Loader(Surroundings(), LoaderConfig(workers=1), train=False)
    assert batch["threads"].tolist() == [1, 1]
    assert batch["files"][0] >= min(int(batch["hard"][0]), 65_536) or batch["hard"][0] == -1


def test_everything_sent_to_a_worker_pickles() -> None:
    loader = make(Numbers(8))
    reader = pickle.loads(pickle.dumps(loader._reader))
    plan = next(iter(loader._plans))
    assert reader[plan].batch["id"] == loader._reader[plan].batch["id"]


# ------------------------------------------------------------------------------------------------------------ batches


def test_stack_by_kind() -> None:
    def sample(i: int) -> dict[str, Any]:
        return {
            "id": f"s{i}",
            "label": i,
            "time_s": i + 0.5,
            "real": i > 0,
            "mixed": i if i else 0.5,
            "video": np.full((2, 3), i, dtype=np.uint8)[::-1],
            "crops": torch.zeros(i + 1, 2),
            "dtypes": torch.zeros(2, dtype=torch.int64 if i else torch.float32),
            "score": np.float64(i),
            "words": [i] * i,
            "nothing": None,
        }

    batch = stack([sample(0), sample(1)])
    assert batch["id"] == ["s0", "s1"]
    assert torch.equal(batch["label"], torch.tensor([0, 1]))
    assert torch.equal(batch["time_s"], torch.tensor([0.5, 1.5], dtype=torch.float32))
    assert torch.equal(batch["real"], torch.tensor([False, True]))
    assert torch.equal(batch["mixed"], torch.tensor([0.5, 1.0]))
    assert torch.equal(batch["video"], torch.tensor([[[0] * 3] * 2, [[1] * 3] * 2], dtype=torch.uint8))
    assert [tuple(crop.shape) for crop in batch["crops"]] == [(1, 2), (2, 2)]
    assert [value.dtype for value in batch["dtypes"]] == [torch.float32, torch.int64]
    assert torch.equal(batch["score"], torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert batch["words"] == [[], [1]]
    assert batch["nothing"] == [None, None]


def test_stack_names_the_sample_with_other_keys() -> None:
    with pytest.raises(ValueError, match=r"'a' and 'b' differ in their keys: label"):
        stack([{"id": "a", "label": 1}, {"id": "b"}])


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    multiple=st.integers(1, 5),
    extra=st.none() | st.integers(0, 4),
)
@settings(deadline=None, max_examples=50)
def test_pad_hides_nothing_and_adds_zeros(lengths: list[int], multiple: int, extra: int | None) -> None:
    samples: list[dict[str, Any]] = [
        {"id": i, "features": torch.ones(3, n) * (i + 1), "flow": np.ones((2, 2, n), np.float32), "label": i}
        for i, n in enumerate(lengths)
    ]
    length = None if extra is None else max(lengths) + extra
    batch = pad(samples, ("features", "flow"), length=length, multiple=multiple)
    total = -(-(max(lengths) if length is None else length) // multiple) * multiple
    assert batch["features"].shape == (len(lengths), 3, total)
    assert batch["flow"].shape == (len(lengths), 2, 2, total)
    assert batch["mask"].dtype == torch.bool
    for i, n in enumerate(lengths):
        assert batch["mask"][i].tolist() == [True] * n + [False] * (total - n)
        assert torch.equal(batch["features"][i, :, :n], torch.as_tensor(samples[i]["features"]))
    assert not batch["features"][~batch["mask"][:, None].expand_as(batch["features"])].any()
    assert batch["features"].movedim(-1, 1).is_contiguous()
    assert batch["label"].tolist() == list(range(len(lengths)))


def test_pad_leaves_samples_of_unequal_width_apart() -> None:
    batch = pad([{"x": torch.ones(2, 1)}, {"x": torch.ones(3, 2)}], ["x"])
    assert [each.tolist() for each in batch["x"]] == [[[1, 0]] * 2, [[1, 1]] * 3]


def test_pad_names_what_does_not_fit() -> None:
    samples: list[dict[str, Any]] = [{"id": "a", "x": torch.zeros(1, 2)}, {"id": "b", "x": torch.zeros(1, 5)}]
    with pytest.raises(ValueError, match=r"'b' is 5 long, more than length=4"):
        pad(samples, ["x"], length=4)
    with pytest.raises(ValueError, match=r"'c' has lengths .*'x': 1, 'y': 2"):
        pad([{"id": "c", "x": torch.zeros(1), "y": torch.zeros(2)}], ["x", "y"])


def test_pad_is_a_collate() -> None:
    class Features(Numbers):
        def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
            return {"id": index, "features": torch.ones(2, index + 1)}

    loader = Loader(
        Features(4), LoaderConfig(workers=0), train=False, collate=partial(pad, keys=("features",), multiple=8)
    )
    (batch,) = loader
    assert batch["features"].shape == (4, 2, 8)
    assert batch["mask"].sum(1).tolist() == [1, 2, 3, 4]


def test_to_device_reaches_inside_and_keeps_the_rest() -> None:
    batch = {"a": torch.ones(1), "b": [torch.ones(2), "x"], "c": {"d": (torch.ones(3), 1)}, "id": ["s"]}
    moved = to_device(batch, "meta")
    assert [moved["a"].device.type, moved["b"][0].device.type, moved["c"]["d"][0].device.type] == ["meta"] * 3
    assert moved["b"][1] == "x"
    assert moved["id"] == ["s"]
    assert to_device(batch, "cpu")["a"] is batch["a"], "on the CPU nothing is copied"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_cuda_batches_equal_those_of_the_cpu(workers: int) -> None:
    cfg = LoaderConfig(batch_size=4, workers=workers)
    plain = Loader(Numbers(64), cfg, train=True, transform=jitter)
    cuda = Loader(Numbers(64), cfg, train=True, device="cuda", transform=jitter)
    for _, _ in zip(plain.epochs(2), cuda.epochs(2), strict=True):
        for expected, batch in zip(plain, cuda, strict=True):
            torch.cuda._sleep(1_000_000)  # work in flight while the next batch is copied
            assert batch["video"].device.type == "cuda"
            assert torch.equal(batch["video"].cpu(), expected["video"])
            assert summary(batch) == summary(expected)
