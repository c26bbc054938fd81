"""How good are anticipations? Ranks of the true classes, once, and every figure that is reported from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core import metrics
from projects.sgear.annotations import Segments, read_list
from projects.sgear.data import Benchmark
from projects.sgear.taxonomy import Subset, Taxonomy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Space = Literal["verb", "noun", "action"]

SPACES: tuple[Space, ...] = ("verb", "noun", "action")
MISS = np.iinfo(np.int64).max  # the rank of a label that was not ranked at all
_BLOCK = 256  # rows at a time: what is worked on stays in the cache


@dataclass(frozen=True)
class Scores:
    """What a model says about every sample: arrays (n, classes), the higher the likelier, by space.

    `verb` and `noun` are shares (or raw scores of heads of their own), `action` raw scores; spaces that the benchmark
    does not have are absent. `id` (n,) are the samples.
    """

    id: tuple[str, ...]
    of: Mapping[Space, Floats]

    def __len__(self) -> int:
        return len(self.id)


def marginal(
    ids: tuple[str, ...], logits: Floats, classes: Taxonomy, heads: Mapping[Space, Floats] | None = None
) -> Scores:
    """Verb and noun shares as sums of the actions' (softmax of `logits` (n,K)); action scores stay logits.

    `heads` holds the scores of verb or noun classifiers, which are then used as they are.
    """
    found: dict[Space, Floats] = {"action": logits}
    if classes.has_pairs:
        wanted = [space for space in ("verb", "noun") if space not in (heads or {})]
        found |= _shares(logits, classes, wanted)  # type: ignore[arg-type]
    return Scores(ids, {**found, **(heads or {})})


def of_parts(verb: Floats, noun: Floats, classes: Taxonomy) -> Floats:
    """Action scores (n,K) of models that classify verbs and nouns only: log of the product of the two shares."""
    shares = [_log_softmax(values)[:, classes.pairs[:, k]] for k, values in enumerate((verb, noun))]
    total: Floats = shares[0] + shares[1]
    return total


def _log_softmax(values: Floats) -> Floats:
    lifted = values.astype(np.float64) - values.max(1, keepdims=True)
    shares: Floats = lifted - np.log(np.exp(lifted).sum(1, keepdims=True))
    return shares


def _shares(logits: Floats, classes: Taxonomy, spaces: list[Space]) -> dict[Space, Floats]:
    """p M_v and p M_n without the matrices: an action has one verb and one noun, so that columns are summed."""
    groups = {space: _groups(classes.pairs[:, 0 if space == "verb" else 1]) for space in spaces}
    sizes = {"verb": len(classes.verbs), "noun": len(classes.nouns)}
    out = {space: np.zeros((len(logits), sizes[space])) for space in spaces}
    for start in range(0, len(logits) if spaces else 0, _BLOCK):
        rows = slice(start, start + _BLOCK)
        shares = np.array(logits[rows].T, dtype=np.float64, order="C")  # (K,rows): sums run along memory
        shares -= shares.max(0)
        np.exp(shares, out=shares)
        shares /= shares.sum(0)
        for space, (order, starts, present) in groups.items():
            out[space][rows, present] = np.add.reduceat(shares if order is None else shares[order], starts).T
    return out


def _groups(of: Ints) -> tuple[Ints | None, Ints, Ints]:
    """Actions in order of their class (none: they are), where each class starts, and the classes that have any."""
    order = None if (np.diff(of) >= 0).all() else np.argsort(of, kind="stable")
    present, starts = np.unique(of if order is None else of[order], return_index=True)
    return order, starts, present


def ranks(scores: Floats, labels: Ints) -> Ints:
    """How many classes each row puts before its label, (n,); `core.metrics.ranks` in blocks of rows."""
    blocks = range(0, len(scores), _BLOCK)
    return np.concatenate([metrics.ranks(scores[k : k + _BLOCK], labels[k : k + _BLOCK]) for k in blocks])


@dataclass(frozen=True)
class Ranked:
    """The rank of the truth of every labelled sample, by space, and the truth: what all figures are made of."""

    rank: Mapping[Space, Ints]
    label: Mapping[Space, Ints]
    classes: Mapping[Space, int]


def rank(scores: Scores, labels: Mapping[Space, Ints]) -> Ranked:
    """Rank the truth (-1: unlabelled, left out) among the scores of its row.

    Raises: ValueError when no sample has a label.
    """
    found: dict[Space, Ints] = {}
    for space, values in scores.of.items():
        known = labels[space] >= 0
        if not known.any():
            raise ValueError(f"no sample has a label ({space}), so there is nothing to measure; test sets have none")
        found[space] = ranks(values if known.all() else values[known], labels[space][known])
    label = {space: labels[space][labels[space] >= 0] for space in found}
    return Ranked(found, label, {space: values.shape[1] for space, values in scores.of.items()})


def figures(ranked: Ranked, many_shot: Subset | None = None) -> dict[str, float]:
    """Percent, by `<space>/<name>`: top1, top5, recall5 (mean over classes that occur), mean_class_top1 (over all).

    `many_shot` adds recall5_many_shot, over those classes.
    """
    result: dict[str, float] = {}
    for space, found in ranked.rank.items():
        label = ranked.label[space]
        right = np.bincount(label, weights=found < 1, minlength=ranked.classes[space])
        total = np.bincount(label, minlength=ranked.classes[space])
        values: dict[str, float] = {
            "top1": float(np.mean(found < 1)),
            "top5": float(np.mean(found < 5)),
            "recall5": metrics.class_mean(found < 5, label),
            "mean_class_top1": float(np.mean(right / np.maximum(total, 1))),
        }
        if many_shot is not None:
            classes = getattr(many_shot, space)
            some = np.isin(label, classes).any()
            values["recall5_many_shot"] = (
                metrics.class_mean(found < 5, label, classes=classes.tolist()) if some else np.nan
            )
        result |= {f"{space}/{name}": 100 * value for name, value in values.items()}
    return result


def measure(said: Scores, benchmark: Benchmark, part: str = "val") -> dict[str, float]:
    """All figures of a part, in percent: top1, top5, recall5, mean_class_top1 for verb, noun and action.

    EPIC-KITCHENS-55 has recall5_many_shot too; EPIC-KITCHENS-100's validation recall5_tail and recall5_unseen as RULSTM
    and the published code count them, and `official/<space>[_unseen|_tail]` as the challenge does. Samples of other
    parts are left out; empty for a part without labels.

    Raises: ValueError when no sample is of this part.
    """
    clips = benchmark.clips(part)
    place = {name: row for row, name in enumerate(clips.segments.id.tolist())}
    rows = [place.get(name, -1) for name in said.id]
    known = [k for k, row in enumerate(rows) if row >= 0]
    if not known:
        raise ValueError(f"none of the {len(said)} scored samples, such as {said.id[0]}, is in {part}")
    segments = clips.segments[[rows[k] for k in known]]
    if (segments.action < 0).all():
        return {}
    whole = len(known) == len(said)
    ranked = rank(
        said if whole else Scores(tuple(segments.id.tolist()), {name: value[known] for name, value in said.of.items()}),
        {space: getattr(segments, space) for space in said.of},
    )
    result = figures(ranked, benchmark.many_shot)
    if benchmark.cfg.dataset == "ek100" and part == "val" and (segments.action >= 0).all():
        result |= _epic100(ranked, segments, benchmark, part)
    return result


def _epic100(ranked: Ranked, segments: Segments, benchmark: Benchmark, part: str) -> dict[str, float]:
    """Unseen kitchens and tail classes, both ways of counting; empty where their lists are absent."""
    places, everything = benchmark.layout, benchmark.segments(part)
    kept = subsets(segments, places.annotations, places.rulstm)
    whole = subsets(everything, places.annotations, places.rulstm)
    if kept is None or whole is None:
        return {}
    place = {name: row for row, name in enumerate(everything.id.tolist())}
    rows = np.array([place[name] for name in segments.id.tolist()])
    return subset_figures(ranked, kept) | official(ranked, rows, everything, whole)


# --- EPIC-KITCHENS-100: kitchens that training never saw, classes that it seldom saw


@dataclass(frozen=True)
class Subsets:
    """Rows of a part, (n,) masks: of unseen participants, and of tail classes by space."""

    unseen: Mask
    tail: Mapping[Space, Mask]


def subsets(segments: Segments, official: Path, rulstm: Path) -> Subsets | None:
    """The unseen and tail rows of EPIC-KITCHENS-100's validation, from the official lists, else from RULSTM's.

    A tail action has a tail verb or a tail noun. None where neither has been downloaded.
    """
    names = ("EPIC_100_unseen_participant_ids_validation", "EPIC_100_tail_verbs", "EPIC_100_tail_nouns")
    paths = [official / f"{name}.csv" for name in names]
    if all(path.exists() for path in paths):
        people, verbs, nouns = (read_list(path)[1:] for path in paths)  # the first line is a heading
        unseen = np.isin([path.split("/")[0] for path in segments.path], people)
        verb, noun = np.isin(segments.verb, list(map(int, verbs))), np.isin(segments.noun, list(map(int, nouns)))
        return Subsets(unseen, {"verb": verb, "noun": noun, "action": verb | noun})
    kinds = ("unseen_participants", "tail_verbs", "tail_nouns", "tail_actions")
    paths = [rulstm / f"validation_{kind}_ids.csv" for kind in kinds]
    if not all(path.exists() for path in paths):
        return None
    unseen, verb, noun, action = (np.isin(segments.id, read_list(path)) for path in paths)
    return Subsets(unseen, {"verb": verb, "noun": noun, "action": action})


def subset_figures(ranked: Ranked, parts: Subsets) -> dict[str, float]:
    """recall5_tail and recall5_unseen by space, percent, each over the classes that its rows have.

    For a part whose rows are all labelled, in the order of `parts`.
    """
    return {
        f"{space}/recall5_{name}": _recall(ranked, space, mask)
        for space in ranked.rank
        for name, mask in (("tail", parts.tail[space]), ("unseen", parts.unseen))
    }


def official(ranked: Ranked, kept: Ints, segments: Segments, parts: Subsets) -> dict[str, float]:
    """The figures of the EPIC-KITCHENS-100 challenge: class-mean recall at 5 over all rows of the part, percent.

    `kept` are the rows of `segments` (all annotated actions) that were ranked; the others, which have nothing to see
    before them, were submitted with zeros. Of equal scores the first class is the answer, class 0; which four come next
    is left to the sort of the machine by the official code, and counts as not found here. By `official/<space>`,
    `..._unseen`, `..._tail`.
    """
    result: dict[str, float] = {}
    full: dict[Space, Ints] = {}
    first = {
        "verb": segments.verb == 0,
        "noun": segments.noun == 0,
        "action": (segments.verb == 0) & (segments.noun == 0),
    }
    for space in SPACES:
        full[space] = np.where(first[space], 0, MISS)
        full[space][kept] = ranked.rank[space]
    labels: dict[Space, Ints] = {space: getattr(segments, space) for space in SPACES}
    whole = Ranked(full, labels, ranked.classes)
    everything = np.ones(len(segments), dtype=bool)
    for space in SPACES:
        for name, mask in (("", everything), ("_unseen", parts.unseen), ("_tail", parts.tail[space])):
            result[f"official/{space}{name}"] = _recall(whole, space, mask)
    return result


def _recall(ranked: Ranked, space: Space, rows: Mask) -> float:
    if not rows.any():
        return float("nan")
    return 100 * metrics.class_mean(ranked.rank[space][rows] < 5, ranked.label[space][rows])
