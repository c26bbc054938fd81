"""Is everything there, and does it fit? Machine, annotations, clips, features and weights, before hours are spent.

    python -m projects.lta_memvit.doctor projects/lta_memvit/configs/ego4d_memvit_concat_forecasting.yaml [KEY=VALUE]

ends with 0 when training can start. `doctor.html` in the run directory lists what is missing or odd.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch

from core import config
from core.checkpoint import fetch
from core.findings import Finding, machine, tell
from core.report import Page
from core.video.facts import Fact, survey
from projects.lta_memvit import convert, data, model
from projects.lta_memvit.config import Config
from projects.lta_memvit.data import Benchmark, listed
from projects.lta_memvit.ego4d import FILES, Action
from projects.lta_memvit.precomputed import PrecomputedWindows

SHORT_SIDE = 320  # of clips that were scaled as the original does


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
    yield from parts(benchmark, cfg)
    if cfg.features.source == "ego4d":
        yield from published(benchmark, cfg)
    else:
        yield from clips(benchmark, cfg)
    yield from network(benchmark, cfg)


def parts(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Sizes of the parts, and files that are missing."""
    yield Finding("ok", f"{cfg.data.annotations}: {benchmark.taxonomy}")
    for part, name in FILES.items():
        if part not in benchmark.parts:
            level: Literal["ok", "warning", "error"] = "error" if part == "train" else "warning"
            yield Finding(level, f"{name} is missing", f"link it into {cfg.data.annotations}; it is part of FHO")
            continue
        names, lost = benchmark.clips(part), benchmark.missing(part)
        count = len(benchmark.windows(part))
        text = f"{part}: {len(benchmark.actions(part))} actions in {len(names)} clips, {count} windows"
        level = "ok" if count else "error" if part == "train" else "warning"
        yield Finding(level, f"{text} of {cfg.data.inputs} + {cfg.data.future} actions")
        if lost and cfg.features.source != "ego4d":
            yield Finding(
                "error" if len(lost) == len(names) else "warning",
                f"{part}: {len(lost)} of {len(names)} clips are not in {cfg.data.clips}: {listed(lost)}",
                "scale them with scripts/resize_clips.sh; some clips are missing from Ego4D itself: training leaves "
                "them out, a submission gets a drawn forecast for them",
            )


def clips(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Every clip on disk: can it be read, was it scaled, does it reach to the end of its segments?"""
    actions: dict[str, tuple[Action, ...]] = {}
    for part in benchmark.parts:
        actions |= benchmark.clips(part)
    names = sorted(set(actions) & benchmark.files)
    paths = [cfg.data.clips / f"{name}.mp4" for name in names]
    facts = survey(paths, workers=cfg.loader.workers, progress=True)
    good = {fact.path.stem: fact for fact in facts if fact.frames}
    for fact in facts:
        if fact.problem:
            yield Finding("error" if not fact.frames else "warning", f"{fact.path.name}: {fact.problem}",
                          "copy or scale this clip again")  # fmt: skip
    if not good:
        return
    sizes = Counter(f"{fact.width}x{fact.height} at {fact.fps:.4g} fps" for fact in good.values())
    usual = ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3))
    yield Finding("ok", f"{len(good)} of {len(facts)} clips can be read: {usual}")
    large = [fact.path.stem for fact in good.values() if min(fact.height, fact.width) > SHORT_SIDE]
    if large:
        yield Finding("warning", f"{len(large)} clips are larger than a short side of {SHORT_SIDE}: {listed(large)}",
                      "scale them once with scripts/resize_clips.sh: reading is several times faster then")  # fmt: skip
    late = [a.id for name, fact in good.items() for a in actions[name] if a.start_s >= fact.seconds]
    if late:
        yield Finding("warning", f"{len(late)} segments begin after the end of their clip: {listed(late)}",
                      "the clip's last frames stand in for them; was the clip cut off when it was copied?")  # fmt: skip
    short = [a.id for name in good for a in actions[name] if a.end_s - a.start_s < cfg.clip.seconds]
    if short:
        yield Finding("ok", f"{len(short)} segments are shorter than the {cfg.clip.seconds:.2f} s that are seen")
    _page(facts, good, benchmark, cfg, late)
    yield Finding("ok", f"clips by size, what is missing and odd: {cfg.run.out / 'doctor.html'}")


def _page(
    facts: Sequence[Fact], good: Mapping[str, Fact], benchmark: Benchmark, cfg: Config, late: Sequence[str]
) -> None:
    page = Page(f"Clips of {cfg.data.clips}", benchmark.describe())
    lost = {part: benchmark.missing(part) for part in benchmark.parts}
    missing = sum(map(len, lost.values()))
    page.facts({"clips": len(facts), "unreadable": len(facts) - len(good), "missing": missing, "late": len(late)})
    lengths = sorted(Counter(10 * int(fact.seconds // 10) for fact in good.values()).items())
    page.curves("Length of the clips", {"clips": ([s for s, _ in lengths], [n for _, n in lengths])}, x="s", y="clips")
    rows = [{"clip": name, "what": f"missing in {part}"} for part, names in lost.items() for name in names]
    rows += [{"clip": fact.path.stem, "what": fact.problem} for fact in facts if fact.problem]
    rows += [{"clip": name, "what": "begins after the end of its clip"} for name in late]
    page.table("Missing, damaged, odd", rows)
    sizes = Counter((fact.width, fact.height, round(fact.fps, 3)) for fact in good.values())
    page.table("Sizes", [{"width": w, "height": h, "fps": f, "clips": n} for (w, h, f), n in sizes.most_common()])
    cfg.run.out.mkdir(parents=True, exist_ok=True)
    page.save(cfg.run.out / "doctor.html")


def published(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Ego4D's own features: are they there for every window, and of the size that the model expects?"""
    for part in benchmark.parts:
        wanted = benchmark.windows(part)
        found = PrecomputedWindows(wanted, cfg.features)
        videos = {window.inputs[-1].video_uid for window in wanted} - {w.inputs[-1].video_uid for w in found.windows}
        text = f"{part}: {len(found)} of {len(wanted)} windows have features in {cfg.features.folder}"
        if videos:
            level: Literal["warning", "error"] = "warning" if len(found) else "error"
            yield Finding(level, f"{text}; missing are {listed(sorted(videos))}",
                          "download them (ego4d --datasets slowfast8x8_r101_k400) and set features.folder")  # fmt: skip
        else:
            yield Finding("ok", text)
        if len(found):
            try:
                width = found.sample(0, random.Random(0))["features"].shape[-1]
            except ValueError as error:
                yield Finding("error", str(error))
                continue
            if width != cfg.model.feature_size:
                yield Finding("error", f"features have {width} channels, the model takes {cfg.model.feature_size}",
                              f"set model.feature_size={width}")  # fmt: skip


def network(benchmark: Benchmark, cfg: Config) -> Iterator[Finding]:
    """Do the network, its weights and the samples fit together?"""
    try:
        net = model.build(
            cfg.model, cfg.memory, task=cfg.task, classes=benchmark.classes, inputs=cfg.data.inputs,
            future=cfg.data.future, frames=cfg.clip.frames, crop=cfg.clip.crop,
        )  # fmt: skip
        if cfg.model.init:
            report = convert.load(net, fetch(cfg.model.init), head=cfg.model.init_head)
            yield Finding("ok", f"{cfg.model.init}: {report}")
        elif cfg.model.freeze and cfg.model.backbone != "none":
            yield Finding("error", "model.freeze=true, but model.init is empty: the backbone would stay random",
                          "give weights with model.init=FILE (docs/data.md says where they are)")  # fmt: skip
        elif cfg.model.backbone != "none":
            yield Finding("warning", "model.init is empty: training starts from nothing",
                          "give weights with model.init=FILE (docs/data.md says where they are)")  # fmt: skip
        if cfg.model.backbone == "none":
            return
        with torch.inference_mode():
            outputs = net.eval()(data.example(cfg))
        shapes = " and ".join("x".join(map(str, head.shape[1:])) for head in outputs)
        yield Finding("ok", f"{cfg.model.backbone} answers {shapes} for {cfg.clip.frames} frames of {cfg.clip.crop}x"
                            f"{cfg.clip.crop}")  # fmt: skip
    except (ValueError, OSError) as error:
        yield Finding("error", str(error))


if __name__ == "__main__":
    sys.exit(main())
