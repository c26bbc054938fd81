"""Scale Ego4D's clips once to a short side of 320, so that reading them is quick: in parallel, and resumable.

    python -m projects.lta_memvit.resize_clips [SOURCE] [OUT] [workers=8 index=I count=N crf=28 preset=medium gop=32]

writes SOURCE/<name>.mp4 (data/long_term_anticipation/clips_hq) as OUT/<name>.mp4 (.../clips): h264, no sound, even
sizes as ffmpeg's scale and pad filters give them. A result with as many frames as its source is left alone, any other
is made (again): repeat the command until nothing is left. With index and count the files are shared out among the
tasks of a SLURM array. Ends with 0 when all is done.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from core import video
from core.video.pool import process_pool

ROOT = Path("data/long_term_anticipation")
SHORT_SIDE, CRF, PRESET, GOP = 320, 28, "medium", 32
NUMBERS = ("workers", "index", "count", "short_side", "crf", "gop")


def resize(
    source: Path, out: Path, *, workers: int = 1, index: int = 0, count: int = 1, short_side: int = SHORT_SIDE,
    crf: int = CRF, preset: str = PRESET, gop: int = GOP, progress: bool = True,
) -> video.Transcoded:  # fmt: skip
    """Scale the videos of a folder; share `index` of `count` of the sorted list.

    `skipped` are results that are complete already. The keyframe distance `gop` is far below the original's 250, so
    that a segment is reached by decoding a second, not eight.

    Raises: ValueError for an index outside of the count; VideoError when there is no such folder.
    """
    if not 0 <= index < count:
        raise ValueError(f"index={index} is not one of count={count} tasks (0 to {count - 1})")
    files = video.videos_in(source)
    if not files:
        raise ValueError(f"{source} holds no videos; link Ego4D's clips there")
    files = files[index::count]
    targets = [out / f"{path.stem}.mp4" for path in files]
    whole = _compared(files, targets, workers, progress)
    todo = [path for path, done in zip(files, whole, strict=True) if not done]
    result = video.Transcoded()
    if todo:
        result = video.transcode(
            todo, out, short_side=short_side, crf=crf, preset=preset, gop=gop, fit="pad", workers=workers,
            overwrite=True, progress=progress,
        )  # fmt: skip
    result.skipped = [path for path, done in zip(targets, whole, strict=True) if done]
    return result


def _compared(files: Sequence[Path], targets: Sequence[Path], workers: int, progress: bool) -> list[bool]:
    """Whether each target is complete; opens both files of those that are there."""
    there = [pair for pair in zip(files, targets, strict=True) if pair[1].exists()]
    with ExitStack() as stack:
        several = workers > 1 and len(there) > 1
        run = partial(stack.enter_context(process_pool(workers)).map, chunksize=8) if several else map
        bar = tqdm(total=len(there), desc="compare", unit="video", disable=not (progress and there))
        found = []
        for same in run(same_frames, *(zip(*there, strict=True) if there else ((), ()))):
            found.append(same)
            bar.update()
        bar.close()
    complete = {target for (_, target), same in zip(there, found, strict=True) if same}
    return [target in complete for target in targets]


def same_frames(source: Path, target: Path) -> bool:
    """Whether both videos have the same number of frames; False where one cannot be read."""
    try:
        counts = []
        for path in (source, target):
            with video.open_reader(path) as reader:
                counts.append(len(reader))
        return counts[0] == counts[1]
    except video.VideoError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and print what became of each file that is not as it should be; 1 when one failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    options: dict[str, Any] = dict(word.split("=", 1) for word in words if "=" in word)
    folders = [Path(word) for word in words if "=" not in word]
    if {"-h", "--help"} & set(words):
        sys.stdout.write((__doc__ or "").strip() + "\n")
        return 0
    try:
        if unknown := set(options) - {*NUMBERS, "preset"}:
            raise ValueError(f"{', '.join(sorted(unknown))} is no option; known are {', '.join(NUMBERS)}, preset")
        for name in set(options) & set(NUMBERS):
            if not options[name].isdecimal():
                raise ValueError(f"{name}={options[name]} is no whole number")
            options[name] = int(options[name])
        if len(folders) > 2:
            raise ValueError(f"expected SOURCE and OUT, got {len(folders)} folders")
        source, out = [*folders, *(ROOT / "clips_hq", ROOT / "clips")[len(folders) :]]
        result = resize(source, out, **options)
    except ValueError as error:
        sys.stderr.write(f"resize_clips: {error}\n")
        return 2
    for path, reason in sorted(result.damaged.items()):
        sys.stdout.write(f"damaged  {path}: {reason}\n")
    for path, reason in sorted(result.failed.items()):
        sys.stdout.write(f"FAILED   {path}: {reason}\n")
    counts = f"{len(result.done)} written, {len(result.skipped)} were complete, {len(result.failed)} failed"
    sys.stdout.write(f"{out}: {counts}\n")
    return int(bool(result.failed))


if __name__ == "__main__":
    sys.exit(main())
