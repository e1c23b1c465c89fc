# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tasks of the simulated Proxmox VE: duration, locks while they run, and lists."""

from __future__ import annotations

import contextlib
import time

import pytest
from pve_client import PAUSE, Client, GuestClient
from pve_server import PveServer

LONG = 30.0


def seen(client: GuestClient, *, lock: str) -> None:
    """Wait until the guest has a lock; a new task takes a moment to set it."""
    end = time.monotonic() + 5
    while client.status().get("lock") != lock:
        assert time.monotonic() < end
        time.sleep(PAUSE)


# -- while it runs ---------------------------------------------------------------------------------------------------------


def test_a_create_shows_its_snapshot_before_it_is_done(pve: PveServer, vm: GuestClient) -> None:
    pve.set_task_seconds(LONG, "qmsnapshot")
    upid = vm.data("POST", vm.snapshots, snapname="ab")
    assert vm.data("GET", f"/nodes/pve1/tasks/{upid}/status")["status"] == "running"
    seen(vm, lock="snapshot")
    assert vm.listed()["ab"]["snapstate"] == "prepare" and "parent" not in vm.listed()["current"]
    (row,) = vm.data("GET", "/cluster/resources", type="vm")
    assert row["lock"] == "snapshot"
    pve.finish_tasks()
    assert vm.exit_text(upid) == "OK"
    assert "snapstate" not in vm.listed()["ab"] and vm.listed()["current"]["parent"] == "ab"


def test_a_delete_and_a_rollback_show_their_locks(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    vm.create("cd")
    pve.set_task_seconds(LONG)
    upid = vm.data("DELETE", f"{vm.snapshots}/ab")
    seen(vm, lock="snapshot-delete")
    assert vm.listed()["ab"]["snapstate"] == "delete"
    pve.finish_tasks()
    assert vm.exit_text(upid) == "OK"
    upid = vm.data("POST", f"{vm.snapshots}/cd/rollback")
    seen(vm, lock="rollback")
    assert vm.status()["status"] == "stopped"
    pve.finish_tasks()
    assert vm.exit_text(upid) == "OK" and "lock" not in vm.status()


def test_tasks_run_as_long_as_their_type_says(pve: PveServer, vm: GuestClient) -> None:
    pve.set_task_seconds(LONG)
    pve.set_task_seconds(0.3, "qmsnapshot")
    pve.set_task_seconds(0.0, "qmdelsnapshot")
    began = time.monotonic()
    assert vm.create("ab") == "OK"
    assert 0.3 <= time.monotonic() - began < LONG
    began = time.monotonic()
    assert vm.delete("ab") == "OK"
    assert time.monotonic() - began < LONG


def test_the_second_of_two_creates_finds_the_lock_of_the_first(pve: PveServer, vm: GuestClient) -> None:
    pve.set_task_seconds(LONG)
    first = vm.data("POST", vm.snapshots, snapname="ab")
    assert vm.create("cd") == "VM is locked (snapshot)"
    pve.finish_tasks()
    assert vm.exit_text(first) == "OK"


def test_the_second_of_two_deletes_waits_for_the_first(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    vm.create("cd")
    pve.set_task_seconds(0.2)
    first, second = (vm.data("DELETE", f"{vm.snapshots}/{name}") for name in ("ab", "cd"))
    assert [vm.exit_text(upid) for upid in (first, second)] == ["OK", "OK"]
    pve.lock_seconds = 0.05
    vm.create("ef")
    vm.create("gh")
    pve.set_task_seconds(LONG)
    first, second = (vm.data("DELETE", f"{vm.snapshots}/{name}") for name in ("ef", "gh"))
    assert vm.exit_text(second) == "Failed to obtain guest migration lock - replication running?"
    assert vm.delete("gh", force=1) == "VM is locked (snapshot-delete)"
    pve.finish_tasks()
    assert vm.exit_text(first) == "OK" and list(vm.listed()) == ["gh", "current"]


def test_guests_do_not_wait_for_each_other(pve: PveServer) -> None:
    pve.set_task_seconds(0.3)
    guests = [GuestClient(pve, pve.make_guest(f"vm{number}")) for number in range(20)]
    began = time.monotonic()
    upids = [guest.data("POST", guest.snapshots, snapname="ab") for guest in guests]
    assert [guest.exit_text(upid) for guest, upid in zip(guests, upids, strict=True)] == ["OK"] * 20
    assert time.monotonic() - began < 3.0


def test_locks_of_others_are_waited_for(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    pve.lock_seconds = 0.05
    with pve.hold_migration_lock(100):
        assert vm.rollback("ab") == "can't lock file '/var/lock/pve-manager/pve-migrate-100' - got timeout"
        assert vm.delete("ab") == "Failed to obtain guest migration lock - replication running?"
        assert vm.create("cd") == "OK"
        assert vm.delete("cd", force=1) == "OK"
    text = "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"
    with pve.hold_config_lock(100):
        assert vm.create("ef") == text
        assert vm.refused("PUT", f"{vm.snapshots}/ab/config", description="x") == f"500 {text}"
    pve.lock_seconds = 10.0
    with contextlib.ExitStack() as held:
        held.enter_context(pve.hold_migration_lock(100))
        upid = vm.data("DELETE", f"{vm.snapshots}/ab")
        time.sleep(0.05)
        assert vm.data("GET", f"/nodes/pve1/tasks/{upid}/status")["status"] == "running"
    assert vm.exit_text(upid) == "OK"


def test_a_task_can_be_stopped_and_cleans_up(pve: PveServer, vm: GuestClient) -> None:
    pve.set_task_seconds(LONG)
    upid = vm.data("POST", vm.snapshots, snapname="ab")
    assert vm.data("DELETE", f"/nodes/pve1/tasks/{upid}") is None
    assert vm.exit_text(upid) == "received interrupt"
    assert list(vm.listed()) == ["current"] and "lock" not in vm.status()


@pytest.mark.parametrize("change", ["migrated", "removed"])
def test_a_guest_that_goes_away_ends_its_task(pve: PveServer, vm: GuestClient, change: str) -> None:
    pve.set_task_seconds(LONG)
    upid = vm.data("POST", vm.snapshots, snapname="ab")
    seen(vm, lock="snapshot")
    if change == "migrated":
        pve.set_guest(100, node="pve2")
    else:
        pve.remove_guest(100)
    pve.finish_tasks()
    missing = "Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist"
    assert vm.exit_text(upid) == missing
    assert vm.refused("GET", vm.snapshots) == f"500 {missing}"
    assert vm.delete("ab") == missing
    assert vm.refused("POST", vm.snapshots, snapname="cd") == f"500 {missing}"


# -- how it ends -----------------------------------------------------------------------------------------------------------


def test_warnings_are_a_kind_of_success(pve: PveServer, vm: GuestClient) -> None:
    pve.fault_task("qmsnapshot", warnings=2, nth=2)
    assert vm.create("ab") == "OK"
    assert vm.create("cd") == "WARNINGS: 2"
    assert vm.create("ef") == "OK"
    assert "snapstate" not in vm.listed()["cd"]
    assert vm.data("GET", "/nodes/pve1/tasks", errors=1) == []
    (row,) = vm.data("GET", "/nodes/pve1/tasks", statusfilter="warning")
    assert row["status"] == "WARNINGS: 2"


def test_a_fault_is_for_its_guest_and_as_often_as_it_says(pve: PveServer, vm: GuestClient) -> None:
    other = GuestClient(pve, pve.make_guest("web02"))
    pve.fault_task("qm*", vmid=101, exitstatus="broken", count=2)
    assert [vm.create("ab"), other.create("ab"), other.create("ab"), other.create("ab")] == ["OK", "broken", "broken", "OK"]
    pve.fault_task("qmsnapshot", killed=True, count=None)
    pve.clear_faults()
    assert vm.create("cd") == "OK"


def test_the_log_has_pages(pve: PveServer, vm: GuestClient) -> None:
    upid = vm.data("POST", vm.snapshots, snapname="ab")
    vm.exit_text(upid)
    with pve.lock:
        pve.tasks[upid].log[:0] = [f"line {number}" for number in range(1, 121)]
    path = f"/nodes/pve1/tasks/{upid}/log"
    answer = vm.ask("GET", path).json()
    assert answer["total"] == 121 and len(answer["data"]) == 50 and answer["data"][0] == {"n": 1, "t": "line 1"}
    assert vm.data("GET", path, start=119) == [{"n": 120, "t": "line 120"}, {"n": 121, "t": "TASK OK"}]
    assert len(vm.data("GET", path, limit=0)) == 121
    gone = upid.replace("qmsnapshot", "qmrollback")
    nothing = [{"n": 1, "t": "unable to open file - No such file or directory"}]
    assert vm.data("GET", f"/nodes/pve1/tasks/{gone}/log") == nothing
    assert vm.data("GET", f"/nodes/pve2/tasks/{upid}/log") == nothing
    assert vm.refused("GET", f"/nodes/pve2/tasks/{upid}/status") == "400 Parameter verification failed."


def test_the_freeze_of_file_systems_is_in_the_log(pve: PveServer) -> None:
    texts = []
    for options in ({"agent": False}, {"agent": True}, {"agent": "silent"}, {"config": {"agent": "1,freeze-fs=0"}}):
        vm = GuestClient(pve, pve.make_guest("web01", **options))  # type: ignore[arg-type]
        upid = vm.data("POST", vm.snapshots, snapname="ab")
        vm.exit_text(upid)
        texts.append([line["t"] for line in vm.data("GET", f"/nodes/pve1/tasks/{upid}/log")])
    assert texts == [
        ["TASK OK"],
        ["TASK OK"],
        ["skipping guest filesystem freeze - agent configured but not running?", "TASK OK"],
        ["skipping guest filesystem freeze - disabled in VM options", "TASK OK"],
    ]


# -- lists -----------------------------------------------------------------------------------------------------------------


def test_the_tasks_of_a_node_are_filtered_and_paged(pve: PveServer, vm: GuestClient) -> None:
    other = GuestClient(pve, pve.make_guest("web02"))
    elsewhere = GuestClient(pve, pve.make_guest("web03", node="pve2"))
    for client in (vm, other, elsewhere):
        client.create("ab")
    assert vm.create("ab") == "snapshot name 'ab' already used"
    pve.set_task_seconds(LONG)
    running = vm.data("DELETE", f"{vm.snapshots}/ab")

    def listed(**values: object) -> list[tuple[str, str]]:
        return [(row["id"], row["status"]) for row in vm.data("GET", "/nodes/pve1/tasks", **values)]

    failed = ("100", "snapshot name 'ab' already used")
    finished = [failed, ("101", "OK"), ("100", "OK")]
    assert listed() == listed(source="archive") == finished
    assert listed(source="active") == [("100", "RUNNING")]
    assert listed(source="all") == [("100", "RUNNING"), *finished]
    assert listed(vmid=101) == [("101", "OK")]
    assert listed(typefilter="qmdelsnapshot", source="all") == [("100", "RUNNING")]
    assert listed(errors=1) == listed(statusfilter="error") == [failed]
    assert listed(start=1, limit=1) == [("101", "OK")]
    assert vm.ask("GET", "/nodes/pve1/tasks", limit=1).json()["total"] == 3
    assert listed(since=int(time.time()) + 60) == listed(until=int(time.time()) - 60) == []
    assert vm.ask("GET", "/nodes/pve1/tasks", source="some").json()["errors"] == {
        "source": "value 'some' does not have a value in the enumeration 'archive, active, all'"
    }
    pve.finish_tasks()
    assert vm.exit_text(running) == "OK"


def test_the_cluster_tells_of_25_tasks_of_each_node(pve: PveServer, vm: GuestClient) -> None:
    elsewhere = GuestClient(pve, pve.make_guest("web03", node="pve2"))
    elsewhere.create("ab")
    for _ in range(30):
        vm.create("ab")
    pve.set_task_seconds(LONG)
    upid = vm.data("DELETE", f"{vm.snapshots}/ab")
    rows = vm.data("GET", "/cluster/tasks")
    here = [row for row in rows if row["node"] == "pve1"]
    assert len(here) == 25 and len(rows) == 26
    assert here[0]["upid"] == upid and "endtime" not in here[0] and "status" not in here[0]
    assert here[-1]["status"] == "snapshot name 'ab' already used"
    assert len(vm.data("GET", "/nodes/pve1/tasks")) == 30


def test_a_started_guest_is_started_once(pve: PveServer, vm: GuestClient) -> None:
    assert vm.task("POST", f"{vm.path}/status/start") == "VM 100 already running"
    assert vm.task("POST", f"{vm.path}/status/shutdown", timeout=5) == "OK"
    assert vm.status()["status"] == "stopped"
    assert vm.task("POST", f"{vm.path}/status/stop") == "OK"
    pve.set_guest(100, lock="backup")
    assert vm.task("POST", f"{vm.path}/status/start") == "VM is locked (backup)"
    ct = GuestClient(pve, pve.make_guest("ct01", type="lxc", storage="zfs"))
    assert ct.refused("POST", f"{ct.path}/status/start") == "500 CT 101 already running"
    assert ct.task("POST", f"{ct.path}/status/stop") == "OK"
    assert ct.refused("POST", f"{ct.path}/status/stop") == "500 CT 101 not running"


def test_a_task_is_known_to_whoever_asks_any_node(pve: PveServer, client: Client) -> None:
    vm = GuestClient(pve, pve.make_guest("web01", node="pve2"))
    upid = vm.data("POST", vm.snapshots, snapname="ab")
    assert upid.startswith("UPID:pve2:") and upid.endswith(":qmsnapshot:100:root@pam!safepoint:")
    vm.exit_text(upid)
    status = client.data("GET", f"/nodes/pve2/tasks/{upid}/status")
    assert (status["exitstatus"], status["user"], status["tokenid"]) == ("OK", "root@pam", "safepoint")
