"""Is everything there, and does it fit? Machine, annotations, videos or features, prototypes, weights, before a run.

    python -m projects.sgear.doctor projects/sgear/configs/ek100_tsn_rgb.yaml data.root=data/sgear

ends with 0 when training can start.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from core import config, video
from core.data import SampleError
from core.findings import Finding, machine, tell
from projects.sgear import data, frames, prototype_files, weights
from projects.sgear.config import Config
from projects.sgear.data import Anticipation, Benchmark

PUBLISHED = {  # annotated actions of a part
    ("ek100", "val"): 9668, ("ek100", "test"): 13092, ("ek100", "train"): 67217,
    ("ek55", "train"): 23493, ("ek55", "val"): 4979, ("ek55", "test_seen"): 8047, ("ek55", "test_unseen"): 2929,
}  # fmt: skip
LOOKS = 20  # samples of a part that are read
NAMED = 3  # files that are spelled out


def main(argv: Sequence[str] | None = None) -> int:
    """Print every finding; returns 1 when one of them is an error."""
    return tell(examine(config.parse(Config, argv)))


def examine(cfg: Config) -> Iterator[Finding]:
    """Everything worth saying about a configuration on this machine, as it is found."""
    yield machine(cfg.run.out, room_gib=4)
    try:
        benchmark = data.load(cfg.data)
    except ValueError as error:
        yield Finding("error", str(error))
        return
    yield Finding("ok", benchmark.describe())
    for part in benchmark.parts():
        yield from actions(benchmark, part)
        yield from files(benchmark, part, cfg)
    yield from subsets(benchmark)
    yield from prototypes(benchmark, cfg)
    yield from model(benchmark, cfg)


def actions(benchmark: Benchmark, part: str) -> Iterator[Finding]:
    """How many actions a part has, and how many can be used."""
    required = part in ("train", "val")
    try:
        clips = benchmark.clips(part)
    except ValueError as error:
        level: Literal["warning", "error"] = "error" if required else "warning"
        yield Finding(level, str(error), "" if required else f"only submissions need {part}")
        return
    total = len(clips) + len(clips.dropped)
    unknown = int((clips.segments.action < 0).sum())
    text = f"{part}: {total} actions, {len(clips)} with something to see before them"
    yield Finding("ok", text + (f", {unknown} without a class" if unknown and required else ""))
    real = len(benchmark.actions) in (3806, 2513)  # not a small dataset in the same layout
    wanted = PUBLISHED.get((benchmark.cfg.dataset, part)) if real else None
    changed = part == "train" and (benchmark.cfg.persons or benchmark.cfg.train != "train")
    if wanted and wanted != total and not changed:
        yield Finding("warning", f"{part} is published with {wanted} actions", "is the annotation file whole?")


def files(benchmark: Benchmark, part: str, cfg: Config) -> Iterator[Finding]:
    """Are the videos or features of a part there, and can some of its samples be read?"""
    level: Literal["warning", "error"] = "error" if part in ("train", "val") else "warning"
    try:
        dataset = benchmark.dataset(part)
    except ValueError as error:
        if part in ("train", "val") or "missing" in str(error):
            yield Finding(level, f"{part}: {error}")
        return
    if not len(dataset):
        yield Finding(level, f"{part} has no samples", "check data.tau_a, data.drop and data.persons")
        return
    rows = sorted(random.Random(0).sample(range(len(dataset)), min(LOOKS, len(dataset))))
    bad: dict[str, str] = {}
    margins, shape = [], ""
    for row in rows:
        try:
            sample = dataset.sample(row, random.Random(0))
        except (SampleError, video.VideoError) as error:
            bad[error.path] = error.reason
            continue
        except ValueError as error:
            yield Finding(level, f"{part}: {error}")
            return
        margins.append(sample["margin_s"])
        seen = sample["features"] if "features" in sample else sample["video"]
        shape = "x".join(map(str, seen.shape))
        if "features" in sample and seen.shape[1] != cfg.model.feature_dim:
            advice = f"say model.feature_dim={seen.shape[1]}, or name other databases with data.features"
            text = f"{part}: features have {seen.shape[1]} channels, the model takes {cfg.model.feature_dim}"
            yield Finding(level, text, advice)
            return
    for path, reason in list(bad.items())[:NAMED]:
        yield Finding(level, f"{part}: {path}: {reason}")
    if margins:
        least = f"the nearest comes {min(margins):.4f} s before the limit" if cfg.data.tau_a >= 0 else "recognition"
        yield Finding("ok", f"{part}: {len(margins)} of {len(rows)} samples looked at can be read, {shape}; {least}")
    yield from _rates(dataset, part, cfg)


def _rates(dataset: Anticipation, part: str, cfg: Config) -> Iterator[Finding]:
    """Videos whose frame rate is below what is asked for."""
    if cfg.data.source != "video" or not cfg.data.rate or part != "train":
        return
    path = frames.find(dataset.layout.videos, str(dataset.clips.segments.path[-1]), "video")
    try:
        fps = frames.clock(path).fps
    except video.VideoError as error:
        yield Finding("error", f"{part}: {error}")
        return
    if fps < cfg.data.rate:
        yield Finding("warning", f"{path} has {fps:g} frames a second, data.rate asks for {cfg.data.rate:g}",
                      "frames will repeat")  # fmt: skip


def subsets(benchmark: Benchmark) -> Iterator[Finding]:
    """The lists that some figures need."""
    if benchmark.cfg.dataset == "ek100":
        from projects.sgear import metrics

        places = benchmark.layout
        if metrics.subsets(benchmark.segments("val"), places.annotations, places.rulstm) is None:
            yield Finding("warning", "the lists of unseen participants and tail classes are not there",
                          "EPIC_100_tail_*.csv and EPIC_100_unseen_*.csv belong to the annotations")  # fmt: skip
    if benchmark.cfg.dataset == "ek55":
        try:
            assert benchmark.many_shot is not None
            yield Finding("ok", f"{len(benchmark.many_shot.action)} many-shot actions")
        except ValueError as error:
            yield Finding("error", str(error))


def prototypes(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Do the prototype files fit the classes, and where are they from?"""
    if cfg.model.kind != "sgear":
        return
    named = {kind: getattr(cfg.model.prototypes, kind) for kind in ("visual", "language", "similarities")}
    for kind, source in named.items():
        if not source:
            continue
        try:
            table = prototype_files.read(source, len(benchmark.actions))
        except ValueError as error:
            yield Finding(
                "error", f"model.prototypes.{kind}: {error}", "see python -m projects.sgear.make_prototypes --help"
            )
            continue
        origin = prototype_files.origin(source)
        made = ", ".join(f"{key} {value}" for key, value in list(origin.items())[:3]) or "origin unknown"
        lengths = np.linalg.norm(table.numpy(), axis=1)
        yield Finding("ok", f"{kind} prototypes {Path(source).name}: {tuple(table.shape)}, lengths "
                            f"{lengths.min():.2f} to {lengths.max():.2f}, {made}")  # fmt: skip
    if not named["language"] and not named["similarities"] and cfg.loss.semantic:
        advice = "python -m projects.sgear.make_prototypes language ..., then model.prototypes.language=FILE"
        yield Finding("error", "loss.semantic needs language prototypes", advice)


def model(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Do the network, its weights and a clip fit together?"""
    try:
        net = weights.build(cfg, benchmark)
        for line in weights.start(net, cfg.model):
            yield Finding("ok", line)
        if cfg.model.input == "video" and not cfg.model.init and cfg.model.vit.width >= 384:
            yield Finding("warning", "model.init is empty: the frame encoder starts from nothing",
                          "give timm ViT weights (docs/data.md)")  # fmt: skip
        with torch.inference_mode():
            outputs = net.eval()(data.example(cfg))
        yield Finding("ok", f"a clip {'x'.join(map(str, data.example(cfg).shape[1:]))} gives "
                            f"{outputs.logits[cfg.model.labels[0]].shape[1]} scores")  # fmt: skip
    except (ValueError, OSError) as error:
        yield Finding("error", str(error))


if __name__ == "__main__":
    sys.exit(main())
