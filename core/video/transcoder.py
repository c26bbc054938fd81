"""Making many videos small: a resumable parallel job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from tqdm import tqdm

from core.video.encoder import GOP, Encoder, whole
from core.video.info import VideoError
from core.video.pictures import rgb
from core.video.pool import process_pool
from core.video.reader import Video
from core.video.source import words

VIDEO_SUFFIXES = {".3gp", ".avi", ".flv", ".h264", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
VIDEO_SUFFIXES |= {".ogv", ".ts", ".webm", ".wmv"}


Fit = Literal["round", "pad"]


@dataclass(slots=True)
class Transcoded:
    """What became of each source: paths written, paths that were there already, sources that failed and why.

    `damaged` names sources that were written although packets of theirs could not be decoded.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One file to make."""

    source: Path
    target: Path
    short_side: int
    crf: int
    preset: str
    gop: int
    fit: Fit = "round"


def transcode(
    sources: str | Path | Iterable[str | Path],
    out_dir: str | Path,
    *,
    short_side: int,
    crf: int = 23,
    preset: str = "veryfast",
    gop: int = GOP,
    fit: Fit = "round",
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Transcoded:
    """Write every source as an h264 mp4 with this short side, even size, no sound, upright, at its own frame times.

    Args:
        sources: a folder (all videos below it, whose layout `out_dir` repeats) or single files (all into `out_dir`).
        out_dir: where the results go; those that are there already are left alone, so that a job can be repeated
            until all is done.
        short_side: an even number; smaller sources are enlarged.
        crf, preset, gop: as in `write`.
        fit: how the long side becomes even. round: the nearest even number; pad: the nearest number, an odd one with a
            black column or row at its end, as ffmpeg's `scale` and `pad` filters in a row.
        workers: processes; 1 works in this one.
        overwrite: make results again that are there already.
        progress: show a bar.

    Files appear whole or not at all. A source that cannot be read, or that kills its worker, is reported in `failed`
    and does not stop the others.
    """
    if short_side < 2 or short_side % 2:
        raise ValueError(f"short_side={short_side}: h264 in yuv420p needs an even number, at least 2")
    if fit not in get_args(Fit):
        raise ValueError(f"fit={fit} is not known; choose from {', '.join(get_args(Fit))}")
    result = Transcoded()
    jobs: list[Job] = []
    for source, target in _targets(sources, Path(out_dir)):
        if target.exists() and not overwrite:
            result.skipped.append(target)
        else:
            jobs.append(Job(source, target, short_side, crf, preset, gop, fit))
    with tqdm(total=len(jobs), desc="transcode", unit="video", disable=not progress) as bar:
        for job, outcome in _outcomes(jobs, workers):
            if isinstance(outcome, str):
                result.failed[job.source] = outcome
            else:
                result.done.append(job.target)
                if outcome:
                    result.damaged[job.source] = f"{outcome} packets could not be decoded"
            bar.update()
    result.done.sort()
    return result


def videos_in(folder: str | Path) -> list[Path]:
    """All files below a folder whose suffix is that of a video, sorted; hidden ones are left out."""
    root = Path(folder)
    if not root.is_dir():
        raise VideoError(root, "there is no such folder")
    found = (path for path in root.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _targets(sources: str | Path | Iterable[str | Path], out_dir: Path) -> list[tuple[Path, Path]]:
    if isinstance(sources, str | Path) and Path(sources).is_dir():
        root = Path(sources)
        pairs = [(path, (out_dir / path.relative_to(root)).with_suffix(".mp4")) for path in videos_in(root)]
    else:
        files = [Path(sources)] if isinstance(sources, str | Path) else [Path(source) for source in sources]
        pairs = [(path, out_dir / f"{path.stem}.mp4") for path in files]
    if not pairs:
        raise ValueError(f"{sources}: there are no videos to transcode")
    twice = [target for target, count in Counter(target for _, target in pairs).items() if count > 1]
    if twice:
        clash = ", ".join(str(source) for source, target in pairs if target == twice[0])
        raise ValueError(f"{twice[0]} would be written from several sources ({clash}); transcode them apart")
    for source, target in pairs:
        if source.resolve() == target.resolve():
            raise ValueError(f"{source} would be written over itself; choose another out_dir")
    return pairs


def _outcomes(jobs: list[Job], workers: int) -> Iterator[tuple[Job, int | str]]:
    """Each job with its number of lost packets, or the reason of its failure, as they finish."""
    if workers <= 1:
        for job in jobs:
            yield job, _run(job)
        return
    left = dict.fromkeys(jobs)
    try:
        with process_pool(min(workers, len(jobs) or 1)) as pool:
            futures = {pool.submit(_run, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    outcome = future.result()
                    del left[futures[future]]
                    yield futures[future], outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        # One of the unfinished sources took its worker down: a process for each of them tells which.
        for job in left:
            try:
                if len(left) == 1:
                    raise
                with process_pool(1) as pool:
                    yield job, pool.submit(_run, job).result()
            except BrokenProcessPool:
                yield job, "its worker process died (a crash of the decoder, or out of memory)"


def _run(job: Job) -> int | str:
    try:
        return _convert(job)
    except VideoError as error:
        return error.reason
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        return f"{type(error).__name__}: {words(error)}"


def _convert(job: Job) -> int:
    """Decode, scale and encode one video; the number of packets that could not be decoded."""
    reformatter = VideoReformatter()
    encoder: Encoder | None = None
    with whole(job.target) as temporary, Video(job.source) as video:
        rotation, (base, first) = video.info.rotation, video.clock()
        rate = Fraction(video.info.fps).limit_denominator(100_000)
        last = -1
        try:
            for number, frame in enumerate(video.frames()):
                picture = _turned(frame, rotation, reformatter)
                if encoder is None:
                    width, height = _size(picture.width, picture.height, job.short_side, job.fit)
                    even = width + width % 2, height + height % 2
                    encoder = Encoder(temporary, *even, base, rate, job.crf, job.preset, job.gop, 1, like=picture)
                small = reformatter.reformat(
                    picture, width, height, "yuv420p", interpolation=Interpolation.BICUBIC, threads=1
                )
                pts = number if first is None or frame.pts is None else frame.pts - first
                last = max(pts, last + 1)
                encoder.add(small if (width, height) == even else _padded(small, *even), last)
            assert encoder is not None  # a video without frames has raised in `info`
            encoder.finish()
        finally:
            if encoder is not None:
                encoder.close()
    return video.lost


def _turned(frame: Any, rotation: int, reformatter: Any) -> Any:
    if not rotation:
        return frame
    upright = np.ascontiguousarray(np.rot90(rgb(frame, reformatter), rotation // 90))
    return av.VideoFrame.from_ndarray(upright, format="rgb24")


def _size(width: int, height: int, short_side: int, fit: Fit) -> tuple[int, int]:
    """Short side as given, long side in proportion: the nearest even number, or the nearest one, halves rounded up."""
    short, long = min(width, height), max(width, height)
    scaled = (long * short_side + short // 2) // short if fit == "pad" else 2 * round(long * short_side / short / 2)
    return (scaled, short_side) if width >= height else (short_side, scaled)


def _padded(frame: Any, width: int, height: int) -> Any:
    """A yuv420p frame with black at its right and lower end; chroma, halved and rounded up, has its samples already."""
    padded = av.VideoFrame(width, height, "yuv420p")
    for given, wanted in zip(frame.planes, padded.planes, strict=True):
        source = np.frombuffer(memoryview(given), np.uint8).reshape(-1, given.line_size)
        target = np.frombuffer(memoryview(wanted), np.uint8).reshape(-1, wanted.line_size)
        if (given.height, given.width) != (wanted.height, wanted.width):
            target[:] = 16
        target[: given.height, : given.width] = source[: given.height, : given.width]
    return padded
