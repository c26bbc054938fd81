"""A dataset in the released layout, and weights of the tiny networks, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lego import tiny


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ (six pairs to train on, three to validate), sd.ckpt and merges.txt; tests only read it."""
    root = tmp_path_factory.mktemp("lego")
    tiny.write_dataset(root / "data")
    tiny.write_stable_diffusion(root / "sd.ckpt")
    tiny.write_tokenizer(root / "merges.txt")
    return root
