"""A network that can answer: the weights of a run or of any official file, with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.checkpoint import fetch, read_weights
from core.run import Run
from projects.actionformer import convert, model
from projects.actionformer.config import Config

GEOMETRY = ("stride_frames", "window_frames", "fps", "downsample", "resample", "max_length", "input_dim", "classes")


def load(cfg: Config, job: Run, classes: Sequence[str] = ()) -> tuple[model.Detector, tuple[str, ...]]:
    """The network of `ckpt`, or the best (else last) of the run directory, in eval mode on the run's device.

    `ckpt` may be a folder of official checkpoints: then that of epoch `eval.epoch`, or the last by name. Class names
    come from the file; where it has none, `classes`, else numbers. What the weights were trained with and the
    configuration says differently is a warning.

    Raises: ValueError when there are no weights, or they do not fit the model section.
    """
    path = find(cfg, job.out)
    net = convert.build(cfg)
    job.log.info(str(convert.load(net, path)))
    _, about = read_weights(path, allow="inert")
    for section in ("model", "data"):
        trained: dict[str, Any] = dict(about.get(section) or {})
        ours = getattr(cfg, section).model_dump(mode="json")
        for key, value in trained.items():
            if key in ours and ours[key] != value:
                job.log.warning(f"these weights were trained with {section}.{key}={value}, not {ours[key]}")
    known = about.get("classes") or classes or [f"class {k}" for k in range(cfg.data.classes)]
    return net.to(job.device).eval(), tuple(known)


def find(cfg: Config, out: Path) -> Path:
    """The file of weights that a configuration means.

    Raises: ValueError when there is none.
    """
    folder = out / "checkpoints"
    if not cfg.ckpt:
        own = [path for path in (folder / "best.safetensors", folder / "last.safetensors") if path.exists()]
        if not own:
            raise ValueError(f"{folder} holds no weights; train first (run.out={out}), or name a file with ckpt=FILE")
        return own[0]
    path = Path(cfg.ckpt)
    if not path.is_dir():
        return fetch(cfg.ckpt)
    there = sorted(path.glob("*.pth.tar"))
    if cfg.eval.epoch >= 0:
        wanted = path / f"epoch_{cfg.eval.epoch:03d}.pth.tar"
        there = [wanted] if wanted.is_file() else []
    if there:
        return there[-1]
    own = [p for p in (path / "best.safetensors", path / "checkpoints" / "best.safetensors") if p.is_file()]
    if own and cfg.eval.epoch < 0:
        return own[0]
    names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    wish = f"epoch_{cfg.eval.epoch:03d}.pth.tar" if cfg.eval.epoch >= 0 else "a checkpoint (*.pth.tar)"
    raise ValueError(f"{path} holds no {wish}; it holds {names}")


def about(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """What a file of weights says about itself, so that it answers without the dataset and the run it came from."""
    data = cfg.data.model_dump(mode="json")
    return {
        "classes": list(classes),
        "model": cfg.model.model_dump(mode="json"),
        "data": {key: data[key] for key in GEOMETRY},
    }
