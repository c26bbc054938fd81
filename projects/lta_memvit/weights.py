"""A network that can answer: the weights of a run or of any official file, with the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.checkpoint import fetch, read_weights
from core.run import Run
from projects.lta_memvit import convert
from projects.lta_memvit.config import Config
from projects.lta_memvit.ego4d import Taxonomy
from projects.lta_memvit.model import Network
from projects.lta_memvit.official import Found

_TRAINED_WITH = {
    "clip": ("frames", "rate", "fps", "crop", "mean", "std"),
    "memory": ("sampler", "length"),
    "model": ("causal",),
}
"""Settings that change answers without changing a shape."""


def load(cfg: Config, job: Run, taxonomy: Taxonomy | None = None) -> tuple[Network, Taxonomy]:
    """The network of `ckpt`, or the best (else last) of the run directory, in eval mode on the run's device.

    Class names come from the file; where it has none, from `taxonomy`, else they are numbers. Settings that differ
    from those of the training are a warning.

    Raises: ValueError when there are no weights, or they do not fit the configuration or the dataset.
    """
    path = _path(cfg, job)
    net, found = convert.open_network(
        path,
        cfg=cfg.model,
        memory=cfg.memory,
        classes=None if taxonomy is None else (len(taxonomy.verbs), len(taxonomy.nouns)),
        future=cfg.data.future,
        repeat=cfg.task == "forecasting" and cfg.model.aggregator == "repeat",
        frames=cfg.clip.frames,
        crop=cfg.clip.crop,
    )
    job.log.info(f"{path}: {found}")
    if problems := _misfits(found, cfg):
        raise ValueError(f"{path} holds a {found}, which does not fit the configuration: " + "; ".join(problems))

    about = {} if path.suffix == ".pkl" else read_weights(path, allow="inert", mapped=True)[1]
    for section, keys in _TRAINED_WITH.items():
        trained, now = about.get(section), getattr(cfg, section).model_dump(mode="json")
        if not isinstance(trained, Mapping):
            continue
        for key in keys:
            if key in trained and trained[key] != now[key]:
                job.log.warning(f"these weights were trained with {section}.{key}={trained[key]}, not {now[key]}")
    return net.to(job.device), _names(about.get("classes"), taxonomy, found, str(path))


def _path(cfg: Config, job: Run) -> Path:
    folder = job.out / "checkpoints"
    own = [path for path in (folder / "best.safetensors", folder / "last.safetensors") if path.exists()]
    if not cfg.ckpt and not own:
        raise ValueError(f"{folder} holds no weights; train first (run.out={job.out}), or name a file with ckpt=FILE")
    return fetch(cfg.ckpt) if cfg.ckpt else own[0]


def _misfits(found: Found, cfg: Config) -> list[str]:
    """What to change in the configuration so that it says what the weights are."""
    problems = []
    if found.backbone != cfg.model.backbone:
        problems.append(f"model.backbone={found.backbone}")
    if cfg.task == "recognition" and found.kind == "forecaster":
        problems.append("task=forecasting")
    if cfg.task == "forecasting" and found.kind == "recognizer" and cfg.model.aggregator != "repeat":
        problems.append("model.aggregator=repeat for the baseline, or task=recognition")
    if found.kind == "forecaster":
        if found.future != cfg.data.future:
            problems.append(f"data.future={found.future}")
        if bool(found.transformer) != (cfg.model.aggregator == "transformer"):
            problems.append("model.aggregator=" + ("transformer" if found.transformer else "concat or mean"))
        if cfg.model.aggregator == "concat" and not found.transformer and found.inputs != cfg.data.inputs:
            problems.append(f"data.inputs={found.inputs}")
    if found.frames and found.frames != cfg.clip.frames:
        problems.append(f"clip.frames={found.frames}")
    return problems


def _names(classes: Any, taxonomy: Taxonomy | None, found: Found, path: str) -> Taxonomy:
    """Raises: ValueError when the dataset has other classes than the weights."""
    assert found.classes is not None
    verbs, nouns = found.classes
    known = Taxonomy(tuple(classes["verbs"]), tuple(classes["nouns"])) if isinstance(classes, Mapping) else None
    if taxonomy is not None and (len(taxonomy.verbs), len(taxonomy.nouns)) != found.classes:
        raise ValueError(
            f"{path} knows {verbs} verbs and {nouns} nouns, the dataset has {len(taxonomy.verbs)} and "
            f"{len(taxonomy.nouns)}; Ego4D v1 has 115 and 478, v2 117 and 521: use the annotations of the other version"
        )
    if known is not None and taxonomy is not None and known != taxonomy:
        raise ValueError(f"{path} knows other classes than the dataset, though as many; evaluate it on its own data")
    numbers = Taxonomy(tuple(f"verb {k}" for k in range(verbs)), tuple(f"noun {k}" for k in range(nouns)))
    return known or taxonomy or numbers


def about(cfg: Config, taxonomy: Taxonomy) -> dict[str, Any]:
    """What a file of weights says about itself, so that it answers without the dataset and the run it came from."""
    said = {name: getattr(cfg, name).model_dump(mode="json") for name in ("clip", "memory", "model")}
    return {"task": cfg.task, "classes": {"verbs": list(taxonomy.verbs), "nouns": list(taxonomy.nouns)}, **said}
