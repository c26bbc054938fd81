"""Official files of every kind, recognized, loaded, refused when they do not fit, written back."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.checkpoint import read_weights, save_weights
from projects.ucf50_x3d import convert
from projects.ucf50_x3d.model import X3D, SlowFast
from tests.support import cases


@cache
def _weights(case: str) -> dict[str, Tensor]:
    return cases("ucf50_x3d", case)[0].weights()


def weights(case: str) -> dict[str, Tensor]:
    """The official state-dict of a golden case."""
    return dict(_weights(case))


def pathway_names(name: str) -> str:
    """SlowFast's own name of one of the hub's `slowfast_r50` tensors, written independently of the rules."""
    name = re.sub(r"^blocks\.0\.multipathway_blocks\.(\d)\.conv", r"s1.pathway\1_stem.conv", name)
    name = re.sub(r"^blocks\.0\.multipathway_blocks\.(\d)\.norm", r"s1.pathway\1_stem.bn", name)
    for stage in range(5):
        name = name.replace(f"blocks.{stage}.multipathway_fusion.conv_fast_to_slow", f"s{stage + 1}_fuse.conv_f2s")
        name = name.replace(f"blocks.{stage}.multipathway_fusion.norm", f"s{stage + 1}_fuse.bn")
        name = re.sub(
            rf"^blocks\.{stage}\.multipathway_blocks\.(\d)\.res_blocks\.(\d+)", rf"s{stage + 1}.pathway\1_res\2", name
        )
    name = re.sub(r"branch2\.conv_([abc])", r"branch2.\1", name)
    name = re.sub(r"branch2\.norm_([abc])", r"branch2.\1_bn", name)
    name = name.replace("branch1_conv", "branch1").replace("branch1_norm", "branch1_bn")
    return name.replace("blocks.6.proj", "head.projection")


def config_text(frames: int, depth: float) -> str:
    """The part that matters of the configuration in a SlowFast checkpoint."""
    return f"DATA:\n  NUM_FRAMES: {frames}\n  TRAIN_CROP_SIZE: 224\nX3D:\n  DEPTH_FACTOR: {depth}\n"


# ------------------------------------------------------------------------------------------------------- what is found


def test_hub_file(tmp_path: Path) -> None:
    state = weights("x3d_s_hub")
    torch.save({"model_state": state}, tmp_path / "X3D_S.pyth")
    model, found = convert.open_model(tmp_path / "X3D_S.pyth")
    assert isinstance(model, X3D)
    assert (model.variant, model.training) == ("s", False)
    assert str(found) == "X3D-S, hub names, 400 classes"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("case", "frames", "depth", "variant", "entries"),
    [
        ("slowfast_x3d_xs", 4, 2.2, "xs", 568),
        ("slowfast_x3d_m", 16, 2.2, "m", 568),
        ("slowfast_x3d_l", 16, 5.0, "l", 1146),
    ],
)
def test_slowfast_checkpoint(tmp_path: Path, case: str, frames: int, depth: float, variant: str, entries: int) -> None:
    state = weights(case)
    assert len(state) == entries
    path = tmp_path / "checkpoint_epoch_00300.pyth"
    torch.save(
        {
            "epoch": 299,
            "model_state": state,
            "optimizer_state": {"state": {}, "param_groups": []},
            "cfg": config_text(frames, depth),
        },
        path,
    )
    model, found = convert.open_model(path)
    assert isinstance(model, X3D)
    assert (model.variant, found.layout, found.shortcut_norm) == (variant, "slowfast", True)
    ours = model.state_dict()
    assert len(ours) == entries
    mapping = cases("ucf50_x3d", case)[0].json("mapping.json")
    for old, hub in mapping.items():
        hub = hub or old.replace("s2.pathway0_res0.branch1_bn", "blocks.1.res_blocks.0.branch1_norm")
        assert torch.equal(ours[hub], state[old]), old


def test_original_run(tmp_path: Path) -> None:
    """The original saves a bare state-dict of 50 classes that says nothing else."""
    torch.save(weights("train_head_50"), tmp_path / "run_20250226-164423.pth")
    with pytest.raises(ValueError, match=r"X3D-XS or X3D-S or X3D-M.*variant=s"):
        convert.open_model(tmp_path / "run_20250226-164423.pth")
    model, found = convert.open_model(tmp_path / "run_20250226-164423.pth", variant="s")
    assert (found.classes, found.shortcut_norm) == (50, False)
    assert torch.equal(model.blocks[-1].proj.weight, weights("train_head_50")["blocks.5.proj.weight"])


def test_slowfast_r50_in_both_layouts(tmp_path: Path) -> None:
    state = weights("slowfast_r50_hub")
    torch.save({"model_state": state}, tmp_path / "SLOWFAST_8x8_R50.pyth")
    renamed = {pathway_names(name): value for name, value in state.items()}
    assert len(renamed) == len(state)
    assert not any(name.startswith("blocks") for name in renamed)
    assert "s4_fuse.conv_f2s.weight" in renamed
    torch.save({"model_state": renamed, "epoch": 195}, tmp_path / "checkpoint.pyth")
    for file, layout in (("SLOWFAST_8x8_R50.pyth", "hub"), ("checkpoint.pyth", "slowfast")):
        model, found = convert.open_model(tmp_path / file)
        assert isinstance(model, SlowFast)
        assert found.layout == layout
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# --------------------------------------------------------------------------------------------------- into a given model


def test_load_with_other_classes_keeps_the_head(tmp_path: Path) -> None:
    torch.save({"model_state": weights("x3d_s_hub")}, tmp_path / "X3D_S.pyth")
    model = X3D("s", 50)
    head = model.blocks[-1].proj.weight.clone()
    report = convert.load(model, tmp_path / "X3D_S.pyth")
    assert len(report.loaded) == 561
    assert sorted(report.missing) == sorted(report.dropped) == ["blocks.5.proj.bias", "blocks.5.proj.weight"]
    assert torch.equal(model.blocks[-1].proj.weight, head)
    assert torch.equal(model.blocks[0].conv.conv_t.weight, weights("x3d_s_hub")["blocks.0.conv.conv_t.weight"])


def test_load_adds_the_norm_that_slowfast_has(tmp_path: Path) -> None:
    state = weights("slowfast_x3d_xs")
    torch.save({"model_state": state}, tmp_path / "any.pyth")
    model = X3D("xs")
    report = convert.load(model, tmp_path / "any.pyth")
    assert len(report.loaded) == 568
    norm = model.blocks[1].res_blocks[0].branch1_norm
    assert torch.equal(norm.running_mean, state["s2.pathway0_res0.branch1_bn.running_mean"])


@pytest.mark.parametrize(
    ("file", "model", "words"),
    [
        ("X3D_S.pyth", lambda: X3D("m"), r"X3D_S\.pyth holds X3D-S.*the model is X3D-M.*model\.name=x3d_s"),
        ("renamed.pyth", lambda: X3D("l"), r"X3D-XS or X3D-S or X3D-M.*the model is X3D-L"),
        ("X3D_S.pyth", SlowFast, r"holds X3D-S.*the model is SlowFast R50"),
        ("X3D_S.pyth", lambda: torch.nn.Linear(1, 1), "an X3D or a SlowFast.*Linear"),
    ],
)
def test_load_refuses_another_network(tmp_path: Path, file: str, model: object, words: str) -> None:
    torch.save({"model_state": weights("x3d_s_hub")}, tmp_path / file)
    with pytest.raises(ValueError, match=words):
        convert.load(model(), tmp_path / file)


@pytest.mark.parametrize(
    ("variant", "words"), [("l", "not X3D-L"), ("m", "not X3D-M"), ("xxl", "no X3D variant 'xxl'")]
)
def test_open_refuses_another_variant(tmp_path: Path, variant: str, words: str) -> None:
    torch.save({"model_state": weights("x3d_s_hub")}, tmp_path / "X3D_S.pyth")
    with pytest.raises(ValueError, match=words):
        convert.open_model(tmp_path / "X3D_S.pyth", variant=variant)


def test_a_name_that_its_shapes_belie(tmp_path: Path) -> None:
    torch.save({"model_state": weights("x3d_s_hub")}, tmp_path / "X3D_L.pyth")
    with pytest.raises(ValueError, match=r"says it is X3D-L.*shapes are of X3D-XS or X3D-S or X3D-M"):
        convert.open_model(tmp_path / "X3D_L.pyth")


def test_files_of_something_else(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "else.pth")
    with pytest.raises(ValueError, match=r"else\.pth: weights of neither.*conv_t.*found layer\.weight"):
        convert.open_model(tmp_path / "else.pth")
    with pytest.raises(ValueError, match=r"nothing\.pth"):
        convert.open_model(tmp_path / "nothing.pth")


def test_a_file_with_missing_tensors(tmp_path: Path) -> None:
    state = weights("x3d_s_hub")
    del state["blocks.3.res_blocks.4.branch2.norm_c.weight"]
    torch.save(state, tmp_path / "X3D_S.pyth")
    with pytest.raises(ValueError, match=r"missing \(1\).*\n.*blocks\.3\.res_blocks\.4\.branch2\.norm_c\.weight"):
        convert.open_model(tmp_path / "X3D_S.pyth")


# ---------------------------------------------------------------------------------------------------------- the command


def test_command_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = weights("train_head_50")
    source, ours, back = tmp_path / "run.pth", tmp_path / "ours.safetensors", tmp_path / "back.pth"
    torch.save(state, source)
    convert.main([str(source), str(ours), "variant=s"])
    assert "hub names, 50 classes" in capsys.readouterr().out
    tensors, about = read_weights(ours)
    assert (about["model"], about["source"]) == ("x3d_s", "run.pth")
    assert tensors.keys() == state.keys()
    model, _ = convert.open_model(ours)  # the variant is known now
    assert isinstance(model, X3D)
    assert model.variant == "s"
    convert.main([str(ours), str(back), "--to", "hub"])
    again = torch.load(back, weights_only=True)
    assert list(again) == list(state)
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_command_keeps_what_a_run_knows(tmp_path: Path) -> None:
    model = X3D("nano", 2)
    save_weights(model, tmp_path / "best.safetensors", {"model": "x3d_nano", "classes": ["left", "right"], "step": 7})
    convert.main([str(tmp_path / "best.safetensors"), str(tmp_path / "out.safetensors")])
    _, about = read_weights(tmp_path / "out.safetensors")
    assert about["classes"] == ["left", "right"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.pth", "out.safetensors"], "absent.pth"),
        (["slowfast.pyth", "out.pth", "variant=xs", "--to", "hub"], "branch1_norm"),
        (["slowfast.pyth", "out.pth", "xs"], "variant=xs"),
    ],
)
def test_command_explains_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": weights("slowfast_x3d_xs")}, "slowfast.pyth")
    with pytest.raises(SystemExit, match=re.escape(words)) as failure:
        convert.main(arguments)
    assert str(failure.value).startswith("convert: ")
    assert not Path(arguments[1]).exists()


def test_command_writes_a_program_that_needs_no_code_of_ours(tmp_path: Path) -> None:
    model = X3D("nano", 3).eval()
    about = {"model": "x3d_nano", "clip": {"frames": 9, "crop": 40, "test_crop": 48}}
    save_weights(model, tmp_path / "x.safetensors", about)
    convert.main([str(tmp_path / "x.safetensors"), str(tmp_path / "x.pt2"), "--to", "program"])
    clips = torch.randn(3, 3, 9, 48, 48)
    answer = torch.export.load(tmp_path / "x.pt2").module()(clips)
    torch.testing.assert_close(answer, model(clips), atol=1e-6, rtol=1e-5)
