"""Where the frames of a video are: video files, folders of JPEG frames or tars of them, below several roots."""

from __future__ import annotations

import random
import re
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core import video
from core.data import SampleError

Source = Literal["video", "frames"]

OPEN_TARS = 8
SUFFIXES = (".mp4", ".MP4", ".avi", ".mkv", ".webm", ".mov")
_NUMBERED = re.compile(r"(?:.*/)?\D*(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


def find(roots: Sequence[Path], path: str, source: Source) -> Path:
    """The file or folder of a video, in the first of the roots that has it.

    A video may have another suffix than the annotations say: scaled ones are .mp4. Frames of `P01/P01_101.MP4` are
    looked for as P01/rgb_frames/P01_101, P01/P01_101 and P01_101, each a folder or a tar.

    Raises: SampleError naming all roots, when it is in none.
    """
    names = _video_places(Path(path)) if source == "video" else _frame_places(Path(path))
    for root in roots:
        for name in names:
            if (root / name).exists():
                return root / name
    where = ", ".join(map(str, roots)) or "no root (set data.videos)"
    raise SampleError(path, f"is in none of {where}; get the video, or add its folder to data.videos")


def _video_places(path: Path) -> list[Path]:
    return list(dict.fromkeys([path, *(path.with_suffix(suffix) for suffix in SUFFIXES)]))


def _frame_places(path: Path) -> list[Path]:
    stem = path.with_suffix("")
    folders = [stem.parent / "rgb_frames" / stem.name, stem, Path(stem.name)]
    return [place for folder in folders for place in (folder, folder.with_name(f"{folder.name}.tar"))]


class Clock:
    """The times of a video's frames in seconds of its own clock, ascending (N,), and its frames per second."""

    def __init__(self, times_s: NDArray[np.float64], fps: float) -> None:
        self.times_s, self.fps = times_s, fps


def clock(path: Path, fps: float = 0.0) -> Clock:
    """When the frames of a video are shown. Pictures need the `fps` they were extracted at.

    A container whose first frame is later than 0 keeps that offset: annotations count on the clock of players.

    Raises: VideoError when the video cannot be read; SampleError for pictures without a frame rate.
    """
    stamp = path.stat().st_mtime_ns
    return _clock(path, fps, stamp)


@lru_cache(maxsize=64)
def _clock(path: Path, fps: float, stamp: int) -> Clock:
    del stamp  # a file that changed is read again
    if path.is_dir() or path.suffix == ".tar":
        if not fps:
            raise SampleError(path, "pictures have no frame rate; set data.fps, or give EPIC_*_video_info.csv")
        count = len(_tars.get(path)) if path.suffix == ".tar" else video.probe(path).frames
        return Clock(np.arange(count) / fps, fps)
    info = video.probe(path)
    return Clock(np.asarray(video.frame_times(path)) + max(info.start_s, 0.0), info.fps)


def read(path: Path, numbers: Sequence[int]) -> Tensor:
    """Exactly these frames, uint8 (T,H,W,3), each decoded once."""
    if path.suffix == ".tar":
        return _tars.get(path).read(numbers)
    return video.read(path, numbers)


class Stretches:
    """Some frames of a video, `length` at a time. Samples: id, `numbers` int64 (n,), `video` uint8 (n,H,W,3)."""

    def __init__(self, path: Path, numbers: Sequence[int], length: int) -> None:
        self.path = path
        self.parts = [list(numbers[k : k + length]) for k in range(0, len(numbers), length)]

    def __len__(self) -> int:
        return len(self.parts)

    def sample(self, index: int, rng: random.Random) -> dict[str, Any]:
        """A stretch; where it is damaged, those of its frames that can be read."""
        numbers = self.parts[index]
        try:
            pixels = read(self.path, numbers)
        except (video.VideoError, SampleError) as error:
            numbers, pixels = self._readable(numbers, error)
        return {"id": f"{index:06d}", "numbers": torch.tensor(numbers), "video": pixels}

    def _readable(self, numbers: Sequence[int], error: Exception) -> tuple[list[int], Tensor]:
        found = {}
        for number in numbers:
            try:
                found[number] = read(self.path, [number])[0]
            except (video.VideoError, SampleError):
                continue
        if not found:
            raise error
        return list(found), torch.stack(list(found.values()))


class TarFrames:
    """The numbered pictures of a tar, read where they lie; frame i is the picture i + 1, or i where they start at 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as archive:
                files = {member.name: (member.offset_data, member.size) for member in archive if member.isfile()}
        except (tarfile.TarError, OSError) as error:
            raise SampleError(path, f"cannot be read as an uncompressed tar ({error}); copy it again") from error
        numbers = {int(match[1]): place for name, place in files.items() if (match := _NUMBERED.fullmatch(name))}
        if not numbers:
            raise SampleError(path, "holds no numbered pictures (such as frame_0000000001.jpg)")
        base = 0 if 0 in numbers else 1
        self.places = {number - base: place for number, place in numbers.items()}

    def __len__(self) -> int:
        return max(self.places) + 1

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Uint8 (T,H,W,3)."""
        from torchvision.io import ImageReadMode, decode_image

        pictures: dict[int, Tensor] = {}
        with self.path.open("rb") as file:
            for number in sorted(set(numbers)):
                if number not in self.places:
                    raise SampleError(self.path, f"frame {number} is missing; get the archive of this video again")
                offset, size = self.places[number]
                file.seek(offset)
                data = torch.frombuffer(bytearray(file.read(size)), dtype=torch.uint8)
                try:
                    pictures[number] = decode_image(data, mode=ImageReadMode.RGB).permute(1, 2, 0)
                except RuntimeError as error:
                    raise SampleError(self.path, f"frame {number} cannot be decoded; get the archive again") from error
        return torch.stack([pictures[number] for number in numbers])


class _Tars:
    """The tars whose lists of members this process knows; listing one reads a header for every frame."""

    def __init__(self) -> None:
        self.known: OrderedDict[Path, TarFrames] = OrderedDict()

    def get(self, path: Path) -> TarFrames:
        found = self.known.pop(path, None) or TarFrames(path)
        self.known[path] = found
        while len(self.known) > OPEN_TARS:
            self.known.popitem(last=False)
        return found


_tars = _Tars()
