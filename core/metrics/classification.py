"""Numbers about classes: how often right, for which class, and how far down the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Values: TypeAlias = "Tensor | npt.ArrayLike"
Array: TypeAlias = np.ndarray[Any, Any]
Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


class Averages(NamedTuple):
    """Precision, recall and F1 as one number each."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1 of every class, (K,) each; `support` counts its true rows, `predicted` its answers."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Ints
    predicted: Ints
    correct: Ints

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """(K,): True for classes that occur in truth or prediction."""
        return (self.support > 0) | (self.predicted > 0)

    def average(self, how: Literal["macro", "micro", "weighted"], over: Literal["all", "seen"] = "seen") -> Averages:
        """One number each over classes: their mean, the counts of all together, or the mean weighted by support.

        `over` counts all K classes, those that never occur as 0, or only the seen ones (scikit-learn's default).

        Raises:
            ValueError: for another word.
        """
        if over not in ("all", "seen"):
            raise ValueError(f'over must be "all" or "seen"; got {over!r}')
        if how == "micro":
            right, support, predicted = (int(a.sum()) for a in (self.correct, self.support, self.predicted))
            return Averages(_share(right, predicted), _share(right, support), _share(2 * right, predicted + support))
        if how not in ("macro", "weighted"):
            raise ValueError(f'an average is "macro", "micro" or "weighted"; got {how!r}')
        chosen = self.seen if over == "seen" else np.ones_like(self.seen)
        weights = self.support[chosen] if how == "weighted" else np.ones(chosen.sum())
        means = (float(np.average(a[chosen], weights=weights)) for a in (self.precision, self.recall, self.f1))
        return Averages(*means)


def accuracy(labels: Values, predictions: Values) -> float:
    """Share of rows whose prediction is the label; labels and predictions (N,) class indices.

    Raises:
        ValueError: for unequal lengths, no rows, or values that are no class indices.
    """
    truth, answer = _pair(labels, predictions)
    return float(np.mean(truth == answer))


def ranks(scores: Values, labels: Values) -> Ints:
    """How many classes every row puts before its label, (N,): 0 is the answer, below k is among the k highest.

    Scores (N,K); labels (N,). Equal scores rank by class index, the lower first, so the number never depends on the
    machine; `torch.topk` promises no order there. One pass serves all the metrics that count hits.

    Raises:
        ValueError: for shapes that do not fit, no rows, NaN scores, or a label out of range.
    """
    values, truth = _scores(scores), _indices(labels, "labels")
    rows, classes = values.shape
    if len(truth) != rows:
        raise ValueError(f"labels must be ({rows},), one for each row of the scores {values.shape}; got {truth.shape}")
    _in_range(truth, classes, "labels")
    own = values[np.arange(rows), truth][:, None]
    better: Ints = (values > own).sum(1)
    tied = np.flatnonzero((values == own).sum(1) > 1)  # seldom any
    before = (values[tied] == own[tied]) & (np.arange(classes) < truth[tied, None])
    better[tied] += before.sum(1)
    return better


def top_k(scores: Values, labels: Values, k: int) -> float:
    """Share of rows whose label is among the k highest of its scores (N,K); labels (N,). Ties as in `ranks`.

    Raises:
        ValueError: as `ranks`, and for k outside 1..K.
    """
    return float(np.mean(_hits(scores, labels, k)))


def class_mean_recall(scores: Values, labels: Values, k: int = 1, *, classes: Sequence[int] | None = None) -> float:
    """Mean over classes of the share of their rows that `top_k` counts; see `class_mean`.

    Raises:
        ValueError: as `top_k`, and when none of `classes` has a row.
    """
    return class_mean(_hits(scores, labels, k), labels, classes=classes)


def class_mean(values: Values, labels: Values, *, classes: Sequence[int] | None = None) -> float:
    """Mean over classes of the mean value of their rows, both (N,); every class that occurs weighs the same.

    `classes` restricts the mean to some (the many-shot ones, say); those without rows are left out in any case.

    Raises:
        ValueError: for labels that are no class indices, and when none of `classes` has a row.
    """
    truth = _indices(labels, "labels")
    total = np.bincount(truth)
    means = np.bincount(truth, weights=_numpy(values)) / np.maximum(total, 1)
    present = total > 0
    if classes is not None:
        wanted = np.isin(np.arange(len(total)), _indices(classes, "classes"))
        if not (present & wanted).any():
            raise ValueError(f"none of the {len(classes)} classes asked for occurs in the labels")
        present &= wanted
    return float(np.mean(means[present]))


def confusion(labels: Values, predictions: Values, classes: int) -> Ints:
    """Counts (K,K): rows are truth, columns predictions; both (N,) class indices below K = `classes`.

    Raises:
        ValueError: for unequal lengths, no rows, or an index out of range.
    """
    truth, answer = _pair(labels, predictions)
    _in_range(truth, classes, "labels")
    _in_range(answer, classes, "predictions")
    return np.bincount(truth * classes + answer, minlength=classes * classes).reshape(classes, classes)


def precision_recall_f1(labels: Values, predictions: Values, classes: int) -> Scores:
    """Per class: share of its answers that are right, of its rows that are found, and their harmonic mean.

    Raises:
        ValueError: as `confusion`.
    """
    counts = confusion(labels, predictions, classes)
    correct, support, predicted = counts.diagonal().copy(), counts.sum(1), counts.sum(0)
    return Scores(
        precision=_shares(correct, predicted),
        recall=_shares(correct, support),
        f1=_shares(2 * correct, predicted + support),
        support=support,
        predicted=predicted,
        correct=correct,
    )


def average_precision(scores: Values, targets: Values) -> Floats:
    """Per class the area under precision over recall, as steps without interpolation; 0 for a class without positives.

    Scores (N,K); targets (N,K) of 0 and 1. Rows of equal score enter together, so their order does not matter.

    Raises:
        ValueError: for shapes that do not fit, no rows, NaN scores, or targets other than 0 and 1.
    """
    values, truth = _scores(scores), _numpy(targets)
    if truth.shape != values.shape:
        raise ValueError(f"targets must be {values.shape} like the scores, one column per class; got {truth.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"targets must be 0 or 1; got {truth[~np.isin(truth, (0, 1))][0]}")
    return np.array([_area(values[:, c], truth[:, c].astype(bool)) for c in range(values.shape[1])])


def multilabel_ap(scores: Values, targets: Values) -> float:
    """Mean average precision over the classes that have a positive row (mAP); shapes as `average_precision`.

    Raises:
        ValueError: as `average_precision`, and when no target is 1.
    """
    precision, positive = average_precision(scores, targets), _numpy(targets).any(0)
    if not positive.any():
        raise ValueError("no target is 1: there is no class to average over")
    return float(np.mean(precision[positive]))


def _area(scores: Array, truth: npt.NDArray[np.bool_]) -> float:
    if not truth.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(truth[order])
    last = scores[order][1:] != scores[order][:-1]
    ends = np.append(np.flatnonzero(last), len(order) - 1)  # where rows of one score end
    precision = found[ends] / (ends + 1)
    return float(np.sum(np.diff(found[ends], prepend=0) * precision) / found[-1])


def _hits(scores: Values, labels: Values, k: int) -> npt.NDArray[np.bool_]:
    better = ranks(scores, labels)
    classes = np.shape(scores)[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be from 1 to the number of classes, {classes}; got {k}")
    return better < k


def _numpy(values: Values) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _scores(values: Values) -> Array:
    array = _numpy(values)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"scores must be (N,K) with at least one row and one class; got shape {array.shape}")
    array = array.astype(np.float64, copy=False)
    bad = np.flatnonzero(np.isnan(array).any(1))
    if bad.size:
        raise ValueError(f"scores of row {bad[0]} are NaN ({bad.size} of {len(array)} rows have some)")
    return array


def _indices(values: Values, name: str) -> Ints:
    array = _numpy(values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be (N,) with at least one row; got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integer class indices; got {array.dtype}")
    if array.min() < 0:
        raise ValueError(f"{name} must be class indices from 0; got {array.min()} in row {int(array.argmin())}")
    return array.astype(np.int64, copy=False)


def _pair(labels: Values, predictions: Values) -> tuple[Ints, Ints]:
    truth, answer = _indices(labels, "labels"), _indices(predictions, "predictions")
    if truth.shape != answer.shape:
        raise ValueError(f"labels and predictions must be equally many; got {len(truth)} and {len(answer)}")
    return truth, answer


def _in_range(indices: Ints, classes: int, name: str) -> None:
    if indices.max() >= classes:
        row = int(indices.argmax())
        raise ValueError(f"{name} must be below the {classes} classes; got {indices[row]} in row {row}")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _shares(parts: Ints, wholes: Ints) -> Floats:
    return np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0)
