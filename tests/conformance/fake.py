# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor in memory that implements SnapshotDriver completely and fails on request of a test.

It passes the same conformance suite as the real backends, so tests on it are valid for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    NotReached,
    SafepointError,
    SnapshotExists,
    SnapshotNotFound,
    TimedOut,
    Unsupported,
    Unverified,
    VmAmbiguous,
    VmNotFound,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.label import parse
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import (
    Configuration,
    Snapshot,
    Vm,
    VmState,
    Way,
    parents_first,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import NameRule, did_you_mean
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
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import begin

_numbers = itertools.count(1)
NEW_VM = Configuration(1, 32 * 1024**2, {"disk0": "image"}, {"net0": "lan"})


@dataclasses.dataclass
class Machine:
    """One VM with its present state and its snapshots."""

    vm: Vm
    power: str
    data: str = ""
    """The contents of its disk."""
    memory: str = ""
    """The contents of its memory while it is running."""
    configuration: Configuration = NEW_VM
    agent: str = "none"
    """``none``, ``ready``, or ``broken``: it seems ready, but fails to quiesce."""
    was: dict[str, tuple[str, str, Configuration]] = dataclasses.field(default_factory=dict)
    """Id of the snapshot -> its data, memory and configuration."""
    snapshots: dict[str, Snapshot] = dataclasses.field(default_factory=dict)
    powers: dict[str, str] = dataclasses.field(default_factory=dict)
    current: str | None = None
    busy: str | None = None


class Hypervisor:
    """All VMs, shared by any number of drivers, like an endpoint by its clients."""

    def __init__(self, *, unique_names: bool = True) -> None:
        self.machines: dict[str, Machine] = {}
        self.unique_names = unique_names
        self.lock = threading.RLock()
        self.latency = 0.0
        """Duration of each request in seconds."""
        self.ways_read = 0
        """Number of requests that read the ways to take a snapshot."""
        self.requests: list[str] = []
        """All requests in order: the name, followed by a space and the VM if the request is about one."""
        self.failures: dict[int, SafepointError] = {}
        """Number of the action, counted from 1 -> the error that it ends with, without doing anything."""
        self.before_failing: dict[int, Callable[[], None]] = {}
        """Number of a failing action -> the change that it makes nevertheless."""
        self.hangs: set[int] = set()
        """The numbers of actions that never end."""
        self.lies: set[int] = set()
        """The numbers of actions that report success without doing anything."""
        self.actions: list[Action] = []
        self.slow: dict[int, threading.Event] = {}
        """The numbers of actions that start only when the event is set."""
        self.percents: dict[int, int] = {}
        """Number of the action -> the progress that it reports while it runs."""
        self.outages: dict[int, float] = {}
        """Number of the request, counted from 1 -> duration in seconds of an outage that starts with this request."""
        self.gone_until = 0.0
        self.lost: dict[int, str] = {}
        """Number of the action -> its answer is lost ``before`` or ``after`` the work was done."""

    def add(self, name: str, *, power: str = "running") -> Vm:
        vm = Vm(name, f"vm-{len(self.machines) + 1}", str(uuid.uuid4()))
        self.machines[vm.id] = Machine(vm, power)
        return vm

    def request(self, name: str) -> None:
        time.sleep(self.latency)
        with self.lock:
            self.requests.append(name)
            self.gone_until = max(self.gone_until, time.monotonic() + self.outages.get(len(self.requests), 0.0))
            if time.monotonic() < self.gone_until:
                raise NotReached("the endpoint is gone")


class FakeDriver(SnapshotDriver):
    name = "fake"
    name_rule = NameRule(max_bytes=80)

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self._endings = Endings()
        self._deadline = Deadline(900)

    def set_deadline(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def _ask(self, name: str) -> None:
        """Repeat a request until the endpoint answers or the deadline has passed."""

        def probe() -> bool | None:
            try:
                self.hypervisor.request(name)
            except NotReached as exc:
                refused.append(exc)
                return None
            return True

        refused: list[NotReached] = []
        try:
            self._deadline.poll(name, probe, first=0.05, longest=0.2)
        except TimedOut:
            raise refused[-1] from None

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        self._ask("find")
        return {ref: self._pick(ref) for ref in refs}

    def _pick(self, ref: str) -> Vm | SafepointError:
        kind, colon, rest = ref.partition(":")
        if not colon or kind not in ("name", "uuid", "id"):
            kind, rest = "any", ref
        vms = [machine.vm for machine in self.hypervisor.machines.values()]
        keys = {"name": ("name",), "uuid": ("uuid",), "id": ("id",), "any": ("name", "uuid", "id")}[kind]
        found = [vm for vm in vms if rest in [getattr(vm, key) for key in keys]]
        if len(found) == 1:
            return found[0]
        if found:
            return VmAmbiguous(f"{len(found)} VMs match {ref!r}: {', '.join(f'{vm.name} (id:{vm.id})' for vm in found)}")
        hint = did_you_mean(rest, (vm.name for vm in vms)) or f"there are {', '.join(vm.name for vm in vms)}"
        return VmNotFound(f"There is no VM {ref!r}; {hint}")

    def vms(self) -> Sequence[Vm]:
        self._ask("vms")
        with self.hypervisor.lock:
            return sorted((machine.vm for machine in self.hypervisor.machines.values()), key=lambda vm: vm.name)

    def inspect(
        self, vms: Sequence[Vm], *, ways: bool, memory: bool = False, quiesce: bool = False
    ) -> Mapping[str, VmState | SafepointError]:
        self._ask("inspect")
        self.hypervisor.ways_read += ways
        with self.hypervisor.lock:
            return {vm.id: self._state(self.hypervisor.machines[vm.id], ways=ways) for vm in vms}

    def _state(self, machine: Machine, *, ways: bool) -> VmState:
        refusals = {"memory_and_quiesce": f"{machine.vm} keeps its memory or is quiesced, not both; leave one of them out"}
        if machine.power == "off":
            refusals["memory"] = f"{machine.vm} is off; start it first"
        elif machine.agent == "none":
            refusals["quiesce"] = f"{machine.vm} has no agent; set quiesce=never"
        return VmState(machine.power, (Way(refusals=refusals, unrecorded=("filesystem",)),) if ways else (), busy=machine.busy)

    def configurations(
        self, wanted: Sequence[tuple[Vm, Snapshot | None]]
    ) -> Mapping[tuple[str, str | None], Configuration | SafepointError]:
        self._ask("configurations")
        with self.hypervisor.lock:
            return {
                (vm.id, one.id if one else None): (
                    self.hypervisor.machines[vm.id].was[one.id][2] if one else self.hypervisor.machines[vm.id].configuration
                )
                for vm, one in wanted
            }

    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        self._ask("snapshots")
        with self.hypervisor.lock:
            return {vm.id: self._list(self.hypervisor.machines[vm.id]) for vm in vms}

    def _list(self, machine: Machine) -> tuple[Snapshot, ...]:
        return parents_first(dataclasses.replace(one, current=one.id == machine.current) for one in machine.snapshots.values())

    def start(self, action: Action) -> Job:
        job = Job(action)
        with self.hypervisor.lock:
            self.hypervisor.actions.append(action)
            number = len(self.hypervisor.actions)
        job.percent = self.hypervisor.percents.get(number)
        sent = True
        try:
            self.hypervisor.request(f"{type(action).__name__} {action.vm}")
        except NotReached:
            sent = False
        if number in self.hypervisor.hangs:
            return job

        def done(end: Finished | None, error: BaseException | None) -> None:
            if end is None and not isinstance(error, SafepointError):
                raise AssertionError("the fake itself is wrong") from error
            self._endings.put(end or Finished(job, error=error if isinstance(error, SafepointError) else None))

        def work() -> Finished:
            if not sent:
                self._ask(f"{type(action).__name__} {action.vm}")
            if number not in self.hypervisor.lost:
                return self._run(job, number)
            end = self._run(job, number) if self.hypervisor.lost[number] == "after" else None
            try:
                self._ask("look for it")
            except NotReached as exc:
                raise Unverified(f"The answer to {action} was lost, and it could not be looked up: {exc}") from exc
            return end or self._run(job, number)

        begin(work, done)
        return job

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        return self._endings.wait(jobs, deadline)

    def close(self) -> None:
        with contextlib.suppress(NotReached):
            self.hypervisor.request("close")

    def _run(self, job: Job, number: int) -> Finished:
        action = job.action
        if number in self.hypervisor.slow:
            self.hypervisor.slow[number].wait(30)
        with self.hypervisor.lock:
            if number in self.hypervisor.failures:
                self.hypervisor.before_failing.get(number, lambda: None)()
                raise self.hypervisor.failures[number]
            if number in self.hypervisor.lies:
                return Finished(job, snapshot_id="snap-0" if isinstance(action, Create) else None)
            machine = self.hypervisor.machines[action.vm.id]
            if isinstance(action, Create):
                return self._take(job, machine, action)
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
                machine.data, machine.memory, machine.configuration = machine.was[found.id]
        return Finished(job)

    def _take(self, job: Job, machine: Machine, action: Create) -> Finished:
        if action.quiesce != "never" and machine.agent != "ready":
            said = f"The agent of {machine.vm} failed to quiesce"
            if action.quiesce == "require" or action.unquiesced_description is None:
                raise Unsupported(said)
            plain = dataclasses.replace(action, quiesce="never", description=action.unquiesced_description)
            return Finished(job, snapshot_id=self._create(machine, plain), warnings=(said,))
        return Finished(job, snapshot_id=self._create(machine, action))

    def _create(self, machine: Machine, action: Create) -> str:
        if self.hypervisor.unique_names and action.name in [one.name for one in machine.snapshots.values()]:
            raise SnapshotExists(f"{machine.vm} has a snapshot named {action.name!r} already")
        made = Snapshot(
            id=f"snap-{next(_numbers)}",
            name=action.name,
            created=datetime.now(timezone.utc).replace(microsecond=0),
            parent=machine.current,
            description=action.description,
            memory=action.memory and machine.power != "off",
            consistency=self._consistency(machine, action),
            current=True,
            size_unknown="nothing in memory has a size",
        )
        machine.snapshots[made.id] = made
        # After a revert without memory, a VM is off.
        machine.powers[made.id] = machine.power if action.memory else "off"
        machine.was[made.id] = (machine.data, machine.memory if action.memory else "", machine.configuration)
        machine.current = made.id
        return made.id

    def _consistency(self, machine: Machine, action: Create) -> str:
        if machine.power == "off":
            return "offline"
        if action.memory:
            return "memory"
        label = parse(action.description).label
        return "filesystem" if label and label.consistency == "filesystem" else "crash"

    def _delete(self, machine: Machine, gone: Snapshot) -> None:
        del machine.snapshots[gone.id]
        for one in list(machine.snapshots.values()):
            if one.parent == gone.id:
                machine.snapshots[one.id] = dataclasses.replace(one, parent=gone.parent)
        if machine.current == gone.id:
            machine.current = gone.parent
