# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The driver with faults of Proxmox VE, with locks, and with high availability."""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from kit import at_once, code, only, pruning
from proxmox_backend import ContainerBackend, ProxmoxBackend
from pve_server import PveServer

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


def writes(cluster: PveServer) -> int:
    return sum(number for call, number in cluster.counters().items() if not call.startswith("GET"))


# -- workers that do not start ---------------------------------------------------------------------------------------------


def test_many_guests_are_processed_although_workers_fail_to_start(backend: ProxmoxBackend, cluster: PveServer) -> None:
    vmids = [cluster.make_guest(f"app{number:02d}") for number in range(20)]
    cluster.worker_failure_rate = 0.3
    for plan, word in (
        (Present(Request(name="xx")), "created"),
        (Reverted(Request(name="xx", power="on")), "reverted"),
        (Absent(Request(name="xx")), "removed"),
    ):
        done = backend.run(plan, *(str(one) for one in vmids), on_error="undo")
        assert [(one.error, one.word) for one in done] == [(None, word)] * 20
    assert {cluster.guest(one)["status"] for one in vmids} == {"running"}
    assert [task["exitstatus"] for task in cluster.task_list()] == ["OK"] * 80


def test_workers_that_never_start_are_reported_after_the_timeout(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.fault_task("qmsnapshot", not_started=True, count=None)
    done = only(backend.run(Present(Request(name="xx")), "web01", timeout=1.5))
    assert code(done) == "backend_failed" and "got no worker upid" in str(done.error) and not done.changed
    assert names(cluster, vmid) == []


# -- locks -----------------------------------------------------------------------------------------------------------------


def test_lock_left_by_a_finished_removal_is_reported(cluster: PveServer) -> None:
    """Two calls from different machines ran on one container."""
    ct = cluster.make_guest("ct", type="lxc", storage="lvmthin")
    cluster.snapshot_by_hand(ct, "old", description=OURS)
    cluster.fault_task("vzdelsnapshot", exitstatus="snapshot 'old' does not exist")
    done = ContainerBackend(cluster).remove("ct", "old")
    assert code(done) == "backend_failed" and done.changed
    assert "left the lock 'snapshot-delete'" in str(done.error) and f"pct unlock {ct} on its node" in str(done.error)
    assert "--force" not in str(done.error)


def test_removal_on_a_new_template_reports_the_remaining_lock(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    done = only(
        backend.run(
            Absent(Request(name="old")), "web01", meanwhile=lambda: cluster.set_guest(vmid, template=True, status="stopped")
        )
    )
    assert code(done) == "backend_failed" and "template" in str(done.error)
    assert "left the lock 'snapshot-delete'" in str(done.error) and f"qm unlock {vmid}" in str(done.error)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("what", ["absent", "prune"])
def test_parallel_removals_on_one_container_leave_no_lock(cluster: PveServer, what: str, number: int) -> None:
    backend = ContainerBackend(cluster)
    ct = cluster.make_guest("ct", type="lxc", storage="lvmthin")
    cluster.set_task_seconds(0.2, "vzdelsnapshot")
    for name in ("keep", "aa", "bb", "cc"):
        cluster.snapshot_by_hand(ct, name, description=OURS)

    def remove() -> t.Any:
        plan = Absent(Request(name="aa", children="remove")) if what == "absent" else pruning(everything=True, confirm=1)
        return only(backend.run(plan, "ct", lock_timeout=30.0))

    done = at_once(number, remove)
    assert [one.error for one in done] == [None] * number
    assert names(cluster, ct) == (["keep"] if what == "absent" else [])
    assert cluster.guest(ct)["lock"] is None


def test_wait_for_a_lock_sends_only_reads(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    threading.Timer(4.0, cluster.set_guest, [vmid], {"lock": None}).start()
    cluster.reset_counters()
    done = only(
        backend.run(
            Absent(Request(name="old")), "web01", lock_timeout=60.0, meanwhile=lambda: cluster.set_guest(vmid, lock="backup")
        )
    )
    assert (done.word, done.error, names(cluster, vmid)) == ("removed", None, [])
    # The request that met the lock, and the one that succeeded.
    assert writes(cluster) == 2


def test_wait_for_a_migration_lock_sends_only_reads_while_its_task_runs(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.snapshot_by_hand(vmid, "new", description=OURS)
    cluster.set_task_seconds(4.0, "qmdelsnapshot")

    def other() -> None:
        driver = backend.open()
        driver._session.write("delete", f"nodes/pve1/qemu/{vmid}/snapshot/new", str)  # type: ignore[attr-defined]
        driver.close()
        cluster.set_task_seconds(0.0, "qmdelsnapshot")

    cluster.reset_counters()
    done = only(backend.run(Absent(Request(name="old")), "web01", lock_timeout=60.0, meanwhile=other))
    assert (done.word, done.error, names(cluster, vmid)) == ("removed", None, [])
    assert writes(cluster) <= 3


def test_containers_of_two_clusters_with_the_same_vmid_do_not_wait_for_each_other(cluster: PveServer) -> None:
    with PveServer() as other:
        for one in (cluster, other):
            one.snapshot_by_hand(one.make_guest("web01", vmid=100, type="lxc"), "old", description=OURS)
        held = cluster.fault("DELETE", "*/snapshot/old", hold=True)
        first = threading.Thread(target=ProxmoxBackend(cluster).run, args=[Absent(Request(name="old")), "web01"])
        first.start()
        try:
            assert held.reached.wait(60)
            done = only(ProxmoxBackend(other).run(Absent(Request(name="old")), "web01", lock_timeout=0.0))
        finally:
            held.release()
            first.join(60)
    assert (done.word, done.error) == ("removed", None)
    assert names(cluster, 100) == []


@pytest.mark.parametrize("plan", [Absent(Request(name="old")), pruning(everything=True, confirm=1)], ids=["absent", "prune"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_permanent_lock_is_reported_with_the_remedy(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, plan: t.Any, when: str
) -> None:
    cluster.snapshot_by_hand(vmid, "old", description=OURS)

    def lock() -> None:
        cluster.set_guest(vmid, lock="snapshot-delete")

    if when == "before":
        lock()
    done = only(backend.run(plan, "web01", lock_timeout=2.5, meanwhile=lock))
    assert code(done) == "locked" and not done.changed
    assert f"qm unlock {vmid} on its node" in str(done.error) and "'snapshot-delete'" in str(done.error)


def test_open_console_does_not_block(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.set_task_seconds(60, "vncproxy")
    cluster.open_console(vmid)
    cluster.set_guest(vmid, lock="backup")
    assert "vncproxy" not in str(only(backend.run(Absent(Request(name="old")), "web01", lock_timeout=0.0)).error)
    cluster.set_guest(vmid, lock=None)
    held = cluster.hold_migration_lock(vmid)
    held.__enter__()
    threading.Timer(0.5, held.__exit__, [None, None, None]).start()
    assert only(backend.run(Absent(Request(name="old")), "web01", lock_timeout=20.0)).word == "removed"


def test_present_without_changes_does_not_wait_for_a_backup(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    backend.take("web01", "xx")
    cluster.set_guest(vmid, lock="backup")
    began = time.monotonic()
    done = only(backend.run(Present(Request(name="xx")), "web01", lock_timeout=60.0))
    assert (done.word, done.error, done.changed) == ("exists", None, False)
    assert time.monotonic() - began < 30
    # A call that has something to write waits.
    cluster.reset_counters()
    waits = only(backend.run(Present(Request(name="xx", labels={"a": "1"})), "web01", lock_timeout=1.0))
    assert code(waits) == "locked" and writes(cluster) == 0


# -- after a rollback ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [False, True])
def test_start_after_a_revert_waits_for_the_lock_of_another_operation(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, memory: bool
) -> None:
    backend.take("web01", "xx", memory=memory)
    cluster.snapshot_by_hand(vmid, "other", description=OURS)
    cluster.set_task_seconds(1.0, "qmrollback")
    cluster.set_task_seconds(2.0, "qmdelsnapshot")

    def remove_at_the_end() -> None:
        while not any(task["exitstatus"] for task in cluster.task_list("qmrollback")):
            time.sleep(0.001)
        with cluster.lock:
            cluster.guests[vmid].config["lock"] = "snapshot-delete"
        threading.Timer(2.0, cluster.set_guest, [vmid], {"lock": None}).start()

    threading.Thread(target=remove_at_the_end, daemon=True).start()
    power = "off" if memory else "on"
    done = only(backend.run(Reverted(Request(name="xx", power=power)), "web01", lock_timeout=30.0))
    assert (done.word, done.error) == ("reverted", None)
    assert cluster.guest(vmid)["status"] == ("stopped" if memory else "running")
    assert len(cluster.task_list("qmrollback")) == 1


def test_parallel_reverts_end_as_requested(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    backend.take("web01", "xx")
    cluster.set_task_seconds(0.3, "qmrollback")
    cluster.set_task_seconds(0.2, "qmstart")
    for _round in range(3):
        done = at_once(3, lambda: only(backend.run(Reverted(Request(name="xx", power="on")), "web01", lock_timeout=60.0)))
        assert [(one.word, one.error) for one in done] == [("reverted", None)] * 3
        assert cluster.guest(vmid)["status"] == "running"


def test_new_snapshot_with_the_name_of_a_removed_one_belongs_to_another_run(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.set_snapshot(vmid, "old", snaptime=int(time.time()) - 3600)

    def take_again() -> None:
        while names(cluster, vmid):
            time.sleep(0.001)
        cluster.snapshot_by_hand(vmid, "old", description=OURS)

    for plan, word in ((Absent(Request(name="old")), "removed"), (pruning(everything=True, confirm=1), "pruned")):
        cluster.set_snapshot(vmid, "old", snaptime=int(time.time()) - 3600)
        thread = threading.Thread(target=take_again, daemon=True)
        thread.start()
        done = only(backend.run(plan, "web01"))
        thread.join()
        assert (done.word, done.error, names(cluster, vmid)) == (word, None, ["old"])


# -- high availability -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [False, True])
def test_guest_under_high_availability_is_kept_off_with_power_off(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, memory: bool
) -> None:
    backend.take("web01", "xx", memory=memory)
    cluster.set_guest(vmid, managed=True)
    cluster.ha_watch_seconds = 0.3
    cluster.second_start_seconds = 0.5
    done = backend.revert("web01", "xx", power="off")
    assert (done.word, done.error, done.warnings) == ("reverted", None, [])
    time.sleep(1.0)
    assert cluster.guest(vmid)["status"] == "stopped"


@pytest.mark.parametrize("dry_run", [True, False])
def test_automatic_start_by_high_availability_is_a_warning(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, dry_run: bool
) -> None:
    backend.take("web01", "xx")
    cluster.set_guest(vmid, managed=True)
    cluster.ha_watch_seconds = 0.0
    done = only(backend.run(Reverted(Request(name="xx")), "web01", dry_run=dry_run))
    assert (done.word, done.error) == ("reverted", None)
    assert "high availability starts it automatically" in done.warnings[0] and "power=off" in done.warnings[0]
    cluster.set_guest(vmid, ha_state="stopped")
    assert only(backend.run(Reverted(Request(name="xx")), "web01", dry_run=dry_run)).warnings == []


# -- messages and results ----------------------------------------------------------------------------------------------------------


def test_task_error_has_the_upid_and_the_last_log_line(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.fault_task("qmsnapshot", exitstatus="some storage trouble")
    done = only(backend.run(Present(Request(name="xx")), "web01", on_error="stop"))
    assert cluster.task_list()[0]["upid"] in str(done.error)
    assert "its log ends: snapshot create failed: starting cleanup" in str(done.error)


def test_paused_guest_is_shown_as_paused(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.set_guest(vmid, paused=True)
    cluster.make_guest("runs")
    assert backend.info("web01")["power"] == "paused" and backend.info("runs")["power"] == "running"
    cluster.set_guest(vmid, lock="snapshot")  # it stops the guest for a moment
    assert backend.info("web01")["power"] == "running"


def test_guests_with_the_same_name_have_ids_as_refs(backend: ProxmoxBackend, cluster: PveServer) -> None:
    twins = [cluster.make_guest("twin"), cluster.make_guest("twin", node="pve2")]
    cluster.make_guest("single")
    assert [one.target.ref for one in backend.looks()] == ["single", *map(str, twins)]


def test_pending_changes_are_no_present_drift(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    backend.take("web01", "xx")
    cluster.set_guest(vmid, pending={"memory": "2048", "net0": "virtio,bridge=vmbr0"})
    info = backend.info("web01", drift=True)
    rows = {one["what"]: (one["then"], one["now"]) for one in info["snapshots"][0]["drift"]}
    assert rows == {
        "memory_bytes from the next start on": (512 * 1024**2, 2048 * 1024**2),
        "network net0 from the next start on": (None, "virtio,bridge=vmbr0"),
    }
