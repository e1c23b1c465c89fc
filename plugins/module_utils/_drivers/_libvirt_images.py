# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's records of snapshots beside what the disk images hold: either may be there without the other.

A crash, an undefined VM or a deleted record leave a snapshot in an image that libvirt does not know (an orphan). An image that was replaced, or a
record that was written again after its snapshot was removed, leave a record without data.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
import typing as t
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline, format_time
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_disks import Images, Unreadable
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_library import libvirt, libvirt_qemu
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_qcow2 import Kept
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_ways import Seen, bitmaps_hinder, losses
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import (
    EXTERNAL,
    INTERNAL,
    Disk,
    external_bases,
    read_disks,
)
from ansible_collections.safepoint.vm.plugins.module_utils._errors import TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._model import Finding, Snapshot, Vm, chain_of
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time

# A QEMU that hangs never answers. Each that does keeps one of the five requests that a connection may have open (max_client_requests).
_MONITOR_SECONDS = 10.0
_MOST_HUNG = 2
# libvirt dates the record before the snapshot is taken, by the same clock; both may wait for each other, and the clock may be set.
_EARLIER_SECONDS, _LATER_SECONDS = 60, 600
# QEMU numbers the snapshots in an image from 1 on, and takes a name that is such a number for the number.
LOWEST_NUMBER = 1_000_000
_NUMBER = (
    "has a number as its name, and QEMU goes back to the snapshot that has this number in the image instead; power the VM off, find its ID with "
    "qemu-img snapshot -l IMAGE, and go back by hand on each disk: qemu-img snapshot -a ID IMAGE"
)
# What is being taken or removed while it is looked at is in one of the two places only, for a moment.
_SECOND_LOOK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class _Record:
    """libvirt's record of an internal snapshot."""

    name: str
    created: int
    places: Mapping[str, str]
    """The images that hold it, by the names of the disks."""


class Search:
    """Compares the images of VMs with libvirt's records, for one call."""

    def __init__(self, connection: t.Any, *, where: str, local: bool) -> None:
        self._connection = connection
        self._where = where
        self._images = Images(connection, local=local)
        self._hung = 0

    def look(self, vm: Vm, domain: t.Any) -> tuple[Finding, ...]:
        """The orphans, records without data and unreadable images of a VM. Only the images that it writes to now are searched for orphans.

        A VM that is up is asked through QEMU's monitor, upon which libvirt notes it as tainted: QEMU may hold changes back from the file. The
        images of one that is off are read.

        :raises libvirtError: libvirt did not answer.
        """
        found = self._compare(vm, domain)
        if any(one.code != "images_not_checked" for one in found):
            time.sleep(_SECOND_LOOK_SECONDS)
            again = self._compare(vm, domain)
            found = [one for one in again if one in found]
        return tuple(found)

    def _compare(self, vm: Vm, domain: t.Any) -> list[Finding]:
        disks = [
            disk for disk in read_disks(ElementTree.fromstring(domain.XMLDesc())) if disk.format == "qcow2" and disk.writable
        ]
        up = bool(domain.isActive())
        held: dict[str, Sequence[Kept]] = {}
        found = []
        monitor: Mapping[str, Sequence[Kept]] | str = self._ask_qemu(domain) if up and disks else {}
        for disk in disks:
            place = disk.image
            try:
                place = self._images.place(disk)
                held[place or disk.target] = self._of_one(disk, place, monitor if up else None)
            except Unreadable as exc:
                found.append(_not_checked(vm, disk, place, str(exc)))
        records = [_record(self._images, text) for text in _texts(domain)]
        for disk in disks:
            place = _key(self._images, disk)
            for orphan in _unknown(held.get(place, ()), place, records):
                first = next(one for one in held[place] if one.name == orphan.name) == orphan
                found.append(self._orphan(vm, disk, place, orphan, up=up, first=first))
        for record in records:
            found += self._ghost(vm, record, held, {_key(self._images, disk) for disk in disks})
        return found

    def _of_one(self, disk: Disk, place: str | None, monitor: Mapping[str, Sequence[Kept]] | str | None) -> Sequence[Kept]:
        """The snapshots that the image holds, by QEMU's answer where the VM is up."""
        if isinstance(monitor, str):
            raise Unreadable(monitor)
        if monitor is not None:
            if (disk.alias or "") not in monitor:
                raise Unreadable("QEMU does not tell of it")
            return monitor[disk.alias or ""]
        image = self._images.read(place) if place else None
        if image is None:
            raise Unreadable("it is no qcow2 file or block device" if place is None else "it is no qcow2 image")
        return image.snapshots

    def _ask_qemu(self, domain: t.Any) -> Mapping[str, Sequence[Kept]] | str:
        """The snapshots in the topmost image of each disk of a VM that is up, by the disk's name in QEMU; or why QEMU did not tell."""
        if self._hung >= _MOST_HUNG:
            return f"{self._hung} other VMs did not answer, and no more were asked"
        ask = json.dumps({"execute": "query-block"})
        try:
            text = in_time("QEMU", lambda: libvirt_qemu.qemuMonitorCommand(domain, ask, 0), Deadline(_MONITOR_SECONDS))
        except TimedOut:
            self._hung += 1
            return f"QEMU did not answer within {_MONITOR_SECONDS:g} seconds, so that it is busy or hangs"
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_OPERATION_TIMEOUT:
                raise
            return "another operation holds the VM"
        answer = {}
        for drive in json.loads(text).get("return", []):
            # As in /machine/peripheral/virtio-disk0/virtio-backend. The file's name is json: text where the disk has options.
            kept = [Kept(one["id"], one["name"], one["date-sec"]) for one in _top(drive).get("snapshots", [])]
            answer.update({part: kept for part in drive.get("qdev", "").split("/") if part})
        return answer

    def _orphan(self, vm: Vm, disk: Disk, place: str, orphan: Kept, *, up: bool, first: bool) -> Finding:
        taken = format_time(datetime.fromtimestamp(orphan.taken, timezone.utc))
        holds = f"Disk {disk.target} of {vm} ({place}) holds the snapshot {orphan.name!r} of {taken}"
        other = self._other_owner(vm, place, orphan)
        if other is not None:
            return Finding(
                "shared_image",
                f"{holds}, which is one of the VM {other}: both VMs are defined on that image",
                "give each VM an image of its own, and delete nothing in this one before that",
            )
        return Finding("orphan", f"{holds} that libvirt does not know", self._remedy(vm, place, orphan, up=up, first=first))

    def _remedy(self, vm: Vm, place: str, orphan: Kept, *, up: bool, first: bool) -> str:
        if not first:
            # QEMU deletes by name only, and of two the first.
            return f"remove the snapshot {orphan.name} that libvirt lists first (state=absent), which is the first of that name in the image"
        if not up:
            return f"run on the host, while the VM is off: qemu-img snapshot -d {shlex.quote(orphan.name)} {shlex.quote(place)}"
        # QEMU holds the image, and deletes on all disks at once.
        quoted = orphan.name.replace("\\", "\\\\").replace('"', '\\"')
        delete = shlex.quote(f'delvm "{quoted}"')
        return f"run: virsh -c {shlex.quote(self._where)} qemu-monitor-command {shlex.quote(vm.name)} --hmp {delete}"

    def _other_owner(self, vm: Vm, place: str, orphan: Kept) -> str | None:
        """The VM that knows the snapshot, where two are defined on one image. One request for each VM, only where something was found."""
        for domain in self._connection.listAllDomains():
            if domain.UUIDString() == vm.id:
                continue
            try:
                same = place in [_key(self._images, disk) for disk in read_disks(ElementTree.fromstring(domain.XMLDesc()))]
                if same and orphan.name in domain.snapshotListNames():
                    return str(domain.name())
            except libvirt.libvirtError:
                continue  # it went away meanwhile
        return None

    def _ghost(self, vm: Vm, record: _Record, held: Mapping[str, Sequence[Kept]], now: Collection[str]) -> list[Finding]:
        for target, place in record.places.items():
            kept = held.get(place)
            try:
                if kept is None and place not in now:
                    image = self._images.read(place)  # the VM had another image then, and a revert brings it back
                    kept = image.snapshots if image else ()
                problem = "does not hold it" if kept is not None and _fitting(kept, record) is None else None
            except Unreadable as exc:
                problem = "does not exist" if exc.gone else None
            if problem:
                return [ghost(vm.name, record.name, target, place, problem)]
        return []


class Judge:
    """Tells of the snapshots in a listing what their images say about them, as far as that costs next to nothing."""

    def __init__(self, connection: t.Any, *, local: bool) -> None:
        self._images = Images(connection, local=local)

    def judged(self, domain: t.Any, snapshots: Sequence[Snapshot], texts: Mapping[str, str]) -> Sequence[Snapshot]:
        """The snapshots of a VM, parents before their children, with those told that cannot be gone back to; ``texts`` are their definitions.

        One request more for a VM that has external snapshots (the definition of the VM): without it a merged one passes for a way back.
        Internal ones are looked for in the images where these are files that can be read here, without a request; else a revert finds out.

        :raises libvirtError: the VM did not answer.
        """
        if any(one.kind == EXTERNAL for one in snapshots):
            # One that is being made is listed before the VM leaves the image that it is based on, and before it is the current one.
            chain = chain_of(snapshots)
            bases = {one.id: external_bases(texts[one.id]) for one in snapshots if one.kind == EXTERNAL and one.id in chain}
            return losses(domain.name(), snapshots, bases, read_disks(ElementTree.fromstring(domain.XMLDesc())))
        # One request more, since a bitmap fails the revert when the VM is off already. All internal ones are hindered, older than it or not.
        why = bitmaps_hinder(domain.name(), checkpoints(domain))
        if why:
            snapshots = [
                dataclasses.replace(one, obstacles={**one.obstacles, "revert": f"is internal, and {why}"}) for one in snapshots
            ]
        seen = self._judged_internal(domain.name(), snapshots, texts)
        if any(one.lost for one in seen):
            # What is being taken is in the list only, and what is being removed is so for a moment.
            if domain.isActive() and domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK:
                return snapshots
            time.sleep(_SECOND_LOOK_SECONDS)
            there = set(domain.snapshotListNames())
            seen = self._judged_internal(domain.name(), [one for one in snapshots if one.id in there], texts)
        return seen

    def _judged_internal(self, vm: str, snapshots: Iterable[Snapshot], texts: Mapping[str, str]) -> list[Snapshot]:
        read: dict[str, Sequence[Kept] | None] = {}
        found = []
        for one in snapshots:
            record = _record(self._images, texts[one.id])
            read.update({place: self._images.at_hand(place) for place in record.places.values() if place not in read})
            lost, why = _why_no_way_back(vm, record, read)
            found.append(dataclasses.replace(one, lost=lost, obstacles={**one.obstacles, "revert": why}) if why else one)
        return found

    def seen(self, domain: t.Any, domain_xml: str, *, up: bool) -> Seen:
        """What has to be known of the images of a VM of which a snapshot may be taken.

        Of one that is off the images are read, since libvirt asks qemu-img to take the snapshot, which takes any name twice, and a revert then
        brings back the older one. QEMU itself, when the VM is up, replaces the older one (9.0) or refuses the name (11.3).
        """
        disks = [disk for disk in read_disks(ElementTree.fromstring(domain_xml)) if disk.writable]
        strays: dict[str, str] = {}
        for disk in disks if not up else ():
            try:
                place = self._images.place(disk)
                image = self._images.read(place) if place and disk.format == "qcow2" else None
            except Unreadable:
                continue  # on another host and in no pool: libvirt itself does not tell
            for one in image.snapshots if image else ():
                strays[one.name] = f"qemu-img snapshot -d {shlex.quote(one.name)} {shlex.quote(place or '')}"
        if strays:
            strays = {name: command for name, command in strays.items() if name not in set(domain.snapshotListNames())}
        return Seen(strays=strays, checkpoints=checkpoints(domain))


def _why_no_way_back(vm: str, record: _Record, read: Mapping[str, Sequence[Kept] | None]) -> tuple[Finding | None, str | None]:
    """Why a VM cannot go back to an internal snapshot, by what its images hold; with the finding where its data are gone."""
    for target, place in record.places.items():
        kept = read[place]
        if kept is None:
            if record.name.isdigit() and int(record.name) < LOWEST_NUMBER:
                return None, _NUMBER
            continue
        fitting = _fitting(kept, record)
        if fitting is None:
            why = "has no data: libvirt lists it, and its image does not hold it; remove it (state=absent)"
            return ghost(vm, record.name, target, place, "does not hold it"), why
        picked = _picked(kept, record.name)
        if picked.name != record.name:
            return None, _NUMBER
        if picked != fitting:
            return None, (
                f"is not the one that QEMU would go back to: the image of the disk {target} holds another that QEMU finds first by the name "
                f"{record.name!r}; power the VM off and remove that one: qemu-img snapshot -d {shlex.quote(picked.name)} {shlex.quote(place)}"
            )
    return None, None


def checkpoints(domain: t.Any) -> tuple[str, ...]:
    """The checkpoints of incremental backups. Each has a bitmap in the images."""
    try:
        return tuple(one.getName() for one in domain.listAllCheckpoints())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return ()  # libvirt's test driver has none


def ghost(vm: str, name: str, target: str, place: str, problem: str) -> Finding:
    """What says that a record has no data: there is no snapshot of its name and time in one of its images."""
    return Finding(
        "snapshot_lost",
        f"The snapshot {name} of {vm} has no data: libvirt lists it, and the image of its disk {target} ({place}) {problem}; a revert would fail "
        "and leave the VM off",
        "remove it (state=absent); this removes libvirt's record of it and nothing else",
    )


def _texts(domain: t.Any) -> list[str]:
    """The definitions of all snapshots of a VM."""
    found = []
    for handle in domain.listAllSnapshots():
        try:
            found.append(handle.getXMLDesc())
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                raise  # else removed since it was listed
    return found


def _record(images: Images, snapshot_xml: str) -> _Record:
    root = ElementTree.fromstring(snapshot_xml)
    inside = {disk.get("name") for disk in root.iterfind("disks/disk") if disk.get("snapshot") == INTERNAL}
    then = root.find("domain")
    disks = [disk for disk in read_disks(then) if disk.target in inside] if then is not None else []
    places = {disk.target: _key(images, disk) for disk in disks}
    created = int(root.findtext("creationTime") or 0)
    return _Record(root.findtext("name") or "", created, {target: place for target, place in places.items() if place != target})


def _picked(kept: Sequence[Kept], name: str) -> Kept:
    """The one that QEMU goes back to (bdrv_snapshot_goto of QEMU 7.2 and 10.0): its number in the image counts before its name."""
    return next((one for one in kept if one.id == name), None) or next(one for one in kept if one.name == name)


def _unknown(kept: Iterable[Kept], place: str, records: Iterable[_Record]) -> list[Kept]:
    """Those in an image that belong to no record. Names may repeat in an image, so the time decides which one a record means."""
    kept = list(kept)
    named = {record.name: record for record in records}
    return [one for one in kept if one.name not in named or _fitting(kept, named[one.name]) != one]


def _fitting(kept: Iterable[Kept], record: _Record) -> Kept | None:
    """The one that a record means: of its name, and taken when libvirt says. libvirt adds none while it has a record, so it is the last."""
    near = [one for one in kept if one.name == record.name and -_EARLIER_SECONDS <= one.taken - record.created <= _LATER_SECONDS]
    return near[-1] if near else None


def _key(images: Images, disk: Disk) -> str:
    try:
        return images.place(disk) or disk.target
    except Unreadable:
        return disk.target


def _top(drive: Mapping[str, t.Any]) -> Mapping[str, t.Any]:
    top: Mapping[str, t.Any] = (drive.get("inserted") or {}).get("image") or {}
    return top


def _not_checked(vm: Vm, disk: Disk, place: str | None, why: str) -> Finding:
    shown = place or (":".join(disk.volume) if disk.volume else disk.type)
    return Finding(
        "images_not_checked",
        f"Disk {disk.target} of {vm} ({shown}) was not searched for snapshots that libvirt does not know: {why}",
        f"run on the host, while the VM is off: qemu-img snapshot -l {shlex.quote(shown)}",
    )
