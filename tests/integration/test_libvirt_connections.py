# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many long calls at the same time: the daemon's limits are kept, so that it does not close the connection on us."""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import libvirt
import pytest
from lab import Lab
from libvirt_kit import Make, apply, is_busy, stopped, take, tiny_vms, until

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Create
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import NotReached
from ansible_collections.safepoint.vm.plugins.module_utils._fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Absent, Present, Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._work import Bounds

pytestmark = pytest.mark.qemu

# A daemon that gives a silent client up after 3 seconds, where the default is 30, so that a test takes seconds.
HASTY = {"keepalive_interval": 1, "keepalive_count": 2}


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
    """A snapshot of each of the VMs takes so long, from the moment on in which libvirt begins with it."""
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


def test_calls_that_take_longer_than_the_keepalive_lose_no_connection(hasty: Lab) -> None:
    with tiny_vms(hasty) as make:
        vms = [make(f"slow{number}", paused=True) for number in range(7)]
        with slowed(hasty, vms, 6):
            done = apply_all(hasty.uri, Present(Request(name="x")), vms)
        assert words(done) == ["created"] * 7


def test_a_daemon_that_has_no_place_for_a_further_connection_gets_fewer_calls_at_a_time() -> None:
    # It lets a second client wait until the first has left.
    with Lab(settings={"max_clients": 1, "max_anonymous_clients": 1}) as lab, tiny_vms(lab) as make:
        vms = [make(f"few{number}") for number in range(9)]
        assert words(apply_all(lab.uri, Present(Request(name="x")), vms, timeout=60)) == ["created"] * 9


def test_a_further_connection_that_is_refused_is_done_without(hasty: Lab) -> None:
    with tiny_vms(hasty) as make, contextlib.closing(LibvirtDriver(hasty.uri)) as driver:
        vms = [make(f"refused{number}") for number in range(9)]
        hasty.socket.rename(hasty.socket.with_suffix(".away"))
        try:
            fleet = Fleet(driver, Bounds(timeout=60), now=lambda: datetime.now(timezone.utc))
            done = fleet.apply([Target(vm) for vm in vms], Present(Request(name="x")), dry_run=False)
        finally:
            hasty.socket.with_suffix(".away").rename(hasty.socket)
        assert words(done) == ["created"] * 9


def started_again(lab: t.Any, driver: LibvirtDriver) -> None:
    """Let the daemon be another one than the one the driver is connected to."""
    lab.kill_daemon()
    lab.start_daemon()
    until(lambda: not driver._connection.isAlive())


def test_nothing_is_written_when_the_connection_for_the_looks_is_gone(lab: t.Any, tiny: Make) -> None:
    names = [tiny(f"unseen{number}") for number in range(3)]
    with contextlib.closing(LibvirtDriver(lab.uri)) as driver:
        vms = [vm for vm in driver.vms() if vm.name in names]
        driver.inspect(vms, ways=True)
        started_again(lab, driver)
        jobs = [driver.start(Create(vm, "x", "", memory=False)) for vm in vms]
        ends = [end for job in jobs for end in driver.wait([job], Deadline(60))]
    assert [type(end.error) for end in ends] == [NotReached] * 3
    assert [lab.connect().lookupByName(vm).snapshotListNames() for vm in names] == [[]] * 3


# a connection that breaks during a write


@contextlib.contextmanager
def dies_after(lab: t.Any, monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> Iterator[None]:
    """Kill the daemon when it has done the next call of this method, before the answer reaches us; start it at the end of the block."""
    real = getattr(kind, method)
    left = [lab.kill_daemon]

    def call(*arguments: t.Any) -> t.Any:
        answer = real(*arguments)
        if left:
            left.pop()()
            arguments[0].connect().getHostname()  # fails, as the answer would not have come
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
def test_a_write_whose_answer_is_lost_is_unverified(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    plan, kind, method, said = WRITES[write]
    vm = tiny(f"lost{write}")
    take(lab.uri, vm, "x")
    with dies_after(lab, monkeypatch, kind, method):
        done = apply(lab.uri, plan, vm)
    assert done.error and (done.word, done.error.code, done.changed) == ("unverified", "unverified", True)
    assert f"libvirt was asked to {said}" in str(done.error) and "virsh resume" in str(done.error)


def test_a_revert_after_which_the_connection_breaks_says_that_the_vm_was_reverted(
    lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = tiny("lostafter", running=True)
    take(lab.uri, vm, "x")
    with dies_after(lab, monkeypatch, libvirt.virDomain, "destroy"):
        done = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert done.error and (done.error.code, done.changed) == ("unverified", True)
    assert "was reverted to x" in str(done.error)


def test_a_connection_that_breaks_before_the_write_has_changed_nothing(
    lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = tiny("notsent", paused=True)
    with dies_after(lab, monkeypatch, libvirt.virDomain, "jobInfo"):  # the last request before a snapshot is taken, but one
        done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error and (done.error.code, done.changed) == ("connection_failed", False)
    assert lab.connect().lookupByName(vm).snapshotListNames() == []


@pytest.mark.slow
@pytest.mark.parametrize("version", ["lab", "new_lab"])
def test_twenty_vms_whose_snapshots_take_forty_seconds_are_all_taken(version: str, request: pytest.FixtureRequest) -> None:
    lab = request.getfixturevalue(version)
    with tiny_vms(lab) as make:
        vms = [make(f"many{number:02}", paused=True) for number in range(20)]
        served: list[float] = []

        def someone_else() -> None:
            # A call that is no 'high priority' one, for which the daemon keeps extra workers.
            until(lambda: sum(is_busy(lab, vm) for vm in vms) >= 16, 120)
            began = time.monotonic()
            lab.connect().getCapabilities()
            served.append(time.monotonic() - began)

        with slowed(lab, vms, 40), ThreadPoolExecutor(1) as pool:
            other = pool.submit(someone_else)
            done = apply_all(lab.uri, Present(Request(name="x")), vms, max_parallel=64)
            other.result()
        assert words(done) == ["created"] * 20
        assert served[0] < 20
        for vm in vms:
            assert lab.connect().lookupByName(vm).snapshotListNames() == ["x"]
