# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is written: snapshots taken, reverted to, deleted and described. Each call blocks until it is done.

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

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._credentials import public_uri
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, Create, Delete, Describe, Finished, Job, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_guest import NotQuiesced, quiesced, set_clock
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_judge import Judge, checkpoints, read_listing
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_leftovers import checked_removal, unused_files
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_library import (
    HOLDER,
    block_job_runs,
    broken_off,
    clean,
    is_broken,
    is_held,
    is_local,
    libvirt,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_removal import look, why_not_removed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_ways import Daemon
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import (
    EXTERNAL,
    new_snapshot,
    read_disks,
    read_snapshot,
    with_description,
)

# What libvirt makes at a revert has the second in its name, so that two reverts within one collide (11.3).
_NEXT_SECOND = 1.1


@dataclasses.dataclass(eq=False)
class LibvirtJob(Job):
    """A job that knows how far it came, for when its connection breaks."""

    sent: str | None = None
    """The begin of a sentence about what libvirt was asked for, or has done; None as long as nothing was sent."""

    def asks(self) -> None:
        """The next request may write."""
        self.sent = f"libvirt was asked to {self.action}"


def run(job: LibvirtJob, domain: t.Any, *, uri: str, daemon: Daemon, transient: bool) -> Finished:
    """Do what the job is about.

    :raises SafepointError: it was refused, or failed.
    :raises libvirtError: as well.
    """
    action: Action = job.action
    try:
        _refuse_busy(domain, action)
        if isinstance(action, Create):
            return _unsaved(action, domain, lambda: _create(job, action, domain, uri))
        snapshot = domain.snapshotLookupByName(action.snapshot.id)
        xml = _same(action, snapshot)
        if isinstance(action, Revert):
            return _revert(job, action, domain, snapshot, transient=transient)
        if isinstance(action, Delete):
            return _delete(job, action, domain, snapshot, xml, uri=uri, daemon=daemon)
        return _describe(job, action, domain, xml)
    except libvirt.libvirtError as exc:
        # libvirt has no code of its own for this where it is about a revert (55) or an external deletion (84).
        if exc.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_UNSUPPORTED) and _has_block_job(
            domain
        ):
            raise block_job_runs(exc, f"{action}") from exc
        # 'Can't migrate the vm that was paused due to previous migration', 'Inactive ... can't be a backing child of active ...' (QEMU 7.2, 10.0).
        if exc.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and _is_external(action) and _is_paused(domain):
            raise _errors.BackendFailed(
                f"libvirt failed to {action}: {clean(exc)}; a VM that is paused since its memory was saved to a file, or restored from one, has "
                "to run once before this: resume it (virsh resume), and pause it again if it is to stay paused"
            ) from exc
        raise


def _refuse_busy(domain: t.Any, action: Action) -> None:
    """Say at once that another operation holds the VM: libvirt itself would wait for 30 seconds, whatever lock_timeout is.

    Two requests for each write. The second is made only when nothing works on the VM, since it waits for the end of a snapshot; a backup is
    told by it alone (9.0, 11.3).

    :raises Locked: nothing was sent.
    """
    try:
        held = is_held(domain) or domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
    except libvirt.libvirtError:
        return  # libvirt's test driver has no such thing, and a VM that is off tells none: for it libvirt itself waits, up to 30 seconds
    if held:
        raise _errors.Locked(
            f"{action.vm} is held by {HOLDER}, so that libvirt was not asked to {action}; "
            "virsh domjobinfo shows it, try again when it has ended"
        )


def _same(action: Revert | Delete | Describe, snapshot: t.Any) -> str:
    """The definition of the snapshot, unless another one has taken its name since the look: libvirt has no other id than the name.

    The creation time has whole seconds. A revert needs the definition for this alone, so that it costs one request more.

    :raises SnapshotNotFound: the snapshot that was decided about is not there any more.
    """
    xml: str = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    created = read_snapshot(xml, current=None).created
    if action.snapshot.created is not None and created != action.snapshot.created:
        raise _errors.SnapshotNotFound(
            f"libvirt was not asked to {action}: the snapshot {action.snapshot.id!r} that was there is gone, and another one has that name now; "
            "look with snapshot_info"
        )
    return xml


def _unsaved(action: Create, domain: t.Any, create: Callable[[], Finished]) -> Finished:
    """Take no snapshot beside the saved memory of a VM (managed save), which the snapshot would not hold.

    The look before has refused that already; but the save may have ended since, also while libvirt itself waited with the snapshot for it. Hence
    two requests.
    """
    refusal = _errors.Unsupported(
        f"No snapshot of {action.vm} can be taken, because its memory was saved to disk (managed save) in this moment, and a snapshot would not "
        "hold that; start it first, or drop it with virsh managedsave-remove"
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
        # A name that is taken has the generic code of any failed operation, and a text in the daemon's language.
        if exc.get_error_code() != libvirt.VIR_ERR_OPERATION_FAILED:
            raise
        if action.name in domain.snapshotListNames():
            raise _errors.SnapshotExists(f"{action.vm} has a snapshot named {action.name!r} already") from exc
        raise _errors.BackendFailed(f"libvirt failed to {action}: {clean(exc)}{_advice(str(exc))}") from exc
    return Finished(job, snapshot_id=made.getName())


def _advice(said: str) -> str:
    """What to do about what QEMU said, which is in no other language."""
    if "already exists" in said:
        # 9.0 replaces what lies in the image under that name without a word, 11.3 fails.
        return "; a disk holds a snapshot of that name that libvirt does not know: snapshot_info with check_images=true tells how to remove it"
    if "writing VM state" in said or "No space left" in said:
        return "; check the free space of the storage that holds the images: a snapshot with memory needs as much as the VM has memory"
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
    except (libvirt.libvirtError, _errors.Unverified) as exc:
        error: Exception = exc
        if not isinstance(exc, _errors.Unverified):
            if not is_broken(exc, domain.connect()):
                raise  # libvirt removes the new files of a snapshot that fails, but not when it dies
            error = broken_off(exc, f"{action}", job.sent, where=public_uri(uri))
        left = ", ".join([*files.values(), *([memory_file] if memory_file else [])])
        raise _errors.Unverified(f"{error}; where there is no such snapshot then, remove what is left of it: {left}") from exc
    return Finished(job, snapshot_id=made.getName(), warnings=tuple(warnings))


def _new_files(action: Create, domain: t.Any) -> tuple[dict[str, str], str | None]:
    """The new file of each disk that takes part, and the one for the memory where that is kept; beside the disks' own.

    libvirt's own choice is the image's name without its suffix and the snapshot's instead, so that vm.raw and vm.qcow2 collide, and a
    snapshot with what an earlier one of its name has left.
    """
    disks = [disk for disk in read_disks(ElementTree.fromstring(domain.XMLDesc())) if disk.writable and disk.path]
    # A file's name has 255 bytes at most, of which the snapshot's may be 80.
    vm = action.vm.name.encode()[:100].decode(errors="ignore")
    # A second try after a daemon that died finds the files of the first, and another run may begin at the same millisecond.
    end = f"{action.name}.{time.time_ns() // 1_000_000}{secrets.randbelow(10**6):06}"
    files = {disk.target: os.path.join(os.path.dirname(disk.path or ""), f"{vm}-{disk.target}.{end}") for disk in disks}
    memory_file = None
    if action.memory and files:
        memory_file = os.path.join(os.path.dirname(next(iter(files.values()))), f"{vm}.{end}.mem")
    return files, memory_file


def _revert(job: LibvirtJob, action: Revert, domain: t.Any, snapshot: t.Any, *, transient: bool) -> Finished:
    flags = 0
    if action.power == "on":
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
    elif action.snapshot.memory:
        if action.power == "off":
            # There is no flag for off. Paused, the guest runs no instruction before it is switched off.
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED
    elif transient:
        raise _errors.Unsupported(
            f"{action.vm} would be off after a revert to {action.snapshot}, which holds no memory, and is transient, so that it would cease to "
            "exist; set power=on, or make it persistent first (virsh define)"
        )
    job.asks()
    _go_back(action, domain, snapshot, flags)
    job.sent = f"{action.vm} was reverted to {action.snapshot}"
    try:
        return Finished(job, warnings=tuple(_after_revert(action, domain)))
    except libvirt.libvirtError as exc:
        if is_broken(exc, domain.connect()):
            raise
        # Not with a code that says that nothing was done, such as Locked.
        raise _errors.BackendFailed(
            f"{job.sent}, but then libvirt failed: {clean(exc)}; look at its power and whether its saved memory "
            "(managed save) is gone, or revert again"
        ) from exc


def _after_revert(action: Revert, domain: t.Any) -> list[str]:
    """The rest of a revert, and the warnings that come of it."""
    if action.power == "off":
        try:
            if domain.isActive():
                domain.destroy()
        except libvirt.libvirtError:
            if domain.isActive():
                raise  # else another one was faster
    warnings = []
    if domain.hasManagedSaveImage():
        # libvirt keeps it, and the next start would run memory of later on the disks of now.
        domain.managedSaveRemove()
        warnings.append(f"The saved memory of {action.vm} (managed save) was dropped, since it was later than the snapshot")
    lost = checkpoints(domain) if action.snapshot.kind == EXTERNAL else ()
    if lost:
        # 11.3 keeps the checkpoints: 'checkpoint inconsistent: missing or broken bitmap' when the next incremental backup begins.
        warnings.append(
            f"The new images of {action.vm} lack the bitmaps of the checkpoints {', '.join(lost)}: delete these (virsh checkpoint-delete {action.vm} "
            "NAME --metadata), and let the next backup be a full one"
        )
    if action.snapshot.memory and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
        problem = set_clock(domain)
        if problem:
            warnings.append(
                f"The clock of {action.vm} still shows the time of the snapshot ({problem}); let its time service step it"
            )
    return warnings


def _go_back(action: Revert, domain: t.Any, snapshot: t.Any, flags: int) -> None:
    try:
        domain.revertToSnapshot(snapshot, flags)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY and domain.hasManagedSaveImage():
            # 'snapshot without memory state, removal of existing managed saved state strongly recommended': it is dropped after the revert, not
            # before it, which may fail.
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE
        elif action.snapshot.kind == EXTERNAL and exc.get_error_code() == libvirt.VIR_ERR_CONFIG_UNSUPPORTED:
            time.sleep(_NEXT_SECOND)
        else:
            raise
        domain.revertToSnapshot(snapshot, flags)


def _delete(job: LibvirtJob, action: Delete, domain: t.Any, snapshot: t.Any, xml: str, *, uri: str, daemon: Daemon) -> Finished:
    # Again, since a revert of the same call or another program may have taken a disk away since the look; libvirtd 9.0 dies of it.
    why = why_not_removed(action.snapshot, xml, look(domain, domain.XMLDesc(), [action.snapshot], daemon))
    if why:
        raise _errors.Unsupported(f"It cannot be removed: the snapshot {action.snapshot} of {action.vm} {why}")
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
        (f"{daemon} leaves the memory file of the snapshot {action.snapshot} of {action.vm} behind: remove {left}",)
        if left
        else ()
    )
    return Finished(job, warnings=(*doubts, *warnings))


def _delete_lost(job: LibvirtJob, action: Delete, domain: t.Any, snapshot: t.Any, *, uri: str, daemon: Daemon) -> Finished:
    """Remove the record of an external snapshot that another program merged: with flags of 0 libvirt 11.3 fails, since it does not find its images any more.

    It is judged once more, since without its record a snapshot that still has its data would be lost indeed.
    """
    listing = read_listing(domain)
    judged = Judge(domain.connect(), where=daemon.where, local=is_local(uri), version=lambda: daemon.version).judged(
        domain, listing, domain.XMLDesc()
    )
    if not any(one.id == action.snapshot.id and one.lost for one in judged):
        raise _errors.BackendFailed(
            f"The snapshot {action.snapshot} of {action.vm} had lost its data, and has not any more, because another run has changed it; nothing "
            "was removed, look at the VM (snapshot_info) and run this again"
        )
    others = [listing.texts[one.id] for one in judged if not one.lost]
    files = unused_files(listing.texts[action.snapshot.id], domain, others, local=is_local(uri))
    job.asks()
    snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    left = (
        f"; no disk of the VM and no other snapshot of it uses these files that were made for it: remove them where no other VM does: {', '.join(files)}"
        if files
        else ""
    )
    said = f"The snapshot {action.snapshot} of {action.vm} had lost its data, and only libvirt's record of it was removed{left}"
    return Finished(job, warnings=(said,))


def _delete_now(action: Delete, domain: t.Any, snapshot: t.Any) -> tuple[str, ...]:
    """Delete it, and return the warning where libvirt reports a failure and the snapshot is gone all the same."""
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
            f"libvirt has removed the snapshot {action.snapshot} of {action.vm}, and said: {clean(exc)}; its data may be left in an image of a disk "
            "that was detached: look with qemu-img snapshot -l",
        )
    return ()


def _describe(job: LibvirtJob, action: Describe, domain: t.Any, xml: str) -> Finished:
    job.asks()
    try:
        domain.snapshotCreateXML(with_description(xml, action.description), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    except libvirt.libvirtError as exc:
        # 'internal error: missing domain in snapshot'
        if exc.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and action.snapshot.id not in domain.snapshotListNames():
            raise _errors.SnapshotNotFound(
                f"The snapshot {action.snapshot} of {action.vm} was removed before it could be described"
            ) from exc
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
        return False  # it is off
