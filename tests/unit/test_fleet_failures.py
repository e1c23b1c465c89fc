# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Failures on one of several VMs: untouched VMs, snapshots found again, and messages."""

from __future__ import annotations

import signal
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    BackendFailed,
    Locked,
    NotStarted,
    SafepointError,
    SnapshotExists,
    SnapshotNotFound,
    Unsupported,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Delete
from ansible_collections.safepoint.vm.plugins.module_utils._engine import executor, phases, undo
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import Stop

VMS = ["web01", "web02"]


@pytest.fixture
def hypervisor() -> Hypervisor:
    made = Hypervisor()
    for name in VMS:
        made.add(name)
    return made


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, phase in enumerate(("_CONFIRM_SECONDS", "_UNDO_SECONDS", "_LAST_LOOK_SECONDS"), start=1):
        monkeypatch.setattr(phases, phase, 0.3 * number)


def run(hypervisor: Hypervisor, plan: Plan, **bounds: object) -> list[Outcome]:
    settings = Bounds(**{"timeout": 60.0, "max_parallel": 2, **bounds})  # type: ignore[arg-type]
    fleet = Fleet(FakeDriver(hypervisor), settings, now=lambda: datetime.now(timezone.utc))
    return fleet.apply([Target(name) for name in VMS], plan, dry_run=False)


def codes(outcomes: list[Outcome]) -> list[str | None]:
    return [one.error.code if one.error else None for one in outcomes]


@pytest.mark.parametrize("refusal", [Locked("a backup has it"), SnapshotNotFound("somebody removed it")])
def test_locked_vm_is_not_retried_after_another_vm_failed(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    monkeypatch.setattr(executor, "_LOCK_PAUSE_SECONDS", 0.3)
    for name in ("older", "x"):
        run(hypervisor, Present(Request(name=name)))
    for machine in hypervisor.machines.values():
        machine.data = "written since"
    hypervisor.actions.clear()
    hypervisor.failures.update({1: BackendFailed("the disk is gone"), 2: refusal})  # type: ignore[dict-item]
    done = run(hypervisor, Reverted(Request(select=True)), on_error="stop")
    assert codes(done) == ["backend_failed", "not_started"]
    assert done[1].changed is False
    assert len(hypervisor.actions) == 2
    assert [machine.data for machine in hypervisor.machines.values()] == ["written since"] * 2


def test_each_vm_has_the_whole_lock_timeout(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_LOCK_PAUSE_SECONDS", 0.1)
    hypervisor.latency = 0.6  # the first one alone takes longer than lock_timeout
    hypervisor.failures[2] = Locked("a backup has it")
    assert codes(run(hypervisor, Present(Request(name="x")), lock_timeout=0.5, max_parallel=1)) == [None, None]


class FailsAfterwards(FakeDriver):
    """A backend that reports a failure for the second VM although the action succeeded."""

    def _run(self, job, number):  # type: ignore[no-untyped-def]
        end = super()._run(job, number)
        if job.action.vm.name == "web02" and isinstance(job.action, (Create, Delete)) and not self.hypervisor.lies:
            self.hypervisor.lies = {0}
            raise BackendFailed("the answer was lost")
        return end


def test_snapshot_created_despite_a_reported_failure_is_undone(hypervisor: Hypervisor) -> None:
    fleet = Fleet(FailsAfterwards(hypervisor), Bounds(timeout=5, on_error="undo"), now=lambda: datetime.now(timezone.utc))
    done = fleet.apply([Target(name) for name in VMS], Present(Request(name="x")), dry_run=False)
    assert codes(done) == ["undone", "backend_failed"]
    assert [one.changed for one in done] == [False, False]
    assert [machine.snapshots for machine in hypervisor.machines.values()] == [{}, {}]


@pytest.mark.parametrize(
    ("error", "theirs"),
    [
        (Locked("a backup has it"), ""),
        (Unsupported("the image has no room for it"), ""),
        (BackendFailed("no space"), "change=another"),
    ],
)
def test_snapshot_of_another_run_is_not_undone(hypervisor: Hypervisor, error: SafepointError, theirs: str) -> None:
    machine = list(hypervisor.machines.values())[1]
    original = hypervisor.request

    def request(name: str) -> None:
        original(name)
        if name == "Create web02":
            line = f"[safepoint v=1 owner=safepoint {theirs}".strip() + "]"
            FakeDriver(hypervisor)._create(machine, Create(machine.vm, "x", line, memory=False))

    hypervisor.request = request  # type: ignore[method-assign]
    hypervisor.failures[2] = error
    done = run(hypervisor, Present(Request(name="x")), on_error="undo", lock_timeout=0.0, max_parallel=1)
    assert codes(done) == ["undone", error.code]
    # After an error other than a refusal, the snapshot may be this run's own.
    assert done[1].changed is isinstance(error, BackendFailed)
    assert [one.name for one in machine.snapshots.values()] == ["x"]


def test_snapshot_removed_despite_a_reported_failure_is_a_change(hypervisor: Hypervisor) -> None:
    run(hypervisor, Present(Request(name="x")))
    fleet = Fleet(FailsAfterwards(hypervisor), Bounds(timeout=5), now=lambda: datetime.now(timezone.utc))
    done = fleet.apply([Target(name) for name in VMS], Absent(Request(name="x")), dry_run=False)
    assert codes(done) == [None, "backend_failed"]
    assert [one.changed for one in done] == [True, True]


def test_revert_that_fails_after_the_vm_is_back_is_a_change(hypervisor: Hypervisor) -> None:
    """For example, only the memory could not be restored, with an error that is a refusal elsewhere."""
    for machine in hypervisor.machines.values():
        machine.power = "off"
    for name in ("older", "newer"):
        run(hypervisor, Present(Request(name=name)))
    hypervisor.failures[5] = hypervisor.failures[6] = Unsupported("the storage of its memory is gone")
    first = hypervisor.machines["vm-1"]
    hypervisor.before_failing[5] = lambda: setattr(first, "current", next(iter(first.snapshots)))
    done = run(hypervisor, Reverted(Request(name="older")), max_parallel=1, on_error="continue")
    assert codes(done) == ["unsupported", "unsupported"]
    assert [one.changed for one in done] == [True, False]


# the undo of a locked VM


def test_undo_of_a_locked_vm_reports_the_remaining_snapshot_and_the_reason(
    hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_UNDO_SECONDS", 0.5)
    monkeypatch.setattr(undo, "_LOCK_PAUSE_SECONDS", 0.1)
    hypervisor.failures.update({number: Locked("a backup has it") for number in range(3, 1000)})
    hypervisor.failures[2] = BackendFailed("no space")
    done = run(hypervisor, Present(Request(name="x")), on_error="undo", max_parallel=1, timeout=1.0)
    assert codes(done) == ["backend_failed", "backend_failed"]
    assert [one.changed for one in done] == [True, False]
    assert "left behind" in done[0].warnings[0] and "a backup has it" in done[0].warnings[0]
    assert len(hypervisor.actions) > 4  # it was tried again


def test_signal_ends_the_wait_of_an_undo_for_a_lock(hypervisor: Hypervisor) -> None:
    stop = Stop()
    hypervisor.failures.update({2: BackendFailed("no space"), 3: Locked("a backup has it")})
    hypervisor.before_failing[3] = lambda: stop.tell(signal.SIGTERM)
    settings = Bounds(timeout=60.0, max_parallel=1, on_error="undo")
    fleet = Fleet(FakeDriver(hypervisor), settings, now=lambda: datetime.now(timezone.utc), stop=stop)
    done = fleet.apply([Target(name) for name in VMS], Present(Request(name="x")), dry_run=False)
    assert len(hypervisor.actions) == 3
    assert "SIGTERM" in str(done[0].error) and "a backup has it" in str(done[0].error) and done[0].changed


def test_job_not_started_before_the_signal_has_changed_nothing(hypervisor: Hypervisor) -> None:
    stop = Stop()
    hypervisor.before_failing[1] = lambda: stop.tell(signal.SIGTERM)
    hypervisor.failures[1] = NotStarted("it waited for a connection")
    settings = Bounds(timeout=60.0, max_parallel=1)
    fleet = Fleet(FakeDriver(hypervisor), settings, now=lambda: datetime.now(timezone.utc), stop=stop)
    done = fleet.apply([Target(name) for name in VMS], Present(Request(name="x")), dry_run=False)
    assert [(one.word, one.changed, one.error.code if one.error else None) for one in done] == [
        ("none", False, "not_started")
    ] * 2
    assert all("SIGTERM" in str(one.error) for one in done)


# a VM with several actions


def test_next_action_of_a_vm_is_not_started_after_the_timeout(hypervisor: Hypervisor) -> None:
    for name in ("one", "two", "three", "four", "five", "six"):
        run(hypervisor, Present(Request(name=name)))
    hypervisor.actions.clear()
    hypervisor.latency = 0.3  # of each request, and so of each action
    begun = time.monotonic()
    done = run(hypervisor, Reverted(Request(name="one", discard_newer=True)), timeout=1.5, max_parallel=2)
    assert time.monotonic() - begun < 6  # the complete call would have 4 reads and 12 actions
    assert set(codes(done)) <= {"timed_out", "not_started"} and "timed_out" in codes(done)
    assert len(hypervisor.actions) < 6
    first = next(one for one in done if one.done)
    assert (first.changed, first.word) == (True, "failed")  # the result is known: all started actions have ended
    assert "could remove snapshot" in str(first.error)


class FiveHoursAhead(FakeDriver):
    """A hypervisor whose clock differs from ours, so that the expiry in each new label must be corrected."""

    def now(self) -> datetime:
        return datetime.now(timezone.utc) - timedelta(hours=5)


def create_with_expiry(driver: FakeDriver, **bounds: object) -> list[Outcome]:
    fleet = Fleet(driver, Bounds(**{"timeout": 60.0, "max_parallel": 1, **bounds}))  # type: ignore[arg-type]
    return fleet.apply([Target(name) for name in VMS], Present(Request(name="x", expires=timedelta(hours=72))), dry_run=False)


def test_label_is_corrected_although_another_vm_failed(hypervisor: Hypervisor) -> None:
    hypervisor.failures[3] = BackendFailed("no space")  # after two creations
    done = create_with_expiry(FiveHoursAhead(hypervisor))
    assert codes(done) == ["backend_failed", None]
    assert [(one.word, one.changed) for one in done] == [("failed", True), ("created", True)]


class Slow(FiveHoursAhead):
    """A backend whose creates end with TimedOut at the deadline."""

    def _run(self, job, number):  # type: ignore[no-untyped-def]
        end = super()._run(job, number)
        if isinstance(job.action, Create):
            time.sleep(1.2)
        return end


def test_vm_with_a_new_snapshot_is_not_reported_as_not_started(hypervisor: Hypervisor) -> None:
    done = create_with_expiry(Slow(hypervisor), timeout=1.0, max_parallel=2)
    assert codes(done) == ["timed_out"] * 2
    assert [one.changed for one in done] == [True] * 2
    assert all("could describe snapshot" in str(one.error) for one in done)


@pytest.mark.parametrize("on_error", ["stop", "continue", "undo"])
def test_action_sent_but_not_ended_in_time_is_unverified_and_one_not_sent_is_not(
    hypervisor: Hypervisor, on_error: str, short_grace: None
) -> None:
    hypervisor.hangs.add(1)
    done = run(hypervisor, Present(Request(name="x")), timeout=0.5, max_parallel=1, on_error=on_error)
    assert codes(done) == ["timed_out", "not_started"]
    assert [(one.word, one.changed) for one in done] == [("unverified", True), ("none", False)]


def test_action_not_ended_in_time_and_undone_is_failed(hypervisor: Hypervisor) -> None:
    hypervisor.slow[1] = threading.Event()
    threading.Timer(1.5, hypervisor.slow[1].set).start()
    done = run(hypervisor, Present(Request(name="x")), timeout=0.5, max_parallel=1, on_error="undo")
    assert [(one.word, one.changed) for one in done] == [("failed", False), ("none", False)]
    assert [machine.snapshots for machine in hypervisor.machines.values()] == [{}, {}]


# races


def faster(hypervisor: Hypervisor) -> None:
    """Let another run take a snapshot with the same name on web01 just before this one."""
    machine = next(iter(hypervisor.machines.values()))
    original = hypervisor.request

    def request(name: str) -> None:
        original(name)
        if name == "Create web01" and not machine.snapshots:
            FakeDriver(hypervisor)._create(machine, Create(machine.vm, "x", "[safepoint v=1 owner=safepoint]", memory=False))

    hypervisor.request = request  # type: ignore[method-assign]


@pytest.mark.parametrize("unique_names", [True, False])
def test_run_that_lost_a_race_does_not_warn_about_its_own_snapshot(hypervisor: Hypervisor, unique_names: bool) -> None:
    hypervisor.unique_names = unique_names
    for machine in hypervisor.machines.values():
        machine.agent = "broken"
    faster(hypervisor)
    done = run(hypervisor, Present(Request(name="x", quiesce="prefer")))
    assert codes(done) == [None, None]
    assert [one.word for one in done] == ["lost_race", "created"]
    assert "failed to quiesce" in done[1].warnings[0]
    assert not any("quiesce" in warning for warning in done[0].warnings)


def test_run_that_loses_a_second_race_removes_its_second_snapshot_too(hypervisor: Hypervisor) -> None:
    hypervisor.unique_names = False
    machine = next(iter(hypervisor.machines.values()))
    faster(hypervisor)
    original = hypervisor.request
    removed: list[str] = []

    def prune(name: str) -> None:
        original(name)
        if name == "Delete web01" and not removed:
            removed.append(next(iter(machine.snapshots)))  # the one that was first; then yet another run is faster again
            FakeDriver(hypervisor)._delete(machine, machine.snapshots[removed[0]])

    hypervisor.request = prune  # type: ignore[method-assign]
    done = run(hypervisor, Present(Request(name="x")))
    assert removed and len(machine.snapshots) == 1
    assert [(one.word, one.changed, code) for one, code in zip(done, codes(done))] == [
        ("lost_race", False, None),
        ("created", True, None),
    ]


def test_warning_of_the_first_decision_is_given_once_after_a_race(hypervisor: Hypervisor) -> None:
    hypervisor.failures[1] = SnapshotExists("another run was faster")  # and has removed it since
    alone = run(hypervisor, Present(Request(name="x", quiesce="prefer")))
    assert codes(alone) == [None, None]
    assert alone[0].warnings == [one.replace("web02", "web01") for one in alone[1].warnings] != []
