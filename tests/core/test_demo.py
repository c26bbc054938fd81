"""Demo data can be learned, from what it claims to be learnable from only."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from core import demo
from core.video import probe, read

SIZE, FRAMES = (48, 64), 24


def center_of_change(change):
    """The circular mean of a picture that wraps around: (row, column)."""
    change = np.where(change > np.quantile(change, 0.93), change, 0)
    means = []
    for axis in (0, 1):
        n = change.shape[axis]
        circle = np.exp(2j * np.pi * np.arange(n) / n)
        means.append(np.angle((change.sum(1 - axis) * circle).sum()) / (2 * np.pi) * n)
    return means


def motion_statistics(clip):
    """Least squares for the motion around the moving place: shift, turn and growth, and their changes over time."""
    gray = clip.float().mean(-1).numpy()
    gray = sum(np.roll(np.roll(gray, a, 1), b, 2) for a in (-1, 0, 1) for b in (-1, 0, 1)) / 9
    still = np.median(gray, 0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] - np.array([SIZE[0] / 2, SIZE[1] / 2])[:, None, None]
    found = []
    for before, after in pairwise(gray):
        row, column = center_of_change(np.abs(after - before) + 0.3 * np.abs(before - still))
        shift = (round(SIZE[0] / 2 - row), round(SIZE[1] / 2 - column))
        a, b = (np.roll(frame, shift, (0, 1)) for frame in (before, after))
        dy, dx = np.gradient((a + b) / 2)
        weight = np.exp(-(rows**2 + columns**2) / (2 * 11**2))
        shape = (a + b) / 2 - np.median((a + b) / 2)
        parts = [dx, dy, columns * dy - rows * dx, columns * dx + rows * dy, shape]
        design = np.stack([(part * weight).ravel() for part in parts], 1)
        found.append(np.linalg.lstsq(design, -((b - a) * weight).ravel(), rcond=None)[0])
    found = np.array(found) * [1, 1, 20, 20, 20]
    return np.concatenate(
        [np.median(found, 0), np.median(np.abs(found), 0), np.median(np.abs(np.diff(found, axis=0)), 0)]
    )


def frame_statistics(frame):
    """What is simple in one frame: its small picture, and the place, spread and contrast of what stands out."""
    pixels = frame.float().numpy()
    small = pixels.reshape(6, SIZE[0] // 6, 8, SIZE[1] // 8, 3).mean((1, 3)).ravel() / 255
    outstanding = np.abs(pixels - np.median(pixels, (0, 1))).sum(-1)
    row, column = center_of_change(outstanding)
    angles = 2 * np.pi * np.array([row / SIZE[0], column / SIZE[1]])
    shape = [np.sin(angles), np.cos(angles), np.quantile(outstanding, [0.5, 0.8, 0.9, 0.95, 0.99]) / 100]
    return np.concatenate([small, *shape])


def accuracy(train, test):
    """The share right of a linear classifier on standardized statistics, fitted by ridge regression."""
    (x, y), (x_test, y_test) = train, test
    mean, std = x.mean(0), x.std(0) + 1e-6

    def spread(values):
        values = ((values - mean) / std).clip(-3, 3)
        hinges = [np.maximum(values - 0.5, 0), np.minimum(values + 0.5, 0)]
        return np.concatenate([values, *hinges, np.ones((len(values), 1))], 1)

    x, x_test = spread(x), spread(x_test)
    targets = np.eye(len(demo.MOTIONS))[y]
    weights = np.linalg.solve(x.T @ x + 3 * np.eye(x.shape[1]), x.T @ targets)
    return ((x_test @ weights).argmax(1) == y_test).mean()


@pytest.fixture(scope="module")
def clips():
    return [
        (demo.clip(motion, random.Random(f"{motion}/{i}"), frames=FRAMES, size=SIZE), label)
        for i in range(40)
        for label, motion in enumerate(demo.MOTIONS)
    ]


def halves(statistics, clips):
    x = np.array([statistics(clip) for clip, _ in clips])
    y = np.array([label for _, label in clips])
    half = len(clips) // 2
    return (x[:half], y[:half]), (x[half:], y[half:])


def test_the_motion_can_be_read_from_the_clip(clips):
    assert accuracy(*halves(lambda clip: motion_statistics(clip[::2]), clips[:240])) > 0.85


def test_one_frame_does_not_tell_the_motion(clips):
    frames = [(clip[(7 * i) % FRAMES], label) for i, (clip, label) in enumerate(clips)]
    assert accuracy(*halves(frame_statistics, frames)) < 0.18  # chance is 0.1; 200 frames have a deviation of 0.02


def test_every_frame_of_every_motion_shows_the_shape():
    for motion in demo.MOTIONS:
        clip = demo.clip(motion, random.Random(5), frames=12, size=SIZE).float()
        contrast = (clip - clip.flatten(1, 2).median(1).values[:, None, None]).abs().sum(-1).flatten(1)
        assert (contrast.quantile(0.98, dim=1) > 40).all(), motion


@pytest.mark.parametrize("motion", demo.MOTIONS)
def test_a_clip_is_the_same_for_the_same_rng_and_another_for_another(motion):
    one, again, other = (demo.clip(motion, random.Random(seed), frames=6, size=(32, 40)) for seed in (1, 1, 2))
    assert one.shape == (6, 32, 40, 3)
    assert one.dtype == torch.uint8
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_video_writes_the_clip(tmp_path):
    path = tmp_path / "left.mp4"
    demo.video(path, "left", random.Random(0), frames=10, size=(64, 96), fps=12.5)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (10, 64, 96)
    assert info.fps == pytest.approx(12.5)
    expected = demo.clip("left", random.Random(0), frames=10, size=(64, 96)).float()
    assert (read(path, range(10)).float() - expected).abs().mean() < 12  # the noise is what compression loses


def test_an_unknown_motion_is_named_with_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'jump', expected one of left, right"):
        demo.video(tmp_path / "x.mp4", "jump", random.Random(0))
    assert not (tmp_path / "x.mp4").exists()


def test_features_show_their_segments():
    rng = random.Random(0)
    train, test = (
        [demo.features(rng, classes=4, channels=16, length=96, step_s=0.25) for _ in range(20)] for _ in "ab"
    )
    middle = lambda span: slice(int(span[0] / 0.25) + 1, int(span[1] / 0.25))  # noqa: E731
    signatures = [
        np.concatenate(
            [x[:, middle(s)] for x, a in train for s, k in zip(a["segments"], a["labels"], strict=True) if k == label],
            1,
        ).mean(1)
        for label in range(4)
    ]
    right, total = 0, 0
    for x, annotation in test:
        assert x.shape == (16, 96)
        assert x.dtype == np.float32
        assert annotation["duration_s"] == 24.0
        assert annotation["segments"] == sorted(annotation["segments"])
        ends = [0.0] + [end for _, end in annotation["segments"]]
        for (start, end), before, label in zip(annotation["segments"], ends, annotation["labels"], strict=False):
            assert before <= start < end <= 24.0
            total += 1
            right += int(np.argmax([x[:, middle((start, end))].mean(1) @ s for s in signatures]) == label)
        outside = np.ones(96, dtype=bool)
        for start, end in annotation["segments"]:
            outside[int(start / 0.25) : int(end / 0.25) + 1] = False
        assert np.square(x[:, outside]).mean() < 0.8 < np.square(x[:, ~outside]).mean()
    assert right / total > 0.95
    assert total > 30


def test_features_need_room():
    with pytest.raises(ValueError, match="length is 10 steps, expected at least 8"):
        demo.features(random.Random(0), length=10)


def test_the_sentence_says_how_the_picture_changes():
    color = {name: torch.tensor(value) for name, value in demo.COLORS.items()}
    seen = set()
    for seed in range(120):
        before, after, sentence = demo.image_pair(random.Random(seed), size=(60, 60))
        assert before.dtype == after.dtype == torch.uint8
        words = sentence.split()
        verb, (hue, shape) = words[0], words[2:4]
        assert shape in ("circle", "square", "triangle", "cross")
        at = lambda picture, name: ((picture - color[name]) == 0).all(-1)  # noqa: E731
        was, now = at(before, hue), at(after, hue)
        assert was.sum() > 20
        changed = (before != after).any(-1)
        assert 0.005 < changed.float().mean() < 0.3
        place = lambda mask: mask.nonzero().float().mean(0)  # noqa: E731
        if verb == "paint":
            assert now.sum() == 0
            assert torch.equal(at(after, words[4]), was)
        elif verb == "remove":
            assert now.sum() == 0
        elif verb == "make":
            assert (now.sum() > was.sum()) == (words[4] == "larger")
            assert torch.allclose(place(now), place(was), atol=1)
        else:
            step = {"left": (0, -20), "right": (0, 20), "up": (-20, 0), "down": (20, 0)}[words[4]]
            assert torch.allclose(place(now) - place(was), torch.tensor(step).float(), atol=1)
        seen.add((verb, words[4] if len(words) > 4 and verb != "paint" else ""))
    assert len(seen) == 8  # paint, remove, larger, smaller and four directions


def test_pictures_and_sentences_are_repeatable():
    pairs = [demo.image_pair(random.Random(3)) for _ in range(2)]
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][1], pairs[1][1])
    assert pairs[0][2] == pairs[1][2]
    assert demo.sentence(random.Random(3)) == demo.sentence(random.Random(3))
    assert len({demo.sentence(random.Random(i)) for i in range(50)}) > 40
