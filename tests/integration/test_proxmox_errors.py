# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every known error text of Proxmox VE becomes one message with PVE's text, the right code and a remedy."""

from __future__ import annotations

import contextlib
import threading
import typing as t
from collections.abc import Callable, Iterator

import pytest
from kit import code, only
from proxmox_backend import ProxmoxBackend
from pve_server import PveServer

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox import session, writes
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

OURS = "[safepoint v=1 owner=safepoint]"
PLANS: dict[str, tuple[str, Plan]] = {
    "create": ("snapshot", Present(Request(name="new"))),
    "memory": ("snapshot", Present(Request(name="new", memory=True))),
    "describe": ("", Present(Request(name="old", labels={"a": "1"}))),
    "revert": ("rollback", Reverted(Request(name="old"))),
    "remove": ("delsnapshot", Absent(Request(name="old"))),
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[PveServer]:
    with PveServer() as started:
        started.lock_seconds = 0.1
        for name in ("_LOOK_SECONDS", "_SLOW_LOOK_SECONDS"):
            monkeypatch.setattr(f"{writes.__name__}.{name}", 0.2)
        monkeypatch.setattr(f"{session.__name__}._NODE_SECONDS", 0.2)
        yield started
        assert started.errors == ""


class Meanwhile(ProxmoxBackend):
    """Run an action between the read and each write, as if another run were faster."""

    def __init__(self, pve: PveServer, happens: Callable[[], object]) -> None:
        super().__init__(pve)
        self.happens = happens

    def open(self) -> SnapshotDriver:
        driver = super().open()
        start = driver.start

        def begin(action: Action) -> Job:
            self.happens()
            return start(action)

        driver.start = begin  # type: ignore[method-assign]
        return driver


def failing(backend: ProxmoxBackend, what: str) -> Outcome:
    """Run the operation and return its result; check that it failed with a one-line message."""
    done = only(backend.run(PLANS[what][1], "web01", on_error="stop", lock_timeout=0.0, timeout=5.0))
    assert done.error is not None
    assert "\n" not in str(done.error) and "  " not in str(done.error) and ".;" not in str(done.error)
    return done


TEXTS = [
    # operation, text, code, a word of the remedy
    ("create", "VM is locked (backup)", "locked", "a backup is running"),
    ("create", "VM is locked (clone)", "locked", "try again later"),
    ("create", "VM is locked (create)", "locked", "try again later"),
    ("create", "VM is locked (migrate)", "locked", "being migrated"),
    ("create", "VM is locked (rollback)", "locked", "try again later"),
    ("create", "VM is locked (snapshot)", "locked", "try again later"),
    ("remove", "VM is locked (snapshot-delete)", "locked", "try again later"),
    ("create", "VM is locked (suspending)", "locked", "suspended to disk"),
    ("create", "VM is locked (suspended)", "locked", "resume it"),
    ("create", "CT is locked (destroyed)", "locked", "try again later"),
    ("create", "CT is locked (disk)", "locked", "try again later"),
    ("create", "CT is locked (fstrim)", "locked", "try again later"),
    ("create", "CT is locked (mounted)", "locked", "pct unmount"),
    ("create", "snapshot feature is not available", "unsupported", "qcow2"),
    ("create", "storage 'gone' does not exist", "unsupported", "vmstatestorage"),
    ("create", "you can't take a snapshot if it's a template", "unsupported", "clone it"),
    ("revert", "you can't rollback if vm is a template", "unsupported", "clone it"),
    ("remove", "you can't delete a snapshot if vm is a template", "backend_failed", "qm unlock"),  # the lock stays
    ("revert", "unable to rollback to incomplete snapshot (snapstate = prepare)", "unsupported", "is incomplete"),
    (
        "revert",
        "can't rollback, 'old' is not most recent snapshot on '150/vm-150-disk-0.qcow2'",
        "newer_snapshots",
        "discard_newer",
    ),
    (
        "revert",
        "can't rollback, 'old' is not most recent snapshot on 'local-zfs:vm-100-disk-0'",
        "newer_snapshots",
        "discard_newer",
    ),
    (
        "revert",
        "can't rollback, snapshot 'old' does not exist on 'local-zfs:vm-100-disk-0'",
        "backend_failed",
        "missing on one disk",
    ),
    ("create", "can't lock file '/var/lock/qemu-server/lock-170.conf' - got timeout", "locked", "try again later"),
    ("revert", "can't lock file '/var/lock/pve-manager/pve-migrate-170' - got timeout", "locked", "try again later"),
    ("remove", "Failed to obtain guest migration lock - replication running?", "locked", "try again later"),
    (
        "remove",
        "snapshot 'old' needed by replication job '100-0' - run replication first",
        "unsupported",
        "run the replication job",
    ),
    (
        "remove",
        "command '/usr/bin/qemu-img snapshot -d old /var/lib/vz/x.qcow2' failed: exit code 1 ",
        "backend_failed",
        "exit code 1",
    ),
    (
        "create",
        "command '/usr/bin/qemu-img snapshot -c new /x' failed: received interrupt ",
        "backend_failed",
        "PVE has cleaned up",
    ),
    ("create", "unexpected status", "backend_failed", "snapshot_info"),
    (
        "create",
        "storage for 'chain:100/vm-100-disk-0.qcow2' is configured for snapshots as a volume chain - this requires QEMU machine version "
        ">= 10.0. See the notes",
        "unsupported",
        "newer machine version",
    ),
    (
        "remove",
        "top-most snapshot of TPM state 'chain:100/vm-100-disk-1.qcow2' cannot be removed while the VM is running.",
        "backend_failed",  # the simulator leaves the lock behind
        "power the VM off",
    ),
    ("create", "cluster not ready - no quorum?", "backend_failed", "the cluster has no quorum"),
    ("create", "something that nobody has ever seen", "backend_failed", "something"),
]


@pytest.mark.parametrize(("what", "text", "expected", "word"), TEXTS, ids=[f"{one[0]}-{one[1][:40]}" for one in TEXTS])
def test_failed_task_is_reported_in_the_words_of_proxmox(
    cluster: PveServer, what: str, text: str, expected: str, word: str
) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.fault_task(f"qm{PLANS[what][0]}", exitstatus=text, count=None)
    done = failing(ProxmoxBackend(cluster), what)
    assert code(done) == expected
    assert text.strip().rstrip(".") in str(done.error) and word in str(done.error) and "web01" in str(done.error)


REFUSALS = [
    # operation, refused request, status, reason, code, a word of the remedy
    (
        "memory",
        "POST",
        500,
        "Cannot live-migrate, snapshot (with RAM), or hibernate a VM with: virtiofs",
        "unsupported",
        "leave memory out",
    ),
    ("create", "POST", 500, "unable to use snapshot name 'new' (reserved name)", "invalid_option", "choose another name"),
    ("create", "POST", 500, "cluster not ready - no quorum?", "backend_failed", "the cluster has no quorum"),
    ("describe", "PUT", 500, "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout", "locked", "try again later"),
    ("describe", "PUT", 500, "VM is locked (backup)", "locked", "a backup is running"),
    ("create", "POST", 400, "Parameter verification failed.", "invalid_option", "refused to take snapshot"),
    ("create", "POST", 403, "Permission check failed (/vms/100, VM.Snapshot)", "permission_denied", "VM.Snapshot on /vms/100"),
    (
        "revert",
        "POST",
        403,
        "Permission check failed (/vms/100, VM.Snapshot|VM.Snapshot.Rollback)",
        "permission_denied",
        "VM.Snapshot or VM.Snapshot.Rollback on /vms/100",
    ),
    ("create", "POST", 501, "Method 'POST /nodes/pve1/qemu/100/snapshot' not implemented", "unsupported", "older than 7.0"),
    (
        "create",
        "POST",
        500,
        "hostname lookup 'pve1' failed - failed to get address info for: pve1: Name or service not known",
        "connection_failed",
        "no node of that name",
    ),
    ("create", "POST", 595, "Connection refused", "connection_failed", "check that the node is up"),
    ("create", "POST", 596, "Connection timed out", "connection_failed", "check that the node is up"),
    ("create", "POST", 401, "Authentication failed!", "permission_denied", "token_id and token_secret"),
    ("create", "POST", 401, "Permission denied - invalid csrf token", "permission_denied", "token_id and token_secret"),
]


@pytest.mark.parametrize(
    ("what", "method", "status", "text", "expected", "word"), REFUSALS, ids=[f"{one[2]}-{one[3][:40]}" for one in REFUSALS]
)
def test_refused_request_is_reported_in_the_words_of_proxmox(
    cluster: PveServer, what: str, method: str, status: int, text: str, expected: str, word: str
) -> None:
    vmid = cluster.make_guest("web01", vmid=100)
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.fault(method, "*", status=status, reason=text, count=None)
    done = failing(ProxmoxBackend(cluster), what)
    assert code(done) == expected and word in str(done.error)
    # PVE's text does not explain a refused login: it is the same for a wrong token and an expired ticket.
    assert status == 401 or (text.rstrip(".") in str(done.error) and "web01" in str(done.error))
    assert [one["name"] for one in cluster.guest(vmid)["snapshots"]] == ["old"]


# -- errors with a cause in the simulator -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guest", "text"),
    [
        ({"storage": "raw"}, "snapshot feature is not available"),
        ({"storage": ["dir-qcow2", "raw"]}, "snapshot feature is not available"),
        ({"type": "lxc", "storage": "dir-qcow2"}, "snapshot feature is not available"),
        ({"storage": "gone"}, "storage 'gone' does not exist"),
        ({"config": {"scsi1": "/dev/sdb"}}, "snapshot feature is not available"),
    ],
)
def test_disks_without_snapshot_support_are_refused_by_proxmox(cluster: PveServer, guest: dict[str, t.Any], text: str) -> None:
    vmid = cluster.make_guest("web01", **guest)
    done = failing(ProxmoxBackend(cluster), "create")
    assert code(done) == "unsupported" and text in str(done.error)
    assert (done.changed, cluster.guest(vmid)["lock"], cluster.guest(vmid)["snapshots"]) == (False, None, [])


def test_memory_that_cannot_be_stored_is_refused_by_proxmox(cluster: PveServer) -> None:
    cluster.make_guest("web01", config={"virtiofs0": "share"})
    done = failing(ProxmoxBackend(cluster), "memory")
    assert code(done) == "unsupported" and "virtiofs" in str(done.error)


def test_replicated_snapshot_is_not_removed(cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.set_guest(vmid, replicated=True)
    done = failing(ProxmoxBackend(cluster), "remove")
    assert code(done) == "unsupported" and "replication job" in str(done.error)
    assert (done.changed, cluster.guest(vmid)["lock"]) == (False, None)


@pytest.mark.parametrize(("what", "held"), [("revert", "migration"), ("remove", "migration"), ("describe", "config")])
def test_lock_file_of_another_task_is_reported_as_a_lock(cluster: PveServer, what: str, held: str) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    hold = cluster.hold_migration_lock if held == "migration" else cluster.hold_config_lock
    with hold(vmid):
        done = failing(ProxmoxBackend(cluster), what)
    assert code(done) == "locked" and "lock" in str(done.error) and done.changed is False


@pytest.mark.parametrize(
    "text", ["can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout", "storage 'gone' does not exist"]
)
@pytest.mark.parametrize(("what", "kind", "more"), [("revert", "rollback", ""), ("remove", "snapshot-delete", " old --force")])
def test_task_that_fails_half_way_is_no_refusal(cluster: PveServer, what: str, kind: str, more: str, text: str) -> None:
    """PVE's text is that of a refusal. The request is not repeated, and the VM is not reported as unchanged."""
    vmid = cluster.make_guest("web01", status="stopped")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.fault_task(f"qm{PLANS[what][0]}", exitstatus=text)
    done = only(ProxmoxBackend(cluster).run(PLANS[what][1], "web01", on_error="stop", lock_timeout=20.0))
    assert code(done) == "backend_failed" and done.changed is True
    assert text in str(done.error) and f"left the lock {kind!r}" in str(done.error)
    assert f"qm unlock {vmid} on its node" in str(done.error) and more in str(done.error)
    assert len(cluster.task_list()) == 1 and cluster.guest(vmid)["lock"] == kind


def test_snapshot_created_or_removed_by_another_run_is_no_error(cluster: PveServer) -> None:
    """`snapshot name ... already used`, and `snapshot ... does not exist`: the wanted state is reached."""
    vmid = cluster.make_guest("web01")
    backend = Meanwhile(cluster, lambda: cluster.snapshot_by_hand(vmid, "new", description=OURS))
    taken = only(backend.run(PLANS["create"][1], "web01"))
    assert (taken.error, taken.word, taken.changed) == (None, "lost_race", False)
    assert "already used" in cluster.task_list("qmsnapshot")[0]["exitstatus"]
    backend = Meanwhile(cluster, lambda: cluster.remove_snapshot(vmid, "new"))
    gone = only(backend.run(Absent(Request(name="new")), "web01"))
    assert (gone.error, gone.word, gone.changed) == (None, "lost_race", False)
    assert cluster.task_list("qmdelsnapshot") == []  # seen before the removal is sent


def test_foreign_snapshot_created_during_the_call_is_not_taken_over(cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01")
    done = only(Meanwhile(cluster, lambda: cluster.snapshot_by_hand(vmid, "new")).run(PLANS["create"][1], "web01"))
    assert code(done) == "foreign" and "choose another name" in str(done.error)


@pytest.mark.parametrize("what", ["revert", "describe"])
def test_snapshot_removed_during_the_call_is_reported(cluster: PveServer, what: str) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)

    def remove() -> None:
        with contextlib.suppress(KeyError):
            cluster.remove_snapshot(vmid, "old")

    done = only(Meanwhile(cluster, remove).run(PLANS[what][1], "web01", on_error="stop"))
    if what == "revert":
        assert code(done) == "snapshot_not_found" and "old" in str(done.error) and done.changed is False
        assert cluster.guest(vmid)["status"] == "running"
    else:  # state=present, so it is created again
        assert (done.error, done.word, [one["name"] for one in cluster.guest(vmid)["snapshots"]]) == (None, "created", ["old"])


def test_task_stopped_by_a_user_is_reported_and_leaves_nothing(cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01")
    cluster.set_task_seconds(30, "qmsnapshot")

    def stop() -> None:
        while not cluster.task_list("qmsnapshot"):
            pass
        driver = ProxmoxBackend(cluster).open()
        driver._session.write("delete", f"nodes/pve1/tasks/{cluster.task_list('qmsnapshot')[0]['upid']}", bool)  # type: ignore[attr-defined]
        driver.close()

    threading.Timer(0.3, stop).start()
    done = failing(ProxmoxBackend(cluster), "create")
    assert code(done) == "backend_failed" and "received interrupt" in str(done.error) and "cleaned up" in str(done.error)
    assert (done.changed, cluster.guest(vmid)["lock"], cluster.guest(vmid)["snapshots"]) == (False, None, [])


def test_unfinished_snapshot_is_no_checkpoint(cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "new", description=OURS)
    cluster.set_snapshot(vmid, "new", snapstate="prepare")
    done = only(ProxmoxBackend(cluster).run(PLANS["create"][1], "web01"))
    assert done.error is not None and "snapstate prepare" in str(done.error)
