# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The libvirt backend for QEMU: internal snapshots, and external ones if the daemon can revert to them.

The behaviour of the API was observed on libvirt 9.0.0 with QEMU 7.2 (Debian 12) and 11.3.0 with QEMU 10.0 (Debian 13). Comments refer to
these two by libvirt's version.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import typing as t
from collections.abc import Callable, Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Finding, Snapshot, Vm, VmState, Way
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import NameRule, did_you_mean
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Finished, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.credentials import public_uri
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.endings import Endings
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import actions, images, judge, removal
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.library import (
    CHECK,
    HOLDER,
    LIBVIRT_IMPORT_ERROR,
    Connections,
    broken_off,
    clean,
    connect,
    is_alive,
    is_broken,
    is_held,
    is_local,
    libvirt,
    typed,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import (
    CRASHED,
    MIGRATED_AWAY,
    PAUSED_FOR_SNAPSHOT,
    findings_of_state,
    left_by_dead_daemon,
    virsh,
    why_not_written,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.records import LOWEST_NUMBER
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.ways import (
    Daemon,
    test_driver_ways,
    ways,
    with_obstacles,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.xml import (
    EXTERNAL,
    read_configuration,
    snapshot_configuration,
)
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import begin

__all__ = ["CHECK", "LibvirtDriver"]

# virDomainState in libvirt-domain.h; all other states (shutting down, suspended, blocked) count as running. QEMU stops a crashed guest (6).
_PAUSED, _OFF = 3, 5
_POWERS = {_PAUSED: "paused", _OFF: "off", CRASHED: "paused"}

_T = t.TypeVar("_T")


class LibvirtDriver(SnapshotDriver):
    """A connection to one libvirt daemon. The id of a snapshot is its name, which is unique in a VM."""

    name = "libvirt"
    # libvirt accepts nearly all names, but with more than 247 bytes it leaves data in the image without a record.
    name_rule = NameRule(max_bytes=80, numbers_from=LOWEST_NUMBER)
    # A daemon has 20 workers by default (max_workers). The rest are for other clients of the daemon and for our own reads.
    most_parallel = 16

    def __init__(self, uri: str) -> None:
        """Connect. Blocks while the peer does not answer, so call it with a time limit.

        :raises LibraryMissing: libvirt-python is not installed.
        :raises ConnectionFailed: with libvirt's own text.
        :raises Unsupported: the daemon runs another hypervisor than QEMU.
        """
        if LIBVIRT_IMPORT_ERROR:
            raise errors.LibraryMissing("libvirt-python", LIBVIRT_IMPORT_ERROR)
        self._uri = uri
        self._where = public_uri(uri)
        self._domains: dict[str, t.Any] = {}
        self._saved: set[str] = set()
        self._transient: set[str] = set()
        self._hindrances: dict[str, dict[str, str]] = {}
        self._endings = Endings()
        try:
            self._connection = connect(uri)
        except libvirt.libvirtError as exc:
            raise errors.ConnectionFailed(f"Cannot connect to libvirt at {self._where}: {clean(exc)}; {CHECK}") from exc
        kind = self._ask("read the version", self._connection.getType)
        if kind not in ("QEMU", "TEST"):
            raise errors.Unsupported(
                f"libvirt at {self._where} runs {kind}, whose snapshots this collection does not support; use a QEMU URI"
            )
        self._is_qemu = kind == "QEMU"
        self._connections = Connections(uri, self._connection)
        self._deadline: Deadline | None = None

    @functools.cached_property
    def _daemon(self) -> Daemon:
        version = self._ask("read the version", self._connection.getLibVersion)
        # libvirt lists this guest feature if it can revert to external snapshots, also in a backport.
        known = version >= 9_009_000 or "<externalSnapshot/>" in self._ask(
            "read the capabilities", self._connection.getCapabilities
        )
        return Daemon(version, self._is_qemu and known, self._where)

    @functools.cached_property
    def _judge(self) -> judge.Judge:
        return judge.Judge(self._connection, where=self._where, local=is_local(self._uri), version=lambda: self._daemon.version)

    def set_deadline(self, deadline: Deadline) -> None:
        # Reads are not repeated here; after the deadline no write is sent.
        self._deadline = deadline

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        vms = self.vms()
        return {ref: self._pick(ref, vms) for ref in refs}

    def vms(self) -> Sequence[Vm]:
        # One more request for all VMs together, instead of one for each.
        self._domains = {one.UUIDString(): one for one in self._listed(0)}
        self._transient = {one.UUIDString() for one in self._listed(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)}
        return sorted((Vm(one.name(), uuid, uuid) for uuid, one in self._domains.items()), key=lambda vm: vm.name)

    def inspect(
        self, vms: Sequence[Vm], *, ways: bool, memory: bool = False, quiesce: bool = False
    ) -> Mapping[str, VmState | SafepointError]:
        if not vms:
            return {}
        # One request for the state of all, and one for the lock of each that is up: no bulk call reports that.
        handles = [domain for domain in (self._domains.get(vm.id) for vm in vms) if domain is not None]
        stats = self._ask(
            "read the state of the VMs",
            lambda: self._connection.domainListGetStats(handles, libvirt.VIR_DOMAIN_STATS_STATE) if handles else [],
        )
        states = {domain.UUIDString(): (row["state.state"], row["state.reason"]) for domain, row in stats}
        if ways:
            # Read again each time: the lock that was waited for may have been a managed save.
            self._saved = {one.UUIDString() for one in self._listed(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)}
        return {
            vm.id: self._each(
                vm,
                "read the state of",
                lambda domain, vm=vm: self._state(vm, domain, states.get(vm.id), look_for_ways=ways),  # type: ignore[misc]
            )
            for vm in vms
        }

    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        found = {vm.id: self._each(vm, "list the snapshots of", self._list) for vm in vms}
        doubtful = [vm for vm in vms if _any_lost(found[vm.id])]
        if doubtful:
            # Another run may have created or removed a snapshot during the read. One pause for all VMs, to keep the read short.
            time.sleep(judge.SECOND_LOOK_SECONDS)
            found.update({vm.id: self._each(vm, "list the snapshots of", self._list) for vm in doubtful})
        return found

    def configurations(
        self, wanted: Sequence[tuple[Vm, Snapshot | None]]
    ) -> Mapping[tuple[str, str | None], Configuration | SafepointError]:
        moving = {vm.id for vm, snapshot in wanted if snapshot is not None and snapshot.kind == EXTERNAL}
        return {
            (vm.id, snapshot.id if snapshot else None): self._each(
                vm,
                f"read the configuration of the snapshot {snapshot} of" if snapshot else "read the configuration of",
                functools.partial(_configuration, snapshot=snapshot, moving_files=vm.id in moving),
            )
            for vm, snapshot in wanted
        }

    def look_into_images(self, vms: Sequence[Vm]) -> Mapping[str, tuple[Finding, ...] | SafepointError]:
        if not self._is_qemu:
            return {vm.id: () for vm in vms}
        search = images.Search(self._connection, where=self._where, local=is_local(self._uri))

        def look(wanted: Sequence[Vm]) -> dict[str, tuple[Finding, ...] | SafepointError]:
            return {vm.id: self._each(vm, "read the images of", functools.partial(search.look, vm)) for vm in wanted}

        found = look(vms)
        doubtful = [vm for vm in vms if images.is_doubtful(_findings(found[vm.id]))]
        if doubtful:
            time.sleep(judge.SECOND_LOOK_SECONDS)
            for vm_id, again in look(doubtful).items():
                first = _findings(found[vm_id])
                found[vm_id] = again if isinstance(again, SafepointError) else tuple(one for one in again if one in first)
        return found

    def imagine(self, vm: Vm, snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
        if all(one.kind != EXTERNAL for one in snapshots):
            return snapshots
        bare = self._hindered(vm.id, [dataclasses.replace(one, obstacles={}) for one in snapshots])
        # A lost branch is an obstacle to a revert only; the next read reports it.
        return with_obstacles(vm.name, bare, self._daemon)

    def start(self, action: Action) -> Job:
        job = actions.LibvirtJob(action)
        deadline = self._deadline

        def done(end: Finished | None, error: BaseException | None) -> None:
            self._endings.put(end or Finished(job, error=self._typed(error, f"{action}")))

        def work() -> Finished:
            with self._connections.lease(f"{action}", deadline, self.stop) as connection:
                try:
                    return self._run(job, connection)
                except libvirt.libvirtError as exc:
                    if is_broken(exc, connection):
                        raise broken_off(exc, f"{action}", job.sent, where=self._where) from exc
                    raise typed(exc, f"{action}", where=self._where, broken=False) from exc

        begin(work, done)
        return job

    def _run(self, job: actions.LibvirtJob, connection: t.Any) -> Finished:
        vm = job.action.vm
        # A handle belongs to its connection, so the VM is looked up again on all but the first one.
        domain = self._domain(vm) if connection is self._connection else connection.lookupByUUIDString(vm.id)
        return actions.run(
            job,
            domain,
            uri=self._uri,
            daemon=self._daemon,
            transient=vm.id in self._transient,
        )

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        return self._endings.wait(jobs, deadline)

    def close(self) -> None:
        self._domains.clear()  # a handle keeps its connection open
        self._connections.close()

    # one VM

    def _listed(self, flag: int) -> list[t.Any]:
        listed: list[t.Any] = self._ask("list the VMs", lambda: self._connection.listAllDomains(flag))
        return listed

    def _pick(self, ref: str, vms: Sequence[Vm]) -> Vm | SafepointError:
        kind, colon, rest = ref.partition(":")
        if not colon or kind not in ("name", "uuid", "id", "path"):
            kind, rest = "any", ref
        by_name = [vm for vm in vms if vm.name == rest] if kind in ("name", "any") else []
        by_uuid = [vm for vm in vms if vm.id == rest.lower()] if kind in ("uuid", "id", "any") else []
        found = by_name + [vm for vm in by_uuid if vm not in by_name]
        if len(found) > 1:
            listed = ", ".join(f"{vm.name} (uuid:{vm.uuid})" for vm in found)
            return errors.VmAmbiguous(f"{len(found)} VMs match {ref!r}: {listed}. Prefix it with name: or uuid:")
        if found:
            return found[0]
        hint = (
            did_you_mean(rest, (vm.name for vm in vms))
            or f"it has {len(vms)} VMs; {virsh(self._where, 'list', '--all')} lists them"
        )
        return errors.VmNotFound(f"libvirt at {self._where} has no VM {ref!r}; {hint}")

    def _domain(self, vm: Vm) -> t.Any:
        return self._domains.get(vm.id) or self._connection.lookupByUUIDString(vm.id)

    def _each(self, vm: Vm, what: str, call: Callable[[t.Any], _T]) -> _T | SafepointError:
        try:
            return call(self._domain(vm))
        except libvirt.libvirtError as exc:
            error = self._typed(exc, f"{what} {vm}")
        except SafepointError as exc:
            error = exc
        if isinstance(error, errors.ConnectionFailed):
            raise error
        return error

    def _state(self, vm: Vm, domain: t.Any, seen: tuple[int, int] | None, *, look_for_ways: bool) -> VmState:
        # A VM that is not in the bulk answer was removed since it was found; this request then fails.
        state = seen or tuple(domain.state())
        # A snapshot that is being created is already listed, so the list does not show that it is finished.
        busy = HOLDER if state[0] != _OFF and is_held(domain) else None
        if state[0] == _PAUSED and not busy:
            state = tuple(domain.state())  # a snapshot or a revert of another run may have ended between the two requests
        power = _POWERS.get(state[0], "running")
        if state in PAUSED_FOR_SNAPSHOT and busy:
            power = "running"  # it resumes when the snapshot is finished
        refusals = {}
        if vm.id in self._transient:
            refusals["power_off"] = (
                f"{vm} is transient and ceases to exist when it is off; make it persistent first (write its XML to FILE, then "
                f"{virsh(self._where, 'define', 'FILE')})"
            )
        left = left_by_dead_daemon(vm.name, state, where=self._where) if not busy else None
        found = [*([left] if left else []), *self._judge.findings(vm), *findings_of_state(vm.name, *state, where=self._where)]
        if state == MIGRATED_AWAY:
            refusals["write"] = why_not_written(vm.name, self._where)
        how = self._ways(vm, domain, power, crashed=state[0] == CRASHED) if look_for_ways else ()
        if state == removal.RESTORED and self._is_qemu:
            how = removal.ways_restored(vm.name, how, self._daemon.version, self._where)
        if left is not None:
            warning = f"The snapshot holds the state in which a libvirtd that died left {vm}: {left.message}; {left.remedy}"
            how = tuple(dataclasses.replace(way, warnings=(*way.warnings, warning)) for way in how)
        return VmState(power=power, ways=how, refusals=refusals, busy=busy, findings=tuple(found))

    def _ways(self, vm: Vm, domain: t.Any, power: str, *, crashed: bool) -> tuple[Way, ...]:
        saved = power == "off" and vm.id in self._saved
        if not self._is_qemu:
            return test_driver_ways(vm.name, power=power, saved=saved, where=self._where)
        xml = domain.XMLDesc()
        fork = judge.fork(domain, xml) if self._daemon.external_revert else None
        seen = self._judge.seen(domain, xml, up=power != "off", crashed=crashed)
        return ways(vm.name, xml, power=power, saved=saved, fork=fork, daemon=self._daemon, seen=seen)

    def _list(self, domain: t.Any) -> tuple[Snapshot, ...]:
        listing = judge.read_listing(domain)
        if not listing.snapshots:
            return ()
        definition = domain.XMLDesc()
        judged = self._judge.judged(domain, listing, definition)
        if self._is_qemu:
            now = removal.look(domain, definition, judged, self._daemon)
            self._hindrances[domain.UUIDString()] = removal.hindrances(judged, listing.texts, now)
            judged = self._hindered(domain.UUIDString(), judged)
        if all(one.kind != EXTERNAL for one in judged):
            return tuple(judged)
        # A snapshot with children that the VM was reverted to has this element until a snapshot is taken on the new branch.
        current = listing.current
        branch_lost = "<revertDisks>" not in listing.texts.get(current or "", "") and any(
            one.parent == current and judge.is_branch(listing.texts[one.id], definition) for one in judged
        )
        return tuple(with_obstacles(domain.name(), judged, self._daemon, branch_lost=branch_lost))

    def _hindered(self, vm_id: str, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
        """Add the obstacles to a removal, by the state of the VM that was read last."""
        why = self._hindrances.get(vm_id, {})
        return [
            dataclasses.replace(one, obstacles={**one.obstacles, "remove": why[one.id]}) if one.id in why else one
            for one in snapshots
        ]

    # errors

    def _ask(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except libvirt.libvirtError as exc:
            raise self._typed(exc, what) from exc

    def _typed(self, error: BaseException | None, what: str) -> SafepointError:
        """Translate any exception to a SafepointError."""
        if isinstance(error, SafepointError):
            return error
        if not isinstance(error, libvirt.libvirtError):
            return errors.BackendFailed(f"Failed to {what}: {type(error).__name__}: {error}")
        return typed(error, what, where=self._where, broken=not is_alive(self._connection))


def _findings(found: tuple[Finding, ...] | SafepointError) -> tuple[Finding, ...]:
    return () if isinstance(found, SafepointError) else found


def _any_lost(found: Sequence[Snapshot] | SafepointError) -> bool:
    return not isinstance(found, SafepointError) and any(one.lost for one in found)


def _configuration(domain: t.Any, *, snapshot: Snapshot | None, moving_files: bool) -> Configuration:
    """Return the VM's present configuration, or that in the snapshot. Read without the flag SECURE, so without secrets."""
    if snapshot is not None:
        return snapshot_configuration(domain.snapshotLookupByName(snapshot.id).getXMLDesc(), moving_files=moving_files)
    next_start = None
    if domain.isActive() and domain.isPersistent():
        next_start = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    return read_configuration(domain.XMLDesc(), next_start, moving_files=moving_files)
