"""The habits of the official dataset readers, by the name of the dataset."""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """The habits of one official reader; those of `own` are the careful ones."""

    title: str
    tiou: tuple[float, ...]
    """Overlaps at which the benchmark reports mAP."""
    classes: str = "equal"
    """How many label names there may be: `equal` to data.classes, `most`, or `proposals` (equal, or classes=1)."""
    cleans: bool = False
    """Repeated and empty actions are left out of training; actions beyond the features are cut."""
    points: bool = False
    """Actions without length count in training crops."""


LAYOUTS: dict[str, Layout] = {
    "thumos": Layout("thumos-14", (0.3, 0.4, 0.5, 0.6, 0.7)),
    "anet": Layout("ActivityNet 1.3", tuple(0.5 + 0.05 * i for i in range(10)), "proposals", cleans=True),
    "epic": Layout("epic-kitchens-100", (0.1, 0.2, 0.3, 0.4, 0.5), "most"),
    "ego4d": Layout("ego4d", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "own": Layout("own", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "most", cleans=True, points=True),
}
