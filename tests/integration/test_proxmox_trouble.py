# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the driver does about Proxmox VE's own faults, about locks, and beside high availability."""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from kit import at_once, code, only, pruning
from proxmox_backend import ContainerBackend, ProxmoxBackend
from pve_server import PveServer

from ansible_collections.safepoint.vm.plugins.module_utils._plan import Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Absent, Present, Reverted

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


def test_a_fleet_is_worked_on_although_workers_fail_to_start(backend: ProxmoxBackend, cluster: PveServer) -> None:
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


def test_workers_that_never_start_are_told_when_the_time_is_up(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.fault_task("qmsnapshot", not_started=True, count=None)
    done = only(backend.run(Present(Request(name="xx")), "web01", timeout=1.5))
    assert code(done) == "backend_failed" and "got no worker upid" in str(done.error) and not done.changed
    assert names(cluster, vmid) == []


# -- locks -----------------------------------------------------------------------------------------------------------------


def test_a_lock_that_a_removal_leaves_although_the_snapshot_is_gone_is_told(cluster: PveServer) -> None:
    """Another call on another machine met ours at a container."""
    ct = cluster.make_guest("ct", type="lxc", storage="lvmthin")
    cluster.snapshot_by_hand(ct, "old", description=OURS)
    cluster.fault_task("vzdelsnapshot", exitstatus="snapshot 'old' does not exist")
    done = ContainerBackend(cluster).remove("ct", "old")
    assert code(done) == "backend_failed" and done.changed
    assert "left the lock 'snapshot-delete'" in str(done.error) and f"pct unlock {ct} on its node" in str(done.error)
    assert "--force" not in str(done.error)


def test_a_removal_of_what_has_just_become_a_template_tells_the_lock_that_it_leaves(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
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
def test_calls_that_remove_from_one_container_at_once_leave_no_lock(cluster: PveServer, what: str, number: int) -> None:
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


def test_a_lock_is_waited_for_with_questions_alone(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    threading.Timer(4.0, cluster.set_guest, [vmid], {"lock": None}).start()
    cluster.reset_counters()
    done = only(
        backend.run(
            Absent(Request(name="old")), "web01", lock_timeout=60.0, meanwhile=lambda: cluster.set_guest(vmid, lock="backup")
        )
    )
    assert (done.word, done.error, names(cluster, vmid)) == ("removed", None, [])
    # The one that met the lock, and the one that did it.
    assert writes(cluster) == 2


def test_a_migration_lock_is_waited_for_with_questions_while_its_task_is_seen(
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


@pytest.mark.parametrize("plan", [Absent(Request(name="old")), pruning(everything=True, confirm=1)], ids=["absent", "prune"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_lock_that_stays_is_told_with_the_way_out(
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


def test_an_open_console_holds_nobody_up(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
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


def test_a_present_that_has_nothing_to_write_does_not_wait_for_a_backup(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    backend.take("web01", "xx")
    cluster.set_guest(vmid, lock="backup")
    began = time.monotonic()
    done = only(backend.run(Present(Request(name="xx")), "web01", lock_timeout=60.0))
    assert (done.word, done.error, done.changed) == ("exists", None, False)
    assert time.monotonic() - began < 30
    # What has something to write does.
    cluster.reset_counters()
    waits = only(backend.run(Present(Request(name="xx", labels={"a": "1"})), "web01", lock_timeout=1.0))
    assert code(waits) == "locked" and writes(cluster) == 0


# -- after a rollback ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [False, True])
def test_the_power_after_a_revert_waits_for_the_lock_of_another_operation(
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


def test_reverts_at_the_same_time_end_as_asked(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    backend.take("web01", "xx")
    cluster.set_task_seconds(0.3, "qmrollback")
    cluster.set_task_seconds(0.2, "qmstart")
    for _round in range(3):
        done = at_once(3, lambda: only(backend.run(Reverted(Request(name="xx", power="on")), "web01", lock_timeout=60.0)))
        assert [(one.word, one.error) for one in done] == [("reverted", None)] * 3
        assert cluster.guest(vmid)["status"] == "running"


def test_a_new_snapshot_of_a_removed_ones_name_is_another_runs(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
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
def test_a_guest_that_high_availability_keeps_started_is_kept_off_when_that_is_asked_for(
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
def test_a_guest_that_high_availability_will_start_again_is_warned_of(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, dry_run: bool
) -> None:
    backend.take("web01", "xx")
    cluster.set_guest(vmid, managed=True)
    cluster.ha_watch_seconds = 0.0
    done = only(backend.run(Reverted(Request(name="xx")), "web01", dry_run=dry_run))
    assert (done.word, done.error) == ("reverted", None)
    assert "high availability starts it again" in done.warnings[0] and "power=off" in done.warnings[0]
    cluster.set_guest(vmid, ha_state="stopped")
    assert only(backend.run(Reverted(Request(name="xx")), "web01", dry_run=dry_run)).warnings == []


# -- what is told ----------------------------------------------------------------------------------------------------------


def test_the_error_of_a_task_has_its_id_and_the_last_line_of_its_log(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    cluster.fault_task("qmsnapshot", exitstatus="some storage trouble")
    done = only(backend.run(Present(Request(name="xx")), "web01", on_error="stop"))
    assert cluster.task_list()[0]["upid"] in str(done.error)
    assert "its log ends: snapshot create failed: starting cleanup" in str(done.error)


def test_a_paused_guest_is_shown_as_paused(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.set_guest(vmid, paused=True)
    cluster.make_guest("runs")
    assert backend.info("web01")["power"] == "paused" and backend.info("runs")["power"] == "running"
    cluster.set_guest(vmid, lock="snapshot")  # that stops it for a moment
    assert backend.info("web01")["power"] == "running"


def test_guests_of_one_name_have_their_ids_as_refs(backend: ProxmoxBackend, cluster: PveServer) -> None:
    twins = [cluster.make_guest("twin"), cluster.make_guest("twin", node="pve2")]
    cluster.make_guest("single")
    assert [one.target.ref for one in backend.looks()] == ["single", *map(str, twins)]


def test_what_waits_for_the_next_start_is_no_drift_of_today(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    backend.take("web01", "xx")
    cluster.set_guest(vmid, pending={"memory": "2048", "net0": "virtio,bridge=vmbr0"})
    info = backend.info("web01", drift=True)
    rows = {one["what"]: (one["then"], one["now"]) for one in info["snapshots"][0]["drift"]}
    assert rows == {
        "memory_bytes from the next start on": (512 * 1024**2, 2048 * 1024**2),
        "network net0 from the next start on": (None, "virtio,bridge=vmbr0"),
    }
