"""Finding the broken and the odd among many videos."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from core.video.info import VideoError
from core.video.pool import process_pool
from core.video.reader import Video
from core.video.transcoder import videos_in


@dataclass(slots=True)
class Checked:
    """Number of videos, those that cannot be read with the reason, and those that are odd with what is odd."""

    total: int = 0
    broken: dict[Path, str] = field(default_factory=dict)
    odd: dict[Path, list[str]] = field(default_factory=dict)


def check(folder: str | Path, *, workers: int = 1, progress: bool = False) -> Checked:
    """Decode every video below a folder once, completely.

    Broken means that no frame can be read. Odd means readable with a catch: damage, a header that promises another
    number of frames, frames only in sequence, rotation, a variable rate, odd sides.
    """
    paths = videos_in(folder)
    result = Checked(total=len(paths))
    with ExitStack() as stack:
        outcomes: Iterable[str | list[str]] = map(examine, paths)
        if workers > 1:
            outcomes = stack.enter_context(process_pool(workers)).map(examine, paths)
        bar = tqdm(outcomes, total=len(paths), desc="check", unit="video", disable=not progress)
        for path, outcome in zip(paths, bar, strict=True):
            if isinstance(outcome, str):
                result.broken[path] = outcome
            elif outcome:
                result.odd[path] = outcome
    return result


def examine(path: Path) -> str | list[str]:
    """Why a video cannot be read, or what is odd about it (nothing: an empty list)."""
    notes: list[str] = []
    try:
        with Video(path) as video:
            info = video.info
            decoded = damaged = 0
            # Only a strict decoder marks damaged pictures; `frames(marks=True)` uses it without raising.
            for frame in video.frames(marks=True):
                decoded += 1
                damaged += bool(frame.is_corrupt)
            if not decoded:
                return "no frame can be decoded"
            lost, promised = video.lost, info.promised
            times = video.times()
    except VideoError as error:
        return error.reason
    if lost:
        notes.append(f"packets that cannot be decoded: {lost}")
    if damaged:
        notes.append(f"damaged pictures: {damaged}")
    if promised and promised != decoded:
        notes.append(f"the header promises {promised} frames, there are {decoded}")
    if not info.seekable:
        notes.append("frames can only be read in sequence")
    if info.rotation:
        notes.append(f"rotated by {info.rotation} degrees")
    if info.width % 2 or info.height % 2:
        notes.append(f"odd size {info.width}x{info.height}")
    gaps = [b - a for a, b in pairwise(times)]
    if gaps and max(gaps) > 1.5 * min(gaps) + 0.002:
        notes.append(f"variable frame rate ({min(gaps):.3f} to {max(gaps):.3f} s a frame)")
    return notes
