"""What is done in this video? Classes over time for a file of any length, or for every video of a folder.

    python -m projects.ucf50_x3d.predict runs/ucf50_x3d/run/config.yaml predict.input=my.mp4 [ckpt=FILE]

writes predictions.json and predict.html, in which the player, the classes and the time line move together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from torch import nn

from core import clips, config, run, video
from core.checkpoint import write_atomic
from core.data import Loader
from core.run import Run
from core.step import autocast
from core.transforms import OnKey
from projects.ucf50_x3d import data, report, weights
from projects.ucf50_x3d.config import ClipConfig, Config, PredictConfig
from projects.ucf50_x3d.eval import score
from projects.ucf50_x3d.model import fuse
from projects.ucf50_x3d.splits import VIDEO_SUFFIXES

WHOLE_WINDOW_S = 4.0  # about the length of a UCF50 clip, for models that were shown whole clips


class Windows:
    """Overlapping windows of one video. Samples: id (the start), video uint8 (frames, H, W, 3)."""

    def __init__(self, path: Path, clip: ClipConfig, cfg: PredictConfig) -> None:
        self.path, self.clip = path, clip
        self.info = video.probe(path)
        self.window_s = min(cfg.window_s or _native_window_s(clip), self.info.duration_s)
        tiles = clips.tile(self.info.duration_s, self.window_s, cfg.hop_s, cover_end=True)
        self.starts_s = [start for start, _ in tiles]

    def __len__(self) -> int:
        return len(self.starts_s)

    def sample(self, index: int, rng: Any) -> dict[str, Any]:
        """Frames spread evenly over the window."""
        first = self.starts_s[index] * self.info.fps
        last = first + self.window_s * self.info.fps - 1
        frames = clips.between(first, last, self.clip.frames, self.info.frames)
        return {"id": f"{index:06d}", "video": video.read(self.path, frames, rotate=True)}


def _native_window_s(clip: ClipConfig) -> float:
    return clip.frames * clip.rate / data.HUB_FPS if clip.sampling == "window" else WHOLE_WINDOW_S


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Answer for every video of `predict.input`; a file that cannot be read is named and left out."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        net, classes = weights.load(cfg, job)
        net = fuse(net)  # the same answers, sooner
        answers = []
        for path in job.log.progress(find(cfg.predict.input), "predict"):
            try:
                answers.append(predict(net, classes, path, cfg, job))
            except video.VideoError as error:
                job.log.warning(f"left out: {error}")
            if job.stop_requested:
                break
        text = simplejson.dumps(answers, indent=2, ignore_nan=True)
        write_atomic(job.out / "predictions.json", text + "\n")
        report.write_predictions(job.out / "predict.html", answers)
        job.log.info(f"{len(answers)} videos answered: {job.out / 'predictions.json'}, {job.out / 'predict.html'}")
        return answers


def find(path: Path) -> list[Path]:
    """The video itself, or all videos below a folder.

    Raises: ValueError when there is none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise ValueError(f"predict.input={path} is neither a video nor a folder with videos")
    return found


@torch.inference_mode()
def predict(net: nn.Module, classes: Sequence[str], path: Path, cfg: Config, job: Run) -> dict[str, Any]:
    """Class shares of every window of a video, and of the video as their mean; damaged windows are left out.

    Raises: VideoError when no window can be read.
    """
    windows = Windows(path, cfg.clip, cfg.predict)
    loader = Loader(
        windows, cfg.loader.model_copy(update={"batch_size": cfg.eval.batch_size}), train=False, device=job.device,
        transform=OnKey("video", data.pipeline(cfg.clip)),
    )  # fmt: skip
    numbers: list[int] = []
    parts: list[np.ndarray] = []
    for batch in loader:
        numbers += map(int, batch["id"])
        with autocast(cfg.precision, job.device):
            parts.append(score(net, batch["video"]).exp().cpu().numpy())
    if not parts:
        raise video.VideoError(path, loader.bad[str(path)])
    shares = np.concatenate(parts)
    starts_s = [windows.starts_s[number] for number in numbers]
    shares = shares.astype(float).round(6)
    best = top(shares.mean(0).round(6), classes, cfg.eval.topk)
    return {
        "video": str(path),
        "duration_s": windows.info.duration_s,
        "window_s": windows.window_s,
        "top": best,
        "curves": {name: shares[:, classes.index(name)].tolist() for name in (entry["class"] for entry in best)},
        "windows": [
            {"start_s": start, "end_s": start + windows.window_s, "top": top(row, classes, cfg.eval.topk)}
            for start, row in zip(starts_s, shares, strict=True)
        ],
    }


def top(shares: np.ndarray, classes: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The best classes, best first."""
    best = np.argsort(-shares, kind="stable")[:count]
    return [{"class": classes[k], "share": float(shares[k])} for k in best]


if __name__ == "__main__":
    main()
