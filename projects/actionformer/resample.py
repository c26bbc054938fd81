"""Features at another stride: to lay sources of different strides side by side, or to shorten long sequences.

    python -m projects.actionformer.resample data/own/features data/own/features_16 --stride 16
    python -m projects.actionformer.resample data/x/features OUT --stride 8 --from-stride 4 --window 16 --fps 30

Feature i stands for the middle of its window; the new ones are interpolated linearly between those times, so that no
annotation has to change. The geometry is read from what `extract` recorded, or given, and recorded beside the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from core.checkpoint import write_atomic
from core.checkpoint.files import replacing
from core.data import SampleError
from projects.actionformer.features import Recorded, Source


def resample(rows: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """Rows (T, C) at positions 0, step, 2 * step, ... up to the last one, interpolated linearly.

    Raises: ValueError for a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"the step between features is {step}; it has to be above 0")
    places = np.arange(int((len(rows) - 1) / step + 1e-9) + 1) * step
    before = np.minimum(places.astype(np.int64), len(rows) - 1)
    after = np.minimum(before + 1, len(rows) - 1)
    share = (places - before).astype(np.float32)[:, None]
    mixed: NDArray[np.float32] = rows[before] * (1 - share) + rows[after] * share
    return mixed


def convert(source: Source, out: Path, stride: float, given: Recorded | None = None) -> int:
    """Resample every file of a source into `out`; returns how many.

    Raises: SampleError for a file that cannot be read, or whose geometry nobody says.
    """
    names = sorted(source.names)
    for name in tqdm(names, desc="resample"):
        known = source.recorded(name) or given
        if known is None:
            raise SampleError(source.path(name), "has no record beside it: give --from-stride, --window and --fps")
        rows = source.read(name)
        frames = (len(rows) - 1) * known.stride + known.window
        about = {
            "fps": known.fps, "stride": stride, "window": known.window, "offset": 0,
            "duration": known.duration or frames / known.fps, "model": known.model,
        }  # fmt: skip
        with replacing(out / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, resample(rows, stride / known.stride))
        write_atomic(out / f"{name}.json", json.dumps(about, indent=1) + "\n")
    return len(names)


def main(argv: Sequence[str] | None = None) -> None:
    """Write features at another stride, with their geometry."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.actionformer.resample", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("features", type=Path, help="folder of feature files, or an HDF5 file")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--stride", type=float, required=True, help="frames between two features, as wanted")
    parser.add_argument("--prefix", default="", help="what file names have before the video's id")
    parser.add_argument("--suffix", default=".npy", help="what they have after it")
    parser.add_argument("--from-stride", type=float, help="frames between two features now, where nothing is recorded")
    parser.add_argument("--window", type=float, help="frames that a feature saw, where nothing is recorded")
    parser.add_argument("--fps", type=float, help="frames per second, where nothing is recorded")
    args = parser.parse_args(argv)
    told = (args.fps, args.from_stride, args.window)
    given = Recorded(*told, 0.0, "unknown") if all(told) else None
    try:
        count = convert(Source(args.features, args.prefix, args.suffix), args.out, args.stride, given)
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{count} files at stride {args.stride:g} in {args.out}\n")


if __name__ == "__main__":
    main()
