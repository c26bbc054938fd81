"""Tensors kept by key."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from core.checkpoint import Store


def test_what_is_written_is_read_by_key(tmp_path: Path) -> None:
    store, first, second = Store(tmp_path / "c"), torch.randn(2, 2, 4), torch.randn(1, 2, 4)
    assert "a/1" not in store
    store.write(["a/1", "b/2"], first)
    store.write(["ü"], second)
    assert "a/1" not in store, "not before it is asked to look"
    store.refresh()
    for reader in (store, Store(tmp_path / "c"), pickle.loads(pickle.dumps(store))):
        assert [name in reader for name in ("a/1", "b/2", "ü", "c")] == [True, True, True, False]
        assert len(reader) == 3
        assert torch.equal(reader["b/2"], first[1])
        assert torch.equal(reader["ü"], second[0])
        assert torch.equal(reader["a/1"], first[0])


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write(["a"], torch.ones(1, 2, 4))

    def full(*_: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no space"):
            store.write(["b"], torch.ones(1, 2, 4))
    assert len(list(tmp_path.iterdir())) == 1, "no part of it is left"
    store.refresh()
    assert ("a" in store, "b" in store) == (True, False)
