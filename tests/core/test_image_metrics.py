"""PSNR and the Frechet distance, by hand, by properties, against the official formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.metrics import frechet_distance, psnr
from tests.support import cases, fill


def test_psnr_of_a_known_error() -> None:
    target = torch.full((2, 3, 4, 4), 0.5)
    image = target.clone()
    image[0] += 0.1
    image[1, :, :2] += 0.2
    found = psnr(image, target)
    assert found.tolist() == pytest.approx([20.0, 10 * np.log10(1 / 0.02)], abs=1e-5)
    assert psnr(target, target).isinf().all()
    assert psnr(image * 255, target * 255, data_range=255).tolist() == pytest.approx(found.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match=r"\(B,C,H,W\)"):
        psnr(image, target[:, :1])


@given(seed=st.integers(0, 1000), rows=st.integers(2, 12), width=st.integers(1, 8))
def test_frechet_distance_is_a_distance_of_distributions(seed: int, rows: int, width: int) -> None:
    noise = np.random.default_rng(seed)
    a, b = noise.normal(size=(rows, width)), noise.normal(1, 2, size=(rows + 1, width))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6, abs=1e-6)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * width, rel=1e-6)
    turned = np.linalg.qr(noise.normal(size=(width, width)))[0]
    assert frechet_distance(a @ turned, b @ turned) == pytest.approx(frechet_distance(a, b), rel=1e-6, abs=1e-6)


def test_frechet_distance_of_single_columns() -> None:
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [5.0]])
    assert frechet_distance(a, b) == pytest.approx(16 + 2)  # (1 - 5)^2 + (sqrt 2 - 0)^2


@pytest.mark.parametrize(
    ("a", "words"),
    [(np.zeros((1, 3)), "at least two"), (np.full((4, 3), np.nan), "not finite"), (np.zeros((4, 2)), "one width")],
)
def test_frechet_distance_says_what_is_wrong(a: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        frechet_distance(a, np.zeros((4, 3)))


@pytest.mark.golden
@pytest.mark.parametrize(("name", "salt", "sizes", "rtol"), [
    ("fid", "", (200, 150, 16), 1e-6), ("fid_singular", "sing", (20, 30, 48), 1e-3),
])  # fmt: skip
def test_frechet_distance_equals_the_official_formula(parity, name: str, salt: str, sizes, rtol: float) -> None:
    (case,) = cases("lego", "metric_fid_formula")

    def features(key: str, rows: int, shift: float) -> np.ndarray:
        noise = fill.array(key, (rows, sizes[2]), "float64", salt) * np.float64(np.float32(np.sqrt(sizes[2])))
        return noise @ fill.array("mix." + key, (sizes[2], sizes[2]), "float64", salt) + shift

    a, b = features("f.gt", sizes[0], 0.1), features("f.gen", sizes[1], -0.05)
    parity.check(name, frechet_distance(a, b), case.expected[name], rtol=rtol)
