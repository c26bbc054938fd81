"""Regression ranges from the durations of annotated actions: which level of the pyramid is responsible for which.

    python -m projects.actionformer.ranges data/own/annotations.json stride=4 fps=30 levels=6

prints the section of a configuration. The official ranges double from level to level, as the strides do; ranges by
quantiles give each level as many actions instead. They compare durations with what the network gates, the larger of
the two distances from a point to the ends of its action, so a range by durations is generous at its lower end.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)
COVERAGE = 0.95  # below this share of actions inside the ranges there is a warning

Range = tuple[int, int]


def compute_adaptive_ranges(
    source: str | Path | Mapping[str, Any] | Sequence[float],
    num_levels: int = 6,
    *,
    fps: float = 30.0,
    feat_stride: float = 4.0,
    overlap_ratio: float = 0.5,
    min_range: float = 0.0,
    scale_factor: int = 2,
    subset: str | None = None,
    open_end: bool = False,
) -> list[Range]:
    """One (low, high) for each level, in features, by quantiles of the durations, as the fork makes them.

    `source` is an ActivityNet style annotation file or its content, or durations in features. Neighbours overlap by
    `overlap_ratio` of their width. The last ends 10 % above the longest action, so that a longer one in training has no
    point to learn from; `open_end` lets it end at 10000, as official configurations do. Without any action the ranges
    grow by `scale_factor` as the strides do.

    Raises:
        ValueError: for less than one level, or a file that is no annotation file.
    """
    if num_levels < 1:
        raise ValueError(f"a pyramid has at least one level; got num_levels={num_levels}")
    durations = np.asarray(
        durations_of(source, fps=fps, feat_stride=feat_stride, subset=subset)
        if isinstance(source, str | Path | Mapping)
        else source,
        dtype=np.float64,
    )
    if len(durations):
        ranges = _by_quantiles(durations, num_levels, overlap_ratio, min_range)
    else:
        ends = [scale_factor**level for level in range(num_levels)]
        ranges = list(zip([0, *ends[:-1]], [*ends[:-1], 2 * ends[-1]], strict=True))
    if open_end:
        ranges[-1] = (ranges[-1][0], 10_000)
    if len(durations) and (share := coverage(durations, ranges)) < COVERAGE:
        _log.warning("the ranges cover %.0f %% of the actions; lower min_range or add levels", 100 * share)
    return ranges


def suggest_config_ranges(
    source: str | Path | Mapping[str, Any] | Sequence[float],
    backbone_arch: Sequence[int] = (2, 2, 5),
    fpn_start_level: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """The model section of an official configuration with ranges for its pyramid; options of the function above."""
    levels = backbone_arch[-1] + 1 - fpn_start_level
    ranges = compute_adaptive_ranges(source, levels, **options)
    return {
        "model": {
            "backbone_arch": list(backbone_arch),
            "fpn_start_level": fpn_start_level,
            "regression_range": [list(each) for each in ranges],
        },
        "_metadata": {"num_levels": levels},
    }


def durations_of(
    source: str | Path | Mapping[str, Any], *, fps: float = 30.0, feat_stride: float = 4.0, subset: str | None = None
) -> list[float]:
    """Durations in features of all actions (of a subset) that have two ends in the right order.

    A video's own `fps` is not used: the features of a data set have one geometry.

    Raises:
        ValueError: when it is no annotation file.
    """
    content = source if isinstance(source, Mapping) else _read(Path(source))
    database = content.get("database")
    if not isinstance(database, Mapping):
        raise ValueError(f"{source if not isinstance(source, Mapping) else 'annotations'}: no key `database`")
    found = []
    for video in database.values():
        if subset is not None and str(video.get("subset", "")).lower() != subset.lower():
            continue
        for action in video.get("annotations", ()):
            segment = action.get("segment", ())
            if len(segment) == 2 and segment[1] > segment[0]:
                found.append((segment[1] - segment[0]) * fps / feat_stride)
    return found


def coverage(durations: Sequence[float] | np.ndarray, ranges: Sequence[Range]) -> float:
    """The share of durations that lie in at least one range, both ends included."""
    values = np.asarray(durations)
    inside = np.zeros(len(values), dtype=bool)
    for low, high in ranges:
        inside |= (values >= low) & (values <= high)
    return float(inside.mean()) if len(values) else 1.0


def main(argv: Sequence[str] | None = None) -> None:
    """Print ranges for an annotation file and how many actions each covers."""
    parser = argparse.ArgumentParser(
        prog="python -m projects.actionformer.ranges",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("annotations", type=Path, help="ActivityNet style JSON")
    parser.add_argument(
        "options", nargs="*", metavar="KEY=VALUE", help="stride, fps, levels, overlap, smallest, subset"
    )
    parser.add_argument("--open-end", action="store_true", help="let the last range end at 10000")
    args = parser.parse_args(argv)
    try:
        given = _options(args.options)
        geometry = {"fps": given["fps"], "feat_stride": given["stride"], "subset": given["subset"]}
        durations = durations_of(args.annotations, **geometry)
        ranges = compute_adaptive_ranges(
            durations, int(given["levels"]), overlap_ratio=given["overlap"], min_range=given["smallest"],
            open_end=args.open_end,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(f"ranges: {error}")
    sys.stdout.write(f"# {args.annotations}: {len(durations)} actions\nmodel:\n  ranges:\n")
    for low, high in ranges:
        share = coverage(durations, [(low, high)])
        sys.stdout.write(f"    - [{low}, {high}]  # {100 * share:.0f} % of the actions\n")


def _by_quantiles(durations: np.ndarray, levels: int, overlap: float, smallest: float) -> list[Range]:
    bounds = [float(np.percentile(durations, 100 * level / levels)) for level in range(levels + 1)]
    bounds[0], bounds[-1] = max(smallest, 0.0), max(bounds[-1], 1.1 * float(durations.max()))
    ranges = []
    for level in range(levels):
        low, high = bounds[level], bounds[level + 1]
        low -= overlap * (low - bounds[level - 1]) if level else 0.0
        high += overlap * (bounds[level + 2] - high) if level + 1 < levels else 0.0
        ranges.append((int(low), math.ceil(high)))
    return ranges


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file (working folder {Path.cwd()})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected an object with the key `database`")
    return content


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "stride": 4.0, "fps": 30.0, "levels": 6, "overlap": 0.5, "smallest": 0.0, "subset": None
    }  # fmt: skip
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in options:
            raise ValueError(f"{pair!r} is not understood; options are {', '.join(f'{name}=...' for name in options)}")
        options[key] = value if key == "subset" else float(value)
    return options


if __name__ == "__main__":
    main()
