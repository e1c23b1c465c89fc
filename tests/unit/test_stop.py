# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The effect of a signal at each point of a call."""

from __future__ import annotations

import os
import signal
import threading
import typing as t
from collections.abc import Iterator, Mapping, Sequence

import pytest
from fake import FakeDriver, Hypervisor

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed, Locked, SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Configuration, Snapshot, Target, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Delete, Job
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import Stop, Stopped

VMS = ["web01", "web02", "web03"]


class Told(FakeDriver):
    """Sends this process a SIGTERM in the middle of a call."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        super().__init__(hypervisor)
        self.at_start: type[t.Any] | None = None
        """The kind of action at which the signal is sent."""
        self.at_look = 0
        """The number of the read at which the signal is sent; this read, and with ``mute`` all later ones, never end."""
        self.mute = False
        self.at_configurations = 0
        """The number of the read of configurations at which the signal is sent."""
        self._looks = 0
        self._read = 0
        self._never = threading.Event()

    def start(self, action: Action) -> Job:
        if self.at_start is not None and isinstance(action, self.at_start):
            self.at_start = None
            os.kill(os.getpid(), signal.SIGTERM)
        return super().start(action)

    def snapshots(self, vms: Sequence[Vm], *, sizes: bool = False) -> Mapping[str, tuple[Snapshot, ...] | SafepointError]:
        self._looks += 1
        if self._looks == self.at_look:
            os.kill(os.getpid(), signal.SIGTERM)
        if self._looks == self.at_look or (self.mute and self.at_look and self._looks > self.at_look):
            self._never.wait(60)
        return super().snapshots(vms, sizes=sizes)

    def configurations(
        self, wanted: Sequence[tuple[Vm, Snapshot | None]]
    ) -> Mapping[tuple[str, str | None], Configuration | SafepointError]:
        self._read += 1
        if self._read == self.at_configurations:
            os.kill(os.getpid(), signal.SIGTERM)
            self._never.wait(60)
        return super().configurations(wanted)


@pytest.fixture
def hypervisor() -> Hypervisor:
    made = Hypervisor()
    for name in VMS:
        made.add(name)
    return made


@pytest.fixture
def stop() -> Iterator[Stop]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in before:
        signal.signal(number, handler)


def run(driver: FakeDriver, stop: Stop, plan: Plan | None = None, *, drift: bool = False, **bounds: t.Any) -> list[Outcome]:
    fleet = Fleet(driver, Bounds(**{"timeout": 60.0, "max_parallel": 1, **bounds}), stop=stop)
    with stop.breakable():
        return fleet.apply([Target(name) for name in VMS], plan or Present(Request(name="x")), dry_run=False, drift=drift)


def codes(outcomes: list[Outcome]) -> list[str | None]:
    return [one.error.code if one.error else None for one in outcomes]


def names(hypervisor: Hypervisor) -> list[list[str]]:
    return [[one.name for one in machine.snapshots.values()] for machine in hypervisor.machines.values()]


def test_signal_during_reads_ends_the_call_at_once(hypervisor: Hypervisor, stop: Stop) -> None:
    driver = Told(hypervisor)
    driver.at_look = 1
    with pytest.raises(Stopped):
        run(driver, stop)
    assert stop.by == "SIGTERM" and hypervisor.actions == []


def test_signal_waits_for_jobs_that_are_about_to_end(hypervisor: Hypervisor, stop: Stop) -> None:
    driver = Told(hypervisor)
    driver.at_start = object
    done = run(driver, stop)
    assert codes(done) == [None, "not_started", "not_started"]
    assert [(one.word, one.changed) for one in done] == [("created", True), ("none", False), ("none", False)]
    assert names(hypervisor) == [["x"], [], []]


def test_job_still_running_after_a_signal_is_unverified_and_not_undone(hypervisor: Hypervisor, stop: Stop) -> None:
    driver = Told(hypervisor)
    driver.at_start = object
    hypervisor.hangs.add(1)
    done = run(driver, stop, on_error="undo")
    assert codes(done) == ["interrupted", "not_started", "not_started"]
    assert (done[0].word, done[0].changed) == ("unverified", True)
    assert len(hypervisor.actions) == 1


@pytest.mark.parametrize("mute", [False, True])
def test_signal_during_the_confirmation_causes_one_short_read(hypervisor: Hypervisor, stop: Stop, mute: bool) -> None:
    driver = Told(hypervisor)
    driver.at_look, driver.mute = 2, mute
    done = run(driver, stop)
    assert codes(done) == (["interrupted"] * 3 if mute else [None] * 3)
    assert all(one.changed for one in done)


@pytest.mark.parametrize(("number", "raised"), [(1, True), (2, False)])
def test_signal_during_the_last_read_of_configurations_keeps_the_rows(
    hypervisor: Hypervisor, stop: Stop, number: int, raised: bool
) -> None:
    run(FakeDriver(hypervisor), stop)
    driver = Told(hypervisor)
    driver.at_configurations = number
    hypervisor.actions.clear()
    try:
        done = run(driver, stop, Reverted(Request(name="x")), drift=True)
    except Stopped:
        assert raised and hypervisor.actions == []
        return
    assert not raised and stop.by == "SIGTERM"
    assert [(one.word, one.changed, one.error) for one in done] == [("reverted", True, None)] * 3
    assert all("was not read" in one.warnings[-1] for one in done)


def test_signal_after_the_writes_keeps_the_rows(hypervisor: Hypervisor, stop: Stop) -> None:
    fleet = Fleet(FakeDriver(hypervisor), Bounds(timeout=60.0), stop=stop)
    with stop.breakable():
        done = fleet.apply([Target(name) for name in VMS], Present(Request(name="x")), dry_run=False)
        signal.raise_signal(signal.SIGTERM)
    assert [one.changed for one in done] == [True] * 3


def test_signal_during_undo_starts_no_more_removals_and_reports_the_rest(hypervisor: Hypervisor, stop: Stop) -> None:
    driver = Told(hypervisor)
    driver.at_start = Delete
    hypervisor.failures[3] = BackendFailed("no space left on device")
    done = run(driver, stop, on_error="undo")
    assert codes(done) == ["undone", "backend_failed", "backend_failed"]
    assert "left behind: the module was stopped by SIGTERM" in done[1].warnings[-1]
    assert [one.changed for one in done] == [False, True, False]
    assert names(hypervisor) == [[], ["x"], []]


def test_signal_ends_the_wait_for_a_lock(hypervisor: Hypervisor, stop: Stop) -> None:
    driver = Told(hypervisor)
    driver.at_start = object
    hypervisor.failures[1] = Locked("a backup has it")
    done = run(driver, stop, max_parallel=3)
    assert codes(done) == ["locked", "not_started", "not_started"]
    assert [one.changed for one in done] == [False] * 3
    assert len(hypervisor.actions) == 1


def test_second_signal_has_no_effect(stop: Stop) -> None:
    reached = []

    def work() -> None:
        with stop.breakable():
            with stop.held():
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                reached.append(stop.by)
            reached.append("the end of held()")

    with pytest.raises(Stopped):
        work()
    signal.raise_signal(signal.SIGTERM)
    assert reached == ["SIGINT"]
