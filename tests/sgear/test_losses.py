"""The losses: formulas, masks, mixup, classes, and that any number of processes minimizes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from projects.sgear import losses, mixup
from projects.sgear.config import LossConfig
from projects.sgear.losses import Criterion
from projects.sgear.model import Outputs, Sgear
from tests.sgear.test_model import CLASSES, FRAMES, clip, tiny

LABEL = torch.tensor([3, -1, 11])
PAST = torch.tensor([[0, -1, 2, 2], [-1, -1, -1, -1], [5, 5, -1, 7]])
TABLE = (
    F.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)))
    @ F.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(1))).T
)
PARENTS = {"verb": torch.arange(12) % 4, "noun": torch.arange(12) % 5}
EVERY = {name: 1.0 for name in LossConfig.model_fields if LossConfig.model_fields[name].annotation is float}
EVERY |= {"label_smoothing": 0.0, "mixup": 0.0}


def batch(label: Tensor = LABEL, past: Tensor = PAST) -> dict[str, Tensor]:
    parents = {name: torch.where(label >= 0, ids[label.clamp(min=0)], -1) for name, ids in PARENTS.items()}
    return {"label": label, "past_label": past, **parents}


def ready(*options: str, **wishes: Any) -> tuple[Sgear, Outputs, Criterion]:
    net = tiny("input=features", "dropout=0", "decoder.dropout=0", *options)
    cfg = LossConfig(**{**EVERY, **wishes})
    return net, net(clip("features")), Criterion(cfg, net, similarities=TABLE, parents=PARENTS)


def test_terms_are_means_over_what_is_labeled() -> None:
    net, outputs, criterion = ready("labels=[action, verb, noun]")
    found = criterion(outputs, batch())
    known, seen = LABEL >= 0, PAST >= 0
    expected = {
        "cls_action": F.cross_entropy(outputs.logits["action"][known], LABEL[known]),
        "cls_verb": F.cross_entropy(outputs.logits["verb"][known], (LABEL % 4)[known]),
        "cls_noun": F.cross_entropy(outputs.logits["noun"][known], (LABEL % 5)[known]),
        "past_cls_action": F.cross_entropy(outputs.past_logits["action"][seen], PAST[seen]),
        "past_cls_verb": F.cross_entropy(outputs.past_logits["verb"][seen], (PAST % 4)[seen]),
        "past_cls_noun": F.cross_entropy(outputs.past_logits["noun"][seen], (PAST % 5)[seen]),
        "feat": outputs.feature_error.mean(),
        "semantic": losses.semantic(outputs.similarities, TABLE[LABEL])[known].mean(),
        "past_semantic": losses.semantic(outputs.similarities_past, TABLE[PAST])[seen].mean(),
        "distance": (2 - 2 * F.cosine_similarity(outputs.z, net.vis_prototypes[LABEL]))[known].mean(),
    }
    assert found.keys() == {"total", *expected}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    torch.testing.assert_close(found["total"], sum(expected.values()))


def test_as_released_unlabeled_entries_count_and_feel() -> None:
    net, outputs, criterion = ready(mask=False)
    found = criterion(outputs, batch())
    free = criterion.terms(outputs, batch())
    assert all(keep.all() for _, keep in free.values())
    torch.testing.assert_close(found["cls_action"], F.cross_entropy(
        outputs.logits["action"], LABEL, ignore_index=-1, reduction="sum") / 3)  # fmt: skip
    torch.testing.assert_close(
        found["semantic"], losses.semantic(outputs.similarities, TABLE[LABEL.abs()]).mean(), msg="class 1 for -1"
    )
    torch.testing.assert_close(
        found["distance"], losses.distance(outputs.z, net.vis_prototypes[LABEL]).mean(), msg="the last for -1"
    )


def test_a_batch_without_labels_still_trains_the_decoder() -> None:
    net, outputs, criterion = ready()
    nothing = batch(torch.full((3,), -1), torch.full((3, FRAMES), -1))
    found = criterion(outputs, nothing)
    assert all(found[name] == 0 for name in found if name not in ("feat", "total"))
    found["total"].backward()
    assert net.future_predictor.encoder.weight.grad is not None
    assert net.classifiers["action"].weight.grad.abs().sum() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_weights_and_a_weight_of_zero() -> None:
    chosen = dict.fromkeys(EVERY, 0.0) | {"semantic": 4.0, "feat": 0.5}
    _, outputs, criterion = ready(**chosen)
    found = criterion(outputs, batch())
    assert found.keys() == {"total", "semantic", "feat"}
    torch.testing.assert_close(found["total"], 4 * found["semantic"] + 0.5 * found["feat"])
    with pytest.raises(ValueError, match="nothing to minimize"):
        ready(**dict.fromkeys(EVERY, 0.0))[2](outputs, batch())


def test_two_halves_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the counts of all processes, the mean of their totals is the total of the whole batch."""
    _, outputs, criterion = ready("labels=[action, verb, noun]")
    whole = criterion(outputs, batch())
    halves = []
    rows = [slice(0, 1), slice(1, 3)]
    counts = []
    for pass_ in ("count", "mean"):
        for part in rows:
            some = Outputs(*(_rows(value, part) for value in outputs))
            labels = {name: value[part] for name, value in batch().items()}
            if pass_ == "count":
                counts.append(torch.stack([keep.sum() for _, keep in criterion.terms(some, labels).values()]).float())
            else:
                monkeypatch.setattr(losses.dist, "total", lambda mine: sum(counts))
                monkeypatch.setattr(losses.dist, "world", lambda: type("World", (), {"size": 2}))
                halves.append(criterion(some, labels))
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value, msg=name)


def _rows(value: Any, part: slice) -> Any:
    if isinstance(value, dict):
        return {key: item[part] for key, item in value.items()}
    return None if value is None else value[part]


def test_mixed_clips_are_compared_with_both_labels() -> None:
    _, outputs, criterion = ready()
    mixed, plain = criterion(outputs, {**batch(), "mixed": 0.3}), criterion(outputs, batch())
    other = criterion(outputs, batch(LABEL.flip(0), PAST.flip(0)))
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.3 * plain[name] + 0.7 * other[name], msg=name)


def test_a_batch_is_mixed_with_its_mirror_image() -> None:
    x = torch.randn(3, 4, 5)
    found = mixup.mix_batch({"features": x, "label": LABEL}, "features", 0.8)
    share = found["mixed"]
    assert 0 <= share <= 1
    torch.testing.assert_close(found["features"], share * x + (1 - share) * x.flip(0))
    assert torch.equal(found["label"], LABEL)
    with pytest.raises(ValueError, match=r"labels from -1 to 11"):
        mixup.one_hot(LABEL, 12)


def test_rare_classes_can_weigh_more() -> None:
    net, outputs, _ = ready()
    counts = torch.arange(12.0)
    criterion = Criterion(LossConfig(balance=True), net, similarities=TABLE, counts={"action": counts})
    weight = criterion.weights["action"]
    assert weight.mean() == pytest.approx(1)
    assert torch.equal(weight.argsort(descending=True), torch.arange(12))
    terms = criterion.terms(outputs, batch())["cls_action"][0]
    plain = losses.cross_entropy(outputs.logits["action"], LABEL)
    torch.testing.assert_close(terms, plain * torch.where(LABEL >= 0, weight[LABEL], 0))


def test_actions_without_a_prototype_feel_no_distance() -> None:
    net, outputs, criterion = ready("prototypes.share=0.5")
    row = net.subset.row[LABEL]
    assert (row[LABEL >= 0] < 0).any() or (row[LABEL >= 0] >= 0).any()
    keep = criterion.terms(outputs, batch())["distance"][1]
    assert torch.equal(keep, (LABEL >= 0) & (row >= 0))
    assert criterion.rows is not None
    assert criterion.rows.shape == (12, 6)


def test_accuracy_counts_unlabeled_samples_as_wrong() -> None:
    logits = torch.eye(4)[[0, 1, 2]]
    assert losses.accuracy(logits, torch.tensor([0, 3, -1]), 1) == pytest.approx(100 / 3)
    assert losses.accuracy(logits, torch.tensor([0, 3, -1]), 9) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("options", "wishes", "given", "words"),
    [
        ([], {}, {}, "make_prototypes language"),
        ([], {}, {"similarities": torch.eye(11)}, "of 11 actions, the model has 12"),
        (["kind=avt"], {}, {"similarities": TABLE}, "AVT has no prototypes"),
        (["classify_past=false"], {}, {"similarities": TABLE}, "model.classify_past"),
    ],
)
def test_what_a_term_lacks_is_said(options: list[str], wishes: Any, given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Criterion(LossConfig(**wishes), tiny("input=features", *options), **given)


def test_what_no_term_reaches_is_frozen_and_named() -> None:
    net = tiny("input=features")
    chosen = dict.fromkeys(EVERY, 0.0) | {"feat": 1.0}
    criterion = Criterion(LossConfig(**chosen), net)
    said = losses.freeze_idle(net, criterion, clip("features", 1))
    assert said == "no loss reaches vis_prototypes, balancer, classifiers: left as they are\n"
    names = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert names == {"vis_prototypes", "balancer", "classifiers"}
    net = tiny("input=features")
    state = torch.get_rng_state()
    assert losses.freeze_idle(net, Criterion(LossConfig(), net, similarities=TABLE), clip("features", 1)) == ""
    assert torch.equal(torch.get_rng_state(), state), "training goes on from the same random state"
    assert net.training


def test_classes_of_the_tiny_network() -> None:
    assert set(CLASSES) == {"action", "verb", "noun"}
