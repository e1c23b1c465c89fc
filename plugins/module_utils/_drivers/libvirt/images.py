# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compare libvirt's records of snapshots with the snapshots in the disk images.

After a crash, an undefine or the deletion of a record, an image can hold a snapshot without a record (an orphan). After an image was replaced, or a
record was redefined after its snapshot was deleted, a record can have no data.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import json
import shlex
import typing as t
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.disks import Images, Unreadable
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.library import libvirt, libvirt_qemu
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.qcow2 import Kept
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.records import (
    Record,
    differing,
    fitting,
    ghost,
    read_record,
    unknown,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import Disk, read_disks
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time

# A QEMU that hangs never answers, and blocks one of the five calls that a connection may have open (max_client_requests).
_MONITOR_SECONDS = 10.0
_MOST_HUNG = 2


class Search:
    """Compares the images of VMs with libvirt's records, during one module call."""

    def __init__(self, connection: t.Any, *, where: str, local: bool) -> None:
        self._connection = connection
        self._where = where
        self._images = Images(connection, local=local)
        self._hung = 0

    def look(self, vm: Vm, domain: t.Any) -> tuple[Finding, ...]:
        """Return the orphans, the records without data and the unreadable images of a VM. Only its active images are searched for orphans.

        For a VM that is up, QEMU's monitor is queried, since QEMU may not have written all changes to the file; libvirt then marks the VM as tainted.
        For a VM that is off, the images are read. A result is only certain if two checks have seen it (is_doubtful()).

        :raises libvirtError: libvirt did not answer.
        """
        disks = [
            disk for disk in read_disks(ElementTree.fromstring(domain.XMLDesc())) if disk.format == "qcow2" and disk.writable
        ]
        up = bool(domain.isActive())
        held: dict[str, Sequence[Kept]] = {}
        found: list[Finding] = []
        monitor: Mapping[str, Sequence[Kept]] | str = self._ask_qemu(domain) if up and disks else {}
        for disk in disks:
            place = disk.image
            try:
                place = self._images.place(disk)
                held[place or disk.target] = self._of_one(disk, place, monitor if up else None)
            except Unreadable as exc:
                found.append(_not_checked(vm, disk, place, str(exc)))
        records = [read_record(self._images, text) for text in _texts(domain)]
        for disk in disks:
            place = self._images.place_or_name(disk)
            for orphan in unknown(held.get(place, ()), records):
                first = next(one for one in held[place] if one.name == orphan.name) == orphan
                found.append(self._orphan(vm, disk, place, orphan, up=up, first=first))
        for record in records:
            found += self._ghost(vm, record, held, {self._images.place_or_name(disk) for disk in disks})
        return tuple(found)

    def _of_one(self, disk: Disk, place: str | None, monitor: Mapping[str, Sequence[Kept]] | str | None) -> Sequence[Kept]:
        """Return the snapshots in the image; ``monitor`` is QEMU's answer, or None for a VM that is off."""
        if isinstance(monitor, str):
            raise Unreadable(monitor)
        if monitor is not None:
            if (disk.alias or "") not in monitor:
                raise Unreadable("QEMU does not report it")
            return monitor[disk.alias or ""]
        image = self._images.read(place) if place else None
        if image is None:
            raise Unreadable("it is not a qcow2 file or block device" if place is None else "it is not a qcow2 image")
        return image.snapshots

    def _ask_qemu(self, domain: t.Any) -> Mapping[str, Sequence[Kept]] | str:
        """Return the snapshots in the active image of each disk by the disk's name in QEMU, or the reason why QEMU did not report them."""
        if self._hung >= _MOST_HUNG:
            return f"QEMU was not queried, because that of {self._hung} other VMs did not answer"
        ask = json.dumps({"execute": "query-block"})
        try:
            text = in_time("QEMU", lambda: libvirt_qemu.qemuMonitorCommand(domain, ask, 0), Deadline(_MONITOR_SECONDS))
        except TimedOut:
            self._hung += 1
            return f"QEMU did not answer within {_MONITOR_SECONDS:g} seconds; it is busy or hangs"
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_OPERATION_TIMEOUT:
                raise
            return "another operation holds the VM"
        answer = {}
        for drive in json.loads(text).get("return", []):
            # For example /machine/peripheral/virtio-disk0/virtio-backend. Not by file name: that is a json: string if the disk has options.
            kept = [Kept(one["id"], one["name"], one["date-sec"]) for one in _top(drive).get("snapshots", [])]
            answer.update({part: kept for part in drive.get("qdev", "").split("/") if part})
        return answer

    def _orphan(self, vm: Vm, disk: Disk, place: str, orphan: Kept, *, up: bool, first: bool) -> Finding:
        taken = format_time(datetime.fromtimestamp(orphan.taken, timezone.utc))
        holds = f"Disk {disk.target} of {vm} ({place}) holds the snapshot {orphan.name!r} of {taken}"
        other = self._images.owner(place, orphan.name, but=vm.id)
        if other is not None:
            return Finding(
                "shared_image",
                f"{holds}, which belongs to the VM {other}: both VMs use this image",
                "give each VM its own image, and delete no snapshot in this image before that",
            )
        return Finding("orphan", f"{holds}, which libvirt has no record of", self._remedy(vm, place, orphan, up=up, first=first))

    def _remedy(self, vm: Vm, place: str, orphan: Kept, *, up: bool, first: bool) -> str:
        if not first:
            # QEMU deletes by name only, and takes the first match.
            return f"first remove the snapshot {orphan.name} that libvirt lists (state=absent): it is the first of that name in the image"
        if not up:
            return f"run on the host, while the VM is off: qemu-img snapshot -d {shlex.quote(orphan.name)} {shlex.quote(place)}"
        # QEMU has the image open. delvm deletes the snapshot on all disks.
        quoted = orphan.name.replace("\\", "\\\\").replace('"', '\\"')
        delete = f'delvm "{quoted}"'
        return f"run: {virsh(self._where, 'qemu-monitor-command', vm.name, '--hmp', delete)}"

    def _ghost(self, vm: Vm, record: Record, held: Mapping[str, Sequence[Kept]], now: Collection[str]) -> list[Finding]:
        missing: list[tuple[str, str, str]] = []
        others = []
        for target, place in record.places.items():
            kept = held.get(place)
            try:
                if kept is None and place not in now:
                    image = self._images.read(place)  # the VM had another image then; a revert switches back to it
                    kept = image.snapshots if image else ()
            except Unreadable as exc:
                if exc.gone:
                    missing.append((target, place, "does not exist"))
                continue
            if kept is None:
                continue
            if fitting(kept, record) is not None:
                others.append(place)
                continue
            other = differing(vm.name, record, target, place, kept, where=self._where)
            if other is not None:
                return [other]
            missing.append((target, place, "does not hold it"))
        return [ghost(vm.name, record.name, *missing[0], others=others)] if missing else []


def is_doubtful(found: Iterable[Finding]) -> bool:
    """Return True if a second check is needed: while a snapshot is created or removed, it can be in the image or in the records only."""
    return any(one.code != "images_not_checked" for one in found)


def _texts(domain: t.Any) -> list[str]:
    """Return the definitions of all snapshots of a VM."""
    found = []
    for handle in domain.listAllSnapshots():
        try:
            found.append(handle.getXMLDesc())
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                raise  # else removed since it was listed
    return found


def _top(drive: Mapping[str, t.Any]) -> Mapping[str, t.Any]:
    top: Mapping[str, t.Any] = (drive.get("inserted") or {}).get("image") or {}
    return top


def _not_checked(vm: Vm, disk: Disk, place: str | None, why: str) -> Finding:
    shown = place or (":".join(disk.volume) if disk.volume else disk.type)
    return Finding(
        "images_not_checked",
        f"Disk {disk.target} of {vm} ({shown}) was not searched for snapshots without a record in libvirt: {why}",
        f"run on the host, while the VM is off: qemu-img snapshot -l {shlex.quote(shown)}",
    )
