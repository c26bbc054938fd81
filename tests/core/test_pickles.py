"""Plain pickles come back as data; nothing in them runs."""

from __future__ import annotations

import os
import pickle
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.checkpoint import read_pickle

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner), max_leaves=20
)


@given(tree=TREES, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back(tmp_path_factory, tree: object, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    assert read_pickle(path) == tree


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    tree = {"a": np.arange(6.0).reshape(2, 3), "n": np.float32(1.5), "s": {1, 2}, "c": Counter("aab")}
    tree["o"] = OrderedDict(x=np.array(["p", "q"]))
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    found = read_pickle(path)
    assert np.array_equal(found["a"], tree["a"])
    assert found["n"] == 1.5
    assert found["s"] == {1, 2}
    assert found["c"]["a"] == 2
    assert found["o"]["x"].tolist() == ["p", "q"]


def test_texts_and_arrays_of_python_2_come_back(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    path.write_bytes(b"(dp0\nS'conv1_w'\np1\nI7\ns.")
    assert read_pickle(path) == {"conv1_w": 7}
    array = pickle.dumps({"w": np.ones(2)}, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(array)
    assert read_pickle(path)["w"].tolist() == [1.0, 1.0]


class Evil:
    def __init__(self, how: object, *args: object) -> None:
        self.how, self.args = how, args

    def __reduce__(self) -> tuple:
        return (self.how, self.args)


@pytest.mark.parametrize("how", [os.system, eval, getattr, __import__], ids=lambda how: how.__name__)
def test_nothing_runs(tmp_path: Path, how: object) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps([Evil(how, "touch pwned")]))
    with pytest.raises(ValueError, match=r"evil\.pkl: it names .*could run any code.*json, csv or npz"):
        read_pickle(path)


def test_a_stand_in_takes_the_place_of_a_class(tmp_path: Path) -> None:
    path = tmp_path / "point.pkl"
    path.write_bytes(
        pickle.dumps(Evil(complex, 1, 2)).replace(b"builtins", b"geometry").replace(b"complex", b"Point3D")
    )
    with pytest.raises(ValueError, match=r"geometry\.Point3D"):
        read_pickle(path)
    found = read_pickle(path, stand_in=lambda module, name: complex if module == "geometry" else None)
    assert found == complex(1, 2)


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(list(range(99)))[:50]])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"broken\.pkl"):
        read_pickle(path)
    with pytest.raises(ValueError, match=r"absent\.pkl: no such file"):
        read_pickle(tmp_path / "absent.pkl")
