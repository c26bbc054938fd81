"""The scores of a run as a file, and those of others: h5 of the published code, challenge json, pickles."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
from numpy.typing import NDArray

from core.checkpoint import read_pickle
from core.checkpoint.files import replacing
from projects.sgear import metrics
from projects.sgear.data import Benchmark
from projects.sgear.metrics import SPACES, Scores, Space

Array = NDArray[Any]
# Where a challenge json and the published code's results lie in a folder, by part.
_JSON = {"test_seen": "seen.json", "test_unseen": "unseen.json"}
_RESULTS = {"test_unseen": "results_s2"}


def file_of(folder: Path, part: str) -> Path:
    """Where a run keeps the scores of a part."""
    return folder / f"scores_{part}.npz"


def write(path: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write what `eval.evaluate` found, whole or not at all; `about` says in json what was evaluated and how."""
    arrays: dict[str, Any] = {name: np.asarray(values) for name, values in found.items() if name != "id"}
    buffer = io.BytesIO()
    np.savez(buffer, id=np.array(found["id"], dtype=np.str_), about=np.array(simplejson.dumps(about)), **arrays)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_file(path: Path) -> dict[str, Array]:
    """The arrays of a file of ours. Raises: ValueError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no file of scores ({error}); evaluate the run again") from None
    if "id" not in arrays or not any(name.startswith("logits") for name in arrays):
        raise ValueError(f"{path}: holds {sorted(arrays)}, expected id and logits_*; evaluate the run again")
    return arrays


def of_found(found: Mapping[str, Any], benchmark: Benchmark) -> Scores:
    """Scores of all spaces from what an evaluation found; verbs and nouns from actions, or actions from them.

    Raises: ValueError when there are neither actions nor verbs and nouns.
    """
    heads: dict[Space, Array] = {
        space: np.asarray(found[f"logits_{space}"]) for space in SPACES if f"logits_{space}" in found
    }
    action = heads.pop("action", None)
    if action is None:
        if set(heads) != {"verb", "noun"}:
            raise ValueError(
                f"scores of {', '.join(heads) or 'nothing'} tell no action; train with model.labels=[action]"
            )
        action = metrics.of_parts(heads["verb"], heads["noun"], benchmark.classes)
    return metrics.marginal(tuple(map(str, found["id"])), action, benchmark.classes, heads)


def read(source: str | Path, benchmark: Benchmark, part: str) -> Scores:
    """The scores of a part from a run folder of ours or of the published code, or from a single file.

    Folders are searched for scores_<part>.npz, results/*.h5 (results_s2 for the unseen test kitchens) and a challenge
    json (test.json, seen.json, unseen.json). Files may be npz, h5, json, a submitted zip, or a pickle of verb_scores,
    noun_scores and action_scores in the order of the part's samples.

    Raises: ValueError naming the source, when there are no scores or they do not fit the benchmark.
    """
    path = Path(source)
    if path.is_dir():
        files = _in_folder(path, part)
        if not files:
            raise ValueError(
                f"{path}: no scores of {part} are there; run eval with eval.split={part} run.out={path}, or name a file"
            )
    else:
        files = [path]
    if not files[0].is_file():
        raise ValueError(f"{path}: no such file or folder")
    suffix = files[0].suffix.lower()
    if suffix == ".npz":
        scores = of_found(read_file(files[0]), benchmark)
    elif suffix in (".h5", ".hdf5"):
        scores = of_found(_read_h5(files), benchmark)
    elif suffix in (".json", ".zip"):
        scores = _of_results(read_json(files[0])["results"], files[0], benchmark)
    elif suffix in (".pkl", ".pickle"):
        scores = _of_pickle(files[0], benchmark, part)
    else:
        raise ValueError(f"{path}: {suffix or 'a file without suffix'} is not read; give npz, h5, json, zip or pkl")
    sizes = {"verb": len(benchmark.verbs), "noun": len(benchmark.nouns), "action": len(benchmark.actions)}
    for space, values in scores.of.items():
        if values.shape != (len(scores), sizes[space]):
            raise ValueError(
                f"{path}: {space} scores are {values.shape} for {len(scores)} samples; {benchmark.cfg.dataset} has "
                f"{sizes[space]} classes"
            )
    return scores


def _in_folder(folder: Path, part: str) -> list[Path]:
    own, foreign = file_of(folder, part), folder / _RESULTS.get(part, "results")
    if own.exists():
        return [own]
    for place in (foreign, folder):
        if found := sorted(place.glob("*.h5")):
            return found
    name = _JSON.get(part, "test.json")
    return [path for path in (folder / name, folder / "challenge" / name) if path.exists()][:1]


def _read_h5(files: Sequence[Path]) -> dict[str, Array]:
    """All files of a run of the published code; samples that the distributed sampler repeated are averaged."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{files[0]}: reading h5 needs the package h5py") from None
    parts: dict[str, list[Array]] = {}
    for path in files:
        try:
            with h5py.File(path, "r") as file:
                names = {"idx": "index", "uid": "id"} | {f"logits/{space}": f"logits_{space}" for space in SPACES}
                for name, ours in names.items():
                    if name in file:
                        parts.setdefault(ours, []).append(file[name][()])
        except OSError as error:
            raise ValueError(f"{path}: {error}; is the file whole?") from None
    if not {"index", "id", "logits_action"} <= set(parts):
        raise ValueError(f"{files[0]}: expected idx, uid and logits/action; found {sorted(parts)}")
    columns = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    _, first, place = np.unique(columns["index"], return_index=True, return_inverse=True)
    repeats = np.bincount(place)
    result: dict[str, Array] = {"index": columns["index"][first]}
    for name, values in columns.items():
        if name.startswith("logits"):
            mean = values[first].astype(np.float64)
            for row in np.flatnonzero(repeats > 1):
                mean[row] = values[place == row].astype(np.float64).mean(0)
            result[name] = mean
    result["id"] = np.array([_text(name) for name in columns["id"][first]])
    return result


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a challenge json, or of the first one in a zip. Raises: ValueError when it is none."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".json")]
                if not names:
                    raise ValueError("the zip holds no json")
                content = json.loads(archive.read(names[0]))
        else:
            content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}; expected a challenge json") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f"{path}: has no `results`; expected a challenge json")
    return content


def _of_results(results: Mapping[str, Any], path: Path, benchmark: Benchmark) -> Scores:
    """Scores of a challenge json; what it does not list scores 0."""
    ids = tuple(results)
    sizes = {"verb": len(benchmark.verbs), "noun": len(benchmark.nouns), "action": len(benchmark.actions)}
    of: dict[Space, Array] = {space: np.zeros((len(ids), sizes[space])) for space in SPACES}
    number = {f"{verb},{noun}": k for k, (verb, noun) in enumerate(benchmark.classes.pairs.tolist())}
    try:
        for row, entry in enumerate(results.values()):
            for space in ("verb", "noun"):
                of[space][row, [int(k) for k in entry[space]]] = list(entry[space].values())
            known = {number[pair]: score for pair, score in entry["action"].items() if pair in number}
            of["action"][row, list(known)] = list(known.values())
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: entry {ids[row]!r} is malformed ({type(error).__name__}: {error})") from None
    return Scores(ids, of)


def _of_pickle(path: Path, benchmark: Benchmark, part: str) -> Scores:
    content = read_pickle(path)
    names: dict[Space, str] = {space: f"{space}_scores" for space in SPACES}
    if not isinstance(content, Mapping) or not set(names.values()) <= set(content):
        raise ValueError(f"{path}: expected a pickled dict of {', '.join(names.values())}")
    ids = tuple(benchmark.clips(part).segments.id.tolist())
    of: dict[Space, Array] = {space: np.asarray(content[name]) for space, name in names.items()}
    for space, values in of.items():
        if len(values) != len(ids):
            raise ValueError(f"{path}: {space} scores have {len(values)} rows, {part} has {len(ids)} samples")
    return Scores(ids, of)
