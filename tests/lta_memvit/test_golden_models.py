"""The networks against the official ones with the same weights and clips."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch

from projects.lta_memvit import convert, model
from projects.lta_memvit.config import MemoryConfig, ModelConfig
from projects.lta_memvit.model import VARIANTS, MeMViT, Network, Place
from projects.lta_memvit.model.heads import Projection
from projects.lta_memvit.model.memory import BatchMemory, ClipMemory, Memory, Reach
from tests.lta_memvit.golden import pixels, said, stats, steps, windows
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden

RECOGNITION = cases("lta_memvit", "*_recognition")
FORECASTING = [case for case in cases("lta_memvit", "*_lta_*") if not case.path.name.startswith("memvit")]
SEQUENCES = cases("lta_memvit", "memvit16_seq_*")
FORK = cases("lta_memvit", "memvit16_lta_*")


def name(value: object) -> str:
    return value.path.name if isinstance(value, Case) else str(value)


def frames(case: Case) -> int:
    return 32 if case.path.name.startswith("slowfast") else 16


@pytest.mark.parametrize("case", RECOGNITION, ids=name)
@torch.inference_mode()
def test_recognition(case: Case, parity: Parity) -> None:
    expected = case.expected
    net, found = convert.open_network(case.weights())
    assert (found.kind, found.classes) == ("recognizer", (expected["verb"].shape[1], expected["noun"].shape[1]))
    tag = said(case, r"key = `in\.(\w+)\.b<b>")
    clips = windows(f"in.{tag}", len(expected["verb"]), 1, frames(case))[:, 0]
    features = net.encode(clips)
    outputs = net(features=features)
    parity.check("verb", outputs.verb, expected["verb"], atol=5e-4)
    parity.check("noun", outputs.noun, expected["noun"], atol=5e-4)
    for key in ("verb_softmax", "verb_returned"):
        if key in expected:
            parity.check(key, outputs.verb.softmax(-1), expected[key], atol=1e-5)
    if "cls" in expected:
        parity.check("cls", features, expected["cls"], atol=5e-4)
    if "s5_slow" in expected:  # what is pooled is a feature: slow channels, then fast ones
        parity.check("s5_slow", features[0, :64], expected["s5_slow"], atol=5e-4)
        parity.check("s5_fast", features[0, 2048:2112], expected["s5_fast"], atol=5e-4)
        repeat, _ = convert.open_network(case.weights(), repeat=True)
        again = repeat(features=features.unsqueeze(1))
        parity.check("repeated", again.verb, expected["verb"][:, None].repeat(20, 1), atol=5e-4)


@pytest.mark.parametrize("case", FORECASTING, ids=name)
@torch.inference_mode()
def test_forecasting(case: Case, parity: Parity) -> None:
    expected = case.expected
    batch, inputs = expected["features"].shape[:2]
    joins = "mean" if case.path.name.endswith("mean") else "concat"
    net, found = convert.open_network(case.weights(), cfg=ModelConfig(aggregator=joins))
    assert found.classes == (expected["verb"].shape[2], expected["noun"].shape[2])
    assert found.future == 20
    assert bool(found.transformer) == case.path.name.endswith("trf")
    tag = said(case, r"key = `in\.(\w+)\.b<b>")
    segments = net.backbone.head(net.encode(windows(f"in.{tag}", batch, inputs, frames(case))))
    joined = net.clip_aggregator(segments)
    scores = torch.stack(net.decoder(joined), 1).split(found.classes, -1)
    parity.check("features", segments[:, :, :256], expected["features"], atol=5e-4)
    parity.check("aggregated", joined[:, :256], expected["aggregated"], atol=5e-4)
    for head, values in zip(("verb", "noun"), scores, strict=True):
        parity.check(head, values[:, ::3], expected[head], atol=5e-4)
        parity.check(f"argmax_{head}", values.argmax(-1), expected[f"argmax_{head}"])
        parity.check(f"{head}_stats", stats(values), expected[f"{head}_stats"], atol=5e-4)


def single(case: Case, memory: Memory) -> MeMViT:
    """MeMViT-16 with the classifier of the published code."""
    head = Projection(768, case.json("keys.json")["head.projection.weight"][0][0])
    net = MeMViT(VARIANTS["memvit_16"], frames=16, crop=224, head=head, memory=memory)
    net.load_state_dict(case.weights())
    return net.eval()


def sampler(case: Case) -> str:
    return said(case, r"(?i)sampler \"?(all|gap\d)\b", "gap2")


def independent(videos: list[list[str] | None]) -> bool:
    """Does the original keep streams apart here? It does for single clips, and as long as no video changes."""
    return all(len({tuple(names) for names in group}) == 1 or len(next(iter(group))) == 1 for group in
               [[names for names in run if names] for _, run in groupby(videos, key=lambda names: names is None)]
               if group)  # fmt: skip


@pytest.mark.parametrize("case", SEQUENCES, ids=name)
@torch.inference_mode()
def test_memory_over_a_sequence(case: Case, parity: Parity) -> None:
    expected, videos = case.expected, steps(case)
    tag, reach = said(case, r"key = `in\.(\w+)\.t\{t\}"), Reach.of(sampler(case), 3)
    memory = BatchMemory(reach)
    net = single(case, memory)
    step, kept_keys = 0, {}
    for names in videos:
        if names is None:
            memory.clear()
            continue
        features = net.features(torch.stack([pixels(f"in.{tag}.t{step}.s{i}", 16) for i in range(len(names))]), names)
        logits = net.head(features)
        parity.check(f"logits_{step}", logits, expected[f"logits_{step}"], atol=2e-4)
        parity.check(f"cls_{step}", features[:, :64], expected[f"cls_{step}"], atol=2e-4)
        parity.check(f"prob5_{step}", logits.softmax(-1)[:, :5], expected[f"prob5_{step}"], atol=2e-4)
        selected = [*memory.selection, *[-1] * (expected["selection"].shape[1] - len(memory.selection))]
        assert selected == expected["selection"][step].tolist()
        kept = expected["cache_len_after"][step]
        assert (len(memory.entries[0]), len(memory.names)) == (kept[0], kept[1])
        for place, (keys, _) in enumerate(memory.entries[0]):
            key = f"cache_k_b0_{step}_{place}"
            if key in expected:
                assert list(keys.shape) == expected[f"{key}_shape"].tolist()
                kept_keys[key] = keys[:, :4, :8]
        step += 1
    for key, keys in kept_keys.items():  # rows that were zeroed since, for another video, are zero in the case too
        parity.check(key, keys, expected[key], atol=2e-4)


@pytest.mark.parametrize("case", [case for case in SEQUENCES if independent(steps(case))], ids=name)
@torch.inference_mode()
def test_streams_of_clips_say_the_same_where_the_original_keeps_videos_apart(case: Case, parity: Parity) -> None:
    """The other memory, which keeps projected keys and values, until a step that attends to what it keeps."""
    expected, tag, reach = case.expected, said(case, r"key = `in\.(\w+)\.t\{t\}"), Reach.of(sampler(case), 3)
    net = single(case, ClipMemory(reach))
    for step, names in enumerate(steps(case)[: reach.gap + 1]):
        clips = torch.stack([pixels(f"in.{tag}.t{step}.s{i}", 16) for i in range(len(names or ()))])
        parity.check(f"logits_{step}", net.head(net.features(clips, names)), expected[f"logits_{step}"], atol=2e-4)


@pytest.fixture(scope="module")
def forks() -> dict[str, Network]:
    """The LTA fork's forecaster: causal, widened in its MLPs, a memory of batches keyed by sample."""
    memory = MemoryConfig(mode="reference", key="sample")
    wish = ModelConfig(backbone="memvit_16", causal=True)
    return {name(case): convert.open_network(case.weights(), cfg=wish, memory=memory)[0] for case in FORK}


RUNS = {"new": [[0, 1], [2, 3], [4, 5]], "same": [[7, 9], [7, 9], [7, 9]], "b1": [[3], [3], [3], [8]]}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", FORK, ids=name)
@torch.inference_mode()
def test_the_forks_wiring(case: Case, run: str, forks: dict[str, Network], parity: Parity) -> None:
    net, expected, tag = forks[name(case)], case.expected, f"in.mml{run}"
    net.forget()
    assert isinstance(net.memory, BatchMemory)
    for step, ids in enumerate(RUNS[run]):
        features = net.encode(windows(f"{tag}.t{step}", len(ids), 2, 16), [Place(each, 0) for each in ids])
        outputs = net(features=features)
        segments = net.backbone.head(features).transpose(0, 1)  # clips in order
        parity.check(
            f"features_{step}", segments[..., :128], expected[f"{run}_features"][2 * step : 2 * step + 2], atol=5e-4
        )
        parity.check(f"verb_{step}", outputs.verb[:, ::4], expected[f"{run}_verb_{step}"], atol=5e-4)
        parity.check(f"noun_{step}", outputs.noun[:, ::4], expected[f"{run}_noun_{step}"], atol=5e-4)
        parity.check(f"stats_{step}", stats(outputs.verb), expected[f"{run}_verb_stats_{step}"], atol=5e-4)
        selected = [i for i in expected[f"{run}_selection"][2 * step + 1].tolist() if i >= 0]
        assert net.memory.selection == selected
    assert len(net.memory.names) == expected[f"{run}_cache_len"][0]


@pytest.mark.parametrize("mode", ["reference", "clip"])
@pytest.mark.parametrize("case", FORK, ids=name)
@torch.inference_mode()
def test_identical_clips_after_other_batches(case: Case, mode: str, forks: dict[str, Network], parity: Parity) -> None:
    """In the original the same clips say something else after batches of other videos; here they need not."""
    expected, net = case.expected, forks[name(case)]
    config = MemoryConfig(mode=mode)
    other = model.build(ModelConfig(backbone="memvit_nano"), config, task="recognition", classes=(2, 2), crop=32)
    before, net.backbone.memory = net.backbone.memory, other.memory  # an empty one
    clips = windows("in.mmlsame", 2, 2, 16)
    try:
        for number in range(3 if mode == "reference" else 1):
            net.encode(windows(f"in.mmlother{number}", 2, 2, 16), [Place(2 * number, 1), Place(2 * number + 1, 1)])
        after = net(clips, streams=[Place(200, 1), Place(201, 1)]).verb[:, ::4]
    finally:
        net.backbone.memory = before
    wanted = expected["identical_first" if mode == "clip" else "identical_after_three_other_batches"]
    parity.check("after", after, wanted, atol=5e-4)
    assert np.abs(expected["identical_first"] - expected["identical_after_three_other_batches"]).max() > 0.1
