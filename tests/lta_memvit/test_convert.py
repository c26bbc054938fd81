"""Official files of every layout open whole, or not at all; nothing in them runs."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.checkpoint import read_weights
from projects.lta_memvit import convert, model, official
from projects.lta_memvit.config import MemoryConfig, ModelConfig
from projects.lta_memvit.model import Network
from tests.support import Case, cases

KEYS = [case for case in cases("lta_memvit") if (case.path / "keys.json").exists()]
BACKBONES = ("slowfast_nano", "mvit_nano", "memvit_nano")
HEAD = {"weight": (32,), "bias": ()}


def build(backbone: str, task: str = "recognition", **options: Any) -> Network:
    torch.manual_seed(0)
    wish = {key: options.pop(key) for key in ("aggregator", "widen", "heads", "layers") if key in options}
    geometry = {"classes": (115, 478), "inputs": 2, "future": 3, "frames": 8, "crop": 32} | options
    return model.build(ModelConfig(backbone=backbone, **wish), MemoryConfig(), task=task, **geometry).eval()


def lightning(net: Network, path: Path, **more: Any) -> Path:
    """A file as Lightning writes it: objects beside weights that have names of the official code."""
    tensors = official.official_names(net.state_dict())
    torch.save({"state_dict": {f"model.{name}": value for name, value in tensors.items()}, "epoch": 3, **more}, path)
    return path


def caffe2_names(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """PySlowFast's names of a SlowFast as Caffe2 has them."""
    blobs: dict[str, np.ndarray] = {}
    last = {1: "pool1", 2: "res2_2_branch2c_bn", 3: "res3_3_branch2c_bn", 4: "res4_22_branch2c_bn"}
    for name, value in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        stage, _, rest = name.partition(".")
        leaf = rest.rsplit(".", 1)[-1]
        ends = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
        t = "t_" if "pathway1" in name else ""
        if stage == "head":
            blob = f"pred_{leaf[0]}"
        elif stage.endswith("_fuse"):
            start = f"t_{last[int(stage[1])]}_subsample"
            blob = f"{start}_bn_{ends[leaf]}" if rest.startswith("bn") else f"{start}_w"
        elif stage == "s1":
            blob = f"{t}res_conv1_bn_{ends[leaf]}" if ".bn." in name else f"{t}conv1_w"
        else:
            block = rest.split(".")[0].split("_res")[1]
            branch = rest.split(".", 1)[1].rsplit(".", 1)[0].replace("branch2.", "branch2")
            norm = branch.endswith("_bn")
            blob = f"{t}res{stage[1]}_{block}_{branch}_{ends[leaf] if norm else 'w'}"
        assert blob not in blobs
        blobs[blob] = value.numpy()
    return blobs


# ----------------------------------------------------------------------------------------------- the official key lists


@pytest.mark.parametrize("case", KEYS, ids=lambda case: case.path.name)
def test_official_key_lists_have_a_place_each(case: Case) -> None:
    """Names and shapes of the published layouts against ours, without memory for the values."""
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in case.json("keys.json").items()}
    tensors = official.our_names(shapes)
    found = official.identify(tensors)
    inputs = found.inputs if found.kind == "forecaster" else 1
    with torch.device("meta"):
        if found.kind == "classifier":  # as a start for training
            net = build(found.backbone, frames=16, crop=224)
            tensors = {name: value for name, value in tensors.items() if ".head." not in name}
        else:
            task = "forecasting" if found.kind == "forecaster" else "recognition"
            net = model.build(
                convert._config(found, ModelConfig(), repeat=False), MemoryConfig(), task=task,
                classes=found.classes, inputs=inputs, future=found.future, frames=found.frames or 32, crop=224,
            )  # fmt: skip
    own = net.state_dict()
    if found.kind == "classifier":
        own = {name: value for name, value in own.items() if ".head." not in name}
    analytic = {name for name in own if name.endswith("pos_encoder.pe")}
    assert own.keys() - tensors.keys() <= analytic
    assert tensors.keys() <= own.keys()
    assert all(tensors[name].shape == own[name].shape for name in tensors)
    assert found.widen == ("mlp" if "lta" in case.path.name and found.backbone == "memvit_16" else "attention")


def test_what_shapes_tell() -> None:
    case = next(case for case in KEYS if case.path.name == "slowfast_r101_lta_trf")
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in case.json("keys.json").items()}
    found = official.identify(official.our_names(shapes))
    assert (found.backbone, found.transformer, found.classes) == ("slowfast_r101", 6, (117, 521))
    assert str(found) == "slowfast_r101 forecaster (transformer), 20 actions, 117 verbs, 521 nouns"


# ----------------------------------------------------------------------------------------------------------- containers


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("task", ["recognition", "forecasting"])
def test_lightning_and_pyslowfast_files_open_as_they_were(backbone: str, task: str, tmp_path: Path) -> None:
    net = build(backbone, task)
    ours = lightning(net, tmp_path / "model.ckpt", hyper_parameters={"cfg": OrderedDict(ARCH="x")})
    convert.export(net.state_dict(), tmp_path / "model.pyth", "pyslowfast")
    convert.export(net.state_dict(), tmp_path / "again.ckpt", "lightning")
    options = {"frames": 8, "crop": 32}
    for path in (ours, tmp_path / "model.pyth", tmp_path / "again.ckpt"):
        opened, found = convert.open_network(path, **options)
        assert found.backbone == backbone
        assert found.kind == ("forecaster" if task == "forecasting" else "recognizer")
        own = opened.state_dict()
        assert own.keys() == net.state_dict().keys()
        assert all(own[name].equal(value) for name, value in net.state_dict().items())


CALLED: list[str] = []


def rebuild(name: str) -> Callback:
    CALLED.append(name)
    return Callback()


class Callback:
    """What a Lightning checkpoint carries; opening one must not need it, let alone call it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, ("x",)


def test_objects_in_a_checkpoint_are_not_made(tmp_path: Path) -> None:
    net = build("slowfast_nano")
    path = lightning(net, tmp_path / "model.ckpt", callbacks={Callback: {"best": 1}}, extra=Callback())
    opened, _ = convert.open_network(path, frames=8, crop=32)
    assert not CALLED
    assert opened.state_dict()["backbone.s1.pathway0_stem.conv.weight"].equal(
        net.state_dict()["backbone.s1.pathway0_stem.conv.weight"]
    )


def test_caffe2_files_start_a_training(tmp_path: Path) -> None:
    """Every blob has a place; what the optimizer left is not looked at."""
    net = build("slowfast_r50", classes=(3, 4))
    tensors = {k.removeprefix("backbone."): v for k, v in net.state_dict().items() if ".head." not in k}
    blobs = caffe2_names(tensors) | {"pred_w": np.zeros((400, 2304), "f"), "pred_b": np.zeros(400, "f")}
    blobs |= {"conv1_w_momentum": np.zeros(3, "f"), "lr": np.zeros(1, "f"), "model_iter": np.zeros(1)}
    path = tmp_path / "SLOWFAST_8x8_R50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    torch.manual_seed(1)
    other = model.build(ModelConfig(backbone="slowfast_r50"), MemoryConfig(), task="recognition", classes=(3, 4))
    report = convert.load(other, path, head=False)
    assert {name for name in report.loaded.missing if "num_batches" not in name} == {
        f"backbone.head.projections.{k}.{leaf}" for k in (0, 1) for leaf in ("weight", "bias")
    }
    for name, value in tensors.items():
        assert other.state_dict()[f"backbone.{name}"].equal(value), name


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        ("nonlocal_conv4_5_theta_w", "s4.pathway0_nonlocal5.conv_theta.weight"),
        ("nonlocal_conv4_5_bn_riv", "s4.pathway0_nonlocal5.bn.running_var"),
        ("t_res4_22_branch2c_bn_subsample_bn_rm", "s4_fuse.bn.running_mean"),
        ("t_pool1_subsample_w", "s1_fuse.conv_f2s.weight"),
        ("res_conv1_bn_s", "s1.pathway0_stem.bn.weight"),
        ("t_conv1_w", "s1.pathway1_stem.conv.weight"),
        ("res3_0_branch1_bn_b", "s3.pathway0_res0.branch1_bn.bias"),
        ("t_res5_2_branch2b_w", "s5.pathway1_res2.branch2.b.weight"),
        ("pred_b", "head.projection.bias"),
        ("res3_0_branch1_w_momentum", None),
        ("lr", None),
    ],
)
def test_blobs(blob: str, name: str | None) -> None:
    assert official.caffe2_name(blob) == name


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("never",)

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": Evil()}}))
    with pytest.raises(ValueError, match=r"model\.pkl"):
        official.read(path)


# -------------------------------------------------------------------------------------------------------- what must fit


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_that_lacks_a_tensor_is_refused(backbone: str) -> None:
    """The original loads nothing at all here, and says nothing."""
    net, other = build(backbone, "forecasting"), build(backbone)
    name = next(key for key in other.state_dict() if key.endswith(("branch2.c.weight", "mlp.fc1.weight")))
    tensors = other.state_dict()
    tensors.pop(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=f"missing \\(1\\):\n    {name}"):
        convert.load(net, tensors, head=False)
    with pytest.raises(ValueError, match="neither SlowFast, MViT nor MeMViT"):
        convert.load(net, {"zoo.weight": torch.zeros(2)}, head=False)
    assert all(before[key].equal(value) for key, value in net.state_dict().items())


def test_the_forks_architecture_does_not_take_the_published_weights() -> None:
    with pytest.raises(ValueError, match="of another shape"):
        convert.load(build("memvit_nano", widen="mlp"), build("memvit_nano").state_dict(), head=False)


def test_weights_of_another_backbone_are_named() -> None:
    with pytest.raises(ValueError, match="the file holds a mvit_nano recognizer"):
        convert.load(build("slowfast_nano"), build("mvit_nano").state_dict())


def test_a_classifier_is_no_answer_but_a_start() -> None:
    net = build("memvit_nano")
    tensors = {k: v for k, v in net.state_dict().items() if ".head." not in k}
    tensors |= {
        "backbone.head.projection.weight": torch.zeros(400, 32),
        "backbone.head.projection.bias": torch.zeros(400),
    }
    with pytest.raises(ValueError, match="it knows neither verbs nor nouns"):
        convert.open_network(tensors)
    report = convert.load(build("memvit_nano", "forecasting"), tensors, head=False)
    assert len(report.loaded.loaded) == len(tensors) - 2
    assert not report.fresh


def test_a_forecaster_of_other_classes_asks_how_many_are_verbs() -> None:
    tensors = build("mvit_nano", "forecasting", classes=(5, 6)).state_dict()
    with pytest.raises(ValueError, match="11 classes are those of no version of Ego4D"):
        convert.open_network(tensors)
    _, found = convert.open_network(tensors, classes=(5, 6))
    assert found.classes == (5, 6)


@pytest.mark.parametrize(("aggregator", "inputs"), [("concat", 3), ("mean", 1), ("transformer", 1)])
def test_aggregators_are_told_by_shapes(aggregator: str, inputs: int) -> None:
    net = build("mvit_nano", "forecasting", aggregator=aggregator, inputs=3, heads=2, layers=2)
    tensors = {name: value for name, value in net.state_dict().items() if not name.endswith(".pe")}
    opened, found = convert.open_network(tensors, cfg=ModelConfig(aggregator=aggregator, heads=2))
    assert found.inputs == inputs
    clips = torch.randn(1, 3, 3, 8, 32, 32)
    assert opened(clips).verb.equal(net(clips).verb)


# ----------------------------------------------------------------------------------------------------- rules for tables


def test_weights_for_another_size_of_clips() -> None:
    """Longer and larger clips: tables of rows and columns are interpolated, the last row of times is repeated."""
    small, large = build("memvit_nano"), build("memvit_nano", frames=16, crop=64)
    report = convert.load(large, small.state_dict())
    assert report.adapted
    assert "made to fit" in str(report)
    name = "backbone.blocks.0.attn.rel_pos_"
    before, after = small.state_dict(), large.state_dict()
    times = before[f"{name}t"]
    assert after[f"{name}t"][: len(times)].equal(times)
    assert (after[f"{name}t"][len(times) :] == times[-1]).all()
    heights = torch.nn.functional.interpolate(before[f"{name}h"].T[None], size=31, mode="linear")[0].T
    torch.testing.assert_close(after[f"{name}h"], heights)
    back = build("memvit_nano")
    convert.load(back, large.state_dict())
    assert back.state_dict()[f"{name}t"].equal(times)

    absolute = build("mvit_nano", frames=16, crop=64)
    convert.load(absolute, build("mvit_nano").state_dict())
    assert absolute(torch.zeros(1, 3, 16, 64, 64)).verb.isfinite().all()


def test_projections_split_and_joined() -> None:
    """`qkv` as three layers and back; MViT with three has the same answers."""
    fused = build("mvit_nano").state_dict()
    names = [name for name in fused if ".attn.qkv." in name]
    target = {name.replace(".qkv.", f".{part}."): fused[name] for name in names for part in "qkv"}
    target |= {name: value for name, value in fused.items() if name not in names}
    split = convert._projections(fused, target)
    assert split.keys() == target.keys()
    again = convert._projections(split, fused)
    assert all(again[name].equal(value) for name, value in fused.items())
    net = build("mvit_nano")
    report = convert.load(net, split)
    assert len(report.adapted) == len(names)


def test_missing_memory_is_said_aloud_and_half_of_it_refused() -> None:
    net = build("memvit_nano")
    memory = [name for name in net.state_dict() if "compress" in name or "_mem_" in name]
    bare = {name: value for name, value in net.state_dict().items() if name not in memory}
    report = convert.load(build("memvit_nano"), bare)
    assert sorted(report.fresh) == sorted(memory)
    assert "the file has no weights for memory" in str(report)
    with pytest.raises(ValueError, match="missing"):
        convert.load(build("memvit_nano"), bare | {memory[0]: net.state_dict()[memory[0]]})


@given(old=st.integers(1, 30), now=st.integers(1, 30))
def test_tables_of_times_keep_their_rows(old: int, now: int) -> None:
    table = torch.arange(old * 2.0).view(old, 2)
    fitted = convert._resized("blocks.0.attn.rel_pos_mem_t", table, torch.zeros(now, 2))
    assert fitted.shape == (now, 2)
    assert fitted[: min(old, now)].equal(table[:now])


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = build("mvit_nano", "forecasting")
    source, ours, back = (tmp_path / name for name in ("lta.ckpt", "lta.safetensors", "back.ckpt"))
    lightning(net, source)
    convert.main([str(source), str(ours)])
    assert "mvit_nano forecaster (2 inputs concatenated), 3 actions, 115 verbs, 478 nouns" in capsys.readouterr().out
    convert.main([str(ours), str(back), "--to", "lightning"])
    tensors, _ = read_weights(back)
    wanted, _ = read_weights(source)
    assert tensors.keys() == wanted.keys()
    assert all(tensors[name].equal(value) for name, value in wanted.items())
    with pytest.raises(SystemExit, match=r"convert: .*nothing\.ckpt"):
        convert.main([str(tmp_path / "nothing.ckpt"), str(ours)])
