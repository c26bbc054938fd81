"""What the tests of this folder have in common."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here carries the marker, so that `-m dist` finds it."""
    for item in items:
        if "tests/dist/" in item.path.as_posix():
            item.add_marker(pytest.mark.dist)
