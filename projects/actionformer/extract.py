"""Videos -> features with their geometry written beside them: one `<video>.npy` (T, C) and one `<video>.json` each.

    python -m projects.actionformer.extract projects/actionformer/configs/own.yaml extract.videos=data/own/videos
    torchrun --nproc-per-node 4 -m projects.actionformer.extract FILE.yaml ...        several processes, each its share

Feature i sees `window` frames from frame i * `stride` on, of `fps` frames a second counted from the first one. Every
frame is decoded and prepared once, however much the windows overlap, and memory does not grow with the video. Stopped
and started again it goes on with what is missing; a file that cannot be read is named and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core import config, run, video
from core.checkpoint import write_atomic
from core.checkpoint.files import replacing
from core.run import Run
from core.step import autocast
from projects.actionformer import extractors
from projects.actionformer.config import Config, ExtractConfig
from projects.actionformer.extractors import Extractor
from projects.actionformer.geometry import Geometry

READ = 16  # frames that exist in full size at once
ROUNDING_S = 1e-3  # containers round the times of frames to this


@dataclass(frozen=True)
class Windows:
    """Which frames of a video each feature sees: `frames` (M,) are the numbers of the sampled ones."""

    geometry: Geometry
    duration_s: float
    frames: NDArray[np.int64]
    stride: int
    window: int

    def __len__(self) -> int:
        """As many windows as fit; a video shorter than one has one, its last frame held."""
        return max(0, len(self.frames) - self.window) // self.stride + 1

    def span(self, first: int, count: int) -> tuple[int, int]:
        """The sampled frames that windows first .. first + count see, half open."""
        return first * self.stride, (first + count - 1) * self.stride + self.window


def windows(times_s: Sequence[float], duration_s: float, fps: float, cfg: ExtractConfig) -> Windows:
    """The windows of a video with frames at these times: frame k is the one on screen at k / fps seconds.

    `fps` is the video's own average rate where the configuration says none; a variable rate becomes an even one.
    """
    rate = cfg.fps or fps
    count = max(1, int((duration_s + ROUNDING_S) * rate))
    wanted = np.arange(count) / rate + ROUNDING_S
    frames = np.searchsorted(np.asarray(times_s), wanted, side="right") - 1
    return Windows(Geometry(rate, cfg.stride, cfg.window), duration_s, frames.clip(min=0), cfg.stride, cfg.window)


@torch.inference_mode()
def features(
    path: Path, extractor: Extractor, cfg: ExtractConfig, *, device: torch.device | str = "cpu", precision: Any = "auto"
) -> tuple[NDArray[np.float32], Windows, video.VideoInfo]:
    """The features of one video, float32 (T, C), the windows they saw, and facts of the video.

    Raises: VideoError when the video cannot be read; ValueError when its frames do not suit the network.
    """
    device = torch.device(device)
    with video.open_reader(path) as reader:
        info = reader.info
        plan = windows(reader.times(), info.duration_s, info.fps, cfg)
        answers = []
        with autocast(precision, device):
            for clips in _batches(reader, plan, extractor, cfg.batch_size, device):
                answers.append(extractor.net(clips).float())  # stays on the device: nothing here waits for it
    return torch.cat(answers).cpu().numpy(), plan, info


def _batches(
    reader: video.Reader, plan: Windows, extractor: Extractor, size: int, device: torch.device
) -> Iterator[Tensor]:
    """Batches of windows (B,3,W,h,w); a thread reads the frames of the next batch while this one is worked on."""
    starts = range(0, len(plan), size)

    def read(number: int) -> tuple[int, list[Tensor]]:
        """The frames that are new with a batch, in full size, and the sampled frame that they begin at."""
        first, end = plan.span(starts[number], min(size, len(plan) - starts[number]))
        if number:
            first = max(first, plan.span(starts[number - 1], size)[1])
        wanted = plan.frames[first:end].tolist()
        pieces = [wanted[i : i + READ] for i in range(0, len(wanted), READ)]
        return first, [reader.read(piece, rotate=True) for piece in pieces]

    held: list[Piece] = []
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(read, 0)
        for number, start in enumerate(starts):
            first, pieces = ahead.result()
            if number + 1 < len(starts):
                ahead = thread.submit(read, number + 1)
            begins = [plan.span(start + i, 1)[0] for i in range(min(size, len(plan) - start))]
            held = [piece for piece in held if piece.end > begins[0]]
            for frames in pieces:
                prepared = extractor.prepare(frames.to(device, non_blocking=True))
                held.append(Piece(first, prepared.permute(1, 2, 3, 0).contiguous()))
                first = held[-1].end
            yield _assemble(held, begins, plan.window)


class Piece(NamedTuple):
    """Prepared frames in a row, (t,h,w,3), from sampled frame `start` on."""

    start: int
    frames: Tensor

    @property
    def end(self) -> int:
        """The sampled frame after the last one."""
        return self.start + len(self.frames)


def _assemble(held: Sequence[Piece], begins: Sequence[int], window: int) -> Tensor:
    """Windows (B,3,W,h,w), channels last in memory; the last frame is held where the video ends."""
    _, frames = held[0]
    clips = frames.new_empty((len(begins), window, *frames.shape[1:]))
    for clip, begin in zip(clips, begins, strict=True):
        for piece in held:
            low, high = max(begin, piece.start), min(begin + window, piece.end)
            if low < high:
                clip[low - begin : high - begin] = piece.frames[low - piece.start : high - piece.start]
        if begin + window > held[-1].end:
            clip[held[-1].end - begin :] = held[-1].frames[-1]
    return clips.permute(0, 4, 1, 2, 3)


# -------------------------------------------------------------------------------------------------------- many videos


def find(place: Path) -> dict[str, Path]:
    """Videos by id, the name of the file without its suffix: one file, or all below a folder.

    Raises: ValueError when there are none, or two share an id.
    """
    paths = [place] if place.is_file() else video.videos_in(place) if place.is_dir() else []
    if not paths:
        raise ValueError(f"extract.videos={place} is neither a video nor a folder with videos")
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path} would both be {path.stem}.npy; rename one of them")
        found[path.stem] = path
    return found


def record(path: Path, info: video.VideoInfo, plan: Windows, channels: int) -> dict[str, Any]:
    """The geometry that is written beside the features, with the facts of the video that it follows from."""
    return {
        "fps": plan.geometry.fps,
        "stride": plan.stride,
        "window": plan.window,
        "offset": 0,
        "duration": round(plan.duration_s, 6),
        "features": len(plan),
        "channels": channels,
        "video": path.name,
        "bytes": path.stat().st_size,
        "video_fps": info.fps,
        "video_frames": info.frames,
        "lost": info.lost,
        "size": [info.width, info.height],
        "rotation": info.rotation,
    }


def settings(extractor: Extractor, cfg: ExtractConfig) -> dict[str, Any]:
    """What two feature files must share to be comparable."""
    return {
        "model": extractor.name,
        "weights": extractor.weights,
        "fps_asked": cfg.fps,
        "short_side": cfg.short_side,
        "crop": cfg.crop,
        "dtype": cfg.dtype,
    }


def is_done(target: Path, source: Path, extractor: Extractor, cfg: ExtractConfig) -> bool:
    """Are the features of a video there? Not when the video has changed since, or half of them was written.

    Raises: ValueError when they were made with other settings.
    """
    about = target.with_suffix(".json")
    if cfg.overwrite or not target.is_file() or not about.is_file():
        return False
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
    except ValueError:
        return False
    wanted = {**settings(extractor, cfg), "stride": cfg.stride, "window": cfg.window}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f"{target} was made with {key}={found.get(key)}, now it is {value}; choose another folder "
                "(data.features), the same settings, or extract.overwrite=true"
            )
    return bool(found.get("bytes") == source.stat().st_size)


def write(target: Path, rows: NDArray[np.float32], about: dict[str, Any], dtype: str) -> None:
    """Write features and record, each whole or not at all; the record comes last and says that all is there."""
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.save(file, rows.astype(dtype))
    write_atomic(target.with_suffix(".json"), json.dumps(about, indent=1) + "\n")


def extract(cfg: Config, job: Run) -> dict[str, str]:
    """Make the features of all videos; returns those that could not be read, and why.

    Every process takes its own share. Raises: ValueError when there is nothing to do it with or to.
    """
    found, out = find(cfg.extract.videos), cfg.data.features[0]
    extractor = extractors.load(cfg.extract, job.device)
    mine = sorted(found)[job.world.rank :: job.world.size]
    todo = [name for name in mine if not is_done(out / f"{name}.npy", found[name], extractor, cfg.extract)]
    job.log.info(f"{len(found)} videos, {len(mine) - len(todo)} of {len(mine)} here are done; features go to {out}")
    failed: dict[str, str] = {}
    for name in job.log.progress(todo, "extract"):
        try:
            rows, plan, info = features(found[name], extractor, cfg.extract, device=job.device, precision=cfg.precision)
            if info.lost:
                whole = f" of {info.promised}" if info.promised > info.frames else ""
                job.log.warning(f"{found[name]}: damaged, {info.frames}{whole} frames can be read; features end there")
            about = record(found[name], info, plan, rows.shape[1]) | settings(extractor, cfg.extract)
            write(out / f"{name}.npy", rows, about, cfg.extract.dtype)
        except video.VideoError as error:
            failed[name] = error.reason
            job.log.warning(f"left out: {error}")
        if job.stop_requested:
            break
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Extract the features of extract.videos into data.features; returns 1 when a video could not be read."""
    cfg = config.parse(Config, argv)
    with run.start(cfg, cfg.run, visit=True) as job:
        failed = extract(cfg, job)
        if not job.stop_requested:
            job.log.info(f"done, {len(failed)} videos could not be read")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
