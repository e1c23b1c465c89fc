# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why a snapshot cannot be removed from the VM as it is now, with the remedy. Pure: no connection, no library.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import EXTERNAL
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot


@dataclasses.dataclass(frozen=True)
class Present:
    """The parts of a VM's present state that a removal depends on."""

    vm: str
    up: bool
    disks: frozenset[str]
    """The names of its disks, for example vda."""
    saved: bool
    """Whether its memory is on disk (managed save)."""


def present(vm: str, domain_xml: str, *, saved: bool) -> Present:
    """Read the definition of a VM, which has an id as long as the VM is up."""
    domain = ElementTree.fromstring(domain_xml)
    targets = (target.get("dev") for target in domain.iterfind("devices/disk/target"))
    return Present(vm, domain.get("id") is not None, frozenset(name for name in targets if name), saved)


def why_not_removed(snapshot: Snapshot, snapshot_xml: str, now: Present) -> str | None:
    """The reason and the remedy, as the end of a sentence that begins with the name of the snapshot."""
    if snapshot.lost is not None:
        return None  # nothing but its record is removed
    if snapshot.kind == EXTERNAL and now.saved:
        # 11.3 merges it, and the VM does not start any more: its saved state names the image that is gone.
        return (
            f"is external, and the memory of {now.vm} is saved to disk (managed save) together with the names of the images; start the VM first, or "
            f"drop its memory (virsh managedsave-remove {now.vm})"
        )
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


def _disks(snapshot_xml: str) -> set[str]:
    """The disks that take part in the snapshot."""
    disks = ElementTree.fromstring(snapshot_xml).iterfind("disks/disk")
    return {disk.get("name", "") for disk in disks if disk.get("snapshot") not in (None, "no")}
