# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The driver with lost or late answers of a Proxmox VE cluster: it distinguishes requests that were sent from those that were not."""

from __future__ import annotations

import threading
import typing as t
from collections.abc import Iterator

import pytest
from kit import code, only
from proxmox_backend import ProxmoxBackend
from pve_server import PveServer

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import NotReached, SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Describe
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox import session, writes
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


def names(cluster: PveServer, vmid: int) -> list[str]:
    return [one["name"] for one in cluster.guest(vmid)["snapshots"]]


LOST: list[dict[str, t.Any]] = [{"status": 596}, {"cut": True}, {"status": 502}, {"gone": 1.0}]


@pytest.mark.parametrize("how", LOST, ids=["596", "cut", "502", "gone"])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(
    ("what", "managed"),
    [
        ("create", False),
        ("describe", False),
        ("revert", False),
        ("revert and start", False),
        ("start", False),
        ("start", True),
        ("remove", False),
    ],
)
def test_write_with_a_lost_answer_is_looked_up_and_done_once(
    backend: ProxmoxBackend,
    cluster: PveServer,
    vmid: int,
    what: str,
    managed: bool,
    after: bool,
    how: dict[str, t.Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A done write is not repeated, and a write that was not done is sent again."""
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    method, path, plan = {
        "create": ("POST", TAKE, Present(Request(name="new"))),
        "describe": ("PUT", "*/config", Present(Request(name="old", description="text"))),
        "revert": ("POST", "*/rollback", Reverted(Request(name="old"))),
        "revert and start": ("POST", "*/rollback", Reverted(Request(name="old", power="on"))),
        "start": ("POST", "*/status/start", Reverted(Request(name="old", power="on"))),
        "remove": ("DELETE", "*/snapshot/old", Absent(Request(name="old"))),
    }[what]
    monkeypatch.setattr(f"{writes.__name__}._LOOK_SECONDS", 0.3)
    monkeypatch.setattr(f"{writes.__name__}._SLOW_LOOK_SECONDS", 0.3)
    begun = len(cluster.task_list())
    cluster.set_guest(vmid, data="later", managed=managed)
    cluster.fault(method, path, after=after, **how)
    done = only(backend.run(plan, "web01", on_error="stop"))
    seen = cluster.guest(vmid)
    if what.startswith("revert") and not after and how == {"status": 596}:
        # The node stopped waiting for another node, which may still start the rollback: a second one would discard later changes.
        assert code(done) == "unverified" and "was sent" in str(done.error) and seen["data"] == "later"
        return
    assert done.error is None and done.changed
    assert len(cluster.task_list()) - begun == {"describe": 0, "revert and start": 2, "start": 3 if managed else 2}.get(what, 1)
    assert names(cluster, vmid) == {"create": ["old", "new"], "remove": []}.get(what, ["old"])
    assert what != "describe" or "text" in seen["snapshots"][0]["description"]
    assert what in ("create", "describe", "remove") or seen["data"] == "fresh web01"
    assert "start" not in what or seen["status"] == "running"


def test_request_with_an_unknown_result_is_reported_as_sent(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    cluster.fault("POST", TAKE, cut=True, after=True)
    cluster.fault("GET", "/nodes/pve1/tasks", status=502, count=None)
    done = only(backend.run(Present(Request(name="xx")), "web01", on_error="stop", timeout=2.0))
    assert code(done) == "unverified" and done.word == "unverified" and done.changed
    assert "take snapshot xx of web01 was sent" in str(done.error) and "the task list could not be read" in str(done.error)
    assert names(cluster, vmid) == ["xx"]


LATE: list[tuple[dict[str, t.Any], str]] = [
    ({"cut": True, "delay": 0.7}, "unverified"),  # it may still arrive
    ({"status": 595, "count": 3}, "connection_failed"),  # it did not arrive
]


@pytest.mark.parametrize(("how", "error"), LATE, ids=["lost", "not sent"])
@pytest.mark.parametrize("what", ["create", "describe"])
def test_no_write_is_sent_after_the_timeout(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, what: str, how: dict[str, t.Any], error: str
) -> None:
    """The later phases of the call, which start after the state of the VM was read, have more time."""
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    driver = backend.open()
    (vm,) = driver.vms()
    seen = driver.snapshots([vm])[vm.id]
    assert not isinstance(seen, SafepointError)
    method, path, action = {
        "create": ("POST", TAKE, Create(vm, "new", OURS, memory=False)),
        "describe": ("PUT", "*/config", Describe(vm, seen[0], "text")),
    }[what]
    driver.set_deadline(Deadline(0.6))
    cluster.fault(method, path, **how)
    job = driver.start(action)
    driver.set_deadline(Deadline(60))
    (end,) = driver.wait([job], Deadline(60))
    driver.close()
    assert end.error is not None and end.error.code == error, end.error
    assert isinstance(end.error, NotReached) == (error == "connection_failed")
    assert [(one["name"], one["description"]) for one in cluster.guest(vmid)["snapshots"]] == [("old", OURS)]


@pytest.mark.parametrize("what", ["name", "snapshot", "privileges", "lock"])
def test_unanswered_read_before_the_write_has_changed_nothing(
    backend: ProxmoxBackend, cluster: PveServer, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{session.__name__}._NODE_SECONDS", 0.3)
    vmid = cluster.make_guest("web01", type="lxc" if what == "lock" else "qemu", storage="lvmthin")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    begun = len(cluster.task_list())
    path = {
        "name": "/nodes/*/qemu",
        "snapshot": "*/snapshot/old/config",
        "privileges": "/access/permissions",
        "lock": "*/status/current",
    }[what]
    plan = Absent(Request(name="old")) if what == "lock" else Reverted(Request(name="old", power="on"))
    done = only(backend.run(plan, "web01", on_error="stop", meanwhile=lambda: cluster.fault("GET", path, status=596, count=None)))
    assert (code(done), done.word, done.changed) == ("connection_failed", "failed", False)
    assert len(cluster.task_list()) == begun


def test_write_that_arrives_after_its_answer_was_lost_is_found(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    def arrive() -> None:
        driver = ProxmoxBackend(cluster).open()
        driver._session.write("post", f"nodes/pve1/qemu/{vmid}/snapshot", str, snapname="xx", description=OURS)  # type: ignore[attr-defined]
        driver.close()

    cluster.fault("POST", TAKE, status=596)
    done = only(backend.run(Present(Request(name="xx")), "web01", meanwhile=threading.Timer(0.6, arrive).start))
    assert (done.word, done.error, names(cluster, vmid)) == ("created", None, ["xx"])


def test_task_of_an_earlier_request_is_not_mistaken_for_a_lost_one(
    backend: ProxmoxBackend, cluster: PveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmid = cluster.make_guest("web01")
    for name in ("a", "b", "c"):
        cluster.snapshot_by_hand(vmid, f"s-{name}", description=OURS)
    monkeypatch.setattr(f"{writes.__name__}._LOOK_SECONDS", 0.3)
    # One call removes three snapshots, and the third request does not arrive.
    cluster.fault("DELETE", "*", nth=3, cut=True)
    cluster.reset_counters()
    done = only(backend.run(Absent(Request(name="s-a", children="remove")), "web01", on_error="stop"))
    assert (done.error, done.word, names(cluster, vmid)) == (None, "removed", [])
    assert [number for call, number in cluster.counters().items() if call.startswith("DELETE")] == [4]
    assert len(cluster.task_list("qmdelsnapshot")) == 3


@pytest.mark.parametrize("how", [{"status": 596}, {"cut": True}])
def test_read_with_a_lost_answer_is_sent_again(
    backend: ProxmoxBackend, cluster: PveServer, vmid: int, how: dict[str, t.Any]
) -> None:
    other = cluster.make_guest("web02")
    # The lists of the first read are number one and two, those of the second read three and four.
    cluster.fault("GET", TAKE, nth=3, **how)
    # The first read of the other list belongs to the login.
    cluster.fault("GET", "/cluster/resources", nth=2, **how)
    cluster.fault("GET", "/cluster/resources", nth=4, **how)
    done = backend.run(Present(Request(name="xx")), "web01", "web02", on_error="undo")
    assert [(one.word, one.error) for one in done] == [("created", None)] * 2
    assert names(cluster, vmid) == names(cluster, other) == ["xx"]


def test_write_with_an_unknown_result_is_undone_with_the_others(backend: ProxmoxBackend, cluster: PveServer, vmid: int) -> None:
    other = cluster.make_guest("web02")
    # The task is started, but neither its answer nor the list of tasks arrives.
    cluster.fault("POST", TAKE.replace("*", f"pve1/qemu/{vmid}"), after=True)
    cluster.fault("GET", "/nodes/pve1/tasks", status=502, count=7)
    done = backend.run(Present(Request(name="xx")), "web01", "web02", on_error="undo", timeout=3.0, max_parallel=1)
    assert code(done[0]) == "unverified" and not done[0].changed
    assert names(cluster, vmid) == names(cluster, other) == []
