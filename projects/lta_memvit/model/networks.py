"""The networks of the project: one recognizes a segment, one forecasts what follows, one says the same again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from projects.lta_memvit.model.heads import Outputs, Projections
from projects.lta_memvit.model.memory import ClipMemory, Memory
from projects.lta_memvit.model.memvit import MeMViT
from projects.lta_memvit.model.mvit import MViT
from projects.lta_memvit.model.slowfast import SlowFast, pack


class Given(nn.Module):
    """No backbone: features (B, N, D) come precomputed, and only the head is left of it."""

    def __init__(self, width: int, head: nn.Module) -> None:
        super().__init__()
        self.width, self.head = width, head

    def features(self, video: Tensor) -> Tensor:
        """Raises: ValueError, always."""
        raise ValueError("model.backbone=none forecasts from precomputed features; clips need a backbone")


Backbone = SlowFast | MViT | MeMViT | Given


class Place(NamedTuple):
    """Where a sample belongs: its stream, and the place in it of its newest segment."""

    stream: Hashable
    position: int


class Network(nn.Module):
    """A backbone that encodes segments; what follows it makes `Outputs` of their features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def width(self) -> int:
        """Channels of what `encode` gives."""
        return self.backbone.width

    @property
    def memory(self) -> Memory | None:
        """What the backbone remembers of earlier segments."""
        return self.backbone.memory if isinstance(self.backbone, MeMViT) else None

    def forget(self) -> None:
        """Forget all streams: before an epoch, an evaluation or another video, and when the weights have changed."""
        if self.memory is not None:
            self.memory.clear()

    def forward(
        self, video: Tensor | None = None, *, streams: Sequence[Place] | None = None, features: Tensor | None = None
    ) -> Outputs:
        """Logits of clips, as `encode` takes them, or of features that `encode` gave.

        Raises: ValueError for neither or both of them, and as `encode`.
        """
        if (video is None) == (features is None):
            raise ValueError("a network is called with clips or with their features, one of both")
        return self.conclude(self.encode(video, streams) if video is not None else features)

    def conclude(self, features: Tensor | None) -> Outputs:
        """Logits of features."""
        raise NotImplementedError

    def encode(self, video: Tensor, streams: Sequence[Place] | None = None) -> Tensor:
        """Features before the backbone's head: video (B, 3, T, H, W) -> (B, D), or (B, N, 3, T, H, W) -> (B, N, D).

        The video holds normalized frames of the fast pathway, N segments oldest first; the slow pathway is made here.
        `streams` says where each sample belongs, for a backbone with memory; without it every segment stands alone.

        Raises: ValueError for another number of dimensions, and as the backbone.
        """
        if video.ndim not in (5, 6):
            raise ValueError(f"video is (B, 3, T, H, W) or (B, N, 3, T, H, W), not {tuple(video.shape)}")
        inputs = video if video.ndim == 6 else video.unsqueeze(1)
        if isinstance(self.backbone, SlowFast):
            features = self._both_pathways(self.backbone, inputs)
        elif self.memory is None or streams is None:
            features = self.backbone.features(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        else:
            features = self._in_order(self.memory, inputs, streams)
        return features if video.ndim == 6 else features[:, 0]

    @staticmethod
    def _both_pathways(backbone: SlowFast, video: Tensor) -> Tensor:
        """(B, N, 3, T, H, W) -> (B, N, D); batch statistics are those of one input at a time, as in the original."""
        slow, fast = pack(video)
        if backbone.s1.pathway0_stem.bn.training:
            pairs = zip(slow.unbind(1), fast.unbind(1), strict=True)
            return torch.stack([backbone.features(pair) for pair in pairs], 1)
        features: Tensor = backbone.features((slow.flatten(0, 1), fast.flatten(0, 1))).unflatten(0, video.shape[:2])
        return features

    def _in_order(self, memory: Memory, video: Tensor, places: Sequence[Place]) -> Tensor:
        """(B, N, 3, T, H, W) -> (B, N, D): one input after the other, oldest first, each remembering those before.

        Of a stream whose windows come one after the other only the newest segment is computed: the features of the
        others are still there, without gradient, as all that is remembered. A stream that goes back begins anew.
        """
        assert isinstance(self.backbone, MeMViT)
        if not isinstance(memory, ClipMemory):
            keys = [place.stream for place in places]
            return torch.stack([self.backbone.features(clips, keys) for clips in video.unbind(1)], 1)
        inputs = video.shape[1]
        known = [memory.window(place.stream, place.position, inputs) for place in places]
        for n in range(inputs):
            numbers = [place.position - inputs + 1 + n for place in places]
            todo = [b for b, number in enumerate(numbers) if number not in known[b]]
            if todo:
                clips = torch.stack([video[b, n] for b in todo])
                found = self.backbone.features(clips, [places[b].stream for b in todo])
                for b, feature in zip(todo, found, strict=True):
                    known[b][numbers[b]] = feature
        for place, window in zip(places, known, strict=True):
            memory.keep_window(place.stream, window)
        return torch.stack([torch.stack([window[i] for i in sorted(window)]) for window in known])


class Recognizer(Network):
    """Verb and noun of one segment: video (B, 3, T, H, W) -> logits (B, V) and (B, K).

    The backbone's head holds one linear layer for each. With `softmax_head` training sees probabilities where logits
    belong, as the original's MViT does.
    """

    def __init__(self, backbone: Backbone, *, softmax_head: bool = False) -> None:
        super().__init__(backbone)
        self.softmax_head = softmax_head

    def conclude(self, features: Tensor | None) -> Outputs:
        """Features (..., D) -> logits (..., V) and (..., K)."""
        verb, noun = self.backbone.head(features)
        if self.softmax_head and self.training:
            verb, noun = verb.softmax(-1), noun.softmax(-1)
        return Outputs(verb, noun)


class Repeat(Recognizer):
    """The baseline that expects no change: the recognized action of the first input, Z times.

    Video (B, N, 3, T, H, W) -> logits (B, Z, V) and (B, Z, K).
    """

    def __init__(self, backbone: Backbone, future: int) -> None:
        super().__init__(backbone)
        self.future = future

    def conclude(self, features: Tensor | None) -> Outputs:
        """Features (B, N, D) -> logits (B, Z, V) and (B, Z, K)."""
        assert features is not None
        recognized = super().conclude(features[:, 0])
        return Outputs(*(logits.unsqueeze(1).expand(-1, self.future, -1) for logits in recognized))


class Forecaster(Network):
    """The next Z actions after N segments: video (B, N, 3, T, H, W) -> logits (B, Z, V) and (B, Z, K).

    Each segment's feature goes through the backbone's head, an aggregator joins them, and every future position has a
    linear layer of its own for all classes.
    """

    def __init__(self, backbone: Backbone, aggregator: nn.Module, decoder: Projections, verbs: int) -> None:
        super().__init__(backbone)
        self.clip_aggregator = aggregator
        self.decoder = nn.Sequential(OrderedDict(head=decoder))
        self.verbs = verbs

    def conclude(self, features: Tensor | None) -> Outputs:
        """Features (B, N, D) -> logits (B, Z, V) and (B, Z, K)."""
        joined = self.clip_aggregator(self.backbone.head(features))
        scores = torch.stack(self.decoder(joined), 1)
        return Outputs(*scores.split([self.verbs, scores.shape[-1] - self.verbs], -1))
