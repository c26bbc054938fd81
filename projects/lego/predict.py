"""What will it look like? One frame and a few words in, the frame of the action out.

    python -m projects.lego.predict CONFIG ckpt=FILE predict.image=my.jpg predict.action="pick up the knife"
    python -m projects.lego.predict CONFIG ckpt=FILE predict.image=my.mp4 predict.time_s=3.5 predict.vllm=FOLDER ...

With `predict.vllm` the language model describes the action in this frame, unless `predict.description` does, and gives
the features of both. Models without features need none; those with image features alone find them in CLIP
(data.image_features=frames). Writes the frames, predict.json, and predict.html, in which they stand beside the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from PIL import Image
from torch import Tensor

from core import config, run, video
from core.checkpoint import write_atomic
from core.report import Page
from core.run import Run
from projects.lego import data, weights
from projects.lego.config import Config
from projects.lego.extract import Described, Describer
from projects.lego.generate import draw, finish, jpeg
from projects.lego.model import Condition, decode, encode
from projects.lego.model.vision import clip_pixels

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw the frame of an action; returns what predict.json holds."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return predict(cfg, job)


def predict(cfg: Config, job: Run) -> dict[str, Any]:
    """The whole way of one frame.

    Raises:
        ValueError: when there is no frame or are no weights, or the model wants features that nobody gives.
    """
    frame = read_frame(cfg.predict.image, cfg.predict.time_s)
    prompt = given_prompt(cfg)
    check_features(cfg)
    weights.find(cfg, job)  # what is missing is said before a large model is opened
    described = describe(frame, prompt, cfg, job)  # first: both models need not be in memory at once
    if described is not None:
        prompt = described.description
    elif not prompt:
        prompt = cfg.predict.action
        if cfg.data.prompt != "action":
            job.log.warning(
                f"the model was trained on descriptions ({cfg.data.prompt}) and is given the action alone; name the "
                "VLLM with predict.vllm, or write one with predict.description"
            )
    nets = weights.load(cfg, job)
    source = encode(nets.vae, data.to_input(data.squeeze(frame, cfg.data.size)[None].to(job.device)))[:, :4]
    count = cfg.predict.count
    latents = draw(
        nets.lego, nets.schedule, source=source.expand(count, -1, -1, -1), null=nets.null(),
        condition=conditions(nets, frame, prompt, described, cfg).expand(count),
        names=[f"{cfg.predict.action}/{number}" for number in range(count)], cfg=cfg.sample, precision=cfg.precision,
    )  # fmt: skip
    height = cfg.data.size[0]
    size = height, round(frame.width / frame.height * height)
    images = decode(nets.vae, latents, cfg.diffusion.scale_factor)
    return write([finish(image, size, cfg.sample.stretch) for image in images], frame, prompt, cfg, job)


def read_frame(path: Path, time_s: float) -> Image.Image:
    """A picture, or the frame that a video shows at a time.

    Raises:
        ValueError: for a file that is not there or is neither, and for a time after the video's end.
    """
    if not path.is_file():
        raise ValueError(f"predict.image={path}: no such file; give a picture, or a video with predict.time_s")
    if path.suffix.lower() in PICTURES:
        return data.read_image(path)
    end_s = video.probe(path).duration_s
    if time_s >= end_s:
        raise ValueError(f"predict.time_s={time_s:g}: {path} is {end_s:.2f} s long")
    return Image.fromarray(video.read_times(path, [time_s], rotate=True)[0].numpy())


def given_prompt(cfg: Config) -> str:
    """The description of the configuration, from a text file where it names one; empty when there is none."""
    given = cfg.predict.description
    if not given.endswith(".txt"):
        return given
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"predict.description={given}: no such file; give a text, or a .txt file that holds one")
    return " ".join(path.read_text(encoding="utf-8").split())


def check_features(cfg: Config) -> None:
    """Is everything named that makes the features of the model?

    Raises:
        ValueError: saying what to name.
    """
    ways = "name the VLLM's folder with predict.vllm=FOLDER"
    if cfg.predict.vllm or cfg.model.features == "none":
        return
    if cfg.model.features == "image" and data.sees_frames(cfg.data, cfg.model):
        return
    if cfg.model.features == "image":
        ways += ", or let CLIP alone make them (data.image_features=frames model.vision=FOLDER)"
    raise ValueError(
        f"the model is conditioned on the VLLM's features (model.features={cfg.model.features}): {ways}, or use "
        "weights of a model without features"
    )


def describe(frame: Image.Image, prompt: str, cfg: Config, job: Run) -> Described | None:
    """What the language model says of a frame, or makes of a description, and sees; None when none is named."""
    if not cfg.predict.vllm:
        return None
    describer = Describer(cfg.predict.vllm, job.device, vision=cfg.model.clip)
    job.log.info(str(describer.report))
    action = cfg.predict.action
    dataset = "ego4d" if action.startswith("#") else "epickitchen"  # a narration loses its narrator, words stay
    if prompt:
        (found,) = describer.read([frame], [action], dataset, [prompt])
    else:
        (found,) = describer.describe([frame], [action], dataset)
    job.log.info(f"description: {found.description}")
    return found


def conditions(
    nets: weights.Networks, frame: Image.Image, prompt: str, described: Described | None, cfg: Config
) -> Condition:
    """The conditions of one frame, each (1, N, D)."""
    states = nets.text.encode([prompt])
    image = text = None
    if cfg.model.uses_image and nets.sight is not None:
        image = nets.sight({"pixels": clip_pixels(frame, nets.sight.vision.side)[None].to(states.device)})
    elif cfg.model.uses_image:
        assert described is not None
        image = described.image_features[None].to(states.device)
    if cfg.model.uses_text:
        assert described is not None
        text = data.fixed_rows(described.text_features)[None].to(states.device)
    return Condition(states, image, text)


def write(images: Sequence[Tensor], frame: Image.Image, prompt: str, cfg: Config, job: Run) -> dict[str, Any]:
    """Frames as JPEG, predict.json and the page."""
    out = cfg.predict.out or job.out / "predict"
    paths = [out / f"{cfg.predict.image.stem}_{number}.jpg" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_atomic(path, jpeg(image, cfg.sample.quality))
    answer = {
        "image": str(cfg.predict.image), "action": cfg.predict.action, "prompt": prompt,
        "frames": [str(path) for path in paths], "sample": cfg.sample.model_dump(mode="json"),
    }  # fmt: skip
    write_atomic(out / "predict.json", simplejson.dumps(answer, indent=2) + "\n")
    page = Page(cfg.predict.action, str(cfg.predict.image))
    page.text(prompt, "Prompt")
    shown: list[tuple[str, Any]] = [("before", torch.from_numpy(np.array(frame)))]
    page.images("Frames", [*shown, *((path.name, image) for path, image in zip(paths, images, strict=True))])
    page.facts({
        "steps": cfg.sample.steps, "text scale": cfg.sample.text_scale, "image scale": cfg.sample.image_scale,
        "seed": cfg.sample.seed,
    })  # fmt: skip
    page.save(out / "predict.html")
    job.log.info(f"{len(images)} frames: {out / 'predict.html'}")
    return answer


if __name__ == "__main__":
    main()
