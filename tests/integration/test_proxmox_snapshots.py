# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of Proxmox VE: limits, leftovers of dead workers, and the number of requests."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

import pytest
from kit import code, only
from proxmox_backend import ProxmoxBackend
from pve_server import PveServer

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.driver import ProxmoxDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Session
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

OURS = "[safepoint v=1 owner=safepoint]"


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as started:
        started.lock_seconds = 0.2
        yield started
        assert started.errors == ""


@pytest.fixture
def backend(cluster: PveServer) -> ProxmoxBackend:
    return ProxmoxBackend(cluster)


@pytest.fixture
def vmid(cluster: PveServer) -> int:
    return cluster.make_guest("web01")


def names(cluster: PveServer, vmid: int) -> list[str]:
    return [one["name"] for one in cluster.guest(vmid)["snapshots"]]


def chain(cluster: PveServer, vmid: int, *snapshots: str) -> None:
    for name in snapshots:
        cluster.snapshot_by_hand(vmid, name, description=OURS)


def writes(cluster: PveServer) -> int:
    return sum(number for call, number in cluster.counters().items() if not call.startswith("GET"))


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_template_is_refused_before_any_write(backend: ProxmoxBackend, cluster: PveServer, kind: str) -> None:
    vmid = cluster.make_guest("golden", type=kind, storage="lvmthin", status="stopped")
    chain(cluster, vmid, "old")
    cluster.set_guest(vmid, template=True)
    cluster.reset_counters()
    for plan in (Present(Request(name="new")), Absent(Request(name="old")), Reverted(Request(name="old"))):
        done = only(backend.run(plan, "golden"))
        assert code(done) == "unsupported" and "template" in str(done.error) and "clone it" in str(done.error)
    assert (writes(cluster), cluster.guest(vmid)["lock"], names(cluster, vmid)) == (0, None, ["old"])


@pytest.mark.parametrize("ref", ["golden", "100"])
def test_new_template_unknown_to_the_cluster_is_refused(backend: ProxmoxBackend, cluster: PveServer, ref: str) -> None:
    cluster.nameless_seconds = 60.0
    vmid = cluster.make_guest("golden", template=True, status="stopped")
    chain(cluster, vmid, "old")
    cluster.reset_counters()
    for plan in (Present(Request(name="new")), Absent(Request(name="old"))):
        done = only(backend.run(plan, ref))
        assert code(done) == "unsupported" and "golden" in str(done.error) and "template" in str(done.error)
    assert (writes(cluster), cluster.guest(vmid)["lock"]) == (0, None)


@pytest.mark.parametrize(("kind", "storage"), [("qemu", ["dir-qcow2", "raw"]), ("lxc", "raw"), ("qemu", "gone")])
def test_check_mode_predicts_the_error_of_the_task(
    backend: ProxmoxBackend, cluster: PveServer, kind: str, storage: str | list[str]
) -> None:
    cluster.make_guest("web02", type=kind, storage=storage)
    would = only(backend.run(Present(Request(name="new")), "web02", dry_run=True))
    does = only(backend.run(Present(Request(name="new")), "web02"))
    assert code(would) == code(does) == "unsupported"
    assert (would.word, would.changed) == ("none", False)
    if storage != "gone":
        assert "move the disk, for example to qcow2" in str(would.error)


def test_only_check_mode_reads_the_features_of_each_guest(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.reset_counters()
    backend.run(Present(Request(name="new")), "web01")
    assert not [call for call in cluster.counters() if "feature" in call]
    backend.run(Present(Request(name="new")), "web01", dry_run=True)
    assert not [call for call in cluster.counters() if "feature" in call]  # a snapshot with this name exists, so none is taken
    backend.run(Present(Request(name="newer")), "web01", dry_run=True)
    assert sum(number for call, number in cluster.counters().items() if "feature" in call) == 1


@pytest.mark.parametrize("name", ["current", "Current", "pending", "vzdump", "a", "1abc", "a.b", "a" * 41, "", "über", "a b"])
def test_name_that_proxmox_refuses_or_leaks_is_refused_at_once(backend: ProxmoxBackend, cluster: PveServer, name: str) -> None:
    cluster.make_guest("web01")
    cluster.reset_counters()
    with pytest.raises(SafepointError) as caught:
        backend.run(Present(Request(name=name)), "web01")
    assert caught.value.code == "invalid_option" and "name" in str(caught.value)
    assert writes(cluster) == 0


@pytest.mark.parametrize("name", ["ab", "A-b_9", "a" * 40, "vzdump2"])
def test_name_that_proxmox_accepts_is_accepted(backend: ProxmoxBackend, vmid: int, name: str) -> None:
    assert backend.take("web01", name).name == name


def test_memory_of_a_guest_that_is_off_is_refused(backend: ProxmoxBackend, cluster: PveServer) -> None:
    vmid = cluster.make_guest("off", status="stopped")
    done = only(backend.run(Present(Request(name="xx", memory=True)), "off"))
    assert code(done) == "unsupported" and "start it first" in str(done.error)
    assert names(cluster, vmid) == []


@pytest.mark.parametrize("options", [{"memory": True}, {"quiesce": "require"}])
def test_container_has_no_memory_and_no_agent(backend: ProxmoxBackend, cluster: PveServer, options: dict[str, t.Any]) -> None:
    vmid = cluster.make_guest("ct", type="lxc", storage="lvmthin")
    done = only(backend.run(Present(Request(name="xx", **options)), "ct"))
    assert code(done) == "unsupported" and "container" in str(done.error)
    assert names(cluster, vmid) == []


# -- newest only ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["zfs", "chain"])
def test_newest_only_guest_is_not_changed_without_discard_newer(
    backend: ProxmoxBackend, cluster: PveServer, storage: str
) -> None:
    vmid = cluster.make_guest("web01", storage=storage)
    chain(cluster, vmid, "one", "two", "three")
    cluster.set_guest(vmid, data="now")
    refused = backend.revert("web01", "one")
    assert code(refused) == "newer_snapshots" and refused.changed is False
    assert "discard_newer=true" in str(refused.error) and "is not most recent snapshot" in str(refused.error)
    seen = cluster.guest(vmid)
    assert (names(cluster, vmid), seen["data"], seen["status"]) == (["one", "two", "three"], "now", "running")
    assert backend.revert("web01", "three").error is None


@pytest.mark.parametrize("storage", ["zfs", "chain", "dir-qcow2"])
def test_discard_newer_reverts_on_any_storage(backend: ProxmoxBackend, cluster: PveServer, storage: str) -> None:
    vmid = cluster.make_guest("web01", storage=storage)
    cluster.set_guest(vmid, data="then")
    chain(cluster, vmid, "one", "two", "three")
    cluster.set_guest(vmid, data="now")
    done = backend.revert("web01", "one", discard_newer=True)
    assert (done.word, done.error) == ("reverted", None)
    assert sorted(done.also_removed) == ["three", "two"]
    assert (names(cluster, vmid), cluster.guest(vmid)["data"]) == (["one"], "then")


# -- slow and many -------------------------------------------------------------------------------------------------------


# A worker waits 10 s for the lock of another one, so of four that start together and take 7 s each, two would fail. The short form has the
# same proportions.
@pytest.mark.parametrize(("seconds", "lock_seconds"), [(0.4, 0.2), pytest.param(7.0, 10.0, marks=pytest.mark.slow)])
def test_several_snapshots_of_one_guest_are_removed_one_after_the_other(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, seconds: float, lock_seconds: float
) -> None:
    chain(cluster, vmid, "keep", "aa", "bb", "cc", "dd")
    cluster.lock_seconds = lock_seconds
    cluster.set_task_seconds(seconds, "qmdelsnapshot")
    done = only(backend.run(Absent(Request(name="aa", children="remove")), "web01"))
    assert (done.word, done.error) == ("removed", None)
    assert sorted(done.also_removed) == ["bb", "cc", "dd"]
    assert names(cluster, vmid) == ["keep"]
    assert [task["exitstatus"] for task in cluster.task_list("qmdelsnapshot")] == ["OK"] * 4


def test_children_stay_without_children_remove(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    chain(cluster, vmid, "aa", "bb", "cc")
    assert backend.remove("web01", "bb").error is None
    assert [(one.name, one.parent) for one in backend.list("web01")] == [("aa", None), ("cc", "aa")]


def test_removal_during_a_migration_lock_is_retried(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    chain(cluster, vmid, "aa")
    held = cluster.hold_migration_lock(vmid)
    held.__enter__()
    threading.Timer(0.6, held.__exit__, [None, None, None]).start()
    done = only(backend.run(Absent(Request(name="aa")), "web01", lock_timeout=20.0))
    assert (done.word, names(cluster, vmid)) == ("removed", [])
    assert len(cluster.task_list("qmdelsnapshot")) >= 2


def test_task_longer_than_the_timeout_is_named_and_its_snapshot_is_undone(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    cluster.set_task_seconds(1.0, "qmsnapshot")
    done = only(backend.run(Present(Request(name="xx")), "web01", timeout=0.5, on_error="undo"))
    (task,) = cluster.task_list("qmsnapshot")
    assert code(done) == "timed_out" and task["upid"] in str(done.error)
    assert (done.changed, names(cluster, vmid)) == (False, [])


def test_task_that_ends_with_warnings_is_a_success(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    for worker in ("qmsnapshot", "qmrollback", "qmdelsnapshot"):
        cluster.fault_task(worker, warnings=2)
    backend.take("web01", "xx")
    assert backend.revert("web01", "xx").word == "reverted"
    assert backend.remove("web01", "xx").word == "removed"
    assert {task["exitstatus"] for task in cluster.task_list()} == {"WARNINGS: 2"}


# -- leftovers -------------------------------------------------------------------------------------------------


def test_killed_worker_is_reported_with_its_leftovers_and_the_remedy_works(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    cluster.fault_task("qmsnapshot", killed=True)
    done = only(backend.run(Present(Request(name="xx")), "web01", on_error="stop"))
    assert code(done) == "backend_failed" and "unexpected status" in str(done.error) and "snapshot_info" in str(done.error)
    assert done.changed is True
    (finding,) = backend.info("web01")["findings"]
    assert finding["code"] == "locked" and "'snapshot'" in finding["msg"]
    assert f"qm unlock {vmid} on its node, then qm delsnapshot {vmid} xx --force" in finding["remedy"]
    cluster.set_guest(vmid, lock=None)  # qm unlock
    (finding,) = backend.info("web01")["findings"]
    assert finding["code"] == "unfinished_snapshot" and "snapstate prepare" in finding["msg"]
    assert f"qm delsnapshot {vmid} xx --force" in finding["remedy"]


def test_unfinished_snapshot_is_refused_for_revert_and_plain_removal(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    chain(cluster, vmid, "xx")
    cluster.set_snapshot(vmid, "xx", snapstate="prepare")
    cluster.reset_counters()
    for done in (backend.revert("web01", "xx"), backend.remove("web01", "xx")):
        assert code(done) == "unsupported" and "snapstate prepare" in str(done.error)
        assert f"qm delsnapshot {vmid} xx --force" in str(done.error)
    assert (writes(cluster), cluster.guest(vmid)["lock"]) == (0, None)


def test_snapshot_completed_during_the_listing_is_read_again(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    driver = backend.open()
    (vm,) = driver.vms()
    chain(cluster, vmid, "xx")
    cluster.set_snapshot(vmid, "xx", snapstate="prepare")
    driver.snapshots([vm])
    cluster.set_snapshot(vmid, "xx", snapstate=None)  # between our two requests
    assert "has not finished the snapshot xx" in (driver.inspect([vm], ways=False)[vm.id].busy or "")  # type: ignore[union-attr]
    driver.snapshots([vm])
    assert driver.inspect([vm], ways=False)[vm.id].busy is None  # type: ignore[union-attr]
    driver.close()


def test_stuck_removal_is_detected_and_never_forced(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    chain(cluster, vmid, "xx")
    cluster.fault_task("qmdelsnapshot", exitstatus="command '/usr/bin/qemu-img snapshot -d xx /disk' failed: exit code 1 ")
    first = backend.remove("web01", "xx")
    assert code(first) == "backend_failed" and "qemu-img snapshot -d xx" in str(first.error)
    second = only(backend.run(Absent(Request(name="xx")), "web01", lock_timeout=0.1))
    assert code(second) == "locked"
    for said in (str(second.error), backend.info("web01")["findings"][0]["remedy"]):
        assert f"qm unlock {vmid} on its node, then qm delsnapshot {vmid} xx --force" in said
    assert (cluster.guest(vmid)["lock"], len(cluster.task_list("qmdelsnapshot"))) == ("snapshot-delete", 1)
    cluster.set_guest(vmid, lock=None)  # qm unlock
    assert backend.info("web01")["findings"][0]["code"] == "unfinished_snapshot"
    assert backend.remove("web01", "xx").word == "removed"  # the disk works again


# -- power ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize(("power", "status"), [("as_snapshot", None), ("on", "running"), ("off", "stopped")])
def test_power_after_a_revert_is_as_requested(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, power: str, status: str | None, memory: bool, managed: bool
) -> None:
    backend.take("web01", "xx", memory=memory)
    cluster.set_guest(vmid, managed=managed)
    done = backend.revert("web01", "xx", power=power)
    assert (done.word, done.error) == ("reverted", None)
    assert cluster.guest(vmid)["status"] == (status or ("running" if memory else "stopped"))


@pytest.mark.parametrize(
    "how", [{"exitstatus": "start failed: QEMU exited with code 1"}, {"exitstatus": "VM is locked (backup)"}]
)
def test_guest_that_fails_to_start_after_a_revert_is_reported_as_reverted_and_off(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, how: dict[str, str]
) -> None:
    backend.take("web01", "xx")
    cluster.fault_task("qmstart", count=None, **how)
    done = only(backend.run(Reverted(Request(name="xx", power="on")), "web01", lock_timeout=20.0))
    assert code(done) == "backend_failed" and done.changed
    assert "was reverted to xx, but its start failed" in str(done.error) and how["exitstatus"] in str(done.error)
    assert any("from running to off" in warning for warning in done.warnings)
    assert len(cluster.task_list("qmrollback")) == 1


def test_guest_started_by_others_after_a_revert_has_the_requested_power(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    backend.take("web01", "xx")
    cluster.fault_task("qmstart", exitstatus=f"VM {vmid} already running")
    threading.Timer(0.5, cluster.set_guest, [vmid], {"status": "running"}).start()
    done = backend.revert("web01", "xx", power="on")
    assert (done.word, done.error, cluster.guest(vmid)["status"]) == ("reverted", None, "running")


# -- requests ------------------------------------------------------------------------------------------------------------


class WithPassword(ProxmoxBackend):
    def open(self) -> SnapshotDriver:
        where = {"hostname": self.pve.hostname, "port": self.pve.port, "ca_path": self.pve.ca_path}
        return ProxmoxDriver(Session(user=self.pve.username, password=self.pve.password, **where))


@pytest.mark.parametrize(("kind", "logins"), [(ProxmoxBackend, 0), (WithPassword, 1)])
def test_number_of_requests_of_each_call(cluster: PveServer, kind: type[ProxmoxBackend], logins: int) -> None:
    number = 50
    # By name, which costs one more request for each node with a write.
    guests = [f"app{one:02d}" for one in range(number)]
    vmids = [cluster.make_guest(name, node=f"pve{one % 2 + 1}") for one, name in enumerate(guests)]
    cluster.set_task_seconds(0.2)
    backend = kind(cluster)
    figures = {}

    def count(what: str, work: t.Callable[[], object]) -> tuple[int, int]:
        cluster.reset_counters()
        work()
        assert cluster.logins == logins
        polls = cluster.counters().get("GET /nodes/{node}/tasks", 0)
        figures[what] = cluster.requests - cluster.logins - polls, polls, cluster.logins
        return figures[what][:2]

    take = Present(Request(name="xx"))
    requests, polls = count("create", lambda: backend.run(take, *guests, max_parallel=number))
    assert requests <= 3.2 * number and polls <= 30
    assert all(names(cluster, one) == ["xx"] for one in vmids)
    # One for each node, to check if its guests are idle.
    assert count("create again", lambda: backend.run(take, *guests))[0] <= number + 5
    assert count("look", lambda: backend.looks(*guests))[0] <= number + 5
    # One more for each, to check if the name still belongs to the same snapshot.
    assert count("revert", lambda: backend.run(Reverted(Request(name="xx")), *guests))[0] <= 4.2 * number
    assert count("remove", lambda: backend.run(Absent(Request(name="xx")), *guests))[0] <= 4.2 * number
    for what, (asked, polled, logged_in) in figures.items():
        print(f"{kind.__name__} {what} of {number} guests: {asked} requests, {polled} polls, {logged_in} logins")
