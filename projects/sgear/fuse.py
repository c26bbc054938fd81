"""Late fusion: the weighted sum of the scores of several runs, its figures, and a search for the weights.

    python -m projects.sgear.fuse runs/sgear/ek100_SGEAR_vit runs/sgear/ek100_SGEAR_tsn_obj --weights 2.5 0.5
    python -m projects.sgear.fuse RUN RUN RUN --search

A run is a folder of ours or of the published code (OUTPUTS/expts/X.txt/0), or a file: npz, h5, challenge json, pickle.
Annotations are found through the config.yaml of the first run that has one, or --config; KEY=VALUE changes it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejson
from numpy.typing import NDArray

from core import config
from core.checkpoint import write_atomic
from projects.sgear import data, metrics, scores
from projects.sgear.config import Config
from projects.sgear.data import Benchmark
from projects.sgear.metrics import Scores, Space

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)  # weights that the search tries
SMALL = 1e-6  # added to a norm before dividing, as the published code does


def fuse(runs: Sequence[Scores], weights: Sequence[float] | float = 1.0, *, norm: float | None = None) -> Scores:
    """The weighted sum of the runs' scores, by sample and space, over the samples that any of them has.

    A sample that a run lacks just lacks that summand. `norm` first divides every vector by its p-norm + 1e-6. One
    weight goes for all.

    Raises: ValueError for another number of weights than runs, or runs of other spaces or classes.
    """
    factors = [float(weights)] * len(runs) if isinstance(weights, int | float) else [float(w) for w in weights]
    if not runs or len(factors) != len(runs):
        raise ValueError(f"{len(factors)} weights for {len(runs)} runs; give one for each, or a single one for all")
    spaces = set(runs[0].of)
    if any(set(run.of) != spaces for run in runs):
        raise ValueError(f"the runs score different spaces: {[sorted(run.of) for run in runs]}")
    ids = tuple(dict.fromkeys(name for run in runs for name in run.id))
    place = {name: row for row, name in enumerate(ids)}
    total: dict[Space, NDArray[np.float64]] = {}
    for space, first in runs[0].of.items():
        total[space] = np.zeros((len(ids), first.shape[1]))
        for run, factor in zip(runs, factors, strict=True):
            values = run.of[space]
            if values.shape[1] != first.shape[1]:
                raise ValueError(f"{space}: runs of {first.shape[1]} and {values.shape[1]} classes cannot be added")
            rows = slice(None) if run.id == ids else [place[name] for name in run.id]
            total[space][rows] += factor * _normalized(values, norm)
    return Scores(ids, total)


def _normalized(values: NDArray[np.float64], norm: float | None) -> NDArray[np.float64]:
    wide = values.astype(np.float64, copy=False)
    return wide if norm is None else wide / (np.linalg.norm(wide, ord=norm, axis=1, keepdims=True) + SMALL)


def search(
    runs: Sequence[Scores], goodness: Callable[[Scores], float], *, norm: float | None = None
) -> tuple[list[float], float]:
    """Weights that `goodness` (the higher, the better) likes, and what it gives for them.

    One weight after the other takes the best of `STEPS` while the others stay, until none changes; the first of equals
    wins. Start from equal weights. The result is tuned to the samples it was searched on.
    """
    weights = [1.0] * len(runs)
    best = goodness(fuse(runs, weights, norm=norm))
    changed = len(runs) > 1
    while changed:
        changed = False
        for place in range(len(runs)):
            for step in STEPS:
                tried = [*weights[:place], step, *weights[place + 1 :]]
                if step == weights[place] or not any(tried):
                    continue
                value = goodness(fuse(runs, tried, norm=norm))
                if value > best:
                    weights, best, changed = tried, value, True
    return weights, best


def aligned(fused: Scores, ids: Sequence[str]) -> Scores:
    """The scores of these samples, in their order.

    Raises: ValueError when some were scored by no run.
    """
    place = {name: row for row, name in enumerate(fused.id)}
    lost = [name for name in ids if name not in place]
    if lost:
        raise ValueError(f"{len(lost)} of {len(ids)} samples were scored by no run, the first is {lost[0]}")
    rows = [place[name] for name in ids]
    return Scores(tuple(ids), {space: values[rows] for space, values in fused.of.items()})


def configuration(runs: Sequence[str], file: str | None, overrides: Sequence[str]) -> Config:
    """The configuration that names the annotations: `file`, else that of the first run that has one.

    Raises: ValueError when there is none.
    """
    known = [Path(run) / "config.yaml" for run in runs]
    path = Path(file) if file else next((path for path in known if path.is_file()), None)
    if path is None:
        raise ValueError("no run has a config.yaml; say --config projects/sgear/configs/ek100_vit.yaml")
    return config.load(Config, path, overrides)


def arguments(prog: str, text: str | None) -> argparse.ArgumentParser:
    """What fusing and submitting have in common."""
    parser = argparse.ArgumentParser(
        prog=f"python -m projects.sgear.{prog}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or files of scores; KEY=VALUE overrides")
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0], help="one for each run, or one for all")
    parser.add_argument("--norm", type=float, help="divide every score vector by this p-norm first")
    parser.add_argument("--config", help="configuration that names the annotations")
    parser.add_argument("--out", type=Path, help="folder for what is made")
    return parser


def split_runs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Runs and KEY=VALUE overrides."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [word for word in words if word not in overrides], overrides


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Fuse, print the figures, and keep them and the fused scores where --out says."""
    parser = arguments("fuse", __doc__)
    parser.add_argument("--part", default="val", help="which part of the dataset (default val)")
    parser.add_argument("--search", action="store_true", help="search for the weights on this part")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except ValueError as error:
        parser.exit(1, f"{error}\n")


def _run(args: argparse.Namespace) -> dict[str, float]:
    names, overrides = split_runs(args.runs)
    benchmark = data.load(configuration(names, args.config, overrides).data)
    runs = [scores.read(name, benchmark, args.part) for name in names]
    for name, run in zip(names, runs, strict=True):
        show(name, metrics.measure(run, benchmark, args.part))
    weights: list[float] = args.weights * len(runs) if len(args.weights) == 1 else args.weights
    if args.search:
        weights = _search(runs, benchmark, args.part, args.norm)
        sys.stdout.write(f"weights found on {args.part}: {' '.join(f'{w:g}' for w in weights)}\n")
    fused = fuse(runs, weights, norm=args.norm)
    results = metrics.measure(fused, benchmark, args.part)
    show(f"fused {' '.join(f'{w:g}' for w in weights)}", results)
    if args.out:
        found = {"id": fused.id} | {f"logits_{space}": values.astype(np.float32) for space, values in fused.of.items()}
        about = {"runs": names, "weights": weights, "norm": args.norm, "part": args.part}
        scores.write(scores.file_of(args.out, args.part), found, about)
        text = simplejson.dumps({**results, "fused": about}, indent=2, ignore_nan=True)
        write_atomic(args.out / "results.json", text + "\n")
        sys.stdout.write(f"{args.out}: results.json and the fused scores, which can be fused and submitted again\n")
    return results


def _search(runs: Sequence[Scores], benchmark: Benchmark, part: str, norm: float | None) -> list[float]:
    """Search in the space of actions alone: the figure that counts lies there."""
    segments = benchmark.clips(part).segments
    only = [Scores(run.id, {"action": run.of["action"]}) for run in runs]
    labels: Mapping[Space, NDArray[np.int64]] = {"action": segments.action}

    def goodness(fused: Scores) -> float:
        ranked = metrics.rank(aligned(fused, segments.id.tolist()), labels)
        return metrics.figures(ranked)[benchmark.primary]

    return search(only, goodness, norm=norm)[0]


def show(name: str, results: Mapping[str, float]) -> None:
    """Print the figures of one run, a line for each kind, as verb / noun / action."""
    sys.stdout.write(f"{name}\n")
    kinds = dict.fromkeys(key.split("/", 1)[1] for key in results if not key.startswith("official/"))
    for kind in kinds:
        values = [f"{results[f'{s}/{kind}']:6.2f}" for s in metrics.SPACES if f"{s}/{kind}" in results]
        sys.stdout.write(f"  {kind:<20} {' / '.join(values)}\n")
    for subset in ("", "_unseen", "_tail"):
        if f"official/action{subset}" in results:
            values = [f"{results[f'official/{s}{subset}']:6.2f}" for s in metrics.SPACES]
            sys.stdout.write(f"  {'official' + (subset or '_overall'):<20} {' / '.join(values)}\n")


if __name__ == "__main__":
    main()
