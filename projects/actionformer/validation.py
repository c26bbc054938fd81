"""Is this configuration possible, and is it wise? All problems in one message, for official files and for ours.

Our own configurations are checked when they are read (`config.py`); what is left for them here is advice. Official
files and those of the fork are checked by the rules of the fork's validator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from projects.actionformer import official
from projects.actionformer.config import Config

REQUIRED = {
    "dataset": ("json_file", "feat_folder", "max_seq_len"),
    "model": ("backbone_type", "backbone_arch", "regression_range"),
}
REGRESSION = ("diou", "eiou", "giou", "iou", "focal", "iou_weighted")
NMS = ("soft", "hard", "none")
MODERN = ("use_rope", "use_flash_attn", "use_swiglu", "use_rms_norm", "n_kv_head")


class ConfigurationError(ValueError):
    """Everything wrong with a configuration; `problems` holds one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"{len(self.problems)} problems in the configuration", *self.problems]))


def validate_config(
    cfg: Config | Mapping[str, Any] | str | Path, *, strict: bool = False, automatic_weight: bool = True
) -> list[str]:
    """Raise for a configuration that cannot work; return warnings about one that can.

    `cfg` is an official configuration (its content, or the path of its YAML file) or one of ours. With `strict`
    warnings are errors. A negative `loss_weight` balances the losses automatically; with `automatic_weight` false it
    is an error, as in the fork.

    Raises:
        ConfigurationError: with all problems.
    """
    if isinstance(cfg, Config):
        warned = advice(cfg)
        errors: list[str] = []
    else:
        tree = official.read(cfg)
        errors = [*_missing(tree), *_pyramid(tree), *_lengths(tree), *_numbers(tree, automatic_weight)]
        warned = _warnings(tree)
    if strict:
        errors, warned = [*errors, *warned], []
    if errors:
        raise ConfigurationError(errors)
    return warned


def advice(cfg: Config) -> list[str]:
    """What is possible but seldom meant."""
    tree = official.export_config(cfg)
    found = [f"{text} (the official code refuses it; here it only costs padding)" for text in _lengths(tree)]
    found += _warnings(tree)
    if cfg.model.name == "tbtformer":
        for level, (_, high) in enumerate(cfg.model.ranges):
            reach = cfg.model.reg_max * cfg.model.scale_factor ** (level + cfg.model.start_level)
            if high > reach:
                found.append(
                    f"model.ranges: level {level} is responsible for distances up to {high:g}, its distributions reach "
                    f"{reach:g} before they learn a scale; raise model.reg_max or lower the range"
                )
    if cfg.model.name == "snapformer" and cfg.data.classes > 1:
        found.append(f"snapformer finds one kind of event; data.classes={cfg.data.classes} are not told apart")
    return found


def suggested_lengths(cfg: Mapping[str, Any] | str | Path) -> list[int]:
    """For each level whose windows do not fit `max_seq_len`, the nearest smaller length that they fit."""
    return [length for _, length in _misfits(official.read(cfg))]


def _missing(tree: Mapping[str, Any]) -> list[str]:
    return [
        f"{section}.{key} is missing"
        for section, keys in REQUIRED.items()
        for key in keys
        if key not in _of(tree, section)
    ]


def _pyramid(tree: Mapping[str, Any]) -> list[str]:
    model = _of(tree, "model")
    ranges, arch = model.get("regression_range"), model.get("backbone_arch")
    if ranges is None or arch is None:
        return []
    found = []
    start = model.get("fpn_start_level", 0)
    levels = arch[-1] + 1 - start
    if len(ranges) != levels:
        found.append(
            f"model.regression_range has {len(ranges)} entries for {levels} levels (backbone_arch {list(arch)}, "
            f"fpn_start_level {start}); give one for each level"
        )
    for level, each in enumerate(ranges):
        if len(each) != 2 or each[0] >= each[1]:
            found.append(
                f"model.regression_range: level {level} has {list(each)}; expected [low, high] with low < high"
            )
    return found


def _lengths(tree: Mapping[str, Any]) -> list[str]:
    length = _of(tree, "dataset").get("max_seq_len")
    return [
        f"dataset.max_seq_len {length} is no multiple of {unit}, which level {level} needs for its stride and window; "
        f"{length // unit * unit} is"
        for level, unit in enumerate(_units(tree))
        if length is not None and length % unit
    ]


def _misfits(tree: Mapping[str, Any]) -> list[tuple[int, int]]:
    length = _of(tree, "dataset").get("max_seq_len")
    if length is None:
        return []
    return [(level, length // unit * unit) for level, unit in enumerate(_units(tree)) if length % unit]


def _units(tree: Mapping[str, Any]) -> list[int]:
    """Of what the length has to be a multiple, by level."""
    model = _of(tree, "model")
    arch = model.get("backbone_arch")
    if arch is None:
        return []
    scale, start = model.get("scale_factor", 2), model.get("fpn_start_level", 0)
    strides = [scale**level for level in range(start, arch[-1] + 1)]
    window = model.get("n_mha_win_size", 19)
    windows = [window] * len(strides) if isinstance(window, int) else list(window)
    return [s * 2 * (w // 2) if w > 1 else s for s, w in zip(strides, windows, strict=False)]


def _numbers(tree: Mapping[str, Any], automatic_weight: bool) -> list[str]:
    model, train, test = (_of(tree, section) for section in ("model", "train_cfg", "test_cfg"))
    found = []
    if model.get("head_num_layers", 3) < 1:
        found.append(f"model.head_num_layers is {model['head_num_layers']}; a head has at least one layer")
    if train.get("loss_weight", 1) < 0 and not automatic_weight:
        found.append(f"train_cfg.loss_weight is {train['loss_weight']}; expected 0 or more")
    if not 0 <= train.get("label_smoothing", 0) < 1:
        found.append(f"train_cfg.label_smoothing is {train['label_smoothing']}; expected a share from 0 to below 1")
    if not 0 < test.get("iou_threshold", 0.1) <= 1:
        found.append(f"test_cfg.iou_threshold is {test['iou_threshold']}; expected an overlap above 0, at most 1")
    for key, usual in (("nms_sigma", 0.5), ("score_temperature", 1.0)):
        if test.get(key, usual) <= 0:
            found.append(f"test_cfg.{key} is {test[key]}; expected a number above 0")
    return found


def _warnings(tree: Mapping[str, Any]) -> list[str]:
    model, train, test = (_of(tree, section) for section in ("model", "train_cfg", "test_cfg"))
    switches = {**model, **_of(model, "backbone")}
    found = []
    if model.get("head_num_layers", 3) == 1:
        found.append("model.head_num_layers 1 leaves the heads a single linear convolution")
    if model.get("head_dim", 256) < model.get("fpn_dim", 256):
        found.append(f"model.head_dim {model['head_dim']} is narrower than what it sees, fpn_dim {model['fpn_dim']}")
    if (loss := train.get("reg_loss_type", "diou")) not in REGRESSION:
        found.append(f"train_cfg.reg_loss_type {loss!r} is not known; choose one of {', '.join(REGRESSION)}")
    if (nms := test.get("nms_method", "soft")) not in NMS:
        found.append(f"test_cfg.nms_method {nms!r} is not known; choose one of {', '.join(NMS)}")
    if model.get("backbone_type") == "convTransformerv2":
        if switches.get("use_rel_pe"):
            found.append("model.use_rel_pe has no effect in convTransformerv2; use_rope gives windows a learned bias")
            if switches.get("use_rope"):
                found.append("model.use_rel_pe and use_rope are two answers to one question; use_rope is taken")
    else:
        found += [f"model.{key} has an effect in convTransformerv2 only" for key in MODERN if switches.get(key)]
    return found


def _of(tree: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found = tree.get(section)
    return found if isinstance(found, Mapping) else {}
