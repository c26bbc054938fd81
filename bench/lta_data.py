"""Reading the windows of long-term anticipation from a clip of five minutes, beside the plain published way.

python -m bench.lta_data [--minutes 5] [--windows 12] [--rounds 3]

The plain way, for each window: the file is read into memory and opened anew; for each input it seeks to a keyframe,
decodes to the end of the seconds that are seen, turns all their frames into RGB arrays and floats, brings them to 64,
then to those the network takes; all are normalized, scaled and cropped. Ours decodes the union of the frames that are
used, from a file that stays open, and scales bytes. Windows slide as in an evaluation; both give the same pixels up to
rounding, which is checked first. "Pixels" adds scaling and cropping to reading. The clip is made for the purpose:
428 x 320, 30 frames a second, h264, keyframes up to 250 frames apart as in clips scaled by ffmpeg, and 32 as
`resize_clips` makes them. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core import clips, video
from projects.lta_memvit import data, windows
from projects.lta_memvit.config import ClipConfig
from projects.lta_memvit.data import Windows
from projects.lta_memvit.ego4d import Action
from projects.lta_memvit.windows import Window

FPS, SIZE, SEGMENT_S, HOP_S = 30, (320, 428), 8.0, 4.4
SETTINGS = {
    "SlowFast, 4 inputs x 32 frames": (4, ClipConfig(frames=32, rate=2)),
    "SlowFast, 2 inputs x 32 frames": (2, ClipConfig(frames=32, rate=2)),
    "MViT, 2 inputs x 16 frames": (2, ClipConfig(frames=16, rate=4)),
}


def film(seconds: float) -> Iterator[Tensor]:
    """A textured scene that moves, with grain."""
    rng = np.random.default_rng(0)
    wide = F.interpolate(torch.from_numpy(rng.integers(0, 255, (1, 3, 40, 54))).float(), (400, 540), mode="bicubic")
    scene = wide[0].clamp(0, 255).permute(1, 2, 0)
    for frame in range(round(seconds * FPS)):
        top, left = (round(40 + 38 * math.sin(frame / period)) for period in (37, 53))
        grain = torch.from_numpy(rng.normal(0, 3, (*SIZE, 1)).astype(np.float32))
        yield (scene[top : top + SIZE[0], left : left + SIZE[1]] + grain).clamp(0, 255).byte()


def sliding(seconds: float, inputs: int, count: int) -> list[Window]:
    """Windows one action apart, from the middle of the clip."""
    starts = np.arange(0, seconds - SEGMENT_S, HOP_S)
    actions = [Action("clip", k, start, start + SEGMENT_S, 0, 0) for k, start in enumerate(starts)]
    first = (len(actions) - count - inputs) // 2
    return [Window(tuple(actions[k : k + inputs]), (), k + inputs - 1) for k in range(first, first + count)]


def plain_read(path: Path, window: Window, clip: ClipConfig) -> Tensor:
    """The frames of a window as the published code reads them, float (N, T, H, W, 3)."""
    content = io.BytesIO(path.read_bytes())
    container = av.open(content)
    stream = container.streams.video[0]
    stream.thread_count = 1  # type: ignore[union-attr]
    base = float(stream.time_base)  # type: ignore[arg-type]
    parts = []
    for action in window.inputs:
        start_s, end_s = windows.seconds(action, clip.seconds)
        first, end = math.ceil(start_s / base), math.ceil(end_s / base)
        container.seek(max(first, 0), stream=stream, backward=True)
        found: list[Any] = []
        for frame in container.decode(stream):
            if frame.pts >= end:
                break
            if frame.pts >= first:
                found.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
        frames = torch.stack(found).float()
        parts.append(frames[clips.uniform(len(frames), 64)])
    container.close()
    return torch.stack([part[clips.uniform(64, clip.frames)] for part in parts])


def plain(path: Path, window: Window, clip: ClipConfig) -> Tensor:
    """The sample of a window as the published code makes it, float (N, 3, T, 224, 224)."""
    taken = plain_read(path, window, clip)
    joined = taken.flatten(0, 1).permute(3, 0, 1, 2)
    pixels = (joined / 255 - clip.mean[0]) / clip.std[0]
    height, width = pixels.shape[-2:]
    size = (clip.jitter[0], math.floor(width / height * clip.jitter[0]))
    scaled = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    top, left = (round((side - clip.crop) / 2) for side in size)
    crop = scaled[..., top : top + clip.crop, left : left + clip.crop]
    return crop.unflatten(1, taken.shape[:2]).transpose(0, 1)


def ours(dataset: Windows, index: int, clip: ClipConfig) -> Tensor:
    """The same sample from the project's own path."""
    sample = dataset.sample(index, random.Random(0))
    pixels: Tensor = data.transform(clip)({"video": sample["video"][None]}, [random.Random(0)])["video"][0]
    return pixels


def main() -> None:
    """Make the clips, check, time in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 60 * args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        for gop in (250, 32):
            folder = Path(scratch) / f"{gop}"
            folder.mkdir()
            path = folder / "clip.mp4"
            video.write(path, film(seconds), FPS, gop=gop)
            print(f"keyframes up to {gop} frames apart, {path.stat().st_size / 1e6:.0f} MB")
            for name, (inputs, clip) in SETTINGS.items():
                found = sliding(seconds, inputs, args.windows)
                dataset = Windows(folder, found, clip)
                assert torch.allclose(ours(dataset, 0, clip), plain(path, found[0], clip), atol=1e-3)
                ways: dict[str, Callable[[int], Any]] = {
                    "plain, reading": lambda k: plain_read(path, found[k], clip),  # noqa: B023 - called at once
                    "ours, reading": lambda k: dataset.sample(k, random.Random(0)),  # noqa: B023
                    "plain, pixels": lambda k: plain(path, found[k], clip),  # noqa: B023
                    "ours, pixels": lambda k: ours(dataset, k, clip),  # noqa: B023
                }
                times: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(args.rounds):
                    for way, run in ways.items():
                        video.close_all()
                        started = time.process_time()
                        for index in range(len(found)):
                            run(index)
                        times[way].append((time.process_time() - started) / len(found))
                print(f"  {name:<32}" + "   ".join(compared(times, what) for what in ("reading", "pixels")))


def compared(times: dict[str, list[float]], what: str) -> str:
    """Medians of both ways and the median ratio."""
    before, after = times[f"plain, {what}"], times[f"ours, {what}"]
    ratio = statistics.median(a / b for a, b in zip(before, after, strict=True))
    return f"{what} {statistics.median(before):6.3f} s, ours {statistics.median(after):6.3f} s: {ratio:5.1f} x"


if __name__ == "__main__":
    main()
