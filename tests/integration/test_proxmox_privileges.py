# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The privileges that the driver needs at a Proxmox VE cluster, and the errors for missing ones."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
from kit import only
from proxmox_backend import ProxmoxBackend, options
from pve_server import PveServer

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.connect import open_driver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.driver import ProxmoxDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Session
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

ROLE = frozenset({"VM.Audit", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.PowerMgmt"})


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as started:
        yield started
        assert started.errors == ""


class As(ProxmoxBackend):
    """The cluster as one of its users sees it."""

    def __init__(self, pve: PveServer, privileges: t.Iterable[str], path: str = "/vms") -> None:
        super().__init__(pve)
        pve.add_user("ops@pve", "ops-secret", privileges={path: set(privileges)})

    def open(self) -> SnapshotDriver:
        where = {"hostname": self.pve.hostname, "port": self.pve.port, "ca_path": self.pve.ca_path}
        return ProxmoxDriver(Session(user="ops@pve", password="ops-secret", **where))


@pytest.mark.parametrize(("kind", "storage"), [("qemu", "dir-qcow2"), ("lxc", "lvmthin")])
def test_documented_role_is_sufficient(cluster: PveServer, kind: str, storage: str) -> None:
    cluster.make_guest("web01", type=kind, storage=storage, agent=kind == "qemu")
    backend = As(cluster, ROLE)
    backend.take("web01", "before", labels={"a": "1"}, quiesce="prefer")
    assert backend.info("web01", drift=True)["snapshots"][0]["name"] == "before"
    assert only(backend.run(Present(Request(name="before", description="new")), "web01")).word == "updated"
    for power in ("as_snapshot", "on", "off"):
        assert backend.revert("web01", "before", power=power).error is None
    if kind == "qemu":
        backend.revert("web01", "before", power="on")
        backend.take("web01", "with-memory", memory=True)
        assert backend.revert("web01", "with-memory", power="off").error is None
    assert backend.remove("web01", "before").error is None


@pytest.mark.parametrize("missing", ["VM.Audit", "VM.Snapshot", "VM.PowerMgmt"])
def test_missing_privilege_is_named_and_nothing_is_changed(cluster: PveServer, missing: str) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "old", description="[safepoint v=1 owner=safepoint]")
    before = cluster.guest(vmid)
    backend = As(cluster, ROLE - {missing})
    if missing == "VM.PowerMgmt":
        done = [backend.revert("web01", "old", power="on")]
    else:
        done = [only(backend.run(Present(Request(name="new")), "web01")), backend.remove("web01", "old")]
        done.append(only(backend.run(Present(Request(name="old", labels={"a": "1"})), "web01")))
    for one in done:
        assert one.error is not None and missing in str(one.error) and one.changed is False
        assert one.error.code == ("vm_not_found" if missing == "VM.Audit" else "permission_denied")
        if missing == "VM.Snapshot":
            assert f"/vms/{vmid}" in str(one.error)
    assert cluster.guest(vmid) == before


def test_either_snapshot_privilege_allows_a_rollback(cluster: PveServer) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "old", description="[safepoint v=1 owner=safepoint]")
    assert As(cluster, {"VM.Audit", "VM.Snapshot.Rollback"}).revert("web01", "old").error is None
    refused = As(cluster, {"VM.Audit"}).revert("web01", "old")
    assert refused.error is not None and "VM.Snapshot or VM.Snapshot.Rollback" in str(refused.error)
    assert refused.changed is False


def test_invisible_guest_is_reported_with_the_privilege_to_see_it(cluster: PveServer) -> None:
    hidden = cluster.make_guest("hidden")
    cluster.make_guest("shown", vmid=200)
    backend = As(cluster, ROLE, path="/vms/200")
    assert [one.vm.name for one in backend.looks() if one.vm] == ["shown"]
    for ref in ("hidden", str(hidden)):
        seen = backend.look(ref)
        assert seen.error is not None and seen.error.code == "vm_not_found" and "VM.Audit" in str(seen.error)


def test_token_with_privilege_separation_needs_its_own_privileges(cluster: PveServer) -> None:
    cluster.make_guest("web01")
    given = options(cluster, token_id="root@pam!ci", token_secret=cluster.add_token("root@pam!ci", privsep=True))
    driver = open_driver(given, environ={}, seconds=3.0)
    error = driver.find(["web01"])["web01"]
    driver.close()
    assert isinstance(error, SafepointError) and error.code == "vm_not_found"
    assert "VM.Audit" in str(error) and "privilege separation" in str(error)


@pytest.mark.parametrize("how", ["token", "user"])
def test_cluster_without_visible_guests_is_an_error(cluster: PveServer, how: str) -> None:
    """Otherwise, a report or a prune with a token without privileges would seem successful."""
    cluster.make_guest("web01")
    if how == "token":
        secret = cluster.add_token("root@pam!ci", privsep=True)
        driver = open_driver(options(cluster, token_id="root@pam!ci", token_secret=secret), environ={}, seconds=3.0)
    else:
        driver = As(cluster, {"VM.Snapshot", "Sys.Audit"}).open()
    with pytest.raises(SafepointError) as caught:
        driver.vms()
    assert caught.value.code == "permission_denied" and "VM.Audit on no path" in str(caught.value)
    driver.close()


def test_empty_cluster_is_no_error(cluster: PveServer) -> None:
    assert As(cluster, {"VM.Audit"}).looks() == []
    assert ProxmoxBackend(cluster).looks() == []


@pytest.mark.parametrize(("missing", "pool"), [("VM.Snapshot", False), ("VM.PowerMgmt", False), ("VM.Snapshot", True)])
def test_check_mode_is_refused_like_the_real_run(cluster: PveServer, missing: str, pool: bool) -> None:
    vmid = cluster.make_guest("web01", pool="prod" if pool else None)
    cluster.snapshot_by_hand(vmid, "old", description="[safepoint v=1 owner=safepoint]")
    path = "/pool/prod" if pool else "/vms"
    backend = As(cluster, ROLE - {missing, "VM.Snapshot.Rollback"}, path=path)
    plans = {
        "create": Present(Request(name="new")),
        "describe": Present(Request(name="old", description="text")),
        "remove": Absent(Request(name="old")),
        "revert": Reverted(Request(name="old", power="on")),
    }
    for what, plan in plans.items():
        cluster.reset_counters()
        would = only(backend.run(plan, "web01", dry_run=True))
        if missing == "VM.PowerMgmt" and what != "revert":
            assert would.error is None
            continue
        does = only(backend.run(plan, "web01", on_error="stop"))
        assert would.error is not None and does.error is not None
        assert would.error.code == does.error.code == "permission_denied"
        assert missing in str(would.error) and f"/vms/{vmid}" in str(would.error)
        assert (would.word, would.changed) == ("none", False)
    # With the privilege, everything works, as check mode predicts.
    able = As(cluster, ROLE, path=path)
    assert [only(able.run(plan, "web01", dry_run=True)).error for plan in plans.values()] == [None] * 4


def test_check_mode_reads_the_privileges_once(cluster: PveServer) -> None:
    vmids = [str(cluster.make_guest(f"app{number}")) for number in range(10)]
    cluster.reset_counters()
    done = ProxmoxBackend(cluster).run(Present(Request(name="xx")), *vmids, dry_run=True)
    assert {one.word for one in done} == {"created"}
    assert cluster.counters()["GET /access/permissions"] == 1


@pytest.mark.parametrize("storage", ["chain", "zfs", "dir-qcow2"])
def test_check_mode_detects_storages_that_can_revert_to_the_newest_only(cluster: PveServer, storage: str) -> None:
    vmid = cluster.make_guest("web01", storage=storage)
    for name in ("one", "two"):
        cluster.snapshot_by_hand(vmid, name, description="[safepoint v=1 owner=safepoint]")
    backend = ProxmoxBackend(cluster)
    would = only(backend.run(Reverted(Request(name="one")), "web01", dry_run=True))
    does = backend.revert("web01", "one")
    assert (would.error.code if would.error else None) == (does.error.code if does.error else None)
    assert (would.error is None) == (storage == "dir-qcow2")
    if would.error is not None:
        assert "is not most recent snapshot" in str(would.error) and "discard_newer=true" in str(would.error)
    for plan in (Reverted(Request(name="two")), Reverted(Request(name="one", discard_newer=True))):
        assert only(backend.run(plan, "web01", dry_run=True)).error is None
    # For a user who may not see storages, this is unknown.
    assert only(As(cluster, ROLE).run(Reverted(Request(name="one")), "web01", dry_run=True)).error is None


def test_check_mode_detects_a_missing_storage_for_the_memory(cluster: PveServer) -> None:
    cluster.make_guest("web01", config={"vmstatestorage": "gone"})
    cluster.make_guest("web02", config={"vmstatestorage": "local"})
    backend = ProxmoxBackend(cluster)
    plan = Present(Request(name="xx", memory=True))
    would = only(backend.run(plan, "web01", dry_run=True))
    does = only(backend.run(plan, "web01"))
    for one in (would, does):
        assert one.error is not None and one.error.code == "unsupported" and "storage 'gone' does not exist" in str(one.error)
    assert only(backend.run(plan, "web02", dry_run=True)).error is None
    assert only(backend.run(Present(Request(name="xx")), "web01", dry_run=True)).error is None
    assert only(As(cluster, ROLE).run(plan, "web01", dry_run=True)).error is None
