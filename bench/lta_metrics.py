"""Edit distances of forecasts at every length, beside a loop over samples, sequences and lengths.

python -m bench.lta_metrics [--samples 1000] [--sequences 5] [--future 20] [--rounds 5]

The loop computes each distance from scratch with the textbook's two rows, as evaluations of this benchmark do; with a
compiled `editdistance` at hand (pip install editdistance) that is timed too. All answers are checked equal first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from core import metrics


def rows(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein distance, row by row."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def loop(
    predictions: np.ndarray, targets: np.ndarray, distance: Callable[[Sequence[int], Sequence[int]], int] = rows
) -> np.ndarray:
    """ED@z (samples, Z), one distance at a time."""
    found = np.empty(targets.shape)
    for n, (futures, truth) in enumerate(zip(predictions.tolist(), targets.tolist(), strict=True)):
        for z in range(1, targets.shape[1] + 1):
            found[n, z - 1] = min(distance(future[:z], truth[:z]) for future in futures) / z
    return found


def compiled() -> Callable[[Sequence[int], Sequence[int]], int] | None:
    """The distance of the package `editdistance`, where it is installed."""
    try:
        import editdistance  # type: ignore[import-not-found]
    except ImportError:
        return None
    return editdistance.eval  # type: ignore[no-any-return]


def main() -> None:
    """Check, time in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"samples": 1000, "sequences": 5, "future": 20, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, 30, (args.samples, args.sequences, args.future))
    targets = rng.integers(0, 30, (args.samples, args.future))
    ways: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: metrics.edit_distance_at(predictions, targets),
        "loop in Python": lambda: loop(predictions, targets),
    }
    if (distance := compiled()) is not None:
        ways["loop over editdistance (C++)"] = lambda: loop(predictions, targets, distance)
    answers = {name: way() for name, way in ways.items()}
    assert all(np.allclose(answer, answers["ours"], atol=1e-12, rtol=0) for answer in answers.values())

    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            started = time.process_time()
            for _ in range(20 if name == "ours" else 1):
                way()
            times[name].append((time.process_time() - started) / (20 if name == "ours" else 1))
    print(f"{args.samples} samples x {args.sequences} sequences x {args.future} actions, all lengths, one thread")
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
        print(f"{name:<30} {statistics.median(times[name]) * 1e3:10.2f} ms   {ratio:8.1f} x ours")


if __name__ == "__main__":
    main()
