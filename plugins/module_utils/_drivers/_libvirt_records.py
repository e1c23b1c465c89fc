# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's record of an internal snapshot, and the snapshot in an image that it means.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_disks import Images
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_qcow2 import Kept
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import (
    INTERNAL,
    read_disks,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Finding
from ansible_collections.safepoint.vm.plugins.module_utils._naming import is_number_below

# libvirt dates the record before the snapshot is taken, by the same clock; both may wait for each other, and the clock may be set.
_EARLIER_SECONDS, _LATER_SECONDS = 60, 600
# QEMU numbers the snapshots in an image from 1 on, and takes a name that is such a number for the number.
LOWEST_NUMBER = 1_000_000
NUMBER = (
    "has a number as its name, and QEMU goes back to the snapshot that has this number in the image instead; power the VM off, find its ID with "
    "qemu-img snapshot -l IMAGE, and go back by hand on each disk: qemu-img snapshot -a ID IMAGE"
)


@dataclasses.dataclass(frozen=True)
class Record:
    """libvirt's record of an internal snapshot."""

    name: str
    created: int
    places: Mapping[str, str]
    """The images that hold it, by the names of the disks."""


def ghost(vm: str, name: str, target: str, place: str, problem: str, *, others: Iterable[str] = ()) -> Finding:
    """The finding that a record lacks data: one of its images holds no snapshot of its name and time; ``others`` still hold one."""
    held = ", ".join(others)
    rest = f", and {held} still holds its part" if held else ""
    return Finding(
        "snapshot_lost",
        f"The snapshot {name} of {vm} has no data: libvirt lists it, and the image of its disk {target} ({place}) {problem}{rest}; a revert would "
        "fail and leave the VM off",
        # libvirt removes from each image what it finds there, and ignores that another one has nothing (9.0, 11.3).
        f"remove it (state=absent); this removes {'what is left of it' if held else 'the record of libvirt'} and nothing else",
    )


def differing(vm: str, record: Record, target: str, place: str, kept: Iterable[Kept], *, where: str) -> Finding | None:
    """The finding that an image holds a snapshot of the record's name, and of another time."""
    other = next((one for one in kept if one.name == record.name), None)
    if other is None:
        return None
    times = [format_time(datetime.fromtimestamp(seconds, timezone.utc)) for seconds in (record.created, other.taken)]
    return Finding(
        "snapshot_differs",
        f"libvirt says that the snapshot {record.name} of {vm} was taken at {times[0]}, and the image of its disk {target} ({place}) holds one of that "
        f"name of {times[1]}, which may be another one",
        f"find out which one it is; then go back to it ({virsh(where, 'snapshot-revert', vm, record.name)}), or remove it",
    )


def read_record(images: Images, snapshot_xml: str) -> Record:
    root = ElementTree.fromstring(snapshot_xml)
    inside = {disk.get("name") for disk in root.iterfind("disks/disk") if disk.get("snapshot") == INTERNAL}
    then = root.find("domain")
    disks = [disk for disk in read_disks(then) if disk.target in inside] if then is not None else []
    places = {disk.target: images.place_or_name(disk) for disk in disks}
    created = int(root.findtext("creationTime") or 0)
    return Record(root.findtext("name") or "", created, {target: place for target, place in places.items() if place != target})


def is_number(name: str) -> bool:
    """Whether QEMU may take the name of a snapshot for the number of another one."""
    return is_number_below(name, LOWEST_NUMBER)


def picked(kept: Sequence[Kept], name: str) -> Kept:
    """The one that QEMU goes back to (bdrv_snapshot_goto of QEMU 7.2 and 10.0): its number in the image counts before its name."""
    return next((one for one in kept if one.id == name), None) or next(one for one in kept if one.name == name)


def unknown(kept: Iterable[Kept], records: Iterable[Record]) -> list[Kept]:
    """The snapshots in an image that belong to no record. Names may repeat in an image, so the time decides which one a record means.

    Where none has the time of its record, each of that name may be the one (differing() tells of them).
    """
    kept = list(kept)
    meant = {record.name: fitting(kept, record) for record in records}
    return [one for one in kept if one.name not in meant or meant[one.name] not in (None, one)]


def fitting(kept: Iterable[Kept], record: Record) -> Kept | None:
    """The snapshot that a record means: the last of its name that was taken when libvirt says, since libvirt adds none beside a record."""
    near = [one for one in kept if one.name == record.name and -_EARLIER_SECONDS <= one.taken - record.created <= _LATER_SECONDS]
    return near[-1] if near else None
