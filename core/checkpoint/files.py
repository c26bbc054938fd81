"""Files that are either whole or not there: atomic writing, verified downloads."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; a block that ends well makes it `path`, safely on the disk, else it is removed.

    Whenever the process is killed, `path` is the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the name is then written a bit later
        _sync(path.parent)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a small file (text as UTF-8) so that nobody ever sees half of it; makes missing folders."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def existing(path: str | Path) -> Path:
    """The path of a file that is there. Raises: ValueError saying where it was looked for."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file (working folder {Path.cwd()})")
    return path


def fetch(uri: str | Path) -> Path:
    """The local file that `uri` names: a path, or an http(s) address that is downloaded once and cached.

    `uri#sha256=<64 hex digits>` is also verified.

    Raises:
        ValueError: when the file is not there, cannot be downloaded, or is another one than its sha256 says.
    """
    address, _, fragment = str(uri).partition("#sha256=")
    remote = address.startswith(("http://", "https://"))
    path = existing(_download(address) if remote else Path(address).expanduser())
    if fragment:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != fragment.lower():
            way = f"delete {path} and try again" if remote else "get it again, or correct the sha256"
            raise ValueError(f"{path}: expected sha256 {fragment}, the file has {found}; {way}")
    return path


def _download(url: str) -> Path:
    from iopath.common.file_io import HTTPURLHandler, PathManager, get_cache_dir

    # iopath names a cached file by the path of its address only, so each host gets a folder of its own.
    parts = urlsplit(url)
    cache = Path(get_cache_dir()) / parts.netloc.replace(":", "_")
    paths = PathManager()
    paths.register_handler(HTTPURLHandler())
    try:
        return Path(paths.get_local_path(url, cache_dir=str(cache)))
    except OSError as error:
        place = cache / PurePosixPath(parts.path.lstrip("/")).parent / url.rpartition("/")[2]
        raise ValueError(
            f"cannot download {url} ({error}); without a network, get the file elsewhere and put it at {place}"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
