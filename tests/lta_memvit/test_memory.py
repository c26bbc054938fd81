"""What is remembered: each stream for itself, whatever else is in the batch, at any number of processes."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from projects.lta_memvit import model
from projects.lta_memvit.config import MemoryConfig, ModelConfig
from projects.lta_memvit.model import Forecaster, Network, Place
from projects.lta_memvit.model.memory import BatchMemory, ClipMemory, Reach
from projects.lta_memvit.order import ReferenceRuns, Runs, WholeClips, by_clip

FRAMES, CROP = 8, 16


def tiny(mode: str = "clip", *, sampler: str = "gap2", inputs: int = 0, **options: object) -> Network:
    """A small MeMViT whose tables and norms all say something; a forecaster of `inputs` segments if there are any."""
    torch.manual_seed(0)
    net = model.build(
        ModelConfig(backbone="memvit_nano", dropout=0.0, drop_path=0.0, **options),
        MemoryConfig(mode=mode, sampler=sampler),
        task="forecasting" if inputs else "recognition",
        classes=(3, 4), inputs=inputs, future=2, frames=FRAMES, crop=CROP,
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def segment(stream: Hashable, position: int) -> Tensor:
    """The clip of a place, always the same."""
    generator = torch.Generator().manual_seed(hash((str(stream), position)) % 2**31)
    return torch.randn(3, FRAMES, CROP, CROP, generator=generator)


def answers(net: Network, batches: Sequence[Sequence[Place]]) -> dict[Place, Tensor]:
    """The features of every place, batch after batch."""
    net.forget()
    found: dict[Place, Tensor] = {}
    for places in batches:
        with torch.inference_mode():
            features = net.encode(torch.stack([segment(*place) for place in places]), list(places))
        found |= dict(zip(places, features, strict=True))
    return found


@pytest.fixture(scope="module")
def network() -> Network:
    return tiny()


@pytest.fixture(scope="module")
def alone(network: Network) -> dict[Place, Tensor]:
    """Four streams of up to nine segments, each seen by itself."""
    found: dict[Place, Tensor] = {}
    for stream in "abcd":
        found |= answers(network, [[Place(stream, position)] for position in range(9)])
    return found


# --------------------------------------------------------------------------------------------------------- properties


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch_size=st.integers(1, 4),
    size=st.integers(1, 3),
)
@settings(max_examples=25)
def test_what_is_seen_does_not_depend_on_batches_or_processes(
    network: Network, alone: dict[Place, Tensor], lengths: list[int], batch_size: int, size: int
) -> None:
    """The real evaluation order of one to three processes, whose results are put together."""
    places = [Place("abcd"[s], position) for s, length in enumerate(lengths) for position in range(length)]
    found: dict[Place, Tensor] = {}
    for rank in range(size):
        order = WholeClips.of(by_clip(places), batch_size, rank, size)
        found |= answers(network, [[places[i] for i in batch] for batch in order.batches(0)])
    assert found.keys() == set(places)
    for place, features in found.items():
        torch.testing.assert_close(features, alone[place], atol=2e-6, rtol=1e-5)


@given(data=st.data())
@settings(max_examples=20)
def test_rows_may_change_places_and_be_missing(
    network: Network, alone: dict[Place, Tensor], data: st.DataObject
) -> None:
    """Streams come in any mixture and order; only their own order counts."""
    left = dict.fromkeys("abcd", 0)
    batches = []
    for _ in range(6):
        chosen = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
        batches.append([Place(stream, left[stream]) for stream in chosen])
        for stream in chosen:
            left[stream] += 1
    for place, features in answers(network, batches).items():
        torch.testing.assert_close(features, alone[place], atol=2e-6, rtol=1e-5)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    batch_size=st.integers(1, 4),
    size=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_training_orders_walk_forward_and_miss_nothing(
    lengths: list[int], batch_size: int, size: int, epoch: int
) -> None:
    streams = [(clip, position) for clip, length in enumerate(lengths) for position in range(length)]
    clips, rows = by_clip(streams), batch_size * size
    parts = [list(Runs(clips, batch_size, 7, rank=rank, size=size).batches(epoch)) for rank in range(size)]
    whole = list(Runs(clips, rows, 7).batches(epoch))
    assert [list(chain(*group)) for group in zip(*parts, strict=True)] == whole
    assert all(len(batch) == rows for batch in whole)
    assert {index for batch in whole for index in batch} == set(range(len(streams)))
    assert len(whole) == -(-len(streams) // rows)
    for row in zip(*whole, strict=True):
        for before, after in pairwise(row):
            (clip, place), (next_clip, next_place) = streams[before], streams[after]
            assert next_place == (place + 1 if next_clip == clip else 0)
    assert list(Runs(clips, rows, 7).batches(epoch, 1)) == whole[1:]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), batch_size=st.integers(1, 4), size=st.integers(1, 3)
)
def test_an_evaluation_gives_every_sample_to_one_process(lengths: list[int], batch_size: int, size: int) -> None:
    streams = [(clip, position) for clip, length in enumerate(lengths) for position in range(length)]
    seen = []
    for rank in range(size):
        order = WholeClips.of(by_clip(streams), batch_size, rank, size)
        batches = list(order.batches(0))
        assert len(batches) == len(order)
        assert all(batches)
        seen += [index for batch in batches for index in batch]
    assert sorted(seen) == list(range(len(streams)))


def test_few_clips_keep_all_processes_busy() -> None:
    clips = [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [len(WholeClips.of(clips, 4, rank, 3)) for rank in range(3)] == [3, 3, 2]


def test_the_reference_order_repeats_and_misses() -> None:
    """The published formula for ten samples and four rows."""
    order = ReferenceRuns([list(range(10))], 4)
    assert list(chain(*order.batches(0))) == [0, 3, 6, 9, 1, 4, 7, 0, 2, 5]
    halves = [list(ReferenceRuns([list(range(8))], 2, rank=rank, size=2).batches(0)) for rank in (0, 1)]
    assert halves == [[[0, 4], [1, 5]], [[2, 6], [3, 7]]]
    assert len(ReferenceRuns([list(range(10))], 4, drop_last=True)) == 2


# ------------------------------------------------------------------------------------------------------------ semantics


def test_a_segment_sees_every_second_one_before_it() -> None:
    """With gap2 and three segments: those two and four steps back, through which it hears of older ones."""
    net = tiny()
    places = [Place("a", position) for position in range(6)]
    plain = answers(net, [[place] for place in places])

    def without(hidden: int) -> set[int]:
        kept = [[Place("other", p.position)] if p.position == hidden else [p] for p in places]
        net.forget()
        changed = set()
        for position, batch in enumerate(kept):
            clips = segment(*batch[0])[None]
            with torch.inference_mode():
                features = net.encode(clips, [Place("a", position)])[0]
            if not torch.allclose(features, plain[places[position]], atol=1e-7):
                changed.add(position)
        return changed

    assert without(0) == {0, 2, 4}
    assert without(1) == {1, 3, 5}
    assert without(5) == {5}


@pytest.mark.parametrize("sampler", ["all", "gap1", "gap2", "gap3"])
def test_memory_is_bounded(sampler: str) -> None:
    reach = Reach.of(sampler, 3)
    net = tiny(sampler=sampler)
    memory = net.memory
    assert isinstance(memory, ClipMemory)
    for position in range(3 * reach.capacity):
        with torch.inference_mode():
            net.encode(segment("a", position)[None], [Place("a", position)])
    assert len(memory.streams["a"].clips) == reach.capacity
    entry = memory.streams["a"].clips[0]
    assert sorted(entry) == [0, 2]  # blocks with an odd number keep nothing
    assert all(keys.shape[1] <= 1 + 1 * 2 * 2 for keys, _ in entry.values())  # compressed and projected
    for number in range(memory.patience + 2):
        with torch.inference_mode():
            net.encode(segment(number, 0)[None], [Place(number, 0)])
    assert "a" not in memory.streams
    assert len(memory.streams) <= memory.patience + 1


def test_going_back_in_a_stream_begins_it_anew(network: Network, alone: dict[Place, Tensor]) -> None:
    again = answers(network, [[Place("a", position)] for position in (0, 1, 2, 3)])
    with torch.inference_mode():
        first = network.encode(segment("a", 0)[None], [Place("a", 0)])[0]
    torch.testing.assert_close(first, alone[Place("a", 0)])
    assert again[Place("a", 3)].equal(alone[Place("a", 3)])


def test_a_stream_twice_in_a_batch_is_refused(network: Network) -> None:
    network.forget()
    with pytest.raises(ValueError, match=r"stream 'a' is twice in a batch.*memory.mode=off"):
        network.encode(torch.zeros(2, 3, FRAMES, CROP, CROP), [Place("a", 0), Place("a", 1)])


def test_without_memory_or_streams_every_segment_stands_alone() -> None:
    off, net = tiny("off"), tiny()
    off.load_state_dict(net.state_dict())
    clips = torch.stack([segment("a", position) for position in range(3)])
    with torch.inference_mode():
        expected = off.encode(clips, [Place("a", position) for position in range(3)])
        torch.testing.assert_close(net.encode(clips), expected)
    assert off.memory is None
    assert not any("compress" in name and p.requires_grad for name, p in off.named_parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_one_stream_equals_the_reference_with_a_batch_of_one(causal: bool) -> None:
    """What the original does for a single video is what streams do for each of many."""
    streams, reference = tiny(causal=causal), tiny("reference", causal=causal)
    places = [Place(video, position) for video in "aba" for position in range(5)]
    for place in places:
        with torch.inference_mode():
            ours, theirs = (net.encode(segment(*place)[None], [place]) for net in (streams, reference))
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_a_causal_network_does_not_see_the_future() -> None:
    net = tiny(causal=True)
    clip = segment("a", 0)[None]
    later = clip.clone()
    later[:, :, -2:] += 1
    found = []
    handle = net.backbone.blocks[-1].register_forward_hook(lambda module, args, output: found.append(output[0]))
    with torch.inference_mode():
        net.encode(clip), net.encode(later)
    handle.remove()
    tokens = found[0].shape[1] - 1
    frames = FRAMES // 2
    kept = 1 + tokens // frames * (frames - 2)  # the patch embedding looks one frame ahead
    torch.testing.assert_close(found[0][:, 1:kept], found[1][:, 1:kept], atol=1e-6, rtol=0)
    assert not torch.allclose(found[0][:, kept:], found[1][:, kept:], atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("inputs", [2, 4])
def test_windows_of_a_clip_reuse_features(inputs: int) -> None:
    """Each segment is computed once; a window is what its segments say one after the other."""
    net = tiny(inputs=inputs)
    assert isinstance(net, Forecaster)
    single = tiny(inputs=inputs)
    expected = answers(single, [[Place("a", position), Place("b", position)] for position in range(7)])
    counted: list[int] = []
    original = net.backbone.features

    def features(clips: Tensor, keys: Sequence[Hashable] | None = None) -> Tensor:
        counted.append(len(clips))
        return original(clips, keys)

    net.backbone.features = features  # type: ignore[method-assign]
    for last in range(inputs - 1, 7):
        places = [Place("a", last), Place("b", last)]
        window = range(last - inputs + 1, last + 1)
        clips = torch.stack([torch.stack([segment(place.stream, p) for p in window]) for place in places])
        with torch.inference_mode():
            found = net.encode(clips, places)
        for row, place in zip(found, places, strict=True):
            wanted = torch.stack([expected[Place(place.stream, p)] for p in window])
            torch.testing.assert_close(row, wanted, atol=2e-6, rtol=1e-5)
    assert sum(counted) == 2 * 7


# ------------------------------------------------------------------------------------------------------------- training


def test_compression_learns_under_a_gap() -> None:
    """Every weight that may learn gets a gradient in every step; in the original the compression never does."""
    for mode, learns in (("clip", True), ("reference", False)):
        net = tiny(mode).train()
        for position in range(5):
            net.zero_grad()
            outputs = net(segment("a", position)[None], streams=[Place("a", position)])
            (outputs.verb.square().sum() + outputs.noun.square().sum()).backward()
            grads = {n: p.grad for n, p in net.named_parameters() if p.requires_grad and "compress" in n}
            assert grads
            if mode == "clip":
                assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
                moved = any(grad.abs().sum() > 0 for grad in grads.values() if grad is not None)
                assert moved == (position >= 2)
            else:
                assert all(grad is None for grad in grads.values()) is not learns


def test_no_gradient_reaches_earlier_steps() -> None:
    net = tiny().train()
    clips = [segment("a", position)[None].requires_grad_() for position in range(3)]
    for position, clip in enumerate(clips):
        outputs = net(clip, streams=[Place("a", position)])
    outputs.verb.sum().backward()
    assert clips[0].grad is None
    assert clips[2].grad is not None


def test_training_and_evaluation_remember_the_same() -> None:
    """Raw entries compressed when they are seen, and entries compressed and projected when they are kept."""
    net = tiny()
    for position in range(5):
        clip, places = torch.stack([segment(s, position) for s in "ab"]), [Place(s, position) for s in "ab"]
        trained = net.encode(clip, places)
        if position < 4:
            continue
        frozen = answers(copy.deepcopy(net), [[Place(s, p) for s in "ab"] for p in range(5)])
        for row, place in zip(trained, places, strict=True):
            torch.testing.assert_close(row, frozen[place], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["clip", "reference"])
@pytest.mark.parametrize("train", [False, True])
def test_a_memory_is_saved_and_goes_on(mode: str, train: bool) -> None:
    def step(net: Network, position: int) -> Tensor:
        with torch.set_grad_enabled(train):
            clips = torch.stack([segment(s, position) for s in "ab"])
            return net.encode(clips, [Place(s, position) for s in "ab"]).detach()

    whole, first, second = tiny(mode), tiny(mode), tiny(mode)
    expected = [step(whole, position) for position in range(7)]
    for position in range(4):
        step(first, position)
    assert first.memory is not None
    assert second.memory is not None
    second.memory.load_state_dict(first.memory.state_dict())
    for position in range(4, 7):
        assert step(second, position).equal(expected[position])


def test_the_reference_memory_takes_no_growing_batches() -> None:
    net = tiny("reference")
    assert isinstance(net.memory, BatchMemory)
    net.encode(torch.zeros(1, 3, FRAMES, CROP, CROP), [Place("a", 0)])
    with pytest.raises(ValueError, match="a batch of 2 follows one of 1"):
        net.encode(torch.zeros(2, 3, FRAMES, CROP, CROP), [Place("a", 1), Place("b", 0)])
