"""What must hold for every committed file; also a command for pre-commit: `python -m tests.repo.files FILE ...`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 1 << 20  # bytes
MEASURED = ROOT / "tests" / "golden"  # stored as it was measured: only size and paths are checked

# Brackets keep the pattern from finding itself.
PRIVATE = re.compile(
    r"pypi[.]org|python[h]osted|registry[.]npmjs|deb[.]debian"  # registry hosts
    r"|(?<![\w.$}>*/-])/(?:home|Users|root|work|scratch|mnt)/\w"  # folders of one machine
    r"|[A-Z]:\\Users"
)


def tracked() -> list[Path]:
    """Files that git has or would add, without those deleted in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(path for path in (ROOT / name for name in set(listed.split("\0")) if name) if path.is_file())


def problems(path: Path) -> list[str]:
    """Everything wrong with one file, one line each."""
    data = path.read_bytes()
    found = []
    if len(data) > LARGEST:
        found.append(f"{len(data) / LARGEST:.1f} MiB; files above 1 MiB do not belong in the repository")
    if b"\0" in data[:8192]:
        return [f"{path}: {text}" for text in found]
    text = data.decode("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if match := PRIVATE.search(line):
            found.append(f"line {number} names {match[0]!r}, a place that only one machine or company has")
    if not path.is_relative_to(MEASURED):
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            found.append("must end in exactly one newline")
        if any(line != line.rstrip() for line in text.splitlines()):
            found.append("has spaces at the end of a line")
        if path.suffix in {".yaml", ".yml"}:
            try:
                yaml.safe_load(text)
            except yaml.YAMLError as error:
                found.append(f"is not YAML: {error}")
    return [f"{path}: {text}" for text in found]


if __name__ == "__main__":
    raise SystemExit("\n".join(line for name in sys.argv[1:] for line in problems(Path(name).resolve())) or 0)
