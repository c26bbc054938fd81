"""The checkpoints of one run: saved so that nothing kills them, restored from the newest whole one."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import math
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from core import dist
from core.checkpoint.files import replacing
from core.checkpoint.weights import save_weights

_log = logging.getLogger(__name__)
_FORMAT = 1


class Part(Protocol):
    """Anything that can tell its state and take it back: a model, a TrainStep, a Loader."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers, texts and plain containers of them."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from that state."""


class Checkpoints:
    """The folder `out/checkpoints`: `step_<count>.pt` to resume from, `last` and `best.safetensors` to use.

    Kept are the `keep` newest checkpoints and the one with the best `best` (a key of the metrics; `mode` is "max" or
    "min"; of equals the latest, which has trained longest). `about` (class names, geometry: anything JSON can say) goes
    into the files of weights, which then answer without the run they come from. All processes call `save` and
    `restore`; the main one writes.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        best: str | None = None,
        mode: Literal["max", "min"] = "max",
        keep: int = 2,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; expected max or min")
        if keep < 1:
            raise ValueError(f"keep is {keep}; expected at least 1 checkpoint")
        self.folder = Path(out) / "checkpoints"
        self.key, self.mode, self.keep = best, mode, keep
        self.about = dict(about or {})
        self.best: tuple[int, float] | None = None
        """The step and value of the best metrics so far."""

    def save(self, step: int, parts: Mapping[str, Part], metrics: Mapping[str, float] | None = None) -> Path | None:
        """Write the state of all parts and the random state of all processes; None when the disk would not take it.

        A checkpoint appears whole or not at all, and older ones go only after that. The published weights are the
        moving average of `parts["step"]` when it keeps one, else `parts["model"]` (of which it may train but a part).

        Raises:
            ValueError: when a part holds something else than tensors and plain containers, or `metrics` lacks `best`.
        """
        states = {name: _plain(_state(part), name) for name, part in parts.items()}
        randoms = dist.gather(_random_state())
        average = getattr(parts.get("step"), "average", None)
        published = parts.get("model") if average is None else average
        known = [states[name] for name, part in parts.items() if part is published and isinstance(part, nn.Module)]
        weights = known[0] if known else _state(published) if isinstance(published, nn.Module) else None
        best = self._better(step, metrics)
        path = None
        if dist.is_main():
            payload = {
                "format": _FORMAT,
                "step": step,
                "metrics": _plain(metrics or {}, "metrics"),
                "best": best or self.best,
                "parts": states,
                "random": randoms,
            }
            try:
                path = self._write(payload, weights, best)
            except OSError as error:
                self._complain(step, error)
        path, self.best = dist.broadcast((path, self.best))
        return path

    def restore(self, parts: Mapping[str, Part]) -> int:
        """Put the newest whole checkpoint into the parts and this process's random generators; its step, or 0 if none.

        A damaged checkpoint is named in a warning and the one before it is taken. The number of processes may differ.

        Raises:
            ValueError: when the checkpoint belongs to other parts.
        """
        path, payload = self._newest() if dist.is_main() else (None, None)
        path = dist.broadcast(path)
        if path is None:
            return 0
        if payload is None:
            payload = _read(path)
        if absent := parts.keys() - payload["parts"].keys():
            raise ValueError(
                f"{path}: has no state of {', '.join(sorted(absent))}; it has {', '.join(payload['parts'])}"
            )
        # Models come first: a step may look at the weights that its own state belongs to.
        for name, part in sorted(parts.items(), key=lambda item: not isinstance(item[1], nn.Module)):
            state = payload["parts"][name]
            try:
                if isinstance(part, nn.Module):
                    dist.load_full_state(part, None, {"model": state})
                else:
                    part.load_state_dict(state)
            except (ValueError, KeyError, RuntimeError) as error:
                raise ValueError(f"{path}: the state of {name!r} does not fit this run: {error}") from error
        _restore_random(payload["random"])
        self.best = tuple(payload["best"]) if payload["best"] else None
        return int(payload["step"])

    def steps(self) -> list[int]:
        """The steps of all checkpoints in the folder, ascending."""
        found = (re.fullmatch(r"step_(\d+)\.pt", path.name) for path in self.folder.glob("step_*.pt"))
        return sorted(int(match[1]) for match in found if match)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:09d}.pt"

    def _better(self, step: int, metrics: Mapping[str, float] | None) -> tuple[int, float] | None:
        """This step and its value when it is the best so far."""
        if self.key is None or metrics is None:
            return None
        if self.key not in metrics:
            near = difflib.get_close_matches(self.key, metrics, n=1) or sorted(metrics)
            raise ValueError(
                f"the metrics have no {self.key!r}, by which the best is chosen; there is {', '.join(near)}"
            )
        value = float(metrics[self.key])
        gain = (value - self.best[1]) * (1 if self.mode == "max" else -1) if self.best else 1.0
        return (step, value) if gain >= 0 and not math.isnan(value) else None

    def _write(
        self, payload: dict[str, Any], weights: Mapping[str, Tensor] | None, best: tuple[int, float] | None
    ) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in (".*.tmp", ".tmp*"):  # what a process killed while it wrote left, and safetensors in it
            for rest in self.folder.glob(pattern):
                rest.unlink()
        about = {**self.about, "step": payload["step"], "metrics": payload["metrics"]}
        # The best weights come first: a run killed in between repeats this step, and finds them the best again.
        if best and weights is not None:
            save_weights(weights, self.folder / "best.safetensors", about)
        self.best = best or self.best
        path = self._path(payload["step"])
        with replacing(path) as temporary, temporary.open("wb") as file:
            sink = _Sink(file)
            try:
                torch.save(payload, cast(IO[bytes], sink))
            except RuntimeError:
                raise sink.error or OSError(f"{path} was not written") from None
        self._prune(payload["step"])
        if weights is not None:
            save_weights(weights, self.folder / "last.safetensors", about)
        return path

    def _complain(self, step: int, error: OSError) -> None:
        folder = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        kept = [path.name for path in map(self._path, self.steps()) if path.exists()]
        _log.warning(
            "the checkpoint of step %d was not written completely: %s (%.0f MB are free in %s). The run goes on; %s",
            step, error, shutil.disk_usage(folder).free / 1e6, folder,
            f"the last whole checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet",
        )  # fmt: skip

    def _prune(self, step: int) -> None:
        """Remove all but the newest and the best; leave later ones, which a run that went back will write again."""
        past = [each for each in self.steps() if each <= step]
        keep = {*past[-self.keep :], self.best[0] if self.best else step}
        for each in past:
            if each not in keep:
                with contextlib.suppress(OSError):
                    self._path(each).unlink()

    def _newest(self) -> tuple[Path | None, Any]:
        for step in reversed(self.steps()):
            path = self._path(step)
            try:
                return path, _read(path)
            except (ValueError, OSError) as error:
                _log.warning("%s is damaged (%s) and left alone; the checkpoint before it is taken", path, error)
        return None, None


class _Sink:
    """A file that remembers why a write failed: torch.save reports a RuntimeError without the reason."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _read(path: Path) -> Any:
    """A whole checkpoint; every byte is compared with its checksum, which `torch.load` does not do.

    Raises:
        ValueError: for a damaged file or a format that this version does not know.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise ValueError(f"wrong checksum in {bad}")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise ValueError("not a checkpoint of this version")
    return payload


def _state(part: Part | nn.Module) -> Any:
    return dist.full_state(part, main_only=True).get("model") if isinstance(part, nn.Module) else part.state_dict()


def _plain(value: Any, where: str = "") -> Any:
    """A copy of the containers, with tensors that hold no more memory than they show.

    Raises:
        ValueError: for what a file read with weights_only=True could not hold.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
        fits = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if fits else tensor.clone()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise ValueError(
        f"{where} of the checkpoint is a {type(value).__module__}.{type(value).__qualname__}; state_dict() may hold "
        "tensors, numbers, texts, None, and lists, tuples and dicts of them"
    )


def _random_state() -> dict[str, Any]:
    """The global generators of this process; the legacy one of numpy, because libraries draw from it."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random(states: list[dict[str, Any]]) -> None:
    """Put back this process's generators; a process that was not there seeds them from the first's and its rank."""
    world = dist.world()
    if world.size > len(states) and dist.is_main():
        _log.warning(
            "the checkpoint is of %d processes and there are %d now: the others begin with random states derived from "
            "the first's", len(states), world.size,
        )  # fmt: skip
    if world.rank < len(states):
        state = states[world.rank]
        random.setstate(state["python"])
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["cuda"])
        return
    first = states[0]["torch"].numpy().tobytes()
    seed = int.from_bytes(hashlib.sha256(first + world.rank.to_bytes(8, "little")).digest()[:8], "little")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed % 2**63)
