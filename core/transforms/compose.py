"""Steps in a row over clips of any sizes, to one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from core.transforms.clip import Step, ToFloat


class Compose:
    """Runs steps over clips and stacks the results: one float batch, whatever came in.

    Raises:
        ValueError: for steps in an order that has no meaning (color after `Normalize`).
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        names = [type(step).__name__ for step in self.steps]
        first = names.index("Normalize") if "Normalize" in names else len(names)
        late = [name for name, step in zip(names[first:], self.steps[first:], strict=True) if step.before_normalize]
        if late:
            raise ValueError(f"{', '.join(late)} works on values 0..1: put it before Normalize; got {names}")
        self.random = any(step.random for step in self.steps)

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.steps))}])"

    def __call__(self, video: Tensor | Sequence[Tensor], rngs: Random | Sequence[Random] | None = None) -> Tensor:
        """A clip, a list of clips (sizes may differ) or a batch (B,...) to float (B,3,T,H,W); one clip makes B = 1.

        After `ThreeCrops`, or for clips with views in front, (B,N,3,T,H,W). A clip still raw at the end becomes float
        in 0..1. `rngs` holds one generator per clip; it may be left out when no step draws.

        Raises:
            ValueError: when clips and generators differ in number, no generator came for a random step, a clip is
                neither raw nor float, or the results have unequal shapes.
        """
        batch: Tensor | list[Tensor] = video if isinstance(video, Tensor) else list(video)
        if isinstance(batch, Tensor) and batch.ndim == 4:
            batch = batch[None]
        draws = self._generators(rngs, len(batch))
        given = {clip.untyped_storage().data_ptr() for clip in batch}

        def run(step: Step, clip: Tensor, rng: Random) -> Tensor:
            ours = clip.untyped_storage().data_ptr() not in given
            return step.consume(clip, rng) if ours else step(clip, rng)

        for step in (*self.steps, ToFloat()):
            if isinstance(batch, list) and not step.random:
                batch = _stack_equal(batch)
            if step.random or isinstance(batch, list):
                batch = [run(step, clip, rng) for clip, rng in zip(batch, draws, strict=True)]
            else:
                batch = run(step, batch, draws[0])
        if isinstance(batch, list):
            batch = _stack_equal(batch)
        if isinstance(batch, list):
            shapes = ", ".join(str(tuple(clip.shape)) for clip in batch)
            raise ValueError(
                f"clips must leave the last step with equal shapes to make a batch; got {shapes}; add a crop"
            )
        return batch.contiguous()

    def _generators(self, rngs: Random | Sequence[Random] | None, count: int) -> list[Random]:
        if count == 0:
            raise ValueError("Compose takes at least one clip; got none")
        if rngs is None:
            if self.random:
                raise ValueError(f"{self!r} draws at random: pass one random.Random per clip as rngs")
            return [Random(0)] * count  # never drawn from
        draws = [rngs] if isinstance(rngs, Random) else list(rngs)
        if len(draws) != count:
            raise ValueError(f"Compose takes one random.Random per clip; got {len(draws)} for {count} clips")
        return draws


def _stack_equal(clips: list[Tensor]) -> Tensor | list[Tensor]:
    if len({(clip.shape, clip.dtype, clip.device) for clip in clips}) > 1:
        return clips
    return clips[0][None] if len(clips) == 1 else torch.stack(clips)


@dataclass(frozen=True)
class OnKey:
    """Applies a transform to one entry of a batch and passes the rest through: what `core.data.Loader` calls."""

    key: str
    transform: Compose

    def __call__(self, batch: Mapping[str, Any], rngs: Sequence[Random] | None = None) -> dict[str, Any]:
        """A copy of the batch with `batch[key]` transformed.

        Raises:
            ValueError: when the batch has no such key.
        """
        if self.key not in batch:
            raise ValueError(f"the batch has no {self.key!r} to transform; it has {sorted(batch)}")
        return {**batch, self.key: self.transform(batch[self.key], rngs)}
