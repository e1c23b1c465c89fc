# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the images of a VM say about the snapshots in a listing, and about one that is to be taken.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_disks import Images, Unreadable
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_library import libvirt
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_qcow2 import Kept
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_records import (
    NUMBER,
    Record,
    fitting,
    ghost,
    is_number,
    picked,
    read_record,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_ways import (
    CPUS_COME_BACK,
    CPUS_LOST,
    Seen,
    bitmaps_hinder,
    chain_near_limit,
    losses,
    plugged_cpus,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import (
    EXTERNAL,
    Disk,
    external_bases,
    read_disks,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Finding, Snapshot, Vm, chain_of

# What is being taken or removed while it is looked at is in one of the two places only, for a moment.
_SECOND_LOOK_SECONDS = 1.0


class Judge:
    """Tells of the snapshots in a listing what their images say about them, as far as that costs next to nothing."""

    def __init__(self, connection: t.Any, *, local: bool, version: Callable[[], int]) -> None:
        """``version`` is the daemon's, which is asked only where it matters."""
        self._images = Images(connection, local=local)
        self._local = local
        self._version = version
        self._near: dict[str, tuple[Finding, ...]] = {}

    def findings(self, vm: Vm) -> tuple[Finding, ...]:
        """What the last listing of the VM's snapshots told about the VM itself."""
        return self._near.get(vm.id, ())

    def judged(self, domain: t.Any, snapshots: Sequence[Snapshot], texts: Mapping[str, str]) -> Sequence[Snapshot]:
        """The snapshots of a VM, parents before their children, with those told that cannot be gone back to; ``texts`` are their definitions.

        One request more for a VM that has external snapshots (the definition of the VM): without it a merged one passes for a way back.
        Internal ones are looked for in the images where these are files that can be read here, without a request; else a revert finds out.

        :raises libvirtError: the VM did not answer.
        """
        if any(one.kind == EXTERNAL for one in snapshots):
            # One that is being made is listed before the VM leaves the image that it is based on, and before it is the current one.
            chain = chain_of(snapshots)
            disks = read_disks(ElementTree.fromstring(domain.XMLDesc()))
            up = bool(domain.isActive())
            depth = self._depth(disks, up=up, asking=False) or len(chain) + 1
            near = chain_near_limit(domain.name(), depth)
            self._near[domain.UUIDString()] = (near,) if near else ()
            bases = {one.id: external_bases(texts[one.id]) for one in snapshots if one.kind == EXTERNAL and one.id in chain}
            return losses(domain.name(), snapshots, bases, disks)
        # One request more, since a bitmap fails the revert when the VM is off already. All internal ones are hindered, older than it or not.
        why = bitmaps_hinder(domain.name(), checkpoints(domain))
        if why:
            snapshots = [
                dataclasses.replace(one, obstacles={**one.obstacles, "revert": f"is internal, and {why}"}) for one in snapshots
            ]
        snapshots = [self._with_plugged_cpus(one, texts[one.id]) for one in snapshots]
        seen = self._judged_internal(domain.name(), snapshots, texts)
        if any(one.lost for one in seen):
            # What is being taken is in the list only, and what is being removed is so for a moment.
            if domain.isActive() and domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK:
                return snapshots
            time.sleep(_SECOND_LOOK_SECONDS)
            there = set(domain.snapshotListNames())
            seen = self._judged_internal(domain.name(), [one for one in snapshots if one.id in there], texts)
        return seen

    def _with_plugged_cpus(self, one: Snapshot, text: str) -> Snapshot:
        # The text first: only few definitions have the element, and parsing costs time.
        then = ElementTree.fromstring(text).find("domain") if one.memory and "hotpluggable='yes'" in text else None
        if then is None or not plugged_cpus(then) or self._version() >= CPUS_COME_BACK:
            return one
        why = f"holds a CPU that was plugged in while the VM ran, and {CPUS_LOST}; upgrade libvirt, or remove it"
        return dataclasses.replace(one, obstacles={**one.obstacles, "revert": why})

    def _judged_internal(self, vm: str, snapshots: Iterable[Snapshot], texts: Mapping[str, str]) -> list[Snapshot]:
        read: dict[str, Sequence[Kept] | None] = {}
        found = []
        for one in snapshots:
            if not self._local:
                found.append(
                    dataclasses.replace(one, obstacles={**one.obstacles, "revert": NUMBER}) if is_number(one.name) else one
                )
                continue
            record = read_record(self._images, texts[one.id])
            read.update({place: self._images.at_hand(place) for place in record.places.values() if place not in read})
            lost, why = _why_no_way_back(vm, record, read)
            found.append(dataclasses.replace(one, lost=lost, obstacles={**one.obstacles, "revert": why}) if why else one)
        return found

    def seen(self, domain: t.Any, domain_xml: str, *, up: bool, crashed: bool) -> Seen:
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
        return Seen(strays, checkpoints(domain), crashed=crashed, depth=self._depth(disks, up=up, asking=True))

    def _depth(self, disks: Iterable[Disk], *, up: bool, asking: bool) -> int | None:
        """The number of images of the disk that has the most; None where it is not known of any."""
        depths = [self._images.depth(disk, up=up, asking=asking) for disk in disks if disk.writable]
        return max((depth for depth in depths if depth is not None), default=None)


def _why_no_way_back(vm: str, record: Record, read: Mapping[str, Sequence[Kept] | None]) -> tuple[Finding | None, str | None]:
    """Why a VM cannot go back to an internal snapshot, by what its images hold; with the finding where its data are gone."""
    for target, place in record.places.items():
        kept = read[place]
        if kept is None:
            if is_number(record.name):
                return None, NUMBER
            continue
        meant = fitting(kept, record)
        if meant is None:
            why = "has no data: libvirt lists it, and its image does not hold it; remove it (state=absent)"
            return ghost(vm, record.name, target, place, "does not hold it"), why
        first = picked(kept, record.name)
        if first.name != record.name:
            return None, NUMBER
        if first != meant:
            return None, (
                f"is not the one that QEMU would go back to: the image of the disk {target} holds another that QEMU finds first by the name "
                f"{record.name!r}; power the VM off and remove that one: qemu-img snapshot -d {shlex.quote(first.name)} {shlex.quote(place)}"
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
