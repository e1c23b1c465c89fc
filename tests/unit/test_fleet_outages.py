# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Calls on many VMs during outages of the endpoint, with lost answers, and with parallel runs on the same VMs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

import pytest
from fake import FakeDriver, Hypervisor, Machine
from kit import pruning

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Delete
from ansible_collections.safepoint.vm.plugins.module_utils._engine import fleet as _fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine import phases
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import outcome_pruned
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

VMS = ["web01", "web02", "web03"]
FOR_EVER = 3600.0


@pytest.fixture
def hypervisor() -> Hypervisor:
    made = Hypervisor()
    for name in VMS:
        made.add(name)
    return made


def run(hypervisor: Hypervisor, plan: Plan, *, vms: list[str] = VMS, **bounds: object) -> list[Outcome]:
    settings = Bounds(**{"timeout": 60.0, "max_parallel": 1, **bounds})  # type: ignore[arg-type]
    fleet = Fleet(FakeDriver(hypervisor), settings, now=lambda: datetime.now(timezone.utc))
    return fleet.apply([Target(name) for name in vms], plan, dry_run=False)


def codes(outcomes: list[Outcome]) -> list[str | None]:
    return [one.error.code if one.error else None for one in outcomes]


def names(hypervisor: Hypervisor) -> list[list[str]]:
    return [sorted(snapshot.name for snapshot in one.snapshots.values()) for one in hypervisor.machines.values()]


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, phase in enumerate(("_CONFIRM_SECONDS", "_UNDO_SECONDS", "_LAST_LOOK_SECONDS"), start=1):
        monkeypatch.setattr(phases, phase, 0.3 * number)


@pytest.mark.parametrize("number", range(1, 9))
def test_outage_at_any_request_is_survived(hypervisor: Hypervisor, number: int) -> None:
    hypervisor.outages[number] = 0.3
    done = run(hypervisor, Present(Request(name="x")), on_error="undo")
    assert codes(done) == [None] * 3
    assert {(one.word, one.changed) for one in done} == {("created", True)}
    assert names(hypervisor) == [["x"]] * 3


def test_undo_survives_an_outage_that_starts_with_it(hypervisor: Hypervisor) -> None:
    hypervisor.failures[3] = BackendFailed("no space")
    hypervisor.before_failing[3] = lambda: setattr(hypervisor, "gone_until", time.monotonic() + 1.5)
    done = run(hypervisor, Present(Request(name="x")), on_error="undo", timeout=1.0)
    assert codes(done) == ["undone", "undone", "backend_failed"]
    assert [one.changed for one in done] == [False] * 3
    assert names(hypervisor) == [[]] * 3


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_lost_answer_is_no_failure(hypervisor: Hypervisor, number: int, when: str) -> None:
    hypervisor.lost[number] = when
    done = run(hypervisor, Present(Request(name="x")), on_error="undo")
    assert [(one.word, one.changed) for one in done] == [("created", True)] * 3
    assert names(hypervisor) == [["x"]] * 3


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("plan", [Present(Request(name="x")), Absent(Request(name="old")), Reverted(Request(name="old"))])
def test_write_that_cannot_be_looked_up_in_time_is_unverified(hypervisor: Hypervisor, plan: Plan) -> None:
    run(hypervisor, Present(Request(name="old")))
    hypervisor.actions.clear()
    hypervisor.lost[1] = "after"
    number = len(hypervisor.requests) + 5  # find, snapshots, inspect, the action, and then the look-up
    hypervisor.outages[number] = FOR_EVER
    began = time.monotonic()
    done = run(hypervisor, plan, on_error="stop", timeout=1.0)
    assert time.monotonic() - began < 1.0 + 20
    assert codes(done) == ["unverified", "not_started", "not_started"]
    assert [(one.word, one.changed) for one in done] == [("unverified", True), ("none", False), ("none", False)]


@pytest.mark.usefixtures("short_grace")
def test_write_that_cannot_be_read_again_is_unverified(hypervisor: Hypervisor) -> None:
    hypervisor.outages[7] = FOR_EVER
    done = run(hypervisor, Present(Request(name="x")), on_error="continue", timeout=1.0)
    assert [(one.word, one.changed) for one in done] == [("unverified", True)] * 3


@pytest.mark.usefixtures("short_grace")
def test_write_that_was_never_sent_has_changed_nothing(hypervisor: Hypervisor) -> None:
    hypervisor.outages[4] = FOR_EVER
    done = run(hypervisor, Present(Request(name="x")), on_error="stop", timeout=1.0)
    assert [one.changed for one in done] == [False] * 3 or codes(done)[0] == "timed_out"
    assert names(hypervisor) == [[]] * 3


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("on_error", ["undo", "stop", "continue"])
def test_call_ends_in_time_when_the_endpoint_stops_answering(hypervisor: Hypervisor, on_error: str) -> None:
    hypervisor.hangs.update({2, 3})
    hypervisor.before_failing = {}
    hypervisor.outages[6] = FOR_EVER
    began = time.monotonic()
    done = run(hypervisor, Present(Request(name="x")), on_error=on_error, timeout=1.0)
    assert time.monotonic() - began < 1.0 + 20
    assert len(done) == 3 and all(one.error for one in done[1:])


# a locked VM


@pytest.mark.parametrize(("on_error", "others"), [("stop", "not_started"), ("continue", "timed_out")])
def test_busy_vm_has_a_row_when_timeout_is_no_longer_than_lock_timeout(
    hypervisor: Hypervisor, on_error: str, others: str
) -> None:
    machines = list(hypervisor.machines.values())
    machines[1].busy = "a backup"
    done = run(hypervisor, Present(Request(name="x")), timeout=0.5, lock_timeout=60.0, on_error=on_error)
    assert codes(done)[:2] == [others, "locked"]
    assert "a backup" in str(done[1].error) and "timeout" in str(done[1].error)
    assert [one.changed for one in done] == [False] * 3
    assert hypervisor.actions == []


class FreedLate(FakeDriver):
    """web02 is locked, and released just before the end of lock_timeout."""

    taken_again = False
    _inspected = 0

    def inspect(self, vms, **asked):  # type: ignore[no-untyped-def]
        self._inspected += 1
        machine = list(self.hypervisor.machines.values())[1]
        if self._inspected == 2:
            time.sleep(1.0)
            machine.busy = None
        elif self._inspected == 3 and self.taken_again:
            machine.busy = "a replication"
        return super().inspect(vms, **asked)


@pytest.mark.parametrize("taken_again", [False, True])
def test_vm_that_is_free_at_the_end_of_lock_timeout_is_not_reported_as_locked(hypervisor: Hypervisor, taken_again: bool) -> None:
    list(hypervisor.machines.values())[1].busy = "a backup"
    driver = FreedLate(hypervisor)
    driver.taken_again = taken_again
    fleet = Fleet(driver, Bounds(timeout=20.0, lock_timeout=0.8, on_error="continue"))
    done = fleet.apply([Target(name) for name in VMS], Present(Request(name="x")), dry_run=False)
    assert codes(done) == [None, "locked" if taken_again else None, None]
    assert [one.changed for one in done] == [True, not taken_again, True]
    if taken_again:
        assert "locked by a replication" in str(done[1].error)


class SlowCheck(FakeDriver):
    """A backend whose check of the actions in a dry run is slow."""

    def foresee(self, actions):  # type: ignore[no-untyped-def]
        time.sleep(1.5)
        return super().foresee(actions)


@pytest.mark.parametrize(("on_error", "others"), [("stop", "not_started"), ("continue", "timed_out")])
def test_busy_vm_has_a_row_in_check_mode_too(hypervisor: Hypervisor, on_error: str, others: str) -> None:
    list(hypervisor.machines.values())[1].busy = "a backup"
    fleet = Fleet(SlowCheck(hypervisor), Bounds(timeout=0.5, lock_timeout=60.0, on_error=on_error))
    done = fleet.apply([Target(name) for name in VMS], Present(Request(name="x")), dry_run=True)
    assert codes(done)[1] == "locked" and codes(done)[2] in (others, "timed_out")
    assert [one.changed for one in done] == [False] * 3


# other runs


def after(hypervisor: Hypervisor, request: str, call: Callable[[Machine], None]) -> None:
    """Let another run change web01 just before the first read after this request."""
    original = hypervisor.request
    armed: list[bool] = []

    def hooked(name: str) -> None:
        if armed == [True] and name == "snapshots":
            armed.append(False)
            call(next(iter(hypervisor.machines.values())))
        original(name)
        if name == request and not armed:
            armed.append(True)

    hypervisor.request = hooked  # type: ignore[method-assign]


def test_revert_succeeds_although_its_snapshot_is_removed_afterwards(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")))

    def remove(machine: Machine) -> None:
        FakeDriver(hypervisor)._delete(machine, next(iter(machine.snapshots.values())))

    after(hypervisor, "Revert web01", remove)
    (done,) = run(hypervisor, Reverted(Request(name="x")), vms=["web01"])
    assert (done.word, done.error, done.changed) == ("reverted", None, True)
    assert done.snapshot and done.snapshot.name == "x"
    assert any("removed by another run" in warning for warning in done.warnings)


def test_revert_succeeds_although_another_run_takes_a_snapshot_afterwards(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")))
    after(hypervisor, "Revert web01", lambda _machine: run(hypervisor, Present(Request(name="y")), vms=["web01"]) and None)
    (done,) = run(hypervisor, Reverted(Request(name="x")), vms=["web01"])
    assert (done.word, done.error) == ("reverted", None)


def test_revert_is_confirmed_although_another_run_stopped_the_vm_briefly(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fleet, "_PASSING_SECONDS", 0.3)
    run(hypervisor, Present(Request(name="x")))
    until: list[float] = []

    def stop(machine: Machine) -> None:
        machine.power, machine.busy = "paused", "another run's snapshot"
        until.append(time.monotonic() + 1.0)

    after(hypervisor, "Revert web01", stop)
    original = hypervisor.request

    def go_on(name: str) -> None:
        original(name)
        if until and time.monotonic() > until[0]:
            machine = next(iter(hypervisor.machines.values()))
            machine.power, machine.busy = "running", None

    hypervisor.request = go_on  # type: ignore[method-assign]
    (done,) = run(hypervisor, Reverted(Request(name="x", power="on")), vms=["web01"], lock_timeout=10.0)
    assert (done.word, done.error) == ("reverted", None)


def test_revert_is_confirmed_between_the_reverts_of_other_runs(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them stops and starts the VM, and while it is off, no operation is seen on it (libvirt 9.0)."""
    monkeypatch.setattr(_fleet, "_PASSING_SECONDS", 1.0)
    run(hypervisor, Present(Request(name="x")))
    began: list[float] = []
    after(hypervisor, "Revert web01", lambda _machine: began.append(time.monotonic()))
    original = hypervisor.request

    def others(name: str) -> None:
        original(name)
        machine = next(iter(hypervisor.machines.values()))
        over = time.monotonic() - began[0] if began else 9.0
        if began and over < 2.0:
            machine.power, machine.busy = "paused", "another run's revert"
        elif began and over < 2.6:
            machine.power, machine.busy = "off", None
        elif began:
            machine.power, machine.busy = "running", None

    hypervisor.request = others  # type: ignore[method-assign]
    (done,) = run(hypervisor, Reverted(Request(name="x", power="on")), vms=["web01"], lock_timeout=10.0)
    assert (done.word, done.error) == ("reverted", None)


def test_failed_prune_does_not_report_the_removal_by_another_run(hypervisor: Hypervisor) -> None:
    for name in ("w", "x"):
        run(hypervisor, Present(Request(name=name)), vms=["web01"])
    machine = next(iter(hypervisor.machines.values()))
    first, second = machine.snapshots.values()
    hypervisor.lies.add(len(hypervisor.actions) + 1)  # the first one stays listed
    original = hypervisor.request

    def other(name: str) -> None:
        original(name)
        action = hypervisor.actions[-1]
        if isinstance(action, Delete) and action.snapshot.id == second.id and second.id in machine.snapshots:
            FakeDriver(hypervisor)._delete(machine, second)

    hypervisor.request = other  # type: ignore[method-assign]
    (done,) = run(hypervisor, pruning(everything=True, confirm=1), vms=["web01"])
    assert list(machine.snapshots) == [first.id] and done.error and done.error.code == "unverified"
    row = outcome_pruned(done, ours=Owner(), now=datetime.now(timezone.utc))
    assert [one["removed"] for one in row["snapshots"] if one["id"] == second.id] == [False]


def test_only_one_of_two_prunes_reports_the_removal(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")), vms=["web01"])
    original = hypervisor.request

    def hooked(name: str) -> None:
        original(name)
        machine = next(iter(hypervisor.machines.values()))
        if name == "Delete web01" and machine.snapshots:
            FakeDriver(hypervisor)._delete(machine, next(iter(machine.snapshots.values())))

    hypervisor.request = hooked  # type: ignore[method-assign]
    (done,) = run(hypervisor, pruning(everything=True, confirm=1), vms=["web01"])
    assert (done.word, done.changed) == ("lost_race", False)
    row = outcome_pruned(done, ours=Owner(), now=datetime.now(timezone.utc))
    assert [one["removed"] for one in row["snapshots"]] == [False]
