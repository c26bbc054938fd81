"""A video inside the page: as it is when browsers play it, re-encoded small when not, linked when it is too long."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from core import video
from core.report.markup import notice, tag

_SMALL_SIDE = 320  # pixels of the short side of a re-encoded copy
_LEAST_RATE = 12_000  # bytes a second that such a copy needs at the very least: longer videos are not even tried


def player(path: Path, limit_mb: float, fps: float, folder: Path) -> str:
    """Return the player for a video, or for a folder of pictures at `fps`, in a page that will lie in `folder`.

    Raises: VideoError when the video cannot be read; ValueError for a folder of pictures without `fps`.
    """
    if path.is_dir() and not fps > 0:
        raise ValueError(f"{path} is a folder of pictures, which has no frame rate of its own; pass fps=...")
    info = video.ImageFolder(path, fps=fps).info if path.is_dir() else video.probe(path)
    limit = int(limit_mb * 1e6)
    playable = _is_playable(path, info)
    if playable and path.stat().st_size <= limit:
        return _tag(_uri(path), path, info)
    if info.duration_s * _LEAST_RATE <= limit:
        with tempfile.TemporaryDirectory() as scratch:
            small = _small(path, info, Path(scratch))
            if small.stat().st_size <= limit:
                return _tag(_uri(small), path, info)
    too_large = f"{path.name} is too large for this page (limit {limit_mb:g} MB)"
    if path.is_dir():
        return notice(f"{too_large} and a folder of pictures cannot be linked: there is no player here.")
    doubt = "" if playable else " Browsers cannot play this format: make it an mp4 (h264) and the page again."
    return _tag(_link(path, folder), path, info) + notice(f"{too_large}, so it is linked: keep it in its place.{doubt}")


def _tag(source: str, path: Path, info: video.VideoInfo) -> str:
    ratio = info.height / info.width if info.rotation % 180 else info.width / info.height
    return tag(
        "video",
        controls=True,
        playsinline=True,
        preload="metadata",
        aria_label=path.name,
        style=f"--ratio:{ratio:.4g}",
        src=source,
    )


def _is_playable(path: Path, info: video.VideoInfo) -> bool:
    """Return whether every common browser plays the file, from a first frame at time zero."""
    if path.is_dir() or info.lost or abs(info.start_s) > 0.5 / max(info.fps, 1.0):
        return False
    if path.suffix.lower() == ".webm":
        return info.codec in ("vp8", "vp9", "av1")
    plain = info.codec == "h264" and info.pixel_format in ("yuv420p", "yuvj420p")
    return plain and path.suffix.lower() in (".mp4", ".m4v", ".mov")


def _small(path: Path, info: video.VideoInfo, scratch: Path) -> Path:
    side = max(2, min(_SMALL_SIDE, info.height, info.width) // 2 * 2)
    if path.is_dir():
        reader = video.ImageFolder(path, fps=info.fps)
        frames = (reader.read([index], short_side=side)[0] for index in range(info.frames))
        return video.write(scratch / "small.mp4", frames, info.fps)
    made = video.transcode([path], scratch, short_side=side, crf=26, progress=False)
    if not made.done:
        raise video.VideoError(path, f"cannot be re-encoded for the page: {made.failed.get(path, 'no reason given')}")
    return made.done[0]


def _uri(path: Path) -> str:
    kind = "webm" if path.suffix.lower() == ".webm" else "mp4"
    return f"data:video/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _link(path: Path, folder: Path) -> str:
    try:
        return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())
    except ValueError:  # on another drive there is no relative way
        return path.resolve().as_uri()
