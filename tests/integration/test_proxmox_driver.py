# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The driver with a Proxmox VE cluster that migrates guests, answers late or not at all, and has other users."""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from kit import at_once, code, only, pruning
from proxmox_backend import ProxmoxBackend
from pve_server import PveServer

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox import session, tasks
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

OURS = "[safepoint v=1 owner=safepoint]"
TAKE = "/nodes/*/snapshot"


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


class Meanwhile(ProxmoxBackend):
    """Run an action between the read and the first write."""

    def __init__(self, pve: PveServer, happens: t.Callable[[], object]) -> None:
        super().__init__(pve)
        self.happens = [happens]

    def open(self) -> SnapshotDriver:
        driver = super().open()
        start = driver.start

        def begin(action: Action) -> Job:
            if self.happens:
                self.happens.pop()()
            return start(action)

        driver.start = begin  # type: ignore[method-assign]
        return driver


def names(cluster: PveServer, vmid: int) -> list[str]:
    return [one["name"] for one in cluster.guest(vmid)["snapshots"]]


# -- places of guests ----------------------------------------------------------------------------------------------------


def test_guest_migrated_between_read_and_write_is_followed(cluster: PveServer, vmid: int) -> None:
    backend = Meanwhile(cluster, lambda: cluster.set_guest(vmid, node="pve2"))
    done = only(backend.run(Present(Request(name="xx")), "web01"))
    assert (done.word, done.error, names(cluster, vmid)) == ("created", None, ["xx"])


def test_guest_removed_between_read_and_write_is_not_found(cluster: PveServer, vmid: int) -> None:
    backend = Meanwhile(cluster, lambda: cluster.remove_guest(vmid))
    done = only(backend.run(Present(Request(name="xx")), "web01"))
    assert code(done) == "vm_not_found" and "does not exist any more" in str(done.error)
    assert done.changed is False


def test_guests_on_an_offline_node_are_named_by_vmid_and_the_others_continue(backend: ProxmoxBackend, cluster: PveServer) -> None:
    here, there = cluster.make_guest("here"), cluster.make_guest("there", node="pve2")
    cluster.node_offline("pve2")
    lost, done, unknown = backend.run(Present(Request(name="xx")), str(there), "here", "there", on_error="continue")
    assert (done.word, names(cluster, here)) == ("created", ["xx"])
    assert code(lost) == "connection_failed" and "595" in str(lost.error) and "the node pve2" in str(lost.error)
    assert lost.changed is False
    assert code(unknown) == "vm_not_found" and f"use the vmid, {there}" in str(unknown.error)
    assert names(cluster, there) == []


@pytest.mark.parametrize("what", ["create", "describe", "revert", "remove"])
def test_request_that_never_reached_its_node_has_changed_nothing(
    cluster: PveServer, vmid: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """595 means that there was no connection; the node stays offline, so that nothing can be looked up."""
    monkeypatch.setattr(f"{session.__name__}._NODE_SECONDS", 0.5)
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    plan = {
        "create": Present(Request(name="new")),
        "describe": Present(Request(name="old", description="text")),
        "revert": Reverted(Request(name="old")),
        "remove": Absent(Request(name="old")),
    }[what]
    backend = Meanwhile(cluster, lambda: cluster.node_offline("pve1"))
    done = only(backend.run(plan, str(vmid), on_error="stop"))
    assert (code(done), done.changed) == ("connection_failed", False)
    assert cluster.task_list() == []


def test_node_that_goes_down_does_not_delay_the_others(
    backend: ProxmoxBackend, cluster: PveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{tasks.__name__}._NODE_SECONDS", 0.5)
    monkeypatch.setattr(f"{session.__name__}._NODE_SECONDS", 0.5)
    there, here = cluster.make_guest("a-there", node="pve2"), cluster.make_guest("b-here")
    cluster.set_task_seconds(1, "qmsnapshot")
    threading.Timer(0.5, cluster.node_offline, ["pve2"]).start()
    lost, done = backend.run(Present(Request(name="xx")), str(there), str(here), on_error="continue")
    assert (done.word, done.error) == ("created", None)
    assert code(lost) == "unverified" and "the node pve2" in str(lost.error) and "node is up" in str(lost.error)


def test_slow_node_does_not_delay_the_others(backend: ProxmoxBackend, cluster: PveServer) -> None:
    here = cluster.make_guest("a-here")
    cluster.make_guest("b-there", node="pve2")
    cluster.set_task_seconds(0.3, "qmsnapshot")
    cluster.fault("GET", "/nodes/pve2/tasks", delay=3.0, count=None)
    driver = backend.open()
    vms = driver.vms()
    jobs = [driver.start(Create(vm, "xx", OURS, memory=False)) for vm in vms]
    began = time.monotonic()
    (first,) = driver.wait(jobs, Deadline(30))
    assert (first.job.action.vm.id, first.error) == (str(here), None) and time.monotonic() - began < 2.5
    cluster.clear_faults()
    (second,) = driver.wait([jobs[1]], Deadline(30))
    assert second.error is None
    driver.close()


def test_short_outage_of_a_node_does_not_fail_its_tasks(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.fault("GET", "/nodes/*/tasks", status=596, count=6)
    assert only(backend.run(Present(Request(name="xx")), "web01")).word == "created"


def test_new_or_renamed_guest_is_found_by_its_name(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.stale(60)
    cluster.make_guest("fresh")
    cluster.set_guest(vmid, name="renamed")
    fresh, renamed = backend.run(Present(Request(name="xx")), "fresh", "renamed")
    assert (fresh.word, renamed.word) == ("created", "created")
    assert names(cluster, vmid) == ["xx"]


def test_name_that_moved_to_another_guest_changes_neither(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    other = cluster.make_guest("web02")
    for one in (vmid, other):
        cluster.snapshot_by_hand(one, "old", description=OURS)
        cluster.set_guest(one, data="now")
    cluster.stale(60)
    cluster.set_guest(vmid, name="web01-old")
    cluster.set_guest(other, name="web01")
    for plan in (
        Present(Request(name="new")),
        Present(Request(name="old", description="text")),
        Reverted(Request(name="old")),
        Absent(Request(name="old")),
    ):
        done = only(backend.run(plan, "web01", on_error="undo"))
        assert (code(done), done.changed) == ("vm_not_found", False)
        assert f"to 'web01-old'; 'web01' is now pve1/{other}" in str(done.error) and f"id:{vmid}" in str(done.error)
    assert cluster.task_list() == [] and names(cluster, vmid) == names(cluster, other) == ["old"]
    assert only(backend.run(Present(Request(name="new")), f"id:{vmid}")).word == "created"
    assert backend.look("web01").error is None  # a read may be some seconds old


def test_guests_with_the_same_name_are_listed_with_node_and_vmid(backend: ProxmoxBackend, cluster: PveServer) -> None:
    one, two = cluster.make_guest("twin"), cluster.make_guest("twin", node="pve2", type="lxc", storage="lvmthin")
    seen = backend.look("twin")
    assert code(seen) == "vm_ambiguous"
    assert f"pve1/{one}" in str(seen.error) and f"pve2/{two}" in str(seen.error) and f"id:{one}" in str(seen.error)
    for ref in (str(two), f"id:{two}", f"pve2/{two}"):
        assert backend.look(ref).vm.id == str(two)  # type: ignore[union-attr]


def test_rollback_may_restore_another_name(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    backend.take("web01", "xx")
    cluster.set_guest(vmid, name="web02")
    done = backend.revert("web02", "xx", power="on")
    assert (done.word, done.error) == ("reverted", None)
    assert (cluster.guest(vmid)["name"], cluster.guest(vmid)["status"]) == ("web01", "running")


# -- other users --------------------------------------------------------------------------------------------------------------


def replace_snapshot(cluster: PveServer, vmid: int) -> None:
    """As another user, replace the snapshot by one with the same name, another owner and a creation time some seconds later."""
    cluster.remove_snapshot(vmid, "old")
    cluster.set_guest(vmid, data="later")
    cluster.snapshot_by_hand(vmid, "old", description="by another user")
    cluster.set_snapshot(vmid, "old", snaptime=int(time.time()) + 5)


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
@pytest.mark.parametrize("what", ["absent", "prune", "revert", "describe"])
def test_new_snapshot_with_the_same_name_is_not_changed(cluster: PveServer, kind: str, what: str) -> None:
    vmid = cluster.make_guest("web01", type=kind, storage="lvmthin")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    begun = len(cluster.task_list())
    plan = {
        "absent": Absent(Request(name="old")),
        "prune": pruning(everything=True, confirm=1),
        "revert": Reverted(Request(name="old")),
        "describe": Present(Request(name="old", description="text")),
    }[what]
    done = only(Meanwhile(cluster, lambda: replace_snapshot(cluster, vmid)).run(plan, "web01", on_error="stop"))
    assert not done.changed
    (left,) = cluster.guest(vmid)["snapshots"]
    assert left["description"].rstrip() == "by another user" and len(cluster.task_list()) == begun
    # For prune, the snapshot to remove is gone; the other operations decide again, on a snapshot that is foreign.
    assert code(done) == (None if what == "prune" else "foreign")
    assert cluster.guest(vmid)["data"] == "later"


def test_write_after_an_outage_does_not_change_a_new_snapshot_with_the_same_name(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int
) -> None:
    """The first request does not arrive, and the snapshot is replaced before the second."""
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.fault("DELETE", "*/snapshot/old", status=595, delay=1.5)
    threading.Timer(0.8, replace_snapshot, [cluster, vmid]).start()
    done = only(backend.run(Absent(Request(name="old")), "web01", on_error="stop"))
    assert (code(done), done.changed, names(cluster, vmid)) == ("foreign", False, ["old"])
    assert cluster.task_list("qmdelsnapshot") == []


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_two_simultaneous_runs_create_one_snapshot(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, seconds: float
) -> None:
    cluster.set_task_seconds(seconds, "qmsnapshot")
    barrier = threading.Barrier(2)
    runs = [Meanwhile(cluster, barrier.wait) for _each in range(2)]  # both have read, and none has created
    done = at_once(2, lambda: only(runs.pop().run(Present(Request(name="race")), "web01")))
    assert [one.error for one in done] == [None, None]
    assert sorted(one.word for one in done) == ["created", "lost_race"]
    assert sorted(one.changed for one in done) == [False, True]
    assert names(cluster, vmid) == ["race"]


def test_lock_that_is_released_is_waited_for(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.set_guest(vmid, lock="backup")
    threading.Timer(0.7, cluster.set_guest, [vmid], {"lock": None}).start()
    done = only(backend.run(Present(Request(name="xx")), "web01", lock_timeout=20.0))
    assert (done.word, done.error) == ("created", None)


def test_lock_between_read_and_write_is_waited_for(cluster: PveServer, vmid: int) -> None:
    backend = Meanwhile(cluster, lambda: cluster.set_guest(vmid, lock="backup"))
    threading.Timer(0.7, cluster.set_guest, [vmid], {"lock": None}).start()
    done = only(backend.run(Present(Request(name="xx")), "web01", lock_timeout=20.0))
    assert (done.word, names(cluster, vmid)) == ("created", ["xx"])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("backup", ["a backup is running"]),
        ("snapshot", ["no task that holds the lock", "qm unlock {vmid}"]),
        ("snapshot-delete", ["no task that holds the lock", "qm unlock {vmid}"]),
        ("rollback", ["qm unlock {vmid}"]),
        ("suspended", ["resume it"]),
        ("migrate", ["being migrated"]),
    ],
)
def test_permanent_lock_is_reported_with_its_kind_and_the_remedy(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, kind: str, words: list[str]
) -> None:
    cluster.set_guest(vmid, lock=kind)
    done = only(backend.run(Present(Request(name="xx")), "web01", lock_timeout=0.1))
    (finding,) = backend.info("web01")["findings"]
    assert code(done) == "locked" and done.changed is False
    for word in words:
        assert word.format(vmid=vmid) in str(done.error) and word.format(vmid=vmid) in finding["remedy"]
    assert f"'{kind}'" in str(done.error) and f"'{kind}'" in finding["msg"]


def test_age_uses_the_clock_of_the_server(cluster: PveServer, vmid: int) -> None:
    ahead = cluster.clock_ahead = 7200
    driver = ProxmoxBackend(cluster).open()
    assert abs(driver.now().timestamp() - time.time() - ahead) < 10
    driver.close()
