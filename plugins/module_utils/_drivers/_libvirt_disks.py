# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disk images, read where they are: files of this host, or volumes that the daemon sends a part of.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import os
import stat
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_library import clean, libvirt
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_qcow2 import Image, read_image
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import Disk, read_disks
from ansible_collections.safepoint.vm.plugins.module_utils._errors import TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time

# A healthy storage answers in milliseconds, one that hangs (NFS, a lost path) never.
_FILE_SECONDS = 3.0
_MOST_HUNG = 2


class Unreadable(Exception):
    """Why an image could not be read, as the end of a sentence that begins with it."""

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone
        """Whether it does not exist."""


class _NotAtHand(Unreadable):
    """It is no file that can be read here; the daemon may be able to."""


class Images:
    """The images of one daemon."""

    def __init__(self, connection: t.Any, *, local: bool) -> None:
        """``local`` is that the daemon runs on this host, so that its paths mean the same here."""
        self._connection = connection
        self._local = local
        self._volumes: dict[tuple[str, str], str] = {}
        self._others: list[tuple[t.Any, set[str]]] | None = None
        self._hung = 0

    def place(self, disk: Disk) -> str | None:
        """The path of the image that the disk is written to, on the daemon's host; None for what is no file or block device.

        :raises Unreadable: it is a volume that the daemon does not have.
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
        """The path of the image, or the name of the disk where it has none."""
        try:
            return self.place(disk) or disk.target
        except Unreadable:
            return disk.target

    def read(self, path: str) -> Image | None:
        """The qcow2 image, or None for one of another format.

        :raises Unreadable: it is not there, or cannot be read from here, or is damaged.
        """
        try:
            return self._read_here(path)
        except _NotAtHand as exc:
            return self._read_volume(path, gone=exc.gone)

    def at_hand(self, path: str) -> Image | None:
        """The image, where it is a qcow2 file that can be read here without a request; else None."""
        try:
            return self._read_here(path)
        except Unreadable:
            return None

    def layers(
        self, disk: Disk, *, up: bool, asking: bool, already: Mapping[str, Image | None] | None = None
    ) -> Sequence[str] | None:
        """The images that the disk consists of, its own first and then those that it is based on; None where that cannot be found out.

        libvirt tells it of a VM that is ``up``. With ``asking`` images of one that is off are read through the daemon too, which costs requests.
        Only what is said to be qcow2 is read as such, by the definition or by the image above it: a guest writes all of a raw one, and with a
        header in it would choose the files of the host that are opened. libvirt probes a base without a format too, and allows raw only. What was
        read ``already``, by its path, is not read again.
        """
        if up:
            return disk.chain
        found: list[str] = []
        try:
            for path in self._walk(disk, asking=asking, already=already or {}):
                if path in found:
                    return None  # images that are based on each other
                found.append(path)
        except Unreadable:
            return None
        return found

    def in_use(self, disk: Disk) -> set[str]:
        """The images that the disk of a VM or of a snapshot consists of, as far as they exist.

        :raises Unreadable: one of them cannot be read, so that those below it are not known.
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
        """The VM that knows the snapshot ``name`` in the image, where another one than that with the UUID ``but`` is defined on it too.

        One request for each VM of the daemon, once, so only asked where something unknown was found.
        """
        if self._others is None:
            self._others = [(domain, self._places(domain)) for domain in self._connection.listAllDomains()]
        for domain, places in self._others:
            try:
                if path in places and domain.UUIDString() != but and name in domain.snapshotListNames():
                    return str(domain.name())
            except libvirt.libvirtError:
                continue  # it went away since it was listed
        return None

    def _places(self, domain: t.Any) -> set[str]:
        try:
            return {self.place_or_name(disk) for disk in read_disks(ElementTree.fromstring(domain.XMLDesc()))}
        except libvirt.libvirtError:
            return set()

    def _read_here(self, path: str) -> Image | None:
        """Read a file of this host, and give up on storage that hangs, on which each look would block for ever.

        Each one that hangs keeps a thread, and what is asked of many VMs has to end in time: no more are read after a few.
        """
        if not self._local:
            raise _NotAtHand("it is on another host")
        if self._hung >= _MOST_HUNG:
            raise Unreadable(f"the storage of {self._hung} others did not answer, and no more were read")
        try:
            return in_time(path, lambda: _read_file(path), Deadline(_FILE_SECONDS))
        except TimedOut as exc:
            self._hung += 1
            raise Unreadable(f"its storage did not answer within {_FILE_SECONDS:g} seconds") from exc
        except ValueError as exc:
            raise Unreadable(f"it is damaged: {exc}") from exc

    def _read_volume(self, path: str, *, gone: bool) -> Image | None:
        """Through the daemon, which can read what we cannot; only what is in a storage pool can be asked for by its path."""
        if gone:
            raise Unreadable("it does not exist", gone=True)
        try:
            volume = self._connection.storageVolLookupByPath(path)
        except libvirt.libvirtError as exc:
            where = "it is not readable from here" if self._local else "it is on another host"
            raise Unreadable(f"{where}, and in no storage pool of libvirt") from exc

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
        # Before it is opened, since that may block (a FIFO) or do something (a device).
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
        raise Unreadable("it is neither a file nor a block device")
