# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""States of VMs and images that make a snapshot unusable, each with its reason and remedy. Pure: no connection, no library.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding

# virDomainState and virDomainShutoffReason in libvirt-domain.h.
CRASHED = 6
MIGRATED_AWAY = (5, 4)
# VIR_DOMAIN_PAUSED_SAVE and _SNAPSHOT: QEMU is stopped while a snapshot of the running VM is taken.
PAUSED_FOR_SNAPSHOT = ((3, 3), (3, 9))
# After a restart libvirtd could not reconnect to this QEMU process and killed it.
_ENDED_BY_DAEMON = (5, 8)

# 9.0 fails ("Unknown savevm section or instance 'cpu_common'"), 11.3 does not: since 10.9 libvirt starts QEMU first and reverts then.
CPUS_COME_BACK = 10_009_000
CPUS_LOST = "before libvirt 10.9, the revert to a memory snapshot of such a VM fails and leaves the VM off"

# libvirt 11.3 cannot start a VM that has a disk with more than 25 images, template images included: 'failed to parse JSON: nesting too deep'.
# Each external snapshot adds one. The margin is for other sources of images: a backup job, a block copy, an administrator.
_IMAGES_TO_START, MOST_IMAGES, _MANY_IMAGES = 25, 20, 10


def virsh(where: str, *words: str) -> str:
    """Return the shell command; ``where`` is the URI without secrets. Without a URI, virsh connects to its default daemon."""
    return f"virsh -c {shlex.join([where, *words])}"


@dataclasses.dataclass(frozen=True)
class Seen:
    """The disk images of one VM, as they were read."""

    strays: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Names of snapshots in the images that libvirt has no record of, each with the remedy. Only for a VM that is off."""
    unsearched: str | None = None
    """An image that could not be searched for them, and why. Only for a VM that is off."""
    checkpoints: Sequence[str] = ()
    """Names of the checkpoints of incremental backups."""
    bitmaps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Dirty bitmaps that belong to no checkpoint, each with the image that holds it."""
    crashed: bool = False
    """True if the guest has crashed and QEMU was kept running (on_crash=preserve)."""
    depth: int | None = None
    """Number of images in the longest chain of the VM's disks; None if unknown."""


def plugged_cpus(domain: ElementTree.Element) -> bool:
    """Return True if CPUs were hot-plugged since QEMU was started."""
    return any(cpu.get("enabled") == cpu.get("hotpluggable") == "yes" for cpu in domain.iterfind("vcpus/vcpu"))


def findings_of_state(vm: str, state: int, reason: int, *, where: str) -> list[Finding]:
    """Return the findings that follow from libvirt's state of a VM; ``where`` is the URI without secrets."""
    if (state, reason) == MIGRATED_AWAY:
        return [
            Finding(
                "migrated_away",
                f"{vm} was migrated to another host and runs there, but its definition is still on this host",
                f"remove the definition: {virsh(where, 'undefine', vm)}",
            )
        ]
    if state == CRASHED:
        said = f"The guest of {vm} has crashed; QEMU is stopped and kept for analysis (on_crash=preserve)"
        return [Finding("guest_crashed", said, f"restart it: {virsh(where, 'reset', vm)} && {virsh(where, 'resume', vm)}")]
    return []


def left_by_dead_daemon(vm: str, state: tuple[int, int], *, where: str) -> Finding | None:
    """Return the finding if a libvirtd that died during an operation left the VM in this state. Only for a VM that no operation holds."""
    if state in PAUSED_FOR_SNAPSHOT:
        return Finding(
            "left_paused",
            f"{vm} is paused because libvirtd died while it took a snapshot",
            f"resume it: {virsh(where, 'resume', vm)}",
        )
    if state == _ENDED_BY_DAEMON:
        return Finding(
            "left_off",
            f"{vm} is off because libvirtd could not reconnect to its QEMU process after a restart and killed it; the guest lost the contents of "
            "its memory, as after a power failure",
            f"start it, or revert it to a snapshot: {virsh(where, 'start', vm)}",
        )
    return None


def why_not_written(vm: str, where: str) -> str:
    """Return why a VM that was migrated away is not changed. libvirt would: on shared storage an external snapshot succeeds (9.0, 11.3)."""
    return (
        f"{vm} is not changed on this host, because it was migrated to another host, runs there and writes to the same images; use the other "
        f"host, and remove the definition here ({virsh(where, 'undefine', vm)})"
    )


def has_crashed(vm: str, where: str) -> str:
    """Return why no snapshot of a crashed guest is taken: 9.0 and 11.3 take it, and the VM is off after a revert to it."""
    return (
        f"its guest has crashed, and after a revert the VM would be off; restart it first ({virsh(where, 'reset', vm)} && "
        f"{virsh(where, 'resume', vm)})"
    )


def chain_near_limit(vm: str, depth: int | None, where: str) -> Finding | None:
    """Return the finding if a chain of images is close to the limit."""
    if depth is None or depth < _MANY_IMAGES:
        return None
    return Finding(
        "chain_near_limit",
        f"A disk of {vm} has a chain of {depth} images; with more than {_IMAGES_TO_START} images the VM cannot start, "
        f"and with {MOST_IMAGES} or more no external snapshot is taken",
        _shorten_chain(vm, where),
    )


def why_not_deeper(vm: str, depth: int | None, where: str) -> str | None:
    """Return why no external snapshot can be added to the chain, or None."""
    if depth is None or depth < MOST_IMAGES:
        return None
    return f"one of its disks has a chain of {depth} images, and with more than {_IMAGES_TO_START} the VM cannot start; {_shorten_chain(vm, where)}"


def _shorten_chain(vm: str, where: str) -> str:
    return (
        "remove external snapshots that are no longer needed, the oldest first, or flatten the images of a template "
        f"({virsh(where, 'blockpull', vm, 'DISK')})"
    )


def bitmaps_hinder(vm: str, checkpoints: Sequence[str], where: str) -> str | None:
    """Return why a revert to any internal snapshot fails while an image has a checkpoint's bitmap, or None.

    QEMU 7.2 and 10.0: 'Device has active dirty bitmaps', after libvirt has stopped the VM (9.0, 11.3). A checkpoint can only be deleted while the
    VM is up.
    """
    if not checkpoints:
        return None
    commands = "; ".join(virsh(where, "checkpoint-delete", vm, one) for one in checkpoints)
    return (
        f"{vm} has the checkpoint {', '.join(checkpoints)} of an incremental backup; its bitmap makes the revert fail and leaves the VM off; "
        f"start the VM and delete the checkpoint ({commands}); the next backup must then be a full one"
    )


def bitmap_hinders(bitmap: str, place: str) -> str:
    """Return the same reason for a bitmap without a checkpoint, left by another tool or by an undefined VM."""
    return (
        f"the image {place} has the dirty bitmap {bitmap!r} of a backup, which makes the revert fail; power the VM off and remove the bitmap on the "
        f"host (qemu-img bitmap --remove {shlex.quote(place)} {shlex.quote(bitmap)}); the next backup must then be a full one"
    )
