# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Operations on five VMs of a simulator with a fault (outage, lost answer, failing proxy) at one request after the other."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import socket
import threading
import typing as t
from collections.abc import Callable, Iterator
from datetime import datetime, timezone

from hypervisor_stage import Stage
from kit import pruning
from proxmox_backend import ProxmoxBackend
from pve_faults import RequestFault
from pve_server import PveServer
from server import VCenter
from vsphere_backend import VsphereBackend

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

VMS = 5
TIMEOUT = 120.0
_numbers = itertools.count(1)


class OutageStage(Stage):
    """A separate simulator that can have a fault at its k-th request."""

    @abc.abstractmethod
    def strike(self, fault: str, k: int) -> None:
        """Set the fault for the k-th request from now."""

    @abc.abstractmethod
    def calm(self) -> int:
        """Clear the fault, wait until the server is back, and return the number of requests since the fault was set."""


def wait_for(hostname: str, port: int) -> None:
    """Wait until a server listens again: the call may have ended before the outage."""

    def listens() -> bool | None:
        try:
            with socket.create_connection((hostname, port), timeout=5):
                return True
        except OSError:
            return None

    Deadline(30).poll("the server", listens)


class VsphereStage(OutageStage):
    # The result of a second task of a VM depends on the vCenter and on timing.
    _BUSY = ("task", "call", "queue")

    def __init__(self) -> None:
        self.vcenter = VCenter(vms=0).start()
        self.vcenter.set(task_time=0.05)
        self.vary(0)
        self.backend = VsphereBackend(self.vcenter)

    def strike(self, fault: str, k: int) -> None:
        self.vcenter.outage(fault, nth=k, seconds=2)

    def calm(self) -> int:
        seen = self.vcenter.end_outage()
        wait_for(self.vcenter.hostname, self.vcenter.port)
        return seen

    def state(self, vm: str) -> tuple[str, list[str], str]:
        seen = self.vcenter.vm(vm)
        powers = {"poweredOn": "running", "poweredOff": "off"}
        return powers[seen["power"]], sorted(one["name"] for one in seen["snapshots"]), seen["data"]

    def vary(self, number: int) -> None:
        self.vcenter.set(busy=self._BUSY[number % len(self._BUSY)])

    def write(self, vm: str, text: str) -> None:
        self.vcenter.set_vm(vm, data=text)

    def close(self) -> None:
        self.vcenter.stop()
        assert not self.vcenter.errors, self.vcenter.errors


class ProxmoxStage(OutageStage):
    unique_ids = False
    _KINDS: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "gone": {"gone": 2.0},
        "lost": {"cut": True, "after": True},
        "lost_before": {"cut": True},
        "502": {"status": 502, "reason": "Bad Gateway", "after": True},
        "502_before": {"status": 502, "reason": "Bad Gateway"},
        "silent": {"silent": True},
    }

    def __init__(self) -> None:
        self.pve = PveServer().start()
        self.proxmox = self.backend = ProxmoxBackend(self.pve)
        self._rule: RequestFault | None = None

    def strike(self, fault: str, k: int) -> None:
        self._rule = self.pve.fault(nth=k, **self._KINDS[fault])

    def calm(self) -> int:
        seen = self._rule.seen if self._rule else 0
        self.pve.clear_faults()
        self.pve.unmute()
        wait_for(self.pve.hostname, self.pve.port)
        return seen

    def state(self, vm: str) -> tuple[str, list[str], str]:
        seen = self.pve.guest(self.proxmox.vmids[vm])
        power = "running" if seen["status"] == "running" else "off"
        return power, sorted(one["name"] for one in seen["snapshots"]), seen["data"]

    def write(self, vm: str, text: str) -> None:
        self.proxmox.write(vm, text)

    def close(self) -> None:
        self.pve.stop()
        assert not self.pve.errors, self.pve.errors


STAGES: dict[str, Callable[[], OutageStage]] = {"vsphere": VsphereStage, "proxmox": ProxmoxStage}
FAULTS = ("gone", "lost", "lost_before", "502", "502_before")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation on five running VMs, and their expected state afterwards."""

    name: str
    plan: Callable[[], Plan]
    word: str
    before: tuple[str, ...]
    """Existing snapshots."""
    after: list[str]
    data: str = "new"
    on_error: str = "continue"


OPERATIONS = (
    Operation("create", lambda: Present(Request(name="sx")), "created", (), ["sx"], on_error="undo"),
    Operation("revert", lambda: Reverted(Request(name="sx", power="on")), "reverted", ("sx",), ["sx"], data="old"),
    Operation("remove", lambda: Absent(Request(name="sx")), "removed", ("sw", "sx"), ["sw"]),
    Operation("prune", lambda: pruning(everything=True, confirm=VMS), "pruned", ("sw", "sx"), []),
)


@dataclasses.dataclass
class Row:
    """A row of the table: one operation and one fault."""

    operation: str
    fault: str
    tried: int = 0
    right: int = 0
    unverified: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return f"| {self.operation} | {self.fault} | {self.tried} | {self.right} | {self.unverified} |"


def prepare(stage: OutageStage, operation: Operation) -> list[str]:
    """Create five VMs with the snapshots that the operation needs."""
    vms = [f"out{next(_numbers):05d}" for _each in range(VMS)]
    for vm in vms:
        stage.backend.add(vm, power="running")
        stage.write(vm, "old")
    for name in operation.before:
        done = stage.backend.run(Present(Request(name=name)), *vms)
        assert [one.error for one in done] == [None] * VMS
    for vm in vms:
        stage.write(vm, "new")
    return vms


def strike(stage: OutageStage, operation: Operation, fault: str, k: int) -> tuple[bool, list[Outcome], list[str]]:
    """Run one call with a fault at its k-th request after the login. Return True if it had that many requests, the rows, and the problems."""
    vms = prepare(stage, operation)
    driver = stage.backend.open()
    bounds = Bounds(timeout=TIMEOUT, on_error=operation.on_error)
    stage.strike(fault, k)
    rows: list[Outcome] = []
    wrong = []
    try:
        fleet = Fleet(driver, bounds, now=lambda: datetime.now(timezone.utc))
        rows = fleet.apply([Target(vm) for vm in vms], operation.plan(), dry_run=False)
    except SafepointError as exc:
        wrong.append(f"{fault} at {k}: the call failed: {exc}")
    finally:
        seen = stage.calm()
        driver.close()
    for vm, row in zip(vms, rows):
        told = (row.word, row.changed, row.error.code if row.error else None)
        if told != (operation.word, True, None):
            wrong.append(f"{fault} at {k}: {vm} is reported as {told}: {row.error}")
        state = stage.state(vm)
        if state != ("running", operation.after, operation.data):
            wrong.append(f"{fault} at {k}: {vm} is {state}")
    return seen >= k, rows, wrong


def sweep(make: Callable[[], OutageStage], operation: Operation, fault: str, numbers: Iterator[int]) -> Row:
    """Run the operation with a fault at each of these requests, until it has no more requests."""
    row = Row(operation.name, fault)
    stage = make()
    try:
        for k in numbers:
            hit, rows, wrong = strike(stage, operation, fault, k)
            if not hit:
                assert not wrong, wrong
                return row
            row.tried += 1
            row.right += not wrong
            row.unverified += any(one.word == "unverified" for one in rows)
            row.wrong += wrong
        return row
    finally:
        stage.close()


def sweep_all(make: Callable[[], OutageStage], fault: str, *, first: int = 1, step: int = 1) -> list[Row]:
    """Run all operations in parallel, each on its own simulator, because they mostly wait."""
    rows: dict[str, Row | BaseException] = {}

    def work(operation: Operation) -> None:
        try:
            rows[operation.name] = sweep(make, operation, fault, itertools.count(first, step))
        except BaseException as exc:
            rows[operation.name] = exc

    threads = [threading.Thread(target=work, args=(one,)) for one in OPERATIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in rows.values():
        if isinstance(found, BaseException):
            raise found
    return [t.cast("Row", rows[one.name]) for one in OPERATIONS]


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = [
        "| operation | fault | requests tried | ended as without the fault | reported as unverified |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(str, rows)])
