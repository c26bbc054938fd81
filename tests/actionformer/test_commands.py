"""The commands around the network, as a user types them: convert, official, ranges, selftest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from core import config
from core.checkpoint import read_weights
from core.config import flatten
from projects.actionformer import convert, model, official, ranges, selftest
from projects.actionformer.config import Config
from tests.actionformer import small

# An official file in the official spelling, with a key that nobody knows and two that have no effect here.
THEIRS: dict[str, Any] = {
    "dataset_name": "thumos",
    "train_split": ["validation"],
    "val_split": ["test"],
    "devices": ["cuda:0"],
    "output_folder": "./ckpt/",
    "dataset": {
        "json_file": "./data/a.json", "feat_folder": "./data/features", "file_prefix": None, "file_ext": ".npy",
        "num_classes": 3, "input_dim": 6, "feat_stride": 4, "num_frames": 16, "default_fps": None,
        "trunc_thresh": 0.5, "crop_ratio": [0.9, 1.0], "max_seq_len": 64, "colour": "red",
    },
    "model": {
        "fpn_type": "identity", "backbone_arch": [1, 1, 2], "embd_dim": 16, "fpn_dim": 16, "head_dim": 16,
        "n_mha_win_size": 5, "regression_range": [[0, 4], [4, 8], [8, 10000]], "max_buffer_len_factor": 6.0,
    },
    "opt": {"learning_rate": 0.0001, "epochs": 30, "weight_decay": 0.05, "tempo": 3},
    "loader": {"batch_size": 2},
    "train_cfg": {"init_loss_norm": 100, "clip_grad_l2norm": 1.0},
    "test_cfg": {"voting_thresh": 0.7, "pre_nms_topk": 2000, "multiclass_nms": True},
}  # fmt: skip


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(THEIRS))
    return path


@pytest.fixture
def checkpoint(theirs: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """An official file of that network, and the weights that its average holds."""
    net = convert.build(official.config_from(theirs))
    average = convert.official_state(net)
    path = theirs.parent / "epoch_007.pth.tar"
    raw = {name: value + 1 for name, value in average.items()}
    torch.save({"epoch": 7, "state_dict": raw, "state_dict_ema": average, "optimizer": {}, "scheduler": {}}, path)
    return path, average


def test_an_official_file_becomes_ours(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = theirs.parent / "ours.yaml"
    official.main([str(theirs), str(ours)])
    cfg, said = config.load(Config, ours), capsys.readouterr().err
    assert flatten(cfg) == flatten(official.config_from(theirs))
    assert (cfg.data.input_dim, cfg.model.window, cfg.optim.epochs, cfg.postprocess.topk) == ((6,), (5,), 35, 2000)
    assert ours.read_text().startswith("# make train PROJECT=actionformer CONFIG=")
    for key in ("dataset.colour", "opt.tempo"):
        assert f"{key}: not known to the official code; ignored" in said
    for key in ("devices", "output_folder", "model.max_buffer_len_factor"):
        assert f"{key}: not needed" in said
    assert len(said.splitlines()) == 5, "every other key has its place"


def test_without_a_file_to_write_it_is_printed(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official.main([str(theirs)])
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["data"]["classes"] == 3
    assert tree["optim"]["lr"] == 0.0001


@pytest.mark.parametrize(
    ("text", "said"),
    [("- 1\n", "no official configuration"), ("a: [", "not valid YAML"), ("model: {n_head: many}\n", "model.heads")],
)
def test_what_is_no_official_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=said):
        official.main([str(path), str(tmp_path / "out.yaml")])
    with pytest.raises(SystemExit, match="no such file"):
        official.main([str(tmp_path / "absent.yaml")])


def test_convert_to_ours(
    theirs: Path, checkpoint: tuple[Path, dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, (path, average) = theirs.parent / "ours.yaml", checkpoint
    official.main([str(theirs), str(ours)])
    for weights, shift in ((), 0), (("--weights", "raw"), 1):
        out = theirs.parent / f"out{shift}.safetensors"
        convert.main([str(path), str(out), f"config={ours}", *weights])
        tensors, about = read_weights(out)
        assert about["model"]["window"] == [5]
        assert about["source"] == path.name
        for name, value in average.items():
            assert torch.equal(tensors[name.removeprefix("module.")].flatten(), value.flatten() + shift), name
    said = capsys.readouterr().out
    assert "'state_dict_ema'" in said
    assert "'state_dict'" in said
    assert "missing" not in said


def test_convert_to_official_and_back(theirs: Path, checkpoint: tuple[Path, dict[str, torch.Tensor]]) -> None:
    ours, (path, average) = theirs.parent / "ours.yaml", checkpoint
    official.main([str(theirs), str(ours)])
    there, back = theirs.parent / "ours.safetensors", theirs.parent / "again.pth.tar"
    convert.main([str(path), str(there), f"config={ours}"])
    convert.main([str(there), str(back), f"config={ours}", "--to", "official"])
    content = torch.load(back, weights_only=True)
    for key in ("state_dict", "state_dict_ema"):
        assert {name: value.shape for name, value in content[key].items()} == {n: v.shape for n, v in average.items()}
        assert all(torch.equal(value, average[name]) for name, value in content[key].items())


def test_convert_to_a_program(theirs: Path, checkpoint: tuple[Path, dict[str, torch.Tensor]]) -> None:
    ours, (path, _) = theirs.parent / "ours.yaml", checkpoint
    official.main([str(theirs), str(ours)])
    out = theirs.parent / "network.pt2"
    convert.main([str(path), str(out), f"config={ours}", "--to", "program"])
    program = torch.export.load(out).module()
    net = convert.build(config.load(Config, ours)).eval()
    convert.load(net, path)
    features, mask = torch.zeros(1, 6, 64), torch.zeros(1, 64, dtype=torch.bool)
    features[..., :50], mask[:, :50] = torch.randn(1, 6, 50), True
    with torch.no_grad():
        logits, offsets, real, points = program(features, mask)
        outputs: model.Outputs = net(features[..., :50], mask[:, :50], [50])
    assert real.sum() == outputs.mask.sum()
    assert len(points) == real.shape[1]
    torch.testing.assert_close(logits[real], outputs.logits[outputs.mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(offsets[real], outputs.offsets[outputs.mask], atol=1e-5, rtol=1e-5)


def test_our_own_weights_need_no_configuration(tmp_path: Path) -> None:
    cfg = small.configured(tmp_path / "own")
    path = small.saved(cfg, tmp_path / "own.safetensors")
    out = tmp_path / "epoch_001.pth.tar"
    convert.main([str(path), str(out), "--to", "official"])
    net = convert.build(cfg)
    convert.load(net, out)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in small.network(cfg).state_dict().items())


def test_convert_says_what_is_wrong(tmp_path: Path, checkpoint: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, out = str(checkpoint[0]), str(tmp_path / "out.safetensors")
    for arguments, said in (
        ([str(tmp_path / "absent.pth.tar"), out], "no such file"),
        ([path, out], "fit no configuration"),
        ([path, out, "thumos_i3d"], "config=thumos_i3d"),
        ([path, out, "config=anet_tsp"], "do not fit"),
    ):
        with pytest.raises(SystemExit, match=said):
            convert.main(arguments)
    assert not Path(out).exists()


def test_ranges_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    actions = [{"label": "a", "label_id": 0, "segment": [0.0, float(n)]} for n in range(1, 9)]
    other = [{"label": "a", "label_id": 0, "segment": [0.0, 100.0]}]
    database = {
        "x": {"subset": "Training", "annotations": actions}, "y": {"subset": "Test", "annotations": other}
    }  # fmt: skip
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"database": database}))
    ranges.main([str(path), "stride=4", "fps=8", "levels=2", "overlap=0", "subset=training"])
    said = capsys.readouterr().out
    assert yaml.safe_load(said)["model"]["ranges"] == [[0, 9], [9, 18]], "2 to 16 features, by halves, and a tenth more"
    assert "8 actions" in said
    ranges.main([str(path), "levels=3", "--open-end"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["ranges"][-1][1] == 10_000
    for wrong, message in (("levels=0", "at least one level"), ("colour=3", "not understood")):
        with pytest.raises(SystemExit, match=message):
            ranges.main([str(path), wrong])
    with pytest.raises(SystemExit, match="no such file"):
        ranges.main([str(tmp_path / "absent.json")])


def test_selftest_passes_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(selftest, "LENGTH", 64)
    names = ["--imports", "--rmsnorm", "--swiglu", "--rope", "--flash", "--block", "--ddp"]
    found = selftest.main(names)
    assert all(result.passed for result in found)
    assert capsys.readouterr().out.count("PASS") == len(found) >= 11
    monkeypatch.setattr(selftest, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="1 of 1 failed: RMSNorm"):
        selftest.main(["--rmsnorm"])
    assert "FAIL" in capsys.readouterr().out
