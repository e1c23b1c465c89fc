# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""States of VMs and of their images in which a snapshot would be of no use, each with the reason and the remedy. Pure: no connection, no library.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._model import Finding

# virDomainState and virDomainShutoffReason in libvirt-domain.h.
CRASHED = 6
MIGRATED_AWAY = (5, 4)
# VIR_DOMAIN_PAUSED_SAVE and _SNAPSHOT: QEMU is stopped for a snapshot of the running VM.
PAUSED_FOR_SNAPSHOT = ((3, 3), (3, 9))
# A libvirtd that was started again could not go on with this QEMU, and has ended it.
_ENDED_BY_DAEMON = (5, 8)

# 9.0, 11.3: it is taken, and the VM is off after a revert to it.
HAS_CRASHED = (
    "its guest has crashed, and a revert would bring back a VM that is off; restart it first (virsh reset, then virsh resume)"
)

# 9.0 fails ("Unknown savevm section or instance 'cpu_common'"), 11.3 does not: since 10.9 QEMU is started first, and goes back then.
CPUS_COME_BACK = 10_009_000
CPUS_LOST = "libvirt before 10.9 fails the revert to a snapshot with the memory of such a VM and leaves the VM off"

# libvirt 11.3 starts no VM of which a disk has more than 25 images, those of a template included: 'failed to parse JSON: nesting too deep'. An
# external snapshot adds one. Some are left for what adds images beside us: a backup job, a block copy, a person.
_IMAGES_TO_START, MOST_IMAGES, _MANY_IMAGES = 25, 20, 10


def virsh(where: str, *words: str) -> str:
    """The command for a shell; ``where`` is the URI without secrets, since virsh connects to another daemon without one."""
    return f"virsh -c {shlex.join([where, *words])}"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was seen of the disk images of a VM."""

    strays: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of snapshots in the images of a VM that is off which libvirt does not know, each with the remedy."""
    unsearched: str | None = None
    """An image of a VM that is off which could not be searched for these, and why."""
    checkpoints: Sequence[str] = ()
    """Those of incremental backups."""
    bitmaps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Dirty bitmaps of no checkpoint, each with the image that holds it."""
    crashed: bool = False
    """Whether the guest has crashed, and QEMU was kept as it was."""
    depth: int | None = None
    """How many images the disk has that has the most; None where that is not known."""


def plugged_cpus(domain: ElementTree.Element) -> bool:
    """Whether a VM that is up has CPUs that QEMU was not started with."""
    return any(cpu.get("enabled") == cpu.get("hotpluggable") == "yes" for cpu in domain.iterfind("vcpus/vcpu"))


def findings_of_state(vm: str, state: int, reason: int, *, where: str) -> list[Finding]:
    """What libvirt's state of a VM says that a person should know; ``where`` is the URI without secrets."""
    if (state, reason) == MIGRATED_AWAY:
        return [
            Finding(
                "migrated_away",
                f"{vm} was migrated to another host, and runs there; its definition is still here",
                f"remove the definition: {virsh(where, 'undefine', vm)}",
            )
        ]
    if state == CRASHED:
        said = f"The guest of {vm} has crashed, and QEMU was stopped and kept for a look into it (on_crash=preserve)"
        return [Finding("guest_crashed", said, f"restart it: {virsh(where, 'reset', vm)} && {virsh(where, 'resume', vm)}")]
    return []


def left_by_dead_daemon(vm: str, state: tuple[int, int], *, where: str) -> Finding | None:
    """The state in which a libvirtd that died in the middle of an operation has left a VM that nothing works on, if it is one."""
    if state in PAUSED_FOR_SNAPSHOT:
        return Finding(
            "left_paused",
            f"{vm} is paused since a snapshot that libvirtd did not live to finish",
            f"let it run again: {virsh(where, 'resume', vm)}",
        )
    if state == _ENDED_BY_DAEMON:
        return Finding(
            "left_off",
            f"{vm} is off because libvirtd, when it was started again, could not go on with its QEMU, and ended it; the guest lost what it "
            "had in memory, as in a power cut",
            f"start it, or revert it to a snapshot: {virsh(where, 'start', vm)}",
        )
    return None


def why_not_written(vm: str, where: str) -> str:
    """Why nothing is done to a VM that was migrated away. Its images may be on shared storage: an external snapshot works (9.0, 11.3)."""
    return (
        f"Nothing is done to {vm} on this host, because it was migrated to another one, runs there and writes to the same images; use the other "
        f"host, and remove the definition here ({virsh(where, 'undefine', vm)})"
    )


def chain_near_limit(vm: str, depth: int | None) -> Finding | None:
    """The finding about a VM of which a disk has so many images that there will soon be no room for further snapshots."""
    if depth is None or depth < _MANY_IMAGES:
        return None
    return Finding(
        "chain_near_limit",
        f"A disk of {vm} consists of {depth} images, one on top of the other; with more than {_IMAGES_TO_START} the VM does not start any more, "
        f"and from {MOST_IMAGES} on no external snapshot is taken",
        "remove external snapshots that are no longer needed, the oldest first, or flatten the images of a template (virsh blockpull)",
    )


def why_not_deeper(depth: int | None) -> str | None:
    if depth is None or depth < MOST_IMAGES:
        return None
    return (
        f"a disk of it consists of {depth} images, and with more than {_IMAGES_TO_START} the VM does not start any more; remove external snapshots "
        "that are no longer needed, the oldest first, or flatten the images of a template (virsh blockpull)"
    )


def bitmaps_hinder(vm: str, checkpoints: Sequence[str], where: str) -> str | None:
    """Why there is no way back to an internal snapshot while an image has a bitmap, whenever that was added.

    QEMU 7.2 and 10.0: 'Device has active dirty bitmaps', after libvirt has stopped the VM (9.0, 11.3). A checkpoint can be deleted while the VM is
    up only.
    """
    if not checkpoints:
        return None
    commands = "; ".join(virsh(where, "checkpoint-delete", vm, one) for one in checkpoints)
    return (
        f"{vm} has the checkpoint {', '.join(checkpoints)} of an incremental backup, whose bitmap makes QEMU fail the revert and leave the VM off; "
        f"start the VM, and delete it ({commands}), after which the next backup has to be a full one"
    )


def bitmap_hinders(bitmap: str, place: str) -> str:
    """The same for a bitmap that libvirt has no checkpoint for, such as another tool or an undefined VM leaves."""
    return (
        f"the image {place} has the dirty bitmap {bitmap!r} of a backup, which makes QEMU fail the revert; power the VM off, and remove it on the "
        f"host (qemu-img bitmap --remove {shlex.quote(place)} {shlex.quote(bitmap)}), after which the next backup has to be a full one"
    )
