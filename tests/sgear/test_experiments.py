"""Experiment files of the published code become ours: line by line, and nothing is dropped silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import config
from projects.sgear import experiments
from projects.sgear.config import Config
from tests.support import ROOT

FEATURES = """
# a comment
train.train_one_epoch_fn.loss_wts.feat=1.0
train.train_one_epoch_fn.loss_wts.cls_action=1.0
train.train_one_epoch_fn.loss_wts.global_simContrast=0.0 # at the end of a line
train.train_one_epoch_fn.loss_wts.target_distance=1.0
train.batch_size=16
train.num_epochs=20
train.train_one_epoch_fn.save_freq=1
pre_train_path=${cwd}/OUTPUTS/expts/first.txt/0/checkpoint.pth
+pretrain_blocks=[CrossModAttn,future_predictor,classifier,vis_prototypes]
pre_train=true
opt.lr_wd=[[__all__,0.0001,0.00001]]
opt/optimizer=sgd
opt/scheduler=cosine
opt.warmup.num_epochs=0
opt.accumulate=0
+model.extracted_features=true
+model.freeze_prototypes=true
model.freeze_weights=true
model/backbone=identity
model.backbone_dim=2048
model.intermediate_featdim=768
+model.mod_attn=true
model.dropout=0.2
+model.future_predictor.n_head=4
+model.future_predictor.n_layer=6
+model.future_predictor.inter_dim=2048
+model.future_predictor.future_pred_loss={_target_: torch.nn.MSELoss}
model.classifier_on_past=true
data_train.num_frames=15
data_train.frame_rate=1
data_eval=${data_train}
dataset@dataset_train=epic_kitchens100/anticipation_train
dataset@dataset_eval=epic_kitchens100/anticipation_val
dataset_train.sample_strategy=last_clip
dataset_train.conv_to_anticipate_fn.tau_a=1
dataset_train.conv_to_anticipate_fn.tau_o=15
dataset_eval.conv_to_anticipate_fn.tau_o=15
dataset.epic_kitchens100.common.label_type=action
dataset.epic_kitchens100.common.embeddings_path=${cwd}/encodings_epic100.pth
+dataset_train.reader_fn={_target_: x.Reader, lmdb_path: ${dataset.epic_kitchens100.common.rulstm_feats_dir}/igm, a: b}
"""


def translated(tmp_path: Path, text: str) -> list[experiments.Translation]:
    path = tmp_path / "theirs.txt"
    path.write_text(text)
    return experiments.translate(path)


def test_a_published_file_means_what_ours_means(tmp_path: Path) -> None:
    """Line by line the irCSN experiment that we ship, but for where prototypes and weights lie."""
    (one,) = translated(tmp_path, FEATURES)
    assert one.left_out == []
    ours = config.flatten(config.load(Config, None, [f"{key}={text}" for key, text in one.lines.items()]))
    shipped = ROOT / "projects/sgear/experiments/ek100_SGEAR_igm.txt"
    theirs = config.flatten(config.load(Config, None, [f"@{shipped}", "optim.accumulate=1"]))
    places = {"run.out", "model.prototypes.language", "model.prototypes.visual", "model.pretrained", "model.blocks"}
    assert {key for key in ours if ours[key] != theirs[key]} <= places
    assert ours["model.pretrained"] == "OUTPUTS/expts/first.txt/0/checkpoint.pth"
    assert ours["model.prototypes.language"] == "encodings_epic100.pth"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("opt.lr_wd=[[backbone,0.1,0.2],[[a,b],0.3,0.4]]", "optim.modules",
         "[{module: backbone, lr: 0.1, weight_decay: 0.2}, {module: a, lr: 0.3, weight_decay: 0.4}, "
         "{module: b, lr: 0.3, weight_decay: 0.4}]"),
        ("opt.lr_wd=[[__all__,0.1,0]]\nopt.scheduler.eta_min=0.001", "optim.final_lr", "0.01"),
        ("train.init_from_model=[[backbone.model,${cwd}/vit.pth]]", "model.init", "[[backbone.model,vit.pth]]"),
        ("train.use_mixup=true\ntrain.mixup_alpha=0.8", "loss.mixup", "0.8"),
        ("data_train.scale_h=248-280", "pixels.train_short_side", "[248, 280]"),
        ("model/backbone=vit_b_384", "model.vit.image", "384"),
        ("model/backbone=vit_b", "model.vit.image", "224"),
        ("dataset@dataset_train=epic_kitchens100/anticipation_train+val", "data.train", "train+val"),
        ("dataset@dataset_train=egtea/anticipation_train", "data.dataset", "egtea"),
        ("dataset@dataset_eval=epic_kitchens100/anticipation_test", "eval.split", "test"),
        ("model.mean_representation=false", "model.nearest", "frame"),
        ("dataset_eval.conv_to_anticipate_fn.tau_o=20", "data.tau_o_eval", "20"),
        ("model.backbone_dim=1024", "model.vit.heads", "16"),
        ("", "loss.past_cls_action", "0.0"),
    ],
)  # fmt: skip
def test_lines(tmp_path: Path, text: str, key: str, value: str) -> None:
    (one,) = translated(tmp_path, text)
    assert one.lines[key] == value


def test_weights_are_taken_only_where_asked_for(tmp_path: Path) -> None:
    (one,) = translated(tmp_path, "pre_train_path=x.pth\npretrain_blocks=[a]\n")
    assert not {"model.pretrained", "model.blocks"} & set(one.lines)


def test_what_has_no_counterpart_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "theirs.txt", tmp_path / "mine.txt"
    path.write_text("transductive=true\nmodel.project_dim_for_nce=128\nopt/optimizer=adafactor\nsync_bn=false\n")
    assert experiments.main([str(path), str(out)]) == [out]
    said = capsys.readouterr().out
    for line in ("transductive=true", "model.project_dim_for_nce=128", "opt/optimizer=adafactor"):
        assert f"without counterpart: {line}" in said
        assert f"# without counterpart: {line}\n" in out.read_text()
    assert "sync_bn" not in said
    assert config.load(Config, None, [f"@{out}"]).run.out == Path("runs/sgear/mine")


def test_a_sweep_becomes_one_file_for_each_combination(tmp_path: Path) -> None:
    path = tmp_path / "theirs.txt"
    path.write_text(
        "opt.accumulate=1,2\ntrain.num_epochs=10,20\npretrain_blocks=[a,b]\npre_train_path=x.pth\npre_train=true\n"
    )
    written = experiments.main([str(path), str(tmp_path / "mine.txt")])
    assert [out.name for out in written] == [f"mine_{number}.txt" for number in range(4)]
    found = [config.load(Config, None, [f"@{out}"]) for out in written]
    assert [(cfg.optim.accumulate, cfg.optim.epochs) for cfg in found] == [(1, 10), (1, 20), (2, 10), (2, 20)]
    assert found[0].model.blocks == ("a", "b")


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "theirs.txt"
    path.write_text("train.num_epochs=3\nwhat is this\n")
    with pytest.raises(SystemExit, match=r"theirs\.txt, line 2: expected key=value, found 'what is this'"):
        experiments.main([str(path), str(tmp_path / "mine.txt")])
    with pytest.raises(SystemExit, match="no such file"):
        experiments.main([str(tmp_path / "gone.txt"), str(tmp_path / "mine.txt")])
    path.write_text("train.num_epochs=-3\n")
    with pytest.raises(SystemExit, match=r"optim\.epochs"):
        experiments.main([str(path), str(tmp_path / "mine.txt")])
