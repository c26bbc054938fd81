"""Videos of any length in constant memory: overlapping blocks of features, one suppression over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.data import to_device
from core.step import Precision, autocast
from projects.actionformer import data
from projects.actionformer.config import PostprocessConfig
from projects.actionformer.geometry import Geometry
from projects.actionformer.model import Detector, SnapFormer
from projects.actionformer.postprocess import Detections, decode
from projects.actionformer.postprocess.candidates import Candidates, probabilities
from projects.actionformer.postprocess.decode import reduce
from projects.actionformer.postprocess.detections import Outputs, placed
from projects.actionformer.postprocess.overlap import Floats

MARGIN = 0.125  # share of a block on each inner side whose points the neighboring block answers for


class Answer(NamedTuple):
    """What a network finds in one video, and how sure it is of every class at every moment."""

    found: Detections
    times_s: Floats
    """(T,): seconds"""
    scores: Floats
    """(T,K): the largest over the levels of the pyramid; 0 where the network says nothing"""


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
) -> Answer:
    """The answer for one video of `length` features (C,T), of which `read(start, stop)` gives some at a time.

    Without `size` the network sees all of them at once. With it memory does not grow with the video, and an action that
    is longer than a block cannot be found whole.
    """
    blocks = tile(length, size or length)
    alone = len(blocks) == 1
    own = cfg if alone else cfg.model_copy(update={"nms": "none", "units": "features"})
    parts, scores = [], []
    for block in blocks:
        sample = data.sample_of("video", read(block.start, block.stop), geometry, duration_s)
        batch = to_device(data.collate([sample]), device)
        with autocast(precision, torch.device(device)):
            outputs = net(batch["features"], batch["mask"], batch["lengths"])
        parts.append(decode(outputs, batch, own)[0])
        scores.append(curves(outputs, cfg.temperature)[block.first - block.start : block.last - block.start])
        if not alone:
            found = parts[-1]._replace(segments_s=parts[-1].segments_s + np.float32(block.start))
            middle = found.segments_s.mean(1).clip(0, length - 1)
            parts[-1] = found.take((middle >= block.first) & (middle < block.last))
    found = parts[0] if alone else _joined(parts, net, geometry, duration_s, cfg)
    return Answer(found, geometry.seconds(np.arange(length, dtype=np.float32)), np.concatenate(scores))


def curves(outputs: Outputs, temperature: float = 1.0) -> Floats:
    """Scores (T,K) at every feature of the first video of a batch, the largest over the levels of the pyramid."""
    scores = probabilities(outputs.logits[0].cpu(), outputs.mask[0].cpu(), temperature)
    finest, first = int(outputs.points[0, 3]), 0
    best = np.zeros((outputs.levels[0] * finest, scores.shape[1]), np.float32)
    for count in outputs.levels:
        stride = int(outputs.points[first, 3])
        nearest = ((np.arange(len(best)) + stride // 2) // stride).clip(max=count - 1)
        np.maximum(best, scores[first : first + count][nearest], out=best)
        first += count
    return best


def _joined(
    parts: list[Detections], net: Detector, geometry: Geometry, duration_s: float, cfg: PostprocessConfig
) -> Detections:
    """One suppression over the candidates of all blocks; peaks need none."""
    segments, scores, labels = (np.concatenate([part[k] for part in parts]) for k in range(3))
    spreads = [part.spread_s for part in parts if part.spread_s is not None]
    joined = Detections(segments, scores, labels, np.concatenate(spreads) if spreads else None)
    if isinstance(net, SnapFormer):
        return placed(joined, geometry, duration_s, cfg)
    chosen, numbers = reduce(Candidates(segments, scores, labels, np.arange(len(scores))), cfg)
    spread = None if joined.spread_s is None else joined.spread_s[numbers]
    return placed(chosen._replace(spread_s=spread), geometry, duration_s, cfg)
