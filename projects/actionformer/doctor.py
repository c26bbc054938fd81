"""Is everything there, and does it fit? Annotations, features, their geometry, the pyramid: before hours are spent.

    python -m projects.actionformer.doctor projects/actionformer/configs/own.yaml

ends with 0 when training can start. Every finding says how to repair it; at the end stands a configuration that would
suit the data, and `doctor.html` in the run directory shows it all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from core import config
from core.findings import Finding, error, machine, ok, tell
from core.report import Page
from projects.actionformer import checks, data, model
from projects.actionformer.config import Config
from projects.actionformer.fit import Fit, Item, measure, suggestion
from projects.actionformer.layouts import LAYOUTS

LISTED = 500  # videos in the table of the page


@dataclass
class Examination:
    """What is known so far: findings in order, and what they rest on."""

    cfg: Config
    findings: list[Finding] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    fit: Fit | None = None

    def note(self, finding: Finding) -> Finding:
        """Keep a finding for the page."""
        self.findings.append(finding)
        return finding


def main(argv: Sequence[str] | None = None) -> int:
    """Print every finding; returns 1 when one of them is an error."""
    cfg = config.parse(Config, argv)
    found = Examination(cfg)
    status = tell(found.note(finding) for finding in examine(found))
    if found.fit and found.fit.training:
        sys.stdout.write(f"\na configuration that would suit these data:\n{suggestion(cfg, found.fit)}\n")
    page(found).save(cfg.run.out / "doctor.html")
    sys.stdout.write(f"{cfg.run.out / 'doctor.html'} shows the data\n")
    return status


def examine(found: Examination) -> Iterator[Finding]:
    """Everything worth saying about a configuration on this machine, as it is found."""
    cfg = found.cfg
    yield machine(cfg.run.out)
    try:
        benchmark = data.load(cfg.data)
    except ValueError as problem:
        yield error(str(problem))
        return
    yield from checks.labels(benchmark)
    if cfg.data.dataset not in LAYOUTS:
        yield ok(f"{cfg.data.custom_class} reads the features; they are not looked at here")
        return
    for part in ("train", "eval"):
        yield from checks.features(benchmark, part, found.items)
    if found.items:
        yield from checks.geometry(cfg, found.items)
        found.fit = measure(cfg, found.items)
        yield from checks.lengths(cfg, found.fit)
        yield from checks.pyramid(cfg, found.fit)
    yield network(cfg)


def network(cfg: Config) -> Finding:
    """Do the network and its input fit together?"""
    channels, length = sum(cfg.data.input_dim), min(cfg.data.max_length, 64)
    try:
        net = model.build(
            cfg.model, channels=cfg.data.input_dim, classes=cfg.data.classes, max_length=cfg.data.max_length
        )
        with torch.inference_mode():
            net.eval()(torch.zeros(1, channels, length), torch.ones(1, length, dtype=torch.bool))
    except (ValueError, RuntimeError) as problem:
        return error(f"the network cannot be built: {problem}")
    count = sum(parameter.numel() for parameter in net.parameters())
    return ok(f"{cfg.model.name} takes {channels} channels, {count / 1e6:.1f} M parameters")


def page(found: Examination) -> Page:
    """The findings and the data behind them, to be looked at."""
    cfg, fit = found.cfg, found.fit
    shown = Page(f"Data of {cfg.data.annotations}", "What the doctor found before training")
    counts = {level: sum(f.level == level for f in found.findings) for level in ("error", "warning", "ok")}
    shown.facts({**counts, **({"videos": fit.videos, "actions": fit.actions} if fit else {})})
    shown.table("Findings", [{"level": f.level, "what": f.text, "what to do": f.advice} for f in found.findings])
    if not fit:
        return shown
    histograms = {part: fit.histogram(part) for part in ("train", "eval")}
    shown.curves("Features per video", histograms, x="features", y="videos")
    shown.curves("Durations of actions", {"actions": fit.durations}, x="features", y="actions")
    shown.table("Levels of the pyramid", fit.levels(cfg))
    shown.table("Actions per class", fit.per_class, bars=("train", "eval"))
    if fit.training:
        shown.text(suggestion(cfg, fit).replace("\n", "\n\n"), "A configuration that would suit these data")
    rows = [
        {"video": i.id, "part": i.part, "features": i.length, "seconds": i.duration_s, "actions": len(i.segments)}
        for i in found.items[:LISTED]
    ]
    shown.table("Videos", rows)
    return shown


if __name__ == "__main__":
    sys.exit(main())
