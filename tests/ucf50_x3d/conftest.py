"""A dataset of the smallest kind: two classes, four source videos of two clips each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ucf50_x3d.tiny import write_dataset


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; tests only read it."""
    root = tmp_path_factory.mktemp("tiny") / "clips"
    write_dataset(root)
    return root
