# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reasons why a snapshot cannot be removed or taken in the VM's present state, with the remedy.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Way
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.ways import Daemon
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import EXTERNAL

# VIR_DOMAIN_PAUSED with VIR_DOMAIN_PAUSED_MIGRATION: a VM that has been paused since its memory was restored from a file (managed save). QEMU
# activates its images only when the VM runs for the first time, as after an incoming migration.
RESTORED = (3, 2)
# NEWS of libvirt 10.9: internal snapshots are taken and removed by QEMU jobs. 11.3 fails: 'is writable but does not support snapshots'; 9.0 works.
_BY_JOBS = 10_009_000


def _run_once(vm: str, where: str) -> str:
    return (
        "is paused since its memory was restored from a file, and must run once first: resume it "
        f"({virsh(where, 'resume', vm)}), and pause it again if needed"
    )


@dataclasses.dataclass(frozen=True)
class Present:
    """The present state of a VM, as far as a removal depends on it."""

    vm: str
    where: str
    """The URI of the daemon without secrets."""
    up: bool
    disks: frozenset[str]
    """The names of its disks, for example vda."""
    saved: bool
    """True if its memory is saved to disk (managed save)."""
    restored: bool
    """True if it has not run since its memory was restored from a file."""


def look(domain: t.Any, domain_xml: str, snapshots: Sequence[Snapshot], daemon: Daemon) -> Present:
    """Read the state that the removal of these snapshots depends on. Necessary because a removal can crash libvirtd (9.0).

    At most two requests, only in cases where the removal may fail or prevent the VM from starting.

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
    """Return the reason and the remedy, as the end of a sentence that starts with the snapshot's name, or None."""
    if snapshot.lost is not None and snapshot.kind == EXTERNAL:
        return None  # only its record is removed
    if snapshot.kind == EXTERNAL and now.saved:
        # 11.3 merges it, and then the VM cannot start: its saved state refers to the deleted image.
        return (
            f"is external, and the memory of {now.vm} is saved to disk (managed save) together with the names of its images; start the VM first, or "
            f"discard the saved memory ({virsh(now.where, 'managedsave-remove', now.vm)})"
        )
    if now.restored:
        # 'Inactive ... can't be a backing child of active ...' (external; QEMU 7.2, 10.0), 'is writable but does not support snapshots' (10.0)
        return f"cannot be removed now, because {now.vm} {_run_once(now.vm, now.where)}"
    missing = ", ".join(sorted(_disks(snapshot_xml) - now.disks))
    attach = virsh(now.where, "attach-device", now.vm, "FILE")
    if missing and snapshot.kind == EXTERNAL:
        # 9.0, 11.3: "disk 'vdb' not found in domain"
        return f"is external and includes the disk {missing}, which {now.vm} does not have now; attach the disk again first ({attach})"
    if missing and now.up:
        # libvirtd 9.0 crashes, 11.3 fails: "disk 'vdb' referenced by snapshot 'y' not found in the current definition". Both succeed if the VM is off.
        return (
            f"includes the disk {missing}, which {now.vm} does not have now, so libvirt cannot remove it while the VM is up; power the VM off first, or "
            f"attach the disk again ({attach})"
        )
    return None


def hindrances(snapshots: Sequence[Snapshot], texts: Mapping[str, str], now: Present) -> dict[str, str]:
    """Return the reasons by the ids of the snapshots that cannot be removed; ``texts`` are their XML definitions by id."""
    why = {one.id: why_not_removed(one, texts[one.id], now) for one in snapshots}
    return {snapshot_id: reason for snapshot_id, reason in why.items() if reason}


def ways_restored(vm: str, ways: Sequence[Way], daemon_version: int, where: str) -> tuple[Way, ...]:
    """Add the refusals that apply to a VM that has not run since its memory was restored from a file."""
    found = []
    for way in ways:
        refusals = dict(way.refusals)
        if way.kind == EXTERNAL:
            # "Can't migrate the vm that was paused due to previous migration"
            refusals.setdefault("memory", f"No snapshot with the memory of {vm} can be taken: it {_run_once(vm, where)}")
        elif daemon_version >= _BY_JOBS:
            refusals.setdefault("create", f"No internal snapshot of {vm} can be taken: it {_run_once(vm, where)}")
        found.append(dataclasses.replace(way, refusals=refusals))
    return tuple(found)


def _disks(snapshot_xml: str) -> set[str]:
    """Return the names of the disks that are included in the snapshot."""
    disks = ElementTree.fromstring(snapshot_xml).iterfind("disks/disk")
    return {disk.get("name", "") for disk in disks if disk.get("snapshot") not in (None, "no")}
