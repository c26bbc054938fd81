"""Figures of one EPIC-KITCHENS-100 validation run: ours beside the plain published way, on made scores.

python -m bench.sgear_metrics [--rows 9638] [--rounds 3]

9,638 samples, 3,806 actions, 97 verbs, 300 nouns; labels and pairs of verb and noun are drawn. "plain" takes the
softmax, two matrix products for verbs and nouns, then for every space top-1, top-5, class-mean recall at 5 (one class
after the other, sorting its rows), a confusion matrix, and the same again for the tail and unseen rows. Both have to
agree to 1e-9.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from projects.sgear import metrics
from projects.sgear.metrics import Ranked, Scores, Subsets
from projects.sgear.taxonomy import Taxonomy

CLASSES = {"verb": 97, "noun": 300, "action": 3806}


def taxonomy(rng: np.random.Generator) -> Taxonomy:
    pairs = np.sort(rng.choice(CLASSES["verb"] * CLASSES["noun"], CLASSES["action"], replace=False))
    verb, noun = pairs // CLASSES["noun"], pairs % CLASSES["noun"]
    names = {kind: tuple(str(k) for k in range(count)) for kind, count in CLASSES.items()}
    return Taxonomy(names["action"], names["verb"], names["noun"], np.stack([verb, noun], 1))


def softmax(values: np.ndarray) -> np.ndarray:
    lifted = np.exp(values - values.max(-1, keepdims=True))
    return lifted / lifted.sum(-1, keepdims=True)


def plain_figures(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    classes = np.unique(labels)
    found = {}
    for k in (1, 5):
        best = np.argpartition(scores, -k, axis=-1)[:, -k:]
        found[f"top{k}"] = 100 * np.mean(np.any(labels[:, None] == best, axis=-1))
    recalls = []
    for label in classes:
        rows = scores[labels == label]
        ranked = rows.argsort(-1)[:, ::-1][:, :5]
        recalls.append((ranked == label).any(1).mean())
    found["recall5"] = 100 * np.mean(recalls)
    truth, answer = torch.from_numpy(labels), torch.from_numpy(scores).argmax(1)
    count = scores.shape[1]
    one_hot = [torch.nn.functional.one_hot(values, count).float() for values in (truth, answer)]
    confusion = (one_hot[0].T @ one_hot[1]).double()
    found["mean_class_top1"] = 100 * float((confusion.diag() / (confusion.sum(1) + 1e-15)).mean())
    return found


def plain(logits: np.ndarray, labels: dict[str, np.ndarray], classes: Taxonomy, parts: Subsets) -> dict[str, float]:
    wide = logits.astype(np.float64)
    shares = softmax(wide)
    scores = {kind: shares @ classes.mapping(kind).numpy() for kind in ("verb", "noun")} | {"action": wide}
    found = {}
    for kind, values in scores.items():
        found |= {f"{kind}/{name}": value for name, value in plain_figures(values, labels[kind]).items()}
        for name, rows in (("tail", parts.tail[kind]), ("unseen", parts.unseen)):
            found[f"{kind}/recall5_{name}"] = plain_figures(values[rows], labels[kind][rows])["recall5"]
    return found


def ours(logits: np.ndarray, labels: dict[str, np.ndarray], classes: Taxonomy, parts: Subsets) -> dict[str, float]:
    said: Scores = metrics.marginal(tuple(map(str, range(len(logits)))), logits, classes)
    ranked: Ranked = metrics.rank(said, labels)
    return metrics.figures(ranked) | metrics.subset_figures(ranked, parts)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=9638)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    classes = taxonomy(rng)
    action = np.minimum(
        (rng.pareto(1.0, args.rows) * 30).astype(int), CLASSES["action"] - 1
    )  # few classes are frequent
    labels = {"verb": classes.pairs[action, 0], "noun": classes.pairs[action, 1], "action": action}
    logits = rng.standard_normal((args.rows, CLASSES["action"])).astype(np.float32)
    logits[np.arange(args.rows), action] += 2.5
    unseen = rng.random(args.rows) < 0.11
    parts = Subsets(unseen, {kind: labels[kind] > np.median(labels[kind]) for kind in CLASSES})

    wanted, found = plain(logits, labels, classes, parts), ours(logits, labels, classes, parts)
    worst = max(abs(found[name] - value) for name, value in wanted.items())
    assert worst < 1e-9, f"the two ways differ by {worst}"
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for _ in range(args.rounds):
        times["plain"].append(timed(lambda: plain(logits, labels, classes, parts)))
        times["ours"].append(timed(lambda: ours(logits, labels, classes, parts)))
    for name, pairs in times.items():
        wall, cpu = (min(pair[k] for pair in pairs) for k in (0, 1))
        print(f"{name:<6} {wall:7.2f} s, {cpu:7.2f} s of one core")
    ratio = np.median([a[1] / b[1] for a, b in zip(times["plain"], times["ours"], strict=True)])
    print(f"{len(wanted)} figures equal to {worst:.1e}; ours is {ratio:.1f} times faster (processor time)")


if __name__ == "__main__":
    main()
