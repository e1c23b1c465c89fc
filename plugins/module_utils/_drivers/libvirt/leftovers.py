# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files and data that remain after the removal of a snapshot.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import shlex
import typing as t
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed, Unsupported
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.disks import Images, Unreadable
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.records import Record, fitting, read_record
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import external_files, read_disks


@contextlib.contextmanager
def checked_removal(vm: Vm, snapshot: t.Any, domain: t.Any, *, where: str, local: bool) -> Iterator[None]:
    """Refuse a removal if an image does not exist, and check afterwards that no image still holds the snapshot.

    libvirt runs qemu-img on each image, ignores its failure, and deletes the record (9.0, 11.3): an image that is read-only, or on storage that is
    not mounted, then holds data without a record. If the VM is up, QEMU removes the snapshot, and libvirt reports its failure. Images on another
    host are only read if they are in a storage pool, with some requests for each.

    :raises Unsupported: an image does not exist; nothing was changed.
    :raises BackendFailed: the record was deleted but the data are still in an image.
    """
    if domain.isActive():
        yield
        return
    images = Images(domain.connect(), local=local)
    record = read_record(images, snapshot.getXMLDesc())
    for target, place in record.places.items():
        if _holds(images, place, record) is None:
            raise Unsupported(
                f"The snapshot {record.name} of {vm} cannot be removed: the image of its disk {target} ({place}) does not exist; make its storage "
                f"available, or remove libvirt's record only ({virsh(where, 'snapshot-delete', vm.name, record.name, '--metadata')})"
            )
    yield
    left = [place for place in record.places.values() if _holds(images, place, record)]
    if left:
        commands = "; ".join(f"qemu-img snapshot -d {shlex.quote(record.name)} {shlex.quote(place)}" for place in left)
        raise BackendFailed(
            f"libvirt removed its record of the snapshot {record.name} of {vm}, but the data are still in {', '.join(left)}; make the image writable "
            f"and remove the data on the host while the VM is off: {commands}"
        )


def unused_files(snapshot_xml: str, domain: t.Any, others: Iterable[str], *, local: bool) -> list[str]:
    """Return the files of a lost external snapshot that neither the VM nor another of its snapshots uses.

    After a merge of only some disks, or of one image in the middle, the VM may still run on such a file. Empty if an image cannot be read.
    ``others`` are the definitions of the VM's other snapshots that still have their data.
    """
    images = Images(domain.connect(), local=local)
    used: set[str] = set()
    definitions = [ElementTree.fromstring(domain.XMLDesc())]
    definitions += [then for then in (ElementTree.fromstring(text).find("domain") for text in others) if then is not None]
    try:
        for definition in definitions:
            for disk in read_disks(definition):
                used |= images.in_use(disk)
    except Unreadable:
        return []
    return [path for path in external_files(snapshot_xml) if path not in used]


def _holds(images: Images, place: str, record: Record) -> bool | None:
    """Return True if the image holds the snapshot; False also if it cannot be read from here; None if there is no image."""
    try:
        image = images.read(place)
    except Unreadable as exc:
        return None if exc.gone else False
    return image is not None and fitting(image.snapshots, record) is not None
