"""Will the challenge server take this file? Keys that are missing or unknown, shapes, class ids.

    python -m projects.lta_memvit.check_submission outputs.json [annotations=FOLDER part=test sequences=5 future=20]

ends with 0 when it will. The server wants a forecast for every window with eight observed actions; models that look at
fewer forecast for more windows, which is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simplejson

from projects.lta_memvit import data, windows
from projects.lta_memvit.config import DataConfig
from projects.lta_memvit.data import Benchmark, listed

REQUIRED_INPUTS = 8  # observed actions of the windows that the challenge scores
SERVER_SEQUENCES, SERVER_FUTURE = 5, 20


@dataclass(frozen=True)
class Report:
    """What was found; it may be submitted when nothing is missing, unknown or malformed."""

    required: int
    given: int
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    malformed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the server will take it."""
        return not (self.missing or self.unknown or self.malformed)

    def __str__(self) -> str:
        lines = [f"{self.given} forecasts, {self.required} are required"]
        lines += [f"{len(self.missing)} are missing: {listed(self.missing)}"] if self.missing else []
        lines += [f"{len(self.unknown)} belong to no window: {listed(self.unknown)}"] if self.unknown else []
        faults = [f"{name} ({fault})" for name, fault in self.malformed.items()]
        lines += [f"{len(faults)} are malformed: {listed(faults)}"] if faults else []
        return "; ".join([*lines, "complete and well formed"] if self.ok else lines)


def check(outputs: Any, benchmark: Benchmark, part: str = "test", *, sequences: int = SERVER_SEQUENCES) -> Report:
    """Compare a submission with the annotations of a part.

    Raises: ValueError when it is no object of objects at all.
    """
    if not isinstance(outputs, Mapping):
        raise ValueError('a submission is an object {"<clip_uid>_<action_idx>": {"verb": [...], "noun": [...]}, ...}')
    actions, future = benchmark.clips(part), benchmark.cfg.future
    required = [window.id for window in windows.windows(actions, REQUIRED_INPUTS, future)]
    known = {window.id for window in windows.windows(actions, 1, future)}
    faults = {name: _fault(entry, benchmark, sequences) for name, entry in outputs.items() if name in known}
    return Report(
        required=len(required),
        given=len(outputs),
        missing=[name for name in required if name not in outputs],
        unknown=[name for name in outputs if name not in known],
        malformed={name: fault for name, fault in faults.items() if fault},
    )


def _fault(entry: Any, benchmark: Benchmark, sequences: int) -> str:
    """What is wrong with one forecast; empty when nothing is."""
    if not isinstance(entry, Mapping) or set(entry) != {"verb", "noun"}:
        return "expected the keys verb and noun and no others"
    for kind, classes in zip(("verb", "noun"), benchmark.classes, strict=True):
        rows = entry[kind]
        if not isinstance(rows, list) or len(rows) != sequences or not all(isinstance(row, list) for row in rows):
            count = f"{len(rows)}" if isinstance(rows, list) else f"a {type(rows).__name__}"
            return f"{kind}: expected {sequences} lists, found {count}"
        for row in rows:
            if len(row) != benchmark.cfg.future:
                return f"{kind}: expected {benchmark.cfg.future} actions in each list, found {len(row)}"
            if wrong := [label for label in row if type(label) is not int or not 0 <= label < classes]:
                return f"{kind}: {wrong[0]!r} is no class id from 0 to {classes - 1}"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found; returns 1 when the server would refuse the file."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = dict(word.split("=", 1) for word in words if "=" in word)
    files = [word for word in words if "=" not in word]
    known = {"annotations", "part", "sequences", "future"}
    if "--help" in words or "-h" in words or len(files) != 1 or not set(options) <= known:
        sys.stdout.write((__doc__ or "").strip() + "\n")
        return 0 if {"-h", "--help"} & set(words) else 2
    try:
        folder = Path(options.get("annotations", DataConfig().annotations))
        future, sequences = int(options.get("future", SERVER_FUTURE)), int(options.get("sequences", SERVER_SEQUENCES))
        benchmark = data.load(DataConfig(annotations=folder, future=future))
        found = check(load(Path(files[0])), benchmark, options.get("part", "test"), sequences=sequences)
    except ValueError as error:
        sys.stderr.write(f"check_submission: {error}\n")
        return 2
    for name in found.missing:
        sys.stdout.write(f"missing    {name}\n")
    for name in found.unknown:
        sys.stdout.write(f"unknown    {name}\n")
    for name, fault in found.malformed.items():
        sys.stdout.write(f"malformed  {name}: {fault}\n")
    sys.stdout.write(f"{files[0]}: {found}\n")
    return int(not found.ok)


def load(path: Path) -> Any:
    """The content of a JSON file. Raises: ValueError naming it."""
    try:
        return simplejson.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (simplejson.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
