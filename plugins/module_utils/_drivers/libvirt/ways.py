# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Limits of libvirt and QEMU for a VM and its snapshots, each with its reason and remedy. Pure: no connection, no library.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Way, chain_of
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import (
    CPUS_COME_BACK,
    CPUS_LOST,
    MOST_IMAGES,
    Seen,
    bitmap_hinders,
    bitmaps_hinder,
    chain_near_limit,
    has_crashed,
    plugged_cpus,
    virsh,
    why_not_deeper,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import (
    EXTERNAL,
    INTERNAL,
    Disk,
    agent_channel,
    colliding_disks,
    outside_of_snapshots,
    read_disks,
)


@dataclasses.dataclass(frozen=True)
class Daemon:
    """Version and abilities of the daemon."""

    version: int
    """In libvirt's format: 9000000 is 9.0.0."""
    external_revert: bool
    """True if it can revert to external snapshots: libvirt 9.9 and later."""
    where: str = "qemu:///system"
    """Its URI without secrets, for the commands in messages."""

    def __str__(self) -> str:
        return f"libvirt {self.version // 1_000_000}.{self.version // 1000 % 1000}"


def ways(name: str, domain_xml: str, *, power: str, saved: bool, fork: str | None, daemon: Daemon, seen: Seen) -> tuple[Way, ...]:
    """Return the internal and the external way to take a snapshot of a VM on QEMU, each with its refusals and warnings.

    ``saved`` is true if the VM's memory is saved to disk; ``fork`` is the current snapshot if the VM was reverted to it and it has children.
    """
    domain = ElementTree.fromstring(domain_xml)
    disks = read_disks(domain)
    why_saved = _why_saved(name, daemon.where) if saved else None
    why_not_internal = why_saved or _why_not_internal(domain, disks, daemon) or _why_no_way_back(name, seen, daemon.where)
    why_not_external = why_saved or _why_not_external(disks, daemon) or why_not_deeper(name, seen.depth, daemon.where)
    if fork and not why_not_external:
        # 11.3: after the new snapshot was removed, the next revert deletes the base image of the other branch.
        why_not_external = (
            f"it was reverted to {fork}, which has child snapshots; this would create a second branch, and libvirt destroys the first one when the "
            "second is removed; remove the child snapshots first"
        )
    internal, external = _refusals(name, domain_xml, power, crashed=has_crashed(name, daemon.where) if seen.crashed else None)
    if why_not_internal:
        internal["create"] = f"No internal snapshot of {name} can be taken: {why_not_internal}"
    if why_not_external:
        external["create"] = f"No external snapshot of {name} can be taken: {why_not_external}"
    near = chain_near_limit(name, seen.depth, daemon.where)
    taken = {
        stray: f"A disk of {name} holds a snapshot {stray!r} that libvirt has no record of, and a revert would use that one; {remedy}, "
        "or choose another name"
        for stray, remedy in seen.strays.items()
    }
    with_memory = _missed(name, domain, EXTERNAL, memory=True)
    return (
        Way(
            INTERNAL,
            internal,
            memory_implied=True,
            taken=taken,
            warnings=_unsearched(name, seen, daemon.where),
            warnings_without_memory=_missed(name, domain, INTERNAL, memory=False),
        ),
        Way(
            EXTERNAL,
            external,
            unrecorded=("filesystem",),
            taken=taken,
            # If the images cannot be read, the snapshots are counted instead; the images of a template are not included then.
            deepest=MOST_IMAGES - 1 if seen.depth is None else None,
            warnings=(*with_memory, *([near.message] if near else [])),
            warnings_without_memory=tuple(one for one in _missed(name, domain, EXTERNAL, memory=False) if one not in with_memory),
        ),
    )


def _unsearched(name: str, seen: Seen, where: str) -> tuple[str, ...]:
    if not seen.unsearched:
        return ()
    return (
        f"An image of {name} could not be searched for an older snapshot of this name, which a revert would use instead ({seen.unsearched}); run "
        f"the module on the host, or make the folder a storage pool ({virsh(where, 'pool-create-as', 'NAME', 'dir', '--target', 'FOLDER')})",
    )


def _refusals(name: str, domain_xml: str, power: str, *, crashed: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the refusals about memory and quiescing, for an internal and for an external snapshot; ``crashed`` is the reason for a crashed guest."""
    internal = _memory_and_quiesce(name, power)
    external = dict(internal)
    if crashed:
        external["memory"] = f"No snapshot with the memory of {name} can be taken: {crashed}"
    if power != "off":
        internal["quiesce"] = (
            f"{name} cannot be quiesced for an internal snapshot, because the guest would be frozen in its memory; set quiesce=never (an internal "
            "snapshot of a running VM holds its memory, so no pending write is lost), or take an external snapshot (kind=external)"
        )
        external["memory_and_quiesce"] = (
            f"{name} cannot be quiesced for a snapshot with memory, because after a revert the guest would be frozen; "
            "leave memory out, or set quiesce=never"
        )
        reason = _why_not_quiesced(domain_xml, power)
        if reason:
            external["quiesce"] = f"{name} cannot be quiesced: {reason}, or set quiesce=never"
    return internal, external


def _why_no_way_back(name: str, seen: Seen, where: str) -> str | None:
    """Return why a revert to a new internal snapshot would fail, or None."""
    loose = next((bitmap_hinders(bitmap, place) for bitmap, place in seen.bitmaps.items()), None)
    return bitmaps_hinder(name, seen.checkpoints, where) or loose or (has_crashed(name, where) if seen.crashed else None)


def _why_saved(name: str, where: str) -> str:
    return (
        "its memory is saved to disk (managed save), and a snapshot would not include that; "
        f"start the VM first, or discard the saved memory ({virsh(where, 'managedsave-remove', name)})"
    )


def _missed(name: str, domain: ElementTree.Element, kind: str, *, memory: bool) -> tuple[str, ...]:
    parts = outside_of_snapshots(domain, kind=kind, memory=memory)
    return tuple(f"A snapshot of {name} does not include {part}; a revert does not change it" for part in parts)


def test_driver_ways(name: str, *, power: str, saved: bool, where: str) -> tuple[Way, ...]:
    """Return the same for libvirt's test driver, which has no disks."""
    refusals = _memory_and_quiesce(name, power)
    if saved:
        refusals["create"] = f"No snapshot of {name} can be taken: {_why_saved(name, where)}"
    if power != "off":
        refusals["quiesce"] = f"{name} cannot be quiesced: libvirt's test driver has no guest operating system; set quiesce=never"
    return (Way(INTERNAL, refusals, memory_implied=True),)


def with_obstacles(vm: str, snapshots: Sequence[Snapshot], daemon: Daemon, *, branch_lost: bool = False) -> list[Snapshot]:
    """Return the snapshots of one VM, parents before their children, with their obstacles.

    ``branch_lost`` is true if libvirt has lost the information that the VM runs on a separate branch.
    """
    kinds = {one.kind for one in snapshots}
    chain = chain_of(snapshots)
    found = []
    for one in snapshots:
        obstacles = dict(one.obstacles)
        if one.kind == EXTERNAL:
            if not daemon.external_revert:
                obstacles["revert"] = (
                    f"is external, and {daemon} cannot revert to external snapshots (libvirt 9.9 and later can); upgrade libvirt, or merge it "
                    f"({virsh(daemon.where, 'snapshot-delete', vm, one.name)}) and take internal snapshots"
                )
            elif branch_lost:
                # 11.3 would delete the base image of the other branches during the revert.
                obstacles["revert"] = (
                    f"is external, and a revert of {vm} would destroy a branch of its snapshots, because a branch beside it was removed; create a "
                    f"new branch first ({virsh(daemon.where, 'snapshot-create-as', vm, 'rescue', '--disk-only')}), and remove it after the revert"
                )
            alone = _why_not_alone(one, snapshots, chain)
            if alone:
                obstacles["remove_alone"] = alone
            beside = [two.name for two in snapshots if two.parent == one.parent and two.id != one.id and one.parent is not None]
            if one.current and beside and not any(two.parent == one.id for two in snapshots):
                # 11.3 removes it, and deletes the base image of the branch beside it at the next revert.
                obstacles["remove_alone"] = (
                    f"is external and the current snapshot of the VM, and libvirt would destroy {' and '.join(beside)} with the same parent; "
                    f"remove {' and '.join(beside)} first, or revert to another snapshot"
                )
        if len(kinds) > 1:
            delete = virsh(daemon.where, "snapshot-delete", vm, "NAME")
            merge = virsh(daemon.where, "blockcommit", vm, "DISK", "--active", "--pivot", "--delete")
            # libvirt 9.0 deletes an external snapshot together with the data of an internal one on top of it, and the VM cannot start any more.
            obstacles["revert"] = obstacles["remove"] = (
                f"is {one.kind}, and {vm} also has {INTERNAL if one.kind == EXTERNAL else EXTERNAL} snapshots; the two kinds destroy each other; remove "
                f"them by hand while the VM is up, the newest first: an internal one with {delete}, an external one with {merge} for each disk and then "
                f"{delete} --metadata"
            )
        if one.lost is not None and one.kind == EXTERNAL:
            # Only its record remains, which can always be removed (actions.py).
            obstacles = {"revert": f"cannot be reverted to: {one.lost.message}; {one.lost.remedy}"}
        found.append(dataclasses.replace(one, obstacles=obstacles))
    return found


def _memory_and_quiesce(name: str, power: str) -> dict[str, str]:
    if power != "off":
        return {}
    return {"memory": f"{name} is off and has no memory to include; start it first, or leave memory out"}


def _why_not_internal(domain: ElementTree.Element, disks: Sequence[Disk], daemon: Daemon) -> str | None:
    """Return why no internal snapshot can be taken. Not about a revert: that restores the configuration of the snapshot, whatever the present one is."""
    reason = None
    writable = [disk for disk in disks if disk.writable]
    for disk in writable:
        if disk.format != "qcow2":
            reason = (
                f"disk {disk.target} has the format {disk.format}, and an internal snapshot needs qcow2 on every writable disk; "
                "convert it (qemu-img convert -O qcow2), or make it readonly"
            )
        elif disk.mode not in (None, INTERNAL):
            reason = (
                f"disk {disk.target} has snapshot={disk.mode!r} in its configuration, and an internal snapshot includes every "
                "writable disk; remove that attribute"
            )
    if not writable:
        reason = "it has no writable disk, and an internal snapshot is stored in a disk; add a qcow2 disk"
    if plugged_cpus(domain) and daemon.version < CPUS_COME_BACK:
        reason = f"it has a hot-plugged CPU, and {CPUS_LOST}; power it off and start it first (a reboot is not enough)"
    loader, nvram = domain.find("os/loader"), domain.find("os/nvram")
    if loader is not None and loader.get("type") == "pflash":
        # libvirt 9.0.0: 'internal snapshots of a VM with pflash based firmware are not supported'; NEWS of 10.9.0: allowed with a qcow2 nvram.
        if daemon.version < 10_009_000:
            reason = "it has UEFI firmware (pflash), and only libvirt 10.9 and later takes internal snapshots of such VMs; use BIOS, or upgrade libvirt"
        elif nvram is None or nvram.get("format") != "qcow2":
            reason = "it has UEFI firmware (pflash) with a raw nvram; use an nvram of format qcow2"
    return reason


def _why_not_external(disks: Sequence[Disk], daemon: Daemon) -> str | None:
    if not daemon.external_revert:
        return f"{daemon} could not revert to it (libvirt 9.9 and later can); upgrade libvirt, or use internal snapshots on qcow2 disks"
    writable = [disk for disk in disks if disk.writable]
    if not writable:
        return "it has no writable disk, and an external snapshot creates a new file for each; add a disk"
    for disk in writable:
        if disk.mode in ("no", "manual"):
            return (
                f"disk {disk.target} has snapshot={disk.mode!r} in its configuration, and would not be reverted with the others; "
                "remove that attribute"
            )
    for disk in disks:
        # A revert creates a new file for every medium, read-only ones included; on other disk types libvirt 11.3 refuses it (84).
        if disk.type != "file":
            remedy = "move it to an image file" if disk.writable else "eject or detach it first"
            return (
                f"disk {disk.target} has the type {disk.type}, and libvirt can only revert disks that are image files; {remedy}"
            )
    clash = colliding_disks(disks)
    if clash:
        return (
            f"the images of the disks {clash[0]} and {clash[1]} have the same name except for the suffix, and libvirt would use the same new file for both "
            "at a revert; rename one of them"
        )
    return None


def _why_not_quiesced(domain_xml: str, power: str) -> str | None:
    if power == "paused":
        return "it is paused, so its guest agent does not run; resume it first"
    state = agent_channel(domain_xml)
    if state is None:
        return "it has no channel to a guest agent; add one (org.qemu.guest_agent.0), and install qemu-guest-agent in the guest"
    if state == "disconnected":
        return "no guest agent answers; install and start qemu-guest-agent in the guest"
    return None


def _why_not_alone(snapshot: Snapshot, snapshots: Sequence[Snapshot], chain: set[str]) -> str | None:
    """Return why an external snapshot cannot be merged into its child, or None: all its descendants must be in the VM's current chain.

    libvirt 11.3 refuses a branch directly on it (code 67), and crashes if the branch is further down.
    """
    below = {snapshot.id}
    for one in snapshots:  # parents before their children
        if one.parent in below:
            below.add(one.id)
            if one.id not in chain:
                return (
                    f"is external, and its descendant {one} is not in the VM's current chain, so libvirt cannot merge it; "
                    f"remove {one} first, or set children=remove"
                )
    return None
