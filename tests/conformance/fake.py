# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor in memory that keeps every promise of SnapshotDriver, and that fails when a test tells it to.

It passes the same conformance suite as the real backends, which is what makes it an honest stand-in for them.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

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
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    SafepointError,
    SnapshotExists,
    SnapshotNotFound,
    VmAmbiguous,
    VmNotFound,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Vm, VmState, parents_first
from ansible_collections.safepoint.vm.plugins.module_utils._naming import NameRule
from ansible_collections.safepoint.vm.plugins.module_utils._threads import Endings, begin


@dataclasses.dataclass
class Machine:
    """One VM: where it is, and where it could go back to."""

    vm: Vm
    power: str
    snapshots: dict[str, Snapshot] = dataclasses.field(default_factory=dict)
    powers: dict[str, str] = dataclasses.field(default_factory=dict)
    current: str | None = None
    busy: str | None = None


class Hypervisor:
    """All the VMs, shared by any number of drivers, as an endpoint is shared by its clients."""

    def __init__(self, *, unique_names: bool = True) -> None:
        self.machines: dict[str, Machine] = {}
        self.unique_names = unique_names
        self.lock = threading.RLock()
        self.latency = 0.0
        """Seconds that each request takes."""
        self.requests: list[str] = []
        """Every request in its order: its name, and behind a blank the VM where it is about one."""
        self.failures: dict[int, SafepointError] = {}
        """By the number of the action, counted from 1: what it ends with, having done nothing."""
        self.hangs: set[int] = set()
        """The numbers of actions that never end."""
        self.lies: set[int] = set()
        """The numbers of actions that report success without doing anything."""
        self.actions: list[Action] = []
        self.slow: dict[int, threading.Event] = {}
        """The numbers of actions that begin only when the event is set."""

    def add(self, name: str, *, power: str = "running") -> Vm:
        vm = Vm(name, f"vm-{len(self.machines) + 1}", str(uuid.uuid4()))
        self.machines[vm.id] = Machine(vm, power)
        return vm

    def request(self, name: str) -> None:
        time.sleep(self.latency)
        with self.lock:
            self.requests.append(name)


class FakeDriver(SnapshotDriver):
    name = "fake"
    name_rule = NameRule(max_bytes=80)

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self._endings = Endings()

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        self.hypervisor.request("find")
        return {ref: self._pick(ref) for ref in refs}

    def _pick(self, ref: str) -> Vm | SafepointError:
        kind, colon, rest = ref.partition(":")
        kind, rest = (kind, rest) if colon else ("any", ref)
        vms = [machine.vm for machine in self.hypervisor.machines.values()]
        keys = {"name": ("name",), "uuid": ("uuid",), "id": ("id",), "any": ("name", "uuid", "id")}[kind]
        found = [vm for vm in vms if rest in [getattr(vm, key) for key in keys]]
        if len(found) == 1:
            return found[0]
        if found:
            return VmAmbiguous(f"{len(found)} VMs match {ref!r}: {', '.join(f'{vm.name} (id:{vm.id})' for vm in found)}")
        return VmNotFound(f"There is no VM {ref!r}; there are {', '.join(vm.name for vm in vms)}")

    def inspect(self, vms: Sequence[Vm]) -> Mapping[str, VmState | SafepointError]:
        self.hypervisor.request("inspect")
        with self.hypervisor.lock:
            return {vm.id: self._state(self.hypervisor.machines[vm.id]) for vm in vms}

    def _state(self, machine: Machine) -> VmState:
        refusals = {"quiesce": f"{machine.vm} has no agent; set quiesce=never"}
        if machine.power == "off":
            refusals["memory"] = f"{machine.vm} is off; start it first"
        return VmState(machine.power, refusals, busy=machine.busy)

    def snapshots(self, vms: Sequence[Vm]) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        self.hypervisor.request("snapshots")
        with self.hypervisor.lock:
            return {vm.id: self._list(self.hypervisor.machines[vm.id]) for vm in vms}

    def _list(self, machine: Machine) -> tuple[Snapshot, ...]:
        return parents_first(dataclasses.replace(one, current=one.id == machine.current) for one in machine.snapshots.values())

    def start(self, action: Action) -> Job:
        job = Job(action)
        with self.hypervisor.lock:
            self.hypervisor.actions.append(action)
            number = len(self.hypervisor.actions)
        self.hypervisor.request(f"{type(action).__name__} {action.vm}")
        if number in self.hypervisor.hangs:
            return job

        def done(end: Finished | None, error: BaseException | None) -> None:
            if end is None and not isinstance(error, SafepointError):
                raise AssertionError("the fake itself is wrong") from error
            self._endings.put(end or Finished(job, error=error if isinstance(error, SafepointError) else None))

        begin(lambda: self._run(job, number), done)
        return job

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        return self._endings.wait(jobs, deadline)

    def close(self) -> None:
        self.hypervisor.request("close")

    def _run(self, job: Job, number: int) -> Finished:
        action = job.action
        if number in self.hypervisor.slow:
            self.hypervisor.slow[number].wait(30)
        with self.hypervisor.lock:
            if number in self.hypervisor.failures:
                raise self.hypervisor.failures[number]
            if number in self.hypervisor.lies:
                return Finished(job, snapshot_id="snap-0" if isinstance(action, Create) else None)
            machine = self.hypervisor.machines[action.vm.id]
            if isinstance(action, Create):
                return Finished(job, snapshot_id=self._create(machine, action))
            if action.snapshot.id not in machine.snapshots:
                raise SnapshotNotFound(f"{action.vm} has no snapshot {action.snapshot.id}")
            found = machine.snapshots[action.snapshot.id]
            if isinstance(action, Describe):
                machine.snapshots[found.id] = dataclasses.replace(found, description=action.description)
            elif isinstance(action, Delete):
                self._delete(machine, found)
            elif isinstance(action, Revert):
                machine.current = found.id
                as_taken = machine.powers[found.id]
                machine.power = {"on": "running", "off": "off", "as_snapshot": as_taken}[action.power]
        return Finished(job)

    def _create(self, machine: Machine, action: Create) -> str:
        if self.hypervisor.unique_names and action.name in [one.name for one in machine.snapshots.values()]:
            raise SnapshotExists(f"{machine.vm} has a snapshot named {action.name!r} already")
        made = Snapshot(
            id=f"snap-{uuid.uuid4().hex[:8]}",
            name=action.name,
            created=datetime.now(timezone.utc).replace(microsecond=0),
            parent=machine.current,
            description=action.description,
            memory=action.memory,
            consistency="memory" if action.memory else "offline" if machine.power == "off" else "crash",
            current=True,
        )
        machine.snapshots[made.id] = made
        # Without its memory a VM comes back switched off.
        machine.powers[made.id] = machine.power if action.memory else "off"
        machine.current = made.id
        return made.id

    def _delete(self, machine: Machine, gone: Snapshot) -> None:
        del machine.snapshots[gone.id]
        for one in list(machine.snapshots.values()):
            if one.parent == gone.id:
                machine.snapshots[one.id] = dataclasses.replace(one, parent=gone.parent)
        if machine.current == gone.id:
            machine.current = gone.parent
