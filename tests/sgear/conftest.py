"""A kitchen with videos, features and annotations, made once for all tests of the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects.sgear import demo


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the demo: EPIC-KITCHENS-100's layout, 432 training and 144 validation actions; not to be changed."""
    root = tmp_path_factory.mktemp("kitchen")
    demo.make(root)
    return root
