# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read disk images: as files on this host, or as volumes that the daemon streams a part of.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import stat
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.library import clean, libvirt
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.qcow2 import Image, read_image
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import Disk, read_disks
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time

# Healthy storage answers in milliseconds; storage that hangs (NFS, a lost path) never does.
_FILE_SECONDS = 3.0
_MOST_HUNG = 2


class Unreadable(Exception):
    """An image could not be read. The text is the end of a sentence that begins with the image."""

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone
        """True if the image does not exist."""


class _NotAtHand(Unreadable):
    """Not a file that can be read on this host; the daemon may be able to read it."""


class Images:
    """The images of one daemon."""

    def __init__(self, connection: t.Any, *, local: bool) -> None:
        """``local`` is true if the daemon runs on this host, so its paths are valid here."""
        self._connection = connection
        self._local = local
        self._volumes: dict[tuple[str, str], str] = {}
        self._others: list[tuple[t.Any, set[str]]] | None = None
        self._hung = 0

    def place(self, disk: Disk) -> str | None:
        """Return the path, on the daemon's host, of the image that the disk writes to; None if it is neither a file nor a block device.

        :raises Unreadable: the disk is a volume that the daemon does not have.
        """
        if disk.volume is None:
            return disk.image
        pool, volume = disk.volume
        try:
            if disk.volume not in self._volumes:  # each costs two requests
                found = self._connection.storagePoolLookupByName(pool).storageVolLookupByName(volume)
                self._volumes[disk.volume] = str(found.path())
            return self._volumes[disk.volume]
        except libvirt.libvirtError as exc:
            raise Unreadable(f"its volume was not found ({clean(exc)})", gone=True) from exc

    def place_or_name(self, disk: Disk) -> str:
        """Return the path of the image, or the name of the disk if it has no path."""
        try:
            return self.place(disk) or disk.target
        except Unreadable:
            return disk.target

    def read(self, path: str) -> Image | None:
        """Return the qcow2 image, or None for another format.

        :raises Unreadable: it does not exist, cannot be read from here, or is damaged.
        """
        try:
            return self._read_here(path)
        except _NotAtHand as exc:
            return self._read_volume(path, gone=exc.gone)

    def at_hand(self, path: str) -> Image | None:
        """Return the image if it is a qcow2 file that can be read on this host without a request, else None."""
        try:
            return self._read_here(path)
        except Unreadable:
            return None

    def layers(
        self, disk: Disk, *, up: bool, asking: bool, already: Mapping[str, Image | None] | None = None
    ) -> Sequence[str] | None:
        """Return the chain of images of the disk, the active image first and its backing files after it; None if it cannot be determined.

        For a VM that is ``up`` the definition has the chain. With ``asking``, images of a VM that is off are also read through the daemon, which costs
        requests. An image is read as qcow2 only if the definition or the image above it declares that format: a guest controls all bytes of a raw
        image, and with a qcow2 header in it could choose which files of the host are opened. libvirt too probes a backing file without a format, and
        accepts raw only. ``already`` holds images that were read before, by their paths.
        """
        if up:
            return disk.chain
        found: list[str] = []
        try:
            for path in self._walk(disk, asking=asking, already=already or {}):
                if path in found:
                    return None  # a loop of backing files
                found.append(path)
        except Unreadable:
            return None
        return found

    def in_use(self, disk: Disk) -> set[str]:
        """Return the chain of images of a disk of a VM or snapshot, as far as they exist.

        :raises Unreadable: an image cannot be read, so its backing files are unknown.
        """
        found: set[str] = set()
        try:
            for path in self._walk(disk, asking=True, already={}):
                if path in found:
                    break
                found.add(path)
        except Unreadable as exc:
            if not exc.gone:
                raise
        return found | set(disk.chain)

    def _walk(self, disk: Disk, *, asking: bool, already: Mapping[str, Image | None]) -> Iterator[str]:
        path, known = self.place(disk) if asking else disk.image, disk.format
        while path is not None:
            yield path
            image = None
            if known == "qcow2":
                image = already[path] if path in already else self.read(path) if asking else self._read_here(path)
            backing, known = (image.backing, image.backing_format or "raw") if image else (None, "raw")
            path = os.path.normpath(os.path.join(os.path.dirname(path), backing)) if backing is not None else None

    def owner(self, path: str, name: str, *, but: str) -> str | None:
        """Return the name of another VM, not the one with the UUID ``but``, that uses the image and has a record of the snapshot ``name``; else None.

        The first call costs one request for each VM of the daemon, so it is only used if an unknown snapshot was found.
        """
        if self._others is None:
            self._others = [(domain, self._places(domain)) for domain in self._connection.listAllDomains()]
        for domain, places in self._others:
            try:
                if path in places and domain.UUIDString() != but and name in domain.snapshotListNames():
                    return str(domain.name())
            except libvirt.libvirtError:
                continue  # removed since it was listed
        return None

    def _places(self, domain: t.Any) -> set[str]:
        try:
            return {self.place_or_name(disk) for disk in read_disks(ElementTree.fromstring(domain.XMLDesc()))}
        except libvirt.libvirtError:
            return set()

    def _read_here(self, path: str) -> Image | None:
        """Read a file of this host, with a time limit for storage that hangs.

        Each read that hangs blocks a thread for ever, and a call about many VMs must end in time. After _MOST_HUNG of them no more files are read.
        """
        if not self._local:
            raise _NotAtHand("it is on another host")
        if self._hung >= _MOST_HUNG:
            raise Unreadable(f"it was not read, because the storage of {self._hung} other images did not answer")
        try:
            return in_time(path, lambda: _read_file(path), Deadline(_FILE_SECONDS))
        except TimedOut as exc:
            self._hung += 1
            raise Unreadable(f"its storage did not answer within {_FILE_SECONDS:g} seconds") from exc
        except ValueError as exc:
            raise Unreadable(f"it is damaged: {exc}") from exc

    def _read_volume(self, path: str, *, gone: bool) -> Image | None:
        """Read it through the daemon, which can read more files than we can, but finds by its path only a volume in a storage pool."""
        if gone:
            raise Unreadable("it does not exist", gone=True)
        try:
            volume = self._connection.storageVolLookupByPath(path)
        except libvirt.libvirtError as exc:
            where = "it is not readable from here" if self._local else "it is on another host"
            raise Unreadable(f"{where} and in no storage pool of libvirt") from exc

        def read(offset: int, length: int) -> bytes:
            stream = self._connection.newStream(0)
            volume.download(stream, offset, length, 0)
            parts = []
            while part := stream.recv(length):
                parts.append(part)
            stream.finish()
            return b"".join(parts)

        try:
            return read_image(read)
        except libvirt.libvirtError as exc:
            raise Unreadable(f"libvirt cannot read it ({clean(exc)})") from exc
        except ValueError as exc:
            raise Unreadable(f"it is damaged: {exc}") from exc


def _read_file(path: str) -> Image | None:
    if not os.access(path, os.R_OK):
        gone = not os.path.exists(path) and os.access(os.path.dirname(path), os.X_OK)
        raise _NotAtHand("it is not readable from here", gone=gone)
    try:
        # Checked before it is opened: opening a FIFO blocks, and opening a device may have side effects.
        _refuse_special(os.stat(path))
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _refuse_special(os.fstat(file))
            return read_image(lambda offset, length: os.pread(file, length, offset))
        finally:
            os.close(file)
    except OSError as exc:
        raise Unreadable(f"it is not readable: {exc.strerror}", gone=isinstance(exc, FileNotFoundError)) from exc


def _refuse_special(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        raise Unreadable("it is neither a regular file nor a block device")
