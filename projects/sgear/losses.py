"""What is minimized: the next action, the past ones, the decoder's predictions, and the geometry of the prototypes.

Names in the released code: semantic is `global_simContrast`, past_semantic `past_target_global_simContrast`, distance
`target_distance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core import dist
from projects.sgear.config import LossConfig
from projects.sgear.model import Outputs, Sgear

Terms = dict[str, tuple[Tensor, Tensor]]
"""Name -> values, and which of them count (bool, same shape)."""


def cross_entropy(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Of logits (...,K) and labels (...): the same shape as the labels, 0 where a label is -1."""
    flat = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), weight, ignore_index=-1, reduction="none", label_smoothing=smoothing
    )
    return flat.view(labels.shape)


def semantic(similarities: Tensor, rows: Tensor) -> Tensor:
    """How far two profiles of cosines (...,K) are apart, each divided by the sum of its absolute values: (...).

    The paper compares the profiles as they are; the released code normalizes them first.
    """
    return (F.normalize(similarities.float(), p=1, dim=-1) - F.normalize(rows.float(), p=1, dim=-1)).abs().sum(-1)


def distance(z: Tensor, prototypes: Tensor) -> Tensor:
    """Squared distance of vectors (...,D) at length 1, 2 - 2 cos; the prototypes get no gradient."""
    away = F.normalize(z.float(), dim=-1) - F.normalize(prototypes.detach().float(), dim=-1)
    return away.square().sum(-1)


def accuracy(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Percent of labels (B,) among the `k` best of (B,K); unlabeled samples count as wrong (official behavior)."""
    best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    return 100 * (best == labels[:, None]).any(-1).float().mean()


class Criterion:
    """Weighs the terms of a batch; `criterion(outputs, batch)["total"]` is what a step minimizes.

    `similarities` (K,K) are the language's cosines, of which a label picks its row; `parents` maps verb and noun to the
    class of each action, -1 without, (K,), and `counts` label types to samples per class, for `balance`.

    With `mask` a term is the mean over what is labeled, over all processes together, so that any number of them
    minimizes the same. Without it, as released: unlabeled entries count in every mean, and feel the semantic loss of
    class 1 and the distance to the last prototype.

    Raises: ValueError when a term lacks what it needs.
    """

    def __init__(
        self,
        cfg: LossConfig,
        net: Sgear,
        *,
        similarities: Tensor | None = None,
        parents: Mapping[str, Tensor] | None = None,
        counts: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.cfg, self.net = cfg, net
        device = next(net.parameters()).device
        self.parents = {name: ids.to(device) for name, ids in (parents or {}).items()}
        self.weights = {name: _inverse_frequency(n).to(device) for name, n in (counts or {}).items() if cfg.balance}
        self.rows: Tensor | None = None
        wants_rows = cfg.semantic or cfg.past_semantic
        if net.cfg.kind == "avt":
            if wants_rows or cfg.distance:
                raise ValueError(
                    "AVT has no prototypes: set loss.semantic, loss.past_semantic and loss.distance to 0, or "
                    "model.kind=sgear"
                )
        elif wants_rows:
            if similarities is None:
                raise ValueError(
                    "loss.semantic and loss.past_semantic compare with language prototypes: make them "
                    "(make_prototypes language) and name them in model.prototypes.language, or set both weights to 0"
                )
            if len(similarities) != len(net.vis_prototypes):
                raise ValueError(
                    f"the language similarities are of {len(similarities)} actions, the model has "
                    f"{len(net.vis_prototypes)}; make the prototypes of this dataset"
                )
            table = similarities.to(device)[:, net.subset.ids]
            self.rows = F.normalize(table.float(), p=1, dim=-1)  # a second time it changes nothing
        classifies = any(getattr(cfg, f"past_cls_{label}") for label in net.cfg.labels)
        if classifies and not net.cfg.classify_past:
            raise ValueError("a past_cls term needs model.classify_past=true")
        self.looks_back = bool(classifies or cfg.past_semantic)
        """Whether a term is about the observed steps."""

    def __call__(self, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Every term with a weight above 0, unweighted, and `total`: scalars on the device."""
        share = batch.get("mixed")
        means = self._means(self.terms(outputs, batch))
        if share is not None:
            others = self._means(self.terms(outputs, _mirrored(batch)))
            means = {name: share * mean + (1 - share) * others[name] for name, mean in means.items()}
        weighted = [getattr(self.cfg, name) * mean for name, mean in means.items()]
        if not weighted:
            raise ValueError("all weights of the loss section are 0: there is nothing to minimize")
        return {"total": torch.stack(weighted).sum(), **means}

    def terms(self, outputs: Outputs, batch: Mapping[str, Any]) -> Terms:
        """The unreduced terms with a weight above 0."""
        cfg, label, past = self.cfg, batch["label"], batch.get("past_label")
        found: Terms = {}

        def add(name: str, values: Tensor, counts: Tensor | None) -> None:
            everything = torch.ones_like(values, dtype=torch.bool)
            found[name] = (values, everything if counts is None or not cfg.mask else counts)

        for kind, logits in outputs.logits.items():
            own = label if kind == "action" else batch[kind]
            weight, smoothing = self.weights.get(kind), cfg.label_smoothing
            if getattr(cfg, f"cls_{kind}"):
                add(f"cls_{kind}", cross_entropy(logits, own, weight=weight, smoothing=smoothing), own >= 0)
            if getattr(cfg, f"past_cls_{kind}") and past is not None and kind in outputs.past_logits:
                seen = self._labels(kind, past)
                values = cross_entropy(outputs.past_logits[kind], seen, weight=weight, smoothing=smoothing)
                add(f"past_cls_{kind}", values, seen >= 0)
        if cfg.feat:
            add("feat", outputs.feature_error, None)
        if self.rows is not None and cfg.semantic and outputs.similarities is not None:
            add("semantic", semantic(outputs.similarities, self.rows[label.abs()]), label >= 0)
        if self.rows is not None and cfg.past_semantic and past is not None and outputs.similarities_past is not None:
            values = semantic(outputs.similarities_past, self.rows[past.abs()])
            add("past_semantic", values * (past >= 0), past >= 0)
        if cfg.distance and outputs.similarities is not None:
            known = (label >= 0) & (self.net.subset.row[label] >= 0)
            add("distance", distance(outputs.z, self.net.vis_prototypes[label]), known)
        return found

    def _labels(self, kind: str, past: Tensor) -> Tensor:
        """Past actions as labels of `kind`, -1 where unknown."""
        if kind == "action":
            return past
        return torch.where(past >= 0, self.parents[kind][past.clamp(min=0)], -1)

    def _means(self, terms: Terms) -> dict[str, Tensor]:
        """Sums over the counts of all processes, scaled so that the mean over processes is the mean over entries."""
        counts = torch.stack([keep.sum() for _, keep in terms.values()]).float() if terms else torch.zeros(0)
        counts = dist.total(counts) / dist.world().size
        sums = (torch.where(keep, values, 0).sum() for values, keep in terms.values())
        return {name: value / count.clamp(min=1e-9) for name, value, count in zip(terms, sums, counts, strict=True)}


def freeze_idle(net: Sgear, criterion: Criterion, example: Tensor) -> str:
    """Freeze what no term reaches (a classifier without its loss), and say so; "" when everything learns.

    Otherwise weight decay would shrink it, and several processes would wait for its gradient. `example` is one input.
    """
    before = net.training
    with torch.enable_grad():
        outputs = net.eval()(example)
        label = torch.zeros(len(outputs.z), dtype=torch.long, device=example.device)
        past = label[:, None].expand(-1, outputs.past.shape[1])
        total = criterion(outputs, {"label": label, "verb": label, "noun": label, "past_label": past})["total"]
    net.train(before)
    reached, visited, stack = set(), set(), [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            reached.add(id(leaf))
        stack += [below for below, _ in node.next_functions]
    idle = [(name, p) for name, p in net.named_parameters() if p.requires_grad and id(p) not in reached]
    for _, parameter in idle:
        parameter.requires_grad_(False)
    parts = list(dict.fromkeys(name.split(".")[0] for name, _ in idle))
    return f"no loss reaches {', '.join(parts)}: left as they are\n" if idle else ""


def _mirrored(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with the labels of the clips that were mixed in."""
    names = ("label", "verb", "noun", "past_label")
    return {name: value.flip(0) if name in names else value for name, value in batch.items()}


def _inverse_frequency(counts: Tensor) -> Tensor:
    """Class weights 1 / (share of the samples + 1e-5), as released; 1 at the mean class."""
    weights = 1 / (counts / counts.sum() + 1e-5)
    return weights / weights.mean()
