"""A first look at many videos: can each be opened and its ends be decoded? Seconds, where `check` takes hours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from core.video.cache import cache
from core.video.info import VideoError
from core.video.pool import process_pool


class Fact(NamedTuple):
    """What was found out about one video; `problem` is empty for a good one, and `frames` 0 where none can be read."""

    path: Path
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    seconds: float = 0.0
    problem: str = ""


def look(path: Path) -> Fact:
    """Open a video without decoding it, then decode its first and last frame."""
    try:
        reader = cache.get(path, strict=False)
        info = reader.info
        reader.read([0, info.frames - 1])
    except VideoError as error:
        return Fact(path, problem=error.reason)
    promised = f" of {info.promised}" if info.promised > info.frames else ""
    problem = f"damaged, {info.frames}{promised} frames can be read" if info.lost else ""
    return Fact(path, info.frames, info.fps, info.height, info.width, info.duration_s, problem)


def survey(paths: Sequence[Path], *, workers: int = 0, progress: bool = False) -> list[Fact]:
    """Look at many videos, in their order; several `workers` share them out between processes."""
    with ExitStack() as stack:
        looks: Iterable[Fact] = map(look, paths)
        if workers > 1 and len(paths) > 1:
            looks = stack.enter_context(process_pool(workers)).map(look, paths, chunksize=8)
        bar = tqdm(looks, total=len(paths), desc="look", unit="video", leave=False, disable=not progress)
        return list(bar)
