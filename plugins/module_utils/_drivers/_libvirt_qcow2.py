# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header of a qcow2 image: its snapshots and its backing file. Pure: the bytes come from a function.

The format is described in docs/interop/qcow2.txt of QEMU. Read here instead of by qemu-img, because the image may be on another host, from
which libvirt can send a part of it.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import struct
import typing as t
from collections.abc import Iterator

Read = t.Callable[[int, int], bytes]
"""The bytes from an offset on, so many, or fewer at the end of the image."""

_CHUNK = 64 * 1024
_HEADER_BYTES = 72


@dataclasses.dataclass(frozen=True)
class Kept:
    """A snapshot as an image holds it."""

    id: str
    """Unique in the image; names are not."""
    name: str
    taken: int
    """By the host's clock, in seconds since 1970."""


@dataclasses.dataclass(frozen=True)
class Image:
    """A qcow2 image."""

    snapshots: tuple[Kept, ...]
    backing: str | None
    """The backing file as written in the image: a path, relative to the image's own, or a URL or json: text."""


def read_image(read: Read) -> Image | None:
    """The image, or None for one of another format.

    :raises ValueError: the image is damaged.
    """
    header = read(0, _HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:4] != b"QFI\xfb":
        return None
    where, length = struct.unpack_from(">QI", header, 8)
    count, table = struct.unpack_from(">IQ", header, 60)
    backing = read(where, length).decode(errors="replace") if where else None
    return Image(tuple(_snapshots(read, table, count)), backing)


def _snapshots(read: Read, table: int, count: int) -> Iterator[Kept]:
    data = b""
    at = 0

    def need(length: int) -> int:
        """The next ``length`` bytes are in ``data``; return where they begin."""
        nonlocal data, at
        while len(data) < at + length:
            more = read(table + len(data), _CHUNK)
            if not more:
                raise ValueError("its table of snapshots ends too early")
            data += more
        at += length
        return at - length

    for _number in range(count):
        need(-at % 8)  # each entry begins at a multiple of 8
        start = need(40)
        id_bytes, name_bytes, taken, extra = struct.unpack_from(">12x2HI16xI", data, start)
        need(extra)
        start = need(id_bytes + name_bytes)
        names = data[start : start + id_bytes + name_bytes]
        yield Kept(names[:id_bytes].decode(errors="replace"), names[id_bytes:].decode(errors="replace"), taken)
