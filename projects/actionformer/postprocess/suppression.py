"""Non-maximum suppression in time: the detections of the official compiled operator, in NumPy and faster.

What makes it fast: the picks of a class come in falling order of score, so the classes are merged lazily and nothing is
computed past the last detection that is kept; and a pick changes only the few candidates that it overlaps.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from projects.actionformer.config import PostprocessConfig
from projects.actionformer.postprocess.overlap import EPSILON, Floats, Ints, diou, lengths

BLOCK = 64  # picks whose overlaps are computed together

Picks = Iterator[tuple[float, int]]
"""Score and number of one pick after the other, by falling score."""


class Kept(NamedTuple):
    """Candidates that were kept, best first: their numbers (M,) and their scores (M,), decayed by soft suppression."""

    numbers: Ints
    scores: Floats


def suppress(segments: Floats, scores: Floats, labels: Ints, cfg: PostprocessConfig) -> Kept:
    """Choose among candidates: segments (N,2), scores (N,), labels (N,).

    With `nms: none` all of them in the order given. Otherwise at most `max_detections`, by falling score; equal scores
    rank by class, then in the order of the official operator.
    """
    if cfg.nms == "none":
        return Kept(np.arange(len(scores)), scores)
    groups = _groups(labels) if cfg.per_class else [(-1, np.arange(len(labels)))]
    streams = [_picks(segments, scores, label, members, cfg) for label, members in groups]
    best = list(islice(heapq.merge(*streams, key=lambda pick: -pick[0]), cfg.max_detections))
    return Kept(np.array([k for _, k in best], np.int64), np.array([score for score, _ in best], np.float32))


def _picks(segments: Floats, scores: Floats, label: int, members: Ints, cfg: PostprocessConfig) -> Picks:
    """The picks of one class, whose candidates are `members`."""
    own, rank, sigma = segments[members], scores[members], cfg.class_sigma.get(label, cfg.sigma)
    if cfg.nms == "hard":
        picks = _hard(own, rank, cfg)
    elif cfg.diou and cfg.diou_order == "initial":
        picks = _in_initial_order(own, rank, sigma, cfg)
    else:
        picks = _soft(own, rank, sigma, cfg)
    for score, k in picks:
        yield score, int(members[k])


def _groups(labels: Ints) -> Iterator[tuple[int, Ints]]:
    """Every class that occurs, in ascending order, with the numbers of its candidates."""
    order = np.argsort(labels, kind="stable")
    found, first = np.unique(labels[order], return_index=True)
    for label, start, end in zip(found.tolist(), first, [*first[1:], len(order)], strict=False):
        yield label, order[start:end]


def _soft(segments: Floats, scores: Floats, sigma: float, cfg: PostprocessConfig) -> Picks:
    """Gaussian soft suppression (Bodla et al. 2017): a pick multiplies the others' scores by exp(-overlap² / sigma).

    What falls below `min_score` is dropped; the first pick never is. Candidates lie in memory as in the official
    operator, which puts the last one in the place of one that leaves, since among equal scores the first in memory is
    picked. The exponential is taken in double precision, which gives the C library's single precision to the bit.
    """
    starts, ends, sizes, left = state = np.stack([segments[:, 0], segments[:, 1], lengths(segments), scores])
    number = np.arange(len(scores))
    minus_sigma, least = np.array(-sigma, np.float32), np.array(cfg.min_score, np.float32)
    first, end = 0, len(scores)
    while first < end:
        best = first + int(left[first:end].argmax())
        pick, chosen = state[:, best].copy(), int(number[best])
        state[:, best], number[best] = state[:, first], number[first]
        yield float(pick[3]), chosen
        first += 1
        start, stop, size = pick[0, ...], pick[1, ...], pick[2, ...]  # arrays: NumPy takes them faster than numbers
        hit = ((starts[first:end] < stop) & (ends[first:end] > start)).nonzero()[0]
        hit += first
        dropped = hit
        if len(hit):
            own_starts, own_ends = starts.take(hit), ends.take(hit)
            shared = np.minimum(own_ends, stop) - np.maximum(own_starts, start)
            overlap = shared / (sizes.take(hit) + size - shared)
            if cfg.diou:
                overlap -= _distance(start, stop, own_starts, own_ends)
            np.maximum(overlap, 0, out=overlap)
            decay = np.exp(overlap * overlap / minus_sigma, dtype=np.float64).astype(np.float32)
            decay *= left.take(hit)
            left[hit] = decay
            dropped = hit[decay < least]
        if first == 1:
            dropped = 1 + (left[1:end] < least).nonzero()[0]
        if len(dropped):
            end = _fill(state, number, dropped, end)


def _distance(start: Floats, stop: Floats, starts: Floats, ends: Floats) -> Floats:
    """What DIoU takes off the overlap of one segment with others; see `overlap.diou`."""
    enclosing = np.maximum(ends, stop) - np.minimum(starts, start)
    distance = (starts + ends) / 2 - (start + stop) / 2
    penalty: Floats = np.square(distance) / np.maximum(np.square(enclosing), EPSILON)
    return penalty


def _fill(state: Floats, number: Ints, dropped: Ints, end: int) -> int:
    """Put the last that stay, from the very last on, in the places of those that leave; return the new end."""
    kept_end = end - len(dropped)
    inside = int(np.searchsorted(dropped, kept_end))
    stays = np.ones(len(dropped), bool)
    stays[dropped[inside:] - kept_end] = False
    moved, holes = kept_end + np.flatnonzero(stays)[::-1], dropped[:inside]
    state[:, holes], number[holes] = state[:, moved], number[moved]
    return kept_end


def _ranked(scores: Floats) -> Ints:
    """Numbers by falling score; equal ones as this machine's torch puts them, which the official code asks too."""
    return torch.from_numpy(scores).argsort(descending=True).numpy()


def _hard(segments: Floats, scores: Floats, cfg: PostprocessConfig) -> Picks:
    """The best one, then the best that overlaps no pick by `iou_threshold` or more; scores stay as they are."""
    order = _ranked(scores)
    if cfg.min_score > 0:
        order = order[scores[order] > np.float32(cfg.min_score)]
    starts, ends, sizes = segments[order, 0], segments[order, 1], lengths(segments)[order]
    most = np.float32(cfg.iou_threshold)
    while len(order):
        yield float(scores[order[0]]), int(order[0])
        common = np.minimum(ends, ends[0]) - np.maximum(starts, starts[0])
        np.maximum(common, 0, out=common)
        stays = ~(common / (sizes + sizes[0] - common) >= most)
        stays[0] = False
        order, starts, ends, sizes = order[stays], starts[stays], ends[stays], sizes[stays]


def _in_initial_order(segments: Floats, scores: Floats, sigma: float, cfg: PostprocessConfig) -> Picks:
    """Soft suppression by DIoU as the fork does it: picks follow the scores before any decay, and so does the cap.

    A candidate whose score has fallen to `min_score` or below is dropped and decays nobody; the first never is.
    """
    order = _ranked(scores)
    ranked, left = segments[order], scores[order]
    minus_sigma, least = np.float32(-sigma), np.float32(cfg.min_score)
    picks: list[tuple[float, int]] = []
    for block in range(0, len(order), BLOCK):
        later = ranked[block:]
        overlap = np.maximum(diou(later[:BLOCK], later), 0)
        decays = np.exp(overlap * overlap / minus_sigma)
        for row, k in enumerate(range(block, min(block + BLOCK, len(order)))):
            if k and left[k] <= least:
                continue
            picks.append((float(left[k]), int(order[k])))
            if len(picks) == cfg.max_detections:
                break
            left[k + 1 :] *= decays[row, row + 1 :]
        if len(picks) == cfg.max_detections:
            break
    return iter(sorted(picks, key=lambda pick: -pick[0]))
