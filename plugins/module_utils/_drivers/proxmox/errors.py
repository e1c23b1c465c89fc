# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Translate the error texts of Proxmox VE to SafepointErrors, each with PVE's own text and a remedy.

The texts are those of PVE 9.2 (qemu-server 9.2.6, pve-container 6.1.10, pve-guest-common 6.0.2); those of 8.4 are the same.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Refused, is_lost, may_pass

# PVE's text as a regular expression, the error, the remedy. The first match is used.
_TABLE: tuple[tuple[str, type[errors.SafepointError], str], ...] = (
    (r"snapshot name '.*' already used", errors.SnapshotExists, "choose another name"),
    (
        r"can't rollback, snapshot '.*' does not exist on '",
        errors.BackendFailed,
        "the snapshot is missing on one disk; the VM can only be reverted without that disk",
    ),
    (r"snapshot '.*' does not exist", errors.SnapshotNotFound, "list the snapshots with snapshot_info"),
    (
        r"snapshot feature is not available",
        errors.Unsupported,
        "a storage or disk format of the guest does not support snapshots; move the disk, for example to qcow2 on a directory, ZFS, LVM-thin, Ceph or Btrfs",
    ),
    (
        r"is not most recent snapshot on",
        errors.NewerSnapshots,
        "its storage can only revert to the newest snapshot; set discard_newer=true to delete the newer ones",
    ),
    (
        r"storage '.*' does not exist",
        errors.Unsupported,
        "set an existing storage in the VM's configuration (disks and vmstatestorage)",
    ),
    (r"if (it's|vm is) a template", errors.Unsupported, "clone it, and take a snapshot of the clone"),
    (r"incomplete snapshot", errors.Unsupported, "the snapshot is incomplete; remove it"),
    (r"can't lock file .* got timeout", errors.Locked, "another operation holds the lock, try again later"),
    (
        r"Failed to obtain guest migration lock",
        errors.Locked,
        "a removal, replication or migration of the guest is running, try again later",
    ),
    (r"needed by replication job", errors.Unsupported, "run the replication job first"),
    (r"requires QEMU machine version >= 10\.0", errors.Unsupported, "set a newer machine version and restart the VM"),
    (r"TPM state .* cannot be removed while the VM is running", errors.Unsupported, "power the VM off first"),
    (r"Cannot live-migrate, snapshot \(with RAM\), or hibernate", errors.Unsupported, "leave memory out"),
    (r"reserved name", errors.InvalidOption, "choose another name"),
    (r"received interrupt", errors.BackendFailed, "a user stopped the task; PVE has cleaned up"),
    (
        r"unexpected status",
        errors.BackendFailed,
        "its worker was killed and may have left a lock and an unfinished snapshot; check with snapshot_info",
    ),
    (r"no quorum", errors.BackendFailed, "the cluster has no quorum and accepts no changes; bring more of its nodes online"),
    (r"hostname lookup '.*' failed", errors.NotReached, "the cluster has no node of that name"),
)
# Errors of the checks that a worker makes before it locks its guest: a lock that exists then belongs to another operation.
_BEFORE_THE_LOCK = re.compile(
    r"is locked \(|migration lock|/pve-migrate-|already used|is not most recent|incomplete snapshot|replication job"
)
# A removal repeats these checks after it has locked the guest (pve-guest-common 6.0.2).
_GONE = re.compile(r"snapshot '[^']*' does not exist$")
_TEMPLATE = re.compile(r"a template$")
# PVE's fork_worker was interrupted while it read the id of the new worker, which is then killed before it does anything (pve-common 9.2.1).
NO_WORKER = "got no worker upid"
_LOCKED = re.compile(r"(?:VM|CT) is locked \((?P<kind>[a-z-]+)\)")
# Locks that do not end with a running snapshot task, and their remedy.
_WAYS_OUT = {
    "backup": "a backup is running; wait until it has ended",
    "suspended": "the VM is suspended to disk; resume it first",
    "suspending": "the VM is being suspended to disk; wait until it is suspended, then resume it",
    "migrate": "the guest is being migrated; wait until it has ended",
    "mounted": "a user has mounted the container; run pct unmount on its node",
}


def way_out(kind: str, tool: str, vmid: str, unfinished: Iterable[str]) -> str:
    """Return the remedy for a lock that no visible task holds; ``unfinished`` are the names of the snapshots that it may have left incomplete."""
    if kind in _WAYS_OUT:
        return _WAYS_OUT[kind]
    # Without --force, a disk that does not have the snapshot would make the removal fail and leave another lock (qemu-server 9.2).
    left = "".join(f", then {tool} delsnapshot {vmid} {name} --force" for name in sorted(unfinished))
    unlock = f"run {tool} unlock {vmid} on its node{left}"
    return f"no task that holds the lock is visible; a task that died may have left it: if no operation is running, {unlock}"


def lock_kind(text: str) -> str | None:
    """Return the kind of lock in PVE's error text, or None."""
    match = _LOCKED.search(text)
    return match["kind"] if match else None


def is_before_the_lock(text: str, *, removal: bool) -> bool:
    """Return True if a worker that failed with this text had not locked its guest yet."""
    return bool(_BEFORE_THE_LOCK.search(text)) or (not removal and bool(_GONE.search(text) or _TEMPLATE.search(text)))


def says_gone(text: str) -> bool:
    """Return True if the text says that the guest has no such snapshot."""
    return bool(_GONE.search(text))


def locked_by(kind: str, holder: str | None, *, tool: str, vmid: str, unfinished: Iterable[str]) -> str:
    """Return the lock of a guest in words, with the task that holds it or else with the remedy."""
    if holder is not None:
        return f"the lock {kind!r} of the task {holder}"
    return f"the lock {kind!r} ({way_out(kind, tool, vmid, unfinished)})"


def typed(text: str, what: str) -> errors.SafepointError:
    """Translate the text of a failed task or of a refused request; ``what`` is the operation, as an infinitive."""
    said = f"Proxmox VE failed to {what}: {text.strip().rstrip('.')}"
    kind = lock_kind(text)
    if kind is not None:
        return errors.Locked(f"{said}; {_WAYS_OUT.get(kind, 'another operation holds the lock, try again later')}")
    for pattern, made, advice in _TABLE:
        if re.search(pattern, text):
            return made(f"{said}; {advice}")
    return errors.BackendFailed(said)


def half_done(text: str, what: str, *, kind: str, tool: str, vmid: str, unfinished: Iterable[str]) -> errors.BackendFailed:
    """Return the error of a failed task that left its lock."""
    out = way_out(kind, tool, vmid, unfinished)
    return errors.BackendFailed(f"{typed(text, what)}; it failed half-way and left the lock {kind!r} ({out})")


def refused(error: Refused, what: str, *, where: str, node: str) -> errors.SafepointError:
    """Translate PVE's error for a request that ``node`` had to answer; empty for a request that any node can answer."""
    if error.status == 403:
        match = re.search(r"Permission check failed \((?P<path>[^,]+), (?P<needs>[^)]+)\)", error.text)
        missing = f"; the privilege {' or '.join(match['needs'].split('|'))} on {match['path']} is missing" if match else ""
        return errors.PermissionDenied(f"Proxmox VE refused to {what}: {error.text}{missing}")
    if is_lost(error) and error.status < 595:
        return errors.ConnectionFailed(
            f"{where} answered {error.text} ({error.status}) to the request to {what}; check Proxmox VE there, and any proxy in front of it"
        )
    if may_pass(error):
        # AnyEvent::HTTP's codes: the node that we are connected to could not forward the request.
        made = errors.ConnectionFailed if is_lost(error) else errors.NotReached
        return made(
            f"{where} could not reach {f'the node {node}' if node else 'another node'} to {what}: {error.text} ({error.status}); check that the node is up"
        )
    if error.status == 400:
        return errors.InvalidOption(f"Proxmox VE refused to {what}: {error.text}")
    if error.status == 501:
        return errors.Unsupported(
            f"Proxmox VE refused to {what}: {error.text}; its version is older than 7.0, or it is not Proxmox VE"
        )
    return typed(error.text, what)
