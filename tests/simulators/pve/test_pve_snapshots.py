# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of the simulated Proxmox VE: behaviour that is not in the transcript."""

from __future__ import annotations

import pytest
from pve_client import GuestClient
from pve_server import PveServer

FREE = [("qemu", "dir-qcow2"), ("qemu", "lvmthin"), ("qemu", "rbd"), ("lxc", "lvmthin"), ("lxc", "rbd")]
NEWEST = [
    ("qemu", "zfs", "local-zfs:vm-100-disk-0"),
    ("qemu", "chain", "100/vm-100-disk-0.qcow2"),
    ("lxc", "zfs", "local-zfs:subvol-100-disk-0"),
]


def guest(pve: PveServer, **options: object) -> GuestClient:
    return GuestClient(pve, pve.make_guest("web01", **options))  # type: ignore[arg-type]


# -- storages --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guest_type", "storage"), FREE)
def test_a_guest_goes_back_to_any_snapshot_where_the_storage_can(pve: PveServer, guest_type: str, storage: str) -> None:
    vm = guest(pve, type=guest_type, storage=storage)
    assert vm.create("old") == "OK"
    pve.set_guest(100, data="changed")
    assert vm.create("new") == "OK"
    pve.set_guest(100, data="changed again")
    assert vm.rollback("old") == "OK"
    assert pve.guest(100)["data"] == "fresh web01"
    assert vm.rollback("new") == "OK"
    assert pve.guest(100)["data"] == "changed"


@pytest.mark.parametrize(("guest_type", "storage", "volume"), NEWEST)
def test_other_storages_go_back_to_the_newest_only_and_say_so_before_the_guest_stops(
    pve: PveServer, guest_type: str, storage: str, volume: str
) -> None:
    vm = guest(pve, type=guest_type, storage=storage)
    vm.create("old")
    vm.create("new")
    assert vm.rollback("old") == f"can't rollback, 'old' is not most recent snapshot on '{volume}'"
    assert vm.status()["status"] == "running" and "lock" not in vm.status()
    assert vm.rollback("new") == "OK"
    assert vm.delete("new") == "OK"
    assert vm.rollback("old") == "OK"


@pytest.mark.parametrize(("guest_type", "storage"), [("qemu", "raw"), ("lxc", "dir-qcow2"), ("lxc", "raw")])
def test_a_storage_without_snapshots_ends_the_task_and_leaves_nothing(pve: PveServer, guest_type: str, storage: str) -> None:
    vm = guest(pve, type=guest_type, storage=storage)
    assert vm.data("GET", f"{vm.path}/feature", feature="snapshot")["hasFeature"] == 0
    assert vm.create("ab") == "snapshot feature is not available"
    assert list(vm.listed()) == ["current"] and "lock" not in vm.status()


def test_one_bad_disk_is_enough(pve: PveServer) -> None:
    vm = guest(pve, storage=["dir-qcow2", "raw"])
    assert vm.create("ab") == "snapshot feature is not available"
    pve.set_guest(100, config={"scsi1": "local:iso/debian.iso,media=cdrom"})
    assert vm.create("ab") == "OK"


def test_a_storage_that_is_gone_is_named(pve: PveServer) -> None:
    vm = guest(pve, storage="gone")
    assert vm.refused("GET", f"{vm.path}/feature", feature="snapshot") == "500 storage 'gone' does not exist"
    assert vm.create("ab") == "storage 'gone' does not exist"
    assert pve.guest(100)["snapshots"] == [] and pve.guest(100)["lock"] is None


def test_memory_needs_a_storage_that_exists(pve: PveServer) -> None:
    vm = guest(pve, storage="zfs")
    assert vm.create("ab", vmstate=1) == "OK"
    assert vm.data("GET", f"{vm.snapshots}/ab/config")["vmstate"] == "local-zfs:vm-100-state-ab"
    pve.set_guest(100, config={"vmstatestorage": "gone"})
    assert vm.create("bc", vmstate=1) == "storage 'gone' does not exist"
    assert "bc" not in vm.listed() and "lock" not in vm.status()


# -- containers ------------------------------------------------------------------------------------------------------------


def test_a_container_has_its_own_words(pve: PveServer) -> None:
    ct = guest(pve, type="lxc", storage="zfs")
    upid = ct.data("POST", ct.snapshots, snapname="ab", description="x")
    assert upid.split(":")[5] == "vzsnapshot" and ct.exit_text(upid) == "OK"
    row = ct.listed()["ab"]
    assert row["description"] == "x\n" and "vmstate" not in row
    assert ct.data("GET", f"{ct.path}/feature", feature="snapshot") == {"hasFeature": 1}
    pve.set_guest(100, lock="fstrim")
    assert ct.delete("ab") == "CT is locked (fstrim)"
    assert ct.refused("POST", ct.snapshots, snapname="cd", vmstate=1) == "400 Parameter verification failed."
    missing = "500 Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist"
    assert ct.refused("GET", "/nodes/pve1/qemu/100/snapshot") == missing


@pytest.mark.parametrize("name", ["current", "vzdump"])
def test_a_container_reserves_other_names_than_a_vm(pve: PveServer, name: str) -> None:
    ct = guest(pve, type="lxc", storage="zfs")
    text = f"500 unable to use snapshot name '{name}' (reserved name)"
    assert ct.refused("POST", ct.snapshots, snapname=name) == text
    assert ct.create("pending") == "OK"


def test_a_rollback_stops_a_container_and_may_start_it(pve: PveServer) -> None:
    ct = guest(pve, type="lxc", storage="zfs")
    ct.create("ab")
    assert ct.rollback("ab") == "OK" and ct.status()["status"] == "stopped"
    pve.second_start_seconds = 0.0
    assert ct.rollback("ab", start=1) == "OK"
    (start,) = pve.task_list("vzstart")
    assert ct.exit_text(start["upid"]) == "OK" and ct.status()["status"] == "running"


# -- descriptions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "of_a_vm", "of_a_container"),
    [
        ("two\nlines \n\n", "two\nlines", "two\nlines \n"),
        ("100 % # \t 😀 a=b&c\r\nend", "100 % # \t 😀 a=b&c\r\nend", "100 % # \t 😀 a=b&c\r\nend\n"),
        ("0", "", ""),
        ("", "", ""),
        (" \n", "", ""),
        ("x" * 9000, "x" * 9000, "x" * 9000 + "\n"),
    ],
)
def test_descriptions_come_back_as_they_do(pve: PveServer, text: str, of_a_vm: str, of_a_container: str) -> None:
    for guest_type, expected in (("qemu", of_a_vm), ("lxc", of_a_container)):
        vm = guest(pve, type=guest_type, storage="lvmthin")
        assert vm.create("ab", description=text) == "OK"
        assert vm.listed()["ab"]["description"] == expected


@pytest.mark.parametrize(
    ("guest_type", "text", "in_list", "in_config"),
    [
        ("qemu", "two\nlines \n", "two\nlines", "two\nlines"),
        ("qemu", "0", "", "0"),
        ("qemu", "", "", None),
        ("lxc", "x", "x\n", "x\n"),
        ("lxc", "0", "0\n", "0\n"),
        ("lxc", "", "", None),
    ],
)
def test_a_description_can_be_replaced(pve: PveServer, guest_type: str, text: str, in_list: str, in_config: str | None) -> None:
    vm = guest(pve, type=guest_type, storage="lvmthin")
    vm.create("ab", description="first")
    assert vm.data("PUT", f"{vm.snapshots}/ab/config", description=text) is None
    assert vm.listed()["ab"]["description"] == in_list
    assert vm.data("GET", f"{vm.snapshots}/ab/config").get("description") == in_config


def test_a_put_without_a_description_does_nothing_even_where_it_could_not(vm: GuestClient, pve: PveServer) -> None:
    pve.set_guest(100, lock="backup")
    assert vm.data("PUT", f"{vm.snapshots}/nope/config") is None
    assert vm.refused("PUT", f"{vm.snapshots}/nope/config", description="x") == "500 VM is locked (backup)"


# -- what a rollback replaces ----------------------------------------------------------------------------------------------


def test_a_rollback_replaces_the_whole_configuration_but_notes_and_unused_disks(pve: PveServer) -> None:
    vm = guest(pve, tags="old", config={"description": "notes", "vmgenid": "6e0a3b5c-0000-4000-8000-000000000001"})
    vm.create("ab")
    pve.set_guest(100, name="renamed", memory_mb=4096, tags="new", protection=True, config={"description": "newer notes"})
    key = pve.add_disk(100, "lvmthin")
    assert vm.rollback("ab") == "OK"
    config = pve.guest(100)["config"]
    assert (config["name"], config["memory"], config["tags"]) == ("web01", "512", "old")
    assert config["description"] == "newer notes" and config["unused0"] == "local-lvm:vm-100-disk-1"
    assert key not in config and "protection" not in config and "lock" not in config
    assert config["vmgenid"] != "6e0a3b5c-0000-4000-8000-000000000001"
    assert vm.listed()["current"]["parent"] == "ab"
    assert pve.guest(100)["name"] == "web01"


def test_power_after_a_rollback_is_that_of_the_snapshot(vm: GuestClient) -> None:
    vm.create("disks")
    vm.create("memory", vmstate=1)
    assert vm.rollback("disks") == "OK" and vm.status()["status"] == "stopped"
    assert vm.rollback("disks") == "OK" and vm.status()["status"] == "stopped"
    assert vm.rollback("memory") == "OK" and vm.status()["status"] == "running"
    assert not {"runningmachine", "runningcpu", "vmstate"} & set(vm.data("GET", f"{vm.path}/config"))


def test_the_start_after_a_rollback_is_another_task_that_may_fail(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    pve.fault_task("qmstart", exitstatus="start failed: QEMU exited with code 1")
    assert vm.rollback("ab", start=1) == "OK"
    assert vm.status()["status"] == "stopped"
    (start,) = pve.task_list("qmstart")
    assert vm.exit_text(start["upid"]) == "start failed: QEMU exited with code 1"
    assert vm.status()["status"] == "stopped"


def test_no_start_task_follows_where_memory_came_back(pve: PveServer, vm: GuestClient) -> None:
    vm.create("memory", vmstate=1)
    assert vm.rollback("memory", start=1) == "OK"
    assert pve.task_list("qmstart") == []


def test_with_high_availability_the_start_is_asked_for(pve: PveServer, vm: GuestClient) -> None:
    pve.set_guest(100, managed=True)
    pve.second_start_seconds = 0.0
    vm.create("ab")
    assert vm.rollback("ab", start=1) == "OK"
    assert [task["type"] for task in pve.task_list()][:3] == ["qmsnapshot", "qmrollback", "hastart"]
    assert vm.exit_text(pve.task_list("hastart")[0]["upid"]) == "OK"
    (start,) = pve.task_list("qmstart")
    assert vm.exit_text(start["upid"]) == "OK" and start["user"] == "root@pam"
    assert vm.status()["ha"]["managed"] == 1 and vm.status()["status"] == "running"


# -- templates and stuck states --------------------------------------------------------------------------------------------


def test_the_delete_on_a_template_leaves_its_lock(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    pve.set_guest(100, template=True)
    assert vm.status()["template"] == 1
    assert vm.create("cd") == "you can't take a snapshot if it's a template"
    assert vm.rollback("ab") == "you can't rollback if vm is a template"
    assert "lock" not in vm.status()
    assert vm.delete("ab") == "you can't delete a snapshot if vm is a template"
    assert vm.status()["lock"] == "snapshot-delete"


def test_a_killed_create_stays_until_it_is_unlocked_and_forced_away(pve: PveServer, vm: GuestClient) -> None:
    pve.fault_task("qmsnapshot", killed=True)
    assert vm.create("ab") == "unexpected status"
    assert vm.status()["lock"] == "snapshot" and vm.listed()["ab"]["snapstate"] == "prepare"
    assert "parent" not in vm.listed()["current"]
    assert vm.rollback("ab") == "unable to rollback to incomplete snapshot (snapstate = prepare)"
    assert vm.delete("ab", force=1) == "VM is locked (snapshot)"
    pve.set_guest(100, lock=None)
    assert vm.delete("ab").endswith("/images/100/vm-100-disk-0.qcow2' failed: exit code 1 ")
    assert vm.delete("ab", force=1) == "VM is locked (snapshot-delete)"
    pve.set_guest(100, lock=None)
    assert vm.delete("ab", force=1) == "OK"
    assert list(vm.listed()) == ["current"] and "lock" not in vm.status()


def test_a_delete_that_fails_keeps_lock_and_snapstate(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    text = "command '/usr/bin/qemu-img snapshot -d ab /var/lib/vz/images/100/vm-100-disk-0.qcow2' failed: exit code 1 "
    pve.fault_task("qmdelsnapshot", exitstatus=text)
    assert vm.delete("ab") == text
    assert vm.status()["lock"] == "snapshot-delete" and vm.listed()["ab"]["snapstate"] == "delete"
    assert vm.create("cd") == "VM is locked (snapshot-delete)"


def test_a_forced_delete_goes_on_and_only_logs_what_fails(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    pve.fault_task("qmdelsnapshot", exitstatus="no such image")
    upid = vm.data("DELETE", f"{vm.snapshots}/ab", force=1)
    assert vm.exit_text(upid) == "OK"
    log = [line["t"] for line in vm.data("GET", f"/nodes/pve1/tasks/{upid}/log")]
    assert log == ["no such image", "TASK OK"]
    assert list(vm.listed()) == ["current"]


def test_a_create_that_fails_cleans_up(pve: PveServer, vm: GuestClient) -> None:
    pve.fault_task("qmsnapshot", exitstatus="unable to open file")
    upid = vm.data("POST", vm.snapshots, snapname="ab", vmstate=1)
    assert vm.exit_text(upid) == "unable to open file"
    assert [line["t"] for line in vm.data("GET", f"/nodes/pve1/tasks/{upid}/log")] == [
        "snapshot create failed: starting cleanup",
        "TASK ERROR: unable to open file",
    ]
    assert list(vm.listed()) == ["current"] and "lock" not in vm.status()


def test_a_rollback_that_fails_leaves_its_lock_and_the_guest_stopped(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    pve.set_guest(100, data="changed", name="renamed")
    pve.fault_task("qmrollback", exitstatus="disk failed")
    assert vm.rollback("ab") == "disk failed"
    after = pve.guest(100)
    assert (after["lock"], after["status"], after["data"], after["name"]) == ("rollback", "stopped", "changed", "renamed")


def test_vzdump_leaks_the_snapshots_of_its_disks(pve: PveServer, vm: GuestClient) -> None:
    for expected in (["vzdump"], ["vzdump", "vzdump"]):
        assert vm.create("vzdump") == "OK"
        assert vm.delete("vzdump") == "OK"
        assert list(vm.listed()) == ["current"]
        assert pve.snapshots_on_disk(100) == {"local:100/vm-100-disk-0.qcow2": expected}


def test_a_rollback_that_meets_a_lock_does_not_stop_the_guest(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    pve.set_guest(100, lock="backup")
    assert vm.rollback("ab") == "VM is locked (backup)"
    assert vm.status()["status"] == "running"


def test_a_replicated_guest_keeps_what_replication_needs(pve: PveServer, vm: GuestClient) -> None:
    vm.create("ab")
    pve.set_guest(100, replicated=True)
    assert vm.delete("ab") == "snapshot 'ab' needed by replication job '100-0' - run replication first"
    assert "lock" not in vm.status()
    assert vm.delete("ab", force=1) == "OK"


def test_virtiofs_forbids_memory_before_there_is_a_task(pve: PveServer) -> None:
    vm = guest(pve, config={"virtiofs0": "share"})
    text = "500 Cannot live-migrate, snapshot (with RAM), or hibernate a VM with: virtiofs"
    assert vm.refused("POST", vm.snapshots, snapname="ab", vmstate=1) == text
    assert vm.create("ab") == "OK"


# -- by hand ---------------------------------------------------------------------------------------------------------------


def test_what_is_done_by_hand_is_seen_by_clients(pve: PveServer, vm: GuestClient) -> None:
    pve.snapshot_by_hand(100, "before", "by hand ", vmstate=True)
    pve.snapshot_by_hand(100, "after")
    rows = vm.listed()
    assert rows["before"]["description"] == "by hand" and rows["before"]["vmstate"] == 1
    assert rows["after"]["parent"] == "before" and rows["current"]["parent"] == "after"
    pve.remove_snapshot(100, "before")
    assert "parent" not in vm.listed()["after"]
    assert vm.delete("after") == "OK"
    assert pve.guest(100)["snapshots"] == []


def test_the_digest_follows_every_change(pve: PveServer, vm: GuestClient) -> None:
    digests = [vm.listed()["current"]["digest"]]
    vm.create("ab")
    digests.append(vm.listed()["current"]["digest"])
    vm.data("PUT", f"{vm.snapshots}/ab/config", description="x")
    digests.append(vm.listed()["current"]["digest"])
    pve.set_guest(100, memory_mb=1024)
    digests.append(vm.data("GET", f"{vm.path}/config")["digest"])
    assert len(set(digests)) == 4
    assert vm.listed()["current"]["digest"] == digests[-1]


def test_the_list_is_in_no_order_but_current_is_last(pve: PveServer, vm: GuestClient) -> None:
    for number in range(6):
        pve.snapshot_by_hand(100, f"s{number}")
    orders = {tuple(vm.listed()) for _ in range(20)}
    assert len(orders) > 1 and {order[-1] for order in orders} == {"current"}
    assert [snapshot["name"] for snapshot in pve.guest(100)["snapshots"]] == [f"s{number}" for number in range(6)]
