"""Figures against plain formulas; subsets of EPIC-KITCHENS-100; actions from verbs and nouns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejson
from hypothesis import given
from hypothesis import strategies as st

from projects.sgear import average, metrics
from projects.sgear.annotations import Segments
from projects.sgear.metrics import Ranked, Scores, Subsets
from projects.sgear.taxonomy import Subset, Taxonomy
from tests.support import SHARED

PAIRS = np.array([[0, 0], [0, 2], [1, 0], [1, 1], [2, 1], [1, 2]])
CLASSES = Taxonomy(tuple("abcdef"), ("take", "put", "cut"), ("tap", "cup", "lid"), PAIRS)


def softmax(values: np.ndarray) -> np.ndarray:
    lifted = np.exp(values - values.max(1, keepdims=True))
    return lifted / lifted.sum(1, keepdims=True)


@given(st.integers(1, 700), st.integers(0, 999))
def test_marginals_are_products_with_the_mapping(rows: int, seed: int) -> None:
    """The verbs of PAIRS are not in order, so that columns are sorted first."""
    logits = np.random.default_rng(seed).normal(0, 3, (rows, 6)).astype(np.float32)
    said = metrics.marginal(tuple(map(str, range(rows))), logits, CLASSES)
    shares = softmax(logits.astype(np.float64))
    for kind in ("verb", "noun"):
        np.testing.assert_allclose(said.of[kind], shares @ CLASSES.mapping(kind).numpy(), atol=1e-13)
    assert said.of["action"] is logits


def test_classes_without_actions_get_nothing_and_heads_are_kept() -> None:
    classes = Taxonomy(("a",), ("take", "put"), ("tap", "cup"), np.array([[1, 0]]))
    head = np.array([[3.0, -1.0]])
    said = metrics.marginal(("x",), np.array([[2.0]]), classes, {"noun": head})
    assert said.of["verb"].tolist() == [[0.0, 1.0]]
    assert said.of["noun"] is head


@given(st.integers(1, 200), st.integers(0, 999))
def test_figures_are_those_of_plain_formulas(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(rows, 9)), rng.integers(0, 9, rows)
    ranked = metrics.rank(Scores(tuple(map(str, range(rows))), {"action": scores}), {"action": labels})
    found = metrics.figures(ranked, Subset(np.array([]), np.array([]), np.array([0, 3])))
    best = np.argsort(-scores, axis=1)
    near = (best[:, :5] == labels[:, None]).any(1)
    right = best[:, 0] == labels
    present = np.unique(labels)
    assert found["action/top1"] == pytest.approx(100 * right.mean())
    assert found["action/top5"] == pytest.approx(100 * near.mean())
    assert found["action/recall5"] == pytest.approx(100 * np.mean([near[labels == k].mean() for k in present]))
    by_class = [right[labels == k].mean() if k in present else 0.0 for k in range(9)]
    assert found["action/mean_class_top1"] == pytest.approx(100 * np.mean(by_class)), "absent classes count as 0"
    some = [near[labels == k].mean() for k in (0, 3) if k in present]
    wanted = 100 * np.mean(some) if some else np.nan
    assert found["action/recall5_many_shot"] == pytest.approx(wanted, nan_ok=True)


def test_unlabelled_rows_count_nowhere() -> None:
    scores = np.eye(4)
    ranked = metrics.rank(Scores(tuple("abcd"), {"action": scores}), {"action": np.array([0, -1, 2, 1])})
    assert metrics.figures(ranked)["action/top1"] == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="no sample has a label"):
        metrics.rank(Scores(("a",), {"action": scores[:1]}), {"action": np.array([-1])})


def test_actions_of_models_that_know_verbs_and_nouns() -> None:
    rng = np.random.default_rng(0)
    verb, noun = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    wanted = softmax(verb)[:, PAIRS[:, 0]] * softmax(noun)[:, PAIRS[:, 1]]
    np.testing.assert_allclose(np.exp(metrics.of_parts(verb, noun, CLASSES)), wanted, atol=1e-12)


def rows(verb: list[int], noun: list[int], persons: list[str]) -> Segments:
    count = np.arange(len(verb))
    names = np.array([f"x{k}" for k in count])
    paths = np.array([f"{person}/v.MP4" for person in persons])
    pairs = CLASSES.action(np.array(verb), np.array(noun))
    return Segments(names, names, paths, count / 1, count / 1, np.array(verb), np.array(noun), pairs)


def test_subsets_of_official_lists_and_of_rulstms(tmp_path: Path) -> None:
    """A tail action has a tail verb or a tail noun; both kinds of lists name the same rows."""
    segments = rows([0, 1, 2, 1], [0, 0, 1, 2], ["P01", "P18", "P32", "P02"])
    assert metrics.subsets(segments, tmp_path, tmp_path) is None
    lists = {"unseen_participants": "x1\nx2\n", "tail_verbs": "x2\n", "tail_nouns": "x3\n", "tail_actions": "x2\nx3\n"}
    for name, text in lists.items():
        (tmp_path / f"validation_{name}_ids.csv").write_text(text)
    of_rulstm = metrics.subsets(segments, tmp_path, tmp_path)
    (tmp_path / "EPIC_100_unseen_participant_ids_validation.csv").write_text("participant_id\nP18\nP32\n")
    (tmp_path / "EPIC_100_tail_verbs.csv").write_text("verb\n2\n")
    (tmp_path / "EPIC_100_tail_nouns.csv").write_text("noun\n2\n")
    official = metrics.subsets(segments, tmp_path, tmp_path)
    assert official is not None
    assert of_rulstm is not None
    assert official.unseen.tolist() == of_rulstm.unseen.tolist() == [False, True, True, False]
    for space, mask in {"verb": [0, 0, 1, 0], "noun": [0, 0, 0, 1], "action": [0, 0, 1, 1]}.items():
        assert official.tail[space].astype(int).tolist() == of_rulstm.tail[space].astype(int).tolist() == mask


def test_the_real_lists_agree() -> None:
    folder = SHARED / "data" / "epic_kitchens100"
    if not folder.is_dir():
        pytest.skip("needs the real annotations of EPIC-KITCHENS-100, which are not ours to publish")
    from tests.sgear.test_golden_data import benchmark

    segments = benchmark("ek100").segments("val")
    official = metrics.subsets(segments, folder, Path("nowhere"))
    of_rulstm = metrics.subsets(segments, Path("nowhere"), folder / "rulstm")
    assert official is not None
    assert of_rulstm is not None
    assert np.array_equal(official.unseen, of_rulstm.unseen)
    assert all(np.array_equal(official.tail[space], of_rulstm.tail[space]) for space in metrics.SPACES)


def test_the_challenge_counts_dropped_rows() -> None:
    """Three rows, the second was never scored: zeros answer class 0, and nothing else."""
    segments = rows([0, 1, 0], [0, 1, 2], ["P01", "P01", "P18"])
    nothing = {space: np.array([False, False, True]) for space in metrics.SPACES}
    parts = Subsets(np.array([False, False, True]), nothing)
    rank = {"verb": np.array([0, 9]), "noun": np.array([0, 0]), "action": np.array([4, 5])}
    label = {space: getattr(segments, space)[[0, 2]] for space in metrics.SPACES}
    ranked, kept = Ranked(rank, label, {"verb": 3, "noun": 3, "action": 6}), np.array([0, 2])
    found = metrics.official(ranked, kept, segments, parts)
    assert found["official/verb"] == pytest.approx(100 * np.mean([1 / 2, 0]))
    assert found["official/noun"] == pytest.approx(100 * np.mean([1, 0, 1]))
    assert found["official/action"] == pytest.approx(100 * np.mean([1, 0, 0]))
    assert (found["official/verb_unseen"], found["official/noun_tail"]) == (0.0, 100.0)
    dropped = rows([0, 0, 0], [0, 0, 2], ["P01", "P01", "P18"])
    again = metrics.official(ranked, kept, dropped, parts)
    assert again["official/noun"] == 100.0, "a dropped row of class 0 is what zeros answer"


def test_the_mean_over_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, value in enumerate((40.0, 50.0)):
        run = tmp_path / str(k)
        run.mkdir()
        text = f'{{"val/action/top1": {value}, "val/samples_scored": 9, "val/verb/top1": {"null" if k else 1.0}}}'
        (run / "results.json").write_text(text)
    found = average.main([str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path / "mean.json")])
    assert found == {"val/action/top1": (45.0, 5.0)}
    assert simplejson.loads((tmp_path / "mean.json").read_text())["val/action/top1"] == 45.0
    assert "45.000 ± 5.000" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        average.main([str(tmp_path / "gone")])
    assert stop.value.code == 1
    assert "evaluate the run first" in capsys.readouterr().err
