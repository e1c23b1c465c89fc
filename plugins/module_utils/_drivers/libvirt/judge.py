# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check the images of a VM: for the snapshots in a listing, and before a new snapshot.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import shlex
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding, Snapshot, Vm, chain_of, parents_first
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.disks import Images, Unreadable
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.library import is_held, libvirt
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import (
    CPUS_COME_BACK,
    CPUS_LOST,
    Seen,
    bitmap_hinders,
    bitmaps_hinder,
    chain_near_limit,
    plugged_cpus,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.merges import losses
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.qcow2 import Image, Kept
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.records import (
    NUMBER,
    Record,
    differing,
    fitting,
    ghost,
    is_number,
    picked,
    read_record,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import (
    EXTERNAL,
    external_bases,
    external_files,
    read_disks,
    read_snapshot,
)

# The pause before a second check: while a snapshot is created or removed, it can be in the images or in the records only.
SECOND_LOOK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Listing:
    """The snapshots of one VM, from libvirt's records only."""

    snapshots: Sequence[Snapshot]
    """Parents before their children."""
    texts: Mapping[str, str]
    """Their XML definitions by their ids."""
    current: str | None
    """The id of the VM's current snapshot."""


def read_listing(domain: t.Any) -> Listing:
    """Read the listing. One request for the list, one for the current snapshot, and one for each snapshot.

    :raises libvirtError: the VM did not answer.
    """
    handles = domain.listAllSnapshots()
    if not handles:
        return Listing((), {}, None)
    latest = current_snapshot(domain)
    current = latest.getName() if latest is not None else None
    found = []
    texts = {}
    for handle in handles:
        try:
            xml = handle.getXMLDesc()
            found.append(read_snapshot(xml, current=current))
            texts[found[-1].id] = xml
        except libvirt.libvirtError as exc:
            # Another client has deleted it since it was listed.
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                raise
    return Listing(parents_first(found), texts, current)


def current_snapshot(domain: t.Any) -> t.Any:
    """Return the VM's current snapshot, or None."""
    try:
        return domain.snapshotCurrent()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
            raise
        return None


def fork(domain: t.Any, definition: str) -> str | None:
    """Return the current snapshot if the VM was reverted to it and it has children on another branch, else None; ``definition`` is the VM's XML."""
    while True:
        current = current_snapshot(domain)
        try:
            children = [one.getXMLDesc() for one in current.listAllChildren()] if current is not None else []
            return current.getName() if any(is_branch(one, definition) for one in children) else None
        except libvirt.libvirtError as exc:
            # Another run has just removed one of them.
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                raise


def is_branch(child: str, definition: str) -> bool:
    """Return True if the VM does not run on this child of its current snapshot, judged by the definitions of both.

    A snapshot that is being created is also listed as a child (11.3); the VM then still runs on its base image, or already on the new one.
    """
    near = {*external_bases(child).values(), *external_files(child)}
    return all(disk.image not in near for disk in read_disks(ElementTree.fromstring(definition)) if disk.writable)


class Judge:
    """Checks the snapshots of a listing against their images, without expensive requests."""

    def __init__(self, connection: t.Any, *, where: str, local: bool, version: Callable[[], int]) -> None:
        """``where`` is the URI without secrets. ``version`` returns the daemon's version, and is only called if it is needed."""
        self._where = where
        self._images = Images(connection, local=local)
        self._local = local
        self._version = version
        self._near: dict[str, tuple[Finding, ...]] = {}

    def findings(self, vm: Vm) -> tuple[Finding, ...]:
        """Return the findings about the VM itself from its last listing."""
        return self._near.get(vm.id, ())

    def judged(self, domain: t.Any, listing: Listing, definition: str) -> Sequence[Snapshot]:
        """Return the snapshots, parents before their children, with the obstacles to a revert.

        A snapshot that is being changed may be reported as lost, so the caller has to check again. ``definition`` is the VM's XML, and must be read
        after the listing, or a merged snapshot would seem intact. Internal snapshots are only looked up in images that can be read on this host,
        without a request; on other hosts, only the revert itself shows that the data are missing.

        :raises libvirtError: the VM did not answer.
        """
        snapshots, texts = listing.snapshots, listing.texts
        if any(one.kind == EXTERNAL for one in snapshots):
            # A snapshot that is being created is listed before the VM switches to the new image, and before it is the current snapshot.
            chain = chain_of(snapshots)
            disks = read_disks(ElementTree.fromstring(definition))
            up = bool(domain.isActive())
            layers = {disk.target: self._images.layers(disk, up=up, asking=False) for disk in disks if disk.writable}
            known = {target: images for target, images in layers.items() if images is not None}
            depth = _depth(known.values()) or len(chain) + 1
            near = chain_near_limit(domain.name(), depth, self._where)
            self._near[domain.UUIDString()] = (near,) if near else ()
            bases = {one.id: external_bases(texts[one.id]) for one in snapshots if one.kind == EXTERNAL and one.id in chain}
            seen = losses(domain.name(), snapshots, bases, disks, known)
            # A running removal changes the images first, then the record.
            return snapshots if any(one.lost for one in seen) and up and is_held(domain) else seen
        # One more request, since a bitmap fails the revert after the VM was stopped. It fails all internal snapshots, older or newer.
        named = checkpoints(domain)
        why = bitmaps_hinder(domain.name(), named, self._where)
        if why:
            snapshots = [
                dataclasses.replace(one, obstacles={**one.obstacles, "revert": f"is internal, and {why}"}) for one in snapshots
            ]
        snapshots = [self._with_plugged_cpus(one, texts[one.id]) for one in snapshots]
        seen = self._judged_internal(domain, snapshots, texts, named)
        # A snapshot that is being created is in the list only; one that is being removed can be for a moment.
        return snapshots if any(one.lost for one in seen) and domain.isActive() and is_held(domain) else seen

    def _with_plugged_cpus(self, one: Snapshot, text: str) -> Snapshot:
        # Search the text first: few definitions have the element, and parsing is slow.
        then = ElementTree.fromstring(text).find("domain") if one.memory and "hotpluggable='yes'" in text else None
        if then is None or not plugged_cpus(then) or self._version() >= CPUS_COME_BACK:
            return one
        why = f"holds a hot-plugged CPU, and {CPUS_LOST}; upgrade libvirt, or remove the snapshot"
        return dataclasses.replace(one, obstacles={**one.obstacles, "revert": why})

    def _judged_internal(
        self, domain: t.Any, snapshots: Iterable[Snapshot], texts: Mapping[str, str], named: Sequence[str]
    ) -> list[Snapshot]:
        read: dict[str, Image | None] = {}
        found = []
        for one in snapshots:
            if not self._local:
                found.append(
                    dataclasses.replace(one, obstacles={**one.obstacles, "revert": NUMBER}) if is_number(one.name) else one
                )
                continue
            record = read_record(self._images, texts[one.id])
            read.update({place: self._images.at_hand(place) for place in record.places.values() if place not in read})
            lost, why = self._why_no_way_back(domain, record, read, named)
            found.append(dataclasses.replace(one, lost=lost, obstacles={**one.obstacles, "revert": why}) if why else one)
        return found

    def _why_no_way_back(
        self, domain: t.Any, record: Record, read: Mapping[str, Image | None], named: Sequence[str]
    ) -> tuple[Finding | None, str | None]:
        """Return why a revert to an internal snapshot would fail, judged by its images, and before it the finding if its data are gone.

        ``named`` are the checkpoints that libvirt has a record of.
        """
        missing: list[tuple[str, str]] = []
        held: dict[str, tuple[str, Image, Kept]] = {}
        for target, place in record.places.items():
            image = read[place]
            if image is None:
                if is_number(record.name):
                    return None, NUMBER
                continue
            meant = fitting(image.snapshots, record)
            other = differing(domain.name(), record, target, place, image.snapshots, where=self._where) if meant is None else None
            if other is not None:
                return None, f"may differ from the snapshot in its image: {other.message}; {other.remedy}"
            if meant is None:
                missing.append((target, place))
            else:
                held[target] = place, image, meant
        if missing:
            found = ghost(
                domain.name(), record.name, *missing[0], "does not hold it", others=[place for place, *_rest in held.values()]
            )
            return found, f"cannot be reverted to: {found.message}; {found.remedy}"
        for target, (place, image, meant) in held.items():
            why = self._why_another(domain, record.name, target, place, image, meant)
            loose = [bitmap for bitmap in image.bitmaps if bitmap not in named]
            if why is None and loose:
                why = f"is internal, and {bitmap_hinders(loose[0], place)}"
            if why:
                return None, why
        return None, None

    def _why_another(self, domain: t.Any, name: str, target: str, place: str, image: Image, meant: Kept) -> str | None:
        """Return why QEMU would revert this image to another snapshot, or None."""
        first = picked(image.snapshots, name)
        if first.name != name:
            return NUMBER
        if first == meant:
            return None
        return (
            f"is not the one that QEMU would revert to, because the image of the disk {target} holds an older snapshot of that name; "
            f"{self._remedy(domain.UUIDString(), name, place)}"
        )

    def seen(self, domain: t.Any, domain_xml: str, *, up: bool, crashed: bool) -> Seen:
        """Read the images of a VM before a snapshot is taken.

        If the VM is off, libvirt takes the snapshot with qemu-img, which accepts a name twice; a revert then uses the older snapshot. So all images are
        searched for unknown snapshots. If the VM is up, QEMU replaces the older snapshot (9.0) or refuses the name (11.3).
        """
        disks = [disk for disk in read_disks(ElementTree.fromstring(domain_xml)) if disk.writable]
        found: dict[str, str] = {}
        bitmaps: dict[str, str] = {}
        read: dict[str, Image | None] = {}
        unsearched = None
        for disk in disks:
            if disk.format != "qcow2":
                continue
            if up:
                # QEMU has them in memory; reading the file is free if it is on this host.
                image = self._images.at_hand(disk.image or "")
                bitmaps.update(dict.fromkeys(image.bitmaps, disk.image or "") if image else {})
                continue
            try:
                place = self._images.place(disk)
                image = self._images.read(place) if place else None
            except Unreadable as exc:
                unsearched = f"{disk.image or disk.target}: {exc}"
                continue
            read[place or ""] = image
            found.update({one.name: place or "" for one in image.snapshots} if image else {})
            bitmaps.update(dict.fromkeys(image.bitmaps, place or "") if image else {})
        known = set(domain.snapshotListNames()) if found else set()
        strays = {name: self._remedy(domain.UUIDString(), name, place) for name, place in found.items() if name not in known}
        named = checkpoints(domain)
        loose = {bitmap: place for bitmap, place in bitmaps.items() if bitmap not in named}
        layers = [self._images.layers(disk, up=up, asking=True, already=read) for disk in disks]
        return Seen(strays, unsearched, named, bitmaps=loose, crashed=crashed, depth=_depth(layers))

    def _remedy(self, uuid: str, name: str, place: str) -> str:
        """Return the remedy for a snapshot in an image that libvirt has no record of for the VM with that UUID."""
        other = self._images.owner(place, name, but=uuid)
        if other is not None:
            return f"it belongs to the VM {other}, which uses the same image: give each VM its own image, and delete no snapshot before that"
        return f"remove it on the host, while the VM is off: qemu-img snapshot -d {shlex.quote(name)} {shlex.quote(place)}"


def _depth(layers: Iterable[Sequence[str] | None]) -> int | None:
    """Return the number of images in the longest chain; None if no chain is known."""
    return max((len(images) for images in layers if images is not None), default=None)


def checkpoints(domain: t.Any) -> tuple[str, ...]:
    """Return the names of the checkpoints of incremental backups. Each has a bitmap in the images."""
    try:
        return tuple(one.getName() for one in domain.listAllCheckpoints())
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return ()  # libvirt's test driver has none
