"""Commands on videos.

python -m core.video probe FILE...
    Frames, rate, duration, size, rotation and codec of each file or folder of pictures.

python -m core.video check FOLDER [workers=1]
    Decode every video below a folder and list those that are broken or odd. Exit status 1 if any cannot be read.

python -m core.video transcode SOURCE OUT_DIR short_side=256
    [crf=23 preset=veryfast gop=32 fit=round workers=1 overwrite=false]
    Write every video (SOURCE is a folder or a file) as h264 mp4 with this short side, even size, no sound, upright.
    Results that are there already are left alone: repeat the command until all is done. Exit status 1 if any failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.video import VideoError, VideoInfo, open_reader, transcode
from core.video.check import check


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"-h", "--help", "help"} & set(words):
        _say(__doc__ or "")
        return 0 if words else 2
    commands: dict[str, Callable[..., int]] = {"probe": _probe, "check": _check, "transcode": _transcode}
    name, *rest = words
    options = dict(word.split("=", 1) for word in rest if "=" in word and not Path(word).exists())
    paths = [word for word in rest if "=" not in word or Path(word).exists()]
    try:
        if name not in commands:
            raise ValueError(f"{name!r} is no command; choose from {', '.join(commands)}")
        return commands[name](paths, options)
    except ValueError as error:
        sys.stderr.write(f"core.video: {error}\nsee python -m core.video --help\n")
        return 2


def _probe(paths: list[str], options: dict[str, str]) -> int:
    _known(options, {})
    if not paths:
        raise ValueError("probe needs files")
    failed = 0
    for path in paths:
        try:
            with open_reader(path) as reader:
                _say(f"{path}: {_facts(reader.info)}")
        except VideoError as error:
            failed += 1
            _say(f"{path}: ERROR {error.reason}")
    return int(failed > 0)


def _check(paths: list[str], options: dict[str, str]) -> int:
    if len(paths) != 1:
        raise ValueError("check needs one folder")
    found = check(paths[0], **_known(options, {"workers": int}), progress=True)
    rows = [(str(path), "BROKEN", reason) for path, reason in found.broken.items()]
    rows += [(str(path), "odd", "; ".join(notes)) for path, notes in found.odd.items()]
    width = max((len(row[0]) for row in rows), default=0)
    for path, kind, text in sorted(rows):
        _say(f"{path:<{width}}  {kind:<6}  {text}")
    _say(f"{found.total} videos: {found.total - len(rows)} fine, {len(found.odd)} odd, {len(found.broken)} broken")
    return int(bool(found.broken))


def _transcode(paths: list[str], options: dict[str, str]) -> int:
    kinds: dict[str, Callable[[str], Any]] = dict.fromkeys(("short_side", "crf", "gop", "workers"), int)
    kinds |= {"preset": str, "fit": str, "overwrite": _boolean}
    values = _known(options, kinds)
    if len(paths) != 2 or "short_side" not in values:
        raise ValueError("transcode needs SOURCE OUT_DIR short_side=N")
    result = transcode(paths[0], paths[1], **values)
    for path, reason in sorted(result.damaged.items()):
        _say(f"damaged  {path}: {reason}")
    for path, reason in sorted(result.failed.items()):
        _say(f"FAILED   {path}: {reason}")
    _say(f"{len(result.done)} written, {len(result.skipped)} were there already, {len(result.failed)} failed")
    return int(bool(result.failed))


def _facts(info: VideoInfo) -> str:
    parts = [
        f"{info.frames} frames" + (f", {info.fps:.6g} fps, {info.duration_s:.3f} s" if info.fps else ""),
        f"{info.width}x{info.height}",
        f"{info.codec} {info.pixel_format} in {info.container}",
    ]
    if info.rotation:
        parts.append(f"rotated by {info.rotation} degrees")
    if info.start_s:
        parts.append(f"starts at {info.start_s:.3f} s")
    if not info.seekable:
        parts.append("only readable in sequence")
    if info.lost:
        parts.append(f"{info.lost} lost")
    return ", ".join(parts)


def _known(options: dict[str, str], kinds: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    for key in options:
        if key not in kinds:
            raise ValueError(f"{key}= is no option here; known are {', '.join(f'{kind}=' for kind in kinds) or 'none'}")
    values = {}
    for key, text in options.items():
        try:
            values[key] = kinds[key](text)
        except ValueError:
            raise ValueError(f"{key}={text} is not a valid value") from None
    return values


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(main())
