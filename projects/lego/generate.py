"""The frames of a whole split: sharded, resumable, and the same whatever the batch, the processes or the interruptions.

    python -m projects.lego.generate projects/lego/configs/ego4d_ldm.yaml ckpt=ego4d_diffusion_with_vllm_feature.ckpt
    torchrun --standalone --nproc-per-node 8 -m projects.lego.generate CONFIG ckpt=FILE

One command in place of the reference's numbered scripts. Every frame's noise comes from a generator made of
(sample.seed, clip, action). Frames go where the reference writes them:
`<weights without suffix>/<name>-e=<seed>-s=<steps>-si=<image scale>/images/<clip>/<action>/<frame>.jpg`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import simplejson
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from core import config, dist, run
from core.checkpoint import write_atomic
from core.data import Loader
from core.run import Run
from core.step import Precision, autocast
from projects.lego import data, sampler, weights
from projects.lego.batches import Batches, condition
from projects.lego.cache import fingerprint
from projects.lego.config import Config, SampleConfig
from projects.lego.data import Pairs, Record
from projects.lego.model import Condition, Conditioner, Lego, Schedule, decode, encode
from projects.lego.weights import Networks

TEXT_SCALE = 7.5  # the published one; another one is added to the name of the folder


def main(argv: Sequence[str] | None = None) -> Path:
    """Generate what is not there yet; returns the folder that holds images/."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return generate(cfg, job)


def generate(cfg: Config, job: Run) -> Path:
    """Frames of `sample.split` by the weights of `ckpt` or of the run.

    Raises: ValueError when the folder holds frames of other weights or settings.
    """
    nets = weights.load(cfg, job)
    records = data.load(cfg.data, cfg.sample.split)
    out = folder(nets.source, cfg.sample)
    _sign(out, nets, cfg, job)
    todo = dist.broadcast([i for i, record in enumerate(records) if not image_path(out, record).is_file()])
    job.log.info(f"{len(todo)} of {len(records)} frames are to be drawn: {out / 'images'}")
    if not todo:
        return out
    pairs = Pairs([records[i] for i in todo], cfg.data, cfg.model, targets=False)
    options = cfg.loader.model_copy(update={"batch_size": cfg.sample.batch_size})
    loader = Loader(pairs, options, train=False, device=job.device)
    by_id = {record.id: record for record in pairs.records}
    null = nets.null()
    for batch in job.log.progress(loader, "frames"):
        chosen = [by_id[name] for name in batch["id"]]
        latents = encode(nets.vae, data.to_input(batch["source"]))[:, :4]
        images = draw(
            nets.lego, nets.schedule, source=latents, condition=condition(batch, nets.text, nets.sight), null=null,
            names=[sample_name(record) for record in chosen], cfg=cfg.sample, precision=cfg.precision,
        )  # fmt: skip
        images = decode(nets.vae, images, cfg.diffusion.scale_factor)
        for record, image in zip(chosen, images, strict=True):
            pixels = finish(image, written_size(record, cfg), cfg.sample.stretch)
            write_atomic(image_path(out, record), jpeg(pixels, cfg.sample.quality))
        if job.stop_requested:
            break
    if job.stopping():
        job.log.info("stopped; the same command draws the rest")
        return out
    coverage = loader.coverage()
    job.log.info(f"drew {coverage}: {out / 'images'}")
    return out


def folder(source: Path, cfg: SampleConfig) -> Path:
    """Where the frames of these weights and settings go: `sample.out`, or as the reference names it.

    Its name lacks the text scale, so that frames of several overwrite each other; here scales other than 7.5 are named.
    """
    if cfg.out is not None:
        return cfg.out
    name = source.name if source.is_dir() else source.stem
    base = source if source.is_dir() else source.with_suffix("")
    scale = "" if cfg.text_scale == TEXT_SCALE else f"-st={cfg.text_scale:g}"
    solver = "" if cfg.solver == "euler_ancestral" else f"-{cfg.solver}"
    return base / f"{name}-e={cfg.seed}-s={cfg.steps}-si={cfg.image_scale}{scale}{solver}"


def image_path(out: Path, record: Record) -> Path:
    """The file of a record's frame: clip, action and name of the target frame."""
    return out.joinpath("images", *Path(record.target).parts[-3:])


def sample_name(record: Record) -> str:
    """What decides a frame's noise, with the seed."""
    return f"{record.clip}/{record.action}"


def _sign(out: Path, nets: Networks, cfg: Config, job: Run) -> None:
    """Leave a note of what the frames were made with, or compare with the one that is there.

    Raises: ValueError when they differ: frames of two models in one folder would be scored as one.
    """
    path = out / "generation.json"
    settings = cfg.sample.model_dump(mode="json", exclude={"batch_size", "shortcut", "out"})
    note = {
        "weights": fingerprint(nets.lego, cfg.sample.weights),
        "prompt": cfg.data.prompt,
        "size": list(cfg.data.size),
        "sample": settings,
    }
    there = simplejson.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if there is not None and there != note:
        differing = [key for key in note if there.get(key) != note[key]]
        raise ValueError(
            f"{path}: the frames in {out} were made with another {', '.join(differing)}; remove the folder, or choose "
            "another with sample.out=FOLDER"
        )
    if there is None and dist.is_main():
        if (out / "images").is_dir():
            job.log.warning(f"{out / 'images'} holds frames of unknown origin; they are kept")
        write_atomic(path, simplejson.dumps(note, indent=2) + "\n")
    dist.barrier()


def draw(
    lego: Lego,
    schedule: Schedule,
    *,
    source: Tensor,
    condition: Condition,
    null: Tensor,
    names: Sequence[str],
    cfg: SampleConfig,
    precision: Precision = "fp32",
) -> Tensor:
    """Scaled latents (B, 4, h, w) of the frames after `source` (B, 4, h, w); `names` and the seed decide the noise."""
    noise = sampler.SampleNoise(cfg.seed, names, source.shape[1:], source.device)
    with torch.inference_mode(), autocast(precision, source.device):
        context = lego.conditioner(condition)
        empty = Conditioner.null(null.to(context.dtype), context.shape[1])
        return sampler.sample(
            lego, schedule, source=source, context=context, null=empty, noise=noise, steps=cfg.steps,
            solver=cfg.solver, text_scale=cfg.text_scale, image_scale=cfg.image_scale, shortcut=cfg.shortcut,
        )  # fmt: skip


def grid(lego: Lego, batches: Batches, schedule: Schedule, cfg: Config) -> Tensor:
    """A few examples of a run, float (3, BH, 3W) in [0, 1]: in each row source, drawn and target frame."""
    batch = batches.examples(cfg.show.count)
    assert batches.vae is not None
    settings = cfg.sample.model_copy(update={"steps": cfg.show.steps})
    pictures = [data.to_input(batch[name]) for name in ("source", "target")]
    source = encode(batches.vae, pictures[0])[:, :4]
    given = condition(batch, batches.text, batches.sight)
    latents = draw(
        lego, schedule, source=source, condition=given, null=batches.null, names=batch["id"], cfg=settings,
        precision=cfg.precision,
    )  # fmt: skip
    drawn = decode(batches.vae, latents, cfg.diffusion.scale_factor).float()
    rows = torch.cat([pictures[0], drawn, pictures[1]], 3)
    return (torch.cat(list(rows), 1).clamp(-1, 1) + 1) / 2


def written_size(record: Record, cfg: Config) -> tuple[int, int]:
    """Height and width of the file: the model's height, and the shape of the original video, or of the source frame."""
    width, height = record.original_size or data.read_image(data.source_path(cfg.data.root, record)).size
    return cfg.data.size[0], round(width / height * cfg.data.size[0])


def finish(image: Tensor, size: tuple[int, int], stretch: str = "minmax") -> Tensor:
    """A decoded image (3, H, W), about in [-1, 1] -> uint8 (height, width, 3) as it is written.

    Bicubic without antialias, then the image's own range becomes 0..255 (a flat one black), and fractions are cut off;
    or with `clamp` [-1, 1] becomes 0..255, rounded.
    """
    image = F.interpolate(image.float()[None], size, mode="bicubic", align_corners=False)[0]
    if stretch == "minmax":
        low, high = image.amin(), image.amax()
        image = (image - low) / (high - low).clamp_min(1e-12) * 255
    else:
        image = ((image.clamp(-1, 1) + 1) * 127.5).round()
    return image.permute(1, 2, 0).to("cpu", torch.uint8)


def jpeg(pixels: Tensor, quality: int = 75) -> bytes:
    """uint8 (H, W, 3) as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
