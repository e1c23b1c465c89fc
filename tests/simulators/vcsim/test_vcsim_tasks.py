# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the simulated vCenter: tasks with a duration, and waiting for them."""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from pyVmomi import vim, vmodl
from server import VCenter
from vim_client import Client, PropertyCollector, login

from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

pytestmark = pytest.mark.timeout(120)

DEFAULTS = {"task_time": 0, "task_times": {}, "queue_time": 0, "busy": "task", "lose_updates": False}


@pytest.fixture
def client(vcenter: VCenter) -> Iterator[Client]:
    with login(vcenter) as client:
        yield client
        vcenter.set(**DEFAULTS)
        vcenter.hold("*", 0)


# -- a task ------------------------------------------------------------------------------------------------------------


def test_a_task_is_queued_runs_with_progress_and_succeeds(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(queue_time=0.2, task_time=0.6)
    task = client.create(vm, "a")
    states: list[str] = []
    progress: list[int] = []
    with client.watch([task], "info.state", "info.progress"):
        version = ""
        while "success" not in states and "error" not in states:
            version, rows = client.updates(version)
            for _, _, seen in rows:
                if "info.state" in seen:
                    states.append(seen["info.state"])
                if seen.get("info.progress"):
                    progress.append(seen["info.progress"])
    assert states == ["queued", "running", "success"]
    assert progress == sorted(progress) and len(set(progress)) >= 3 and all(0 < percent < 100 for percent in progress)


def test_a_task_says_what_it_is_about(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=0.1)
    snapshot = client.done(client.create(vm, "a"))
    for start, key in (
        (lambda: client.create(vm, "b"), "VirtualMachine.createSnapshotEx"),
        (snapshot.RevertToSnapshot_Task, "vm.Snapshot.revert"),
        (lambda: snapshot.RemoveSnapshot_Task(removeChildren=True), "vm.Snapshot.remove"),
    ):
        info = client.info(start())
        assert info.entity == vm and info.entityName == client.read(vm, "name")["name"]
        assert info.descriptionId == key
        assert info.reason.userName == vcenter.username
        assert info.queueTime <= info.startTime < info.completeTime
        assert (info.completeTime - info.startTime).total_seconds() >= 0.1


def test_tasks_take_as_long_as_their_method_says(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=0.4, task_times={"Create*": 0, "RevertToSnapshot_Task": 0.8})

    def length(task: t.Any) -> float:
        info = client.info(task)
        return float((info.completeTime - info.startTime).total_seconds())

    assert length(client.create(vm, "a")) < 0.2
    snapshot = client.read(vm, "snapshot")["snapshot"].currentSnapshot
    assert 0.8 <= length(snapshot.RevertToSnapshot_Task()) < 1.2
    assert 0.4 <= length(snapshot.RemoveSnapshot_Task(removeChildren=False)) < 0.8


def test_other_methods_of_a_vm_are_such_tasks_too(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=0.3)
    task = vm.PowerOffVM_Task()
    assert client.read(task, "info.state")["info.state"] in ("queued", "running")
    assert client.read(vm, "runtime.powerState")["runtime.powerState"] == "poweredOn"
    client.done(task)
    assert client.read(vm, "runtime.powerState")["runtime.powerState"] == "poweredOff"
    error = client.error(vm.PowerOffVM_Task())
    assert isinstance(error, vim.fault.InvalidPowerState) and error.existingState == "poweredOff"


def test_a_snapshot_is_there_only_when_its_task_ends(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=0.4)
    task = client.create(vm, "a")
    assert client.tree(vm) == {}
    assert client.done(task) == client.read(vm, "snapshot")["snapshot"].currentSnapshot


# -- cancel ------------------------------------------------------------------------------------------------------------


def test_a_canceled_task_does_nothing(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=30)
    task = client.create(vm, "a")
    task.CancelTask()
    info = client.info(task)
    assert info.cancelled and isinstance(info.error, vmodl.fault.RequestCanceled)
    assert client.tree(vm) == {}


def test_what_has_ended_or_is_a_removal_cannot_be_canceled(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    task = client.create(vm, "a")
    snapshot = client.done(task)
    with pytest.raises(vim.fault.InvalidState):
        task.CancelTask()
    vcenter.set(task_time=0.5)
    removal = snapshot.RemoveSnapshot_Task(removeChildren=False)
    assert not client.read(removal, "info.cancelable")["info.cancelable"]
    with pytest.raises(vmodl.fault.NotSupported):
        removal.CancelTask()
    client.done(removal)


# -- two tasks of one VM -----------------------------------------------------------------------------------------------


def test_a_second_task_finds_task_in_progress_and_could_have_known(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=0.6)
    first = client.create(vm, "first")
    recent = client.read(vm, "recentTask")["recentTask"]
    assert recent == [first] and client.read(recent[0], "info.state")["info.state"] in ("queued", "running")
    error = client.error(client.create(vm, "second"))
    assert isinstance(error, vim.fault.TaskInProgress) and error.task == first
    assert "already in progress" in (error.msg or error.localizedMessage)
    client.done(first)
    client.done(client.create(vm, "third"))
    assert set(client.tree(vm)) == {"first", "third"}


def test_the_call_itself_may_raise_task_in_progress(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=0.6, busy="call")
    first = client.create(vm, "first")
    with pytest.raises(vim.fault.TaskInProgress) as caught:
        client.create(vm, "second")
    assert caught.value.task == first
    client.done(first)


def test_tasks_of_one_vm_may_wait_for_each_other(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(task_time=0.3, busy="queue")
    tasks = [client.create(vm, name) for name in "abc"]
    assert client.read(tasks[2], "info.state")["info.state"] == "queued"
    infos = client.info(*tasks)
    assert [info.state for info in infos] == ["success"] * 3
    assert infos[0].completeTime <= infos[1].startTime and infos[1].completeTime <= infos[2].startTime
    assert client.tree(vm) == {"a": (None, False), "b": ("a", False), "c": ("b", True)}


def test_tasks_of_different_vms_run_side_by_side(vcenter: VCenter, client: Client) -> None:
    rows = vcenter.make_vms(*({"name": f"side{n}"} for n in range(50)))
    vcenter.set(task_time=0.5)
    begun = time.monotonic()
    client.info(*(client.create(client.by_id(row["moid"]), "a") for row in rows))
    assert time.monotonic() - begun < 5


def test_a_race_for_one_name_can_be_arranged(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    """Both read, find nothing and create: the server holds the first create until the second has arrived."""
    vcenter.set(busy="queue")
    vcenter.hold("CreateSnapshot*", 2)
    ended: list[float] = []

    def one_run() -> None:
        with login(vcenter) as other:
            seen = other.by_id(vm._moId)
            assert other.tree(seen) == {}
            other.done(other.create(seen, "same"))
            ended.append(time.monotonic())

    runs = [threading.Thread(target=one_run) for _ in range(2)]
    runs[0].start()
    runs[0].join(0.5)
    assert runs[0].is_alive() and not ended
    runs[1].start()
    for run in runs:
        run.join(20)
    assert len(ended) == 2
    assert [one["name"] for one in vcenter.vm(vm._moId)["snapshots"]] == ["same", "same"]


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_updates_come_soon(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    """Debian's simulator polls four times a second."""
    vcenter.set(task_time=0.1)
    begun = time.monotonic()
    for n in range(5):
        client.done(client.create(vm, str(n)))
    assert time.monotonic() - begun < 5 * 0.25


def test_a_wait_ends_when_its_time_is_up(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    with client.watch([vm], "runtime.powerState"):
        version, rows = client.updates("")
        assert [seen for _, _, seen in rows] == [{"runtime.powerState": "poweredOn"}]
        begun = time.monotonic()
        assert client.updates(version, 1) == (version, [])
        assert 0.9 < time.monotonic() - begun < 3
        assert client.updates(version, 0) == (version, [])


def test_a_wait_tells_only_what_was_asked_for_and_only_once(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    with client.watch([vm], "runtime.powerState", "config.annotation"):
        version, _ = client.updates("")
        vcenter.set_vm(vm._moId, data="nobody asked")
        vcenter.set_vm(vm._moId, annotation="changed")
        version, rows = client.updates(version)
        assert rows == [(vm, "modify", {"config.annotation": "changed"})]
        assert client.updates(version, 1) == (version, [])


def test_the_members_of_a_view_enter_and_leave(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    (made,) = vcenter.make_vms({"name": f"vm{time.monotonic_ns()}"})
    other = client.by_id(made["moid"])
    with client.watch([vm], "name") as view:
        version, rows = client.updates("")
        assert [(one, kind) for one, kind, _ in rows] == [(vm, "enter")]
        view.ModifyListView(add=[other], remove=[vm])
        _, rows = client.updates(version)
        assert {(one, kind) for one, kind, _ in rows} == {(vm, "leave"), (other, "enter")}


def test_a_wait_whose_client_has_gone_takes_no_update_from_another_one(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    """Like a client whose connection broke during its wait: it waits again with its last version."""
    with client.watch([vm], "config.annotation"):
        version, _ = client.updates("")
        vcenter.reset_counters()
        gone = threading.Thread(target=client.updates, args=(version,))
        gone.start()
        Deadline(30).poll("the first wait", lambda: vcenter.counters()["methods"].get("WaitForUpdatesEx") or None)
        vcenter.set_vm(vm._moId, annotation="changed")
        gone.join(30)
        later, rows = client.updates(version, 1)
        assert rows == [(vm, "modify", {"config.annotation": "changed"})]
        assert client.updates(later, 1) == (later, [])


def test_an_unknown_version_is_refused(client: Client, vm: t.Any) -> None:
    with client.watch([vm], "name"), pytest.raises(vmodl.query.InvalidCollectorVersion):
        client.updates("4711")


def test_a_new_filter_wakes_a_wait(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    with client.watch([vm], "name"):
        version, _ = client.updates("")
        found: list[t.Any] = []
        waiting = threading.Thread(target=lambda: found.extend(client.updates(version, 30)[1]))
        vcenter.reset_counters()
        waiting.start()
        Deadline(30).poll("the wait", lambda: vcenter.counters()["methods"].get("WaitForUpdatesEx") or None)
        with client.watch([vm], "config.annotation"):
            waiting.join(15)
        assert [(one, kind) for one, kind, _ in found] == [(vm, "enter")]


def test_updates_can_be_lost_until_the_whole_state_is_read(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    with client.watch([vm], "config.annotation"):
        version, _ = client.updates("")
        vcenter.set(lose_updates=True)
        vcenter.set_vm(vm._moId, annotation="changed")
        assert client.updates(version, 1) == (version, [])
        vcenter.set(lose_updates=False)
        assert client.updates(version, 1) == (version, [])
        _, rows = client.updates("")
        assert rows == [(vm, "enter", {"config.annotation": "changed"})]


def test_a_wait_can_be_canceled_from_outside(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    collector = client.collector.CreatePropertyCollector()
    spec = PropertyCollector.FilterSpec(
        objectSet=[PropertyCollector.ObjectSpec(obj=vm)],
        propSet=[PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    collector.CreateFilter(spec, partialUpdates=False)
    version = collector.WaitForUpdatesEx("", PropertyCollector.WaitOptions(maxWaitSeconds=10)).version
    threading.Timer(0.3, collector.CancelWaitForUpdates).start()
    with pytest.raises(vmodl.fault.RequestCanceled):
        collector.WaitForUpdatesEx(version, PropertyCollector.WaitOptions(maxWaitSeconds=10))
    collector.DestroyPropertyCollector()


def test_one_wait_serves_500_tasks(vcenter: VCenter, client: Client) -> None:
    rows = vcenter.make_vms(*({"name": f"bulk{n}"} for n in range(500)))
    vcenter.set(task_time=1)
    vcenter.reset_counters()
    tasks = [client.create(client.by_id(row["moid"]), "a") for row in rows]
    left = {task._moId for task in tasks}
    with client.watch(tasks, "info.state"):
        version = ""
        while left:
            version, seen = client.updates(version)
            left -= {one._moId for one, _, properties in seen if properties.get("info.state") == "success"}
    methods = vcenter.counters()["methods"]
    assert methods["CreateSnapshotEx_Task"] == 500
    assert methods["WaitForUpdatesEx"] < 200


def test_an_unset_property_is_read_as_none(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    """Reads an attribute, which is the SOAP method Fetch: Debian's simulator drops the connection."""
    assert vm.snapshot is None
    assert vm.resourcePool is not None
    assert vm.runtime.powerState == "poweredOn" and vm.summary.config.name == vm.name
