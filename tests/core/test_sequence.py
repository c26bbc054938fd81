"""Edit distances against the recursive definition; what makes them metrics; prefixes; shapes and messages."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.metrics import aued, edit_distance, edit_distance_at, prefix_distances

quick = settings(max_examples=60)
words = st.lists(st.integers(0, 3), max_size=7)  # few symbols, so that repetitions and swaps are frequent
trios = st.integers(0, 7).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 3))


def defined(a: tuple[int, ...], b: tuple[int, ...], transpositions: bool) -> int:
    """The textbook's recursion on the ends of both sequences."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        ways = [distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])]
        if transpositions and i > 1 and j > 1 and (a[i - 1], a[i - 2]) == (b[j - 2], b[j - 1]):
            ways.append(distance(i - 2, j - 2) + 1)
        return min(ways)

    return distance(len(a), len(b))


def array(symbols: Any) -> np.ndarray:
    return np.array(symbols, dtype=np.int64)


@quick
@given(words, words, st.booleans())
def test_it_is_the_recursive_definition(a: list[int], b: list[int], transpositions: bool) -> None:
    found = edit_distance(array(a), array(b), transpositions=transpositions)
    assert found == defined(tuple(a), tuple(b), transpositions)


@quick
@given(words, words, words)
def test_the_plain_distance_is_a_metric(a: list[int], b: list[int], c: list[int]) -> None:
    ab, bc, ac = (edit_distance(array(x), array(y)) for x, y in ((a, b), (b, c), (a, c)))
    assert (ab == 0) == (a == b)
    assert ab == edit_distance(array(b), array(a))
    assert ac <= ab + bc
    assert abs(len(a) - len(b)) <= ab <= max(len(a), len(b))


@quick
@given(words, words)
def test_transpositions_only_make_it_smaller(a: list[int], b: list[int]) -> None:
    swapping = edit_distance(array(a), array(b), transpositions=True)
    plain = edit_distance(array(a), array(b))
    assert swapping == edit_distance(array(b), array(a), transpositions=True)
    assert (plain + 1) // 2 <= swapping <= plain  # a swap saves one of two substitutions


def test_the_triangle_breaks_where_a_swapped_pair_would_be_edited_again() -> None:
    ca, ac, abc = (array(symbols) for symbols in ([2, 0], [0, 2], [0, 1, 2]))
    assert [edit_distance(x, y, transpositions=True) for x, y in ((ca, ac), (ac, abc), (ca, abc))] == [1, 1, 3]


@quick
@given(trios, st.booleans())
def test_one_table_holds_the_distances_of_all_prefixes(trio: tuple[list[int], ...], transpositions: bool) -> None:
    a, b, c = map(array, trio)
    found = prefix_distances(np.stack([a, b]), c, transpositions=transpositions)
    assert found.shape == (2, len(c))
    for row, first in zip(found, (a, b), strict=True):
        apart = [edit_distance(first[:z], c[:z], transpositions=transpositions) for z in range(1, len(c) + 1)]
        assert row.tolist() == apart
    assert (np.abs(np.diff(found)) <= 1).all()  # one more symbol on either side changes it by one at most


def test_many_pairs_are_as_good_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (6, 5, 20)), rng.integers(0, 9, (6, 1, 17))
    together = edit_distance(a, b)
    assert together.shape == (6, 5)
    assert together.tolist() == [[edit_distance(a[i, k], b[i, 0]).item() for k in range(5)] for i in range(6)]


@pytest.mark.parametrize("length", [126, 127, 130, 300])
def test_long_sequences_do_not_overflow(length: int) -> None:
    a, b = np.zeros(length, np.int64), np.ones(length, np.int64)
    assert edit_distance(a, b) == length
    assert edit_distance(a, b[:0]) == edit_distance(b[:0], a) == length
    assert prefix_distances(a, b).tolist() == list(range(1, length + 1))


def test_large_symbols_stay_apart() -> None:
    assert edit_distance(array([2**40, 1]), array([2**40 + 2**32, 1])) == 1


def test_the_best_of_the_predicted_sequences_counts_at_every_length() -> None:
    target = array([[1, 2, 3, 4]])
    predictions = array([[[1, 9, 9, 9], [9, 2, 3, 4]]])
    found = edit_distance_at(predictions, target)
    assert found.tolist() == [[0, 1 / 2, 1 / 3, 1 / 4]]  # the first is best at z = 1, the second from there on
    assert edit_distance_at(target[:, None], target).tolist() == [[0.0] * 4]
    assert edit_distance_at(array([[[2, 1, 3, 4]]]), target, transpositions=True)[0].tolist() == [
        1,
        1 / 2,
        1 / 3,
        1 / 4,
    ]


def test_the_area_is_the_mean_height_of_the_curve() -> None:
    assert aued([1.0, 0.5, 0.0]) == pytest.approx(0.5)
    assert aued([0.3] * 20) == pytest.approx(0.3)
    assert aued([[0.0, 1.0], [1.0, 1.0]]).tolist() == [0.5, 1.0]
    assert aued([0.7]) == 0.7  # one length: the curve is a point


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: edit_distance_at(np.zeros((2, 5, 20), int), np.zeros((2, 19), int)), r"\(2, 5, 20\) and \(2, 19\)"),
        (lambda: edit_distance_at(np.zeros((2, 20), int), np.zeros((2, 20), int)), r"predictions \(N, K, Z\)"),
        (lambda: edit_distance_at(np.zeros((2, 0, 20), int), np.zeros((2, 20), int)), "K > 0"),
        (lambda: prefix_distances([1, 2], [1]), "2 and 1 symbols"),
        (lambda: edit_distance([0.5], [0.5]), "integers; got float64"),
        (lambda: edit_distance(3, [3]), r"sequences \(\.\.\., length\)"),
        (lambda: edit_distance(np.zeros((2, 3), int), np.zeros((3, 3), int)), "cannot be paired"),
    ],
)
def test_what_cannot_be_compared_is_said(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
