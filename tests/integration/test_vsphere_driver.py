# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The driver with expired vCenter sessions, with parallel runs, and its number of requests."""

from __future__ import annotations

import itertools
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from kit import at_once, only
from pyVmomi import vim
from server import VCenter
from vsphere_backend import VsphereBackend

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Vm, VmState
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Delete, Finished, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere import actions
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

pytestmark = pytest.mark.vcenter

_numbers = itertools.count(1)


@pytest.fixture
def vm(vcenter: t.Any) -> str:
    name = f"app{next(_numbers):02d}"
    vcenter.make_vms({"name": name, "power": "poweredOn"})
    return name


@pytest.fixture
def backend(vcenter: t.Any) -> Iterator[VsphereBackend]:
    before = vcenter.state()["settings"]
    backend = VsphereBackend(vcenter)
    yield backend
    vcenter.set(**before)
    backend.close()


def test_session_that_expires_during_a_wait_is_replaced(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    vcenter.set(task_time=2)
    threading.Timer(1, vcenter.expire_sessions).start()
    done = only(backend.run(Present(Request(name="x")), vm))
    assert (done.word, done.error) == ("created", None)


def test_login_refused_during_a_wait_is_not_reported_as_a_refused_call(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    """The task continues, and with this code the engine looks for its result."""
    vcenter.set(task_time=2)

    def lock_out() -> None:
        vcenter.fault("Login", "InvalidLogin", when="call")
        vcenter.expire_sessions()

    threading.Timer(1, lock_out).start()
    done = only(backend.run(Present(Request(name="x")), vm))
    vcenter.clear_faults()
    assert done.error and (done.error.code, done.word) == ("unverified", "unverified")
    assert "result is unknown" in str(done.error) and "refused the login" in str(done.error)


def test_server_that_ends_every_session_is_not_flooded_with_logins(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    """Like a vCenter with a broken session service: it accepts each login and forgets it a moment later."""
    vcenter.set(task_time=5)
    over = threading.Event()

    def forget() -> None:
        Deadline(30).poll("the task", lambda: vcenter.counters()["methods"].get("WaitForUpdatesEx") or None, first=0.05)
        while not over.wait(0.002):
            vcenter.expire_sessions()

    vcenter.reset_counters()
    thread = threading.Thread(target=forget)
    thread.start()
    done = only(backend.run(Present(Request(name="x")), vm, timeout=4.0))
    over.set()
    thread.join()
    logins = vcenter.counters()["methods"]["Login"]
    assert done.error and done.word == "unverified"
    assert logins < 40  # with the attempts of other requests, whose pauses grow to 2 seconds


@pytest.mark.parametrize("times", [1, 3])
def test_interrupted_wait_is_repeated(backend: VsphereBackend, vcenter: t.Any, vm: str, times: int) -> None:
    vcenter.set(task_time=1)
    for number in range(1, times + 1):
        vcenter.fault("WaitForUpdatesEx", "Disconnect", nth=number, when="call")
    done = only(backend.run(Present(Request(name="x")), vm))
    vcenter.clear_faults()
    assert (done.word, done.error) == ("created", None)


def ends_of_two_tasks(
    backend: VsphereBackend, vcenter: t.Any, between: t.Callable[[], object], *, timeout: float, seconds: float
) -> list[SafepointError | None]:
    """Create snapshots of two VMs, the second one after ``between``. Return the errors of those that end within ``seconds``."""
    names = [f"app{next(_numbers):02d}" for _each in range(2)]
    vcenter.make_vms(*({"name": name, "power": "poweredOn"} for name in names))
    driver = backend.open()
    driver.set_deadline(Deadline(timeout))
    vms = [vm for vm in driver.find(names).values() if isinstance(vm, Vm)]
    vcenter.reset_counters()
    jobs = [driver.start(Create(vms[0], "x", "text", memory=False))]
    between()
    jobs.append(driver.start(Create(vms[1], "x", "text", memory=False)))
    ended: list[Finished] = []
    deadline = Deadline(seconds)
    while len(ended) < len(jobs) and deadline.left() > 0:
        ended += driver.wait([job for job in jobs if job not in [end.job for end in ended]], deadline)
    driver.close()
    return [end.error for end in ended]


def after_calls(vcenter: t.Any, method: str, number: int = 1) -> None:
    Deadline(30).poll(method, lambda: vcenter.counters()["methods"].get(method, 0) >= number or None, first=0.02)


def test_end_of_a_task_missing_in_the_list_is_detected(backend: VsphereBackend, vcenter: t.Any) -> None:
    """The list is lost while a second task is added, and so is the answer to the first attempt to create a new list."""
    vcenter.set(queue_time=3)  # without news from any list
    vcenter.fault("ModifyListView", "Disconnect", nth=1, when="call")
    vcenter.fault("CreateListView", "Disconnect", nth=2, when="call")
    # The first wait has started, and the second task is added to it.
    errors = ends_of_two_tasks(backend, vcenter, lambda: after_calls(vcenter, "WaitForUpdatesEx"), timeout=30, seconds=15)
    tried = [(rule["method"], rule["calls"] >= rule["nth"]) for rule in vcenter.state()["faults"]]
    vcenter.clear_faults()
    assert tried == [("ModifyListView", True), ("CreateListView", True)]
    assert errors == [None, None]


def test_task_that_starts_while_the_list_is_created_is_not_forgotten(backend: VsphereBackend, vcenter: t.Any) -> None:
    """The second thread also creates a list, with both tasks, and this fails; then the first one has created its own, without the second task."""
    vcenter.set(call_delays={"CreateListView": 1.0, "CreateFilter": 0.2})
    vcenter.outage("502", nth=2, method="CreateListView")
    errors = ends_of_two_tasks(backend, vcenter, lambda: after_calls(vcenter, "CreateListView"), timeout=100, seconds=20)
    vcenter.end_outage()
    assert errors == [None, None]


@pytest.mark.parametrize("timeout", [8.0, pytest.param(100.0, marks=pytest.mark.slow)])
def test_lost_update_is_read_again(backend: VsphereBackend, vcenter: t.Any, timeout: float) -> None:
    """The first poll reports that the tasks run, and the next ones report nothing."""
    vcenter.set(task_time=0.5, lose_updates=True)
    errors = ends_of_two_tasks(backend, vcenter, lambda: None, timeout=timeout, seconds=min(timeout, 45.0))
    vcenter.set(lose_updates=False)
    assert errors == [None, None]


def test_call_with_a_lost_answer_is_looked_up(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    vcenter.fault("CreateSnapshotEx_Task", "Disconnect", when="after", nth=1)
    done = only(backend.run(Present(Request(name="x")), vm, on_error="undo"))
    vcenter.clear_faults()
    assert (done.word, done.error, done.changed) == ("created", None, True)
    assert [one["name"] for one in vcenter.vm(vm)["snapshots"]] == ["x"]


@pytest.mark.parametrize(("on_error", "changed", "left"), [("stop", True, ["x"]), ("undo", False, [])])
def test_call_not_looked_up_in_time_is_unverified_and_undone_when_vcenter_is_back(
    backend: VsphereBackend, vcenter: t.Any, vm: str, on_error: str, changed: bool, left: list[str]
) -> None:
    vcenter.fault("CreateSnapshotEx_Task", "Disconnect", when="after", nth=1)
    done = only(
        backend.run(
            Present(Request(name="x")),
            vm,
            timeout=4.0,
            on_error=on_error,
            meanwhile=lambda: vcenter.outage("gone", method="RetrieveProperties*", seconds=6),
        )
    )
    vcenter.clear_faults()
    vcenter.end_outage()
    assert done.error and (done.error.code, done.word, done.changed) == ("unverified", "unverified", changed)
    assert "take snapshot x" in str(done.error) and "its answer was lost" in str(done.error)
    assert [one["name"] for one in vcenter.vm(vm)["snapshots"]] == left


@pytest.mark.parametrize(("kind", "word"), [("504", "reverted"), ("504_before", "unverified"), ("502_before", "reverted")])
def test_revert_is_sent_once_although_a_proxy_timed_out(
    backend: VsphereBackend, vcenter: t.Any, vm: str, monkeypatch: pytest.MonkeyPatch, kind: str, word: str
) -> None:
    """It may run later than any other lost request, and a second revert would discard data written after the first."""
    monkeypatch.setattr(actions, "_SLOW_CALM_SECONDS", 8.0)
    backend.take(vm, "x")
    vcenter.set_vm(vm, data="written since")
    vcenter.reset_counters()
    vcenter.outage(kind, method="RevertToSnapshot_Task", seconds=4.5)
    done = backend.revert(vm, "x")
    sent = vcenter.end_outage()
    assert (done.word, done.error.code if done.error else None) == (word, "unverified" if word == "unverified" else None)
    assert sent == (2 if kind == "502_before" else 1)
    assert (vcenter.vm(vm)["data"] == "") == (word == "reverted")


def forgetting(vcenter: VCenter, method: str, *, undone: bool, sessions: bool) -> t.Callable[[], None]:
    """Simulate a restart of vCenter: when the first task of this method has started, vCenter forgets it. Return a function that waits for this."""

    def forget() -> None:
        Deadline(60).poll("the task", lambda: vcenter.counters()["methods"].get(method) or None, first=0.02)
        vcenter.forget_tasks(undone=undone)
        if sessions:
            vcenter.expire_sessions()
        vcenter.set(task_time=0)

    vcenter.set(task_time=600)
    vcenter.reset_counters()
    thread = threading.Thread(target=forget)
    thread.start()
    return thread.join


@pytest.mark.parametrize("sessions", [True, False], ids=["with the sessions", "alone"])
@pytest.mark.parametrize(
    ("what", "undone", "word", "sent"),
    [
        ("create", False, "created", 1),
        ("create", True, "created", 2),
        ("remove", False, "removed", 1),
        ("remove", True, "removed", 2),
        ("revert", False, "reverted", 1),
        # It may have been done before, so a second one might discard data written since.
        ("revert", True, "unverified", 1),
    ],
)
def test_task_forgotten_by_vcenter_is_looked_up_at_the_vm(
    backend: VsphereBackend,
    vcenter: t.Any,
    vm: str,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    undone: bool,
    word: str,
    sent: int,
    sessions: bool,
) -> None:
    monkeypatch.setattr(actions, "_SLOW_CALM_SECONDS", 3.0)
    names = ["old", "new"] if what == "revert" else ["old"] if what == "remove" else []
    for name in names:
        backend.take(vm, name)
    vcenter.set_vm(vm, data="written since")
    method, plan = {
        "create": ("CreateSnapshotEx_Task", Present(Request(name="x"))),
        "remove": ("RemoveSnapshot_Task", Absent(Request(name="old"))),
        "revert": ("RevertToSnapshot_Task", Reverted(Request(name="old"))),
    }[what]
    done_forgetting = forgetting(vcenter, method, undone=undone, sessions=sessions)
    done = only(backend.run(plan, vm))
    done_forgetting()
    assert vcenter.counters()["methods"][method] == sent
    assert (done.word, done.error.code if done.error else None) == (word, "unverified" if word == "unverified" else None)
    left = {"create": ["x"], "remove": [], "revert": ["old", "new"]}[what]
    assert [one["name"] for one in vcenter.vm(vm)["snapshots"]] == left
    assert (vcenter.vm(vm)["data"] == "") == (word == "reverted")


def test_write_is_not_sent_again_after_the_timeout(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    """The engine gives the driver more time for the undo and the last read; jobs that were started before must not use it."""
    driver = backend.open()
    found = driver.find([vm])[vm]
    assert isinstance(found, Vm)
    vcenter.outage("lost_before", method="CreateSnapshotEx_Task")
    driver.set_deadline(Deadline(2))
    job = driver.start(Create(found, "x", "text", memory=False))
    time.sleep(0.5)
    driver.set_deadline(Deadline(30))
    (end,) = driver.wait([job], Deadline(20))
    assert vcenter.end_outage() == 1
    driver.close()
    assert end.error and end.error.code == "unverified"
    assert vcenter.vm(vm)["snapshots"] == []


def test_write_without_a_connection_is_sent_when_there_is_one(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    done = only(
        backend.run(Present(Request(name="x")), vm, meanwhile=lambda: vcenter.outage("gone", method="CreateSnapshot*", seconds=2))
    )
    assert vcenter.end_outage() == 2
    assert (done.word, done.error) == ("created", None)
    assert len(vcenter.vm(vm)["snapshots"]) == 1


def begun_to_revert(vcenter: VCenter, vm: str, backend: VsphereBackend, then: t.Callable[[t.Any], object]) -> Outcome:
    """Return the result of a revert if a user acts between its revert and its start of the VM."""
    backend.take(vm, "x")
    vcenter.set_vm(vm, data="written since")
    vcenter.hold("PowerOnVM_Task", 2)
    machine = vim.VirtualMachine(vcenter.vm(vm)["moid"], backend.person._stub)

    def person() -> None:
        Deadline(30).poll("the revert", lambda: vcenter.vm(vm)["data"] == "" or None, first=0.05)
        then(machine)
        vcenter.hold("*", 0)

    thread = threading.Thread(target=person)
    thread.start()
    done = backend.revert(vm, "x", power="on")
    thread.join()
    return done


def test_start_after_a_revert_waits_for_the_removal_of_its_snapshot(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    vcenter.set(task_times={"RemoveSnapshot_Task": 2})
    done = begun_to_revert(vcenter, vm, backend, lambda machine: machine.snapshot.currentSnapshot.RemoveSnapshot_Task(False))
    assert (done.word, done.error, done.changed) == ("reverted", None, True)
    seen = vcenter.vm(vm)
    assert (seen["power"], seen["data"], seen["snapshots"]) == ("poweredOn", "", [])


def test_start_by_another_run_counts_as_done(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    done = begun_to_revert(vcenter, vm, backend, lambda _machine: vcenter.set_vm(vm, power="poweredOn"))
    assert (done.word, done.error) == ("reverted", None)
    assert vcenter.vm(vm)["power"] == "poweredOn"


def test_failed_start_after_a_revert_is_not_reported_as_not_started(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    backend.take(vm, "x")
    vcenter.fault("PowerOnVM_Task", "TaskInProgress", when="call", vm=vm)
    done = only(backend.run(Reverted(Request(name="x", power="on")), vm, lock_timeout=1.0))
    vcenter.clear_faults()
    assert done.error and (done.error.code, done.word, done.changed) == ("backend_failed", "failed", True)
    assert f"{vm} was reverted to x, but its start failed" in str(done.error)


def test_no_session_is_left_after_the_timeout(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    vcenter.set(task_time=3)
    before = vcenter.logins()
    done = only(backend.run(Present(Request(name="x")), vm, timeout=1.0, on_error="stop"))
    assert done.error and done.error.code == "timed_out"
    time.sleep(3)  # the running wait ends, and must not log in again
    assert vcenter.logins() == before


def test_suspended_vm_is_suspended_after_a_revert(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    vcenter.set_vm(vm, power="suspended")
    backend.take(vm, "x")
    assert backend.revert(vm, "x").error is None


def test_kind_is_refused_for_an_existing_snapshot_too(backend: VsphereBackend, vm: str) -> None:
    backend.take(vm, "x")
    done = only(backend.run(Present(Request(name="x", kind="internal")), vm))
    assert done.error and done.error.code == "unsupported" and "remove the option kind" in str(done.error)


def test_two_simultaneous_runs_create_one_snapshot(backend: VsphereBackend, vcenter: t.Any, vm: str) -> None:
    vcenter.set(busy="queue")
    vcenter.hold("CreateSnapshot*", 3)  # all have read, and none has created
    done = at_once(3, lambda: only(backend.run(Present(Request(name="race")), vm)))
    assert [one.error for one in done] == [None] * 3
    assert sorted(one.word for one in done) == ["created", "lost_race", "lost_race"]
    assert sorted(one.changed for one in done) == [False, False, True]
    assert [one["name"] for one in vcenter.vm(vm)["snapshots"]] == ["race"]


@pytest.fixture(scope="module")
def crowd() -> Iterator[VCenter]:
    with VCenter(vms=500) as vcenter:
        yield vcenter


def counted(vcenter: VCenter, work: t.Callable[[VsphereBackend], object]) -> int:
    backend = VsphereBackend(vcenter)
    vcenter.reset_counters()
    work(backend)
    requests: int = vcenter.counters()["requests"]
    backend.close()
    return requests


def test_number_of_requests_hardly_grows_with_the_number_of_vms(crowd: VCenter) -> None:
    vms = [f"DC0_C0_RP0_VM{number}" for number in range(500)]
    take = Present(Request(name="x"))

    def create(backend: VsphereBackend) -> None:
        done = backend.run(take, *vms, max_parallel=32)
        assert {one.word for one in done} == {"created"}

    assert counted(crowd, create) <= 600
    assert counted(crowd, lambda backend: backend.run(take, *vms)) <= 10
    assert counted(crowd, lambda backend: backend.looks()) <= 10
    assert counted(crowd, lambda backend: backend.run(Present(Request(name="y")), vms[0])) <= 18


def test_paged_inventory_is_read_completely(crowd: VCenter) -> None:
    crowd.set(page_objects=100)
    try:
        seen: list[t.Any] = []
        requests = counted(crowd, lambda backend: seen.extend(backend.looks()))
    finally:
        crowd.set(page_objects=0)
    assert len({one.vm.id for one in seen}) == 500
    assert all(next(iter(one.after.snapshots)).name == "x" for one in seen)
    # Four more pages each: the VMs (and a fifth for the folders), their snapshots, their states, their latest tasks.
    assert requests <= 10 + 5 + 3 * 4


@pytest.fixture(scope="module")
def stock() -> Iterator[VCenter]:
    with VCenter(vms=2, stock=True) as vcenter:
        yield vcenter


def test_unmodified_simulator_works_within_its_limits(stock: VCenter) -> None:
    """Without CreateSnapshotEx_Task and RenameSnapshot, and with flags that no VM supports snapshots."""
    backend = VsphereBackend(stock)
    driver = backend.open()
    (vm, _other) = driver.vms()
    state = driver.inspect([vm], ways=True)[vm.id]
    assert isinstance(state, VmState) and "create" in state.ways[0].refusals

    def work(action: Action) -> None:
        (end,) = driver.wait([driver.start(action)], Deadline(30))
        assert end.error is None, end.error

    for name in ("a", "b"):
        work(Create(vm, name, "text", memory=False))
    first, second = seen = driver.snapshots([vm])[vm.id]
    assert not isinstance(seen, SafepointError)
    assert [(one.name, one.parent, one.current) for one in seen] == [("a", None, False), ("b", first.id, True)]
    work(Revert(vm, first, "as_snapshot"))
    work(Delete(vm, second))
    (left,) = driver.snapshots([vm])[vm.id]
    assert left.current and left.name == "a"
    driver.close()
    backend.close()
