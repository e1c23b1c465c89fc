# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why a snapshot cannot be removed from the VM as it is now, or taken of it, with the remedy.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_ways import Daemon
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import EXTERNAL
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Way

# VIR_DOMAIN_PAUSED with VIR_DOMAIN_PAUSED_MIGRATION: a VM that is paused since its memory was restored from a file (managed save). QEMU
# leaves its images to the other end of such a migration until it has run.
RESTORED = (3, 2)
# NEWS of libvirt 10.9: internal snapshots are taken and removed by jobs of QEMU; 11.3: 'is writable but does not support snapshots'. 9.0 can.
_BY_JOBS = 10_009_000
_RUN_ONCE = (
    "is paused since its memory was restored from a file, and has to run once first: resume it (virsh resume), and pause it again"
)


@dataclasses.dataclass(frozen=True)
class Present:
    """The parts of a VM's present state that a removal depends on."""

    vm: str
    where: str
    """The URI of the daemon without secrets."""
    up: bool
    disks: frozenset[str]
    """The names of its disks, for example vda."""
    saved: bool
    """Whether its memory is on disk (managed save)."""
    restored: bool
    """Whether it has not run since its memory came back from there."""


def look(domain: t.Any, domain_xml: str, snapshots: Sequence[Snapshot], daemon: Daemon) -> Present:
    """Read what the removal of these snapshots depends on, with the definition of the VM, since a removal may end libvirtd (9.0).

    One or two requests where it may fail, or the VM not start after it.

    :raises libvirtError: the VM did not answer.
    """
    external = any(one.kind == EXTERNAL for one in snapshots)
    definition = ElementTree.fromstring(domain_xml)
    targets = (target.get("dev") for target in definition.iterfind("devices/disk/target"))
    up = definition.get("id") is not None
    return Present(
        vm=domain.name(),
        where=daemon.where,
        up=up,
        disks=frozenset(name for name in targets if name),
        saved=external and not up and bool(domain.hasManagedSaveImage()),
        restored=up and (external or daemon.version >= _BY_JOBS) and tuple(domain.state()) == RESTORED,
    )


def why_not_removed(snapshot: Snapshot, snapshot_xml: str, now: Present) -> str | None:
    """The reason and the remedy, as the end of a sentence that begins with the name of the snapshot."""
    if snapshot.lost is not None and snapshot.kind == EXTERNAL:
        return None  # nothing but its record is removed
    if snapshot.kind == EXTERNAL and now.saved:
        # 11.3 merges it, and the VM does not start any more: its saved state names the image that is gone.
        return (
            f"is external, and the memory of {now.vm} is saved to disk (managed save) together with the names of the images; start the VM first, or "
            f"drop its memory ({virsh(now.where, 'managedsave-remove', now.vm)})"
        )
    if now.restored:
        # 'Inactive ... can't be a backing child of active ...' (external; QEMU 7.2, 10.0), 'is writable but does not support snapshots' (10.0)
        return f"cannot be removed now, because {now.vm} {_RUN_ONCE}"
    missing = ", ".join(sorted(_disks(snapshot_xml) - now.disks))
    if missing and snapshot.kind == EXTERNAL:
        # 9.0, 11.3: "disk 'vdb' not found in domain"
        return f"is external and has the disk {missing}, which {now.vm} does not have now; attach it again (virsh attach-device) first"
    if missing and now.up:
        # libvirtd 9.0 dies, 11.3 fails: "disk 'vdb' referenced by snapshot 'y' not found in the current definition". Both can when the VM is off.
        return (
            f"has the disk {missing}, which {now.vm} does not have now, and libvirt cannot remove it while the VM is up; power the VM off first, or "
            "attach the disk again (virsh attach-device)"
        )
    return None


def hindrances(snapshots: Sequence[Snapshot], texts: Mapping[str, str], now: Present) -> dict[str, str]:
    """The reasons by the ids of those snapshots that cannot be removed; ``texts`` are their definitions."""
    why = {one.id: why_not_removed(one, texts[one.id], now) for one in snapshots}
    return {snapshot_id: reason for snapshot_id, reason in why.items() if reason}


def ways_restored(vm: str, ways: Sequence[Way], daemon_version: int) -> tuple[Way, ...]:
    """How snapshots can be taken of a VM that has not run since its memory came back from a file."""
    found = []
    for way in ways:
        refusals = dict(way.refusals)
        if way.kind == EXTERNAL:
            # "Can't migrate the vm that was paused due to previous migration"
            refusals.setdefault("memory", f"No snapshot with the memory of {vm} can be taken: it {_RUN_ONCE}")
        elif daemon_version >= _BY_JOBS:
            refusals.setdefault("create", f"No internal snapshot of {vm} can be taken: it {_RUN_ONCE}")
        found.append(dataclasses.replace(way, refusals=refusals))
    return tuple(found)


def _disks(snapshot_xml: str) -> set[str]:
    """The disks that take part in the snapshot."""
    disks = ElementTree.fromstring(snapshot_xml).iterfind("disks/disk")
    return {disk.get("name", "") for disk in disks if disk.get("snapshot") not in (None, "no")}
