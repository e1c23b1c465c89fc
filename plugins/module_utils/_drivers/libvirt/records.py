# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Match libvirt's records of internal snapshots with the snapshots in images.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import is_number_below
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.disks import Images
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.qcow2 import Kept
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import INTERNAL, read_disks

# libvirt sets the record's time before the snapshot is taken, by the same clock; the snapshot may be delayed, and the clock may be set in between.
_EARLIER_SECONDS, _LATER_SECONDS = 60, 600
# QEMU numbers the snapshots in an image from 1, and treats a numeric name as this number.
LOWEST_NUMBER = 1_000_000
NUMBER = (
    "has a number as its name, and QEMU would revert to the snapshot with this number in the image instead; power the VM off, find the ID with "
    "qemu-img snapshot -l IMAGE, and revert each disk by hand: qemu-img snapshot -a ID IMAGE"
)


@dataclasses.dataclass(frozen=True)
class Record:
    """libvirt's record of an internal snapshot."""

    name: str
    created: int
    places: Mapping[str, str]
    """The images that hold it, by disk name."""


def ghost(vm: str, name: str, target: str, place: str, problem: str, *, others: Iterable[str] = ()) -> Finding:
    """Return the finding for a record without data: an image holds no snapshot of its name and time. The images in ``others`` still hold it."""
    held = ", ".join(others)
    rest = f"; {held} still holds its part" if held else ""
    return Finding(
        "snapshot_lost",
        f"The snapshot {name} of {vm} has no data: libvirt lists it, but the image of its disk {target} ({place}) {problem}{rest}; a revert would "
        "fail and leave the VM off",
        # libvirt deletes the snapshot from the images that hold it, and ignores the others (9.0, 11.3).
        f"remove it (state=absent); this removes only {'what is left of it' if held else 'the record of libvirt'}",
    )


def differing(vm: str, record: Record, target: str, place: str, kept: Iterable[Kept], *, where: str) -> Finding | None:
    """Return the finding if an image holds a snapshot of the record's name but of another time, else None."""
    other = next((one for one in kept if one.name == record.name), None)
    if other is None:
        return None
    times = [format_time(datetime.fromtimestamp(seconds, timezone.utc)) for seconds in (record.created, other.taken)]
    return Finding(
        "snapshot_differs",
        f"In libvirt's records the snapshot {record.name} of {vm} was taken at {times[0]}, but the image of its disk {target} ({place}) holds a snapshot "
        f"of that name taken at {times[1]}, which may be a different one",
        f"check which snapshot it is; then revert to it ({virsh(where, 'snapshot-revert', vm, record.name)}), or remove it",
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
    """Return True if QEMU may treat this name as the number of another snapshot."""
    return is_number_below(name, LOWEST_NUMBER)


def picked(kept: Sequence[Kept], name: str) -> Kept:
    """Return the snapshot that QEMU would revert to (bdrv_snapshot_goto of QEMU 7.2 and 10.0): numbers are matched before names."""
    return next((one for one in kept if one.id == name), None) or next(one for one in kept if one.name == name)


def unknown(kept: Iterable[Kept], records: Iterable[Record]) -> list[Kept]:
    """Return the snapshots in an image without a record. Names are not unique in an image, so a record is matched by name and time.

    If no snapshot of a record's name has its time, none of that name is returned: differing() reports them.
    """
    kept = list(kept)
    meant = {record.name: fitting(kept, record) for record in records}
    return [one for one in kept if one.name not in meant or meant[one.name] not in (None, one)]


def fitting(kept: Iterable[Kept], record: Record) -> Kept | None:
    """Return the snapshot that matches the record's name and time, or None; of several the last, since libvirt adds none while a record exists."""
    near = [one for one in kept if one.name == record.name and -_EARLIER_SECONDS <= one.taken - record.created <= _LATER_SECONDS]
    return near[-1] if near else None
