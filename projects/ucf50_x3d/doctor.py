"""Is everything there, and does it fit? Machine, dataset, split, clips and weights, before hours are spent.

    python -m projects.ucf50_x3d.doctor projects/ucf50_x3d/configs/ucf50_x3d_s.yaml data.root=data/ucf50/UCF50

ends with 0 when training can start. `doctor.html` in the run directory shows the clips by length and size.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from core import config
from core.findings import Finding, machine, tell
from core.report import Page
from core.video.facts import survey
from projects.ucf50_x3d import convert, data, splits
from projects.ucf50_x3d.config import Config
from projects.ucf50_x3d.data import Benchmark
from projects.ucf50_x3d.model import build

UCF50_CLIPS, UCF50_CLASSES = 6681, 50


def main(argv: Sequence[str] | None = None) -> int:
    """Print every finding; returns 1 when one of them is an error."""
    return tell(examine(config.parse(Config, argv)))


def examine(cfg: Config) -> Iterator[Finding]:
    """Everything worth saying about a configuration on this machine, as it is found."""
    yield machine(cfg.run.out)
    try:
        benchmark = data.load(cfg.data)
    except ValueError as error:
        yield Finding("error", str(error))
        return
    yield from split(benchmark)
    yield from clips(benchmark, cfg)
    yield from model(benchmark, cfg)


def split(benchmark: Benchmark) -> Iterator[Finding]:
    """Sizes of the parts, classes that a part lacks, groups that two parts share."""
    yield Finding("ok", benchmark.describe())
    found = benchmark.split
    if found is None:
        return
    for part in splits.SPLITS:
        present = {row.label for row in found[part]}
        absent = [name for label, name in enumerate(benchmark.classes) if label not in present]
        if absent:
            names = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
            level: Literal["warning", "error"] = "error" if not present and part == "train" else "warning"
            yield Finding(level, f"{part} has no clip of {names}", "a class needs three groups to be in every part")
    if unknown := sum(splits.group_number(row.video_name) is None for part in splits.SPLITS for row in found[part]):
        yield Finding(
            "warning",
            f"{unknown} file names do not tell their source video (_gNN_cNN); each counts as one of its own",
            "if clips were cut from the same videos, name them so, or give the split with data.protocol=files",
        )
    for part in ("val", "test"):
        if found.leaks(part):
            yield Finding(
                "warning",
                f"{found.leaks(part):.1%} of the {part} clips share their source video with train",
                "results will look too good; data.protocol=grouped (or fold, UCF50's own) does not leak",
            )


def clips(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Every clip of the dataset: can it be read, is it long and large enough?"""
    if benchmark.split is None:
        yield from _epic(benchmark, cfg)
        return
    names = sorted({f"{row.action}/{row.video_name}" for part in splits.SPLITS for row in benchmark.split[part]})
    facts = survey([cfg.data.root / name for name in names], workers=cfg.loader.workers, progress=True)
    good = [fact for fact in facts if fact.frames]
    for fact in facts:
        if fact.problem:
            yield Finding("error" if not fact.frames else "warning", f"{fact.path}: {fact.problem}",
                          "repair or remove it, then make the annotation files again")  # fmt: skip
    if not good:
        return
    lengths = sorted(fact.frames for fact in good)
    sizes = Counter(f"{fact.width}x{fact.height}" for fact in good)
    usual = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3))
    yield Finding("ok", f"{len(good)} of {len(facts)} clips can be read: {lengths[0]} to {lengths[-1]} frames, {usual}")
    if len(benchmark.classes) == UCF50_CLASSES and len(facts) != UCF50_CLIPS and not cfg.data.classes:
        yield Finding("warning", f"UCF50 has {UCF50_CLIPS} clips, here are {len(facts)}", "was it unpacked whole?")
    short = sum(fact.frames < cfg.clip.frames for fact in good)
    if cfg.clip.sampling == "whole" and short:
        yield Finding("warning", f"{short} clips have fewer than clip.frames={cfg.clip.frames} frames",
                      "they repeat their last frame")  # fmt: skip
    small = sum(min(fact.height, fact.width) < cfg.clip.crop for fact in good)
    scaled = cfg.clip.short_side or (cfg.clip.augment and cfg.clip.jitter)
    if small and cfg.clip.augment and not scaled:
        yield Finding("error", f"{small} clips are smaller than clip.crop={cfg.clip.crop}, which is cut at random",
                      "scale them with clip.short_side or clip.jitter, or clip.augment=false")  # fmt: skip
    elif small and not scaled:
        yield Finding("ok", f"{small} clips are smaller than clip.crop={cfg.clip.crop} and get zeros around them")
    page = Page(f"Clips of {cfg.data.root}")
    page.facts({"clips": len(facts), "unreadable": len(facts) - len(good), "classes": len(benchmark.classes)})
    histogram = sorted(Counter(10 * (length // 10) for length in lengths).items())
    tens, counts = ([pair[i] for pair in histogram] for i in (0, 1))
    page.curves("Frames per clip", {"clips": (tens, counts)}, x="frames", y="clips")
    rows = [fact._asdict() for fact in facts if fact.problem] or [fact._asdict() for fact in good[:200]]
    page.table("Clips", [{**row, "path": row["path"].relative_to(cfg.data.root).as_posix()} for row in rows])
    cfg.run.out.mkdir(parents=True, exist_ok=True)
    page.save(cfg.run.out / "doctor.html")
    yield Finding("ok", f"clips by length and size: {cfg.run.out / 'doctor.html'}")


def _epic(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Folders of frames that the segments of EPIC-KITCHENS need."""
    folders = sorted({segment.folder for segments, _ in benchmark.segments.values() for segment in segments})
    absent = [folder for folder in folders if not (cfg.data.root / folder).is_dir()]
    yield Finding("ok", f"{len(folders) - len(absent)} of {len(folders)} frame folders are there")
    if absent:
        yield Finding("error", f"{len(absent)} frame folders are missing, the first is {cfg.data.root / absent[0]}",
                      "unpack the official rgb_frames archives, or train on the videos you have")  # fmt: skip


def model(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Do the network, its weights and the clips fit together?"""
    try:
        net = build(cfg.model, len(benchmark.classes))
        if cfg.model.init:
            report = convert.load(net, cfg.model.init)
            yield Finding("ok", f"{cfg.model.init}: {report}")
        else:
            yield Finding("warning", "model.init is empty: training starts from nothing",
                          "give the Kinetics weights (docs/data.md)")  # fmt: skip
        with torch.inference_mode():
            net.eval()(data.example(cfg.clip))
        yield Finding("ok", f"{cfg.model.name} takes {cfg.clip.frames} frames of {cfg.clip.crop}x{cfg.clip.crop}")
    except (ValueError, OSError) as error:
        yield Finding("error", str(error))


if __name__ == "__main__":
    sys.exit(main())
