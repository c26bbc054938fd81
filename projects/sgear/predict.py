"""What comes next in this video? The likeliest next actions at every second, for a file of any length or a folder.

    python -m projects.sgear.predict runs/sgear/ek100_SGEAR_vit/config.yaml predict.input=my.mp4 [ckpt=FILE]

writes predictions.json and predict.html, in which the player and the time line move together. An answer at time t has
seen nothing from t on, and is about an action that starts `data.tau_a` seconds later. A model on features answers for
the videos of its database: `predict.input` is then a video whose name is there, or just that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from torch import nn

from core import config, run, video
from core.checkpoint import write_atomic
from core.data import Loader, SampleError
from core.run import Run
from core.step import autocast
from projects.sgear import clips, data, frames, layout, report, weights
from projects.sgear.clips import Rule
from projects.sgear.config import Config, DataConfig
from projects.sgear.features import Features

CURVES = 8  # actions whose share is drawn over time


class Moments:
    """The clips that end at every `hop_s` of one video. Samples: id (the moment), `video` or `features` as in training.

    Raises: VideoError for a video that cannot be read; ValueError for one that is not in the feature database.
    """

    def __init__(self, path: Path, cfg: DataConfig, hop_s: float) -> None:
        self.path, self.cfg = path, cfg
        self.rule = Rule(cfg.frames, cfg.rate, "last_clip" if cfg.strategy == "random_clip" else cfg.strategy)
        self.tau_o = cfg.tau_o_eval or cfg.tau_o
        self.features = Features(layout.resolve(cfg).features) if cfg.source == "features" else None
        if self.features is not None:
            self.duration_s = self.features.length(path.stem) / clips.FEATURE_FPS
        else:
            self.clock = frames.clock(path, cfg.fps)
            self.duration_s = float(self.clock.times_s[-1]) + 1 / self.clock.fps
        count = int((self.duration_s + 1e-6) / hop_s)
        self.times_s = [hop_s * (k + 1) for k in range(count)] or [self.duration_s]

    def __len__(self) -> int:
        return len(self.times_s)

    def sample(self, index: int, rng: Any) -> dict[str, Any]:
        """What can be seen until then."""
        end_s = self.times_s[index]
        if self.features is not None:
            where = clips.span(end_s - self.tau_o, end_s, clips.FEATURE_FPS, self.rule, rng)
            choice = clips.feature_frames(where, self.rule)
            return {"id": f"{index:06d}", "features": self.features.read(self.path.stem, choice.numbers, choice.among)}
        where = clips.span(end_s - self.tau_o, end_s, self.clock.fps, self.rule, rng)
        try:
            choice = clips.video_frames(self.clock.times_s, where, self.rule)
        except ValueError as error:
            raise SampleError(self.path, str(error)) from error
        return {"id": f"{index:06d}", "video": frames.read(self.path, choice.numbers)}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Answer for every video of `predict.input`; one that cannot be read is named and left out."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        net, names = weights.answering(cfg, job)
        answers = []
        for path in job.log.progress(find(cfg.predict.input, cfg.data), "predict"):
            try:
                answers.append(predict(net, names, path, cfg, job))
            except (video.VideoError, SampleError) as error:
                job.log.warning(f"left out: {error}")
            if job.stop_requested:
                break
        write_atomic(job.out / "predictions.json", simplejson.dumps(answers, indent=2, ignore_nan=True) + "\n")
        report.write_predictions(job.out / "predict.html", answers)
        job.log.info(f"{len(answers)} videos answered: {job.out / 'predictions.json'}, {job.out / 'predict.html'}")
        return answers


def find(path: Path, cfg: DataConfig) -> list[Path]:
    """The video itself, or all videos below a folder; for features, a name will do.

    Raises: ValueError when there is none.
    """
    if path.is_file() or cfg.source == "frames" or (cfg.source == "features" and not path.exists()):
        return [path]
    found = video.videos_in(path) if path.is_dir() else []
    if not found:
        raise ValueError(f"predict.input={path} is neither a video nor a folder with videos")
    return found


@torch.inference_mode()
def predict(net: nn.Module, names: Sequence[str], path: Path, cfg: Config, job: Run) -> dict[str, Any]:
    """The likeliest next actions at every moment of a video; damaged moments are left out.

    Raises: VideoError when nothing can be read.
    """
    moments = Moments(path, cfg.data, cfg.predict.hop_s)
    loader = Loader(
        moments, cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size}), train=False, device=job.device,
        transform=data.transform(cfg, crops=cfg.eval.crops, flips=cfg.eval.flips),
    )  # fmt: skip
    numbers: list[int] = []
    parts: list[np.ndarray] = []
    for batch in loader:
        numbers += map(int, batch["id"])
        with autocast(cfg.precision, job.device):
            outputs = net(batch["video"] if "video" in batch else batch["features"])
        parts.append(outputs.logits["action"].float().cpu().numpy())
    if not parts:
        raise video.VideoError(path, next(iter(loader.bad.values())))
    logits = np.concatenate(parts)
    shares = torch.from_numpy(logits).double().softmax(1).numpy().round(6)
    ahead_s = max(cfg.data.tau_a, 0.0)
    strongest = np.argsort(-shares.max(0), kind="stable")[:CURVES]
    return {
        "video": str(path),
        "duration_s": moments.duration_s,
        "tau_a": ahead_s,
        "hop_s": cfg.predict.hop_s,
        "curves": {names[k]: shares[:, k].tolist() for k in strongest},
        "moments": [
            {
                "time_s": moments.times_s[number],
                "starts_s": moments.times_s[number] + ahead_s,
                "top": report.best_of(row, names, cfg.predict.topk),
            }
            for number, row in zip(numbers, logits, strict=True)
        ],
    }


if __name__ == "__main__":
    main()
