"""What a run says: console and `run.log`, `metrics.jsonl`, TensorBoard, progress, meters. A log never ends a run."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import simplejson
import torch
from torch import Tensor
from tqdm import tqdm

from core import dist

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

T = TypeVar("T")
Scalar = float | Tensor


class NonFiniteLoss(ValueError):  # noqa: N818 - it names the event, like StopIteration
    """A loss became NaN or infinite; `key` and `step` say which and when."""

    def __init__(self, key: str, step: int, value: float) -> None:
        self.key, self.step, self.value = key, step, value
        super().__init__(
            f"{key} is {value} at step {step}: training cannot go on; lower the learning rate, lengthen the warm-up, "
            "clip gradients, or look at the samples of this step"
        )


class Log:
    """The log of one process in the run directory `out`.

    The main process writes everything; the others keep only their warnings and errors, in `run.rank<k>.log`. What any
    library says through `warnings` or as a warning of `logging` lands here too. A file that cannot be written (full
    disk) is reported once and loses lines, nothing else.

    Rows with tensors on a GPU wait until there are `every` of them, or one is `patience_s` old, and are then read with
    one transfer: logging a loss does not make the host wait for the device.
    """

    def __init__(
        self,
        out: Path,
        *,
        main: bool = True,
        rank: int = 0,
        tensorboard: bool = True,
        every: int = 5,
        patience_s: float = 10.0,
    ) -> None:
        self.out, self.main, self.rank, self.every, self.patience_s = out, main, rank, every, patience_s
        self._text = _Lines(out / ("run.log" if main else f"run.rank{rank}.log"), self._complain)
        self._metrics = _Lines(out / "metrics.jsonl", self._complain)
        self._rows: list[_Row] = []
        self._board: SummaryWriter | None = None
        self._board_wanted = main and tensorboard
        self._purge_step: int | None = None
        self._complaints: set[str] = set()
        self._handler = _Handler(self)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)

    def info(self, text: str) -> None:
        """One line for the console and `run.log`, from the main process."""
        if self.main:
            self._say(sys.stdout, "", text)

    def warning(self, text: str) -> None:
        """A line that is kept whichever process says it."""
        self._say(sys.stderr, "WARNING ", text)

    def error(self, text: str) -> None:
        """Like `warning`, for what ends a run."""
        self._say(sys.stderr, "ERROR ", text)

    def scalars(
        self, step: int, values: Mapping[str, Scalar], *, tensorboard_step: int | None = None, console: bool = True
    ) -> None:
        """One row for `metrics.jsonl`, TensorBoard (at `tensorboard_step`, such as an epoch, if given) and the console.

        Raises:
            NonFiniteLoss: after the row is written, when a key that contains "loss" is NaN or infinite.
            ValueError: when a tensor holds more than one number.
        """
        if not self.main:
            return
        kept = {key: _detach(key, value) for key, value in values.items()}
        board_step = step if tensorboard_step is None else tensorboard_step
        self._rows.append(_Row(step, board_step, time.time(), kept, console))
        waiting = any(isinstance(value, Tensor) for value in kept.values())
        if not waiting or len(self._rows) >= self.every or time.time() - self._rows[0].time > self.patience_s:
            self.flush()

    def images(self, step: int, **tensors: Tensor) -> None:
        """Pictures for TensorBoard: (3,H,W) or (B,3,H,W), uint8 or float in [0, 1]."""
        for tag, image in tensors.items():
            draw = "add_images" if image.ndim == 4 else "add_image"
            self._to_board(draw, tag, image.detach().cpu(), step)

    def histograms(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Distributions of finite values for TensorBoard, by name; the main process looks, and waits for the device."""
        for tag, values in tensors.items() if self._board_wanted else ():
            values = values.detach().float().cpu()
            if len(finite := values[values.isfinite()]):  # TensorBoard takes no others, and not nothing
                self._to_board("add_histogram", tag, finite, step)

    def text(self, step: int, **strings: str) -> None:
        """Named texts (a table, a generated sentence) for TensorBoard and `run.log`."""
        if not self.main:
            return
        for tag, string in strings.items():
            self._text.write(f"{_now()} {tag} at step {step}:\n{string}")
            self._to_board("add_text", tag, string, step)

    def progress(self, items: Iterable[T], name: str, total: int | None = None) -> Iterator[T]:
        """The items, with a bar on a terminal and a line every half minute elsewhere."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if not self.main:
            yield from items
        elif sys.stderr.isatty():
            yield from tqdm(items, desc=name, total=total, leave=False, dynamic_ncols=True)
        else:
            last = time.monotonic()
            for done, item in enumerate(items):
                if time.monotonic() - last >= 30:
                    last = time.monotonic()
                    self.info(f"{name} {done}/{total} ({done / total:.0%})" if total else f"{name} {done}")
                yield item

    def rewind(self, step: int) -> None:
        """Forget the rows after `step`: a resumed run writes them again."""
        if not self.main:
            return
        self._rows.clear()
        self._purge_step = step + 1
        path = self.out / "metrics.jsonl"
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            self._metrics.replace("".join(line + "\n" for line in kept))

    def flush(self) -> None:
        """Write every row that waits.

        Raises:
            NonFiniteLoss: see `scalars`.
        """
        rows, self._rows = self._rows, []
        _fetch_tensors(rows)
        bad: NonFiniteLoss | None = None
        for row in rows:
            if row.console:
                shown = (f"{key} {_short(value)}" for key, value in row.values.items())
                self.info(f"step {row.step}  {'  '.join(shown)}")
            content = {"step": row.step, "time": round(row.time, 3), **row.values}
            self._metrics.write(simplejson.dumps(content, ignore_nan=True))
            for key, value in row.values.items():
                self._to_board("add_scalar", key, value, row.board_step, row.time)
                if bad is None and "loss" in key.lower() and not math.isfinite(value):
                    bad = NonFiniteLoss(key, row.step, float(value))
        if bad is not None:
            raise bad

    def close(self) -> None:
        """Write what waits and let go of files and handlers; may be called twice.

        Raises:
            NonFiniteLoss: see `scalars`; everything is closed even then.
        """
        try:
            self.flush()
        finally:
            if self._board is not None:
                self._to_board("close")
            self._board, self._board_wanted = None, False
            self._text.close()
            self._metrics.close()
            logging.getLogger().removeHandler(self._handler)
            if not any(isinstance(handler, _Handler) for handler in logging.getLogger().handlers):
                logging.captureWarnings(False)

    def _say(self, stream: Any, level: str, text: str) -> None:
        who = "" if self.main else f"[rank {self.rank}] "
        self._text.write(f"{_now()} {level}{text}")
        line = f"{time.strftime('%H:%M:%S')} {level}{who}{text}"
        try:
            tqdm.write(line, file=stream)
            stream.flush()
        except UnicodeEncodeError:
            tqdm.write(line.encode("ascii", "replace").decode(), file=stream)
        except (OSError, ValueError):  # a closed pipe (`| head`) or a closed stream
            pass

    def _complain(self, path: Path, error: Exception) -> None:
        """Say once for each file that it loses lines."""
        if path.name in self._complaints:
            return
        self._complaints.add(path.name)
        self._say(sys.stderr, "WARNING ", f"{path}: cannot be written ({error}); lines are lost, the run goes on")

    def _to_board(self, method: str, *args: Any) -> None:
        """Call the TensorBoard writer, made on first use; it is given up when it cannot write."""
        if not self._board_wanted:
            return
        try:
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter  # imports slowly

                self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self._purge_step)
            getattr(self._board, method)(*args)
        except (OSError, RuntimeError) as error:
            self._board, self._board_wanted = None, False
            self._complain(self.out / "tensorboard", error)


class Meter:
    """A weighted mean since `reset`, and over the last `window` values; tensors stay on their device.

    As a part of a checkpoint it lets the mean of an epoch survive a stop in its middle.
    """

    def __init__(self, window: int = 20) -> None:
        self._last: deque[tuple[Scalar, float]] = deque(maxlen=window)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._total: Scalar = 0.0
        self._weight = 0.0
        self._last.clear()

    def add(self, value: Scalar, weight: float = 1.0) -> None:
        """Count a value `weight` times, such as a batch mean by the size of its batch."""
        value = value.detach().to(torch.float64, copy=True) if isinstance(value, Tensor) else float(value)
        self._total = self._total + value * weight
        self._weight += weight
        self._last.append((value, weight))

    @property
    def mean(self) -> float:
        """The mean since `reset`; NaN when nothing was added."""
        return float(self._total) / self._weight if self._weight else math.nan

    @property
    def recent(self) -> float:
        """The moving average: the mean of the last `window` values; NaN when nothing was added."""
        weight = sum(w for _, w in self._last)
        return float(sum(value * w for value, w in self._last)) / weight if weight else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Everything added since `reset`, as plain numbers; all processes have to ask.

        A checkpoint keeps the main process's state, from which all go on: so it holds the mean over them, whose means
        are then what they would have been.
        """
        last = [(float(value), weight) for value, weight in self._last]
        return {**dist.mean({"total": self._total, "weight": self._weight}), "last": last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._total, self._weight = state["total"], state["weight"]
        self._last.clear()
        self._last.extend((value, weight) for value, weight in state["last"])


class Throughput:
    """Samples per second, and the share of the time spent waiting for data, since the last reading."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Start to measure now, such as after an evaluation."""
        self._start, self._samples, self._waited_s = self._clock(), 0, 0.0

    def add(self, samples: int, waited_s: float = 0.0) -> None:
        """Count samples that were worked on and the seconds in which their batch was waited for."""
        self._samples += samples
        self._waited_s += waited_s

    def read(self) -> dict[str, float]:
        """`samples_per_s` and `wait_share` (0 to 1) since the last reading; then starts again."""
        elapsed = max(self._clock() - self._start, 1e-9)
        values = {"samples_per_s": self._samples / elapsed, "wait_share": min(1.0, self._waited_s / elapsed)}
        self.reset()
        return values


class _Row:
    """One call of `scalars` that is not written yet."""

    def __init__(self, step: int, board_step: int, at: float, values: dict[str, Any], console: bool) -> None:
        self.step, self.board_step, self.time, self.values, self.console = step, board_step, at, values, console


class _Lines:
    """A file that grows by whole lines, each on disk when `write` returns; an error is told to `complain`."""

    def __init__(self, path: Path, complain: Callable[[Path, Exception], None]) -> None:
        self.path, self.complain = path, complain
        self._file: int | None = None

    def write(self, text: str) -> None:
        try:
            if self._file is None:
                _mend(self.path)
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            data = (text + "\n").encode("utf-8", "replace")
            size = os.fstat(self._file).st_size
            if (written := os.write(self._file, data)) < len(data):
                os.ftruncate(self._file, size)
                raise OSError(f"only {written} of {len(data)} bytes fit")
        except OSError as error:
            self.complain(self.path, error)

    def replace(self, text: str) -> None:
        """Change the whole content at once."""
        self.close()
        part = self.path.with_suffix(".part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(self.path)
        except OSError as error:
            part.unlink(missing_ok=True)
            self.complain(self.path, error)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def _mend(path: Path) -> None:
    """End a file that a crash left in mid-line: a broken JSON row is dropped, other text gets its newline."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        tail = content[start:]
        if path.suffix == ".jsonl" and tail and _step_of(tail.decode("utf-8", "replace")) == math.inf:
            file.truncate(start)
        elif tail:
            file.write(b"\n")


def _step_of(line: str) -> float:
    """The step of a row of `metrics.jsonl`; infinite when the line is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _detach(key: str, value: Any) -> Any:
    """A number as Python's own; a tensor on a device as a copy that later in-place changes cannot reach."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{key}: should be one number, got a tensor of shape {tuple(value.shape)}: reduce it first"
            )
        value = value.detach()
        return value.item() if _readable(value) else value.reshape(()).to(torch.float64, copy=True)
    return value if isinstance(value, int) else float(value)


def _readable(tensor: Tensor) -> bool:
    """Whether reading the tensor waits for nothing."""
    return tensor.device.type == "cpu"


def _fetch_tensors(rows: list[_Row]) -> None:
    """Turn all tensors of the rows into floats, with one transfer for each device."""
    places: dict[torch.device, list[tuple[dict[str, Any], str]]] = {}
    for row in rows:
        for key, value in row.values.items():
            if isinstance(value, Tensor):
                places.setdefault(value.device, []).append((row.values, key))
    for where in places.values():
        numbers = torch.stack([values[key] for values, key in where]).tolist()
        for (values, key), number in zip(where, numbers, strict=True):
            values[key] = number


class _Handler(logging.Handler):
    """Brings warnings of `logging` and `warnings` into the log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        (self.log.error if record.levelno >= logging.ERROR else self.log.warning)(text.rstrip())


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
