# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parse the header of a qcow2 image: its snapshots, bitmaps and backing file. Pure: a function provides the bytes.

The format is described in docs/interop/qcow2.txt of QEMU. qemu-img is not used, because the image may be on another host, from which libvirt can
only stream a part of it.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import struct
import typing as t
from collections.abc import Iterator, Mapping

Read = t.Callable[[int, int], bytes]
"""Called with offset and length; returns the bytes, fewer at the end of the image."""

_CHUNK = 64 * 1024
# Enough for the fixed part and the few extensions behind it.
_HEADER_BYTES, _SMALLEST_HEADER = 4096, 72
_BITMAPS, _BACKING_FORMAT = 0x23852875, 0xE2792ACA
# QEMU's own limits (block/qcow2.h and qcow2-bitmap.c of 7.2); a larger value means a damaged image.
_MOST_SNAPSHOTS, _MOST_BITMAPS, _LONGEST_EXTRA, _LONGEST_BACKING = 65536, 65535, 1024, 1023
# QEMU allows 64 MiB for the snapshot table. 65536 snapshots with names of 100 bytes take 10 MiB.
_LONGEST_TABLE = 16 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Kept:
    """A snapshot in an image."""

    id: str
    """Unique in the image; names are not unique."""
    name: str
    taken: int
    """Seconds since the epoch, by the host's clock."""


@dataclasses.dataclass(frozen=True)
class Image:
    """A qcow2 image."""

    snapshots: tuple[Kept, ...]
    backing: str | None
    """The backing file as written in the image: a path, absolute or relative to the image's own folder, a URL, or a json: string."""
    bitmaps: tuple[str, ...] = ()
    """The names of its dirty bitmaps. A bitmap that was added while QEMU has the image open is only written when QEMU closes it."""
    backing_format: str | None = None
    """The format of the backing file, if recorded. Never guess it from the file: a guest controls all bytes of a raw image."""


def read_image(read: Read) -> Image | None:
    """Parse the image; return None if it is not qcow2.

    :raises ValueError: the image is damaged.
    """
    header = read(0, _HEADER_BYTES)
    if len(header) < _SMALLEST_HEADER or header[:4] != b"QFI\xfb":
        return None
    version, where, length = struct.unpack_from(">IQI", header, 4)
    count, table = struct.unpack_from(">IQ", header, 60)
    if count > _MOST_SNAPSHOTS or length > _LONGEST_BACKING:
        raise ValueError("its header has impossible values")
    backing = _at(read, where, length).decode(errors="replace") if where else None
    if backing is not None and "\0" in backing:
        raise ValueError("the name of its backing file is invalid")
    extensions = dict(_extensions(header, version, where))
    bitmaps = tuple(_bitmaps(read, header, extensions)) if version >= 3 else ()
    backing_format = extensions[_BACKING_FORMAT].decode(errors="replace") if _BACKING_FORMAT in extensions else None
    return Image(tuple(_snapshots(read, table, count)), backing, bitmaps, backing_format)


def _at(read: Read, offset: int, length: int) -> bytes:
    if offset + length >= 2**63:  # beyond any file, and too large for os.pread()
        raise ValueError("an offset in it is invalid")
    return read(offset, length)


class _Table:
    """Reads a table in the image entry by entry; entries are aligned to 8 bytes."""

    def __init__(self, read: Read, offset: int) -> None:
        self._read = read
        self._offset = offset
        self._data = bytearray()
        self._at = 0

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        while len(self._data) < self._at + length:
            if len(self._data) >= _LONGEST_TABLE:
                raise ValueError("a table in it is too long")
            more = _at(self._read, self._offset + len(self._data), _CHUNK)
            if not more:
                raise ValueError("a table in it is truncated")
            self._data += more
        self._at += length
        return bytes(self._data[self._at - length : self._at])

    def align(self) -> None:
        """Skip the padding before the next entry."""
        self.take(-self._at % 8)

    def skip(self, extra: int) -> None:
        """Skip extra data, which later versions of QEMU may write."""
        if extra > _LONGEST_EXTRA:
            raise ValueError("a table in it has impossible values")
        self.take(extra)


def _snapshots(read: Read, offset: int, count: int) -> Iterator[Kept]:
    table = _Table(read, offset)
    for _number in range(count):
        table.align()
        id_bytes, name_bytes, taken, extra = struct.unpack(">12x2HI16xI", table.take(40))
        table.skip(extra)
        names = table.take(id_bytes + name_bytes)
        yield Kept(names[:id_bytes].decode(errors="replace"), names[id_bytes:].decode(errors="replace"), taken)


def _extensions(header: bytes, version: int, backing: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of each header extension; they end before the name of the backing file, at offset ``backing``."""
    at = struct.unpack_from(">I", header, 100)[0] if version >= 3 and len(header) >= 104 else _SMALLEST_HEADER
    end = min(len(header), backing or len(header))
    while at + 8 <= end:
        kind, size = struct.unpack_from(">II", header, at)
        if kind == 0 or at + 8 + size > end:
            return
        yield kind, header[at + 8 : at + 8 + size]
        at += 8 + size + -size % 8


def _bitmaps(read: Read, header: bytes, extensions: Mapping[int, bytes]) -> Iterator[str]:
    (autoclear,) = struct.unpack_from(">88xQ", header.ljust(96, b"\0"))
    said = extensions.get(_BITMAPS, b"")
    if not autoclear & 1 or len(said) < 24:
        return  # last written by a program without bitmap support: QEMU ignores the bitmaps
    count, offset = struct.unpack_from(">I12xQ", said)
    if count > _MOST_BITMAPS:
        raise ValueError("its header has impossible values")
    table = _Table(read, offset)
    for _number in range(count):
        table.align()
        name_bytes, extra = struct.unpack(">18xHI", table.take(24))
        table.skip(extra)
        yield table.take(name_bytes).decode(errors="replace")
