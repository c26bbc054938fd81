"""Golden cases of networks: their configuration, weights and inputs as ../golden/actionformer/README.md says."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import config
from projects.actionformer import convert, official
from projects.actionformer.config import Config
from projects.actionformer.model import Detector
from tests.support import Case, fill


@functools.lru_cache
def base(name: str) -> dict[str, Any]:
    """An official configuration, from ours of the same name."""
    return official.export_config(config.load(Config, convert.CONFIGS / name))


def tree(case: Case) -> dict[str, Any]:
    """The case's configuration in official spelling: overrides are merged section by section."""
    about = case.json("case.json")
    merged = official.read(base(about["config"]))
    for section, value in about["overrides"].items():
        merged[section] = {**merged.get(section, {}), **value} if isinstance(value, dict) else value
    if about.get("head_empty_cls"):
        merged["train_cfg"]["head_empty_cls"] = about["head_empty_cls"]
    return merged


def config_of(case: Case) -> Config:
    """The case's configuration as ours."""
    return official.config_from(tree(case))


def network(case: Case) -> Detector:
    """The case's network with its weights, in evaluation mode.

    What the case leaves to the constructor, ours has computed: constants "init", and the bias of empty classes.
    """
    net = convert.build(config_of(case))
    about = case.json("case.json")
    state = case.weights(about["salt"])
    own = {f"module.{key}": value for key, value in net.state_dict().items()}
    for key, value in case.json("constants.json").items():
        state[key] = own.get(key, state[key]) if value == "init" else torch.full_like(state[key], value)
    if about.get("head_empty_cls"):
        state["module.cls_head.cls_head.conv.bias"] = own["module.cls_head.cls_head.conv.bias"]
    report = convert.load(net, state)
    assert not report.missing
    assert not report.unexpected
    return net.eval()


def video(case: Case, name: str, length: int) -> Tensor:
    """The features (C,T) of a video."""
    about = case.json("case.json")
    rows = 10 * fill.array(f"{name}.bias", (length, about["input_channels"]), "float32", about["salt"])
    return torch.from_numpy(np.ascontiguousarray(rows.T))
