"""The readers that a process keeps open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from core.video.folder import ImageFolder
from core.video.info import VideoError
from core.video.reader import Reader, Video, abandoned
from core.video.source import words

OPEN_READERS = 8  # an open decoder of a large video holds tens of megabytes


def open_reader(path: str | Path, *, strict: bool = False) -> Reader:
    """A reader of its own for a video file or a folder of pictures; for repeated use of one video, or many threads."""
    if Path(path).is_dir():
        return ImageFolder(path)
    return Video(path, strict=strict)


class Cache:
    """The readers last used in this process, at most OPEN_READERS of them open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.readers: OrderedDict[tuple[str, bool], tuple[tuple[int, int], Reader]] = OrderedDict()

    def get(self, path: str | Path, strict: bool) -> Reader:
        """The reader of a path; a new one when the file has changed since."""
        if self.pid != os.getpid():  # forked: nothing open is carried over
            abandoned.append(self.readers)
            self.__init__()  # type: ignore[misc]
        key = (str(path), strict)
        try:
            stat = Path(path).stat()
        except OSError as error:
            raise VideoError(path, f"cannot be found ({words(error)}); check the path") from error
        stamp = (stat.st_size, stat.st_mtime_ns)
        closing: list[Reader] = []
        with self.lock:
            known = self.readers.pop(key, None)
            if known is None or known[0] != stamp:
                if known is not None:
                    closing.append(known[1])
                known = (stamp, open_reader(path, strict=strict))
            self.readers[key] = known
            while len(self.readers) > OPEN_READERS:
                closing.append(self.readers.popitem(last=False)[1][1])
        for reader in closing:
            reader.close()
        return known[1]

    def clear(self) -> None:
        """Close all readers."""
        with self.lock:
            readers = [reader for _, reader in self.readers.values()]
            self.readers.clear()
        for reader in readers:
            reader.close()


cache = Cache()
