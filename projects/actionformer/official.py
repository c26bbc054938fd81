"""The official project's YAML files, and those of the fork, as ours: nothing to edit, nothing silently dropped.

    python -m projects.actionformer.official configs/thumos_i3d.yaml thumos.yaml

writes a configuration for train, eval and predict, and names each key that was not understood or has no effect here.
Both spellings of the fork are read: switches directly under `model`, and under `model.backbone`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from core.checkpoint import write_atomic
from core.config import dump, flatten, load
from projects.actionformer.config import Config
from projects.actionformer.model import Detector, build

Tree = dict[str, Any]


def _same(value: Any) -> Any:
    return value


def _many(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class _Choice:
    """Official name -> ours, and back; other names are left for the configuration to refuse."""

    def __init__(self, **names: str) -> None:
        self.names = names

    def __call__(self, value: Any) -> Any:
        return self.names.get(str(value), value)

    def back(self, value: Any) -> Any:
        return {ours: name for name, ours in self.names.items()}.get(value, value)


# Official key -> our key, and what becomes of its value.
KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "init_rand_seed": ("run.seed", _same),
    "dataset_name": ("data.dataset", _same),
    "train_split": ("data.train_splits", _many),
    "val_split": ("data.eval_splits", _many),
    "model_name": (
        "model.name",
        _Choice(LocPointTransformer="actionformer", SnapFormer="snapformer", TBTFormer="tbtformer"),
    ),
    "dataset.json_file": ("data.annotations", _same),
    "dataset.feat_folder": ("data.features", _many),
    "dataset.file_prefix": ("data.prefix", lambda value: value or ""),
    "dataset.file_ext": ("data.suffix", _same),
    "dataset.input_dim": ("data.input_dim", _many),
    "dataset.num_classes": ("data.classes", _same),
    "dataset.feat_stride": ("data.stride_frames", _same),
    "dataset.num_frames": ("data.window_frames", _same),
    "dataset.default_fps": ("data.fps", _same),
    "dataset.downsample_rate": ("data.downsample", _same),
    "dataset.max_seq_len": ("data.max_length", _same),
    "dataset.force_upsampling": ("data.resample", _same),
    "dataset.trunc_thresh": ("data.min_overlap", _same),
    "dataset.crop_ratio": ("data.crop", _same),
    "dataset.custom_class": ("data.custom_class", _same),
    "loader.batch_size": ("loader.batch_size", _same),
    "loader.num_workers": ("loader.workers", _same),
    "model.backbone_type": (
        "model.backbone",
        _Choice(convTransformer="transformer", convTransformerv2="modern", conv="conv"),
    ),
    "model.backbone_arch": ("model.arch", _same),
    "model.scale_factor": ("model.scale_factor", _same),
    "model.embd_dim": ("model.width", _many),
    "model.n_head": ("model.heads", _same),
    "model.n_kv_head": ("model.kv_heads", _same),
    "model.n_hidden": ("model.hidden", _same),
    "model.n_mha_win_size": ("model.window", _many),
    "model.embd_kernel_size": ("model.embed_kernel", _same),
    "model.embd_with_ln": ("model.embed_norm", _same),
    "model.use_abs_pe": ("model.abs_positions", _same),
    "model.use_rel_pe": ("model.rel_positions", _same),
    "model.use_rope": ("model.rope", _same),
    "model.use_swiglu": ("model.swiglu", _same),
    "model.use_rms_norm": ("model.rms_norm", _same),
    "model.fpn_type": ("model.neck", _same),
    "model.fpn_dim": ("model.neck_width", _same),
    "model.fpn_with_ln": ("model.neck_norm", _same),
    "model.fpn_start_level": ("model.start_level", _same),
    "model.head_type": ("model.head", _Choice(v1="plain", v2="deep")),
    "model.head_dim": ("model.head_width", _same),
    "model.head_kernel_size": ("model.head_kernel", _same),
    "model.head_num_layers": ("model.head_layers", _same),
    "model.head_with_ln": ("model.head_norm", _same),
    "model.regression_range": ("model.ranges", _same),
    "model.reg_max": ("model.reg_max", _same),
    "model.dfl_weight": ("loss.distribution_weight", _same),
    "model.input_dropout": ("model.input_dropout", _same),
    "train_cfg.center_sample": ("loss.center", _same),
    "train_cfg.center_sample_radius": ("loss.center_radius", _same),
    "train_cfg.loss_weight": ("loss.weight", _same),
    "train_cfg.cls_prior_prob": ("model.prior", _same),
    "train_cfg.init_loss_norm": ("loss.init_norm", _same),
    "train_cfg.clip_grad_l2norm": ("optim.clip_norm", lambda value: max(value, 0)),
    "train_cfg.head_empty_cls": ("model.empty_classes", _same),
    "train_cfg.dropout": ("model.dropout", _same),
    "train_cfg.droppath": ("model.drop_path", _same),
    "train_cfg.label_smoothing": ("loss.label_smoothing", _same),
    "train_cfg.cls_loss_type": ("loss.classification", _same),
    "train_cfg.reg_loss_type": ("loss.regression", _same),
    "test_cfg.pre_nms_thresh": ("postprocess.score_threshold", _same),
    "test_cfg.pre_nms_topk": ("postprocess.topk", _same),
    "test_cfg.iou_threshold": ("postprocess.iou_threshold", _same),
    "test_cfg.min_score": ("postprocess.min_score", _same),
    "test_cfg.max_seg_num": ("postprocess.max_detections", _same),
    "test_cfg.nms_method": ("postprocess.nms", _same),
    "test_cfg.nms_sigma": ("postprocess.sigma", _same),
    "test_cfg.duration_thresh": ("postprocess.min_duration", _same),
    "test_cfg.multiclass_nms": ("postprocess.per_class", _same),
    "test_cfg.ext_score_file": ("postprocess.external_scores", _same),
    "test_cfg.voting_thresh": ("postprocess.voting", lambda value: max(value, 0)),
    "test_cfg.score_temperature": ("postprocess.temperature", _same),
    "test_cfg.use_diou_nms": ("postprocess.diou", _same),
    "test_cfg.class_sigma": ("postprocess.class_sigma", lambda value: value or {}),
    "opt.type": ("optim.name", lambda value: str(value).lower()),
    "opt.momentum": ("optim.momentum", _same),
    "opt.weight_decay": ("optim.weight_decay", _same),
    "opt.learning_rate": ("optim.lr", _same),
    "opt.schedule_gamma": ("optim.gamma", _same),
    "opt.early_stop_epochs": ("optim.stop_epoch", _same),
}

# Understood, without effect here; the note says why.
IGNORED = {
    "devices": "set run.device, or GPUS=N on the command line",
    "output_folder": "set OUT=runs/NAME on the command line",
    "model.max_buffer_len_factor": "there is no limit on the length of a video",
    "model.use_flash_attn": "attention always takes the fastest kernel that gives the same numbers",
}

# How the guides of the fork spell switches under model.backbone.
BACKBONE = {
    "n_embd": "embd_dim",
    "arch": "backbone_arch",
    "mha_win_size": "n_mha_win_size",
    "n_embd_ks": "embd_kernel_size",
    "with_ln": "embd_with_ln",
}
BACKBONE_DATA = {"n_in": "input_dim", "max_len": "max_seq_len"}
BACKBONE_TRAIN = {"proj_pdrop": "dropout", "path_pdrop": "droppath"}


def import_config(source: str | Path | Mapping[str, Any]) -> tuple[Tree, list[str]]:
    """Our configuration for an official YAML file (or its content), as a tree of sections, and notes for its reader.

    Only what the file says is in the tree; our defaults are the official ones. `core.config.load` checks it.

    Raises:
        ValueError: when it is no official configuration.
    """
    given = read(source)
    notes: list[str] = []
    flat = _flatten(_spelled_officially(given, notes))
    tree: Tree = {"run": {"out": f"runs/actionformer/{Path(source).stem}"}} if isinstance(source, str | Path) else {}
    custom = bool(flat.get("dataset.custom_class"))
    for key, value in flat.items():
        if key in KEYS:
            ours, change = KEYS[key]
            _put(tree, ours, change(value))
        elif key in IGNORED:
            notes.append(f"{key}: not needed; {IGNORED[key]}")
        elif custom and key.startswith("dataset."):
            tree.setdefault("data", {}).setdefault("options", {})[key.removeprefix("dataset.")] = value
        elif not key.startswith("opt."):
            notes.append(f"{key}: not known to the official code; ignored")
    _put_schedule(tree, given.get("opt") or {}, notes)
    return tree, notes


def config_from(source: str | Path | Mapping[str, Any]) -> Config:
    """The checked configuration of an official YAML file or of its content.

    Raises:
        ConfigError: with the keys of ours whose values do not fit.
    """
    tree, _ = import_config(source)
    return _checked(tree)


def load_config(source: str | Path | Mapping[str, Any]) -> Config:
    """`config_from` by the name that it has in the official code."""
    return config_from(source)


def make_meta_arch(name: str, **options: Any) -> Detector:
    """The network for the arguments that the official function of this name takes: `cfg["model"]` with its sections.

    Raises:
        ValueError: for arguments that do not fit.
    """
    cfg = config_from({"model_name": name, "model": options})
    return build(cfg.model, channels=cfg.data.input_dim, classes=cfg.data.classes, max_length=cfg.data.max_length)


def export_config(cfg: Config) -> Tree:
    """An official configuration for one of ours; settings that only we have are left out."""
    flat = flatten(cfg)
    tree: Tree = {}
    for key, (ours, change) in KEYS.items():
        value = flat[ours]
        value = value.as_posix() if isinstance(value, Path) else value
        if change is _many:
            value = [item.as_posix() if isinstance(item, Path) else item for item in value]
            value = value[0] if len(value) == 1 and not key.endswith("_split") else value
        elif isinstance(change, _Choice):
            value = change.back(value)
        elif key == "opt.type":
            value = {"adamw": "AdamW", "sgd": "SGD"}.get(value, value)
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    optim, warmup = cfg.optim, round(cfg.optim.warmup)
    tree["opt"] |= {
        "epochs": optim.epochs - warmup,
        "warmup": warmup > 0,
        "warmup_epochs": warmup,
        "schedule_type": optim.schedule,
        "schedule_steps": [round(epoch) - warmup for epoch in optim.milestones],
    }
    if optim.stop_epoch is None:
        del tree["opt"]["early_stop_epochs"]
    return tree


def main(argv: Sequence[str] | None = None) -> None:
    """Write our configuration for an official one and say what was left out."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.actionformer.official",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a YAML file of the official project or of the fork")
    parser.add_argument("out", type=Path, nargs="?", help="the file to write; left out: print it")
    args = parser.parse_args(argv)
    try:
        tree, notes = import_config(args.source)
        text = _document(tree, args.source, args.out)
        if args.out:
            write_atomic(args.out, text)
            load(Config, args.out)
        else:
            sys.stdout.write(text)
    except (ValueError, OSError) as error:
        sys.exit(f"official: {error}")
    sys.stderr.write("".join(f"{args.source}: {note}\n" for note in notes))


def read(source: str | Path | Mapping[str, Any]) -> Tree:
    """The content of an official YAML file, as it stands there; content is copied.

    Raises:
        ValueError: when it is no official configuration.
    """
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    path = Path(source)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file (working folder {Path.cwd()})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    known = {key.split(".")[0] for key in (*KEYS, *IGNORED)}
    if not isinstance(tree, dict) or not known & set(tree):
        raise ValueError(f"{path}: no official configuration, which has the sections dataset, model, opt, ...")
    return tree


def _spelled_officially(given: Tree, notes: list[str]) -> Tree:
    """The tree with the aliases of the fork's guides replaced by what its code reads."""
    tree = copy.deepcopy(given)
    model = tree.get("model") or {}
    if "meta_arch" in model:
        tree["model_name"] = model.pop("meta_arch")
    nested = model.pop("backbone", None)
    if isinstance(nested, Mapping):
        for key, value in nested.items():
            if key in BACKBONE_DATA:
                tree.setdefault("dataset", {}).setdefault(BACKBONE_DATA[key], value)
            elif key in BACKBONE_TRAIN:
                tree.setdefault("train_cfg", {}).setdefault(BACKBONE_TRAIN[key], value)
            else:
                model[BACKBONE.get(key, key)] = value
        if "n_embd" in nested:  # one width all through, unless the others are given
            width = sum(nested["n_embd"]) if isinstance(nested["n_embd"], list | tuple) else nested["n_embd"]
            model.setdefault("fpn_dim", width)
            model.setdefault("head_dim", width)
    for key in ("input_dim", "num_classes", "max_seq_len"):  # where the code itself puts them in the end
        if key in model:
            tree.setdefault("dataset", {}).setdefault(key, model.pop(key))
    for section in ("train_cfg", "test_cfg"):
        for key, value in (model.pop(section, None) or {}).items():
            tree.setdefault(section, {}).setdefault(key, value)
    modern = ("use_rope", "use_swiglu", "use_rms_norm", "n_kv_head")
    if model.get("backbone_type", "convTransformer") != "convTransformerv2":
        notes += [f"model.{key}: only backbone_type convTransformerv2 has it" for key in modern if model.get(key)]
    return tree


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of the two levels that an official file has."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _put(tree: Tree, key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    tree.setdefault(section, {})[name] = value


def _put_schedule(tree: Tree, opt: Mapping[str, Any], notes: list[str]) -> None:
    """The official code counts epochs and milestones after the warm-up; ours count all."""
    known = ("epochs", "warmup", "warmup_epochs", "schedule_type", "schedule_steps")
    unknown = [key for key in opt if f"opt.{key}" not in KEYS and key not in known]
    notes += [f"opt.{key}: not known to the official code; ignored" for key in unknown]
    if not set(known) & set(opt):
        return
    epochs, warmup = opt.get("epochs", 30), opt.get("warmup_epochs", 5)
    optim = tree.setdefault("optim", {})
    optim |= {"epochs": epochs + warmup, "warmup": warmup, "schedule": opt.get("schedule_type", "cosine")}
    if not opt.get("warmup", True):  # the run is as long as with one, but the schedule is not
        optim |= {"epochs": epochs, "warmup": 0}
        optim.setdefault("stop_epoch", epochs + warmup)
    if steps := opt.get("schedule_steps"):
        optim["milestones"] = [optim["warmup"] + step for step in steps]


def _checked(tree: Tree) -> Config:
    """The configuration of a tree of sections; what it does not say has our defaults."""
    whole = Config().model_dump()
    for section, values in tree.items():
        whole[section] = {**whole[section], **values}
    return Config.model_validate(whole)


def _document(tree: Tree, source: Path, out: Path | None) -> str:
    """The YAML of ours, with the command in its head."""
    config = _checked(tree)
    name = out or Path("FILE.yaml")
    head = f"# make train PROJECT=actionformer CONFIG={name}\n# Made from {source.name} of the official project.\n"
    body = {key: value for key, value in yaml.safe_load(dump(config)).items() if key in tree}
    kept = {section: {key: body[section][key] for key in keys} for section, keys in tree.items()}
    return head + yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=110)


if __name__ == "__main__":
    main()
