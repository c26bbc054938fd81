"""A folder of numbered pictures (frame_0000000001.jpg, ...), read like a video."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from core.video.info import FrameIndexError, VideoError, VideoInfo
from core.video.pictures import Stack
from core.video.reader import Reader

NAME = re.compile(r"(.*?)(\d+)(\.(?:jpe?g|png))", re.IGNORECASE)


class ImageFolder(Reader):
    """Pictures of one folder with a number at the end of their names, as EPIC-KITCHENS publishes its frames.

    Frame i is the picture number i, or i + 1 where numbers start above 0, so that a missing picture shifts no other:
    asking for it raises VideoError with its name. Times need `fps`, which a folder does not know.
    """

    def __init__(self, path: str | Path, *, fps: float = 0.0) -> None:
        self.path = Path(path)
        self.fps = fps
        self._names: dict[int, str] | None = None
        self._info: VideoInfo | None = None

    def __len__(self) -> int:
        return max(self._listed()) + 1

    @property
    def info(self) -> VideoInfo:
        """Facts of the folder; `lost` counts the missing pictures."""
        if self._info is None:
            names = self._listed()
            first = self._picture(min(names))
            self._info = VideoInfo(
                frames=len(self),
                fps=self.fps,
                duration_s=self.duration_s,
                height=int(first.shape[0]),
                width=int(first.shape[1]),
                rotation=0,
                codec=Path(names[min(names)]).suffix.lstrip(".").lower(),
                pixel_format="rgb24",
                container="folder",
                start_s=0.0,
                audio=False,
                seekable=True,
                lost=len(self) - len(names),
                promised=0,
                tick_s=1 / self.fps if self.fps else 0.0,
            )
        return self._info

    def times(self) -> list[float]:
        """Seconds from the first frame to every frame."""
        if not self.fps:
            raise VideoError(self.path, "a folder of pictures has no frame rate; read by frame number instead of time")
        return [number / self.fps for number in range(len(self))]

    @property
    def duration_s(self) -> float:
        """Seconds that all frames last, 0 without a frame rate."""
        return len(self) / self.fps if self.fps else 0.0

    def close(self) -> None:
        """Forget the listing."""
        self._names = self._info = None

    def _stack(self, wanted: Sequence[int], short_side: int | None) -> Tensor:
        if wanted[-1] >= len(self):
            raise FrameIndexError(
                self.path, f"frame {wanted[-1]} asked for, the folder has {len(self)} frames (0 to {len(self) - 1})"
            )
        stack = Stack(self.path, len(wanted), short_side)
        for number in wanted:
            stack.add(self._picture(number).numpy())
        return stack.result()

    def _picture(self, number: int) -> Tensor:
        names = self._listed()
        if number not in names:
            raise VideoError(self.path, f"{self._name(number)} is missing; extract the frames of this video again")
        from torchvision.io import ImageReadMode, decode_image  # seconds to import, and seldom needed

        file = self.path / names[number]
        try:
            image: Tensor = decode_image(str(file), mode=ImageReadMode.RGB)
        except (RuntimeError, OSError) as error:
            reason = "is empty (0 bytes)" if not file.stat().st_size else "cannot be decoded"
            raise VideoError(self.path, f"{file.name} {reason}; extract the frames of this video again") from error
        return image.permute(1, 2, 0)

    def _name(self, number: int) -> str:
        """What the picture of a frame should be called, going by its neighbors."""
        names = self._listed()
        known = min(names)
        match = NAME.fullmatch(names[known])
        assert match is not None
        offset = int(match[2]) - known
        return f"{match[1]}{number + offset:0{len(match[2])}d}{match[3]}"

    def _listed(self) -> dict[int, str]:
        """Frame number -> file name."""
        if self._names is None:
            matches = [match for file in self.path.iterdir() if (match := NAME.fullmatch(file.name))]
            if not matches:
                raise VideoError(self.path, "holds no numbered pictures (such as frame_0000000001.jpg)")
            kinds = {(match[1], match[3]) for match in matches}
            if len(kinds) > 1:
                found = ", ".join(sorted(f"{head}*{tail}" for head, tail in kinds))
                raise VideoError(self.path, f"holds pictures of several kinds ({found}); keep one kind a folder")
            numbers = {int(match[2]): match.string for match in matches}
            base = 0 if 0 in numbers else 1
            self._names = {number - base: name for number, name in numbers.items()}
        return self._names
