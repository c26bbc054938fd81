"""The feature cache: what is kept is enough, and the files survive what happens to files."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.checkpoint import Store, read_weights
from projects.ucf50_x3d import data, features, model, train
from projects.ucf50_x3d.config import ClipConfig
from projects.ucf50_x3d.features import CachedHead, FeatureClips, condense, fingerprint
from projects.ucf50_x3d.model import X3D
from tests.ucf50_x3d.tiny import configured, nano, settings, started

CLIP = ClipConfig(frames=8, crop=40)
HEAD = "blocks.5.proj."


def positions(batch: int = 3, *, channels: int = 256, shape: tuple[int, int, int] = (2, 1, 3)) -> Tensor:
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(3)).relu()


# ------------------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("dropout", [0.2, 0.5])
def test_moments_give_logits_the_mean_and_covariance_of_dropout_at_every_position(dropout: float) -> None:
    """Both against the formula, by 20,000 draws: proj(mean) and W diag(p / (1 - p) * mean(x^2) / positions) W'."""
    draws, net = 20_000, nano(3, dropout=dropout)
    net.blocks[-1].proj = torch.nn.Linear(5, 3)
    clip = positions(1, channels=5)
    weight = net.blocks[-1].proj.weight.detach()
    mean = net.blocks[-1].proj(clip.mean((2, 3, 4))).detach()[0]
    variance = dropout / (1 - dropout) * clip.square().mean((2, 3, 4))[0] / 6
    covariance = weight @ variance.diag() @ weight.T

    head = CachedHead(net)
    net.train()
    with torch.no_grad():
        true = net.classify(clip.expand(draws, -1, -1, -1, -1))
        ours = head(condense(clip, "moments").expand(draws, -1, -1))
    error = 5 * covariance.diag().sqrt().max() / draws**0.5
    for logits in (true, ours):
        torch.testing.assert_close(logits.mean(0), mean, atol=float(error), rtol=0)
        torch.testing.assert_close(logits.T.cov(), covariance, atol=float(covariance.abs().max()) * 0.05, rtol=0)


def test_in_evaluation_both_forms_answer_as_the_network() -> None:
    net, clips = nano().eval(), positions()
    head, expected = CachedHead(net), net.classify(clips)
    torch.testing.assert_close(head(condense(clips, "moments")), expected, atol=1e-6, rtol=1e-6)
    kept = condense(clips, "positions")
    assert kept.dtype == torch.float16
    assert kept.shape == clips.shape
    assert torch.equal(head(kept), net.classify(kept.float()))
    torch.testing.assert_close(head(kept), expected, atol=1e-3, rtol=0)


def test_positions_are_dropped_exactly_as_in_the_network() -> None:
    net = nano()
    model.train(model.freeze(net))
    kept = condense(positions(), "positions")
    torch.manual_seed(5)
    expected = net.classify(kept.float())
    torch.manual_seed(5)
    assert torch.equal(CachedHead(net)(kept), expected)
    assert not torch.equal(CachedHead(net)(kept), expected), "another draw"


def test_moments_by_hand() -> None:
    clip = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]]).view(1, 2, 2, 1, 1)
    assert condense(clip, "moments").tolist() == [[[2.0, 1.0], [(1 + 9) / 2 / 2, (0 + 4) / 2 / 2]]]


def test_without_dropout_moments_have_no_noise() -> None:
    net = nano(dropout=0.0)
    kept = condense(positions(), "moments")
    assert torch.equal(CachedHead(net.train())(kept), CachedHead(net.eval())(kept))


# --------------------------------------------------------------------------------------------------------- its name


def test_the_name_follows_everything_but_the_head(tmp_path: Path) -> None:
    name = fingerprint(nano(), CLIP, "moments", tmp_path)
    assert fingerprint(nano(), CLIP, "moments", tmp_path) == name
    other_head = nano()
    torch.nn.init.zeros_(other_head.blocks[-1].proj.weight)
    assert fingerprint(other_head, CLIP, "moments", tmp_path) == name
    assert fingerprint(model.replace_head(nano(), 7), CLIP, "moments", tmp_path) == name, "another number of classes"

    changed = {"kind": fingerprint(nano(), CLIP, "positions", tmp_path)}
    changed["root"] = fingerprint(nano(), CLIP, "moments", tmp_path / "other")
    for key, value in {"frames": 9, "crop": 48, "sampling": "window", "rate": 3, "mean": (0.5, 0.45, 0.45)}.items():
        changed[key] = fingerprint(nano(), CLIP.model_copy(update={key: value}), "moments", tmp_path)
    for key in (
        "blocks.1.res_blocks.0.branch2.conv_a.weight",
        "blocks.0.norm.running_mean",
        "blocks.5.pool.post_conv.weight",
    ):
        net = nano()
        net.state_dict()[key].view(-1)[0].add_(1e-3)
        changed[key] = fingerprint(net, CLIP, "moments", tmp_path)
    assert len({name, *changed.values()}) == 1 + len(changed), changed


# --------------------------------------------------------------------------------------------------------- its files


def test_clips_are_read_from_what_was_kept(tmp_path: Path) -> None:
    cache, kept = Store(tmp_path), torch.randn(2, 2, 4)
    cache.write(["a/1", "b/2"], kept)
    cache.refresh()
    clips = FeatureClips(cache, ["b/2", "a/1"], [4, 2])
    sample = clips.sample(1, None)
    assert (len(clips), sample["id"], sample["label"]) == (2, "a/1", 2)
    assert torch.equal(sample["features"], kept[0])


# ----------------------------------------------------------------------------------------------- filled by a backbone


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips each pass of a backbone saw."""
    seen: list[int] = []
    original: Callable[[X3D, Tensor], Tensor] = X3D.features

    def features_of(net: X3D, video: Tensor) -> Tensor:
        seen.append(len(video))
        return original(net, video)

    monkeypatch.setattr(X3D, "features", features_of)
    return seen


def test_a_stopped_pass_goes_on_with_what_is_missing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    cfg = configured(
        tiny, tmp_path / "run", "features.cache=moments", f"features.folder={tmp_path}", "eval.batch_size=3"
    )
    net, benchmark = nano(), data.load(cfg.data)
    monkeypatch.setattr(features, "CLIPS_PER_FILE", 2)
    keep = Store.write

    def write_and_stop(cache: Store, *args: object) -> None:
        keep(cache, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, started(cfg) as job:
        patch.setattr(Store, "write", write_and_stop)
        assert not features.compute(net, benchmark, cfg, job)
    assert passes == [3]
    with started(cfg) as job:
        assert features.compute(net, benchmark, cfg, job)
        assert passes == [3, 3, 2, 3, 1], "5 of 8 training clips, 4 of validation"
        assert features.compute(net, benchmark, cfg, job)
        assert len(passes) == 5, "everything is there"

    clips, cached = benchmark.dataset("train", cfg.clip), features.dataset(net, benchmark, "train", cfg)
    assert (list(cached.ids), list(cached.labels)) == (clips.ids, clips.labels)
    prepare, net = data.pipeline(cfg.clip), net.eval()
    for index in (0, 5, 7):
        video = prepare(clips.sample(index, None)["video"][None], [None])
        with torch.no_grad():
            expected = condense(net.features(video), "moments")[0]
        torch.testing.assert_close(cached.sample(index, None)["features"], expected, atol=1e-5, rtol=1e-5)


def test_unreadable_clips_are_named_and_left_out(tiny: Path, tmp_path: Path, passes: list[int]) -> None:
    root = tmp_path / "clips"
    shutil.copytree(tiny, root)
    cfg = configured(root, tmp_path / "run", "features.cache=moments", f"features.folder={tmp_path / 'cache'}")
    net, benchmark = nano(), data.load(cfg.data)
    train_ids, val_ids = (benchmark.dataset(part, cfg.clip).ids for part in ("train", "val"))
    for name in (train_ids[2], val_ids[0]):
        (root / name).write_bytes(b"this is no video")
    with started(cfg) as job:
        assert features.compute(net, benchmark, cfg, job)
        assert sum(passes) == 7 + 3
        parts = [features.dataset(net, benchmark, part, cfg) for part in ("train", "val")]
    assert list(parts[0].ids) == [name for name in train_ids if name != train_ids[2]]
    assert list(parts[1].ids) == val_ids[1:]
    log = (tmp_path / "run/run.log").read_text()
    for name in (train_ids[2], val_ids[0]):
        assert f"{root / name}:" in log

    (root / train_ids[5]).write_bytes(b"")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match="2 of 8 training clips cannot be read"), started(cfg) as job:
        features.compute(net, benchmark, cfg, job)


# ------------------------------------------------------------------------------------------------- trained from it


def test_a_head_trained_from_the_cache_is_the_head_trained_on_video(tiny: Path, tmp_path: Path) -> None:
    """Six steps without dropout; the file of a cached run holds the whole network."""
    start = tmp_path / "start.pt"
    torch.save(nano().state_dict(), start)
    results, tensors = {}, {}
    for kind in ("none", "moments", "positions"):
        more = ("model.dropout=0", f"model.init={start}", f"features.cache={kind}", f"features.folder={tmp_path}")
        results[kind] = train.main(settings(tiny, tmp_path / kind, *more))
        tensors[kind], _ = read_weights(tmp_path / kind / "checkpoints/last.safetensors")
    fresh = nano().state_dict()
    for key, value in tensors["none"].items():
        assert torch.equal(value, fresh[key]) != key.startswith(HEAD), f"{key}: the head learns, nothing else"
    for kind, tolerance in {"moments": 1e-5, "positions": 2e-4}.items():  # the latter in 16 bit
        assert tensors[kind].keys() == tensors["none"].keys()
        for key, value in tensors["none"].items():
            torch.testing.assert_close(tensors[kind][key], value, atol=tolerance, rtol=0)
        assert results[kind]["test/loss"] == pytest.approx(results["none"]["test/loss"], abs=10 * tolerance)
        assert results[kind]["test/clips_scored"] == 4
