"""Official checkpoints in and out: both generations, AVT, wrappers, start weights, position tables, errors."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core import config
from core.checkpoint import save_weights
from core.nn import resize_positions
from projects.sgear import convert, weights
from projects.sgear.config import ModelConfig
from projects.sgear.model import Sgear
from tests.sgear.test_model import CLASSES, TINY, clip, flat, tiny
from tests.support import cases, fill

MAPS = {"verb": torch.eye(12, 4), "noun": torch.eye(12, 5)}


def first_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of March 2024, and the masks that transformers kept then."""
    old = {"vis_prototypes": "org_gamma", "ProtAttn.": "CrossModAttn.", "TCA.": "TimeShift."}
    named = {}
    for name, value in state.items():
        for new, former in old.items():
            name = former + name.removeprefix(new) if name.startswith(new) else name
        named[name] = value
    for layer in range(2):
        named[f"future_predictor.gpt_model.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
        named[f"future_predictor.gpt_model.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return named


def official(state: dict[str, Tensor], wrapper: str) -> Any:
    """A checkpoint as the released code (or DDP, ClassyVision, timm) saves it."""
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    schedule = {"base_sched_dict": {"last_epoch": 3}, "other_stuff": {"warmup_iters": 10}}
    return {
        "model": {"model": state, "optimizer": optimizer, "lr_scheduler": schedule, "epoch": 7},
        "state_dict": {"state_dict": state},
        "module": {"state_dict": OrderedDict((f"module.{name}", value) for name, value in state.items())},
        "classy": {"classy_state_dict": {"base_model": {"model": {"trunk": state}}, "losses": [1.0]}},
        "bare": state,
    }[wrapper]


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module", "classy", "bare"])
@pytest.mark.parametrize("release", ["first", "last"])
@pytest.mark.parametrize("options", [["input=video"], ["input=features", "transform_features=true"]], ids=str)
def test_every_official_layout_opens_and_answers_the_same(
    tmp_path: Path, wrapper: str, release: str, options: list[str]
) -> None:
    net = tiny(*options, maps=MAPS).eval()
    state = net.state_dict() if release == "last" else first_release(net.state_dict())
    path = tmp_path / "checkpoint.pth"
    torch.save(official(state, wrapper), path)

    opened, found = convert.open_model(path, heads=2)
    assert found.classes == {"action": 12}
    assert found.frames == 4
    x = clip(options[0].partition("=")[2])
    with torch.no_grad():
        for name, value in flat(net(x)).items():
            assert torch.equal(flat(opened(x))[name], value), name

    filled = tiny(*options, seed=1, maps=MAPS)
    report, note = convert.load(filled, path)
    assert note == ""
    assert report.missing == report.unexpected == ()
    assert len(report.loaded) == len(net.state_dict())
    assert len(report.dropped) == (4 if release == "first" else 0)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in filled.state_dict().items())


@pytest.mark.parametrize("case", [pytest.param(case, id=case.path.name) for case in cases("sgear", "forward_*")])
def test_official_keys_round_trip_with_an_empty_report(tmp_path: Path, case: Any) -> None:
    """Names and shapes of every official configuration, read, written in the official layout and read again.

    On the meta device where only names matter; one small value each tells tensors apart.
    """
    keys = case.json("keys.json")
    state = {name: torch.zeros(()).expand(shape) for name, (shape, _) in keys.items()}
    found = convert.identify(state, "checkpoint.pth")
    with torch.device("meta"):
        maps = {label: torch.empty(keys[f"cls_map_{label}_action"][0]) for label in ("verb", "noun")}
        net = Sgear(found.model, found.frames or 10, found.classes, maps=maps)
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == {
        name: shape for name, (shape, _) in keys.items()
    }


def test_an_official_checkpoint_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Official -> ours -> official: every tensor equal, through the command."""
    net = tiny("input=video", maps=MAPS)
    given, ours, again = (tmp_path / name for name in ("given.pth", "ours.safetensors", "again.pth"))
    torch.save(official(first_release(net.state_dict()), "model"), given)
    convert.main([str(given), str(ours), "heads=2"])
    assert "S-GEAR on 32 px frames, 4 steps, 12 actions" in capsys.readouterr().out
    convert.main([str(ours), str(again), "--to", "official"])
    content = torch.load(again, weights_only=True)
    assert set(content) == {"model", "optimizer", "lr_scheduler", "epoch"}
    assert set(content["lr_scheduler"]) == {"base_sched_dict", "other_stuff"}
    assert list(content["model"]) == list(net.state_dict())
    assert all(torch.equal(content["model"][name], value) for name, value in net.state_dict().items())
    opened, found = convert.open_model(ours)
    assert found.model.decoder.heads == 2, "our own files know what shapes do not tell"
    with torch.no_grad():
        assert torch.equal(opened(clip("video")).logits["action"], net.eval()(clip("video")).logits["action"])


def test_what_the_released_code_does_not_know_stays_with_us(tmp_path: Path) -> None:
    net = tiny("input=features", "temperature=learned")
    with pytest.raises(ValueError, match="no place for log_temperature"):
        convert.write_official(net, tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_avt_checkpoints_are_the_baseline(tmp_path: Path) -> None:
    for input in ("video", "features"):
        net = tiny(f"input={input}", "kind=avt", maps=MAPS).eval()
        path = tmp_path / f"{input}.pth"
        torch.save(official(net.state_dict(), "model"), path)
        opened, found = convert.open_model(path, heads=2)
        assert (found.model.kind, found.model.input, found.frames) == ("avt", input, 0)
        with torch.no_grad():
            assert torch.equal(opened(clip(input)).logits["action"], net(clip(input)).logits["action"])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(tiny("input=features", "width=128").state_dict(), path)
    with pytest.raises(ValueError, match=r"vis_prototypes: \(12, 128\) in the file, \(12, 64\) in the model"):
        convert.load(tiny("input=features"), path)
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="neither S-GEAR nor AVT"):
        convert.open_model(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pth"):
        convert.open_model(path)
    with pytest.raises(SystemExit, match=r"convert: .*gone\.pth: no such file"):
        convert.main([str(tmp_path / "gone.pth"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="write heads=8"):
        convert.main([str(path), str(tmp_path / "out"), "head=8"])


def test_class_maps_may_be_on_one_side_only(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(tiny("input=features").state_dict(), path)
    report, _ = convert.load(tiny("input=features", maps=MAPS), path)
    assert report.missing == ("cls_map_verb_action", "cls_map_noun_action")
    torch.save(tiny("input=features", maps=MAPS).state_dict(), path)
    report, _ = convert.load(tiny("input=features"), path)
    assert report.dropped == ("cls_map_verb_action", "cls_map_noun_action")


# -------------------------------------------------------------------------------------------------------- start weights


def configured(*more: str) -> ModelConfig:
    return config.load(ModelConfig, None, [*TINY, *more])


def timm(image: int) -> dict[str, Tensor]:
    """A vision transformer as timm saves it, with its classifier."""
    state = tiny("input=video", f"vit.image={image}").backbone.model.state_dict()
    return {**state, "head.weight": torch.ones(3, 128), "head.bias": torch.ones(3)}


def test_timm_weights_start_the_backbone(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(timm(32), path)
    net = tiny("input=video", seed=3)
    said = weights.start(net, configured(f"init=[[backbone.model, {path}]]"))
    wanted = timm(32)
    assert all(torch.equal(value, wanted[name]) for name, value in net.backbone.model.state_dict().items())
    assert len(said) == 1
    assert f"backbone.model from {path}: loaded {len(wanted) - 2} tensors" in said[0]
    assert "2 without a place (head.weight, head.bias)" in said[0]


@pytest.mark.parametrize("size", [24, 48])
def test_position_tables_are_resized_and_it_is_said(tmp_path: Path, size: int) -> None:
    path = tmp_path / "vit.pth"
    torch.save(timm(size), path)
    net = tiny("input=video", seed=3)
    said = weights.start(net, configured(f"init=[[backbone.model, {path}]]"))
    assert f"position table resized from {size // 8}x{size // 8} to 4x4 patches" in said[0]
    expected = resize_positions(timm(size)["pos_embed"], (size // 8,) * 2, (4, 4), antialias=True)
    assert torch.equal(net.backbone.model.pos_embed, expected)

    whole = tiny("input=video", f"vit.image={size}")
    save_weights(whole, tmp_path / "whole.safetensors")
    report, note = convert.load(net, tmp_path / "whole.safetensors")
    assert note == f"position table resized from {size // 8}x{size // 8} to 4x4 patches"
    assert report.missing == ()


def test_entries_of_init_as_released(tmp_path: Path) -> None:
    """[file], [module, file] and [module, prefix, prefix, file]; later entries win; the rest keeps its start."""
    donor, other = tiny("input=video", seed=5), tiny("input=video", seed=6)
    paths = [tmp_path / f"{number}.pth" for number in range(3)]
    torch.save({"model": donor.state_dict()}, paths[0])
    torch.save({"model": {f"old.{name}": value for name, value in other.ProtAttn.state_dict().items()}}, paths[1])
    torch.save({f"x.{name}": value for name, value in other.TCA.state_dict().items()}, paths[2])
    net = tiny("input=video", seed=7)
    said = weights.start(net, configured(f"init=[[{paths[0]}], [ProtAttn, old, {paths[1]}], [TCA, y, x, {paths[2]}]]"))
    assert [line.partition(":")[0].split(" from ")[0] for line in said] == ["model", "ProtAttn", "TCA"]
    for name, value in net.state_dict().items():
        source = other if name.startswith(("ProtAttn", "TCA")) else donor
        assert torch.equal(value, source.state_dict()[name]), name


def test_blocks_are_parts_of_names(tmp_path: Path) -> None:
    """`classifier` means `classifiers.`, first-release names mean what they became, other shapes stay out."""
    donor, path = tiny("input=video", seed=5), tmp_path / "vit.pth"
    torch.save({"model": first_release(donor.state_dict())}, path)
    net = tiny("input=features", seed=7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    blocks = "[CrossModAttn, future_predictor, classifier, org_gamma]"
    said = weights.start(net, configured("input=features", f"pretrained={path}", f"blocks={blocks}"))
    taken = ("ProtAttn", "future_predictor", "classifiers", "vis_prototypes")
    for name, value in net.state_dict().items():
        source = donor.state_dict() if name.startswith(taken) else before
        assert torch.equal(value, source[name]), name
    assert "keep their start values (balancer, alpha, mapper_to_inter.weight)" in said[0]


def test_nothing_is_loaded_silently(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(timm(32), path)
    with pytest.raises(ValueError, match=r"none of its .* tensors has a place in the model"):
        weights.start(tiny("input=video"), configured(f"init=[[{path}]]"))
    with pytest.raises(ValueError, match=r"the module 'backbone\.net'; the model has backbone"):
        weights.start(tiny("input=video"), configured(f"init=[[backbone.net, {path}]]"))
    other = timm(32) | {"norm.weight": torch.ones(5)}
    torch.save(other, path)
    said = weights.start(tiny("input=video"), configured(f"init=[[backbone.model, {path}]]"))
    assert "1 of another shape left out (norm.weight (5,))" in said[0]
    assert "1 keep their start values (norm.weight)" in said[0]


@pytest.mark.golden
@pytest.mark.parametrize("case", [pytest.param(case, id=case.path.name) for case in cases("sgear", "*_small*")])
def test_an_official_file_of_a_golden_case(tmp_path: Path, case: Any) -> None:
    """As the released code writes it: opened, no tensor left over, every value in place."""
    state = fill.state_dict(case.json("keys.json"))
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "optimizer": {}, "lr_scheduler": {}, "epoch": 20}, path)
    net, found = convert.open_model(path)
    assert found.classes["action"] == len(state["vis_prototypes"])
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_classes_and_options_are_found_in_shapes() -> None:
    net = tiny("input=video", "labels=[action, verb]", "tca_blocks=1", "prototype_attention=false")
    found = convert.identify(net.state_dict(), "x.pth", heads=2)
    assert found.classes == {"action": 12, "verb": CLASSES["verb"]}
    assert found.model.tca_blocks == 1
    assert not found.model.prototype_attention
    assert found.model.vit == net.cfg.vit
