"""A dataset in Ego4D's layout, small enough to be made in a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects.lta_memvit.demo import Size
from tests.lta_memvit.tiny import write_dataset

SIZE = Size(train=4, val=3, test=2, actions=13)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, with `annotations` and `clips`; tests only read it."""
    root = tmp_path_factory.mktemp("made")
    write_dataset(root, SIZE)
    return root
