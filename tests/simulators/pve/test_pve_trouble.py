# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Behaviour of real PVE under load and with parallel clients: workers that do not start, locks that remain, states that are only requested."""

from __future__ import annotations

import threading
import time
import typing as t

import pytest
import requests
from pve_client import Client, GuestClient
from pve_server import PveServer


def until(probe: t.Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until the condition is true."""
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end
        time.sleep(0.01)


def running(pve: PveServer, vm: GuestClient) -> bool:
    return bool(vm.status()["status"] == "running")


def test_a_worker_that_does_not_start_has_done_nothing(pve: PveServer, vm: GuestClient) -> None:
    pve.fault_task("qmsnapshot", not_started=True)
    assert vm.refused("POST", vm.snapshots, snapname="xx") == "500 got no worker upid - start worker failed"
    assert pve.task_list() == [] and list(vm.listed()) == ["current"]
    assert vm.create("xx") == "OK"


def test_workers_fail_to_start_by_rate(pve: PveServer, vm: GuestClient) -> None:
    pve.worker_failure_rate = 0.5
    answers = [vm.ask("POST", f"{vm.path}/status/start").status_code for _each in range(40)]
    assert 5 < answers.count(500) < 35 and answers.count(200) + answers.count(500) == 40
    pve.worker_failure_rate = 0.0
    assert vm.ask("POST", f"{vm.path}/status/start").status_code == 200


@pytest.mark.parametrize("meet", [True, False])
def test_two_deletes_of_a_container_at_once_leave_its_lock(pve: PveServer, meet: bool) -> None:
    pve.container_deletes_meet = meet
    ct = GuestClient(pve, pve.make_guest("ct", type="lxc", storage="lvmthin"))
    assert ct.create("xx") == "OK"
    pve.set_task_seconds(0.3, "vzdelsnapshot")
    upids = [ct.data("DELETE", f"{ct.snapshots}/xx") for _each in range(2)]
    ends = sorted(ct.exit_text(upid) for upid in upids)
    lock = pve.guest(int(ct.path.rpartition("/")[2]))["lock"]
    if meet:
        assert (ends, lock) == (["OK", "snapshot 'xx' does not exist"], "snapshot-delete")
    else:
        assert (ends, lock) == (["CT is locked (snapshot-delete)", "OK"], None)


def test_a_delete_on_what_has_just_become_a_template_leaves_its_lock(pve: PveServer, vm: GuestClient) -> None:
    assert vm.create("xx") == "OK"
    vmid = int(vm.path.rpartition("/")[2])
    pve.set_guest(vmid, status="stopped", template=True)
    assert vm.delete("xx") == "you can't delete a snapshot if vm is a template"
    assert pve.guest(vmid)["lock"] == "snapshot-delete"


def test_what_is_pending_is_told_unless_current_is_asked_for(pve: PveServer, vm: GuestClient) -> None:
    vmid = int(vm.path.rpartition("/")[2])
    pve.set_guest(vmid, pending={"memory": "2048", "net0": "virtio,bridge=vmbr0", "cores": None})
    planned, now = vm.data("GET", f"{vm.path}/config"), vm.data("GET", f"{vm.path}/config", current=1)
    assert (planned["memory"], "net0" in planned, "cores" in planned) == ("2048", True, False)
    assert (now["memory"], "net0" in now, now["cores"]) == ("512", False, 1)
    assert vm.task("POST", f"{vm.path}/status/stop") == vm.task("POST", f"{vm.path}/status/start") == "OK"
    assert vm.data("GET", f"{vm.path}/config", current=1)["memory"] == "2048"


def test_high_availability_only_orders_a_stop_and_a_start(pve: PveServer, vm: GuestClient) -> None:
    vmid = int(vm.path.rpartition("/")[2])
    pve.set_guest(vmid, managed=True)
    assert vm.task("POST", f"{vm.path}/status/stop") == "OK"
    assert running(pve, vm) and vm.data("GET", "/cluster/resources", type="vm")[0]["hastate"] == "stopped"
    until(lambda: not running(pve, vm))
    assert vm.task("POST", f"{vm.path}/status/start") == "OK"
    assert not running(pve, vm)
    until(lambda: running(pve, vm))
    assert [(one["type"], one["user"]) for one in pve.task_list()] == [
        ("hastop", "root@pam!safepoint"),
        ("qmstop", "root@pam"),
        ("hastart", "root@pam!safepoint"),
        ("qmstart", "root@pam"),
    ]


def test_high_availability_starts_what_it_finds_off_unless_that_was_ordered(pve: PveServer, vm: GuestClient) -> None:
    vmid = int(vm.path.rpartition("/")[2])
    pve.ha_watch_seconds = 0.1
    pve.set_guest(vmid, managed=True, status="stopped", lock="rollback")
    time.sleep(0.3)
    assert not running(pve, vm)  # locked guests are not touched
    pve.set_guest(vmid, lock=None)
    until(lambda: running(pve, vm))
    assert vm.task("POST", f"{vm.path}/status/stop") == "OK"
    until(lambda: not running(pve, vm))
    time.sleep(0.3)
    assert not running(pve, vm)


def test_a_new_guest_has_no_name_for_a_while(pve: PveServer, client: Client) -> None:
    pve.nameless_seconds = 0.5
    vmid = pve.make_guest("fresh")
    (row,) = client.data("GET", "/cluster/resources", type="vm")
    assert ("name" not in row, row["status"], row["vmid"]) == (True, "unknown", vmid)
    assert client.data("GET", "/nodes/pve1/qemu")[0]["name"] == "fresh"
    until(lambda: client.data("GET", "/cluster/resources", type="vm")[0].get("name") == "fresh")


def test_a_paused_vm_is_told_by_qemu_alone(pve: PveServer, vm: GuestClient) -> None:
    assert vm.task("POST", f"{vm.path}/status/suspend") == "OK"
    assert (vm.status()["status"], vm.status()["qmpstatus"]) == ("running", "paused")
    assert "qmpstatus" not in vm.data("GET", "/nodes/pve1/qemu")[0]
    assert vm.data("GET", "/nodes/pve1/qemu", full=1)[0]["qmpstatus"] == "paused"
    assert vm.task("POST", f"{vm.path}/status/resume") == "OK"
    assert vm.status()["qmpstatus"] == "running"
    assert vm.task("POST", f"{vm.path}/status/suspend", todisk=1) == "OK"
    assert (vm.status()["status"], vm.status()["lock"]) == ("stopped", "suspended")


def test_a_storage_that_is_gone_is_told_to_those_who_may_see_storages(pve: PveServer, client: Client) -> None:
    pve.add_user("ops@pve", "ops", privileges={"/vms": {"VM.Audit"}})
    path = "/nodes/pve1/storage/gone/status"
    assert client.refused("GET", path) == "500 storage 'gone' does not exist"
    assert {one["storage"]: one.get("snapshot-as-volume-chain") for one in client.data("GET", "/storage")}["chain"] == 1
    ops = Client(pve).log_in("ops@pve", "ops")
    assert ops.refused("GET", path).startswith("403 Permission check failed (/storage/gone")
    assert ops.data("GET", "/storage") == []


# -- the k-th request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [True, False])
def test_the_endpoint_is_gone_from_a_request_on_for_a_while(pve: PveServer, vm: GuestClient, after: bool) -> None:
    other = Client(pve)
    assert other.data("GET", "/version")["version"]
    pve.fault("*", "*", nth=2, gone=0.5, after=after)
    assert vm.listed()
    began = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        vm.ask("POST", vm.snapshots, snapname="xx")
    assert len(pve.task_list()) == after
    for one in (vm, other):  # other connections are cut too
        with pytest.raises(requests.ConnectionError):
            one.ask("GET", "/version")

    def back() -> bool:
        try:
            return vm.ask("GET", "/version").ok
        except requests.ConnectionError:
            return False

    until(back)
    assert time.monotonic() - began >= 0.45


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("how", [{"status": 502, "reason": "Bad Gateway"}, {"cut": True}])
def test_the_answer_to_a_request_is_lost_before_or_after_the_work(
    pve: PveServer, vm: GuestClient, how: dict[str, t.Any], after: bool
) -> None:
    pve.fault("*", "*", nth=1, after=after, **how)
    if "status" in how:
        assert vm.refused("POST", vm.snapshots, snapname="xx") == "502 Bad Gateway"
    else:
        with pytest.raises(requests.ConnectionError):
            vm.ask("POST", vm.snapshots, snapname="xx")
    assert len(pve.task_list()) == after


def test_from_a_request_on_nothing_is_answered(pve: PveServer, vm: GuestClient) -> None:
    pve.fault("*", "*", nth=2, silent=True)
    assert vm.listed()
    vm.timeout = 0.3
    for _each in range(2):
        with pytest.raises(requests.ReadTimeout):
            vm.ask("GET", "/version")
    threading.Timer(0.1, pve.unmute).start()
    vm.timeout = 10.0
    assert vm.ask("GET", "/version").ok
