"""How long a sequence has to be: padded exactly as far as the answer of the official code can tell.

A padded step is not neutral there. It leaves a convolution as zero, but the norm after it makes its bias of that zero,
and the next convolution reads it at the last real step. So the answer depends on whether there *is* a padded step
within the reach of a kernel, at every level of the pyramid, and on nothing further: one such step gives the numbers of
any longer padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Padding:
    """The rule of one network: its strides by level, windows by level, longest training crop, and reach of kernels."""

    max_length: int
    strides: tuple[int, ...]
    windows: tuple[int, ...]
    reach: int

    def reference(self, length: int) -> int:
        """The length to which the official code pads a video of so many steps.

        That is `max_length`, or for a longer video the next multiple of what its windows need.
        """
        if length <= self.max_length:
            return _ceil(self.max_length, self.strides[-1])
        unit = max(s * 2 * (w // 2) if w > 1 else s for s, w in zip(self.strides, self.windows, strict=True))
        return _ceil(_ceil(length, unit), self.strides[-1])

    def choose(self, lengths: Sequence[int]) -> int:
        """The shortest length that gives videos of these lengths, in one batch, the answer of the reference length.

        Raises:
            ValueError: for videos that have different reference lengths; see `compatible`.
        """
        references = {self.reference(length) for length in lengths}
        if len(references) > 1:
            raise ValueError(
                f"videos of {min(lengths)} and {max(lengths)} features cannot share a batch: padding counts, and the "
                f"official code pads them to {min(references)} and {max(references)}; group them by Padding.compatible"
            )
        whole = references.pop()
        needed = 0
        for length in lengths:
            for stride in self.strides:
                steps = -(-length // stride)
                if whole // stride < steps + self.reach:
                    return whole  # no spare step there in the official code either
                needed = max(needed, (steps + self.reach) * stride)
        return min(_ceil(needed, self.strides[-1]), whole)

    def compatible(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of the videos, in groups that may share a batch."""
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            groups.setdefault(self.reference(length), []).append(index)
        return list(groups.values())


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
