# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many long calls in parallel: they keep the limits of the daemon, so that it does not close the connection."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import libvirt
import pytest
from lab import Lab
from libvirt_kit import Make, apply, is_busy, stopped, take, tiny_vms, until

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import NotReached, NotStarted
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Job
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import library
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import Stop

pytestmark = pytest.mark.qemu

# A daemon that disconnects a silent client after 6 seconds instead of 30, so that a test takes seconds.
HASTY = {"keepalive_interval": 2, "keepalive_count": 2}
HASTY_SECONDS = 6


@pytest.fixture(scope="module")
def hasty() -> Iterator[Lab]:
    with Lab(settings=HASTY) as lab:
        yield lab


def apply_all(uri: str, plan: Plan, vms: list[str], **bounds: t.Any) -> list[Outcome]:
    with contextlib.closing(LibvirtDriver(uri)) as driver:
        fleet = Fleet(driver, Bounds(**bounds), now=lambda: datetime.now(timezone.utc))
        return fleet.apply([Target(vm) for vm in vms], plan, dry_run=False)


def words(outcomes: list[Outcome]) -> list[str]:
    return [f"{one.word}: {one.error}" if one.error else one.word for one in outcomes]


@contextlib.contextmanager
def slowed(lab: t.Any, vms: list[str], seconds: float) -> Iterator[None]:
    """Let a snapshot of each of the VMs take this long, counted from its start in libvirt."""
    over = threading.Event()

    def hold(vm: str) -> None:
        with stopped(lab, vm):
            until(lambda: over.is_set() or is_busy(lab, vm), 600)
            over.wait(seconds)

    with ThreadPoolExecutor(len(vms)) as pool:
        holding = [pool.submit(hold, vm) for vm in vms]
        try:
            yield
        finally:
            over.set()
    for one in holding:
        one.result()


def test_calls_longer_than_the_keepalive_keep_the_connection(hasty: Lab) -> None:
    with tiny_vms(hasty) as make:
        vms = [make(f"slow{number}", paused=True) for number in range(7)]
        with slowed(hasty, vms, HASTY_SECONDS + 4):
            done = apply_all(hasty.uri, Present(Request(name="x")), vms)
        assert words(done) == ["created"] * 7


def test_daemon_without_free_connections_gets_fewer_parallel_calls() -> None:
    # It lets a second client wait until the first has disconnected.
    with Lab(settings={"max_clients": 1, "max_anonymous_clients": 1}) as lab, tiny_vms(lab) as make:
        vms = [make(f"few{number}") for number in range(9)]
        assert words(apply_all(lab.uri, Present(Request(name="x")), vms, timeout=60)) == ["created"] * 9


def test_refused_further_connection_is_not_needed(hasty: Lab) -> None:
    with tiny_vms(hasty) as make, contextlib.closing(LibvirtDriver(hasty.uri)) as driver:
        vms = [make(f"refused{number}") for number in range(9)]
        with alone(hasty):
            fleet = Fleet(driver, Bounds(timeout=60), now=lambda: datetime.now(timezone.utc))
            done = fleet.apply([Target(vm) for vm in vms], Present(Request(name="x")), dry_run=False)
        assert words(done) == ["created"] * 9


def started_again(lab: t.Any, driver: LibvirtDriver) -> None:
    """Replace the daemon that the driver is connected to by a new one."""
    lab.kill_daemon()
    lab.start_daemon()
    until(lambda: not driver._connection.isAlive())


def test_nothing_is_written_when_the_connection_for_reads_is_lost(lab: t.Any, tiny: Make) -> None:
    names = [tiny(f"unseen{number}") for number in range(3)]
    with contextlib.closing(LibvirtDriver(lab.uri)) as driver:
        vms = [vm for vm in driver.vms() if vm.name in names]
        driver.inspect(vms, ways=True)
        started_again(lab, driver)
        jobs = [driver.start(Create(vm, "x", "", memory=False)) for vm in vms]
        ends = [end for job in jobs for end in driver.wait([job], Deadline(60))]
    assert [type(end.error) for end in ends] == [NotReached] * 3
    assert [lab.connect().lookupByName(vm).snapshotListNames() for vm in names] == [[]] * 3


# calls that wait for a connection


@contextlib.contextmanager
def alone(lab: Lab) -> Iterator[None]:
    """Prevent new connections to the daemon during the block."""
    lab.socket.rename(lab.socket.with_suffix(".away"))
    try:
        yield
    finally:
        lab.socket.with_suffix(".away").rename(lab.socket)


@contextlib.contextmanager
def one_too_many(lab: Lab, make: Make, name: str) -> Iterator[tuple[LibvirtDriver, list[str], Callable[[], int]]]:
    """Return a driver with one connection, four VMs on which each write hangs, of which three may run, and the number of running writes."""
    names = [make(f"{name}{number}", paused=True) for number in range(4)]
    person = lab.connect()
    mine = [person.lookupByName(vm) for vm in names]

    def busy() -> int:
        return sum(one.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK for one in mine)

    with contextlib.closing(LibvirtDriver(lab.uri)) as driver:
        driver.inspect(driver.vms(), ways=True)
        with alone(lab), stopped(lab, *names):
            yield driver, names, busy


def started(driver: LibvirtDriver, names: list[str]) -> list[Job]:
    return [driver.start(Create(vm, "x", "", memory=False)) for vm in driver.vms() if vm.name in names]


def all_ended(driver: LibvirtDriver, jobs: list[Job]) -> None:
    while jobs:
        ended = [one.job for one in driver.wait(jobs, Deadline(60))]
        assert ended
        jobs = [job for job in jobs if job not in ended]


def settled(lab: Lab, names: list[str]) -> list[list[str]]:
    """Return the snapshots of the VMs when no operation is running on them."""
    until(lambda: not any(is_busy(lab, vm) for vm in names))
    return [lab.connect().lookupByName(vm).snapshotListNames() for vm in names]


@pytest.mark.parametrize("by", ["time", "signal"])
def test_call_waiting_for_a_connection_is_not_sent_after_timeout_or_signal(lab: Lab, tiny: Make, by: str) -> None:
    driver: LibvirtDriver
    with one_too_many(lab, tiny, by) as (driver, names, busy):
        driver.stop = Stop()
        driver.set_deadline(Deadline(3 if by == "time" else 300))
        jobs = started(driver, names)
        until(lambda: busy() == 3)
        if by == "signal":
            assert driver.wait(jobs, Deadline(0.5)) == []
            driver.stop.tell(signal.SIGTERM)
        (end,) = driver.wait(jobs, Deadline(60))
        assert isinstance(end.error, NotReached if by == "time" else NotStarted)
        assert busy() == 3  # the others are still running
    all_ended(driver, [job for job in jobs if job is not end.job])
    waited = end.job.action.vm.name
    assert settled(lab, names) == [[] if vm == waited else ["x"] for vm in names]


def test_call_waiting_for_a_closed_connection_ends_without_a_traceback(
    lab: Lab, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with one_too_many(lab, tiny, "closed") as (driver, names, busy):
        jobs = started(driver, names)
        until(lambda: busy() == 3)
        driver.close()
        (end,) = driver.wait(jobs, Deadline(60))
    assert isinstance(end.error, NotReached)
    all_ended(driver, [job for job in jobs if job is not end.job])
    assert raised == []


def test_refused_further_connection_is_retried(lab: Lab, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_REFUSED_SECONDS", 0.5)
    opened: list[str] = []
    real = libvirt.open
    monkeypatch.setattr(libvirt, "open", lambda uri: opened.append(uri) or real(uri))
    with one_too_many(lab, tiny, "again") as (driver, names, busy):
        jobs = started(driver, names)
        until(lambda: busy() == 3)
        until(lambda: len(opened) >= 4)  # the driver's own, and three that were refused
        assert busy() == 3
        lab.socket.with_suffix(".away").rename(lab.socket)
        try:
            until(lambda: busy() == 4)
        finally:
            lab.socket.rename(lab.socket.with_suffix(".away"))
    all_ended(driver, jobs)


# a connection that breaks during a write


@contextlib.contextmanager
def dies_after(lab: t.Any, monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> Iterator[None]:
    """Kill the daemon after its next call of this method, before the answer arrives; start it at the end of the block."""
    real = getattr(kind, method)
    left = [lab.kill_daemon]

    def call(*arguments: t.Any) -> t.Any:
        answer = real(*arguments)
        if left:
            left.pop()()
            arguments[0].connect().getHostname()  # fails, because the answer does not arrive
        return answer

    monkeypatch.setattr(kind, method, call)
    yield
    monkeypatch.undo()
    lab.start_daemon()


WRITES = {
    "take": (Present(Request(name="y")), libvirt.virDomain, "snapshotCreateXML", "take snapshot y"),
    "label": (Present(Request(name="x", labels={"step": "two"})), libvirt.virDomain, "snapshotCreateXML", "describe snapshot x"),
    "remove": (Absent(Request(name="x")), libvirt.virDomainSnapshot, "delete", "remove snapshot x"),
    "revert": (Reverted(Request(name="x")), libvirt.virDomain, "revertToSnapshot", "revert"),
}


@pytest.mark.parametrize("write", WRITES)
def test_write_with_a_lost_answer_is_unverified(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    plan, kind, method, said = WRITES[write]
    vm = tiny(f"lost{write}")
    take(lab.uri, vm, "x")
    with dies_after(lab, monkeypatch, kind, method):
        done = apply(lab.uri, plan, vm)
    assert done.error and (done.word, done.error.code, done.changed) == ("unverified", "unverified", True)
    assert f"libvirt was asked to {said}" in str(done.error) and " resume VM" in str(done.error)


def test_broken_connection_after_a_revert_reports_the_revert(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("lostafter", running=True)
    take(lab.uri, vm, "x")
    with dies_after(lab, monkeypatch, libvirt.virDomain, "destroy"):
        done = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert done.error and (done.error.code, done.changed) == ("unverified", True)
    assert "was reverted to x" in str(done.error)


def test_broken_connection_before_the_write_changes_nothing(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("notsent", paused=True)
    with dies_after(lab, monkeypatch, libvirt.virDomain, "jobInfo"):  # the last but one request before the snapshot
        done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error and (done.error.code, done.changed) == ("connection_failed", False)
    assert lab.connect().lookupByName(vm).snapshotListNames() == []


@pytest.mark.slow
@pytest.mark.parametrize("version", ["lab", "new_lab"])
def test_twenty_snapshots_of_forty_seconds_are_all_taken(version: str, request: pytest.FixtureRequest) -> None:
    lab = request.getfixturevalue(version)
    with tiny_vms(lab) as make:
        vms = [make(f"many{number:02}", paused=True) for number in range(20)]
        served: list[float] = []

        def someone_else() -> None:
            # A call without 'high priority', for which the daemon has extra workers.
            until(lambda: sum(is_busy(lab, vm) for vm in vms) >= 16, 120)
            began = time.monotonic()
            lab.connect().getCapabilities()
            served.append(time.monotonic() - began)

        with slowed(lab, vms, 40), ThreadPoolExecutor(1) as pool:
            other = pool.submit(someone_else)
            done = apply_all(lab.uri, Present(Request(name="x")), vms, max_parallel=64)
            other.result()
        assert words(done) == ["created"] * 20
        assert served[0] < 28
        for vm in vms:
            assert lab.connect().lookupByName(vm).snapshotListNames() == ["x"]
