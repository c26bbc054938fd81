"""Zip archives in several parts (x.z01, x.z02, ..., x.zip), read as one without joining them on the disk.

The released features come so, in parts of many gigabytes. Each entry of such an archive names the part it begins in;
here the parts become one long file whose table of contents says where in it each entry begins.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

_END, _END64, _LOCATOR, _ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_FULL, _FULL_DISK = 0xFFFFFFFF, 0xFFFF


def open_parts(path: str | Path) -> zipfile.ZipFile:
    """The archive of `x.zip`, together with the parts x.z01, x.z02, ... beside it when it has any.

    Raises:
        ValueError: naming the part that is missing, or the file that is no zip archive.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        count = _parts(path)
        if count == 1:
            return zipfile.ZipFile(path)
        files = [path.with_suffix(f".z{number:02d}") for number in range(1, count)] + [path]
        if absent := [file.name for file in files if not file.is_file()]:
            raise ValueError(f"{path} is the last of {count} parts; put {', '.join(absent)} beside it")
        return zipfile.ZipFile(_joined(files))
    except (zipfile.BadZipFile, struct.error, IndexError) as error:
        raise ValueError(f"{path}: damaged, or no zip archive ({error})") from None


class Joined(io.RawIOBase):
    """Pieces of files (path, start, length) and of memory, one after the other, as one file to read."""

    def __init__(self, pieces: list[tuple[Path | bytes, int, int]]) -> None:
        self.pieces = pieces
        self.size = sum(length for _, _, length in pieces)
        self.place = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def tell(self) -> int:
        """The present place."""
        return self.place

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from the present place on."""
        wanted = self.size - self.place if size is None or size < 0 else size
        found, begin = [], 0
        for source, start, length in self.pieces:
            if wanted > 0 and begin <= self.place < begin + length:
                inside = self.place - begin
                take = min(wanted, length - inside)
                if isinstance(source, bytes):
                    data = source[start + inside : start + inside + take]
                else:
                    with source.open("rb") as file:
                        file.seek(start + inside)
                        data = file.read(take)
                found.append(data)
                self.place += len(data)
                wanted -= len(data)
            begin += length
        return b"".join(found)


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 17)))
        return file.read()


def _end(path: Path) -> tuple[int, int, int, int]:
    """Number of parts; entries; size of the table of contents; where in the last part it begins."""
    tail = _tail(path)
    at = tail.rfind(_END)
    if at < 0:
        raise zipfile.BadZipFile("it has no end record")
    disk, _, _, entries, size, offset, _ = struct.unpack("<4x4H2LH", tail[at : at + 22])
    if _FULL in (size, offset) or _FULL_DISK in (disk, entries):
        locator = tail.rfind(_LOCATOR, 0, at)
        (disks,) = struct.unpack("<L", tail[locator + 16 : locator + 20])
        record = tail.rfind(_END64, 0, locator)
        entries, size, offset = struct.unpack("<3Q", tail[record + 32 : record + 56])
        return disks, entries, size, offset
    return disk + 1, entries, size, offset


def _parts(path: Path) -> int:
    return _end(path)[0]


def _joined(files: list[Path]) -> Joined:
    _, entries, size, offset = _end(files[-1])
    begins, begin = [], 0
    for file in files:
        begins.append(begin)
        begin += file.stat().st_size
    with files[-1].open("rb") as last:
        last.seek(offset)
        table = last.read(size)
    contents = b"".join(_entries(table, begins))
    place = begins[-1] + offset
    record = struct.pack("<4sQ2H2L4Q", _END64, 44, 45, 45, 0, 0, entries, entries, len(contents), place)
    locator = struct.pack("<4sLQL", _LOCATOR, 0, place + len(contents), 1)
    end = struct.pack("<4s4H2LH", _END, 0, 0, _FULL_DISK, _FULL_DISK, _FULL, _FULL, 0)
    memory = contents + record + locator + end
    pieces: list[tuple[Path | bytes, int, int]] = [(file, 0, file.stat().st_size) for file in files[:-1]]
    return Joined([*pieces, (files[-1], 0, offset), (memory, 0, len(memory))])


def _entries(table: bytes, begins: list[int]) -> Iterator[bytes]:
    """The lines of a table of contents, with places in the whole instead of in a part."""
    at = 0
    while table[at : at + 4] == _ENTRY:
        head = list(struct.unpack("<4s6H3L5H2L", table[at : at + 46]))
        name, extra, comment = head[10:13]
        rest = table[at + 46 : at + 46 + name + extra + comment]
        packed, plain, disk, offset = head[8], head[9], head[13], head[16]
        others = b""
        fields = rest[name : name + extra]
        while len(fields) >= 4:
            kind, length = struct.unpack("<2H", fields[:4])
            if kind == 1:
                values = io.BytesIO(fields[4 : 4 + length])
                plain = struct.unpack("<Q", values.read(8))[0] if plain == _FULL else plain
                packed = struct.unpack("<Q", values.read(8))[0] if packed == _FULL else packed
                offset = struct.unpack("<Q", values.read(8))[0] if offset == _FULL else offset
                disk = struct.unpack("<L", values.read(4))[0] if disk == _FULL_DISK else disk
            else:
                others += fields[: 4 + length]
            fields = fields[4 + length :]
        wide = struct.pack("<2H3Q", 1, 24, plain, packed, begins[disk] + offset)
        head[8] = head[9] = head[16] = _FULL
        head[11], head[13] = len(wide) + len(others), 0
        yield struct.pack("<4s6H3L5H2L", *head) + rest[:name] + wide + others + rest[name + extra :]
        at += 46 + name + extra + comment
