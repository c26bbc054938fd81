"""What will it look like? One frame and a few words in, the frame of the action out.

    python -m projects.lego.predict CONFIG ckpt=FILE predict.image=my.jpg predict.action="pick up the knife"
    python -m projects.lego.predict CONFIG ckpt=FILE predict.image=my.mp4 predict.time_s=3.5 predict.vllm=FOLDER ...

With `predict.vllm` the language model describes the action in this frame and gives its features; without it
`predict.description`, or the action itself, is the prompt, which models without features can use. Writes the frames
and predict.html, in which they stand beside the source.
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

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Draw the frame of an action; returns what was written and the prompt."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        return predict(cfg, job)


def predict(cfg: Config, job: Run) -> dict[str, Any]:
    """The whole way of one frame.

    Raises: ValueError when there is no frame, or the model wants features and no VLLM is named.
    """
    frame = read_frame(cfg.predict.image, cfg.predict.time_s)
    described = describe(frame, cfg, job)  # before the other networks: both need not be in memory at once
    prompt = described.description if described else cfg.predict.description or cfg.predict.action
    nets = weights.load(cfg, job)
    source = encode(nets.vae, data.to_input(data.squeeze(frame, cfg.data.size)[None].to(job.device)))[:, :4]
    condition = conditions(nets, prompt, described, cfg)
    count = cfg.predict.count
    text, *features = condition
    many = [None if part is None else part.expand(count, -1, -1) for part in features]
    repeated = Condition(text.expand(count, -1, -1), *many)
    latents = draw(
        nets.lego, nets.schedule, source=source.expand(count, -1, -1, -1), condition=repeated, null=nets.null(),
        names=[f"{cfg.predict.action}/{number}" for number in range(count)], cfg=cfg.sample, precision=cfg.precision,
    )  # fmt: skip
    height = cfg.data.size[0]
    size = height, round(frame.width / frame.height * height)
    images = decode(nets.vae, latents, cfg.diffusion.scale_factor)
    return write([finish(image, size, cfg.sample.stretch) for image in images], frame, prompt, cfg, job)


def read_frame(path: Path, time_s: float) -> Image.Image:
    """A picture, or the frame that a video shows at a time.

    Raises: ValueError for a file that is neither, and for a time after the video's end.
    """
    if not path.is_file():
        raise ValueError(f"predict.image={path}: no such file")
    if path.suffix.lower() in PICTURES:
        return data.read_image(path)
    return Image.fromarray(video.read_times(path, [time_s], rotate=True)[0].numpy())


def describe(frame: Image.Image, cfg: Config, job: Run) -> Described | None:
    """What the language model says and sees; None when none is named."""
    if not cfg.predict.vllm:
        return None
    describer = Describer(cfg.predict.vllm, job.device, vision=cfg.model.clip)
    job.log.info(str(describer.report))
    dataset = cfg.data.datasets[0] if cfg.predict.action.startswith("#C") else "epickitchen"  # which cleaning it needs
    (found,) = describer.describe([frame], [cfg.predict.action], dataset, [cfg.predict.action])
    job.log.info(f"description: {found.description}")
    return found


def conditions(nets: weights.Networks, prompt: str, described: Described | None, cfg: Config) -> Condition:
    """The conditions of one frame, each (1, N, D).

    Raises: ValueError when the model wants features that nobody gives.
    """
    if described is None and cfg.model.features != "none":
        raise ValueError(
            f"the model is conditioned on the VLLM's features (model.features={cfg.model.features}): name its folder "
            "with predict.vllm=FOLDER, or use weights of a model without features"
        )
    states = nets.text.encode([prompt])
    if described is None:
        return Condition(states)
    text = described.text_features[: data.TEXT_ROWS]
    text = torch.nn.functional.pad(text, (0, 0, 0, data.TEXT_ROWS - len(text)))
    image, words = (features.float().to(states.device)[None] for features in (described.image_features, text))
    return Condition(states, image if cfg.model.uses_image else None, words if cfg.model.uses_text else None)


def write(images: Sequence[Tensor], frame: Image.Image, prompt: str, cfg: Config, job: Run) -> dict[str, Any]:
    """Frames as JPEG, predict.json and the page."""
    out = cfg.predict.out or job.out / "predict"
    paths = [out / f"{cfg.predict.image.stem}_{number}.jpg" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_atomic(path, jpeg(image, cfg.sample.quality))
    answer = {"image": str(cfg.predict.image), "action": cfg.predict.action, "prompt": prompt,
              "frames": [str(path) for path in paths], "sample": cfg.sample.model_dump(mode="json")}  # fmt: skip
    write_atomic(out / "predict.json", simplejson.dumps(answer, indent=2) + "\n")
    page = Page(cfg.predict.action, str(cfg.predict.image))
    page.text(prompt, "Prompt")
    shown: list[tuple[str, Any]] = [("before", torch.from_numpy(np.array(frame)))]
    page.images("Frames", [*shown, *((path.name, image) for path, image in zip(paths, images, strict=True))])
    page.facts({"steps": cfg.sample.steps, "text scale": cfg.sample.text_scale, "image scale": cfg.sample.image_scale,
                "seed": cfg.sample.seed})  # fmt: skip
    page.save(out / "predict.html")
    job.log.info(f"{len(images)} frames: {out / 'predict.html'}")
    return answer


if __name__ == "__main__":
    main()
