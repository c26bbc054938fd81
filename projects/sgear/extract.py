"""Videos to a feature database: what the frame encoder says of every frame, 30 times a second.

    python -m projects.sgear.extract projects/sgear/configs/ek100_vit.yaml extract.out=FOLDER [ckpt=FILE]
        [extract.input=VIDEO or FOLDER] [extract.every=10]

writes LMDB in RULSTM's format, which `data.source=features data.features=[FOLDER] model.feature_dim=768` reads. The
encoder is that of a checkpoint (of ours, S-GEAR or AVT), else of timm's weights in `model.init`. Without an input all
videos of the dataset are read. Training AVT on these features is training it with a frozen encoder, at the cost of the
decoder alone. Stopped, the command goes on where it was.

Feature n is of the picture on screen at (n - 1) / 30 s, so that it knows nothing later, whatever the video's own rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core import config, run, video
from core.data import Loader, SampleError
from core.run import Run
from core.step import autocast
from projects.sgear import convert, data, frames, predict, weights
from projects.sgear.clips import FEATURE_FPS, SLACK_S
from projects.sgear.config import Config, DecoderConfig
from projects.sgear.features import Growing
from projects.sgear.model import Sgear


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Encode all videos; returns the database, or none when the run was asked to stop before its end."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        net = encoder(cfg, job).to(job.device).eval()
        database = Growing(cfg.extract.out)
        lost: list[str] = []
        try:
            for name, path, fps in job.log.progress(list(videos(cfg, job)), "extract"):
                try:
                    add(database, net, name, path, fps, cfg, job)
                except (video.VideoError, SampleError) as error:
                    lost.append(name)
                    job.log.warning(f"left out: {error}")
                if job.stop_requested:
                    job.log.info("stopped; the same command goes on from here")
                    return None
        finally:
            database.close()
        database.finish()
        left_out = f", without {len(lost)} videos that cannot be read: {', '.join(lost)}" if lost else ""
        job.log.info(
            f"{cfg.extract.out}: features of {cfg.model.vit.width} channels{left_out}; train on them with data.source="
            f"features data.features=[{cfg.extract.out}] model.input=features model.feature_dim={cfg.model.vit.width}"
        )
        return cfg.extract.out


def encoder(cfg: Config, job: Run) -> Sgear:
    """A network whose `backbone` is the encoder of `ckpt` or of the run's best weights, else of `model.init`.

    Raises: ValueError when there is none, or the weights are of a model on features.
    """
    source = cfg.ckpt or next((str(path) for path in weights.own(job.out)), "")
    if source:
        net, found = convert.open_model(source)
        if net.cfg.input != "video":
            raise ValueError(f"{source} holds {found}, which has no frame encoder; name weights of a model on frames")
        job.log.info(f"{source}: {found}")
        return net
    parts = tuple(entry for entry in cfg.model.init if entry[0].startswith("backbone"))
    if not parts:
        raise ValueError("no weights for the frame encoder: name a checkpoint with ckpt=FILE, or timm's in model.init")
    bare = {"kind": "avt", "labels": ("action",), "decoder": DecoderConfig(width=64, layers=1, heads=1)}
    net = Sgear(cfg.model.model_copy(update=bare), cfg.data.frames, {"action": 1})
    for line in weights.start(net, cfg.model.model_copy(update={"init": parts, "pretrained": "", "blocks": ()})):
        job.log.info(line)
    return net


def videos(cfg: Config, job: Run) -> Iterator[tuple[str, Path, float]]:
    """Name, file and frame rate (0: the file knows it) of every video that is asked for.

    Raises: ValueError when there is none; SampleError for one of the dataset that is in no root, unless `data.missing`
    lets it be skipped.
    """
    if cfg.extract.input is not None:
        for path in predict.find(cfg.extract.input, cfg.data):
            yield path.stem, path, cfg.data.fps
        return
    benchmark = data.load(cfg.data)
    pictures = cfg.data.source == "frames"
    seen: set[str] = set()
    for part in benchmark.parts():
        try:
            segments = benchmark.segments(part)
        except ValueError:  # a part without its file: test, mostly
            continue
        for name, path in zip(segments.video.tolist(), segments.path.tolist(), strict=True):
            if path not in seen:
                seen.add(path)
                try:
                    file = frames.find(benchmark.layout.videos, path, "frames" if pictures else "video")
                except SampleError as error:
                    if cfg.data.missing == "error":
                        raise
                    job.log.warning(f"left out: {error}")
                    continue
                yield name, file, cfg.data.fps or (benchmark.rates.get(name, 0.0) if pictures else 0.0)
    if not seen:
        raise ValueError(f"no part of {cfg.data.dataset} has its annotations; name videos with extract.input")


def numbered(clock: frames.Clock, every: int = 1) -> tuple[list[int], list[int]]:
    """The numbers of a video's features, counted from 1, and the frame on screen at (number - 1) / 30 s of each."""
    last = int((clock.times_s[-1] + SLACK_S) * FEATURE_FPS) + 1
    numbers = np.arange(1, last + 1, every)
    shown = np.searchsorted(clock.times_s, (numbers - 1) / FEATURE_FPS + SLACK_S, "right") - 1
    there = shown >= 0  # a container may begin late
    return numbers[there].tolist(), shown[there].tolist()


@torch.inference_mode()
def add(database: Growing, net: Sgear, name: str, path: Path, fps: float, cfg: Config, job: Run) -> None:
    """Encode a video, each of its frames once, unless the database has it.

    Raises: VideoError, SampleError when nothing of it can be read.
    """
    numbers, shown = numbered(frames.clock(path, fps), cfg.extract.every)
    if database.has(name, numbers[-1]):
        return
    loader = Loader(
        frames.Stretches(path, sorted(set(shown)), cfg.data.frames),
        cfg.loader.model_copy(update={"batch_size": 1}),
        train=False,
        device=job.device,
        transform=data.transform(cfg),
    )
    found: dict[int, Tensor] = {}
    for batch in loader:
        with autocast(cfg.precision, job.device):
            tokens = net.backbone(batch["video"])
        found |= dict(zip(batch["numbers"][0].tolist(), tokens[0, :, 0].float().cpu(), strict=True))
    kept = [(number, found[frame]) for number, frame in zip(numbers, shown, strict=True) if frame in found]
    if not kept:
        raise SampleError(path, next(iter(loader.bad.values()), "no frame can be read"))
    if kept[-1][0] != numbers[-1]:  # it tells that a video is done; a damaged one is answered by the one before it
        kept.append((numbers[-1], kept[-1][1]))
    database.add(name, [number for number, _ in kept], torch.stack([vector for _, vector in kept]).numpy())


if __name__ == "__main__":
    main()
