"""The mean of several runs: the three splits of EGTEA Gaze+, the five folds of 50 Salads, or several seeds.

python -m projects.sgear.average runs/sgear/egtea_1 runs/sgear/egtea_2 runs/sgear/egtea_3 [--out results.json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejson

from core.checkpoint import write_atomic


def mean(results: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of every figure that all have; counts and margins are left out."""
    shared = [name for name in results[0] if all(isinstance(result.get(name), int | float) for result in results)]
    figures = [name for name in shared if not name.endswith(("samples_expected", "samples_scored", "margin_min_s"))]
    columns = {name: [float(result[name]) for result in results] for name in figures}
    return {name: (float(np.mean(values)), float(np.std(values))) for name, values in columns.items()}


def read(run: Path) -> dict[str, float]:
    """The figures of a run. Raises: ValueError when it was not evaluated."""
    path = run if run.is_file() else run / "results.json"
    try:
        return dict(simplejson.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; evaluate the run first") from None


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Print the mean of each figure, and keep it where --out says."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.sgear.average",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or results.json files")
    parser.add_argument("--out", type=Path, help="file for the means")
    args = parser.parse_args(argv)
    try:
        found = mean([read(run) for run in args.runs])
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    for name, (value, deviation) in found.items():
        sys.stdout.write(f"{name:<36} {value:8.3f} ± {deviation:.3f}\n")
    if args.out:
        means = {name: value for name, (value, _) in found.items()}
        write_atomic(args.out, simplejson.dumps({**means, "runs": list(map(str, args.runs))}, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
