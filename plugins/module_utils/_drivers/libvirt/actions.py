# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The writes: create, revert, delete and describe a snapshot. Each call blocks until libvirt has finished.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
import typing as t
from collections.abc import Callable
from xml.etree import ElementTree

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import (
    Action,
    Create,
    Delete,
    Describe,
    Finished,
    Job,
    Revert,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import public_uri
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.guest_agent import NotQuiesced, quiesced, set_clock
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.judge import Judge, checkpoints, read_listing
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.leftovers import checked_removal, unused_files
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.library import (
    HOLDER,
    block_job_runs,
    broken_off,
    clean,
    is_broken,
    is_held,
    is_local,
    libvirt,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import virsh
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.removal import look, why_not_removed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.ways import Daemon
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import (
    EXTERNAL,
    new_snapshot,
    read_disks,
    read_snapshot,
    with_description,
)

# libvirt puts the time, in seconds, into the names of the files that a revert creates: two reverts within one second collide (11.3).
_NEXT_SECOND = 1.1


@dataclasses.dataclass(eq=False)
class LibvirtJob(Job):
    """A job that records its progress, for the error message if its connection breaks."""

    sent: str | None = None
    """The start of a sentence: the request that was sent, or the finished operation. None while nothing was sent."""

    def asks(self) -> None:
        """Record that the next request may write."""
        self.sent = f"libvirt was asked to {self.action}"


def run(job: LibvirtJob, domain: t.Any, *, uri: str, daemon: Daemon, transient: bool) -> Finished:
    """Perform the action of the job.

    :raises SafepointError: it was refused or failed.
    :raises libvirtError: the same, for errors that this file does not translate.
    """
    action: Action = job.action
    try:
        _refuse_busy(domain, action, uri)
        if isinstance(action, Create):
            return _unsaved(action, domain, uri, lambda: _create(job, action, domain, uri))
        snapshot = domain.snapshotLookupByName(action.snapshot.id)
        xml = _same(action, snapshot)
        if isinstance(action, Revert):
            return _revert(job, action, domain, snapshot, uri=uri, transient=transient)
        if isinstance(action, Delete):
            return _delete(job, action, domain, snapshot, xml, uri=uri, daemon=daemon)
        return _describe(job, action, domain, xml)
    except libvirt.libvirtError as exc:
        # libvirt has no specific error code for a block job when it refuses a revert (55) or the deletion of an external snapshot (84).
        if exc.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_UNSUPPORTED) and _has_block_job(
            domain
        ):
            raise block_job_runs(exc, f"{action}", where=public_uri(uri)) from exc
        # 'Can't migrate the vm that was paused due to previous migration', 'Inactive ... can't be a backing child of active ...' (QEMU 7.2, 10.0).
        if exc.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and _is_external(action) and _is_paused(domain):
            raise errors.BackendFailed(
                f"libvirt failed to {action}: {clean(exc)}; a VM that is paused after its memory was saved to a file or restored from one must "
                f"run once first: resume it ({virsh(public_uri(uri), 'resume', action.vm.name)}), and pause it again if needed"
            ) from exc
        raise


def _refuse_busy(domain: t.Any, action: Action, uri: str) -> None:
    """Fail at once if another operation holds the VM: libvirt would wait 30 seconds, regardless of lock_timeout.

    Two requests per write. The second waits for the end of a running snapshot, so it is only sent if the first shows no operation; only the second
    shows a backup (9.0, 11.3).

    :raises Locked: nothing was sent.
    """
    try:
        held = is_held(domain) or domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
    except libvirt.libvirtError:
        return  # not supported by libvirt's test driver or for a VM that is off; libvirt then waits up to 30 seconds itself
    if held:
        raise errors.Locked(
            f"Did not {action}: {action.vm} is held by {HOLDER}; "
            f"{virsh(public_uri(uri), 'domjobinfo', action.vm.name)} shows it; try again when it has ended"
        )


def _same(action: Revert | Delete | Describe, snapshot: t.Any) -> str:
    """Return the definition of the snapshot if it is still the one that was read: libvirt's only id for a snapshot is its name.

    Compares the creation times, which have a resolution of one second. For a revert this is one extra request.

    :raises SnapshotNotFound: the snapshot was deleted and another one has its name.
    """
    xml: str = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    created = read_snapshot(xml, current=None).created
    if action.snapshot.created is not None and created != action.snapshot.created:
        raise errors.SnapshotNotFound(
            f"Did not {action}: the snapshot {action.snapshot.id!r} was deleted and another one has that name now; "
            "check the snapshots with snapshot_info"
        )
    return xml


def _unsaved(action: Create, domain: t.Any, uri: str, create: Callable[[], Finished]) -> Finished:
    """Create the snapshot, but not for a VM whose memory was saved to disk (managed save): the snapshot would not include that memory.

    The engine has checked this before. But a save may have ended since then, or while libvirt waited with the snapshot for it. Hence two requests.
    """
    refusal = errors.Unsupported(
        f"No snapshot of {action.vm} can be taken, because its memory was just saved to disk (managed save) and a snapshot would not "
        f"include it; start the VM first, or discard the saved memory ({virsh(public_uri(uri), 'managedsave-remove', action.vm.name)})"
    )
    if domain.hasManagedSaveImage():
        raise refusal
    done = create()
    if domain.hasManagedSaveImage() and done.snapshot_id is not None:
        made = domain.snapshotLookupByName(done.snapshot_id)
        if ElementTree.fromstring(made.getXMLDesc()).findtext("state") == "shutoff":
            made.delete()
            raise refusal
    return done


def _create(job: LibvirtJob, action: Create, domain: t.Any, uri: str) -> Finished:
    try:
        if action.kind == EXTERNAL:
            return _create_external(job, action, domain, uri)
        job.asks()
        made = domain.snapshotCreateXML(new_snapshot(action.name, action.description))
    except libvirt.libvirtError as exc:
        # For a name that is in use libvirt has the generic code of a failed operation, and a text in the daemon's language.
        if exc.get_error_code() != libvirt.VIR_ERR_OPERATION_FAILED:
            raise
        if action.name in domain.snapshotListNames():
            raise errors.SnapshotExists(f"{action.vm} already has a snapshot named {action.name!r}") from exc
        raise errors.BackendFailed(f"libvirt failed to {action}: {clean(exc)}{_advice(str(exc))}") from exc
    return Finished(job, snapshot_id=made.getName())


def _advice(said: str) -> str:
    """Return the remedy for QEMU's error text. QEMU has no translations."""
    if "already exists" in said:
        # 9.0 silently replaces the snapshot of that name in the image, 11.3 fails.
        return "; a disk holds a snapshot of that name that libvirt has no record of: snapshot_info with check_images=true shows how to remove it"
    if "writing VM state" in said or "No space left" in said:
        return "; check the free space of the storage that holds the images: a snapshot with memory needs as much space as the VM has memory"
    return ""


def _create_external(job: LibvirtJob, action: Create, domain: t.Any, uri: str) -> Finished:
    files, memory_file = _new_files(action, domain)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    if memory_file is None:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY

    def take(description: str, more: int = 0) -> t.Any:
        return domain.snapshotCreateXML(
            new_snapshot(action.name, description, files=files, memory_file=memory_file), flags | more
        )

    warnings = []
    job.asks()
    try:
        if action.quiesce == "never":
            made = take(action.description)
        else:
            quiesce = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
            try:
                made = quiesced(action.vm, domain, uri, lambda: take(action.description, quiesce))
            except NotQuiesced as exc:
                if action.quiesce == "require":
                    raise exc.error from exc
                warnings.append(f"The snapshot {action.name} of {action.vm} is not quiesced: {exc.error}")
                made = take(action.unquiesced_description or action.description)
    except (libvirt.libvirtError, errors.Unverified) as exc:
        error: Exception = exc
        if not isinstance(exc, errors.Unverified):
            if not is_broken(exc, domain.connect()):
                raise  # libvirt removes the new files of a failed snapshot, unless libvirtd dies
            error = broken_off(exc, f"{action}", job.sent, where=public_uri(uri))
        left = ", ".join([*files.values(), *([memory_file] if memory_file else [])])
        raise errors.Unverified(f"{error}; if the snapshot does not exist then, remove the files it left: {left}") from exc
    return Finished(job, snapshot_id=made.getName(), warnings=tuple(warnings))


def _new_files(action: Create, domain: t.Any) -> tuple[dict[str, str], str | None]:
    """Return the new file of each disk by the disk's target, and the file for the memory or None. They are in the folders of the images.

    libvirt's own choice replaces the suffix of the image's name with the name of the snapshot: vm.raw and vm.qcow2 then collide, and so does a
    snapshot with files that an earlier one of the same name left.
    """
    disks = [disk for disk in read_disks(ElementTree.fromstring(domain.XMLDesc())) if disk.writable and disk.path]
    # A file name has at most 255 bytes; the snapshot's name can take 80 of them.
    vm = action.vm.name.encode()[:100].decode(errors="ignore")
    # In milliseconds and with a random part: with seconds, a retry soon after a daemon's death would find the files of the first try, and another run may
    # start in the same millisecond.
    end = f"{action.name}.{time.time_ns() // 1_000_000}{secrets.randbelow(10**6):06}"
    files = {disk.target: os.path.join(os.path.dirname(disk.path or ""), f"{vm}-{disk.target}.{end}") for disk in disks}
    memory_file = None
    if action.memory and files:
        memory_file = os.path.join(os.path.dirname(next(iter(files.values()))), f"{vm}.{end}.mem")
    return files, memory_file


def _revert(job: LibvirtJob, action: Revert, domain: t.Any, snapshot: t.Any, *, uri: str, transient: bool) -> Finished:
    flags = 0
    if action.power == "on":
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
    elif action.snapshot.memory:
        if action.power == "off":
            # There is no flag for off. In the paused state the guest runs no instruction before it is powered off.
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED
    elif transient:
        raise errors.Unsupported(
            f"{action.vm} is transient and would be off after a revert to {action.snapshot}, which holds no memory, and so cease to exist; "
            f"set power=on, or make it persistent first (write its XML to FILE, then {virsh(public_uri(uri), 'define', 'FILE')})"
        )
    job.asks()
    _go_back(action, domain, snapshot, flags)
    job.sent = f"{action.vm} was reverted to {action.snapshot}"
    try:
        return Finished(job, warnings=tuple(_after_revert(action, domain, uri)))
    except libvirt.libvirtError as exc:
        if is_broken(exc, domain.connect()):
            raise
        # Not with an error word that means that nothing was changed, such as locked.
        raise errors.BackendFailed(
            f"{job.sent}, but then libvirt failed: {clean(exc)}; check its power state and that it has no saved memory "
            "(managed save) any more, or revert again"
        ) from exc


def _after_revert(action: Revert, domain: t.Any, uri: str) -> list[str]:
    """Set power, managed save and clock after the revert, and return the warnings."""
    if action.power == "off":
        try:
            if domain.isActive():
                domain.destroy()
        except libvirt.libvirtError:
            if domain.isActive():
                raise  # else another client has powered it off
    warnings = []
    if domain.hasManagedSaveImage():
        # libvirt keeps it, and the next start would combine the later memory with the reverted disks.
        domain.managedSaveRemove()
        warnings.append(f"The saved memory of {action.vm} (managed save) was discarded, because it was newer than the snapshot")
    lost = checkpoints(domain) if action.snapshot.kind == EXTERNAL else ()
    if lost:
        # 11.3 keeps the checkpoints: 'checkpoint inconsistent: missing or broken bitmap' when the next incremental backup starts.
        commands = "; ".join(virsh(public_uri(uri), "checkpoint-delete", action.vm.name, one, "--metadata") for one in lost)
        warnings.append(
            f"The new images of {action.vm} lack the bitmaps of the checkpoints {', '.join(lost)}: delete the checkpoints ({commands}); "
            "the next backup must then be a full one"
        )
    if action.snapshot.memory and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
        problem = set_clock(domain)
        if problem:
            warnings.append(
                f"The clock of {action.vm} still shows the time of the snapshot ({problem}); make its time service step the clock"
            )
    return warnings


def _go_back(action: Revert, domain: t.Any, snapshot: t.Any, flags: int) -> None:
    try:
        domain.revertToSnapshot(snapshot, flags)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY and domain.hasManagedSaveImage():
            # 'snapshot without memory state, removal of existing managed saved state strongly recommended': it is discarded after the revert,
            # since the revert may fail.
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE
        elif action.snapshot.kind == EXTERNAL and exc.get_error_code() == libvirt.VIR_ERR_CONFIG_UNSUPPORTED:
            time.sleep(_NEXT_SECOND)
        else:
            raise
        domain.revertToSnapshot(snapshot, flags)


def _delete(job: LibvirtJob, action: Delete, domain: t.Any, snapshot: t.Any, xml: str, *, uri: str, daemon: Daemon) -> Finished:
    # Checked again: a revert of the same call or another program may have removed a disk since the VM was read, which crashes libvirtd 9.0.
    why = why_not_removed(action.snapshot, xml, look(domain, domain.XMLDesc(), [action.snapshot], daemon))
    if why:
        raise errors.Unsupported(f"It cannot be removed: the snapshot {action.snapshot} of {action.vm} {why}")
    left = None
    if action.snapshot.kind == EXTERNAL and action.snapshot.memory and daemon.version < 9_001_000:
        memory = ElementTree.fromstring(xml).find("memory")
        left = memory.get("file") if memory is not None else None
    if action.snapshot.lost is not None and action.snapshot.kind == EXTERNAL:
        return _delete_lost(job, action, domain, snapshot, uri=uri, daemon=daemon)
    with checked_removal(action.vm, snapshot, domain, where=daemon.where, local=is_local(uri)):
        job.asks()
        doubts = _delete_now(action, domain, snapshot)
    # NEWS of 9.1.0: it is removed from then on.
    warnings = (
        (f"{daemon} does not delete the memory file of the snapshot {action.snapshot} of {action.vm}: remove {left}",)
        if left
        else ()
    )
    return Finished(job, warnings=(*doubts, *warnings))


def _delete_lost(job: LibvirtJob, action: Delete, domain: t.Any, snapshot: t.Any, *, uri: str, daemon: Daemon) -> Finished:
    """Remove the record of an external snapshot whose images another program merged: a normal deletion fails in libvirt 11.3, which cannot find the images.

    Checked again first: if the snapshot still has its data, removing its record would make it unusable.
    """
    listing = read_listing(domain)
    judged = Judge(domain.connect(), where=daemon.where, local=is_local(uri), version=lambda: daemon.version).judged(
        domain, listing, domain.XMLDesc()
    )
    if not any(one.id == action.snapshot.id and one.lost for one in judged):
        raise errors.BackendFailed(
            f"The snapshot {action.snapshot} of {action.vm} was reported as lost, but now has its data, because another run changed it; nothing "
            "was removed; check the VM with snapshot_info and run this again"
        )
    others = [listing.texts[one.id] for one in judged if not one.lost]
    files = unused_files(listing.texts[action.snapshot.id], domain, others, local=is_local(uri))
    job.asks()
    snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    left = (
        f"; these files of the snapshot are not used by the VM or its other snapshots: remove them if no other VM uses them: {', '.join(files)}"
        if files
        else ""
    )
    said = f"The snapshot {action.snapshot} of {action.vm} had lost its data; only libvirt's record of it was removed{left}"
    return Finished(job, warnings=(said,))


def _delete_now(action: Delete, domain: t.Any, snapshot: t.Any) -> tuple[str, ...]:
    """Delete the snapshot; return a warning if libvirt reports a failure but the snapshot is gone."""
    try:
        snapshot.delete()
    except libvirt.libvirtError as exc:
        if (
            is_broken(exc, domain.connect())
            or exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT
            or action.snapshot.id in domain.snapshotListNames()
        ):
            raise
        return (
            f"libvirt removed the snapshot {action.snapshot} of {action.vm} but reported: {clean(exc)}; its data may still be in the image of a "
            "disk that was detached: check with qemu-img snapshot -l IMAGE",
        )
    return ()


def _describe(job: LibvirtJob, action: Describe, domain: t.Any, xml: str) -> Finished:
    job.asks()
    try:
        domain.snapshotCreateXML(with_description(xml, action.description), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    except libvirt.libvirtError as exc:
        # 'internal error: missing domain in snapshot'
        if exc.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and action.snapshot.id not in domain.snapshotListNames():
            raise errors.SnapshotNotFound(
                f"The snapshot {action.snapshot} of {action.vm} was removed before its description could be changed"
            ) from exc
        if exc.get_error_code() == libvirt.VIR_ERR_INVALID_ARG:
            # 'parent w for moment x not found': another run has removed the parent, and the definition has a new parent now.
            again = _same(action, domain.snapshotLookupByName(action.snapshot.id))
            if read_snapshot(again, current=None).parent != read_snapshot(xml, current=None).parent:
                return _describe(job, action, domain, again)
        raise
    return Finished(job)


def _is_external(action: Action) -> bool:
    return (action.kind if isinstance(action, Create) else action.snapshot.kind) == EXTERNAL


def _is_paused(domain: t.Any) -> bool:
    return bool(domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED)


def _has_block_job(domain: t.Any) -> bool:
    try:
        targets = [disk.target for disk in read_disks(ElementTree.fromstring(domain.XMLDesc()))]
        return any(domain.blockJobInfo(target) for target in targets)
    except libvirt.libvirtError:
        return False  # the VM is off
