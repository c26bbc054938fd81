"""Challenge files of EPIC-KITCHENS action anticipation: made from one run or several, and checked without a network.

    python -m projects.sgear.submission RUN [RUN ...] --weights 1 1.5 --out submission [--sls 1 4 4]
    python -m projects.sgear.submission --check submission/submit.zip RUN

EPIC-KITCHENS-100 gets test.json in submit.zip (version 0.2), EPIC-KITCHENS-55 seen.json and unseen.json (0.1). The
check names what is missing, extra or malformed, for the part that --part says.
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.checkpoint.files import replacing
from projects.sgear import data, scores
from projects.sgear.data import Benchmark
from projects.sgear.fuse import arguments, configuration, fuse, split_runs
from projects.sgear.metrics import Scores

ACTIONS = 100  # that an entry lists, best first
VERSIONS = {"ek100": "0.2", "ek55": "0.1"}
FILES = {"ek100": {"test": "test.json"}, "ek55": {"test_seen": "seen.json", "test_unseen": "unseen.json"}}
LEVELS = ("sls_pt", "sls_tl", "sls_td")  # supervision: pretraining, training labels, training data
SHOWN = 5  # problems of one kind that are spelled out

Entry = dict[str, dict[str, float]]


def header(dataset: str, levels: Sequence[int]) -> dict[str, Any]:
    """What stands before the results."""
    found: dict[str, Any] = {"version": VERSIONS[dataset], "challenge": "action_anticipation"}
    return found | (dict(zip(LEVELS, levels, strict=True)) if dataset == "ek100" else {})


def entries(fused: Scores, benchmark: Benchmark, part: str) -> Iterator[tuple[str, Entry]]:
    """Every annotated action of a part with its scores; those with nothing to see before them get zeros.

    Raises: ValueError when a sample that can be seen was not scored, and for a dataset with fewer actions.
    """
    if len(benchmark.actions) < ACTIONS:
        raise ValueError(f"an entry lists {ACTIONS} actions, and this dataset has {len(benchmark.actions)} in all")
    clips = benchmark.clips(part)
    known = set(fused.id)
    lost = [name for name in clips.segments.id.tolist() if name not in known]
    if lost:
        raise ValueError(f"{len(lost)} of {len(clips)} samples of {part} have no scores, the first is {lost[0]}")
    pairs = [f"{verb},{noun}" for verb, noun in benchmark.classes.pairs.tolist()]
    verbs, nouns = ([str(k) for k in range(len(names))] for names in (benchmark.verbs, benchmark.nouns))
    for row, name in enumerate(fused.id):
        action = fused.of["action"][row]
        best = np.argpartition(action, -ACTIONS)[-ACTIONS:]
        best = best[np.argsort(-action[best], kind="stable")]
        yield (
            name,
            {
                "verb": dict(zip(verbs, fused.of["verb"][row].tolist(), strict=True)),
                "noun": dict(zip(nouns, fused.of["noun"][row].tolist(), strict=True)),
                "action": {pairs[k]: float(action[k]) for k in best},
            },
        )
    nothing: Entry = {
        "verb": dict.fromkeys(verbs, 0.0),
        "noun": dict.fromkeys(nouns, 0.0),
        "action": {f"0,{k}": 0.0 for k in range(ACTIONS)},
    }
    for name in clips.dropped.id.tolist():
        if name not in known:
            yield name, nothing


def write(path: Path, head: Mapping[str, Any], results: Iterator[tuple[str, Entry]]) -> int:
    """Write a challenge json entry by entry, whole or not at all; returns how many there were."""
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(dict(head))[:-1] + ', "results": {')
        for name, entry in results:
            file.write(f"{', ' if count else ''}\n{json.dumps(name)}: {json.dumps(entry)}")
            count += 1
        file.write("\n}}\n")
    return count


def package(paths: Sequence[Path], target: Path) -> None:
    """Put the files into a zip, without their folders."""
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.name)


def problems(content: Mapping[str, Any], benchmark: Benchmark, part: str) -> list[str]:
    """Everything that the challenge would refuse, a line each; what concerns many entries is counted."""
    dataset = benchmark.cfg.dataset
    found = []
    for name, wanted in header(dataset, (0, 0, 0)).items():
        value = content.get(name)
        if name in LEVELS:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 5:
                found.append(f"{name} is {value!r}, expected a whole number from 0 to 5")
        elif value != wanted:
            found.append(f"{name} is {value!r}, expected {wanted!r}")
    results: Mapping[str, Any] = content.get("results") or {}
    clips = benchmark.clips(part)
    expected = dict.fromkeys([*clips.segments.id.tolist(), *clips.dropped.id.tolist()])
    found += _listed("missing", [name for name in expected if name not in results])
    found += _listed("extra", [name for name in results if name not in expected])
    malformed = {name: why for name, entry in results.items() if (why := _wrong(entry, benchmark))}
    found += [f"malformed {name}: {why}" for name, why in list(malformed.items())[:SHOWN]]
    if len(malformed) > SHOWN:
        found.append(f"malformed: {len(malformed)} entries in all")
    return found


def _listed(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{kind}: {len(names)} entries, {', '.join(names[:SHOWN])}{more}"]


def _wrong(entry: Any, benchmark: Benchmark) -> str:
    """What is wrong with one entry; empty when nothing is."""
    if not isinstance(entry, Mapping) or set(entry) != {"verb", "noun", "action"}:
        return f"expected verb, noun and action, found {sorted(entry) if isinstance(entry, Mapping) else type(entry)}"
    for space, names in (("verb", benchmark.verbs), ("noun", benchmark.nouns)):
        keys = {str(k) for k in range(len(names))}
        if not isinstance(entry[space], Mapping) or set(entry[space]) != keys:
            odd = sorted(set(entry[space]) ^ keys)[:3] if isinstance(entry[space], Mapping) else entry[space]
            return f"{space} should have the keys 0 to {len(names) - 1}; differing: {odd}"
    actions = entry["action"]
    if not isinstance(actions, Mapping) or len(actions) != ACTIONS:
        count = len(actions) if isinstance(actions, Mapping) else actions
        return f"action should list exactly {ACTIONS}, found {count}"
    for pair in actions:
        verb, _, noun = pair.partition(",")
        in_range = verb.isdigit() and noun.isdigit() and int(verb) < len(benchmark.verbs)
        if not in_range or int(noun) >= len(benchmark.nouns):
            return f"action {pair!r} is no `verb,noun` of the classes"
    for space in ("verb", "noun", "action"):
        for name, value in entry[space].items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return f"{space} {name} scores {value!r}, expected a finite number"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the files of a submission, or check one; returns 1 when something is wrong with it."""
    parser = arguments("submission", __doc__)
    parser.add_argument("--sls", type=int, nargs=3, default=(1, 4, 4), help="supervision levels: pt tl td (1 4 4)")
    parser.add_argument("--check", type=Path, help="a json or zip to check; RUN then only names the annotations")
    parser.add_argument("--part", help="the part to check against; by default test, or test_seen of EPIC-KITCHENS-55")
    args = parser.parse_args(argv)
    names, overrides = split_runs(args.runs)
    try:
        benchmark = data.load(configuration(names, args.config, overrides).data)
        dataset = benchmark.cfg.dataset
        if dataset not in FILES:
            raise ValueError(f"{dataset} has no challenge; EPIC-KITCHENS-55 and -100 have")
        parts = FILES[dataset]
        if args.check:
            part = args.part or next(iter(parts))
            return _report(args.check, problems(scores.read_json(args.check), benchmark, part))
        out = args.out or Path(names[0]) / "challenge"
        made = []
        weights = args.weights[0] if len(args.weights) == 1 else args.weights
        for part, file in parts.items():
            fused = fuse([scores.read(name, benchmark, part) for name in names], weights, norm=args.norm)
            count = write(out / file, header(dataset, args.sls), entries(fused, benchmark, part))
            sys.stdout.write(f"{out / file}: {count} entries\n")
            made.append(out / file)
            if wrong := problems(scores.read_json(out / file), benchmark, part):
                return _report(out / file, wrong)
        package(made, out / "submit.zip")
        sys.stdout.write(f"{out / 'submit.zip'}: checked, ready to be submitted\n")
        return 0
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _report(path: Path, wrong: Sequence[str]) -> int:
    if wrong:
        sys.stderr.write("".join(f"{path}: {line}\n" for line in wrong))
        return 1
    sys.stdout.write(f"{path}: nothing missing, extra or malformed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
