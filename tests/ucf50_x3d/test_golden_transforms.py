"""Clip transforms, spatial views and metrics against numbers of the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core import metrics
from core.transforms import CenterCrop, Compose, Normalize, ShortSide, Step, ThreeCrops
from tests.support import Case, Parity, cases, fill

pytestmark = pytest.mark.golden

SHAPES = [(40, 3, 240, 320), (20, 3, 256, 456), (33, 3, 300, 200), (32, 3, 113, 151)]
MEAN, STD = 0.45, 0.225


def source(index: int, count: int) -> Tensor:
    """The case's clip as raw (T,H,W,3), `count` frames of it chosen as the reference does."""
    shape = SHAPES[index]
    frames = shape[0]
    scale = np.sqrt(np.prod(shape[1:])) * 60
    pixels = (fill.array(f"clip{index}", shape, "float64", "") * scale + 110).clip(0, 255).astype(np.uint8)
    last = frames - 1
    chosen = [i * last // (count - 1) for i in range(count)] if frames > count else [*range(frames), *[last] * count]
    return torch.from_numpy(pixels[chosen[:count]]).permute(0, 2, 3, 1).contiguous()


PIPELINES: dict[str, list[Step]] = {
    "official order": [Normalize(MEAN, STD), CenterCrop(256, fill=0.0)],
    "bytes cut first": [CenterCrop(256, fill=MEAN), Normalize(MEAN, STD)],
}


@pytest.mark.parametrize("case", cases("ucf50_x3d", "transforms*"), ids=lambda case: case.path.name)
@pytest.mark.parametrize("order", PIPELINES)
@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_reference_transform(case: Case, order: str, index: int, parity: Parity) -> None:
    expected = case.expected
    out = Compose(PIPELINES[order])(source(index, 32))[0]
    check(parity, f"clip{index}/x3d", out, expected, atol=1e-6)
    parity.check(f"clip{index}/x3d_grid", out[:, ::7, ::37, ::29], expected[f"clip{index}/x3d_grid"], atol=1e-6)


@pytest.mark.parametrize("case", cases("ucf50_x3d", "transforms*"), ids=lambda case: case.path.name)
@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_hub_transform(case: Case, index: int, parity: Parity) -> None:
    expected = case.expected
    out = Compose([ShortSide(182), CenterCrop(160), Normalize(MEAN, STD)])(source(index, 13))[0]
    check(parity, f"clip{index}/ptv_s", out, expected, atol=2e-5)
    parity.check(f"clip{index}/ptv_s_grid", out[:, ::5, ::31, ::23], expected[f"clip{index}/ptv_s_grid"], atol=2e-5)


def check(parity: Parity, name: str, out: Tensor, expected: dict[str, np.ndarray], *, atol: float) -> None:
    """Head, moments, largest value and shape, as every golden case summarizes a large tensor."""
    values = out.double()
    parity.check(f"{name}/head", out.flatten()[:64], expected[f"{name}/head"], atol=atol)
    parity.check(f"{name}/mean", values.mean(), expected[f"{name}/mean"].item(), atol=atol)
    parity.check(f"{name}/std", values.std(), expected[f"{name}/std"].item(), atol=atol)
    parity.check(f"{name}/absmax", values.abs().max(), expected[f"{name}/absmax"].item(), atol=atol)
    parity.check(f"{name}/shape", np.array(out.shape), expected[f"{name}/shape"])


@pytest.mark.parametrize("case", cases("ucf50_x3d", "test_views*"), ids=lambda case: case.path.name)
def test_three_crops(case: Case, parity: Parity) -> None:
    for row in case.json()["crops"]:
        height, width = row["h"], row["w"]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([rows, columns, rows], -1).permute(2, 0, 1)[:, None].float()
        corner = ThreeCrops(row["size"])(places)[row["spatial_idx"], :2, 0, 0, 0]
        parity.check(f"{height}x{width}/view{row['spatial_idx']}", corner, [row["y"], row["x"]])


@pytest.mark.parametrize("case", cases("ucf50_x3d", "metrics*"), ids=lambda case: case.path.name)
def test_metrics(case: Case, parity: Parity) -> None:
    expected = case.expected
    with np.load(case.path / "inputs.npz") as inputs:
        logits, labels = torch.from_numpy(inputs["logits"]), torch.from_numpy(inputs["labels"])
    predictions, classes = logits.argmax(1), logits.shape[1]
    scores = metrics.precision_recall_f1(labels, predictions, classes)
    actual = {
        "accuracy_percent": 100 * metrics.accuracy(labels, predictions),
        "top5_percent": 100 * metrics.top_k(logits, labels, 5),
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
        "support": scores.support,
        "confusion": metrics.confusion(labels, predictions, classes),
        "mean_class_accuracy": metrics.class_mean_recall(logits, labels, 1),
    }
    for average in ("macro", "micro", "weighted"):
        for over in ("all", "seen"):
            actual[f"f1_{average}_{over}_labels"] = scores.average(average, over).f1
    assert set(actual) == set(expected)
    for name, value in actual.items():
        parity.check(name, value, expected[name], atol=1e-9)
