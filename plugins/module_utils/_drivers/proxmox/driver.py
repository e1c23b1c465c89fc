# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Proxmox VE backend: virtual machines and containers, over the HTTPS API.

One request returns node and state of all guests of the cluster. The snapshots of each guest take one request, and so does each action; running
tasks are polled with one request for each node.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Snapshot, Vm, VmState
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import NameRule
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import (
    Action,
    Create,
    Delete,
    Describe,
    Finished,
    Job,
    Revert,
    SnapshotDriver,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.endings import Endings
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.errors import refused, typed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.inventory import Inventory
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.parse import (
    QUIESCE_ADVICE,
    Guest,
    Listing,
    read_configuration,
    read_listing,
    read_no_freeze,
    read_state,
    read_still,
    with_pending,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.power import Power
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.rights import DryRun, Rights
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import (
    PARALLEL,
    Refused,
    Session,
    mapping,
    rows,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.tasks import TaskFailed, Tasks, holds
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.writes import Order, Writes
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import begin, each

# From this release on, a task's log shows if file systems were not frozen.
_TELLS_OF_FREEZING = (9, 2)
_NO_FREEZE = ("skipping guest filesystem freeze", "guest-fsfreeze-freeze problems")


class ProxmoxDriver(SnapshotDriver):
    """A login to a cluster. The id of a guest is its vmid, since a rollback also reverts its name; the id of a snapshot is its name, unique in its guest."""

    name = "proxmox"
    # pve-configid in pve-common 9.2. PVE accepts the name vzdump, but does not remove all data when such a snapshot is deleted.
    name_rule = NameRule(
        max_bytes=40, min_bytes=2, extra="_-", first_letter=True, reserved=frozenset({"current", "pending", "vzdump"})
    )

    def __init__(self, session: Session) -> None:
        self._session = session
        self._inventory = Inventory(session)
        self._tasks = Tasks(session)
        self._writes = Writes(session, self._inventory, self._tasks)
        self._rights = Rights(session, self._inventory)
        self._endings = Endings()
        self._listings: dict[str, Listing] = {}
        self._doubted: set[tuple[str, str]] = set()

    def set_deadline(self, deadline: Deadline) -> None:
        self._session.deadline = deadline

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self._session.ahead

    # look

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        return self._inventory.find(refs)

    def vms(self) -> Sequence[Vm]:
        found = sorted((guest.vm for guest in self._inventory.all()), key=lambda vm: (vm.name, int(vm.id)))
        if not found and not self._rights.anywhere("VM.Audit"):
            raise errors.PermissionDenied(
                f"{self._session.where} shows {self._session.user!r} no guest, because it has VM.Audit on no path; grant it VM.Audit on /vms (a token with "
                "privilege separation needs its own permissions)"
            )
        return found

    def inspect(
        self, vms: Sequence[Vm], *, ways: bool, memory: bool = False, quiesce: bool = False
    ) -> Mapping[str, VmState | SafepointError]:
        guests = {guest.vmid: guest for guest in self._inventory.refresh()}
        locked = [vm.id for vm in vms if vm.id in guests and guests[vm.id].lock]
        holders = self._holders(locked) if locked else {}
        tells = not quiesce or self._release() >= _TELLS_OF_FREEZING
        still = self._standing_still([guests[vm.id] for vm in vms if vm.id in guests])

        def read(vm: Vm) -> VmState | SafepointError:
            try:
                no_freeze = self._why_no_freeze(vm, tells=tells) if quiesce else None
                return self._state(self._inventory.guest(vm), holders.get(vm.id), no_freeze, vm.id in still)
            except SafepointError as exc:
                return exc

        return {vm.id: seen for vm, seen in zip(vms, each(vms, read, at_once=PARALLEL))}

    def _standing_still(self, guests: Sequence[Guest]) -> frozenset[str]:
        """Return the vmids of the paused VMs. Only QEMU knows this: one request for each node with running VMs."""
        up = (guest for guest in guests if not guest.container and guest.heard and self._runs(guest))
        nodes = sorted({guest.node for guest in up})

        def read(node: str) -> frozenset[str]:
            try:
                return self._session.read(f"nodes/{node}/qemu", lambda data: read_still(rows(data)), full=1)
            except (Refused, SafepointError):
                return frozenset()  # reading the snapshots of these guests reports the error

        return frozenset().union(*each(nodes, read, at_once=PARALLEL))

    def _runs(self, guest: Guest) -> bool:
        listing = self._listings.get(guest.vmid)
        return listing.running if listing is not None else guest.running

    def _state(self, guest: Guest, holder: str | None, no_freeze: str | None, still: bool) -> VmState:
        listing = self._listings.get(guest.vmid)
        state = read_state(guest, listing, holder, no_freeze=no_freeze, still=still)
        unfinished = {(guest.vmid, name) for name in listing.unfinished} if listing is not None else set()
        if not guest.lock and unfinished - self._doubted:
            # The snapshots were listed before the lock was read, and may be complete or removed by now.
            self._doubted |= unfinished
            named = ", ".join(sorted(name for _vmid, name in unfinished))
            state = dataclasses.replace(state, busy=f"an operation that has not finished the snapshot {named}")
        return state

    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        def read(vm: Vm) -> tuple[Snapshot, ...] | SafepointError:
            def ask(guest: Guest) -> Listing:
                patience = {} if guest.heard else {"node_seconds": 0.0}
                return self._session.read(f"{guest.path}/snapshot", lambda data: read_listing(rows(data), guest), **patience)

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

            def ask(guest: Guest) -> Configuration:
                def read_one(tail: str, **values: t.Any) -> Configuration:
                    container = guest.container
                    path = f"{guest.path}/{tail}"
                    return self._session.read(path, lambda data: read_configuration(mapping(data), container=container), **values)

                if snapshot is not None:
                    return read_one(f"snapshot/{snapshot.id}/config")
                # Without current=1 the pending changes are included as if they were active (9.2).
                return with_pending(read_one("config", current=1), read_one("config"))

            try:
                return self._inventory.of(vm, f"read the configuration of {vm}", ask)
            except SafepointError as exc:
                return exc

        read_ones = each(wanted, read, at_once=PARALLEL)
        return {(vm.id, snapshot.id if snapshot else None): seen for (vm, snapshot), seen in zip(wanted, read_ones)}

    def foresee(self, actions: Sequence[Action]) -> Mapping[str, SafepointError]:
        return DryRun(self._session, self._inventory, self._rights, self._listings).refusals(actions)

    def _why_no_freeze(self, vm: Vm, *, tells: bool) -> str | None:
        """Return why a VM cannot be quiesced, or None. One request for each VM to be quiesced, and one for the version."""
        listing = self._listings.get(vm.id)
        if self._inventory.guest(vm).container or (listing is not None and not listing.running):
            return None
        if not tells:
            return "Proxmox VE before 9.2 does not report if file systems were frozen"
        what = f"read the configuration of {vm}"
        return self._inventory.of(
            vm,
            what,
            lambda guest: self._session.read(f"{guest.path}/config", lambda data: read_no_freeze(mapping(data)), current=1),
        )

    def _holders(self, vmids: Sequence[str]) -> dict[str, str]:
        """Return the running tasks of these guests by vmid."""
        found = self._inventory.call("list the tasks", lambda: self._session.read("cluster/tasks", rows))
        running = [row for row in found if str(row.get("id")) in vmids and holds(row)]
        return {str(row["id"]): str(row.get("upid")) for row in running}

    # act: each action runs in a separate thread

    def start(self, action: Action) -> Job:
        job = Job(action)
        order = Order(job, self._session.deadline)

        def done(end: Finished | None, error: BaseException | None) -> None:
            if isinstance(error, TaskFailed):
                error = self._task_error(error, action)
            elif isinstance(error, Refused):
                error = refused(error, str(action), where=self._session.where, node="")
            elif error is not None and not isinstance(error, SafepointError):
                error = errors.BackendFailed(f"Failed to {action}: {type(error).__name__}: {error}")
            if isinstance(error, errors.ConnectionFailed) and not isinstance(error, errors.NotReached) and not order.sent:
                error = errors.NotReached(f"{error}; nothing was changed")
            self._endings.put(end or Finished(job, error=error))

        begin(lambda: self._run(order, action), done)
        return job

    def _task_error(self, failure: TaskFailed, action: Action) -> SafepointError:
        """Add the id of the task and the last line of its log, without the final TASK line, to its error. One request."""
        error = typed(str(failure), str(action))
        said = f"{error} (task {failure.upid}"
        if isinstance(error, (errors.BackendFailed, errors.Unsupported)):
            try:
                lines = [line for line in self._tasks.log(failure.upid) if line and not line.startswith("TASK ")]
            except (Refused, SafepointError):
                lines = []
            if lines:
                said += f"; its log ends: {lines[-1]}"
        return type(error)(f"{said})")

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        return self._endings.wait(jobs, deadline)

    def close(self) -> None:
        self._session.close()

    def _run(self, order: Order, action: Action) -> Finished:
        self._inventory.check_name(action.vm)
        if isinstance(action, Create):
            return self._create(order, action)
        if isinstance(action, Revert):
            return self._revert(order, action)
        if isinstance(action, Delete):
            self._writes.work(order, "delsnapshot", "delete", f"snapshot/{action.snapshot.id}")
        elif isinstance(action, Describe):
            self._writes.describe(order, action.snapshot.id, action.description)
        return Finished(order.job)

    def _create(self, order: Order, action: Create) -> Finished:
        if action.quiesce == "never":
            self._take(order, action, action.description)
            return Finished(order.job, snapshot_id=action.name)
        # It is only labelled as quiesced after the check of the log, so an error in between never leaves a wrong label.
        self._take(order, action, action.unquiesced_description or action.description)
        why = None
        try:
            why = self._why_not_quiesced(order.job)
            if why is None:
                self._writes.describe(order, action.name, action.description)
            elif action.quiesce == "require":
                self._writes.work(order, "delsnapshot", "delete", f"snapshot/{action.name}")
        except (TaskFailed, SafepointError) as exc:
            if action.quiesce == "require":
                said = (
                    f"is not quiesced ({why}) and could not be removed" if why else "exists, but it is unknown if it is quiesced"
                )
                # Not as the original error: a lock, for example, would seem to mean that nothing was changed, and the snapshot would be taken again.
                raise errors.BackendFailed(f"The snapshot {action.name} of {action.vm} {said}: {exc}") from exc
            why = f"quiescing could not be verified: {exc}"
        if why is None:
            return Finished(order.job, snapshot_id=action.name)
        if action.quiesce == "require":
            raise errors.Unsupported(
                f"The snapshot {action.name} of {action.vm} was not quiesced and was removed: {why}; {QUIESCE_ADVICE}"
            )
        warning = f"The snapshot {action.name} of {action.vm} is not quiesced: {why}; {QUIESCE_ADVICE}"
        return Finished(order.job, snapshot_id=action.name, warnings=(warning,))

    def _take(self, order: Order, action: Create, description: str) -> None:
        memory = {"vmstate": 1} if action.memory else {}
        self._writes.work(order, "snapshot", "post", "snapshot", snapname=action.name, description=description, **memory)

    def _why_not_quiesced(self, job: Job) -> str | None:
        """Return from the task's log why the file systems were not frozen, or None. One more request for each VM to be quiesced."""
        upid = str(job.handle)
        lines = self._inventory.call(f"read the log of {upid}", lambda: self._tasks.log(upid), node=upid.split(":")[1])
        # For a missing log PVE returns one line that says so, not an error (pve-manager 9.2).
        if not any(line.startswith("TASK ") for line in lines):
            return f"the log of its task does not show it ({lines[-1] if lines else 'it is empty'})"
        return next((line for line in lines if any(sign in line for sign in _NO_FREEZE)), None)

    def _release(self) -> tuple[int, ...]:
        return self._inventory.call("read the version", lambda: self._session.read("version", _read_release))

    def _revert(self, order: Order, action: Revert) -> Finished:
        power = Power(self._session, self._inventory, self._writes, lock_timeout=self.lock_timeout)
        turn = power.after(action)
        if turn is not None:
            # Checked before the rollback: without the privilege the guest would be left off.
            guest = self._inventory.guest(action.vm)
            self._rights.need(guest, f"{action} with power={action.power}", "VM.PowerMgmt")
        self._writes.work(order, "rollback", "post", f"snapshot/{action.snapshot.id}/rollback")
        if turn is not None:
            power.turn(order, action, turn)
        return Finished(order.job)


def _read_release(data: object) -> tuple[int, ...]:
    return tuple(int(part) for part in str(mapping(data)["version"]).split(".")[:2])
