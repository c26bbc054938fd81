"""One sample of S-GEAR's data: features and past labels, and frames of a long video, beside reading everything.

python -m bench.sgear_data [--samples 300] [--rounds 5]

Features: a database of 1,024 channels at 30 frames a second, 15 vectors of 15 s. "plain" is the published way: all 450
frames, a transaction each, and past labels by comparing every row of the annotation table (9,638 rows). Frames: a made
video of 256 x 456 pixels at 50 frames a second, 15 frames of a 15 s window; "plain" decodes the whole window with PyAV
and keeps 15. All ways have to give the same values. `--rows 67114` is the size of the training table.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import av
import lmdb
import numpy as np
import torch

from core import video
from projects.sgear import clips, features, frames
from projects.sgear.annotations import Segments
from projects.sgear.clips import PastLabels, Rule

RULE = Rule(15, 1.0)
FPS, SECONDS, SIZE = 50, 60, (256, 456)


def table(rows: int, rng: np.random.Generator) -> Segments:
    """As many actions in as many videos as EPIC-KITCHENS-100 has, about 70 or 136 a video."""
    count = max(rows // 70, 1) if rows < 20_000 else 495
    path = np.array([f"P01/V{k:04d}.MP4" for k in np.sort(rng.integers(0, count, rows))])
    start = rng.uniform(20, 580, rows).round(2)
    label = rng.integers(0, 3806, rows)
    names = np.array([str(k) for k in range(rows)])
    return Segments(names, path, path, start, start + rng.uniform(0.5, 5, rows).round(2), label, label, label)


def plain_vectors(environment: lmdb.Environment, name: str, where: clips.Span) -> np.ndarray:
    numbers = np.arange(np.floor(where.end_s * 30), np.floor(where.start_s * 30), -1).astype(int)[::-1]
    vectors = []
    for number in numbers:
        with environment.begin() as transaction:
            vectors.append(np.frombuffer(transaction.get(features.key(name, int(number))), dtype="<f4"))
    return np.stack(vectors)[:: -where.step][::-1][-RULE.frames :]


def plain_labels(segments: Segments, path: str, times: np.ndarray) -> list[int]:
    same = segments.path == path
    start, end, action = segments.start_s[same], segments.end_s[same], segments.action[same]
    found = []
    for t in times.astype(float):
        rows = np.flatnonzero((start <= t) & (end >= t))
        nearest = rows[np.argmin(np.abs(t - (end[rows] - start[rows]) / 2))] if len(rows) else -1
        found.append(int(action[nearest]) if len(rows) else -1)
    return found


def measure_features(folder: Path, samples: int, rounds: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    segments = table(rows, rng)
    names = sorted(set(segments.path.tolist()))[:3]
    videos = [Path(name).stem for name in names]
    database = folder / "features"
    features.write(database, ((v, n, rng.standard_normal(1024)) for v in videos for n in range(1, 30 * 600)))
    asked = [(random.Random(k).randrange(3), random.Random(k + 1).uniform(30, 590)) for k in range(samples)]
    store, past = features.Features([database]), PastLabels(segments, compat=True)
    environment = features._environments.get(database)

    def ours(which: int, end_s: float) -> tuple[np.ndarray, list[int]]:
        where = clips.span(end_s - 15, end_s, 30, RULE, random.Random(0))
        choice = clips.feature_frames(where, RULE)
        vectors = store.read(videos[which], choice.numbers, choice.among).numpy()
        return vectors, past.at(names[which], choice.times_s).tolist()

    def plain(which: int, end_s: float) -> tuple[np.ndarray, list[int]]:
        where = clips.span(end_s - 15, end_s, 30, RULE, random.Random(0))
        times = clips.feature_frames(where, RULE).times_s
        return plain_vectors(environment, videos[which], where), plain_labels(segments, names[which], times)

    for which, end_s in asked:
        a, b = ours(which, end_s), plain(which, end_s)
        assert np.array_equal(a[0], b[0]), "vectors differ"
        assert a[1] == b[1], "past labels differ"
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        for name, function in (("plain", plain), ("ours", ours)):
            begin = time.process_time()
            for which, end_s in asked:
                function(which, end_s)
            times[name].append((time.process_time() - begin) / samples)
    ratio = np.median([a / b for a, b in zip(times["plain"], times["ours"], strict=True)])
    print(f"feature sample, table of {rows} rows: plain {1e3 * min(times['plain']):.2f} ms, "
          f"ours {1e3 * min(times['ours']):.3f} ms of one core, {ratio:.0f} times faster")  # fmt: skip


def plain_frames(path: Path, where: clips.Span) -> np.ndarray:
    """Seek before the window, decode all of it, keep every `step`-th frame."""
    kept = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        container.seek(int(where.start_s / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time > where.end_s or frame.time >= where.limit_s - clips.SLACK_S:
                break
            if frame.time >= where.start_s:
                kept.append(frame.to_ndarray(format="rgb24"))
    return np.stack(np.stack(kept)[:: -where.step][::-1][-RULE.frames :])


def measure_frames(folder: Path, samples: int, rounds: int) -> None:
    path = folder / "P01_101.MP4"
    rng = np.random.default_rng(0)
    drift = np.cumsum(rng.normal(0, 1.5, (FPS * SECONDS, 2)), 0).astype(int)
    texture = torch.nn.functional.interpolate(
        torch.from_numpy(rng.uniform(0, 255, (1, 3, 40, 60))).float(), size=(2 * SIZE[0], 2 * SIZE[1]), mode="bicubic"
    )[0].clamp(0, 255).byte().permute(1, 2, 0)  # fmt: skip
    pixels = [torch.roll(texture, tuple(map(int, d)), (0, 1))[: SIZE[0], : SIZE[1]] for d in drift]
    video.write(path, torch.stack(pixels), float(FPS))
    asked = [random.Random(k).uniform(20, SECONDS - 1) for k in range(samples)]

    def ours(end_s: float) -> np.ndarray:
        clock = frames.clock(path)
        where = clips.span(end_s - 15, end_s, clock.fps, RULE, random.Random(0))
        return frames.read(path, clips.video_frames(clock.times_s, where, RULE).numbers).numpy()

    def plain(end_s: float) -> np.ndarray:
        return plain_frames(path, clips.span(end_s - 15, end_s, float(FPS), RULE, random.Random(0)))

    for end_s in asked:
        assert np.array_equal(ours(end_s), plain(end_s)), "frames differ"
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        for name, function in (("plain", plain), ("ours", ours)):
            begin = time.process_time()
            for end_s in asked:
                function(end_s)
            times[name].append((time.process_time() - begin) / samples)
    ratio = np.median([a / b for a, b in zip(times["plain"], times["ours"], strict=True)])
    print(f"15 frames of 15 s at {SIZE[0]} px, {FPS} a second: plain {1e3 * min(times['plain']):.0f} ms, "
          f"ours {1e3 * min(times['ours']):.0f} ms of one core, {ratio:.1f} times faster")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[9638, 67114])
    parser.add_argument("--clips", type=int, default=6, help="windows of the video")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            place = Path(folder) / str(rows)
            place.mkdir()
            measure_features(place, args.samples, args.rounds, rows)
        measure_frames(Path(folder), args.clips, args.rounds)


if __name__ == "__main__":
    main()
