"""Data made from nothing that a small model can learn: clips, features, pictures and sentences, all from one `rng`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.video import write

Array = NDArray[np.float32]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 58, 52),
    "orange": (232, 140, 36),
    "yellow": (236, 206, 62),
    "green": (62, 158, 84),
    "cyan": (54, 178, 186),
    "blue": (52, 104, 208),
    "purple": (134, 78, 186),
    "pink": (226, 120, 170),
}


# --- clips: the motion is the class


class _Pose(NamedTuple):
    """Where the shape is in every frame, each (T,): the place wraps around, so that every place is equally likely."""

    x: Array
    y: Array
    angle: Array
    size: Array  # 0 smallest .. 1 largest
    strength: Array  # 0 faint .. 1 strong


def _triangle(phase: Array) -> Array:
    """A wave between 0 and 1 that spends equal time at every height."""
    return np.abs(2 * (phase % 1) - 1)


# Progress runs from 0 to about 1 over the clip; `side` is -1 or 1. One turn or width at most, few cycles of the rest:
# four frames a clip still tell the motions apart.
_MOTIONS: dict[str, Callable[[_Pose, Array, int], _Pose]] = {
    "left": lambda pose, progress, side: pose._replace(x=pose.x - progress),
    "right": lambda pose, progress, side: pose._replace(x=pose.x + progress),
    "up": lambda pose, progress, side: pose._replace(y=pose.y - progress),
    "down": lambda pose, progress, side: pose._replace(y=pose.y + progress),
    "grow": lambda pose, progress, side: pose._replace(size=(pose.size + progress) % 1),
    "shrink": lambda pose, progress, side: pose._replace(size=(pose.size - progress) % 1),
    "clockwise": lambda pose, progress, side: pose._replace(angle=pose.angle + 2 * math.pi * progress),
    "counterclockwise": lambda pose, progress, side: pose._replace(angle=pose.angle - 2 * math.pi * progress),
    "blink": lambda pose, progress, side: pose._replace(strength=_triangle(pose.strength + 2.5 * progress)),
    "zigzag": lambda pose, progress, side: pose._replace(
        x=pose.x + side * progress, y=pose.y + 0.4 * _triangle(2.5 * progress)
    ),
}
MOTIONS: tuple[str, ...] = tuple(_MOTIONS)

# Amounts of motion, to either side: a network learns them from few clips, the directions above need many.
_SPEEDS: dict[str, Callable[[_Pose, Array, int], _Pose]] = {
    "still": lambda pose, progress, side: pose,
    "slow": lambda pose, progress, side: pose._replace(x=pose.x + side * 0.4 * progress),
    "fast": lambda pose, progress, side: pose._replace(x=pose.x + side * 2.5 * progress),
}
SPEEDS: tuple[str, ...] = tuple(_SPEEDS)


def video(
    path: Path | str,
    motion: str,
    rng: random.Random,
    *,
    frames: int = 48,
    size: tuple[int, int] = (96, 128),
    fps: float = 25.0,
) -> None:
    """Write `clip(motion, rng, ...)` as a video file. `size` is (height, width), both even.

    Raises: ValueError for a motion that is not in MOTIONS or SPEEDS; VideoError when the file cannot be written.
    """
    write(Path(path), clip(motion, rng, frames=frames, size=size), fps)


def clip(motion: str, rng: random.Random, *, frames: int = 48, size: tuple[int, int] = (96, 128)) -> Tensor:
    """Return uint8 (T,H,W,3): a textured shape on a varied background with noise, whose motion over time is the class.

    Place, angle, size, strength, shape, colors and background are drawn alike for every motion, and stay so in every
    frame: one frame alone says nothing about the class. A mirrored "left" is a "right": train without flips.

    Raises: ValueError for a motion that is not in MOTIONS or SPEEDS.
    """
    motions = _MOTIONS | _SPEEDS
    if motion not in motions:
        raise ValueError(f"motion is {motion!r}, expected one of {', '.join(motions)}")
    noise = np.random.default_rng(rng.getrandbits(64))
    speed, side = rng.uniform(0.8, 1.1), rng.choice((-1, 1))
    still = _Pose(*(np.full(frames, rng.random(), dtype=np.float32) for _ in _Pose._fields))
    still = still._replace(angle=still.angle * 2 * math.pi)
    if motion != "blink":
        still = still._replace(strength=_triangle(still.strength))
    progress = np.linspace(0, speed, frames, endpoint=False, dtype=np.float32)
    cover, shade = _drawn(motions[motion](still, progress, side), rng.choice(tuple(_SHAPES)), size)
    color = np.array(COLORS[rng.choice(tuple(COLORS))], dtype=np.float32)
    pixels = _background(noise, size)[None].repeat(frames, 0)
    pixels += cover[..., None] * (shade[..., None] * color - pixels)
    pixels += noise.normal(0, 6, pixels.shape[:3]).astype(np.float32)[..., None]
    return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8))


# Signed distance from the outline, negative inside, of shapes of radius about 1 in their own axes.
_SHAPES: dict[str, Callable[[Array, Array], Any]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(np.abs(x) * 0.866 - y * 0.5, y) - 0.55,
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 1, np.abs(y) - 0.4), np.maximum(np.abs(x) - 0.4, np.abs(y) - 1)
    ),
}


def _drawn(pose: _Pose, shape: str, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return how much of each pixel the shape covers and the brightness of its texture, both (T,H,W)."""
    height, width = size
    along = lambda values: values.astype(np.float32)[:, None, None]  # noqa: E731
    radius = along(min(size) * 0.16 * 2**pose.size)
    dx = ((np.arange(width, dtype=np.float32) / width - along(pose.x) + 0.5) % 1 - 0.5) * width / radius
    dy = ((np.arange(height, dtype=np.float32)[:, None] / height - along(pose.y) + 0.5) % 1 - 0.5) * height / radius
    cos, sin = along(np.cos(pose.angle)), along(np.sin(pose.angle))
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    cover = (0.5 - _SHAPES[shape](x, y) * radius).clip(0, 1) * along(0.4 + 0.6 * pose.strength)
    # One dark end and stripes across: no turn but the full one brings the texture back.
    shade = (0.75 + 0.3 * x + 0.25 * np.sin(7 * x)).clip(0.15, 1.25)
    return cover, shade


def _background(noise: np.random.Generator, size: tuple[int, int]) -> Array:
    """Return float (H,W,3): a muted tone with a few slow waves of light and color."""
    y, x = np.meshgrid(*(np.linspace(0, 1, n, dtype=np.float32) for n in size), indexing="ij")
    picture = np.zeros((*size, 3), dtype=np.float32) + noise.uniform(70, 190) + noise.uniform(-20, 20, 3)
    for _ in range(4):
        wave = np.sin(2 * math.pi * (noise.uniform(-2.5, 2.5) * x + noise.uniform(-2.5, 2.5) * y + noise.random()))
        picture += wave[..., None] * (noise.uniform(-10, 10) + noise.uniform(-5, 5, 3))
    return picture.astype(np.float32)


# --- features with segments


def features(
    rng: random.Random,
    *,
    classes: int = 5,
    channels: int = 32,
    length: int = 128,
    step_s: float = 0.5,
    most: int = 4,
    noise: float = 0.7,
) -> tuple[Array, dict[str, Any]]:
    """Return float32 (C,T) and its annotation {"duration_s", "segments": [[start_s, end_s], ...], "labels": [...]}.

    Step t covers [t, t + 1) * `step_s`. During a segment the class's own direction in feature space (the same for
    every call) is added to unit noise times `noise`, in proportion to how much of the step it covers. One to `most`
    segments, in order, never overlapping.

    Raises: ValueError when `length` has no room for `most` segments.
    """
    if length < 8 * most:
        raise ValueError(f"length is {length} steps, expected at least 8 for each of up to {most} segments")
    generator = np.random.default_rng(rng.getrandbits(64))
    values = generator.normal(0, noise, (channels, length)).astype(np.float32)
    steps = np.arange(length)
    count = rng.randint(1, most)
    segments, labels = [], []
    for i in range(count):
        room = length / count
        span = rng.uniform(0.3, 0.8) * room
        start = i * room + rng.uniform(0, room - span)
        label = rng.randrange(classes)
        covered = (np.minimum(steps + 1, start + span) - np.maximum(steps, start)).clip(0, 1)
        values += (_signature(label, channels)[:, None] * covered).astype(np.float32)
        segments.append([round(start * step_s, 3), round((start + span) * step_s, 3)])
        labels.append(label)
    return values, {"duration_s": length * step_s, "segments": segments, "labels": labels}


def _signature(label: int, channels: int) -> Array:
    seed = random.Random(f"signature/{label}/{channels}").getrandbits(64)
    return np.random.default_rng(seed).choice([-1.0, 1.0], channels).astype(np.float32)


# --- pictures and words


class _Thing(NamedTuple):
    shape: str
    color: str
    row: int
    column: int
    size: float = 0.75


_EDITS = ("paint", "remove", "enlarge", "shrink", "move")
_SIDES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


def image_pair(rng: random.Random, *, size: tuple[int, int] = (96, 96)) -> tuple[Tensor, Tensor, str]:
    """Return (before, after, sentence): two uint8 (H,W,3) pictures, the second one follows from the first and the text.

    Three things of different colors lie in a grid of three by three; the sentence names one of them by color and shape.
    """
    places = rng.sample([(row, column) for row in range(3) for column in range(3)], 3)
    colors = rng.sample(tuple(COLORS), 4)
    things = [
        _Thing(rng.choice(tuple(_SHAPES)), color, *place) for color, place in zip(colors[:3], places, strict=True)
    ]
    chosen = things[0]
    after, sentence = _edited(rng, chosen, colors[3], set(places))
    background = _background(np.random.default_rng(rng.getrandbits(64)), size)
    others = things[1:]
    return _scene([*others, chosen], background), _scene([*others, *after], background), sentence


def _edited(rng: random.Random, thing: _Thing, color: str, taken: set[tuple[int, int]]) -> tuple[list[_Thing], str]:
    """Return what becomes of the thing, and the sentence that asks for it."""
    name = f"the {thing.color} {thing.shape}"
    free = {
        side: (thing.row + down, thing.column + right)
        for side, (down, right) in _SIDES.items()
        if 0 <= thing.row + down < 3 and 0 <= thing.column + right < 3
    }
    free = {side: place for side, place in free.items() if place not in taken}
    edit = rng.choice(_EDITS if free else _EDITS[:-1])
    if edit == "paint":
        return [thing._replace(color=color)], f"paint {name} {color}"
    if edit == "remove":
        return [], f"remove {name}"
    if edit == "enlarge":
        return [thing._replace(size=1.05)], f"make {name} larger"
    if edit == "shrink":
        return [thing._replace(size=0.4)], f"make {name} smaller"
    side = rng.choice(tuple(free))
    return [thing._replace(row=free[side][0], column=free[side][1])], f"move {name} {side}"


def _scene(things: list[_Thing], background: Array) -> Tensor:
    height, width, _ = background.shape
    picture = background.copy()
    for thing in things:
        radius = min(height, width) / 6 * thing.size
        x = (np.arange(width, dtype=np.float32) - (thing.column + 0.5) * width / 3) / radius
        y = (np.arange(height, dtype=np.float32)[:, None] - (thing.row + 0.5) * height / 3) / radius
        cover = (0.5 - _SHAPES[thing.shape](*np.broadcast_arrays(x, y)) * radius).clip(0, 1)[..., None]
        picture += cover * (np.array(COLORS[thing.color], dtype=np.float32) - picture)
    return torch.from_numpy(picture.round().clip(0, 255).astype(np.uint8))


_VERBS = ("pick up", "put down", "wash", "cut", "open", "close", "move", "turn", "dry", "wipe")
_NOUNS = ("cup", "knife", "onion", "pan", "drawer", "bottle", "plate", "sponge", "bowl", "lid")
_PLACES = ("on the table", "in the sink", "on the hob", "by the window", "with the left hand", "with the right hand")


def sentence(rng: random.Random) -> str:
    """Return a short instruction: verb, color, noun and, half of the time, a place or a hand."""
    words = f"{rng.choice(_VERBS)} the {rng.choice(tuple(COLORS))} {rng.choice(_NOUNS)}"
    return f"{words} {rng.choice(_PLACES)}" if rng.random() < 0.5 else words
