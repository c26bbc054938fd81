"""How data and configuration suit each other: lengths, durations, which level learns what, what would be better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.data import SampleError
from projects.actionformer.config import Config
from projects.actionformer.data import FeatureVideos
from projects.actionformer.features import Recorded
from projects.actionformer.geometry import Geometry
from projects.actionformer.model.targets import assign
from projects.actionformer.ranges import compute_adaptive_ranges

PROBED = 2000  # actions whose points are counted
FINEST = 4.0  # features that the finest level reaches, in official configurations; every coarser one twice as far
ENDLESS = 10000
LONGEST_CROP = 4608


@dataclass(frozen=True)
class Item:
    """One video as it will be trained or evaluated."""

    id: str
    part: str
    length: int
    geometry: Geometry
    duration_s: float | None
    recorded: Recorded | None
    segments: NDArray[np.float32]
    names: tuple[str, ...]

    @property
    def covered_s(self) -> float:
        """Seconds from the start of the first window to the end of the last."""
        frames = (self.length - 1) * self.geometry.stride_frames + self.geometry.window_frames
        return frames / self.geometry.fps

    @classmethod
    def of(cls, videos: FeatureVideos, index: int, part: str) -> Item:
        """The facts of a video, from the head of its file. Raises: SampleError for a file that does not suit."""
        entry = videos.videos[index]
        geometry, length = videos.geometry(entry, videos.sources.length(entry.id))
        segments, _ = videos.actions(entry, geometry)
        try:
            recorded = videos.sources.parts[0].recorded(entry.id)
        except SampleError:
            recorded = None
        names = tuple(action.label for action in entry.actions)
        return cls(entry.id, part, length, geometry, entry.duration_s, recorded, segments, names)


@dataclass(frozen=True)
class Fit:
    """Counts over all videos; durations are in features."""

    videos: int
    training: int
    actions: int
    longest: int
    step_s: float
    coarsest: int
    shorter_than_pyramid: int
    longer_than_crop: int
    outside: int
    points: int
    tiny: int
    probed: int
    unserved: int
    served: tuple[int, ...]
    """For each level, how many probed actions have a point in it that learns them."""
    spans: NDArray[np.float64]
    lengths: dict[str, NDArray[np.int64]]
    per_class: list[dict[str, Any]]

    def histogram(self, part: str) -> tuple[list[float], list[int]]:
        """Lengths of the videos, in twenty steps."""
        return _histogram(self.lengths[part])

    @property
    def durations(self) -> tuple[list[float], list[int]]:
        """Durations of the actions in features, in twenty steps."""
        return _histogram(self.spans)

    def levels(self, cfg: Config) -> list[dict[str, Any]]:
        """One row for each level of the pyramid."""
        return [
            {
                "level": level,
                "step": cfg.model.scale_factor**level,
                "step in s": round(self.step_s * cfg.model.scale_factor**level, 3),
                "from": low,
                "to": high,
                "actions that learn here": count,
            }
            for level, ((low, high), count) in enumerate(
                zip(cfg.model.ranges, self.served, strict=True), cfg.model.start_level
            )
        ]


def measure(cfg: Config, items: Sequence[Item]) -> Fit:
    """Look at every video; which points learn an action is asked of the code that trains."""
    coarsest = cfg.model.scale_factor ** (cfg.model.levels - 1)
    training = [item for item in items if item.part == "train"]
    ends = [(item, segment) for item in items for segment in item.segments.tolist()]
    spans = np.array([end - start for _, (start, end) in ends])
    learned = [(item, segment) for item, segment in ends if item.part == "train"]
    chosen = np.linspace(0, max(len(learned) - 1, 0), min(PROBED, len(learned))).astype(int)
    served = [_levels(cfg, *learned[i]) for i in chosen]
    counts = Counter((item.part, name) for item in items for name in item.names)
    names = sorted({name for _, name in counts})
    return Fit(
        videos=len(items),
        training=len(training),
        actions=len(ends),
        longest=max((item.length for item in training), default=0),
        step_s=float(np.median([item.geometry.stride_frames / item.geometry.fps for item in items])),
        coarsest=coarsest,
        shorter_than_pyramid=sum(item.length < coarsest for item in items),
        longer_than_crop=sum(item.length > cfg.data.max_length for item in training),
        outside=sum((start + end) / 2 > item.length + item.geometry.lead for item, (start, end) in ends),
        points=int((spans == 0).sum()),
        tiny=int(((spans > 0) & (spans < 0.5)).sum()),
        probed=len(served),
        unserved=sum(not levels for levels in served),
        served=tuple(sum(level in levels for levels in served) for level in range(len(cfg.model.ranges))),
        spans=spans,
        lengths={part: np.array([i.length for i in items if i.part == part]) for part in ("train", "eval")},
        per_class=[{"class": name, **{part: counts[part, name] for part in ("train", "eval")}} for name in names],
    )


def _levels(cfg: Config, item: Item, segment: Sequence[float]) -> set[int]:
    """The levels with a point that learns this action, alone in its video."""
    rows = []
    for level, (low, high) in enumerate(cfg.model.ranges):
        stride = cfg.model.scale_factor ** (level + cfg.model.start_level)
        first = max(0, int(segment[0] // stride) - 1) * stride
        last = max(first, min(item.length, segment[1] + stride))
        times = torch.arange(first, last, stride, dtype=torch.float32)
        rows.append(torch.stack([times, *(torch.full_like(times, value) for value in (low, high, stride))], 1))
    points = torch.cat(rows)
    targets = assign(
        points, [torch.tensor([segment])], [torch.zeros(1, dtype=torch.int64)], 1,
        center=cfg.loss.center, radius=cfg.loss.center_radius,
    )  # fmt: skip
    strides = points[targets.classes[0, :, 0] > 0, 3].tolist()
    return {level for level in range(len(cfg.model.ranges))
            if cfg.model.scale_factor ** (level + cfg.model.start_level) in strides}  # fmt: skip


def _histogram(values: NDArray[Any]) -> tuple[list[float], list[int]]:
    if not len(values):
        return [], []
    counts, edges = np.histogram(values, 20)
    return ((edges[:-1] + edges[1:]) / 2).tolist(), counts.tolist()


def suggestion(cfg: Config, fit: Fit) -> str:
    """YAML of a configuration that suits the data: crop length, levels and ranges that double as the steps do."""
    spans = fit.spans[fit.spans > 0]
    longest = float(np.percentile(spans, 95)) if len(spans) else FINEST
    levels = min(max(int(np.ceil(np.log2(longest / FINEST))) + 1, 3), 8)
    unit = 2 ** (levels - 1)
    length = -(-max(int(np.percentile(fit.lengths["train"], 95)), unit) // unit) * unit
    doubling = [(FINEST * 2.0 ** (level - 1) if level else 0, FINEST * 2**level) for level in range(levels)]
    doubling[-1] = (doubling[-1][0], ENDLESS)
    lines = [
        f"data: {{max_length: {min(length, LONGEST_CROP)}, classes: {cfg.data.classes}}}",
        f"model: {{arch: [2, 2, {levels - 1}], ranges: {_ranges(doubling)}}}",
    ]
    if len(spans):
        quantiles = compute_adaptive_ranges(spans.tolist(), levels, open_end=True)
        lines.append(f"# or, with as many actions for each level: ranges: {_ranges(quantiles)}")
    return "\n".join(lines)


def _ranges(ranges: Sequence[tuple[float, float]]) -> str:
    return f"[{', '.join(f'[{low:g}, {high:g}]' for low, high in ranges)}]"
