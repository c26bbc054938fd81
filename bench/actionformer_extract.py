"""Features from video, and crops of feature files: ours against the plain way.

    python -m bench.actionformer_extract [--rounds 3] [--i3d]

Plain extraction is the usual sliding window: every window is decoded, scaled and cropped anew. Plain reading loads the
whole feature file for each training crop, as the official readers do. Both give the same numbers as ours, which is
checked before anything is timed. CPU seconds of the process, one thread; ratios are medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import demo, video
from projects.actionformer import extract, extractors, i3d
from projects.actionformer.config import ExtractConfig
from projects.actionformer.extractors import Extractor
from projects.actionformer.features import Source


def race(runners: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every round of every runner, in shuffled order, after one unmeasured call each."""
    for run in runners.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name in random.sample(list(runners), len(runners)):
            start = time.process_time()
            runners[name]()
            times[name].append(time.process_time() - start)
    return times


def show(title: str, times: dict[str, list[float]]) -> None:
    """One line per runner: its ratio to the first."""
    print(f"  {title}")
    reference = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        print(
            f"    {name:<44} {reference / statistics.median(seconds):6.2f}x   [{1e3 * min(seconds):9.1f} ms]",
            flush=True,
        )


@torch.inference_mode()
def sliding(path: Path, extractor: Extractor, cfg: ExtractConfig) -> np.ndarray:
    """Every window read and prepared by itself, in batches for the network."""
    total = video.probe(path).frames
    starts = range(0, total - cfg.window + 1, cfg.stride)
    answers = []
    for first in range(0, len(starts), cfg.batch_size):
        clips = [
            extractor.prepare(video.read(path, range(start, start + cfg.window)))
            for start in starts[first : first + cfg.batch_size]
        ]
        batch = torch.stack(clips).contiguous(memory_format=torch.channels_last_3d)
        answers.append(extractor.net(batch).float())
    return torch.cat(answers).numpy()


def bench_extract(path: Path, extractor: Extractor, stride: int, rounds: int, title: str) -> None:
    """Time both ways of one video."""
    cfg = ExtractConfig(fps=None, stride=stride, window=16, batch_size=4)
    runners = {
        "sliding window, each decoded anew": lambda: sliding(path, extractor, cfg),
        "ours, each frame once": lambda: extract.features(path, extractor, cfg)[0],
    }
    plain, ours = (run() for run in runners.values())
    assert plain.shape == ours.shape
    assert np.abs(plain - ours).max() < 1e-4
    show(f"{title}, stride {stride}, window 16, {len(ours)} windows", race(runners, rounds))


def bench_read(folder: Path, length: int, channels: int, rounds: int) -> None:
    """Time a crop of 2304 rows out of a long file."""
    np.save(folder / "long.npy", np.random.default_rng(0).normal(size=(length, channels)).astype(np.float32))
    source = Source(folder)
    starts = np.linspace(0, length - 2304, 8).astype(int).tolist()
    runners = {
        "the whole file, then the crop": lambda: [
            np.load(folder / "long.npy").astype(np.float32)[s : s + 2304] for s in starts
        ],
        "ours, the rows of the crop": lambda: [source.read("long", s, s + 2304) for s in starts],
    }
    plain, ours = (run() for run in runners.values())
    assert all(np.array_equal(a, b) for a, b in zip(plain, ours, strict=True))
    size = length * channels * 4 / 2**20
    show(f"8 training crops of 2304 x {channels} from a file of {length} rows ({size:.0f} MiB)", race(runners, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--i3d", action="store_true", help="also with I3D (random weights), where the network dominates"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "video.mp4"
        video.write(path, demo.clip("fast", random.Random(0), frames=240, size=(240, 320)), 25)
        prepare = extractors._frames(ExtractConfig(), 256, 224, 0.5, 0.5)
        small = Extractor("motion", extractors.Motion(), prepare)
        print("features of a video of 240 frames, 320 x 240, scaled to 256 and cropped to 224")
        for stride in (4, 8, 16):
            bench_extract(path, small, stride, args.rounds, "reading and preparing (network: motion)")
        if args.i3d:
            net = i3d.I3D().eval().to(memory_format=torch.channels_last_3d)
            short = Path(name) / "short.mp4"
            video.write(short, demo.clip("fast", random.Random(0), frames=48, size=(240, 320)), 25)
            bench_extract(short, Extractor("i3d", net, prepare), 4, 1, "with I3D")
        print("training crops of feature files")
        bench_read(Path(name), 20_000, 2304, args.rounds)


if __name__ == "__main__":
    main()
