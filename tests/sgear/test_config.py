"""The configuration: what contradicts itself is refused; experiments say what their files say; every file builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core import config
from core.config import ConfigError
from projects.sgear.config import Config, ModelConfig
from projects.sgear.model import Sgear
from projects.sgear.model.__main__ import CLASSES
from tests.support import ROOT

PROJECT = ROOT / "projects" / "sgear"
EXPERIMENTS = {
    "ek100_SGEAR_vit": "ek100_vit",
    "ek100_SGEAR_vit_AR": "ek100_vit_recognition",
    "ek100_SGEAR_tsn": "ek100_tsn_rgb",
    "ek100_SGEAR_tsn_obj": "ek100_tsn_obj",
    "ek100_SGEAR_tsn_flow": "ek100_tsn_flow",
    "ek100_SGEAR_igm": "ek100_ircsn",
}


def experiment(name: str, *more: str) -> Config:
    return config.load(Config, None, [f"@{PROJECT}/experiments/{name}.txt", *more])


def test_the_experiments_have_the_names_of_the_seed() -> None:
    assert {path.stem for path in (PROJECT / "experiments").glob("*.txt")} == set(EXPERIMENTS)


@pytest.mark.parametrize(("name", "same"), EXPERIMENTS.items())
def test_an_experiment_says_what_its_configuration_says(name: str, same: str) -> None:
    """Only the run they are kept in differs, and what they take from other runs."""
    text = config.dump(experiment(name))
    for short, long in EXPERIMENTS.items():
        text = text.replace(f"{short}/", f"{long}/").replace(f"{short}\n", f"{long}\n")
    assert text == config.dump(config.load(Config, PROJECT / "configs" / f"{same}.yaml"))
    head = (PROJECT / "experiments" / f"{name}.txt").read_text().splitlines()[0]
    assert head == f"# python -m projects.sgear.train @projects/sgear/experiments/{name}.txt"


def test_published_numbers_of_the_released_configurations() -> None:
    """Spec, section 4.3; an accumulation of 0 is read as 1, and nothing is test-only."""
    for name in EXPERIMENTS:
        cfg = experiment(name)
        recognition, features = name.endswith("_AR"), cfg.model.input == "features"
        assert (cfg.optim.name, cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.momentum) == ("sgd", 1e-4, 1e-5, 0.9)
        assert not cfg.optim.nesterov
        assert not cfg.test_only
        assert (cfg.optim.epochs, cfg.optim.warmup) == ((20, 0) if features else (50, 20))
        assert (cfg.loader.batch_size, cfg.optim.accumulate) == ((16, 4) if features else (3, 1))
        assert (cfg.data.frames, cfg.data.rate) == ((10, 2) if recognition else (15, 1))
        assert (cfg.data.tau_a, cfg.data.tau_o) == ((-1, 5) if recognition else (1, 15))
        loss = cfg.loss
        weights = (loss.feat, loss.past_cls_action, loss.cls_action, loss.semantic, loss.distance)
        assert weights == ((1, 0, 1, 0, 1) if features else (1, 1, 1, 4, 1))
        assert cfg.model.prototypes.freeze is features
        assert cfg.model.prototype_attention
        decoder = cfg.model.decoder
        assert (decoder.width, decoder.layers, decoder.heads, cfg.model.dropout) == (2048, 6, 4, 0.2)
        assert cfg.eval.crops == (1 if features else 3)


@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_builds_its_network(path: Path) -> None:
    """On the meta device: shapes without memory."""
    cfg = config.load(Config, path)
    with torch.device("meta"):
        net = Sgear(cfg.model, cfg.data.frames, CLASSES[cfg.data.dataset])
    assert net.future_predictor.encoder.weight.shape == (cfg.model.decoder.width, cfg.model.width)
    assert hasattr(net, "vis_prototypes") == (cfg.model.kind == "sgear")
    if cfg.model.kind == "avt":
        assert cfg.loss.semantic == cfg.loss.past_semantic == cfg.loss.distance == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.vit.image=100"], "multiple of patch"),
        (["model.vit.heads=7"], "multiple of heads"),
        (["model.decoder.heads=3"], "multiple of heads"),
        (["model.width=100"], "multiple of 64"),
        (["model.labels=[]"], "at least one of action, verb, noun"),
        (["model.labels=[verb, verb]"], "none twice"),
        (["model.pretrained=x.pth"], "belong together"),
        (["model.blocks=[classifier]"], "belong together"),
        (["model.input=features"], "features go with features"),
        (["loss.semantics=1"], "did you mean loss.semantic"),
        (["optim.accumulate=0"], "optim.accumulate"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.load(Config, None, overrides)


def test_an_entry_of_init_is_a_list() -> None:
    cfg = config.load(ModelConfig, None, ["init=[[a.pth], [backbone.model, b.pth], [classifiers, head, top, c.pth]]"])
    assert cfg.init == (("a.pth",), ("backbone.model", "b.pth"), ("classifiers", "head", "top", "c.pth"))
