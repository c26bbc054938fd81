"""Reading video: core.video beside OpenCV, torchcodec and PyAV as most people use it.

python -m bench.video [--clips DIR] [--rounds 15] [--threads 1] [--memory 20000]

Every reader has to give the same frames before it is timed. Rounds are interleaved in one process in shuffled order, so
that the machine's moods hit all alike. The table shows the median of each round's ratio to core.video (above 1: slower
than it) in wall time, then in processor time (on a busy machine, or with a reader that starts threads unasked, only
that one tells), and the best wall time in ms. One decoder thread each, as in a loader's worker. Videos are made of
noise; --clips takes real ones (DIR holds UCF50 clips: <Class>/*.avi) and makes the h264 files from them. --memory N
reads N windows and prints how the process grows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch

from core import clips, video

SIZE = (256, 340)


class Contestant(ABC):
    name: str

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def open(self, path: Path) -> Any: ...

    @abstractmethod
    def read(self, handle: Any, indices: Sequence[int]) -> np.ndarray: ...

    def close(self, handle: Any) -> None:
        del handle


class Core(Contestant):
    name = "core.video"

    def open(self, path: Path) -> Any:
        reader = video.Video(path, threads=self.threads)
        len(reader)
        return reader

    def read(self, handle: Any, indices: Sequence[int]) -> np.ndarray:
        return handle.read(indices).numpy()

    def close(self, handle: Any) -> None:
        handle.close()


class OpenCV(Contestant):
    """Seeks to the first frame, grabs on to the others, decodes to pictures only what is wanted; BGR as it comes."""

    name = "OpenCV"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import cv2

        self.cv2 = cv2
        cv2.setNumThreads(threads)

    def open(self, path: Path) -> Any:
        options = [self.cv2.CAP_PROP_N_THREADS, self.threads]
        return self.cv2.VideoCapture(str(path), self.cv2.CAP_FFMPEG, options)

    def read(self, handle: Any, indices: Sequence[int]) -> np.ndarray:
        position = int(handle.get(self.cv2.CAP_PROP_POS_FRAMES))
        if indices[0] != position:
            handle.set(self.cv2.CAP_PROP_POS_FRAMES, indices[0])
            position = indices[0]
        out: np.ndarray | None = None
        for k, index in enumerate(indices):
            while position <= index:
                handle.grab()
                position += 1
            _, frame = handle.retrieve()
            if out is None:
                out = np.empty((len(indices), *frame.shape), np.uint8)
            out[k] = frame
        assert out is not None
        return out[..., ::-1]

    def close(self, handle: Any) -> None:
        handle.release()


class TorchCodec(Contestant):
    name = "torchcodec exact"
    mode = "exact"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        from torchcodec.decoders import VideoDecoder

        self.decoder = VideoDecoder

    def open(self, path: Path) -> Any:
        return self.decoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=self.threads, seek_mode=self.mode)

    def read(self, handle: Any, indices: Sequence[int]) -> np.ndarray:
        return handle.get_frames_at(list(indices)).data.numpy()


class TorchCodecApproximate(TorchCodec):
    name = "torchcodec approximate"
    mode = "approximate"


class Naive(Contestant):
    """All frames with `to_ndarray`, then the wanted ones."""

    name = "PyAV, all of it"

    def open(self, path: Path) -> Any:
        return av.open(str(path))

    def read(self, handle: Any, indices: Sequence[int]) -> np.ndarray:
        handle.streams.video[0].thread_count = self.threads
        handle.seek(0)
        frames = [frame.to_ndarray(format="rgb24") for frame in handle.decode(video=0)]
        return np.stack([frames[index] for index in indices])

    def close(self, handle: Any) -> None:
        handle.close()


def contestants(threads: int) -> list[Contestant]:
    """All that can be imported here, core.video first."""
    found: list[Contestant] = []
    for kind in (Core, OpenCV, TorchCodec, TorchCodecApproximate, Naive):
        try:
            found.append(kind(threads))
        except Exception as error:  # torchcodec raises RuntimeError where the system has no FFmpeg libraries
            print(f"left out: {kind.name} ({type(error).__name__}: {str(error).strip().splitlines()[0][:90]})")
    return found


# ------------------------------------------------------------------------------------------------------------ videos


def noise_frames(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Soft texture that drifts, with blocks that move across it and a little noise: about as hard as real clips."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    coarse = torch.from_numpy(rng.random((1, 3, 40, 54), dtype=np.float32))
    texture = torch.nn.functional.interpolate(coarse, size=(2 * height, 2 * width), mode="bicubic")[0]
    base = (texture.permute(1, 2, 0).clamp(0, 1) * 255).numpy().astype(np.int16)
    grain = rng.integers(-5, 6, (8, height, width, 1), dtype=np.int16)
    for t in range(count):
        y, x = int(height / 2 * (1 + np.sin(t / 40))), int(width / 2 * (1 + np.cos(t / 55)))
        picture = base[y : y + height, x : x + width] + grain[t % 8]
        for k in range(4):
            top, left = (t * (2 + k) + 60 * k) % (height - 48), (t * (3 - k) + 80 * k) % (width - 48)
            picture[top : top + 48, left : left + 48] = picture[left % 200 : left % 200 + 48, top : top + 48][::-1]
        yield picture.clip(0, 255).astype(np.uint8)


def clip_frames(folder: Path, count: int) -> Iterator[np.ndarray]:
    """The frames of real clips one after the other, in the size of the made ones."""
    made = 0
    for path in sorted(folder.rglob("*.avi")):
        frames = video.read(path, range(video.probe(path).frames))
        frames = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2), size=SIZE, mode="bilinear")
        for frame in frames.permute(0, 2, 3, 1):
            if made == count:
                return
            yield frame.numpy()
            made += 1


def make_avi(path: Path, frames: Iterator[np.ndarray]) -> Path:
    """MPEG-4 with a keyframe every 12 frames, as in UCF101."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"b": "900000"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 320, 240, "yuv420p", 12
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame[:240, :320].copy(), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def videos(folder: Path, real: Path | None) -> tuple[Path, Path, Path]:
    """A 10 s h264 file, a short MPEG-4 clip, a 5 min h264 file (9000 frames); h264 with long distances of keyframes."""

    def source(count: int) -> Iterator[np.ndarray]:
        return noise_frames(count) if real is None else clip_frames(real, count)

    ten = video.write(folder / "ten.mp4", source(300), 30, crf=23, gop=250)
    five = video.write(folder / "five.mp4", source(9000), 30, crf=23, gop=250, threads=0)
    if real is None:
        return ten, make_avi(folder / "clip.avi", noise_frames(300)), five
    return ten, max(sorted(real.rglob("*.avi")), key=lambda path: path.stat().st_size), five


# ------------------------------------------------------------------------------------------------------------ timing


def equal(readers: list[Contestant], path: Path, indices: Sequence[int]) -> list[Contestant]:
    """Those readers that give the frames core.video gives."""
    expected: np.ndarray | None = None
    right = []
    for reader in readers:
        handle = reader.open(path)
        frames = reader.read(handle, indices)
        reader.close(handle)
        if expected is None:
            expected = frames
        difference = np.abs(frames.astype(np.int16) - expected)
        if frames.shape == expected.shape and difference.max() == 0:
            right.append(reader)
        else:
            print(
                f"left out: {reader.name} gives other frames of {path.name} (mean difference {difference.mean():.2f})"
            )
    return right


def measure(
    readers: list[Contestant], path: Path, pattern: str, rounds: int, total: int
) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of every round by reader."""
    rng = random.Random(0)
    opened = {reader.name: reader.open(path) for reader in readers} if pattern.startswith("window") else {}
    seconds: dict[str, list[tuple[float, float]]] = {reader.name: [] for reader in readers}
    for step in range(rounds + 1):
        stride = 4 if pattern == "window stride 4" else 1
        indices: Sequence[int] = range(total)
        if pattern.startswith("window"):
            start = rng.randrange(total - 32 * stride)
            indices = range(start, start + 32 * stride, stride)
        elif pattern.startswith("uniform"):
            indices = clips.uniform(total, int(pattern.split()[1]))
        for reader in rng.sample(readers, len(readers)):
            wall, processor = time.perf_counter(), time.process_time()
            handle = opened.get(reader.name) or reader.open(path)
            if pattern != "open":
                reader.read(handle, indices)
            if not opened:
                reader.close(handle)
            if step:  # the first round warms up
                seconds[reader.name].append((time.perf_counter() - wall, time.process_time() - processor))
    return seconds


def cells(names: list[str], seconds: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Wall ratio, processor ratio and best wall time of every reader."""

    def ratio(name: str, kind: int) -> float:
        pairs = zip(seconds[name], seconds[Core.name], strict=True)  # of one round: the same frames, the same mood
        return statistics.median(other[kind] / ours[kind] for other, ours in pairs)

    shown = []
    for name in names:
        if name not in seconds:
            shown.append("-")
            continue
        shown.append(
            f"{ratio(name, 0):.2f} {ratio(name, 1):.2f} ({min(times[0] for times in seconds[name]) * 1e3:.1f})"
        )
    return shown


def memory(path: Path, reads: int) -> None:
    """Print the growth of the process over many windows of few videos, opened and closed now and then."""
    rng, process = random.Random(0), psutil.Process()
    total = video.probe(path).frames
    start = 0
    for step in range(reads + 1):
        if step == reads // 10:  # allocators and caches have settled
            start = process.memory_info().rss
        if step % 50 == 0:
            video.close_all()
        first = rng.randrange(total - 4)
        video.read(path, range(first, first + 4), short_side=64 if step % 2 else None)
    grown = (process.memory_info().rss - start) / 2**20
    per = grown / (reads - reads // 10) * 1000
    print(f"memory: {reads} reads, {grown:+.1f} MB after the first tenth, {per:+.3f} MB per 1000 reads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of real UCF50 clips")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--memory", type=int, default=0, metavar="READS", help="measure growth over so many reads instead"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            clip = make_avi(Path(folder) / "clip.avi", noise_frames(300))
            memory(clip, args.memory)
            return
        ten, clip, five = videos(Path(folder), args.clips)
        jobs = [
            ("all frames, 10 s h264", ten, "all"),
            ("all frames, UCF clip", clip, "all"),
            ("16 uniform, 10 s h264", ten, "uniform 16"),
            ("32 uniform, UCF clip", clip, "uniform 32"),
            ("open 5 min h264", five, "open"),
            ("32 in a row, 5 min, opened", five, "window"),
            ("32 at stride 4, 5 min, opened", five, "window stride 4"),
        ]
        everyone = contestants(args.threads)
        names = [reader.name for reader in everyone]
        width = max(22, *map(len, names))
        print(f"{'':<30} " + " ".join(f"{name:>{width}}" for name in names))
        for title, path, pattern in jobs:
            total = video.probe(path).frames
            check = range(total) if total < 1000 else [0, 1, 700, 701, 5000, total - 1]
            readers = everyone if path in (clip, ten) else [r for r in everyone if not isinstance(r, Naive)]
            readers = equal(readers, path, check)
            seconds = measure(readers, path, pattern, args.rounds, total)
            row = " ".join(f"{cell:>{width}}" for cell in cells(names, seconds))
            print(f"{title:<30} {row}", flush=True)


if __name__ == "__main__":
    main()
