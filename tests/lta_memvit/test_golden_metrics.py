"""Edit distances, errors and submissions against the official code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from core.metrics import aued, edit_distance_at, top_k
from projects.lta_memvit import eval
from projects.lta_memvit.config import Config, EvalConfig
from projects.lta_memvit.sequences import draw
from tests.support import Case, Parity, cases, fill

pytestmark = pytest.mark.golden

EXACT = 1e-9


def found(pattern: str) -> list[Any]:
    return [pytest.param(case, id=case.path.name) for case in cases("lta_memvit", pattern)]


def inputs(case: Case) -> dict[str, np.ndarray]:
    with np.load(case.path / "inputs.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", found("metrics*"))
def test_edit_distances_are_the_official_ones(case: Case, parity: Parity) -> None:
    given, expected = inputs(case), case.expected
    for name in sorted(key.removesuffix("_label") for key in given if key.endswith("_label")):
        predictions, targets = given[f"{name}_pred"].transpose(0, 2, 1), given[f"{name}_label"]
        curve = edit_distance_at(predictions, targets).mean(0)
        swapping = edit_distance_at(predictions, targets, transpositions=True).mean(0)
        ours = {"ED": curve, "ED_full": curve[-1], "AUED": aued(curve), "DL_full": swapping[-1]}
        checked = [kind for kind in ours if f"{name}_{kind}" in expected]
        assert checked
        for kind in checked:
            parity.check(f"{name}_{kind}", ours[kind], expected[f"{name}_{kind}"], atol=EXACT)


@pytest.mark.parametrize("case", found("metrics*"))
def test_evaluation_reports_the_official_figures_of_verbs_nouns_and_actions(case: Case, parity: Parity) -> None:
    given, expected = inputs(case), case.expected
    if "action_verb_pred" not in given:
        pytest.skip("this case has no pairs of verbs and nouns")
    rows: dict[str, Any] = {"id": [f"{i}" for i in range(len(given["action_verb_label"]))], "batch": None}
    for head in eval.HEADS:
        truth = given[f"action_{head}_label"]
        rows |= {head: truth, f"{head}_futures": given[f"action_{head}_pred"].transpose(0, 2, 1)}
        rows |= {f"{head}_rank": np.zeros_like(truth), f"{head}_observed": truth[:, :1]}
    measured = eval.measure(rows, Config())
    for kind in ("verb", "noun"):
        parity.check(f"ed_{kind}", measured[f"ed_{kind}"], expected[f"action_{kind}_ED_full"], atol=EXACT)
    parity.check("ed_action", measured["ed_action"], expected["action_ED_full"], atol=EXACT)


@pytest.mark.parametrize("case", found("metrics*"))
def test_errors_are_the_official_ones(case: Case, parity: Parity) -> None:
    """Top-k errors by core's function, and by the ranks that evaluation keeps instead of scores."""
    given, expected = inputs(case), case.expected
    if "topk_logits" not in given:
        pytest.skip("this case has no scores")
    scores, labels = given["topk_logits"], given["topk_labels"]
    ranks = eval._facts(torch.from_numpy(scores)[:, None], torch.from_numpy(labels))["rank"].numpy()
    for name in sorted(key for key in expected if key.startswith("topk_err_")):
        counts = [int(k) for k in name.removeprefix("topk_err_").split("_")]
        parity.check(name, [100 - 100 * top_k(scores, labels, k) for k in counts], expected[name], atol=1e-4)
        parity.check(f"{name} by rank", [100 * (ranks >= k).mean() for k in counts], expected[name], atol=1e-4)


def logits(head: str, batch: int, count: int, future: int, classes: int) -> torch.Tensor:
    """The logits of a batch of the case, by the recipe of its README."""
    values = 2 * 50 * fill.array(f"out.{head}{batch}", (count * future * classes,))
    return torch.from_numpy(values).float().reshape(count, future, classes)


@pytest.mark.parametrize("case", found("outputs_json*"))
def test_the_submission_is_the_official_one(case: Case) -> None:
    expected = case.json("outputs.json")
    generator = torch.Generator().manual_seed(3)
    rows, ids = {}, list(expected)
    first = len(case.json("greedy.json")[0])  # samples of the first of two batches
    for batch, names in enumerate((ids[:first], ids[first:])):
        verb, noun = (logits(head, batch, len(names), 20, count) for head, count in (("verb", 115), ("noun", 478)))
        futures = draw(verb, noun, names, EvalConfig(sampling="reference"), generator)
        pairs = zip(names, futures.verb.tolist(), futures.noun.tolist(), strict=True)
        rows |= {name: {"verb": verbs, "noun": nouns} for name, verbs, nouns in pairs}
        if batch == 0:
            likeliest = draw(verb, noun, names, EvalConfig(sequences=1))
            assert [likeliest.verb.tolist(), likeliest.noun.tolist()] == case.json("greedy.json")
    assert rows == expected
    assert list(rows) == list(expected)
