"""S-GEAR: what the observed frames resemble among the prototypes of all actions tells what comes next.

Diko et al., "Semantically Guided Representation Learning For Action Anticipation", ECCV 2024; built on AVT (Girdhar &
Grauman, ICCV 2021), which `kind="avt"` is. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from projects.sgear.config import ModelConfig
from projects.sgear.model.decoder import CausalDecoder
from projects.sgear.model.prototypes import PrototypeAttention, Subset, cosines, nearest, resize_width, unit
from projects.sgear.model.tca import TemporalContext
from projects.sgear.model.vit import Backbone, VisionTransformer

HEAD_DIM = 64


class Outputs(NamedTuple):
    """What the network says about a batch of clips; `label type` is action, verb or noun."""

    logits: dict[str, Tensor]
    """Label type -> (B,K): scores of the next label."""
    past_logits: dict[str, Tensor]
    """Label type -> (B,T,K): scores of the labels at the observed steps; empty when the past is not classified."""
    similarities: Tensor | None
    """(B,K'): cosines of z to the prototypes; None for AVT."""
    similarities_past: Tensor | None
    """(B,T,K'): cosines of the observed steps to the prototypes."""
    z: Tensor
    """(B,D): the predicted feature."""
    future: Tensor
    """(B,D): z blended with the prototypes that it resembles; visual prototypes are means of it."""
    past: Tensor
    """(B,T,D): the first observed feature and the predictions for the later ones."""
    feature_error: Tensor
    """(B,T-1,D): squared differences of predicted and observed features."""


class Sgear(nn.Module):
    """Frames or features of a clip that ends before an action, to scores of that action.

    `frames` is T; `classes` the number of classes by label type; `prototypes` (K,D') the start of the visual ones,
    random without; `language` (K,D') what `prototypes.values=language` mixes in; `maps` label type -> 0/1 matrix (K,V)
    from actions to verbs and nouns, kept in the checkpoint as the official one does.

    Raises: ValueError for prototypes of another number of classes.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        frames: int,
        classes: Mapping[str, int],
        *,
        prototypes: Tensor | None = None,
        language: Tensor | None = None,
        maps: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.cfg, self.frames, self.classes = cfg, frames, dict(classes)
        self.teach_past = True
        """Whether a loss looks at the observed steps; else training does not compare and classify them."""
        for label, matrix in (maps or {}).items():
            self.register_buffer(f"cls_map_{label}_action", matrix.float())
        if cfg.input == "video":
            vit = cfg.vit
            self.backbone = Backbone(
                VisionTransformer(
                    vit.image, vit.patch, vit.width, vit.layers, vit.heads, checkpoint=vit.checkpoint
                )
            )  # fmt: skip
        width = cfg.vit.width if cfg.input == "video" else cfg.feature_dim
        self.backbone_width = width
        if cfg.kind == "sgear":
            self._add_prototypes(prototypes, language)
        if cfg.kind == "sgear" and cfg.input == "video" and cfg.tca_blocks:
            blocks = (TemporalContext(width, width // HEAD_DIM, frames, cfg.merge) for _ in range(cfg.tca_blocks))
            self.TCA = nn.ModuleList(blocks)
        if width != cfg.width:
            self.mapper_to_inter = nn.Linear(width, cfg.width, bias=False)
        if cfg.transform_features:
            self.transform_features = nn.Sequential(
                nn.Linear(cfg.width, cfg.width), nn.LayerNorm(cfg.width), nn.ReLU(), nn.Linear(cfg.width, cfg.width)
            )
        decoder = cfg.decoder
        self.future_predictor = CausalDecoder(
            cfg.width, decoder.width, decoder.layers, decoder.heads, positions=decoder.positions,
            dropout=decoder.dropout,
        )  # fmt: skip
        self.dropout = nn.Dropout(cfg.dropout)
        self.classifiers = nn.ModuleDict({label: nn.Linear(cfg.width, classes[label]) for label in cfg.labels})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._freeze()

    def _add_prototypes(self, prototypes: Tensor | None, language: Tensor | None) -> None:
        cfg, actions = self.cfg, self.classes["action"]
        for name, given in (("visual", prototypes), ("language", language)):
            if given is not None and len(given) != actions:
                raise ValueError(
                    f"the {name} prototypes are of {len(given)} actions, the dataset has {actions}; make them again "
                    f"for this dataset (make_prototypes {name}), or choose another file"
                )
        start = torch.randn(actions, cfg.width) if prototypes is None else resize_width(prototypes.float(), cfg.width)
        self.vis_prototypes = nn.Parameter(start.clone())
        self.balancer = nn.Parameter(torch.tensor([0.5]))
        self.alpha = nn.Parameter(torch.tensor([0.5]))
        self.subset = Subset(actions, cfg.prototypes.share)
        if cfg.prototype_attention:
            self.ProtAttn = PrototypeAttention(cfg.width, cfg.width // HEAD_DIM, self.frames, cfg.merge)
        if cfg.prototypes.values == "language":
            if language is None:
                raise ValueError("model.prototypes.values=language needs model.prototypes.language=FILE")
            self.register_buffer("lang_prototypes", resize_width(language.float(), cfg.width))
        if cfg.temperature == "learned":
            self.log_temperature = nn.Parameter(torch.tensor([math.log(math.sqrt(self.backbone_width))]))

    def _freeze(self) -> None:
        """What the configuration asks for, and what nothing can reach."""
        cfg = self.cfg
        if cfg.input == "video" and cfg.vit.freeze:
            self.backbone.requires_grad_(False)
        if cfg.transform_features and cfg.freeze_transform:
            self.transform_features.requires_grad_(False)
        if cfg.freeze_decoder:
            self.future_predictor.requires_grad_(False)
        if cfg.kind == "sgear":
            self.vis_prototypes.requires_grad_(not cfg.prototypes.freeze)
            self.alpha.requires_grad_(cfg.prototype_attention)

    # -------------------------------------------------------------------------------------------- from input to clip

    def forward(self, x: Tensor) -> Outputs:
        """Video (B,3,T,H,W), or N crops of it (B,N,3,T,H,W) whose answers are averaged; or features (B,T,C).

        Raises: ValueError for input of another kind, length or size than the model was built for.
        """
        if self.cfg.input == "video" and x.ndim == 6:
            if self.cfg.compat:  # tokens mix over a batch, which must be the one of the released code
                return mean([self(crop) for crop in x.unbind(1)])
            crops = x.shape[1]
            return _mean_rows(self(x.flatten(0, 1)), crops)
        observed, seen = self.encode(x)
        return self.anticipate(observed, seen)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A feature for each step (B,T,D), and the one that chooses its prototypes; see `forward`."""
        video = self.cfg.input == "video"
        if x.ndim != (5 if video else 3) or (not video and x.shape[-1] != self.cfg.feature_dim):
            wanted = "video (B,3,T,H,W)" if video else f"features (B,T,{self.cfg.feature_dim})"
            raise ValueError(f"the model takes {wanted}; got {tuple(x.shape)}; check model.input and model.feature_dim")
        return self.contextualize(self.backbone(x)) if video else self.standardize(x)

    def contextualize(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of frames (B,T,N,C) to class features with (B,T,D) and without (B,T,D) context of earlier frames."""
        seen = tokens[:, :, 0]
        blocks = list(self.TCA) if hasattr(self, "TCA") else []
        observed = tokens if blocks else seen
        for number, block in enumerate(blocks):
            observed = block(observed, class_only=number == len(blocks) - 1)
        if hasattr(self, "mapper_to_inter"):
            return self.mapper_to_inter(observed), self.mapper_to_inter(seen)
        return observed, seen

    def standardize(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Stored features, at the width and (for prototype attention) the scale of the prototypes."""
        x = self.mapper_to_inter(features) if hasattr(self, "mapper_to_inter") else features
        if self.cfg.kind == "sgear" and self.cfg.prototype_attention:
            prototypes = self.vis_prototypes.detach()
            x = (x - prototypes.mean()) / prototypes.std()
        if self.cfg.transform_features:
            x = x + self.transform_features(x)
        if self.cfg.feature_mixup and self.training:
            x = x + 0.3 * torch.rand(1, device=x.device) * x.flip(0).detach()
        return x, x

    # -------------------------------------------------------------------------------------------- from clip to answer

    def anticipate(self, observed: Tensor, seen: Tensor) -> Outputs:
        """Step features (B,T,D), and those that choose prototypes (B,T,D), to the answer."""
        if self.cfg.kind == "avt":
            past, z, error = self._decode(observed)
            return self.answer(z, z, past, past, error)
        cfg, frames_in = self.cfg, self.cfg.input == "video"
        # On frames a similarity teaches both its sides, on features as published only one of them.
        both = frames_in or cfg.gradients == "both"
        prototypes = self.subset(self.vis_prototypes)
        directions = unit(prototypes)
        fixed = directions.detach()

        past_wanted = self.teach_past or not self.training
        similarities_past = None
        if cfg.prototype_attention and past_wanted:
            similarities_past = cosines(seen, directions if both else fixed)
        past, z, error = self._decode(self._mix(observed, seen, fixed))

        similarities = cosines(z if both else z.detach(), directions)
        leaning = prototypes.detach() if frames_in else prototypes
        future = self._blend(z, similarities, leaning)
        blended = past
        if past_wanted and (cfg.classify_past or similarities_past is None):
            near = cosines(past if both or cfg.prototype_attention else past.detach(), directions)
            similarities_past = near if similarities_past is None else similarities_past
            blended = self._blend(past, near, leaning) if cfg.classify_past else past
        return self.answer(z, future, past, blended, error, similarities, similarities_past)

    def ahead(self, observed: Tensor, seen: Tensor, steps: int) -> Tensor:
        """Scores (B,steps,K) of the actions at the next `steps` steps, as far apart as the observed ones.

        Each decoded step is the input of the next; the first is what `anticipate` answers where the decoder predicts
        one step (`decoder.output_len` 1). Arguments as there.
        """
        if self.cfg.kind == "sgear":
            prototypes = self.subset(self.vis_prototypes)
            directions = unit(prototypes)
            observed = self._mix(observed, seen, directions)
        z = self.future_predictor(observed, steps).steps[:, -steps:]
        if self.cfg.kind == "sgear":
            z = self._blend(z, cosines(z, directions), prototypes)
        scores: Tensor = self.classifiers["action"](self.dropout(z))
        return scores

    def _mix(self, observed: Tensor, seen: Tensor, directions: Tensor) -> Tensor:
        """Step features (B,T,D) with the prototypes nearest to the clip mixed in, where the model does so."""
        cfg = self.cfg
        if not cfg.prototype_attention:
            return observed
        language = cfg.prototypes.values == "language"
        values = self.subset(self.lang_prototypes if language else self.vis_prototypes.detach())
        tokens, _ = nearest(seen, directions, values, per=cfg.nearest, compat=cfg.compat)
        share = self.alpha.sigmoid()
        mixed: Tensor = share * observed + (1 - share) * self.ProtAttn(tokens.to(observed.dtype), observed)
        return mixed

    def _decode(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Past (B,T,D), predicted feature (B,D), squared errors (B,T-1,D)."""
        decoder = self.cfg.decoder
        steps = decoder.output_len if self.training else decoder.output_len_eval or decoder.output_len
        decoded = self.future_predictor(observed, steps)
        future = torch.cat([observed.to(decoded.steps.dtype), decoded.steps[:, observed.shape[1] - 1 :]], dim=1)
        return decoded.past, future[:, -decoder.average_last :].mean(1), decoded.error

    def _blend(self, feature: Tensor, similarities: Tensor, prototypes: Tensor) -> Tensor:
        """The feature (...,D) and the mean of the prototypes, weighted by its similarities (...,K) to them.

        Cosines over sqrt(width of the backbone) lie so close together that this mean is nearly that of all prototypes,
        as published; a learned temperature can sharpen it.
        """
        if self.cfg.temperature == "learned":
            weights = (similarities / self.log_temperature.exp()).softmax(-1)
        else:
            weights = (similarities / math.sqrt(self.backbone_width)).softmax(-1)
        share = self.balancer.sigmoid()
        return share * feature + (1 - share) * (weights @ prototypes)

    def answer(
        self, z: Tensor, future: Tensor, past: Tensor, blended: Tensor, error: Tensor,
        similarities: Tensor | None = None, similarities_past: Tensor | None = None,
    ) -> Outputs:  # fmt: skip
        """Classify the prediction `future` (B,D) and the observed steps `blended` (B,T,D)."""
        dropped = self.dropout(future)
        logits = {label: layer(dropped) for label, layer in self.classifiers.items()}
        past_logits = {}
        if self.cfg.classify_past and (self.teach_past or not self.training):
            dropped = self.dropout(blended)
            past_logits = {label: layer(dropped) for label, layer in self.classifiers.items()}
        return Outputs(logits, past_logits, similarities, similarities_past, z, future, past, error)


def _mean_rows(outputs: Outputs, crops: int) -> Outputs:
    """Every tensor (B·N,...) as the mean over N neighbors, (B,...)."""
    return _each(lambda rows: rows[0].unflatten(0, (-1, crops)).mean(1), [outputs])


def mean(outputs: list[Outputs]) -> Outputs:
    """The mean of several answers to the same clips."""
    return _each(lambda rows: torch.stack(rows).mean(0), outputs)


def _each(combine: Callable[[list[Tensor]], Tensor], outputs: list[Outputs]) -> Outputs:
    """One answer, whose every tensor is made of the same tensor of several answers."""

    def apply(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: apply([value[key] for value in values]) for key in values[0]}
        return None if values[0] is None else combine(values)

    return Outputs(*(apply(list(values)) for values in zip(*outputs, strict=True)))
