"""Experiment files of the published code (`expts/*.txt`, Hydra overrides) as experiment files of ours.

    python -m projects.sgear.experiments expts/mine.txt mine.txt
    python -m projects.sgear.train @mine.txt

Every line gets its counterpart, is known to need none, or is named: nothing is dropped silently. A comma list of values
is a sweep as it was there, one file for each combination: mine_0.txt, mine_1.txt, ...
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from core import config
from core.checkpoint import write_atomic
from projects.sgear.config import Config

Lines = dict[str, str]
"""Our key -> the text of its value."""

_LOSS = "train.train_one_epoch_fn.loss_wts."
_SAME: Mapping[str, str] = {
    "test_only": "test_only",
    "train.batch_size": "loader.batch_size",
    "eval.batch_size": "eval.batch_size",
    "train.num_epochs": "optim.epochs",
    "train.eval_freq": "run.eval_every",
    "seed": "run.seed",
    "opt.bias_bn_wd_scale": "optim.bias_decay_scale",
    "opt.optimizer.nesterov": "optim.nesterov",
    "opt.optimizer.momentum": "optim.momentum",
    "opt.warmup.num_epochs": "optim.warmup",
    "opt.warmup.init_lr_ratio": "optim.warmup_start",
    "opt.scheduler.num_epochs": "optim.decay_epochs",
    "opt.scheduler.milestone_epochs": "optim.milestones",
    "opt.scheduler.gamma": "optim.gamma",
    "opt.grad_clip.max_norm": "optim.clip_norm",
    "model.freeze_prototypes": "model.prototypes.freeze",
    "model.freeze_gamma": "model.prototypes.freeze",  # of the first release
    "model.freeze_future_predictor": "model.freeze_decoder",
    "model.freeze_transform_features": "model.freeze_transform",
    "model.feature_mixup": "model.feature_mixup",
    "model.transform_features": "model.transform_features",
    "model.intermediate_featdim": "model.width",
    "model.backbone_add_ts_blocks": "model.tca_blocks",
    "model.prot_attn": "model.prototype_attention",
    "model.mod_attn": "model.prototype_attention",
    "model.dropout": "model.dropout",
    "model.future_predictor.n_head": "model.decoder.heads",
    "model.future_predictor.n_layer": "model.decoder.layers",
    "model.future_predictor.inter_dim": "model.decoder.width",
    "model.future_predictor.output_len": "model.decoder.output_len",
    "model.future_predictor.output_len_eval": "model.decoder.output_len_eval",
    "model.future_predictor.avg_last_n": "model.decoder.average_last",
    "model.classifier_on_past": "model.classify_past",
    "pretrain_blocks": "model.blocks",
    "data_train.num_frames": "data.frames",
    "data_train.frame_rate": "data.rate",
    "data_train.crop_size": "model.vit.image",
    "data_train.mean": "pixels.mean",
    "data_train.std": "pixels.std",
    "data_eval.scale_h": "pixels.short_side",
    "data_eval.eval_num_crops": "eval.crops",
    "data_eval.eval_flip_crops": "eval.flips",
    "dataset_train.sample_strategy": "data.strategy",
    "dataset_train.conv_to_anticipate_fn.tau_a": "data.tau_a",
    "dataset_train.conv_to_anticipate_fn.tau_o": "data.tau_o",
    "dataset_eval.conv_to_anticipate_fn.tau_o": "data.tau_o_eval",
    "dataset_train.conv_to_anticipate_fn.drop_style": "data.drop",
    "dataset_train.is_train": "data.dynamic",
    "dataset.egtea.common.split": "data.fold",
    "dataset.dundee50salads.common.fold": "data.fold",
    _LOSS + "feat": "loss.feat",
    _LOSS + "global_simContrast": "loss.semantic",
    _LOSS + "past_target_global_simContrast": "loss.past_semantic",
    _LOSS + "target_distance": "loss.distance",
    **{f"{_LOSS}cls_{kind}": f"loss.cls_{kind}" for kind in ("action", "verb", "noun")},
    **{f"{_LOSS}past_cls_{kind}": f"loss.past_cls_{kind}" for kind in ("action", "verb", "noun")},
}

_NEEDLESS = re.compile(
    # one configuration is for training and evaluation; a frame is a clip; what was never used, or is always so
    r"data_eval(\.(num_frames|frame_rate|subclips\..*|mean|std|crop_size|scale_w))?$|data_train\.(subclips\..*|scale_w)$"
    r"|dataset_eval\.(sample_strategy|reader_fn|conv_to_anticipate_fn\.(tau_a|drop_style))$"
    r"|model\.(tmp_frames|detector.*|freeze_detector|pretrained_detector.*|use_object|inp_multimodal_dim|num_modalities)$"
    r"|model\.(reg|cls_token|train_cls|future_steps|backbone_last_n_modules_to_drop|model_name|tubelet_size)$"
    r"|model\.future_predictor\.(return_past_too|future_pred_loss|future_pred_loss_wt)$|model/temporal_aggregator.*$"
    r"|model/future_predictor$|train\.(train_one_epoch_fn\.save_freq|shuffle_data|store_best)$|expt_name$|run_id$|hydra\..*"
)

_DATASETS = {
    "epic_kitchens100": "ek100", "epic_kitchens": "ek55", "egtea": "egtea", "dundee50salads": "salads",
    "50salads": "salads", "breakfast": "breakfast",
}  # fmt: skip
# What the published code does where a file is silent and ours does otherwise.
_SILENT: Lines = {
    "loss.past_cls_action": "0.0",
    "loss.semantic": "1.0",
    "loss.distance": "0.0",
    "loader.batch_size": "16",
    "optim.name": "adam",
    "optim.epochs": "45",
    "optim.warmup": "0",
    "model.dropout": "0.0",
    "model.classify_past": "false",
    "model.tca_blocks": "0",
}

_MUST_BE_FALSE = ("transductive", "model.multimodal", "sync_bn")


class Translation:
    """The lines of ours that belong to the lines of theirs, and what could not be said."""

    def __init__(self, overrides: Mapping[str, str]) -> None:
        self.theirs = overrides
        self.lines: Lines = dict(_SILENT)
        self.left_out: list[str] = []
        special: Mapping[str, Callable[[str], None]] = {
            "opt.lr_wd": self._rates,
            "opt.accumulate": lambda text: self._set("optim.accumulate", str(max(1, int(text)))),
            "opt.scheduler.eta_min": lambda text: self._set("optim.final_lr", str(float(text) / self._rate())),
            "opt/optimizer": self._optimizer,
            "opt/scheduler": self._schedule,
            "train.init_from_model": lambda text: self._set("model.init", _paths(text)),
            "pre_train_path": lambda text: self._set("model.pretrained", _paths(text)),
            "pre_train": lambda text: None,
            "train.use_mixup": self._mixup,
            "train.mixup_alpha": lambda text: None,
            "train.label_smoothing": lambda text: None,
            "model.extracted_features": self._features,
            "model.freeze_weights": self._freeze,
            "model.backbone_dim": self._width,
            "model/backbone": self._backbone,
            "model.mean_representation": lambda text: self._set("model.nearest", "clip" if _true(text) else "frame"),
            "data_train.scale_h": lambda text: self._set("pixels.train_short_side", f"[{', '.join(text.split('-'))}]"),
            "dataset@dataset_train": self._dataset,
            "dataset@dataset_eval": self._split,
            "dataset_train.reader_fn": self._reader,
        }
        for key, text in overrides.items():
            if key in special:
                special[key](text)
            elif key in _SAME:
                self._set(_SAME[key], text)
            elif key.endswith(".label_type"):
                self._set("model.labels", f"[{', '.join(re.findall(r'action|verb|noun', text))}]")
            elif match := re.search(r"\.common\.(embeddings|similarities|visual_embeddings)_path$", key):
                kinds = {"embeddings": "language", "similarities": "similarities", "visual_embeddings": "visual"}
                self._set(f"model.prototypes.{kinds[match[1]]}", _paths(text))
            elif key in _MUST_BE_FALSE and not _true(text):
                continue
            elif not _NEEDLESS.match(key):
                self.left_out.append(f"{key}={text}")
        if not _true(overrides.get("pre_train", "")):
            self.lines.pop("model.pretrained", None)
            self.lines.pop("model.blocks", None)
        if "model.pretrained" in self.lines and "model.blocks" not in self.lines:
            self.left_out.append(f"pre_train_path={self.lines.pop('model.pretrained')} (pretrain_blocks names nothing)")
        if "eval.batch_size" not in self.lines:
            self._set("eval.batch_size", self.lines["loader.batch_size"])
        if self.lines.get("data.tau_o_eval") == self.lines.get("data.tau_o"):
            self.lines.pop("data.tau_o_eval", None)

    def _set(self, key: str, text: str) -> None:
        self.lines[key] = text

    def _rate(self) -> float:
        return float(yaml.safe_load(self.theirs["opt.lr_wd"])[0][1]) if "opt.lr_wd" in self.theirs else 0.1

    def _rates(self, text: str) -> None:
        modules = []
        for names, lr, decay in yaml.safe_load(text):
            for name in [names] if isinstance(names, str) else names:
                if name == "__all__":
                    self._set("optim.lr", str(lr))
                    self._set("optim.weight_decay", str(decay))
                else:
                    modules.append(f"{{module: {name}, lr: {lr}, weight_decay: {decay}}}")
        if modules:
            self._set("optim.modules", f"[{', '.join(modules)}]")

    def _optimizer(self, text: str) -> None:
        if text.lower() in ("sgd", "adam", "adamw"):
            self._set("optim.name", text.lower())
        else:
            self.left_out.append(f"opt/optimizer={text}")

    def _schedule(self, text: str) -> None:
        if text == "cosine":
            self._set("optim.schedule", "cosine")
        elif "multi" in text:
            self._set("optim.schedule", "multistep")
        else:
            self.left_out.append(f"opt/scheduler={text}")

    def _mixup(self, text: str) -> None:
        if _true(text):
            self._set("loss.mixup", self.theirs.get("train.mixup_alpha", "1.0"))
            self._set("loss.label_smoothing", self.theirs.get("train.label_smoothing", "0.0"))

    @property
    def _on_features(self) -> bool:
        return _true(self.theirs.get("model.extracted_features", "")) or self.theirs.get("model/backbone") == "identity"

    def _features(self, text: str) -> None:
        source = "features" if self._on_features else "video"
        self._set("model.input", source)
        self._set("data.source", source)

    def _freeze(self, text: str) -> None:
        if not self._on_features:
            self._set("model.vit.freeze", text)

    def _width(self, text: str) -> None:
        if self._on_features:
            self._set("model.feature_dim", text)
        elif text != "768":
            self._set("model.vit.width", text)
            self._set("model.vit.heads", str(int(text) // 64))

    def _backbone(self, text: str) -> None:
        if not self._on_features:
            self._set("model.vit.image", "384" if "384" in text else "224")

    def _dataset(self, text: str) -> None:
        folder, _, part = text.partition("/")
        if folder not in _DATASETS:
            self.left_out.append(f"dataset@dataset_train={text}")
            return
        self._set("data.dataset", _DATASETS[folder])
        self._set("data.train", "train+val" if "train+val" in part else "train")

    def _split(self, text: str) -> None:
        part = text.partition("/")[2].removeprefix("anticipation_")
        seen = {
            "test_s1": "test_seen",
            "test_s2": "test_unseen",
            "test_seen": "test_seen",
            "test_unseen": "test_unseen",
        }
        self._set("eval.split", seen.get(part, "test" if part.startswith("test") else "val"))

    def _reader(self, text: str) -> None:
        paths = re.findall(r"\}/([^,\s\]}]+?)/?(?=[,\s\]}])", text.partition("lmdb_path:")[2])
        if paths:
            self._set("data.features", f"[{', '.join(paths)}]")


def read(path: Path) -> list[dict[str, str]]:
    """The overrides of every run that a published file asks for: one, or the combinations of its comma lists.

    Raises: ValueError naming file and line, for a line that is no override.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    choices: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text or text.startswith("~"):
            continue
        key, sign, value = text.removeprefix("+").removeprefix("+").partition("=")
        if not sign or not re.fullmatch(r"[\w./@+]+", key.strip()):
            raise ValueError(f"{path}, line {number}: expected key=value, found {line.strip()!r}")
        choices[key.strip()] = list(_values(value.strip()))
    return [dict(zip(choices, picked, strict=True)) for picked in itertools.product(*choices.values())]


def translate(path: Path) -> list[Translation]:
    """What a published file says, run by run. Raises: ValueError as `read`."""
    return [Translation(overrides) for overrides in read(path)]


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Translate a file; returns what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.sgear.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="an experiment file of the published code")
    parser.add_argument("out", type=Path, help="the experiment file to write")
    args = parser.parse_args(argv)
    try:
        found = translate(args.source)
        written = []
        for number, one in enumerate(found):
            out = args.out if len(found) == 1 else args.out.with_stem(f"{args.out.stem}_{number}")
            overrides = [f"run.out=runs/sgear/{out.stem}", *(f"{key}={text}" for key, text in one.lines.items())]
            config.load(Config, None, overrides)
            notes = [f"# without counterpart: {line}" for line in one.left_out]
            head = [f"# python -m projects.sgear.train @{out}", f"# from {args.source.name} of the published code"]
            write_atomic(out, "\n".join([*head, *notes, *overrides]) + "\n")
            written.append(out)
            sys.stdout.write(f"{out}: {len(overrides)} lines\n" + "".join(f"  {note[2:]}\n" for note in notes))
    except ValueError as error:
        sys.exit(f"experiments: {error}")
    return written


def _values(text: str) -> Iterator[str]:
    """The parts of a comma list, or the text itself; commas inside brackets separate nothing."""
    depth, begin = 0, 0
    for place, sign in enumerate(text):
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0:
            yield text[begin:place].strip()
            begin = place + 1
    yield text[begin:].strip()


def _paths(text: str) -> str:
    """Paths relative to the working folder, as ours are."""
    return text.replace("${cwd}/", "").replace("${hydra:runtime.cwd}/", "")


def _true(text: str) -> bool:
    return text.strip().lower() == "true"


if __name__ == "__main__":
    main()
