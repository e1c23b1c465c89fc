# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Quiescing of Proxmox VE guests: the prediction, the result, and unknown results."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
from kit import code, only
from proxmox_backend import ProxmoxBackend
from pve_server import PveServer

from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as started:
        started.lock_seconds = 0.2
        yield started
        assert started.errors == ""


@pytest.fixture
def backend(cluster: PveServer) -> ProxmoxBackend:
    return ProxmoxBackend(cluster)


def names(cluster: PveServer, vmid: int) -> list[str]:
    return [one["name"] for one in cluster.guest(vmid)["snapshots"]]


@pytest.mark.parametrize(
    ("agent", "quiesce", "consistency", "why"),
    [
        (True, "require", "filesystem", None),
        (True, "prefer", "filesystem", None),
        (True, "never", "crash", None),
        ("enabled=1,freeze-fs=0", "prefer", "crash", "its options forbid it (agent: freeze-fs=0)"),
        (False, "prefer", "crash", "the guest agent is disabled in its options"),
        ("silent", "prefer", "crash", "agent configured but not running"),
    ],
)
def test_consistency_depends_on_the_guest_agent(
    backend: ProxmoxBackend, cluster: PveServer, agent: bool | str, quiesce: str, consistency: str, why: str | None
) -> None:
    vmid = cluster.make_guest("web01", agent=agent)
    if "=" in str(agent):
        cluster.set_guest(vmid, config={"agent": agent})
    plan = Present(Request(name="xx", quiesce=quiesce))
    would = only(backend.run(plan, "web01", dry_run=True))
    done = only(backend.run(plan, "web01"))
    assert done.error is None and done.snapshot is not None and done.snapshot.consistency == consistency
    assert backend.list("web01")[0].consistency == consistency
    said = " ".join(done.warnings)
    assert said == "" if why is None else "quiesced: " in said and why in said and "qemu-guest-agent" in said
    if agent != "silent":  # an agent is known to be silent only after the freeze request
        assert would.snapshot is not None and would.snapshot.consistency == consistency
        assert would.warnings == done.warnings


@pytest.mark.parametrize(("agent", "why"), [(False, "disabled in its options"), ("silent", "agent configured but not running")])
def test_quiesce_require_leaves_no_snapshot_if_it_fails(
    backend: ProxmoxBackend, cluster: PveServer, agent: bool | str, why: str
) -> None:
    vmid = cluster.make_guest("web01", agent=agent)
    plan = Present(Request(name="xx", quiesce="require"))
    would = only(backend.run(plan, "web01", dry_run=True))
    assert code(would) == (None if agent else "unsupported")
    done = only(backend.run(plan, "web01", on_error="stop"))
    assert code(done) == "unsupported" and why in str(done.error) and "quiesce=never" in str(done.error)
    assert (done.changed, names(cluster, vmid), cluster.guest(vmid)["lock"]) == (False, [], None)
    assert len(cluster.task_list("qmsnapshot")) == (1 if agent else 0)


LOST = [
    # the request that fails after the snapshot was taken, and a word of the message
    ("PUT", "*/config", {"status": 500, "reason": "VM is locked (backup)"}, "VM is locked (backup)"),
    ("GET", "*/log", {"status": 500, "reason": "no such log"}, "no such log"),
    ("GET", "*/log", {"status": 596}, "596"),
]


@pytest.mark.parametrize(("method", "path", "how", "word"), LOST, ids=[f"{one[0]}-{one[3]}" for one in LOST])
@pytest.mark.parametrize("on_error", ["stop", "undo"])
def test_snapshot_with_unknown_quiescing_is_not_reported_as_quiesced(
    backend: ProxmoxBackend, cluster: PveServer, method: str, path: str, how: dict[str, t.Any], word: str, on_error: str
) -> None:
    required, preferred = cluster.make_guest("web01", agent=True), cluster.make_guest("web02", agent=True)
    cluster.fault(method, path, count=None, **how)
    plans = [Present(Request(name="xx", quiesce=quiesce)) for quiesce in ("require", "prefer")]
    done = only(backend.run(plans[0], "web01", on_error=on_error, lock_timeout=20.0))
    assert code(done) == "backend_failed" and word in str(done.error) and "unknown if it is quiesced" in str(done.error)
    assert names(cluster, required) == ([] if on_error == "undo" else ["xx"])
    assert done.changed is (on_error != "undo")
    may_be = only(backend.run(plans[1], "web02"))
    assert may_be.error is None and word in may_be.warnings[0] and "could not be verified" in may_be.warnings[0]
    for vmid in (required, preferred):
        assert "consistency" not in "".join(one["description"] for one in cluster.guest(vmid)["snapshots"])


def test_snapshot_with_an_unread_log_is_not_reported_as_quiesced(backend: ProxmoxBackend, cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01", agent=True)
    cluster.fault("GET", "*/log", delay=3.0)
    done = only(backend.run(Present(Request(name="xx", quiesce="require")), "web01", on_error="stop", timeout=1.5))
    assert code(done) == "backend_failed" and "unknown if it is quiesced" in str(done.error) and done.changed
    assert ["consistency" in one["description"] for one in cluster.guest(vmid)["snapshots"]] == [False]


def test_missing_log_with_quiesce_require_leaves_no_snapshot(
    backend: ProxmoxBackend, cluster: PveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmid = cluster.make_guest("web01", agent=True)
    monkeypatch.setattr("pve_tasks.Task.say", lambda task, line: None)
    done = only(backend.run(Present(Request(name="xx", quiesce="require")), "web01", on_error="stop"))
    assert code(done) == "unsupported" and "no content" in str(done.error) and names(cluster, vmid) == []


def test_unquiesced_snapshot_that_cannot_be_removed_is_reported(backend: ProxmoxBackend, cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01", agent="silent")
    cluster.fault_task("qmdelsnapshot", exitstatus="command '/usr/bin/qemu-img snapshot -d xx /disk' failed: exit code 1 ")
    done = only(backend.run(Present(Request(name="xx", quiesce="require")), "web01", on_error="stop"))
    assert code(done) == "backend_failed" and done.changed
    assert "is not quiesced (skipping guest" in str(done.error) and "could not be removed: " in str(done.error)
    assert "exit code 1" in str(done.error) and names(cluster, vmid) == ["xx"]


def test_older_release_without_quiesce_result_is_not_trusted(backend: ProxmoxBackend, cluster: PveServer) -> None:
    cluster.version = "8.4.10"
    cluster.make_guest("web01", agent=True)
    done = only(backend.run(Present(Request(name="xx", quiesce="require")), "web01"))
    assert code(done) == "unsupported" and "9.2" in str(done.error)
