"""LEGO's conditioning: CLIP's text, the VLLM's image features and the VLLM's text features as one row of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Condition(NamedTuple):
    """What is known before a frame is drawn; features that a model does not use are None."""

    text: Tensor
    """(B, 77, D): CLIP's last hidden states of the prompt."""
    image_features: Tensor | None = None
    """(B, 256, F): projected CLIP patches of the source frame, as the VLLM sees them."""
    text_features: Tensor | None = None
    """(B, 77, F): the VLLM's last hidden states while it wrote the description, zeros after its end."""
    image_tokens: Tensor | None = None
    """(B, 256, D): image features after their projection, in place of them."""

    def expand(self, count: int) -> Condition:
        """The conditions of one frame, (1, N, D) each, for `count` of them."""
        text, *others = (None if part is None else part.expand(count, -1, -1) for part in self)
        assert text is not None
        return Condition(text, *others)


class Conditioner(nn.Module):
    """[text | projection_img(image features) | self_attn_mix(projection_txt(text features))], (B, 77 + 256 + 77, D).

    Submodules have their official names. `self_attn_mix` sees the zero rows of short descriptions like any others, and
    so does the UNet: the reference masks nothing. Both of its layers start as copies of one initialization.
    """

    patch_weight: Tensor | None
    patch_bias: Tensor | None

    def __init__(
        self,
        feature_width: int = 5120,
        width: int = 768,
        *,
        image: bool = True,
        text: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.projection_img = nn.Linear(feature_width, width) if image else None
        self.projection_txt = nn.Linear(feature_width, width) if text else None
        self.register_buffer("patch_weight", None, persistent=False)
        self.register_buffer("patch_bias", None, persistent=False)
        self.self_attn_mix = None
        if text:
            layer = nn.TransformerEncoderLayer(
                width, 8, dim_feedforward=2048, dropout=dropout, batch_first=True, norm_first=True
            )
            self.self_attn_mix = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, condition: Condition, dropped: Tensor | None = None, null: Tensor | None = None) -> Tensor:
        """The tokens that the UNet attends to, (B, N, D).

        Rows of `dropped`, bool (B,), get what an unconditional pass gets: `null` (1, 77, D), CLIP's states of the empty
        prompt, and zeros in place of all features after their projection.

        Raises: ValueError for features that are missing or of another width.
        """
        parts = [condition.text]
        if self.projection_img is not None:
            tokens = condition.image_tokens
            dtype = self.projection_img.weight.dtype
            parts.append(self.project(condition.image_features) if tokens is None else tokens.to(dtype))
        if self.projection_txt is not None and self.self_attn_mix is not None:
            mixed = self.projection_txt(_checked(condition.text_features, self.projection_txt, "text"))
            parts.append(self.self_attn_mix(mixed))
        context = torch.cat([part.to(parts[-1].dtype) for part in parts], 1)
        if dropped is None:
            return context
        assert null is not None, "dropping conditions needs the states of the empty prompt"
        empty = self.null(null.to(context.dtype), context.shape[1])
        return torch.where(dropped[:, None, None], empty, context)

    @staticmethod
    def null(text: Tensor, tokens: int) -> Tensor:
        """The context of an unconditional pass: the empty prompt's states (1, 77, D), zeros up to `tokens`."""
        return F.pad(text, (0, 0, 0, tokens - text.shape[1]))

    def fold(self, projector: nn.Linear) -> None:
        """Take CLIP patches too: `projection_img` after the VLLM's linear projector is one map, 1024 -> 768.

        Nothing 5120 wide is then stored or computed. The map is no part of the state-dict, and it is right as long as
        the conditioning does not learn.

        Raises: ValueError when the projector's width is another one, or the model takes no image features.
        """
        if self.projection_img is None or self.projection_img.in_features != projector.out_features:
            wanted = "none" if self.projection_img is None else f"{self.projection_img.in_features} wide ones"
            raise ValueError(f"the projector gives features {projector.out_features} wide, the model takes {wanted}")
        outer, inner = (layer.weight.detach().double() for layer in (self.projection_img, projector))
        inner, bias = inner.to(outer.device), self.projection_img.bias.detach().double()
        if projector.bias is not None:
            bias = bias + outer @ projector.bias.detach().double().to(outer.device)
        self.register_buffer("patch_weight", (outer @ inner).float(), persistent=False)
        self.register_buffer("patch_bias", bias.float(), persistent=False)

    def project(self, features: Tensor | None) -> Tensor:
        """Image features or, after `fold`, patches (B, 256, F) -> (B, 256, D)."""
        assert self.projection_img is not None
        weight, own = self.patch_weight, self.projection_img.in_features
        if weight is not None and features is not None and features.shape[-1] == weight.shape[1] != own:
            return F.linear(features.to(weight.dtype), weight, self.patch_bias)
        projected: Tensor = self.projection_img(_checked(features, self.projection_img, "image"))
        return projected

    @property
    def has_clone_layers(self) -> bool:
        """Whether both layers of the mixer are equal: so in every official checkpoint, where they never learned."""
        if self.self_attn_mix is None:
            return True
        first, second = (layer.state_dict() for layer in self.self_attn_mix.layers)
        return all(torch.equal(first[name], second[name]) for name in first)


def _checked(features: Tensor | None, projection: nn.Linear, kind: str) -> Tensor:
    if features is None:
        raise ValueError(f"the model is conditioned on {kind} features and got none; model.features leaves them out")
    if features.shape[-1] != projection.in_features:
        raise ValueError(
            f"{kind} features are {features.shape[-1]} wide, the model takes {projection.in_features} "
            "(model.feature_width)"
        )
    return features.to(projection.weight.dtype)
