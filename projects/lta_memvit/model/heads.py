"""What turns features into answers: linear layers behind one dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Outputs(NamedTuple):
    """Logits of verbs and nouns: (B, V) and (B, K) of one segment, or (B, Z, V) and (B, Z, K) of Z future actions."""

    verb: Tensor
    noun: Tensor


class Projection(nn.Module):
    """One linear layer: features (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: see the class."""
        projected: Tensor = self.projection(self.dropout(features))
        return projected


class Projections(nn.Module):
    """Several linear layers on the same feature: features (..., inputs) -> one (..., outputs[i]) of each."""

    def __init__(self, inputs: int, outputs: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projections = nn.ModuleList([nn.Linear(inputs, each) for each in outputs])

    def forward(self, features: Tensor) -> list[Tensor]:
        """Shapes: see the class."""
        features = self.dropout(features)
        return [projection(features) for projection in self.projections]
