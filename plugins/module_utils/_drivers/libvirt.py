# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt and QEMU: internal snapshots.

What the API does was seen on libvirt 9.0.0 with QEMU 7.2 (Debian 12) unless a comment says otherwise.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import difflib
import re
import threading
import time
import traceback
import typing as t
from collections.abc import Callable, Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import (
    Action,
    Create,
    Delete,
    Finished,
    Job,
    Revert,
    SnapshotDriver,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._libvirt_xml import (
    has_agent,
    new_snapshot,
    read_snapshot,
    why_no_snapshot,
    with_description,
)
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Vm, VmState, parents_first
from ansible_collections.safepoint.vm.plugins.module_utils._naming import NameRule
from ansible_collections.safepoint.vm.plugins.module_utils._threads import Endings, begin

try:
    import libvirt

    LIBVIRT_IMPORT_ERROR = None
except ImportError:
    LIBVIRT_IMPORT_ERROR = traceback.format_exc()

CHECK = "check that the host is up, that libvirtd runs there, and that this URI opens with virsh -c"

# A peer that says nothing to this many questions, so many seconds apart, is gone.
_KEEPALIVE_SECONDS = 5
_KEEPALIVE_COUNT = 3
# The agent of a guest that hangs never answers; setting the clock is worth no longer wait than this.
_AGENT_SECONDS = 5

# By number, since the library may be missing: virErrorNumber in libvirt's virterror.h.
_KINDS = {
    3: "Unsupported",  # NO_SUPPORT
    29: "PermissionDenied",  # OPERATION_DENIED
    42: "VmNotFound",  # NO_DOMAIN
    45: "PermissionDenied",  # AUTH_FAILED
    67: "Unsupported",  # CONFIG_UNSUPPORTED
    68: "Locked",  # OPERATION_TIMEOUT
    72: "SnapshotNotFound",  # NO_DOMAIN_SNAPSHOT
    74: "Unsupported",  # ARGUMENT_UNSUPPORTED
    83: "Locked",  # BLOCK_COPY_ACTIVE
    84: "Unsupported",  # OPERATION_UNSUPPORTED
    88: "PermissionDenied",  # ACCESS_DENIED
}
_ADVICE = {
    29: "; connect with a user that may write, for example qemu+ssh://root@HOST/system",
    68: "; another operation holds the VM: try again when it has ended",
    83: "; a block job works on a disk of the VM: virsh blockjob shows it, try again when it has ended",
}

# virDomainState in libvirt-domain.h; what is not here (crashed, shutting down, suspended, blocked) still has a process.
_POWERS = {3: "paused", 5: "off"}

_T = t.TypeVar("_T")


class LibvirtDriver(SnapshotDriver):
    """One connection to one libvirt daemon. The id of a snapshot is its name, which libvirt keeps unique in a VM."""

    name = "libvirt"
    # libvirt takes nearly everything, and with more than 247 bytes leaves data in the image that it then does not know.
    name_rule = NameRule(max_bytes=80)

    def __init__(self, uri: str) -> None:
        """Connect. Blocks for as long as the peer is mute: call it under a deadline.

        :raises LibraryMissing: libvirt-python is not installed.
        :raises ConnectionFailed: with libvirt's own words.
        """
        if LIBVIRT_IMPORT_ERROR:
            raise _errors.LibraryMissing("libvirt-python", LIBVIRT_IMPORT_ERROR)
        # Without a handler the library prints every error to stderr, where Ansible takes it for a module's output.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        _run_event_loop()
        self._where = public_uri(uri)
        self._domains: dict[str, t.Any] = {}
        self._saved: set[str] = set()
        self._transient: set[str] = set()
        self._endings = Endings()
        try:
            self._connection = libvirt.open(_without_prompts(uri))
        except libvirt.libvirtError as exc:
            raise _errors.ConnectionFailed(f"No connection to libvirt at {self._where}: {_clean(exc)}; {CHECK}") from exc
        try:
            self._connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        except libvirt.libvirtError:
            pass  # libvirt's test driver has no peer to keep alive
        kind = self._ask("read the version", self._connection.getType)
        if kind not in ("QEMU", "TEST"):
            raise _errors.Unsupported(
                f"libvirt at {self._where} runs {kind}, whose snapshots this collection does not know; use a QEMU URI"
            )
        self._is_qemu = kind == "QEMU"
        self._daemon_version = self._ask("read the version", self._connection.getLibVersion)

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        domains = self._ask("list the VMs", self._connection.listAllDomains)
        self._domains = {domain.UUIDString(): domain for domain in domains}
        # Two more for all VMs together, instead of two for each.
        saved, transient = libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE, libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT
        self._saved = {one.UUIDString() for one in self._ask("list the VMs", lambda: self._connection.listAllDomains(saved))}
        self._transient = {
            one.UUIDString() for one in self._ask("list the VMs", lambda: self._connection.listAllDomains(transient))
        }
        vms = [Vm(domain.name(), uuid, uuid) for uuid, domain in self._domains.items()]
        return {ref: self._pick(ref, vms) for ref in refs}

    def inspect(self, vms: Sequence[Vm]) -> Mapping[str, VmState | SafepointError]:
        # Three requests a VM: the state, the lock and the configuration are told by no bulk call that every driver has.
        return {vm.id: self._each(vm, "look at", self._state) for vm in vms}

    def snapshots(self, vms: Sequence[Vm]) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        return {vm.id: self._each(vm, "list the snapshots of", self._list) for vm in vms}

    def start(self, action: Action) -> Job:
        job = Job(action)

        def done(end: Finished | None, error: BaseException | None) -> None:
            self._endings.put(end or Finished(job, error=self._typed(error, f"{action}")))

        begin(lambda: self._run(job, action), done)
        return job

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        return self._endings.wait(jobs, deadline)

    def close(self) -> None:
        self._connection.close()

    # one VM

    def _pick(self, ref: str, vms: Sequence[Vm]) -> Vm | SafepointError:
        kind, colon, rest = ref.partition(":")
        if not colon or kind not in ("name", "uuid", "id", "path"):
            kind, rest = "any", ref
        by_name = [vm for vm in vms if vm.name == rest] if kind in ("name", "any") else []
        by_uuid = [vm for vm in vms if vm.id == rest.lower()] if kind in ("uuid", "id", "any") else []
        found = by_name + [vm for vm in by_uuid if vm not in by_name]
        if len(found) > 1:
            listed = ", ".join(f"{vm.name} (uuid:{vm.uuid})" for vm in found)
            return _errors.VmAmbiguous(f"{len(found)} VMs match {ref!r}: {listed}. Write name: or uuid: before it")
        if found:
            return found[0]
        near = difflib.get_close_matches(rest.lower(), [vm.name.lower() for vm in vms], n=3)
        like = [vm.name for vm in vms if vm.name.lower() in near]
        hint = f"did you mean {' or '.join(like)}?" if like else f"it has {len(vms)} VMs; virsh list --all names them"
        return _errors.VmNotFound(f"libvirt at {self._where} has no VM {ref!r}; {hint}")

    def _domain(self, vm: Vm) -> t.Any:
        return self._domains.get(vm.id) or self._connection.lookupByUUIDString(vm.id)

    def _each(self, vm: Vm, what: str, call: Callable[[t.Any], _T]) -> _T | SafepointError:
        try:
            return call(self._domain(vm))
        except libvirt.libvirtError as exc:
            error = self._typed(exc, f"{what} {vm}")
            if isinstance(error, _errors.ConnectionFailed):
                raise error from exc
            return error

    def _state(self, domain: t.Any) -> VmState:
        state, _reason = domain.state()
        power = _POWERS.get(state, "running")
        busy = _holder(domain) if power != "off" else None
        reason = why_no_snapshot(domain.XMLDesc(), daemon_version=self._daemon_version) if self._is_qemu else None
        if power == "off" and domain.UUIDString() in self._saved:
            reason = (
                "its memory is saved to disk (managed save), and a snapshot would not hold that; "
                "start it first, or drop it with virsh managedsave-remove"
            )
        refusals = {"create": f"No snapshot of {domain.name()} can be taken: {reason}"} if reason else {}
        if domain.UUIDString() in self._transient:
            refusals["power_off"] = (
                f"{domain.name()} is transient and ceases to exist when it is off; make it persistent first (virsh define)"
            )
        if power == "off":
            refusals["memory"] = f"{domain.name()} is off and has no memory to keep; start it first, or leave memory out"
        refusals["quiesce"] = (
            f"{domain.name()} cannot be quiesced: libvirt quiesces external snapshots only, and this collection takes internal ones; "
            "set quiesce=never (the snapshot of a running VM holds its memory, so that nothing in flight is lost)"
        )
        return VmState(power=power, refusals=refusals, memory_implied=True, busy=busy)

    def _list(self, domain: t.Any) -> tuple[Snapshot, ...]:
        handles = domain.listAllSnapshots()
        if not handles:
            return ()
        try:
            current = domain.snapshotCurrent().getName()
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                raise
            current = None
        found = []
        for handle in handles:
            try:
                found.append(read_snapshot(handle.getXMLDesc(), current=current))
            except libvirt.libvirtError as exc:
                # Deleted by somebody else since it was listed.
                if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                    raise
        return parents_first(found)

    # actions, each in a thread of its own

    def _run(self, job: Job, action: Action) -> Finished:
        domain = self._domain(action.vm)
        if isinstance(action, Create):
            return self._create(job, action, domain)
        snapshot = domain.snapshotLookupByName(action.snapshot.id)
        if isinstance(action, Revert):
            return self._revert(job, action, domain, snapshot)
        if isinstance(action, Delete):
            snapshot.delete()
        else:
            xml = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
            domain.snapshotCreateXML(with_description(xml, action.description), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        return Finished(job)

    def _create(self, job: Job, action: Create, domain: t.Any) -> Finished:
        try:
            made = domain.snapshotCreateXML(new_snapshot(action.name, action.description))
        except libvirt.libvirtError as exc:
            # A name that is taken has the generic code of any failed operation, and a text in the daemon's language.
            if exc.get_error_code() == libvirt.VIR_ERR_OPERATION_FAILED and action.name in domain.snapshotListNames():
                raise _errors.SnapshotExists(f"{action.vm} has a snapshot named {action.name!r} already") from exc
            raise
        return Finished(job, snapshot_id=made.getName())

    def _revert(self, job: Job, action: Revert, domain: t.Any, snapshot: t.Any) -> Finished:
        flags = 0
        if action.power == "on":
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING
        elif action.power == "off" and action.snapshot.memory:
            # There is no flag for off. Paused, the guest runs no instruction before it is switched off.
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED
        domain.revertToSnapshot(snapshot, flags)
        if action.power == "off" and domain.isActive():
            domain.destroy()
        warnings = []
        if action.vm.id in self._saved and domain.hasManagedSaveImage():
            # libvirt keeps it, and the next start would run memory of later on the disks of now.
            domain.managedSaveRemove()
            warnings.append(f"The saved memory of {action.vm} (managed save) was dropped, since it was later than the snapshot")
        if action.snapshot.memory and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            problem = _set_clock(domain)
            if problem:
                warnings.append(
                    f"The clock of {action.vm} still shows the time of the snapshot ({problem}); let its time service step it"
                )
        return Finished(job, warnings=tuple(warnings))

    # errors

    def _ask(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except libvirt.libvirtError as exc:
            raise self._typed(exc, what) from exc

    def _typed(self, error: BaseException | None, what: str) -> SafepointError:
        """The library's error as one of ours, with libvirt's own words."""
        if isinstance(error, SafepointError):
            return error
        if not isinstance(error, libvirt.libvirtError):
            return _errors.BackendFailed(f"To {what} failed: {type(error).__name__}: {error}")
        kind = _KINDS.get(error.get_error_code(), "BackendFailed")
        if error.get_error_domain() == libvirt.VIR_FROM_RPC or not self._connection.isAlive():
            # Seen with 9.0: a daemon that dies while it takes a snapshot leaves the VM paused for good.
            return _errors.ConnectionFailed(
                f"The connection to libvirt at {self._where} broke on the way to {what}: {_clean(error)}; "
                "look at the VM before the next try, it may be left paused (virsh resume)"
            )
        advice = _ADVICE.get(error.get_error_code(), "")
        made: type[SafepointError] = getattr(_errors, kind)
        return made(f"libvirt failed to {what}: {_clean(error)}{advice}")


_USERINFO = re.compile(r"\A([^:/?#]+://[^@?#]*?):([^@?#]*)@")


def public_uri(uri: str) -> str:
    """``uri`` as it may be shown: without a password that somebody put into it."""
    return _USERINFO.sub(r"\1:***@", uri)


def uri_password(uri: str) -> str | None:
    """The password in ``uri``, which libvirt does not use there."""
    found = _USERINFO.match(uri)
    return found.group(2) if found else None


def _without_prompts(uri: str) -> str:
    """The ``uri`` with which ssh asks nothing: a module has no terminal, and a prompt would wait for ever."""
    if not re.match(r"[^:]*\+ssh://", uri) or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


_loop_started = threading.Lock()


def _run_event_loop() -> None:
    """Once a process: the loop that answers and sends keepalives, in a daemon thread."""
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def loop() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=loop, name="libvirt events", daemon=True).start()


def _clean(error: t.Any) -> str:
    """libvirt's own text, in one line."""
    return " ".join(str(error).split())


def _holder(domain: t.Any) -> str | None:
    """What holds a VM that is up. A snapshot that is being made is listed already, so the list is no sign that it is finished."""
    try:
        control = domain.controlInfo()[0]
    except libvirt.libvirtError:
        return None  # libvirt's test driver has no such thing, and a VM that just went off no holder
    held = (libvirt.VIR_DOMAIN_CONTROL_JOB, libvirt.VIR_DOMAIN_CONTROL_OCCUPIED)
    return "another operation of libvirt (a snapshot, a backup, a migration or the like)" if control in held else None


def _set_clock(domain: t.Any) -> str | None:
    """Give the guest the time of today through its agent, or say why that did not work."""
    try:
        if not has_agent(domain.XMLDesc()):
            return "it has no guest agent channel"
        # This is a setting of the VM that outlives our connection, hence the way back to libvirt's own.
        domain.agentSetResponseTimeout(_AGENT_SECONDS)
        try:
            return _try_clock(domain, Deadline(_AGENT_SECONDS))
        finally:
            domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
    except libvirt.libvirtError as exc:
        return _clean(exc)


def _try_clock(domain: t.Any, deadline: Deadline) -> str | None:
    while True:
        try:
            domain.setTime({"seconds": int(time.time()), "nseconds": 0})
            return None
        except libvirt.libvirtError as exc:
            # The agent of a guest that was just started again needs a moment to connect.
            if exc.get_error_code() != libvirt.VIR_ERR_AGENT_UNRESPONSIVE or deadline.left() <= 0:
                return _clean(exc)
        time.sleep(0.2)
