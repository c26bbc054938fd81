"""The released layout is read as the official dataset classes read it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from projects.lego import data, generate
from projects.lego.config import DataConfig, ModelConfig
from tests.support import Case, Parity, cases

pytestmark = pytest.mark.golden


def opened(case: Case, prompt: str = "llava_forecast_finetune") -> tuple[DataConfig, str]:
    """The configuration and the split of a case, told by its one JSON file of actions."""
    (path,) = [each for split in ("train", "val") for each in case.path.glob(f"*_{split}.json")]
    dataset, split = path.stem.rsplit("_", 1)
    return DataConfig(root=case.path, datasets=(dataset,), vllm="demo", prompt=prompt, flip=0), split


@pytest.mark.parametrize("case", cases("lego", "dataset_*"), ids=lambda case: case.path.name)
def test_order_frames_and_features(case: Case, parity: Parity) -> None:
    cfg, split = opened(case)
    expected, order = case.expected, case.json("order.json")
    records = data.load(cfg, split)
    assert data.missing(cfg, records, ("image", "text")) == []
    pairs = data.Pairs(records, cfg, ModelConfig(), train=split == "train")
    labels = data.Pairs(records, opened(case, "action")[0], ModelConfig())
    assert len(pairs) == len(order)
    for i, wanted in enumerate(order):
        record = records[i]
        assert (record.clip, record.action) == (wanted["clip"], wanted["action"])
        assert record.target == wanted["image_1_path"]
        written = generate.image_path(case.path, record)
        assert written == case.path / "images" / wanted["image_1_path"]
        assert record.original_size is not None
        sample = pairs.sample(i, random.Random(0))
        assert sample["prompt"] == wanted["prompt"]
        assert labels.prompt(record) == wanted["eval_prompt"]
        for name in ("source", "target"):
            frame = data.to_input(sample[name])
            assert frame.shape == (3, 256, 256)
            parity.check(f"{name}_{i}", frame[:, ::8, ::8], expected[f"{name}_{i}"], atol=2 / 255)
        numbers = [
            [float(x.mean()), float(x.std()), float(x.abs().max())]
            for x in (data.to_input(sample[name]).double() for name in ("source", "target"))
        ]
        parity.check(f"stats_{i}", np.array(numbers), expected[f"stats_{i}"], atol=2e-3)
        for kind in ("image", "text"):
            parity.check(f"llava_{kind}_{i}", sample[f"{kind}_features"].float(), expected[f"llava_{kind}_{i}"])
        mirrored = data.Pairs(records, cfg.model_copy(update={"flip": 1.0}), ModelConfig(), train=True)
        turned = mirrored.sample(i, random.Random(0))
        assert torch.equal(turned["source"], sample["source"].flip(1))
        assert torch.equal(turned["target"], sample["target"].flip(1))
        assert torch.equal(turned["image_features"], sample["image_features"])
        assert turned["prompt"] == sample["prompt"]
