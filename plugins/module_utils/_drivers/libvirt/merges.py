# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find external snapshots whose images were merged without libvirt's snapshot API. Pure: no connection, no library.

Each external snapshot has one base image for each disk, which must not change any more. libvirt writes to a base image only while it removes the
snapshot, and updates its records then (9.0, 11.3). A backup tool that merges images (virsh blockcommit) does not update the records, nor does a
daemon that dies during a removal; libvirt 11.3 then reverts to later data without an error.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding, Snapshot, chain_of
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import EXTERNAL, Disk

_MAYBE = (
    "may have lost its data: later images are no longer in the VM's chain of images, so they were merged, either into the base image of "
    "this snapshot (virsh blockcommit) or into the newest image (virsh blockpull). Only in the second case, revert to it with virsh snapshot-revert"
)


def losses(
    vm: str,
    snapshots: Sequence[Snapshot],
    bases: Mapping[str, Mapping[str, str]],
    disks: Sequence[Disk],
    layers: Mapping[str, Sequence[str]],
) -> list[Snapshot]:
    """Return the snapshots, parents before their children, with the finding on those whose data are gone.

    ``bases`` are the base images of the external snapshots in the VM's current chain, by snapshot id and disk name; ``disks`` are the VM's present
    disks, and ``layers`` their chains of images by disk name, where known.
    """
    written = {place: disk.target for disk in disks for place in (disk.image, disk.merging_into) if place and disk.writable}
    lost: dict[str, str] = {}
    maybe: set[str] = set()
    chain = [one for one in snapshots if one.id in chain_of(snapshots)]
    for target, images in layers.items():
        _find_gaps([(one.id, bases.get(one.id, {}).get(target)) for one in chain], target, images, lost, maybe)
    below: set[str] = set()
    found = []
    for one in snapshots:
        hit = next((place for place in bases.get(one.id, {}).values() if place in written), None)
        if hit is not None:
            lost[one.id] = f"the VM writes to its base image (disk {written[hit]}, {hit})"
        elif one.parent in below and one.kind == EXTERNAL:
            # A child of a snapshot whose base image is written to has the same base image.
            lost[one.id] = lost[one.parent or ""]
        if hit is not None or one.parent in below:
            below.add(one.id)
        if one.id in lost:
            found.append(dataclasses.replace(one, lost=_finding(vm, one, lost[one.id])))
        elif one.id in maybe:
            found.append(dataclasses.replace(one, obstacles={**one.obstacles, "revert": _MAYBE}))
        else:
            found.append(one)
    return found


def _find_gaps(
    chain: Sequence[tuple[str, str | None]], target: str, images: Sequence[str], lost: dict[str, str], maybe: set[str]
) -> None:
    """Find base images of one disk that were merged, and add their snapshots to ``lost`` or ``maybe``.

    ``chain`` has the ids of the snapshots in the VM's current chain, the oldest first, each with its base image.
    """
    there = [(snapshot_id, base, base in images) for snapshot_id, base in chain if base is not None]
    for place, (snapshot_id, base, present) in enumerate(there):
        if present:
            continue
        below = [number for number in range(place) if there[number][2]]
        if any(later[2] for later in there[place + 1 :]):
            # Newer images still exist, so this one was merged into the one below it, which may be the base image of another snapshot.
            lost.setdefault(snapshot_id, f"its base image was merged into another image (disk {target}, {base})")
            if below:
                hit_id, hit_base, _present = there[below[-1]]
                lost.setdefault(hit_id, f"a later image was merged into its base image (disk {target}, {hit_base})")
        elif below:
            maybe.add(there[below[-1]][0])


def _finding(vm: str, snapshot: Snapshot, why: str) -> Finding:
    return Finding(
        "snapshot_lost",
        f"The snapshot {snapshot} of {vm} has lost its data: {why}. Another tool merged the images, or a removal was interrupted",
        "remove it (state=absent); this removes only libvirt's record of it",
    )
