"""What can be wrong with a dataset, each as a finding that says how to repair it; `doctor` runs them all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from core.data import SampleError
from core.findings import Finding, error, ok, warning
from projects.actionformer.annotations import Video
from projects.actionformer.config import Config
from projects.actionformer.data import Benchmark, FeatureVideos
from projects.actionformer.fit import Fit, Item

SCANNED = 300  # feature files that are read in full, in search of values that are no numbers
FEW = 5  # names listed in a message


def labels(benchmark: Benchmark) -> Iterator[Finding]:
    """Subsets, class names and ids, classes without examples, slips of the annotators."""
    cfg, notes = benchmark.cfg, benchmark.annotations
    yield ok(benchmark.describe())
    if notes.conflicts:
        yield error(
            f"labels with several ids: {some(notes.conflicts)}",
            "give every label one id; the last one counts, and the others are evaluated as classes of their own",
        )
    uses = Counter(notes.label_ids.values())
    twice = sorted(name for name, label_id in notes.label_ids.items() if uses[label_id] > 1)
    if twice:
        yield warning(f"ids with several labels: {some(twice)}", "they are one class; is that meant?")
    parts: dict[str, list[Video]] = {}
    for part in ("train", "eval"):
        try:
            parts[part] = notes.of(benchmark.subsets(part))
        except ValueError as problem:
            yield error(str(problem), f"set data.{part}_splits to the subsets that are there")
            return
    if set(benchmark.subsets("train")) & set(benchmark.subsets("eval")):
        yield warning("the same videos train and are evaluated", "results will look too good: split them")
    seen = {action.label_id for entry in parts["train"] for action in entry.actions}
    if not seen:
        yield error("no training video has an action", "annotate some, or check data.train_splits")
    for part, entries in parts.items():
        present = {action.label_id for entry in entries for action in entry.actions}
        absent = [benchmark.classes[k] for k in sorted(set(benchmark.annotations.label_ids.values()) - present)]
        if absent and present:
            split = "model.empty_classes keeps their scores low; or split the videos in another way"
            advice = split if part == "train" else "mAP is the mean over the other classes"
            yield warning(f"{part} videos have no action of {len(absent)} classes: {some(absent)}", advice)
        empty = sum(not entry.actions for entry in entries)
        if empty:
            fate = "they train as background" if cfg.background else "they are left out (data.background=false)"
            yield ok(f"{empty} of {len(entries)} {part} videos have no action{f'; {fate}' if part == 'train' else ''}")
    unused = benchmark.empty_classes if not benchmark.proposals else ()
    if unused:
        yield warning(
            f"data.classes={cfg.classes}, but no video has the label ids {some([str(k) for k in unused])}",
            f"data.classes={cfg.classes - len(unused)} if there are no more classes, else name them in "
            "model.empty_classes",
        )
    backwards = [entry.id for entry in notes.videos.values() if any(a.end_s < a.start_s for a in entry.actions)]
    if backwards:
        yield error(f"actions that end before they start, in {some(backwards)}", "correct these segments")


def features(benchmark: Benchmark, part: str, items: list[Item]) -> Iterator[Finding]:
    """Every feature file of a part: is it there, can it be read, is it as wide as data.input_dim says?"""
    there = {entry.subset for entry in benchmark.annotations.videos.values()}
    if there.isdisjoint(subset.lower() for subset in benchmark.subsets(part)):
        return  # `labels` has said so
    try:
        videos = FeatureVideos(benchmark, benchmark.subsets(part))
    except ValueError as problem:
        yield error(str(problem), "extract the features, or say where they are: data.features, prefix, suffix")
        return
    wanted = benchmark.annotations.of(benchmark.subsets(part))
    absent = sorted({entry.id for entry in wanted} - set(videos.ids))
    if absent:
        first = videos.sources.missing(absent[0])
        yield warning(
            f"{len(absent)} of {len(wanted)} {part} videos have no features, the first is {first}",
            "they are left out of training, and count as missed in the evaluation: extract them",
        )
    bad: list[str] = []
    scan = set(np.linspace(0, len(videos) - 1, min(SCANNED, len(videos))).astype(int).tolist())
    for index, entry in enumerate(tqdm(videos.videos, desc=f"{part} features", leave=False)):
        try:
            items.append(Item.of(videos, index, part))
            values = videos.sources.read(entry.id) if index in scan else np.zeros(1)
            if not np.isfinite(values).all():
                bad.append(f"{videos.sources.parts[0].path(entry.id)}: holds values that are not finite (NaN)")
        except (SampleError, ValueError) as problem:
            bad.append(str(problem))
    for text in bad[:FEW]:
        yield error(text, "repair the file, extract it again, or take the video out of the annotations")
    if len(bad) > FEW:
        yield error(f"... and {len(bad) - FEW} more files of {part}")
    good = [item for item in items if item.part == part]
    if good:
        yield ok(
            f"{len(good)} {part} videos can be read: {min(i.length for i in good)} to "
            f"{max(i.length for i in good)} features of {sum(benchmark.cfg.input_dim)} channels"
        )


def geometry(config: Config, items: Sequence[Item]) -> Iterator[Finding]:
    """Do stride, window and frame rate agree with the durations, with what was recorded and with each other?"""
    cfg = config.data
    timed = [item for item in items if item.duration_s]
    if cfg.stride_frames is not None and cfg.stride_frames <= 0:
        yield ok("data.stride_frames <= 0: every video is as many features, its stride follows from that")
    elif timed:
        # How much of the video its features span; the last partial window may be missing.
        ratios = np.array([item.covered_s / item.duration_s for item in timed if item.duration_s])
        typical = float(np.median(ratios))
        shown = f"features span {100 * typical:.0f} % of the annotated durations (median of {len(timed)} videos)"
        if not 0.9 <= typical <= 1.1:
            stride = (cfg.stride_frames or timed[0].geometry.stride_frames) / typical
            rate = timed[0].geometry.fps * typical
            yield error(
                shown,
                "every detection would be at the wrong time. One of these would fit: "
                f"data.stride_frames={stride:.3g}, or data.fps={rate:.3g}",
            )
        else:
            yield ok(shown)
            odd = [item.id for item, ratio in zip(timed, ratios, strict=True) if not 0.8 <= ratio <= 1.25]
            if odd:
                yield warning(
                    f"{len(odd)} videos differ much from that: {some(odd)}",
                    "their features are cut short or of another video: extract them again",
                )
    else:
        yield warning(
            "the annotations say no durations: stride and frame rate cannot be checked",
            "annotate --videos FOLDER or --features FOLDER adds them",
        )
    recorded = [item for item in items if item.recorded]
    told = {(item.recorded.stride, item.recorded.window, item.recorded.model) for item in recorded if item.recorded}
    if len(told) > 1:
        kinds = "; ".join(f"stride {s:g}, window {w:g}, {m}" for s, w, m in sorted(told))
        yield error(f"the features were made in several ways: {kinds}", "extract all of them in one way")
    for item in recorded[:1]:
        assert item.recorded
        rate, stride, window = item.geometry
        raw = (rate, stride / cfg.downsample, window)
        if cfg.stride_frames is not None and not cfg.resample and not np.allclose(item.recorded[:3], raw, rtol=1e-3):
            yield error(
                f"{item.id} was extracted with fps, stride, window = {item.recorded[:3]}, the configuration says {raw}",
                "data.stride_frames=null takes what was recorded",
            )
    rates = sorted({round(item.geometry.fps, 2) for item in items})
    if len(rates) > 1:
        shown = ", ".join(f"{rate:g}" for rate in rates[:FEW])
        yield warning(
            f"frame rates differ between videos ({shown}): a feature lasts longer in some",
            "extract.fps=25 gives every feature the same time; small differences (25 to 30) do little harm",
        )


def lengths(cfg: Config, fit: Fit) -> Iterator[Finding]:
    """Sequences too short for the pyramid or too long for a crop; actions outside, tiny, or points."""
    if fit.shorter_than_pyramid:
        yield warning(
            f"{fit.shorter_than_pyramid} of {fit.videos} videos are shorter than the coarsest step "
            f"of the pyramid ({fit.coarsest} features)",
            "a smaller stride when extracting, or fewer levels (model.arch, model.ranges)",
        )
    if fit.longest > cfg.data.max_length and not cfg.data.resample:
        yield ok(
            f"{fit.longer_than_crop} of {fit.training} training videos are longer than data.max_length="
            f"{cfg.data.max_length} and are cut at random; evaluation takes them whole"
        )
    if fit.outside:
        yield warning(
            f"{fit.outside} of {fit.actions} actions lie mostly after the end of the features",
            "data.dataset=own and anet leave them out of training; are annotations and features of the same "
            "version of the videos?",
        )
    if fit.points and cfg.model.name != "snapformer":
        yield warning(
            f"{fit.points} of {fit.actions} actions have no length",
            "model.name=snapformer detects points; this model needs a start and an end",
        )
    if fit.tiny:
        yield warning(
            f"{fit.tiny} of {fit.actions} actions are shorter than half a feature ({fit.step_s / 2:.2g} s)",
            "extract with a smaller stride to find them",
        )


def pyramid(cfg: Config, fit: Fit) -> Iterator[Finding]:
    """Do the regression ranges reach the annotated durations, and would the official code take these windows?"""
    steps = [cfg.model.scale_factor**level for level in range(cfg.model.levels)]
    units = [step * (2 * (w // 2) if w > 1 else 1) for step, w in zip(steps, cfg.model.windows, strict=True)]
    if any(cfg.data.max_length % unit for unit in units):
        yield ok(
            f"data.max_length={cfg.data.max_length} is no multiple of {math.lcm(*units)}, as official code needs it "
            "for these windows; here any length will do"
        )
    if cfg.model.name == "snapformer" or not fit.probed:
        return
    share = fit.unserved / fit.probed
    text = f"{fit.probed - fit.unserved} of {fit.probed} actions have points that learn them"
    if share > 0.05:
        yield warning(text, "model.ranges leaves out durations that occur: see the suggestion below")
    else:
        yield ok(text)
    served = zip(cfg.model.ranges, fit.served, strict=True)
    idle = [f"{low:g} to {high:g}" for (low, high), count in served if not count]
    if idle:
        yield warning(
            f"levels without any action: ranges {some(idle)}",
            "fewer levels, or ranges that follow the durations (suggestion below)",
        )
    if cfg.model.name == "tbtformer":
        levels = enumerate(cfg.model.ranges[:-1], cfg.model.start_level)
        steepest = max((high / cfg.model.scale_factor**level for level, (_, high) in levels), default=0)
        if steepest > cfg.model.reg_max:
            yield warning(
                f"ranges reach {steepest:g} strides, a distribution says up to model.reg_max={cfg.model.reg_max}",
                "the scale of the level has to learn the rest; lower the ranges or raise reg_max",
            )


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
