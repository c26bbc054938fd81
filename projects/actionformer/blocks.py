"""Videos of any length in constant memory: overlapping blocks of features, one suppression over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.data import Sample, to_device
from core.step import Precision, autocast
from projects.actionformer import data
from projects.actionformer.config import PostprocessConfig
from projects.actionformer.geometry import Geometry
from projects.actionformer.model import Detector, SnapFormer
from projects.actionformer.postprocess import Detections, decode
from projects.actionformer.postprocess.candidates import Candidates
from projects.actionformer.postprocess.decode import reduce
from projects.actionformer.postprocess.detections import placed

MARGIN = 0.125  # share of a block on each inner side whose points the neighboring block answers for


class Block(NamedTuple):
    """Features start:stop that the network sees, and the part first:last of the video that it answers for."""

    start: int
    stop: int
    first: int
    last: int


def tile(length: int, size: int) -> list[Block]:
    """Blocks of `size` features that answer for every position of 0:length once; one block for a short video."""
    if length <= size:
        return [Block(0, length, 0, length)]
    margin = int(size * MARGIN)
    blocks, first = [], 0
    while first < length:
        start = max(0, min(first - margin, length - size))
        stop = start + size
        last = length if stop >= length else stop - margin
        blocks.append(Block(start, stop, first, last))
        first = last
    return blocks


@torch.inference_mode()
def detect(
    net: Detector,
    read: Callable[[int, int], Tensor],
    length: int,
    geometry: Geometry,
    duration_s: float,
    cfg: PostprocessConfig,
    *,
    size: int | None = None,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
) -> Detections:
    """The detections of one video of `length` features (C,T), of which `read(start, stop)` gives some at a time.

    Without `size` the network sees all of them at once. With it memory does not grow with the video, and an action that
    is longer than a block cannot be found whole.
    """
    blocks = tile(length, size or length)
    if len(blocks) == 1:
        sample = data.sample_of("video", read(0, length), geometry, duration_s)
        return _decoded(net, sample, cfg, precision, device)
    raw = cfg.model_copy(update={"nms": "none", "units": "features"})
    parts = []
    for block in blocks:
        sample = data.sample_of("video", read(block.start, block.stop), geometry, duration_s)
        found = _decoded(net, sample, raw, precision, device)
        found = found._replace(segments_s=found.segments_s + np.float32(block.start))
        middle = found.segments_s.mean(1).clip(0, length - 1)
        parts.append(found.take((middle >= block.first) & (middle < block.last)))
    joined = _joined(parts)
    if isinstance(net, SnapFormer):
        return placed(joined, geometry, duration_s, cfg)
    candidates = Candidates(joined.segments_s, joined.scores, joined.labels, np.arange(len(joined.scores)))
    chosen, numbers = reduce(candidates, cfg)
    spread = None if joined.spread_s is None else joined.spread_s[numbers]
    return placed(chosen._replace(spread_s=spread), geometry, duration_s, cfg)


def _decoded(
    net: Detector, sample: Sample, cfg: PostprocessConfig, precision: Precision, device: torch.device | str
) -> Detections:
    batch = to_device(data.collate([sample]), device)
    with autocast(precision, torch.device(device)):
        outputs = net(batch["features"], batch["mask"], batch["lengths"])
    return decode(outputs, batch, cfg)[0]


def _joined(parts: list[Detections]) -> Detections:
    segments, scores, labels = (np.concatenate([part[k] for part in parts]) for k in range(3))
    spreads = [part.spread_s for part in parts if part.spread_s is not None]
    return Detections(segments, scores, labels, np.concatenate(spreads) if spreads else None)
