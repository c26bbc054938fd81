"""What a doctor says: findings, each with its way out, as they are made."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """One thing that was looked at; `advice` says the way out."""

    level: Level
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.text}" + (f"\n         -> {self.advice}" if self.advice else "")


def ok(text: str) -> Finding:
    """Something that is as it should be."""
    return Finding("ok", text)


def warning(text: str, advice: str = "") -> Finding:
    """Something that may be meant, or may cost accuracy."""
    return Finding("warning", text, advice)


def error(text: str, advice: str = "") -> Finding:
    """Something that would stop the work or make its results wrong."""
    return Finding("error", text, advice)


def machine(out: Path, *, room_gib: float = 1.0) -> Finding:
    """The GPUs, and whether the disk of the folder `out` has `room_gib` free."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    text = f"{', '.join(gpus) or 'no GPU: training runs on the CPU'}; {free:.0f} GiB free for {out}"
    return warning(text, "free some disk: checkpoints need room") if free < room_gib else ok(text)


def tell(findings: Iterable[Finding], more: str = "") -> int:
    """Write every finding as it comes, then how many were bad and `more`; the exit status, 1 when one is an error."""
    counts = {"ok": 0, "warning": 0, "error": 0}
    for finding in findings:
        counts[finding.level] += 1
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{counts['error']} errors, {counts['warning']} warnings{more}\n")
    return int(counts["error"] > 0)
