# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxmox VE: virtual machines and containers, over proxmoxer.

One question tells where all guests of the cluster are and how they do. The snapshots of each guest are a question of their own, and so is
each action; how those go on is asked once a round for all of a node.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import (
    Action,
    Create,
    Delete,
    Describe,
    Finished,
    Job,
    Revert,
    SnapshotDriver,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_errors import (
    BEFORE_THE_LOCK,
    half_done,
    refused,
    typed,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_inventory import Inventory
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_library import PARALLEL, Refused, Session, is_lost
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_read import (
    QUIESCE_ADVICE,
    Guest,
    Listing,
    read_configuration,
    read_listing,
    read_no_freeze,
    read_state,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_tasks import TaskFailed, Tasks
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._model import Configuration, Snapshot, Vm, VmState
from ansible_collections.safepoint.vm.plugins.module_utils._naming import NameRule
from ansible_collections.safepoint.vm.plugins.module_utils._threads import Endings, begin, each

# How long a guest may take from the end of its start's task until it runs; a guest under high availability is started by others.
_START_SECONDS = 60.0
# After an answer that was lost: how far before the request the task that it may have begun can seem to have begun, by the node's clock.
_SLACK_SECONDS = 1
# How long that task may take to be begun, and to be listed.
_LOOK_SECONDS = 3.0
# What a guest is locked with, by the worker that works on it.
_LOCKS = {"snapshot": "snapshot", "delsnapshot": "snapshot-delete", "rollback": "rollback"}
# From this release on a task's log says when file systems were not frozen.
_TELLS_OF_FREEZING = (9, 2)
_NO_FREEZE = ("skipping guest filesystem freeze", "guest-fsfreeze-freeze problems")


class ProxmoxDriver(SnapshotDriver):
    """One login. A guest is known by its vmid, since a rollback brings back its name too; a snapshot by its name, which is unique in its guest."""

    name = "proxmox"
    # pve-common 9.2, pve-configid. PVE takes vzdump as a name, but leaves data of such a snapshot behind when it is deleted.
    name_rule = NameRule(
        max_bytes=40, min_bytes=2, extra="_-", first_letter=True, reserved=frozenset({"current", "pending", "vzdump"})
    )

    def __init__(self, session: Session) -> None:
        self._session = session
        self._inventory = Inventory(session)
        self._tasks = Tasks(session)
        self._endings = Endings()
        self._begun: set[str] = set()
        self._listings: dict[str, Listing] = {}
        self._doubted: set[tuple[str, str]] = set()

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self._session.ahead

    # look

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        return self._inventory.find(refs)

    def vms(self) -> Sequence[Vm]:
        return sorted((guest.vm for guest in self._inventory.all()), key=lambda vm: (vm.name, int(vm.id)))

    def inspect(
        self, vms: Sequence[Vm], *, ways: bool, memory: bool = False, quiesce: bool = False
    ) -> Mapping[str, VmState | SafepointError]:
        guests = {guest.vmid: guest for guest in self._inventory.refresh()}
        locked = [vm.id for vm in vms if vm.id in guests and guests[vm.id].lock]
        holders = self._holders(locked) if locked else {}
        tells = not quiesce or self._release() >= _TELLS_OF_FREEZING

        def read(vm: Vm) -> VmState | SafepointError:
            try:
                no_freeze = self._why_no_freeze(vm, tells=tells) if quiesce else None
                return self._state(self._inventory.guest(vm), holders.get(vm.id), no_freeze)
            except SafepointError as exc:
                return exc

        return {vm.id: seen for vm, seen in zip(vms, each(vms, read, at_once=PARALLEL))}

    def _state(self, guest: Guest, holder: str | None, no_freeze: str | None) -> VmState:
        listing = self._listings.get(guest.vmid)
        state = read_state(guest, listing, holder, no_freeze=no_freeze)
        unfinished = {(guest.vmid, name) for name in listing.unfinished} if listing is not None else set()
        if not guest.lock and unfinished - self._doubted:
            # It was listed before the lock was looked at, and may be finished, or taken back, by now.
            self._doubted |= unfinished
            named = ", ".join(sorted(name for _vmid, name in unfinished))
            state = dataclasses.replace(state, busy=f"whoever was not finished with the snapshot {named} a moment ago")
        return state

    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        def read(vm: Vm) -> tuple[Snapshot, ...] | SafepointError:
            def ask(guest: Guest) -> Listing:
                return read_listing(self._session.ask("get", f"{guest.path}/snapshot"), guest)

            try:
                listing = self._listings[vm.id] = self._inventory.of(vm, f"list the snapshots of {vm}", ask)
            except SafepointError as exc:
                return exc
            return listing.snapshots

        return {vm.id: seen for vm, seen in zip(vms, each(vms, read, at_once=PARALLEL))}

    def configurations(
        self, wanted: Sequence[tuple[Vm, Snapshot | None]]
    ) -> Mapping[tuple[str, str | None], Configuration | SafepointError]:
        def read(one: tuple[Vm, Snapshot | None]) -> Configuration | SafepointError:
            vm, snapshot = one
            tail = f"snapshot/{snapshot.id}/config" if snapshot else "config"

            def ask(guest: Guest) -> Configuration:
                return read_configuration(self._session.ask("get", f"{guest.path}/{tail}"), container=guest.container)

            try:
                return self._inventory.of(vm, f"read the configuration of {vm}", ask)
            except SafepointError as exc:
                return exc

        read_ones = each(wanted, read, at_once=PARALLEL)
        return {(vm.id, snapshot.id if snapshot else None): seen for (vm, snapshot), seen in zip(wanted, read_ones)}

    def foresee(self, vms: Sequence[Vm]) -> Mapping[str, SafepointError]:
        def ask(vm: Vm) -> SafepointError | None:
            what = f"see whether {vm} can have snapshots"
            try:
                found = self._inventory.of(
                    vm, what, lambda guest: self._session.ask("get", f"{guest.path}/feature", feature="snapshot")
                )
            except SafepointError as exc:
                # A storage that is gone is told here in the same words (9.2). What was not answered at all is no refusal.
                return exc if isinstance(exc, _errors.Unsupported) else None
            # In the words of the task that would fail by it (qemu-server and pve-container 9.2).
            if int(found.get("hasFeature") or 0):
                return None
            return typed("snapshot feature is not available", f"allow a snapshot of {vm}")

        asked = zip(vms, each(vms, ask, at_once=PARALLEL))
        return {vm.id: error for vm, error in asked if error is not None}

    def _why_no_freeze(self, vm: Vm, *, tells: bool) -> str | None:
        """Why it would be of no use to try to quiesce a VM. One more request for each that is to be quiesced, and one in all."""
        listing = self._listings.get(vm.id)
        if self._inventory.guest(vm).container or (listing is not None and not listing.running):
            return None
        if not tells:
            return "Proxmox VE before 9.2 does not tell whether it was"
        what = f"read the configuration of {vm}"
        return read_no_freeze(self._inventory.of(vm, what, lambda guest: self._session.ask("get", f"{guest.path}/config")))

    def _holders(self, vmids: Sequence[str]) -> dict[str, str]:
        """The running tasks of these guests, by the vmid."""
        rows = self._inventory.call("look at the tasks", lambda: self._session.ask("get", "cluster/tasks"))
        return {str(row["id"]): row["upid"] for row in rows if str(row.get("id")) in vmids and not row.get("endtime")}

    # act, each action in a thread of its own

    def start(self, action: Action) -> Job:
        job = Job(action)

        def done(end: Finished | None, error: BaseException | None) -> None:
            if isinstance(error, TaskFailed):
                error = typed(str(error), str(action))
            elif isinstance(error, Refused):
                error = refused(error, str(action), where=self._session.where, node="")
            elif error is not None and not isinstance(error, SafepointError):
                error = _errors.BackendFailed(f"To {action} failed: {type(error).__name__}: {error}")
            self._endings.put(end or Finished(job, error=error))

        begin(lambda: self._run(job, action), done)
        return job

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        return self._endings.wait(jobs, deadline)

    def close(self) -> None:
        self._session.close()

    def _run(self, job: Job, action: Action) -> Finished:
        self._inventory.check_name(action.vm)
        if isinstance(action, Create):
            return self._create(job, action)
        if isinstance(action, Revert):
            return self._revert(job, action)
        if isinstance(action, Delete):
            self._do(job, "delsnapshot", "delete", f"snapshot/{action.snapshot.id}")
        elif isinstance(action, Describe):
            self._describe(action, action.snapshot.id, action.description)
        return Finished(job)

    def _do(self, job: Job, worker: str, method: str, tail: str, **values: t.Any) -> None:
        """Begin a worker and wait until it has ended.

        :raises TaskFailed: it did not work.
        :raises BackendFailed: it broke off half-way.
        """
        action = job.action

        def ask(guest: Guest) -> str:
            since = int(self.now().timestamp()) - _SLACK_SECONDS
            try:
                return str(self._session.ask(method, f"{guest.path}/{tail}", **values))
            except (Refused, _errors.ConnectionFailed) as exc:
                upid = self._look_for_task(guest, worker, since) if is_lost(exc) else None
                if upid is None:
                    raise
                return upid

        job.handle = self._inventory.of(action.vm, str(action), ask)
        self._begun.add(job.handle)
        try:
            self._tasks.result(job.handle)
        except TaskFailed as exc:
            error = self._left_locked(action, worker, str(exc))
            if error is None:
                raise
            raise error from exc

    def _left_locked(self, action: Action, worker: str, text: str) -> SafepointError | None:
        """What to say of a worker that broke off half-way, which by PVE's own words may look like a refusal. One more request, after a failure.

        "can't lock file" for example may come at its begin, or when all is done but the last step (qemu-server 9.2).
        """
        kind = _LOCKS.get(worker)
        if kind is None or BEFORE_THE_LOCK.search(text):
            return None
        try:
            self._inventory.refresh()
            guest = self._inventory.guest(action.vm)
        except SafepointError:
            return None
        if guest.lock != kind:
            return None
        name = action.name if isinstance(action, Create) else action.snapshot.id
        unfinished = () if worker == "rollback" else (name,)
        return half_done(text, str(action), kind=kind, tool=guest.tool, vmid=guest.vmid, unfinished=unfinished)

    def _look_for_task(self, guest: Guest, worker: str, since: int) -> str | None:
        """The task that a request has begun whose answer was lost. What was sent is never simply sent again."""
        # Of a guest under high availability it only orders the start or stop.
        types = (guest.worker(worker), f"ha{worker}")

        def look() -> str | None:
            try:
                rows = self._session.ask("get", f"nodes/{guest.node}/tasks", source="all", vmid=guest.vmid, since=since)
            except (Refused, SafepointError):
                return None
            # Rows have a token's name apart from its user's (pve-manager 9.2); the id of the task has both.
            upids = [str(row["upid"]) for row in rows if row.get("type") in types]
            mine = [upid for upid in upids if upid.split(":")[7] == self._session.user and upid not in self._begun]
            return max(mine, key=lambda upid: upid.split(":")[4], default=None)

        try:
            return Deadline(_LOOK_SECONDS).poll("the task", look, first=0.2)
        except _errors.TimedOut:
            return None

    def _create(self, job: Job, action: Create) -> Finished:
        if action.quiesce == "never":
            self._take(job, action, action.description)
            return Finished(job, snapshot_id=action.name)
        # It is not called quiesced before that is known, so that whatever goes wrong from here on leaves no label that is not true.
        self._take(job, action, action.unquiesced_description or action.description)
        why = None
        try:
            why = self._why_not_quiesced(job)
            if why is None:
                self._describe(action, action.name, action.description)
            elif action.quiesce == "require":
                self._do(job, "delsnapshot", "delete", f"snapshot/{action.name}")
        except (TaskFailed, SafepointError) as exc:
            if action.quiesce == "require":
                said = f"is not quiesced ({why}), and was not removed again" if why else "is there, and not known to be quiesced"
                # As an error of its own kind, a lock for example, it would be taken for one of the whole, and the snapshot be taken again.
                raise _errors.BackendFailed(f"The snapshot {action.name} of {action.vm} {said}: {exc}") from exc
            why = f"not known to be, since {exc}"
        if why is None:
            return Finished(job, snapshot_id=action.name)
        if action.quiesce == "require":
            raise _errors.Unsupported(f"The snapshot {action.name} of {action.vm} was removed again: {why}; {QUIESCE_ADVICE}")
        warning = f"The snapshot {action.name} of {action.vm} is not quiesced: {why}; {QUIESCE_ADVICE}"
        return Finished(job, snapshot_id=action.name, warnings=(warning,))

    def _take(self, job: Job, action: Create, description: str) -> None:
        memory = {"vmstate": 1} if action.memory else {}
        self._do(job, "snapshot", "post", "snapshot", snapname=action.name, description=description, **memory)

    def _describe(self, action: Action, name: str, description: str) -> None:
        def ask(guest: Guest) -> None:
            path = f"{guest.path}/snapshot/{name}/config"
            try:
                self._session.ask("put", path, description=description)
            except (Refused, _errors.ConnectionFailed) as exc:
                if not (is_lost(exc) and self._says(path, description)):
                    raise

        self._inventory.of(action.vm, str(action), ask)

    def _says(self, path: str, description: str) -> bool:
        """Whether a description that was written has arrived although its answer was lost."""
        try:
            found = self._session.ask("get", path)
        except (Refused, SafepointError):
            return False
        return str(found.get("description") or "").rstrip() == description.rstrip()

    def _why_not_quiesced(self, job: Job) -> str | None:
        """Why the guest's file systems were not at rest, as the task's log tells. One more request for each VM that is to be quiesced."""
        upid = str(job.handle)
        node = upid.split(":")[1]
        rows = self._inventory.call(
            f"read the log of {upid}", lambda: self._session.ask("get", f"nodes/{node}/tasks/{upid}/log", limit=500), node=node
        )
        lines = [str(row["t"]).strip() for row in rows]
        # A log that is not there is one line that says so, and no error (pve-manager 9.2).
        if not any(line.startswith("TASK ") for line in lines):
            return f"the log of its task does not tell ({lines[-1] if lines else 'it is empty'})"
        return next((line for line in lines if any(sign in line for sign in _NO_FREEZE)), None)

    def _release(self) -> tuple[int, ...]:
        said = self._inventory.call("read the version", lambda: self._session.ask("get", "version"))
        return tuple(int(part) for part in str(said["version"]).split(".")[:2])

    def _revert(self, job: Job, action: Revert) -> Finished:
        # With memory it runs after that, without it is off (qemu-server 9.2). PVE's own start=1 would hide how the start has ended.
        turn = {"on": None if action.snapshot.memory else "start", "off": "stop" if action.snapshot.memory else None}.get(
            action.power
        )
        if turn is not None:
            self._need_power(action)
        self._do(job, "rollback", "post", f"snapshot/{action.snapshot.id}/rollback")
        if turn is None:
            return Finished(job)
        try:
            self._do(job, turn, "post", f"status/{turn}")
        except (TaskFailed, SafepointError) as exc:
            # High availability starts by itself what it finds stopped.
            if turn != "start" or "already running" not in str(exc):
                # A lock, or anything else that was refused before it was begun, would be taken for one of the whole.
                raise _errors.BackendFailed(f"{action.vm} is back at {action.snapshot}, and its {turn} failed: {exc}") from exc
        if turn == "start":
            self._await_start(action)
        return Finished(job)

    def _need_power(self, action: Revert) -> None:
        """Refuse before the rollback what would leave the guest off for want of a right. One more request for each guest."""
        path = f"/vms/{action.vm.id}"
        rights = self._inventory.call("look at the privileges", lambda: self._session.ask("get", "access/permissions", path=path))
        if "VM.PowerMgmt" not in rights.get(path, {}):
            raise _errors.PermissionDenied(
                f"To {action} with power={action.power} needs the privilege VM.PowerMgmt on {path}, which {self._session.user} does not have; "
                "grant it, or set power=as_snapshot"
            )

    def _await_start(self, action: Revert) -> None:
        """Under high availability the task only orders the start."""

        def runs() -> bool | None:
            seen = self._inventory.of(
                action.vm,
                f"look whether {action.vm} runs",
                lambda guest: self._session.ask("get", f"{guest.path}/status/current"),
            )
            return seen.get("status") == "running" or None

        try:
            Deadline(_START_SECONDS).poll("the start", runs)
        except _errors.TimedOut as exc:
            raise _errors.BackendFailed(
                f"{action.vm} is back at {action.snapshot}, and does not run {_START_SECONDS:g} seconds after its start; look at its tasks in Proxmox VE"
            ) from exc
