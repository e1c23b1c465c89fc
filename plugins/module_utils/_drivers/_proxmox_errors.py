# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The texts of Proxmox VE's errors as errors of ours, each with PVE's own words in it and what to do.

The texts are those of PVE 9.2 (qemu-server 9.2.6, pve-container 6.1.10, pve-guest-common 6.0.2), which 8.4 shares.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_library import Refused, is_lost, may_pass

# By what PVE says: which error it is, and what to do. The first that fits.
_TABLE: tuple[tuple[str, type[_errors.SafepointError], str], ...] = (
    (r"snapshot name '.*' already used", _errors.SnapshotExists, "choose another name"),
    (
        r"can't rollback, snapshot '.*' does not exist on '",
        _errors.BackendFailed,
        "a disk has lost it, so that the VM can only go back without that disk",
    ),
    (r"snapshot '.*' does not exist", _errors.SnapshotNotFound, "look with snapshot_info what there is"),
    (
        r"snapshot feature is not available",
        _errors.Unsupported,
        "one of its disks is on a storage or in a format without snapshots; move it, for example to qcow2 on a directory, ZFS, LVM-thin, Ceph or Btrfs",
    ),
    (
        r"is not most recent snapshot on",
        _errors.NewerSnapshots,
        "its storage goes back to the newest snapshot only; set discard_newer=true to lose the newer ones",
    ),
    (
        r"storage '.*' does not exist",
        _errors.Unsupported,
        "name a storage that is there in the VM's configuration (its disks and vmstatestorage)",
    ),
    (r"if (it's|vm is) a template", _errors.Unsupported, "clone it, and take a snapshot of the clone"),
    (r"incomplete snapshot", _errors.Unsupported, "it was never finished; remove it"),
    (r"can't lock file .* got timeout", _errors.Locked, "another operation works on it, try again later"),
    (
        r"Failed to obtain guest migration lock",
        _errors.Locked,
        "another removal, a replication or a migration works on it, try again later",
    ),
    (r"needed by replication job", _errors.Unsupported, "let the replication run first"),
    (r"requires QEMU machine version >= 10\.0", _errors.Unsupported, "set a newer machine version and start the VM again"),
    (r"TPM state .* cannot be removed while the VM is running", _errors.Unsupported, "switch the VM off first"),
    (r"Cannot live-migrate, snapshot \(with RAM\), or hibernate", _errors.Unsupported, "leave memory out"),
    (r"reserved name", _errors.InvalidOption, "choose another name"),
    (r"received interrupt", _errors.BackendFailed, "a user has stopped the task; PVE has cleaned up"),
    (
        r"unexpected status",
        _errors.BackendFailed,
        "its worker was killed, and the lock and an unfinished snapshot may be left; look with snapshot_info",
    ),
    (r"no quorum", _errors.BackendFailed, "most of the cluster's nodes are not there, and nothing can be changed until they are"),
    (r"hostname lookup '.*' failed", _errors.NotReached, "the cluster does not know that node"),
)
# What a worker looks at before it takes the lock of its guest, so that the lock that is there then is another one's.
_BEFORE_THE_LOCK = re.compile(
    r"is locked \(|migration lock|/pve-migrate-|already used|is not most recent|incomplete snapshot|replication job"
)
# A removal looks at these once more when it has the lock (pve-guest-common 6.0.2).
_GONE = re.compile(r"snapshot '[^']*' does not exist$")
_TEMPLATE = re.compile(r"a template$")
# PVE's fork_worker was interrupted while it read the id of the new worker, which was then killed before it did anything (pve-common 9.2.1).
NO_WORKER = "got no worker upid"
_LOCKED = re.compile(r"(?:VM|CT) is locked \((?P<kind>[a-z-]+)\)")
# What a lock means that is not simply held by a task that will end.
_WAYS_OUT = {
    "backup": "a backup runs; wait for its end",
    "suspended": "the VM is suspended to disk; resume it first",
    "suspending": "the VM is being suspended to disk",
    "migrate": "it is being migrated",
    "mounted": "a user has mounted it; run pct unmount on its node",
}


def way_out(kind: str, tool: str, vmid: str, unfinished: Iterable[str]) -> str:
    """What to do about a lock that no running task is seen to hold, and the snapshots that it has left ``unfinished``."""
    if kind in _WAYS_OUT:
        return _WAYS_OUT[kind]
    # Without force a disk that does not have the snapshot would leave the next lock (qemu-server 9.2).
    left = "".join(f", then {tool} delsnapshot {vmid} {name} --force" for name in sorted(unfinished))
    unlock = f"run {tool} unlock {vmid} on its node{left}"
    return f"no task is seen to hold it, and one that died may have left it: when nothing runs any more, {unlock}"


def lock_kind(text: str) -> str | None:
    """The kind of the lock that PVE complains of."""
    match = _LOCKED.search(text)
    return match["kind"] if match else None


def is_before_the_lock(text: str, *, removal: bool) -> bool:
    """Whether a worker that ended so had not taken the lock of its guest yet."""
    return bool(_BEFORE_THE_LOCK.search(text)) or (not removal and bool(_GONE.search(text) or _TEMPLATE.search(text)))


def says_gone(text: str) -> bool:
    """Whether PVE says that the guest has no such snapshot."""
    return bool(_GONE.search(text))


def locked_by(kind: str, holder: str | None, *, tool: str, vmid: str, unfinished: Iterable[str]) -> str:
    """The lock of a guest with the task that is seen to hold it, or else what to do about it."""
    if holder is not None:
        return f"the lock {kind!r} of the task {holder}"
    return f"the lock {kind!r} ({way_out(kind, tool, vmid, unfinished)})"


def typed(text: str, what: str) -> _errors.SafepointError:
    """How a task ended, or what a call was refused with."""
    said = f"Proxmox VE failed to {what}: {text.strip().rstrip('.')}"
    kind = lock_kind(text)
    if kind is not None:
        return _errors.Locked(f"{said}; {_WAYS_OUT.get(kind, 'another operation holds it, try again later')}")
    for pattern, made, advice in _TABLE:
        if re.search(pattern, text):
            return made(f"{said}; {advice}")
    return _errors.BackendFailed(said)


def half_done(text: str, what: str, *, kind: str, tool: str, vmid: str, unfinished: Iterable[str]) -> _errors.BackendFailed:
    """How a task ended that has left its lock."""
    out = way_out(kind, tool, vmid, unfinished)
    return _errors.BackendFailed(f"{typed(text, what)}; it broke off half-way and left the lock {kind!r} ({out})")


def refused(error: Refused, what: str, *, where: str, node: str) -> _errors.SafepointError:
    """What a request was refused with that was for ``node`` to answer; that may be the empty text, for any."""
    if error.status == 403:
        match = re.search(r"Permission check failed \((?P<path>[^,]+), (?P<needs>[^)]+)\)", error.text)
        missing = f"; the privilege {' or '.join(match['needs'].split('|'))} on {match['path']} is missing" if match else ""
        return _errors.PermissionDenied(f"Proxmox VE refused to {what}: {error.text}{missing}")
    if is_lost(error) and error.status < 595:
        return _errors.ConnectionFailed(
            f"{where} answered {error.text} ({error.status}) to the request to {what}; check that Proxmox VE is up there, and the proxy before it"
        )
    if may_pass(error):
        # AnyEvent::HTTP's codes, from the node that we speak to about the one that it forwards to.
        made = _errors.ConnectionFailed if is_lost(error) else _errors.NotReached
        return made(
            f"{where} could not reach the node {node or 'that was to answer'} in order to {what}: {error.text} ({error.status}); look whether the node is up"
        )
    if error.status == 400:
        return _errors.InvalidOption(f"Proxmox VE refused to {what}: {error.text}")
    if error.status == 501:
        return _errors.Unsupported(f"Proxmox VE refused to {what}: {error.text}; it is older than 7.0, or no Proxmox VE at all")
    return typed(error.text, what)
