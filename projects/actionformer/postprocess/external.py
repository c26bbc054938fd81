"""Classes from a classifier of whole videos: for segments that have none (ActivityNet), or as a second opinion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.checkpoint import read_pickle
from projects.actionformer.postprocess.detections import Detections

Scores = NDArray[np.float64]


def read_scores(path: Path) -> dict[str, Scores]:
    """Class scores (K,) of every video, from JSON ({video: [...]}, perhaps under "results") or a pickle of the same.

    As in the official code a name with ".json" in it is JSON. A pickle is read as data; code in it never runs.

    Raises:
        ValueError: naming the file and video, for anything else.
    """
    content = _json(path) if ".json" in str(path) else read_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("results"), Mapping):
        content = content["results"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected {{video: [score of each class]}}; got {type(content).__name__}")
    return {str(video): _scores(path, video, values) for video, values in content.items()}


def fuse(found: Detections, scores: Scores, *, classes: int, most: int) -> Detections:
    """Every one of the best `most` segments once with each of the video's best `classes` (of scores (K,)).

    The new score is the root of both scores' product; a class's segments follow one another, best class first.
    """
    rank = np.argsort(-found.scores, kind="stable")[:most]
    best = np.argsort(-scores, kind="stable")[:classes]
    joint = np.sqrt(scores[best][:, None] * found.scores[rank].astype(np.float64)).ravel()
    again = np.tile(rank, len(best))
    spread = None if found.spread_s is None else found.spread_s[again]
    return Detections(found.segments_s[again], joint, np.repeat(best, len(rank)), spread)


def scores_of(video: str, table: Mapping[str, Scores], path: Path) -> Scores:
    """The class scores of one video.

    Raises:
        ValueError: naming the video when the table lacks it.
    """
    if video not in table:
        near = ", ".join(list(table)[:3])
        raise ValueError(f"{path} has no class scores of video {video!r}; it has {len(table)} videos: {near}, ...")
    return table[video]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; postprocess.external_scores=null evaluates without it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON that can be read ({error})") from error


def _scores(path: Path, video: Any, values: Any) -> Scores:
    try:
        scores = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        scores = np.zeros((0, 0))
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise ValueError(f"{path}, video {video!r}: expected one number for each class; got {values!r:.80}")
    return scores
