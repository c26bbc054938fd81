"""Feature databases: one vector for every frame of every video in LMDB, in the layout that RULSTM published.

Key `<video>_frame_<number, 10 digits>.jpg`, counted from 1 at 30 frames a second; value raw float32, little endian.

    python -m projects.sgear.features FOLDER OUT        # FOLDER/<video>.npy, (N, C) each, becomes a database
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core.data import SampleError

BACKWARDS = 9  # a missing frame is answered by one of so many before it
FIRST_MAP = 1 << 30  # bytes; a database that outgrows its map gets twice as much


def key(video: str, number: int) -> bytes:
    """The key of a frame."""
    return f"{video}_frame_{number:010d}.jpg".encode()


class _Environments:
    """The databases that this process holds open: LMDB must not open one twice, nor carry one over a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.open: dict[Path, lmdb.Environment] = {}

    def get(self, path: Path) -> lmdb.Environment:
        with self.lock:
            if self.pid != os.getpid():  # forked: close the copies, which the parent does not notice, and open anew
                for environment in self.open.values():
                    environment.close()
                self.open, self.pid = {}, os.getpid()
            known = path.resolve()
            if known not in self.open:
                self.open[known] = _opened(path)
            return self.open[known]


_environments = _Environments()


def _opened(path: Path) -> lmdb.Environment:
    data = path / "data.mdb" if path.is_dir() else path
    if not data.is_file():
        raise ValueError(f"{path} holds no data.mdb; docs/data.md says where feature databases come from")
    try:
        return lmdb.open(str(path), readonly=True, lock=False, subdir=path.is_dir(), readahead=False, max_readers=1024)
    except lmdb.Error as error:
        raise ValueError(f"{data}: {error}; is the database whole? Copy it again") from error


class Features:
    """The vectors of some frames from one database or several, whose channels are put one after the other.

    Databases open on first use, in whichever process that is; all objects of a process share what is open.

    Raises, on use: ValueError for a database that is missing or damaged.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise ValueError("Features takes at least one database; got none")
        self.paths = tuple(Path(path) for path in paths)

    def read(self, video: str, numbers: Sequence[int], among: range | None = None) -> Tensor:
        """Float32 (T,C) of these frames (T of them, repeats allowed), each database in one transaction.

        A frame that is missing is answered by the nearest of 9 before it, never a later one; else by zeros. `among` are
        the frames of the clip that these were chosen from; none: from the first to the last of them.

        Raises: SampleError when no frame of the clip has a vector.
        """
        among = among or range(min(numbers), max(numbers) + 1)
        return torch.cat([self._read(path, video, numbers, among) for path in self.paths], dim=1)

    def length(self, video: str) -> int:
        """The number of a video's last frame, in all databases.

        Raises: ValueError when one has no frame of it.
        """
        return min(self._length(path, video) for path in self.paths)

    def _length(self, path: Path, video: str) -> int:
        with _environments.get(path).begin() as transaction:
            cursor = transaction.cursor()
            end = key(video, 9_999_999_999)
            there = cursor.prev() if cursor.set_range(end) else cursor.last()
            name = cursor.key().decode() if there else ""
        if not name.startswith(f"{video}_frame_"):
            raise ValueError(f"{path} has no feature of {video}; names look like {name.rpartition('_frame_')[0]!r}")
        return int(name.removeprefix(f"{video}_frame_").removesuffix(".jpg"))

    def _read(self, path: Path, video: str, numbers: Sequence[int], among: range) -> Tensor:
        found: dict[int, np.ndarray[Any, Any] | None] = {}
        with _environments.get(path).begin(buffers=True) as transaction:
            for number in numbers:
                if number not in found:
                    found[number] = _nearest(transaction, path, video, number)
            present = [vector for vector in found.values() if vector is not None]
            if not present:
                present = [_any(transaction, path, video, among[0] - BACKWARDS, among[-1])]
            channels = len(present[0])
            out = np.zeros((len(numbers), channels), dtype=np.float32)
            for row, number in enumerate(numbers):
                vector = found[number]
                if vector is not None:
                    if len(vector) != channels:
                        reason = f"frame {number} of {video} has {len(vector)} channels, others {channels}"
                        raise SampleError(path, reason + "; copy the database again")
                    out[row] = vector
        return torch.from_numpy(out)


def _nearest(transaction: Any, path: Path, video: str, number: int) -> np.ndarray[Any, Any] | None:
    for candidate in range(number, number - BACKWARDS - 1, -1):
        value = transaction.get(key(video, candidate))
        if value is not None:
            return _vector(value, path, video, candidate)
    return None


def _vector(value: Any, path: Path, video: str, number: int) -> np.ndarray[Any, Any]:
    if not len(value) or len(value) % 4:
        raise SampleError(path, f"frame {number} of {video} has {len(value)} bytes; float32 takes a multiple of 4")
    return np.frombuffer(value, dtype="<f4")


def _any(transaction: Any, path: Path, video: str, first: int, last: int) -> np.ndarray[Any, Any]:
    """Some vector of the video between two frames: the clip is dark, not missing. Keys of one video are in order."""
    cursor = transaction.cursor()
    if cursor.set_range(key(video, max(first, 0))) and bytes(cursor.key()) <= key(video, last):
        return _vector(cursor.value(), path, video, last)
    raise SampleError(
        path,
        f"has no feature of {video} from frame {max(first, 1)} to {last}; is the video in it, and is it the database "
        "with every frame (data_full), not the small one?",
    )


def write(path: str | Path, vectors: Iterable[tuple[str, int, Any]], *, batch: int = 1000) -> int:
    """Write (video, number, vector (C,)) as a database, whole or not at all; returns how many there were.

    Raises: ValueError when `path` is there already.
    """
    target = Path(path)
    if target.exists():
        raise ValueError(f"{target} is there already; remove it, or write elsewhere")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    count = 0
    try:
        temporary.mkdir(parents=True)
        environment = lmdb.open(str(temporary), map_size=FIRST_MAP, sync=False)
        try:
            for rows in _batches(vectors, batch):
                _put(environment, rows)
                count += len(rows)
            environment.sync(True)
        finally:
            environment.close()
        (temporary / "lock.mdb").unlink(missing_ok=True)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return count


class Growing:
    """A database that grows by whole videos and survives being stopped: until `finish` it lies beside its place.

    Raises: ValueError when `path` is there already.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise ValueError(f"{self.path} is there already; remove it, or write elsewhere")
        self.beside = self.path.with_name(f"{self.path.name}.part")
        self.beside.mkdir(parents=True, exist_ok=True)
        self.environment = lmdb.open(str(self.beside), map_size=FIRST_MAP)

    def has(self, video: str, number: int) -> bool:
        """Whether the video was added, `number` being its last feature."""
        with self.environment.begin() as transaction:
            return transaction.get(key(video, number)) is not None

    def add(self, video: str, numbers: Sequence[int], vectors: np.ndarray[Any, Any]) -> None:
        """Features (N,C) of a video under their numbers, all or none of them."""
        values = np.ascontiguousarray(vectors, dtype="<f4")
        rows = [(key(video, number), value.tobytes()) for number, value in zip(numbers, values, strict=True)]
        _put(self.environment, rows)

    def close(self) -> None:
        """Stop for now: the next one on the same path goes on from here."""
        self.environment.close()

    def finish(self) -> None:
        """Put the database in its place."""
        self.environment.close()
        (self.beside / "lock.mdb").unlink(missing_ok=True)
        self.beside.rename(self.path)


def _put(environment: lmdb.Environment, rows: list[tuple[bytes, bytes]]) -> None:
    while True:
        try:
            with environment.begin(write=True) as transaction:
                transaction.cursor().putmulti(rows)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def _batches(vectors: Iterable[tuple[str, int, Any]], size: int) -> Iterator[list[tuple[bytes, bytes]]]:
    rows: list[tuple[bytes, bytes]] = []
    for video, number, vector in vectors:
        rows.append((key(video, number), np.asarray(vector, dtype="<f4").tobytes()))
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


def main(argv: Sequence[str] | None = None) -> int:
    """Turn a folder of arrays into a database."""
    parser = argparse.ArgumentParser(prog="python -m projects.sgear.features", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="FOLDER/<video>.npy, one (N, C) array a video")
    parser.add_argument("out", type=Path, help="the database folder to make")
    parser.add_argument("--fps", type=float, default=30.0, help="frames per second of the arrays (default 30)")
    args = parser.parse_args(argv)
    files = sorted(args.folder.glob("*.npy"))
    if not files:
        parser.error(f"{args.folder} holds no .npy file")

    def vectors() -> Iterator[tuple[str, int, Any]]:
        for file in tqdm(files, desc="videos", leave=False):
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if array.ndim != 2:
                raise ValueError(f"{file}: expected an array (N, C), found shape {array.shape}")
            for row, vector in enumerate(array):
                # Row i is the frame that begins at i / fps; feature n is the one on screen from (n - 1) / 30 on.
                yield file.stem, round(row * 30 / args.fps) + 1, vector

    try:
        count = write(args.out, vectors())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{args.out}: {count} vectors of {len(files)} videos\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
