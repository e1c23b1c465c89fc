# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt and QEMU cannot do with a VM and its snapshots, each with the reason and the remedy. Pure: no connection, no library.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_limits import (
    CPUS_COME_BACK,
    CPUS_LOST,
    HAS_CRASHED,
    MOST_IMAGES,
    Seen,
    bitmap_hinders,
    bitmaps_hinder,
    chain_near_limit,
    plugged_cpus,
    virsh,
    why_not_deeper,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import (
    EXTERNAL,
    INTERNAL,
    Disk,
    agent_channel,
    colliding_disks,
    outside_of_snapshots,
    read_disks,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Way, chain_of

_SAVED = (
    "its memory is saved to disk (managed save), and a snapshot would not hold that; "
    "start it first, or drop it with virsh managedsave-remove"
)


@dataclasses.dataclass(frozen=True)
class Daemon:
    """What the daemon at the other end can do."""

    version: int
    """As libvirt counts: 9000000 is 9.0.0."""
    external_revert: bool
    """Whether it can go back to external snapshots: libvirt 9.9 and later."""
    where: str = "qemu:///system"
    """Its URI without secrets, for the commands in messages."""

    def __str__(self) -> str:
        return f"libvirt {self.version // 1_000_000}.{self.version // 1000 % 1000}"


def ways(name: str, domain_xml: str, *, power: str, saved: bool, fork: str | None, daemon: Daemon, seen: Seen) -> tuple[Way, ...]:
    """How snapshots of the VM can be taken by QEMU.

    ``saved`` is that its memory is on disk, ``fork`` the snapshot that it was reverted to, where others were taken on top of that.
    """
    domain = ElementTree.fromstring(domain_xml)
    disks = read_disks(domain)
    why_not_internal = _SAVED if saved else _why_not_internal(domain, disks, daemon) or _why_no_way_back(name, seen, daemon.where)
    why_not_external = _SAVED if saved else _why_not_external(disks, daemon) or why_not_deeper(seen.depth)
    if fork and not why_not_external:
        # 11.3: once the new one is removed again, the next revert unlinks the file that the others are based on.
        why_not_external = (
            f"it was reverted to {fork}, on which other snapshots stand, and libvirt loses those when a second branch beside them is "
            "removed again; remove them first"
        )
    internal, external = _refusals(name, domain_xml, power, crashed=seen.crashed)
    if why_not_internal:
        internal["create"] = f"No internal snapshot of {name} can be taken: {why_not_internal}"
    if why_not_external:
        external["create"] = f"No external snapshot of {name} can be taken: {why_not_external}"
    near = chain_near_limit(name, seen.depth)
    taken = {
        stray: f"A disk of {name} holds a snapshot {stray!r} that libvirt does not know, and a revert would bring that one back; {remedy}, "
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
            warnings=_unsearched(name, seen),
            warnings_without_memory=_missed(name, domain, INTERNAL, memory=False),
        ),
        Way(
            EXTERNAL,
            external,
            unrecorded=("filesystem",),
            taken=taken,
            # Where the images could not be seen the snapshots are counted, and a template's own images are not.
            deepest=MOST_IMAGES - 1 if seen.depth is None else None,
            warnings=(*with_memory, *([near.message] if near else [])),
            warnings_without_memory=tuple(one for one in _missed(name, domain, EXTERNAL, memory=False) if one not in with_memory),
        ),
    )


def _unsearched(name: str, seen: Seen) -> tuple[str, ...]:
    if not seen.unsearched:
        return ()
    return (
        f"An image of {name} could not be searched for an older snapshot of this name, which a revert would bring back ({seen.unsearched}); run "
        "this on the host, or make the folder a storage pool (virsh pool-create-as)",
    )


def _refusals(name: str, domain_xml: str, power: str, *, crashed: bool) -> tuple[dict[str, str], dict[str, str]]:
    """What an internal and an external snapshot cannot do besides being taken."""
    internal = _memory_and_quiesce(name, power)
    external = dict(internal)
    if crashed:
        external["memory"] = f"No snapshot with the memory of {name} can be taken: {HAS_CRASHED}"
    if power != "off":
        internal["quiesce"] = (
            f"{name} cannot be quiesced for an internal snapshot, which would hold the memory of a frozen guest; set quiesce=never (the "
            "snapshot of a running VM holds its memory, so that nothing in flight is lost), or take an external one (kind=external)"
        )
        external["memory_and_quiesce"] = (
            f"{name} cannot be quiesced for a snapshot that holds its memory, which would come back with a frozen guest; "
            "leave memory out, or set quiesce=never"
        )
        reason = _why_not_quiesced(domain_xml, power)
        if reason:
            external["quiesce"] = f"{name} cannot be quiesced: {reason}, or set quiesce=never"
    return internal, external


def _why_no_way_back(name: str, seen: Seen, where: str) -> str | None:
    """Why there would be no way back to an internal snapshot."""
    loose = next((bitmap_hinders(bitmap, place) for bitmap, place in seen.bitmaps.items()), None)
    return bitmaps_hinder(name, seen.checkpoints, where) or loose or (HAS_CRASHED if seen.crashed else None)


def _missed(name: str, domain: ElementTree.Element, kind: str, *, memory: bool) -> tuple[str, ...]:
    parts = outside_of_snapshots(domain, kind=kind, memory=memory)
    return tuple(f"A snapshot of {name} does not hold {part}, and a revert leaves it as it is" for part in parts)


def test_driver_ways(name: str, *, power: str, saved: bool) -> tuple[Way, ...]:
    """The same for libvirt's own test driver, which knows no disks."""
    refusals = _memory_and_quiesce(name, power)
    if saved:
        refusals["create"] = f"No snapshot of {name} can be taken: {_SAVED}"
    if power != "off":
        refusals["quiesce"] = f"{name} cannot be quiesced: libvirt's test driver has no guests; set quiesce=never"
    return (Way(INTERNAL, refusals, memory_implied=True),)


def with_obstacles(vm: str, snapshots: Sequence[Snapshot], daemon: Daemon, *, branch_lost: bool = False) -> list[Snapshot]:
    """The snapshots of one VM, parents before their children, with what cannot be done with each.

    ``branch_lost`` says that libvirt does not know any more that the VM is on a branch of its own.
    """
    kinds = {one.kind for one in snapshots}
    chain = chain_of(snapshots)
    found = []
    for one in snapshots:
        obstacles = dict(one.obstacles)
        if one.kind == EXTERNAL:
            if not daemon.external_revert:
                obstacles["revert"] = (
                    f"is external, and {daemon} cannot go back to such a one (libvirt 9.9 and later can); upgrade libvirt, or merge it "
                    "(virsh snapshot-delete) and take internal ones"
                )
            elif branch_lost:
                # 11.3 takes the file that the other branches are based on for the one that a revert gives up.
                obstacles["revert"] = (
                    f"is external, and a revert of {vm} would lose a branch of its snapshots, because another one was removed beside it; begin a "
                    f"new branch first ({virsh(daemon.where, 'snapshot-create-as', vm, 'rescue', '--disk-only')}), and remove that after the revert"
                )
            alone = _why_not_alone(one, snapshots, chain)
            if alone:
                obstacles["remove_alone"] = alone
            beside = [two.name for two in snapshots if two.parent == one.parent and two.id != one.id and one.parent is not None]
            if one.current and beside and not any(two.parent == one.id for two in snapshots):
                # 11.3 says yes, and unlinks at the next revert the file that the branch beside it is based on.
                obstacles["remove_alone"] = (
                    f"is external and what the VM runs on, and beside it there is {' and '.join(beside)} on the same parent, which libvirt would "
                    f"lose; remove {' and '.join(beside)} first, or revert to another snapshot first"
                )
        if len(kinds) > 1:
            delete = virsh(daemon.where, "snapshot-delete", vm, "NAME")
            merge = virsh(daemon.where, "blockcommit", vm, "DISK", "--active", "--pivot", "--delete")
            # libvirt 9.0 deletes an external one together with the data of an internal one on top of it, and the VM cannot start any more.
            obstacles["revert"] = obstacles["remove"] = (
                f"is {one.kind}, and {vm} has {INTERNAL if one.kind == EXTERNAL else EXTERNAL} ones as well, which destroy each other; take "
                f"them away by hand while it is up, the newest first: an internal one with {delete}, an external one with {merge} for each disk and then "
                f"{delete} --metadata"
            )
        if one.lost is not None and one.kind == EXTERNAL:
            # Only its record is left, which can always be removed (_libvirt_actions.py).
            obstacles = {"revert": f"is no way back: {one.lost.message}; {one.lost.remedy}"}
        found.append(dataclasses.replace(one, obstacles=obstacles))
    return found


def _memory_and_quiesce(name: str, power: str) -> dict[str, str]:
    if power != "off":
        return {}
    return {"memory": f"{name} is off and has no memory to keep; start it first, or leave memory out"}


def _why_not_internal(domain: ElementTree.Element, disks: Sequence[Disk], daemon: Daemon) -> str | None:
    """It says nothing about going back: a revert brings the configuration of then, whatever the present one is."""
    reason = None
    writable = [disk for disk in disks if disk.writable]
    for disk in writable:
        if disk.format != "qcow2":
            reason = (
                f"disk {disk.target} is {disk.format}, and an internal snapshot needs qcow2 on every writable disk; "
                "convert it (qemu-img convert -O qcow2), or make it readonly"
            )
        elif disk.mode not in (None, INTERNAL):
            reason = (
                f"disk {disk.target} has snapshot={disk.mode!r} in its configuration, and an internal snapshot takes every "
                "writable disk; remove that attribute"
            )
    if not writable:
        reason = "it has no writable disk, and an internal snapshot is kept in one; add a qcow2 disk"
    if plugged_cpus(domain) and daemon.version < CPUS_COME_BACK:
        reason = f"it has a CPU that was plugged in while it ran, and {CPUS_LOST}; restart it first (virsh reboot is not enough: power it off)"
    loader, nvram = domain.find("os/loader"), domain.find("os/nvram")
    if loader is not None and loader.get("type") == "pflash":
        # libvirt 9.0.0: 'internal snapshots of a VM with pflash based firmware are not supported'; NEWS of 10.9.0: allowed with a qcow2 nvram.
        if daemon.version < 10_009_000:
            reason = "it boots by UEFI (pflash), and libvirt takes internal snapshots of such VMs from 10.9 on; boot it by BIOS, or upgrade libvirt"
        elif nvram is None or nvram.get("format") != "qcow2":
            reason = "it boots by UEFI (pflash) with a raw nvram; give it an nvram of format qcow2"
    return reason


def _why_not_external(disks: Sequence[Disk], daemon: Daemon) -> str | None:
    if not daemon.external_revert:
        return (
            f"{daemon} could not go back to it (libvirt 9.9 and later can); upgrade libvirt, or use internal ones on qcow2 disks"
        )
    writable = [disk for disk in disks if disk.writable]
    if not writable:
        return "it has no writable disk, and an external snapshot is a new file for each; add a disk"
    for disk in writable:
        if disk.mode in ("no", "manual"):
            return (
                f"disk {disk.target} has snapshot={disk.mode!r} in its configuration, and would not come back with the others; "
                "remove that attribute"
            )
    for disk in disks:
        # A revert makes a new file for every medium, also for those that are only read; elsewhere libvirt 11.3 refuses it (84).
        if disk.type != "file":
            remedy = "move it to an image file" if disk.writable else "eject or detach it first"
            return f"disk {disk.target} is on a {disk.type} device, and libvirt can go back on image files only; {remedy}"
    clash = colliding_disks(disks)
    if clash:
        return (
            f"the images of the disks {clash[0]} and {clash[1]} differ in their suffix only, and libvirt would give both the same new file at a "
            "revert; rename one of them"
        )
    return None


def _why_not_quiesced(domain_xml: str, power: str) -> str | None:
    if power == "paused":
        return "it is paused, and its guest agent with it; resume it first"
    state = agent_channel(domain_xml)
    if state is None:
        return "it has no channel to a guest agent; add one (org.qemu.guest_agent.0), and install qemu-guest-agent in the guest"
    if state == "disconnected":
        return "no guest agent answers; install and start qemu-guest-agent in the guest"
    return None


def _why_not_alone(snapshot: Snapshot, snapshots: Sequence[Snapshot], chain: set[str]) -> str | None:
    """Why an external snapshot is not merged into its child: only one that the VM runs on, with nothing beside the way, can be.

    libvirt 11.3 refuses the nearer cases (code 67), and dies of a branch further down.
    """
    below = {snapshot.id}
    for one in snapshots:  # parents before their children
        if one.parent in below:
            below.add(one.id)
            if one.id not in chain:
                return (
                    f"is external, and {one}, which was taken on top of it, is not what the VM runs on now, so that libvirt cannot merge "
                    f"them; remove {one} first, or set children=remove"
                )
    return None
