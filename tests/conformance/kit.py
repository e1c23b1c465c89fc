# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The interface of a hypervisor for the conformance suite. Each backend has one such class; see test_conformance.py.

All calls use the same code as the modules: Fleet, a plan, and a driver with its own connection.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import threading
import typing as t
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed, Locked, SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Target
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._core.retention import Policy
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Finished, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.info import outcome_info
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.prune import Pruned
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

_numbers = itertools.count(1)


class Backend(abc.ABC):
    """A hypervisor for the tests."""

    up = "paused"
    """The default state of running VMs in tests: the cheapest one in which a snapshot includes the memory."""
    memory_implied = False
    """True if a snapshot of a running VM always includes its memory."""
    memory_possible = True
    """True if a snapshot can include the memory."""

    @abc.abstractmethod
    def open(self) -> SnapshotDriver:
        """Return a driver with a new connection."""

    @abc.abstractmethod
    def add(self, name: str, *, power: str) -> None:
        """Create a VM with this name."""

    @abc.abstractmethod
    def identity(self, name: str) -> tuple[str, str]:
        """Return a unique reference of the VM: ``uuid`` or ``id``, and its value."""

    @abc.abstractmethod
    def by_hand(self, vm: str, name: str, description: str) -> None:
        """Take a snapshot without this collection, like a user."""

    @abc.abstractmethod
    def switch_off(self, vm: str) -> None:
        """Power off a running VM hard, like a user."""

    @abc.abstractmethod
    def grow(self, vm: str) -> None:
        """Double the memory of a VM that is off, like a user."""

    def vm(self, *, power: str | None = None) -> str:
        """Create a VM with a unique name."""
        name = f"conf{next(_numbers):03d}"
        self.add(name, power=power or self.up)
        return name

    def run(
        self,
        plan: Plan,
        *targets: str | Target,
        dry_run: bool = False,
        drift: bool = False,
        fails_at: int | None = None,
        locked_at: int | None = None,
        meanwhile: t.Callable[[], object] | None = None,
        later: timedelta = timedelta(0),
        **bounds: t.Any,
    ) -> list[Outcome]:
        """Run a module that changes snapshots. Action number ``fails_at``, counted from 1, fails without doing anything, and
        number ``locked_at`` is refused because another operation has locked the VM.

        ``meanwhile`` is called between the read and the first write. ``later`` is added to the time that the plan sees.
        """
        driver = self.open()
        if meanwhile is not None:
            _before_the_first_write(driver, meanwhile)
        try:
            used = Tripwire(driver, fails_at, locked_at) if fails_at else driver
            fleet = Fleet(used, Bounds(**{"timeout": 120.0, **bounds}), now=lambda: datetime.now(timezone.utc) + later)
            named = [Target(one) if isinstance(one, str) else one for one in targets]
            return fleet.apply(named, plan, dry_run=dry_run, drift=drift)
        finally:
            driver.close()

    def looks(self, *vms: str, drift: bool = False) -> list[Outcome]:
        """Run the info module; without VMs, for the whole endpoint."""
        driver = self.open()
        try:
            fleet = Fleet(driver, Bounds(), now=lambda: datetime.now(timezone.utc))
            return fleet.look([Target(vm) for vm in vms] or None, drift=drift)
        finally:
            driver.close()

    def look(self, vm: str) -> Outcome:
        return only(self.looks(vm))

    def info(
        self, vm: str, *, drift: bool = False, key: str | None = None, ownership: str = "any", **wanted: t.Any
    ) -> dict[str, t.Any]:
        """Return the result of the info module for one VM."""
        seen = only(self.looks(vm, drift=drift))
        assert seen.error is None, seen.error
        return outcome_info(seen, ours=Owner(key=key), wanted=Filter(**wanted), which=ownership, now=datetime.now(timezone.utc))

    def list(self, vm: str) -> list[Snapshot]:
        seen = self.look(vm)
        assert seen.error is None, seen.error
        assert seen.after is not None
        return [bare(one) for one in seen.after.snapshots]

    def names(self, vm: str) -> list[str]:
        return [one.name for one in self.list(vm)]

    def take(self, vm: str, name: str, **request: t.Any) -> Snapshot:
        """Take a snapshot; the call must succeed."""
        done = only(self.run(Present(Request(name=name, **request)), vm))
        assert done.error is None, done.error
        assert done.snapshot is not None
        return bare(done.snapshot)

    def remove(self, vm: str, name: str, **request: t.Any) -> Outcome:
        return only(self.run(Absent(Request(name=name, **request)), vm))

    def revert(self, vm: str, name: str, **request: t.Any) -> Outcome:
        return only(self.run(Reverted(Request(name=name, **request)), vm))


def _before_the_first_write(driver: SnapshotDriver, call: t.Callable[[], object]) -> None:
    start, left = driver.start, [call]

    def first(action: Action) -> Job:
        if left:
            left.pop()()
        return start(action)

    driver.start = first  # type: ignore[method-assign]


class Tripwire(SnapshotDriver):
    """A real driver of which one action fails, as on a hypervisor without free space."""

    name = "tripwire"

    def __init__(self, driver: SnapshotDriver, fails_at: int, locked_at: int | None = None) -> None:
        self._driver = driver
        self._number = 0
        self._fails_at = fails_at
        self._locked_at = locked_at
        self._failed: list[Finished] = []
        self.name_rule = driver.name_rule  # type: ignore[misc]
        for forwarded in ("find", "vms", "inspect", "snapshots", "configurations", "imagine", "foresee", "set_deadline", "close"):
            setattr(self, forwarded, getattr(driver, forwarded))

    def start(self, action: Action) -> Job:
        self._number += 1
        if self._number not in (self._fails_at, self._locked_at):
            return self._driver.start(action)
        job = Job(action)
        error: SafepointError = BackendFailed(f"To {action} failed: no space left on device")
        if self._number == self._locked_at:
            error = Locked(f"To {action} was refused: a backup holds the VM")
        self._failed.append(Finished(job, error=error))
        return job

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        failed = [end for end in self._failed if end.job in jobs]
        self._failed = [end for end in self._failed if end not in failed]
        return failed or self._driver.wait(jobs, deadline)

    # replaced by the methods of the real driver
    find = vms = inspect = snapshots = configurations = imagine = foresee = close = None  # type: ignore[assignment]


def pruning(*, scope: Filter | None = None, confirm: int | None = None, key: str | None = None, **policy: t.Any) -> Pruned:
    """Return the plan that applies a policy to our snapshots."""
    return Pruned(Request(label_key=key), Policy(**policy), scope=scope or Filter(), tz=timezone.utc, confirm=confirm)


def bare(snapshot: Snapshot | None) -> Snapshot:
    """Return the snapshot without its size, which some backends read only for a listing."""
    assert snapshot is not None
    return dataclasses.replace(snapshot, size_bytes=None, size_unknown=None)


def only(outcomes: list[Outcome]) -> Outcome:
    assert len(outcomes) == 1
    return outcomes[0]


def code(outcome: Outcome) -> str | None:
    return outcome.error.code if outcome.error else None


def at_once(number: int, call: t.Callable[[], Outcome]) -> list[Outcome]:
    """Run ``call`` in this number of threads that start together, each with its own connection."""
    barrier = threading.Barrier(number)
    results: list[Outcome | BaseException] = []

    def work() -> None:
        barrier.wait()
        try:
            results.append(call())
        except BaseException as exc:
            results.append(exc)

    threads = [threading.Thread(target=work) for _each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return t.cast("list[Outcome]", results)
