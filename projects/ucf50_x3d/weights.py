"""A network that can answer: the weights of a run or of any official file, with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.checkpoint import fetch, read_weights
from core.run import Run
from projects.ucf50_x3d import convert
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.model import X3D, SlowFast


def load(cfg: Config, job: Run, classes: Sequence[str] = ()) -> tuple[X3D | SlowFast, tuple[str, ...]]:
    """The network of `ckpt`, or the best (else last) of the run directory, in eval mode on the run's device.

    Class names come from the file; where it has none, `classes` if they are as many, else numbers. Frames and pixels
    that differ from those of the training are a warning.

    Raises: ValueError when there are no weights, or they are of another variant than `model.name`.
    """
    folder = job.out / "checkpoints"
    own = [path for path in (folder / "best.safetensors", folder / "last.safetensors") if path.exists()]
    if not cfg.ckpt and not own:
        raise ValueError(f"{folder} holds no weights; train first (run.out={job.out}), or name a file with ckpt=FILE")
    path = fetch(cfg.ckpt) if cfg.ckpt else own[0]
    variant = cfg.model.name.removeprefix("x3d_") if cfg.model.name.startswith("x3d_") else None
    net, found = convert.open_model(path, variant=variant, head_activation=cfg.eval.positions)
    job.log.info(f"{path}: {found}")

    _, about = read_weights(path)
    known = tuple(about.get("classes", ()))
    if len(known) != found.classes:
        known = tuple(classes) if len(classes) == found.classes else tuple(f"class {k}" for k in range(found.classes))
    clip = cfg.clip.model_dump(mode="json")
    for key, trained in about.get("clip", {}).items():
        if key in ("sampling", "frames", "rate", "crop", "short_side", "mean", "std") and clip.get(key) != trained:
            job.log.warning(f"these weights were trained with clip.{key}={trained}, not {clip.get(key)}")
    return net.to(job.device), known


def about(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """What a file of weights says about itself, so that it answers without the dataset and the run it came from."""
    return {"model": cfg.model.name, "classes": list(classes), "clip": cfg.clip.model_dump(mode="json")}
