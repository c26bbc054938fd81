"""Metrics, fusion and submissions against the published code and the official evaluation, on the real labels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from projects.sgear import fuse, metrics, submission
from projects.sgear.data import Benchmark
from projects.sgear.metrics import Scores
from tests.sgear.test_golden_data import TAUS, benchmark
from tests.support import Case, Parity, cases, fill

pytestmark = pytest.mark.golden

LETTERS = {"v": "verb", "n": "noun", "a": "action"}
NAMES = {"rec5": "recall5", "rec5_ms": "recall5_many_shot", "top1_meancls": "mean_class_top1"}
NAMES |= {"rec5_tail": "recall5_tail", "rec5_unseen": "recall5_unseen"}
FINAL = {"top1_meanOverClasses": "mean_class_top1", "AR5": "recall5", "AR5_manyshot": "recall5"}
BOOST = {"run_a": 2.5, "run_b": 1.5, "ek55": 2.5, "egtea": 1.0}


def made(key: str, found: Benchmark, boost: float) -> Scores:
    """The scores of a case: made from their name, raised at the true action."""
    segments = found.clips("val").segments
    classes = len(found.actions)
    scores = (50 * fill.array(key, (len(segments) * classes,))).reshape(-1, classes).astype(np.float32)
    scores[np.arange(len(segments)), segments.action] += np.float32(boost)
    return metrics.marginal(tuple(segments.id.tolist()), scores, found.classes)


def compare(parity: Parity, name: str, results: dict[str, float], expected: dict[str, Any]) -> None:
    """Every figure of the published code, where it has one."""
    for figure, wanted in expected.items():
        match = re.fullmatch(r"([vna]?)((?:top1|top5|rec5).*)", figure)
        assert match, f"{figure}: no rule for this figure"
        space = LETTERS.get(match[1], "action")
        if wanted is None or (match[2] == "rec5_ms" and f"{space}/recall5_many_shot" not in results):
            continue  # without many-shot classes the published code repeats the figure over all
        parity.check(f"{name} {figure}", results[f"{space}/{NAMES.get(match[2], match[2])}"], wanted, atol=1e-9)


@pytest.fixture(scope="module")
def ek100() -> tuple[Benchmark, dict[str, Scores]]:
    found = benchmark("ek100", tau_a=TAUS["ek100"][0], tau_o=TAUS["ek100"][1])
    return found, {run: made(f"{run}.logits", found, BOOST[run]) for run in ("run_a", "run_b")}


@pytest.mark.parametrize("case", cases("sgear", "metrics_ek100*"), ids=lambda case: case.path.name)
def test_ek100(case: Case, ek100: tuple[Benchmark, dict[str, Scores]], parity: Parity) -> None:
    found, runs = ek100
    expected = case.json()
    for name, wanted in expected.items():
        if name in runs:
            compare(parity, name, metrics.measure(runs[name], found), wanted)
        elif name == "fuse_float_weight":
            compare(parity, name, metrics.measure(fuse.fuse([*runs.values()], 1.0), found), wanted)
        elif name == "fuse_equal_l1norm":
            compare(parity, name, metrics.measure(fuse.fuse([*runs.values()], norm=1.0), found), wanted)
        elif match := re.fullmatch(r"fuse_([\d.]+)_([\d.]+)", name):
            fused = fuse.fuse([*runs.values()], [float(match[1]), float(match[2])])
            compare(parity, name, metrics.measure(fused, found), wanted)
        elif match := re.fullmatch(r"final_acc_(run_.)", name):
            results = metrics.measure(runs[match[1]], found)
            for figure, value in wanted.items():
                short = figure.rpartition("/")[2]
                parity.check(f"{name} {short}", results[f"action/{FINAL.get(short, short)}"], value, atol=1e-9)
        elif name == "marginal_first3":
            verb, noun = (runs["run_a"].of[space][:3] for space in ("verb", "noun"))
            parity.check("marginal verb", verb, wanted["verb"], atol=1e-12)
            parity.check("marginal noun", noun[:, :20], wanted["noun_first20"], atol=1e-12)
            parity.check("marginal verb sums", verb.sum(1), wanted["verb_rowsum"], atol=1e-12)
            parity.check("marginal noun sums", noun.sum(1), wanted["noun_rowsum"], atol=1e-12)
        elif match := re.fullmatch(r"official_challenge_fuse_([\d.]+)_([\d.]+)", name):
            results = metrics.measure(fuse.fuse([*runs.values()], [float(match[1]), float(match[2])]), found)
            for subset, values in wanted.items():
                for space, value in values.items():
                    suffix = "" if subset == "overall" else f"_{subset}"
                    parity.check(f"{name} {subset} {space}", results[f"official/{space}{suffix}"], value, atol=1e-9)
        elif name == "official_subset_sizes":
            segments = found.segments("val")
            parts = metrics.subsets(segments, found.layout.annotations, found.layout.rulstm)
            assert parts is not None
            sizes = {"rows": len(segments), "unseen_rows": int(parts.unseen.sum())}
            sizes |= {f"tail_{space}_rows": int(mask.sum()) for space, mask in parts.tail.items()}
            classes = {space: len(set(getattr(segments, space).tolist())) for space in metrics.SPACES}
            assert sizes | {"classes": classes} == wanted
        else:
            raise AssertionError(f"{name}: no rule for this entry of the case")


@pytest.mark.parametrize("case", cases("sgear", "metrics_ek100*"), ids=lambda case: case.path.name)
def test_submission(case: Case, ek100: tuple[Benchmark, dict[str, Scores]], parity: Parity) -> None:
    found, runs = ek100
    expected = case.json("submission_example.json")
    fused = fuse.fuse([*runs.values()], [2.5, 0.5])
    few = Scores(fused.id[:3], {space: values[:3] for space, values in fused.of.items()})
    levels = [expected[name] for name in submission.LEVELS]
    assert submission.header("ek100", levels) == {k: v for k, v in expected.items() if k != "results"}
    made_entries = dict(submission.entries(fused, found, "val"))
    assert len(made_entries) == len(found.segments("val"))
    for name, wanted in expected["results"].items():
        entry = made_entries[name]
        assert {space: list(entry[space]) for space in entry} == {space: list(wanted[space]) for space in wanted}
        for space, values in wanted.items():
            parity.check(f"{name} {space}", list(entry[space].values()), list(values.values()), atol=1e-9)
    assert len(few) == 3


@pytest.mark.parametrize("case", cases("sgear", "metrics_ek55*"), ids=lambda case: case.path.name)
def test_ek55_and_egtea(case: Case, parity: Parity) -> None:
    for name, wanted in case.json().items():
        dataset = re.match(r"ek55|egtea", name)[0]
        tau_a, tau_o = TAUS[dataset]
        fold = int(name[-1]) if name[-1].isdigit() else 1
        found = benchmark(dataset, tau_a=tau_a, tau_o=tau_o, fold=fold)
        if name == "ek55_val":
            compare(parity, name, metrics.measure(made("ek55.logits", found, BOOST["ek55"]), found), wanted)
        elif name == "ek55_many_shot_sizes":
            assert {space: len(getattr(found.many_shot, space)) for space in metrics.SPACES} == wanted
        elif match := re.fullmatch(r"egtea_val(\d)", name):
            said = made(f"egtea{match[1]}.logits", found, BOOST["egtea"])
            compare(parity, name, metrics.measure(said, found), wanted)
        elif name.startswith("egtea_mapping_shapes"):
            shapes = {str((kind, "action")): list(found.classes.mapping(kind).shape) for kind in ("verb", "noun")}
            assert shapes == wanted
        elif name == "egtea_ids":
            kinds = {"verbs": 0, "nouns": 1}
            assert {kind: sorted(set(found.classes.pairs[:, k].tolist())) for kind, k in kinds.items()} == wanted
        else:
            raise AssertionError(f"{name}: no rule for this entry of the case")
