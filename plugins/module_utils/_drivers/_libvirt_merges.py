# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""External snapshots whose images were merged without libvirt's knowledge. Pure: no connection, no library.

Each external snapshot is based on an image of each disk that must not change any more. libvirt writes to such an image only while it removes
the snapshot, and keeps its records in step (9.0, 11.3). A backup tool that merges images (virsh blockcommit) leaves the records as they are, and so
does a daemon that dies during a removal; a revert of libvirt 11.3 then "returns" to later data.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import EXTERNAL, Disk
from ansible_collections.safepoint.vm.plugins.module_utils._model import Finding, Snapshot, chain_of

_MAYBE = (
    "may have lost its data: images that were taken later are no longer among those of the VM, so that they were merged, into the image that "
    "this snapshot is based on (virsh blockcommit) or into the newest one (virsh blockpull). If it was the latter, go back with virsh snapshot-revert"
)


def losses(
    vm: str,
    snapshots: Sequence[Snapshot],
    bases: Mapping[str, Mapping[str, str]],
    disks: Sequence[Disk],
    layers: Mapping[str, Sequence[str]],
) -> list[Snapshot]:
    """The snapshots, parents before their children; those whose data are gone carry the finding that says so.

    ``bases`` are the images that the external snapshots which the VM descends from are based on, by their ids and the names of the disks; ``disks``
    are the VM's disks of today, ``layers`` the images that they consist of, by the names of the disks, where these are known.
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
            lost[one.id] = f"the VM writes to the image that the snapshot is based on (disk {written[hit]}, {hit})"
        elif one.parent in below and one.kind == EXTERNAL:
            # What was taken on top of one into whose image the VM writes is based on the same image.
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
    """Find the images of one disk that were merged although snapshots are based on them.

    ``chain`` has the ids of the snapshots that the VM descends from, the oldest first, each with the image that it is based on.
    """
    there = [(snapshot_id, base, base in images) for snapshot_id, base in chain if base is not None]
    for place, (snapshot_id, base, present) in enumerate(there):
        if present:
            continue
        below = [number for number in range(place) if there[number][2]]
        if any(later[2] for later in there[place + 1 :]):
            # Newer images are still there, so that this one was merged into the one below it, which another snapshot may be based on.
            lost.setdefault(snapshot_id, f"the image that it is based on was merged into another one (disk {target}, {base})")
            if below:
                hit_id, hit_base, _present = there[below[-1]]
                lost.setdefault(
                    hit_id, f"a later image was merged into the image that it is based on (disk {target}, {hit_base})"
                )
        elif below:
            maybe.add(there[below[-1]][0])


def _finding(vm: str, snapshot: Snapshot, why: str) -> Finding:
    return Finding(
        "snapshot_lost",
        f"The snapshot {snapshot} of {vm} has lost its data: {why}, because it was merged without libvirt, or its removal was interrupted",
        "remove it (state=absent); this removes libvirt's record of it and nothing else",
    )
