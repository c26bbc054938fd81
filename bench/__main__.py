"""Run benches, each in a process of its own, under one line that says where and when: `python -m bench [NAME ...]`."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Every file of this folder is a bench and a command, `python -m bench.NAME`."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def processor() -> str:
    """The name of the CPU as the system tells it, the architecture where it does not."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def heading() -> str:
    """Date, hardware and versions in one line, for docs/benchmarks.md."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    parts = [
        datetime.date.today().isoformat(),
        f"{processor()}, {os.cpu_count()} cores",
        ", ".join(gpus) or "no GPU",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
    ]
    return " · ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named benches, or all; return 1 when one of them failed, 2 when there is no such bench."""
    asked = list(sys.argv[1:] if argv is None else argv)
    unknown = [name for name in asked if name not in names()]
    if unknown:
        print(f"no bench called {', '.join(unknown)}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    print(heading(), flush=True)
    failed = []
    for name in asked or names():
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], cwd=FOLDER.parent, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
