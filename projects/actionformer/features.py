"""Feature files (T, C) on disk -> the rows that are wanted, without reading the others.

npy and uncompressed npz files, torch tensors and HDF5 datasets are mapped into memory: a training crop costs its own
bytes, however long the video is.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from core.data import SampleError

UNEQUAL = 2  # rows by which sources of one video may differ: extractors disagree about the last window
ARCHIVE_KEY = "feats"  # of the official npz files


class Recorded(NamedTuple):
    """What `extract` wrote beside a feature file."""

    fps: float
    stride: float
    window: float
    duration: float
    model: str


class Source:
    """One folder of files `<prefix><video><suffix>`, or one HDF5 file with a dataset for each `<prefix><video>`."""

    def __init__(self, place: Path, prefix: str = "", suffix: str = ".npy") -> None:
        self.place, self.prefix, self.suffix = place, prefix, suffix
        self.hdf5 = ".hdf5" in str(place) or place.suffix == ".h5"

    @cached_property
    def names(self) -> frozenset[str]:
        """The videos that are there.

        Raises: ValueError when the place itself is missing.
        """
        if not self.place.exists():
            raise ValueError(f"{self.place} does not exist; data.features=[PLACE] says where the features are")
        if self.hdf5:
            with self._h5() as file:
                found: list[str] = list(file)
        else:
            found = [path.name for path in self.place.iterdir()]
        suffix = "" if self.hdf5 else self.suffix
        start, end = len(self.prefix), len(suffix)
        return frozenset(
            name[start : len(name) - end] for name in found if name.startswith(self.prefix) and name.endswith(suffix)
        )

    def path(self, video: str) -> Path:
        """The file of a video; for HDF5, a name for messages."""
        return self.place / f"{self.prefix}{video}{'' if self.hdf5 else self.suffix}"

    def shape(self, video: str) -> tuple[int, int]:
        """(T, C) of a video, from the head of its file.

        Raises: SampleError naming the file, when it cannot be read or is not two-dimensional.
        """
        if self.hdf5:
            with self._h5() as file:
                rows, channels = self._checked(video, file[f"{self.prefix}{video}"]).shape
        else:
            rows, channels = self._checked(video, self._open(video)).shape
        return int(rows), int(channels)

    def read(self, video: str, start: int = 0, stop: int | None = None, step: int = 1) -> NDArray[np.float32]:
        """Rows start:stop:step as float32 (t, C), in memory of their own.

        Raises: SampleError naming the file, when it cannot be read or is not two-dimensional.
        """
        if self.hdf5:
            with self._h5() as file:
                dataset = self._checked(video, file[f"{self.prefix}{video}"])
                return np.asarray(dataset[start:stop:step], dtype=np.float32)
        rows = self._checked(video, self._open(video))[start:stop:step]
        if isinstance(rows, torch.Tensor):
            return rows.to(torch.float32, copy=True).numpy()
        return np.array(rows, dtype=np.float32)

    def recorded(self, video: str) -> Recorded | None:
        """The geometry that `extract` recorded, if it made this file.

        Raises: SampleError when the record is damaged.
        """
        path = self.place / f"{self.prefix}{video}.json"
        if self.hdf5 or not path.is_file():
            return None
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            return Recorded(about["fps"], about["stride"], about["window"], about["duration"], about["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SampleError(path, f"is no record of an extraction ({error}); extract this video again") from error

    def _open(self, video: str) -> Any:
        path = self.path(video)
        try:
            if path.suffix == ".npz":
                return _open_archive(path)
            if path.suffix in (".pt", ".pth"):
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                return found[ARCHIVE_KEY] if isinstance(found, dict) else found
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise SampleError(
                path, "is missing; extract its features, or take the video out of the annotations"
            ) from None
        except Exception as error:  # files are damaged in many ways; the way out is the same
            raise SampleError(
                path, f"cannot be read ({type(error).__name__}: {error}); get or extract it again"
            ) from error

    def _checked(self, video: str, array: Any) -> Any:
        if getattr(array, "ndim", 0) != 2 or not array.shape[0]:
            shape = tuple(getattr(array, "shape", ()))
            raise SampleError(self.path(video), f"holds an array of shape {shape}, expected (T, C): one row per window")
        return array

    def _h5(self) -> Any:
        try:
            import h5py
        except ImportError:
            raise ValueError(f"{self.place} is HDF5, which needs the package h5py (pip install h5py)") from None
        try:
            return h5py.File(self.place, "r")
        except OSError as error:
            raise SampleError(self.place, f"cannot be read as HDF5 ({error})") from error


class Sources:
    """Several feature places of the same videos, side by side along C."""

    def __init__(self, places: Sequence[Path], prefix: str, suffix: str, channels: Sequence[int]) -> None:
        self.parts = [Source(place, prefix, suffix) for place in places]
        self.channels = tuple(channels)

    def missing(self, video: str) -> Path | None:
        """The first file that is not there, or None."""
        return next((part.path(video) for part in self.parts if video not in part.names), None)

    def length(self, video: str) -> int:
        """Rows that all sources have.

        Raises: SampleError when their numbers differ by more than the last windows, or channels are not as expected.
        """
        shapes = [part.shape(video) for part in self.parts]
        lengths = [shape[0] for shape in shapes]
        if max(lengths) - min(lengths) > UNEQUAL:
            raise SampleError(
                self.parts[0].path(video),
                f"has {lengths[0]} rows, the other sources {lengths[1:]}; features side by side need the same "
                "stride and fps (`resample` changes them)",
            )
        self._check_channels(video, shapes)
        return min(lengths)

    def read(self, video: str, start: int = 0, stop: int | None = None, step: int = 1) -> NDArray[np.float32]:
        """Rows start:stop:step of all sources, float32 (t, C)."""
        stop = self.length(video) if stop is None else stop
        parts = [part.read(video, start, stop, step) for part in self.parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _check_channels(self, video: str, shapes: Sequence[tuple[int, int]]) -> None:
        widths = [shape[1] for shape in shapes]
        each = len(self.channels) == len(widths)
        if (widths != list(self.channels)) if each else (sum(widths) != sum(self.channels)):
            bad = next((i for i, (w, c) in enumerate(zip(widths, self.channels, strict=False)) if each and w != c), 0)
            turned = shapes[bad][0] == self.channels[min(bad, len(self.channels) - 1)]
            advice = "it lies on its side: save it as (T, C)" if turned else f"data.input_dim={widths} would fit"
            raise SampleError(
                self.parts[bad].path(video),
                f"has {widths[bad]} channels, data.input_dim={list(self.channels)} expects others; {advice}",
            )


def _open_archive(path: Path) -> Any:
    """The array `feats` of an npz file, or its only one; mapped where it is stored uncompressed."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        wanted = f"{ARCHIVE_KEY}.npy"
        if wanted not in names and len(names) != 1:
            raise ValueError(f"expected an array named {ARCHIVE_KEY}, found {', '.join(names) or 'none'}")
        info = archive.getinfo(wanted if wanted in names else names[0])
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            head = file.tell()
            if info.compress_type != zipfile.ZIP_STORED or dtype.hasobject:
                file.seek(0)
                return np.lib.format.read_array(file, allow_pickle=False)
    with path.open("rb") as raw:  # the local header may have another length than the central one
        raw.seek(info.header_offset + 26)
        lengths = np.frombuffer(raw.read(4), "<u2")
    offset = info.header_offset + 30 + int(lengths.sum()) + head
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
