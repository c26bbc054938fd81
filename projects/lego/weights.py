"""Networks with their weights: to start training from, and to answer with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor

from core.checkpoint import fetch
from core.run import Run
from projects.lego import model
from projects.lego.config import Config
from projects.lego.model import Lego, Schedule, TextEncoder, layouts
from projects.lego.sight import Sight, open_sight

LEARNED = ("width", "levels", "blocks", "heads", "groups", "context", "features", "feature_width")
"""Keys of the model section that a file of ours says about itself."""


@dataclass
class Networks:
    """Everything that draws a frame."""

    lego: Lego
    vae: AutoencoderKL
    text: TextEncoder
    schedule: Schedule
    source: Path
    """The file of the weights that learned."""
    sight: Sight | None = None
    """Makes image features where they do not come from files."""

    def null(self) -> Tensor:
        """The states of the empty prompt, (1, 77, D)."""
        return self.text.encode([""])


def schedule(cfg: Config) -> Schedule:
    """The noise of the configuration."""
    return Schedule(cfg.diffusion.steps, cfg.diffusion.linear_start, cfg.diffusion.linear_end)


def start(lego: Lego, cfg: Config, job: Run) -> None:
    """Put the weights of `model.init` into a fresh network; what it does not have stays random, and is said.

    Official: Stable Diffusion 1.5. InstructPix2Pix and LEGO checkpoints give their moving average, which answers.
    """
    if not cfg.model.init:
        job.log.warning("model.init is empty: the UNet starts from nothing; give Stable Diffusion 1.5 (docs/data.md)")
        return
    parts = layouts.read(cfg.model.init)
    report = layouts.load_unet(lego, parts, average=bool(parts.average), blocks=cfg.model.blocks)
    job.log.info(f"{parts}; UNet{' (moving average)' if parts.average else ''}: {report}")
    if parts.conditioner:
        job.log.info(f"conditioning: {layouts.load_conditioner(lego.conditioner, parts)}")
    elif lego.conditioner.state_dict():
        job.log.info(f"{parts.source.name} has no conditioning modules: they start at random, as in the reference")


def frozen(cfg: Config, job: Run, source: str | Path = "") -> tuple[AutoencoderKL, TextEncoder]:
    """The autoencoder and the text encoder of `source`, else of `model.init`, on the run's device.

    Raises: ValueError when neither has them.
    """
    origin = source or cfg.model.init
    vae = model.autoencoder(cfg.model)
    if not origin:
        raise ValueError("model.init is empty; it names the weights that hold the autoencoder and the text encoder")
    parts = layouts.read(origin)
    text = model.text_encoder(cfg.model, str(parts.tokenizer or ""))
    job.log.info(f"autoencoder: {layouts.load_vae(vae, parts)}")
    job.log.info(f"text encoder: {layouts.load_text(text, parts)}")
    return vae.to(job.device), text.to(job.device)


def find(cfg: Config, job: Run) -> Path:
    """The file or folder of `ckpt`, or the newest weights of the run directory.

    Raises: ValueError when there are none.
    """
    if cfg.ckpt:
        path = Path(cfg.ckpt).expanduser()
        return path if path.is_dir() else fetch(cfg.ckpt)
    own = job.out / "checkpoints" / "last.safetensors"
    if not own.is_file():
        raise ValueError(f"{own.parent} holds no weights; train first (run.out={job.out}), or name some with ckpt=FILE")
    return own


def load(cfg: Config, job: Run) -> Networks:
    """The networks of `ckpt`, or of the run, in eval mode on the run's device.

    An official checkpoint answers with its moving average unless `sample.weights` is raw, and brings its autoencoder
    and text encoder; one of ours takes those from `model.init`.

    Raises: ValueError when something is missing, the conditioning above all: the reference would go on without a word.
    """
    path = find(cfg, job)
    parts = layouts.read(path)
    _compare(cfg, parts, job)
    lego = model.build(cfg.model)
    average = bool(parts.average) and cfg.sample.weights == "ema"
    if parts.layout == "compvis" and not parts.average and cfg.sample.weights == "ema":
        job.log.warning(f"{path} has no moving average; its raw weights answer")
    job.log.info(f"{path}: {layouts.load_unet(lego, parts, average=average, blocks=cfg.model.blocks)}")
    if lego.conditioner.state_dict():
        layouts.load_conditioner(lego.conditioner, parts, average=average)
    if parts.layout == "compvis" and not lego.conditioner.has_clone_layers:
        job.log.info("the mixer's layers differ: this conditioning was trained")
    vae, text = frozen(cfg, job, path if parts.vae and parts.text else "")
    lego.requires_grad_(False).eval()
    sight = open_sight(cfg, lego.to(job.device).conditioner, job)
    return Networks(lego, vae, text, schedule(cfg).to(job.device), path, sight)


def _compare(cfg: Config, parts: layouts.Parts, job: Run) -> None:
    """Warn where the weights were trained for another network than the configuration describes."""
    trained = parts.about.get("model")
    if isinstance(trained, dict):
        now = cfg.model.model_dump(mode="json")
        for key in LEARNED:
            if key in trained and trained[key] != now[key]:
                job.log.warning(f"these weights were trained with model.{key}={trained[key]}, not {now[key]}")


def about(cfg: Config) -> dict[str, Any]:
    """What a file of weights says about itself."""
    return {
        "project": "lego",
        "model": {key: value for key, value in cfg.model.model_dump(mode="json").items() if key in LEARNED},
        "size": list(cfg.data.size),
        "prompt": cfg.data.prompt,
    }
