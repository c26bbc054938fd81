"""Which weights a network starts from, and which it answers with; nothing is left out silently."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.checkpoint import load_weights
from core.run import Run
from projects.sgear import convert, data, prototype_files
from projects.sgear.config import Config, ModelConfig
from projects.sgear.data import Benchmark
from projects.sgear.model import Sgear


def build(cfg: Config, benchmark: Benchmark) -> Sgear:
    """The configured network for the classes of a dataset, its prototypes from their files.

    Without a file of visual prototypes they start at the language's (what the authors did for the recognition run), and
    without both at random.
    """
    classes = {"action": len(benchmark.actions), "verb": len(benchmark.verbs), "noun": len(benchmark.nouns)}
    absent = [label for label in cfg.model.labels if not classes[label]]
    if absent:
        raise ValueError(f"model.labels has {', '.join(absent)}, but {cfg.data.dataset} names actions only")
    visual, language = prototypes(cfg.model, classes["action"]) if cfg.model.kind == "sgear" else (None, None)
    maps = {"verb": benchmark.classes.mapping("verb"), "noun": benchmark.classes.mapping("noun")}
    return Sgear(
        cfg.model,
        cfg.data.frames,
        classes,
        prototypes=language if visual is None else visual,
        language=language,
        maps={label: matrix for label, matrix in maps.items() if matrix.shape[1]},
    )


def prototypes(cfg: ModelConfig, classes: int) -> tuple[Tensor | None, Tensor | None]:
    """Visual and language prototypes (K,D') of the files that the configuration names."""
    visual, language = cfg.prototypes.visual, cfg.prototypes.language
    return (
        prototype_files.read(visual, classes) if visual else None,
        prototype_files.read(language, classes) if language else None,
    )


def similarities(cfg: ModelConfig, classes: int) -> Tensor | None:
    """The language's cosines (K,K): of their own file, else of the encodings; None without both."""
    if cfg.prototypes.similarities:
        return prototype_files.read(cfg.prototypes.similarities, classes)
    if cfg.prototypes.language:
        return prototype_files.similarities(prototype_files.read(cfg.prototypes.language, classes))
    return None


# ------------------------------------------------------------------------------------------------------------- to train


def start(net: Sgear, cfg: ModelConfig) -> list[str]:
    """Load what `init` and `pretrained` name, and say for each what was loaded and what was not.

    `[file]` is for the whole network, `[module, file]` for a part of it, `[module, prefix, ..., file]` takes only the
    names with one of the prefixes, stripped. Tensors of another shape stay out and are named; position tables are
    resized.

    Raises: ValueError when a file, a module or every tensor is missing.
    """
    said = []
    for *place, source in cfg.init:
        name = place[0] if place else ""
        module = _module(net, name) if name else net
        tensors, note = _named(source, net, name)
        if len(place) > 1:
            tensors = _stripped(tensors, place[1:])
        said.append(_load(module, tensors, f"{name or 'model'} from {source}", note))
    if cfg.pretrained:
        parts = [_RENAMED.get(part, part) for part in cfg.blocks]
        tensors, note = _named(cfg.pretrained, net, "")
        chosen = {name: value for name, value in tensors.items() if any(part in name for part in parts)}
        said.append(_load(net, chosen, f"{', '.join(cfg.blocks)} from {cfg.pretrained}", note))
    return said


_RENAMED = {"CrossModAttn": "ProtAttn", "TimeShift": "TCA", "org_gamma": "vis_prototypes"}
"""Blocks by their names in the first release, which some released configurations still say."""


def _module(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError:
        tops = ", ".join(child for child, _ in net.named_children())
        raise ValueError(f"model.init names the module {name!r}; the model has {tops}") from None


def _named(source: str, net: Sgear, place: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file for the module at `place`: our names, positions that fit; and a note of what changed."""
    tensors = convert.rename(convert.read(source)[0])
    if net.cfg.input != "video":
        return tensors, ""
    prefix = f"{place}." if convert.POSITIONS.startswith(f"{place}.") else ""
    whole = {prefix + name: value for name, value in tensors.items()}
    fitted, note = convert.fit_positions(whole, net.cfg.vit.image, net.cfg.vit.patch)
    return {name.removeprefix(prefix): value for name, value in fitted.items()}, note


def _stripped(tensors: Mapping[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        for prefix in prefixes:
            if match := re.match(rf"{re.escape(prefix)}(\.|$)", name):
                found[name[match.end() :]] = value
    return found


def _load(module: nn.Module, tensors: Mapping[str, Tensor], what: str, note: str) -> str:
    """Load the tensors that fit and say what became of the others. Raises: ValueError when none does."""
    own = module.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and value.shape == own[name].shape}
    misfits = [f"{name} {tuple(tensors[name].shape)}" for name in tensors if name in own and name not in fitting]
    strangers = [name for name in tensors if name not in own]
    if not fitting:
        raise ValueError(
            f"{what}: none of its {len(tensors)} tensors has a place in the model; it has names like "
            f"{', '.join(list(own)[:3])}, the file {', '.join(list(tensors)[:3])}"
        )
    load_weights(module, fitting, allow_missing=[".*"])
    kept = [name for name in own if name not in fitting]
    parts = [f"{what}: loaded {len(fitting)} tensors", *([note] if note else [])]
    parts += [f"{len(misfits)} of another shape left out ({_some(misfits)})"] if misfits else []
    parts += [f"{len(strangers)} without a place ({_some(strangers)})"] if strangers else []
    parts += [f"{len(kept)} keep their start values ({_some(kept)})"] if kept else []
    return "; ".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


# ------------------------------------------------------------------------------------------------------------ to answer


def load(cfg: Config, job: Run, benchmark: Benchmark) -> tuple[Sgear, dict[str, Any]]:
    """The network of `ckpt`, or the best (else last) of the run directory, in eval mode on the run's device.

    Beside it what its file says about itself, empty for official ones. Settings that change an answer and differ from
    those of the training are a warning.

    Raises: ValueError when there are no weights, or they do not fit the configuration.
    """
    source = _source(cfg, job)
    net = build(cfg, benchmark)
    report, note = convert.load(net, source)
    said = str(report).replace("the given state-dict", source)
    job.log.info(f"{said}{'; ' if note else ''}{note}")
    _, told = convert.read(source)
    names = told.get("classes")
    if isinstance(names, list) and tuple(names) != benchmark.actions:
        raise ValueError(f"{source} was trained on other classes than those of {cfg.data.dataset}; choose its dataset")
    _compare(told, cfg, source, job)
    return net.to(job.device).eval(), told


def answering(cfg: Config, job: Run) -> tuple[Sgear, tuple[str, ...]]:
    """The network of the weights alone, and the names of its actions; the dataset is read only for files of others.

    Raises: ValueError as `load`, and when the weights are of another kind of input than the configuration's.
    """
    source = _source(cfg, job)
    _, told = convert.read(source)
    if "classes" not in told or not isinstance(told.get("model"), dict):
        benchmark = data.load(cfg.data)
        return load(cfg, job, benchmark)[0], benchmark.actions
    net, found = convert.open_model(source)
    if net.cfg.input != cfg.model.input:
        raise ValueError(f"{source} holds {found}, but model.input={cfg.model.input}; use the run's own config.yaml")
    job.log.info(f"{source}: {found}")
    _compare(told, cfg, source, job)
    return net.to(job.device).eval(), tuple(told["classes"])


def _source(cfg: Config, job: Run) -> str:
    """The file that answers. Raises: ValueError when there is none."""
    found = own(job.out)
    if not cfg.ckpt and not found:
        raise ValueError(f"{job.out} holds no weights; train first (run.out={job.out}), or name a file with ckpt=FILE")
    return cfg.ckpt or str(found[0])


def own(out: Path) -> list[Path]:
    """The weights in a run directory, the best first."""
    return [path for name in ("best", "last") if (path := out / "checkpoints" / f"{name}.safetensors").exists()]


def _compare(told: Mapping[str, Any], cfg: Config, source: str, job: Run) -> None:
    for key, trained in (told.get("clip") or {}).items():
        now = _clip(cfg).get(key)
        if now != trained:
            job.log.warning(f"{source} was trained with data.{key}={trained}, not {now}")


def _clip(cfg: Config) -> dict[str, Any]:
    """What the model learned to see, and so has to be shown."""
    settings = cfg.data.model_dump(mode="json")
    return {key: settings[key] for key in ("frames", "rate", "tau_a", "tau_o", "strategy")}


def about(cfg: Config, benchmark: Benchmark) -> dict[str, Any]:
    """What a file of weights says about itself, so that it answers without the dataset and the run it came from."""
    return {
        "model": {**cfg.model.model_dump(mode="json"), "init": [], "pretrained": "", "blocks": []},
        "dataset": cfg.data.dataset,
        "frames": cfg.data.frames,
        "classes": list(benchmark.actions),
        "verbs": list(benchmark.verbs),
        "nouns": list(benchmark.nouns),
        "clip": _clip(cfg),
    }
