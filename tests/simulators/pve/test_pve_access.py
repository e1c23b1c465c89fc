# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Logins and privileges of the simulated Proxmox VE."""

from __future__ import annotations

import time

import pytest
from proxmoxer import ProxmoxAPI
from proxmoxer.core import AuthenticationError, ResourceException
from pve_client import Client, GuestClient
from pve_server import PveServer

ALL = {"VM.Audit", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.PowerMgmt"}


def token_client(pve: PveServer, privileges: dict[str, set[str]], vmid: int = 100) -> GuestClient:
    """A client with a token that has only these privileges; its user has all."""
    pve.add_user("ops@pve", "secret", {"/": ALL | {"Sys.Audit", "VM.Config.Options"}})
    secret = pve.add_token("ops@pve!ci", privileges=privileges)
    return GuestClient(pve, vmid, token=("ops@pve!ci", secret))


@pytest.fixture(autouse=True)
def _guest(pve: PveServer) -> None:
    pve.make_guest("web01")


# -- tickets ---------------------------------------------------------------------------------------------------------------


def test_a_ticket_opens_and_renews_itself(pve: PveServer) -> None:
    client = Client(pve).log_in(pve.username, pve.password)
    assert client.data("GET", "/version")["release"] == "9.2"
    ticket = client.session.headers["Cookie"].removeprefix("PVEAuthCookie=")
    renewed = client.data("POST", "/access/ticket", username=pve.username, password=ticket)
    assert renewed["ticket"] != ticket and renewed["username"] == "root@pam"
    assert client.refused("POST", "/access/ticket", username="ops@pve", password=ticket) == "401 authentication failure"
    assert pve.logins == 3


def test_a_realm_may_stand_apart(pve: PveServer) -> None:
    assert (
        Client(pve).data("POST", "/access/ticket", username="root", realm="pam", password=pve.password)["username"] == "root@pam"
    )


def test_an_old_ticket_is_refused_with_an_empty_body(pve: PveServer) -> None:
    client = Client(pve).log_in(pve.username, pve.password)
    pve.expire_tickets()
    answer = client.ask("GET", "/version")
    assert (answer.status_code, answer.reason, answer.content) == (401, "Authentication failed!", b"")
    client = Client(pve)
    client.log_in(pve.username, pve.password)
    pve.access.ticket_seconds = 0.0
    assert client.refused("GET", "/version") == "401 Authentication failed!"


def test_every_401_is_late(pve: PveServer) -> None:
    pve.auth_delay = 0.2
    nobody = Client(pve)
    del nobody.session.headers["Authorization"]
    stranger = Client(pve, token=("root@pam!safepoint", "wrong"))
    for client, reason in ((stranger, "Authentication failed!"), (nobody, "No ticket")):
        began = time.monotonic()
        assert client.refused("GET", "/nodes") == f"401 {reason}"
        assert 0.2 <= time.monotonic() - began < 3.0


def test_writing_needs_the_csrf_token_and_reading_does_not(pve: PveServer) -> None:
    client = GuestClient(pve, 100).log_in(pve.username, pve.password)
    client.session.headers["CSRFPreventionToken"] = "wrong"
    assert client.data("GET", "/nodes/pve1/qemu/100/snapshot")
    text = "401 Permission denied - invalid csrf token"
    assert client.refused("DELETE", "/nodes/pve1/qemu/100/snapshot/ab") == text
    assert client.refused("PUT", "/nodes/pve1/qemu/100/config", name="x") == text


def test_nobody_learns_which_paths_there_are(pve: PveServer) -> None:
    client = Client(pve, token=("root@pam!safepoint", "wrong"))
    assert client.refused("GET", "/no/such/path") == "401 Authentication failed!"
    assert Client(pve).refused("GET", "/no/such/path") == "501 Method 'GET /no/such/path' not implemented"


# -- rights ----------------------------------------------------------------------------------------------------------------


def test_a_token_with_separate_rights_has_none_at_first(pve: PveServer) -> None:
    client = token_client(pve, {})
    assert client.data("GET", "/cluster/resources", type="vm") == []
    assert client.data("GET", "/access/permissions") == {}
    assert client.refused("GET", client.snapshots) == "403 Permission check failed (/vms/100, VM.Audit)"
    answer = client.ask("GET", client.snapshots)
    assert answer.json() == {"data": None, "message": "Permission check failed (/vms/100, VM.Audit)\n"}


def test_a_token_without_separate_rights_has_those_of_its_user(pve: PveServer) -> None:
    pve.add_user("ops@pve", "secret", {"/vms/100": ALL})
    secret = pve.add_token("ops@pve!all", "the-secret", privsep=False)
    client = GuestClient(pve, 100, token=("ops@pve!all", secret))
    assert secret == "the-secret" and client.create("ab") == "OK"
    assert set(client.data("GET", "/access/permissions")["/vms/100"]) == ALL


def test_a_token_has_no_right_that_its_user_lacks(pve: PveServer) -> None:
    pve.add_user("ops@pve", "secret", {"/vms": {"VM.Audit"}})
    secret = pve.add_token("ops@pve!ci", privileges={"/": ALL})
    client = GuestClient(pve, 100, token=("ops@pve!ci", secret))
    assert list(client.listed()) == ["current"]
    assert client.refused("POST", client.snapshots, snapname="ab") == "403 Permission check failed (/vms/100, VM.Snapshot)"


def test_the_right_to_snapshot_does_not_include_to_list(pve: PveServer) -> None:
    client = token_client(pve, {"/vms/100": {"VM.Snapshot"}})
    assert client.create("ab") == "OK"
    assert client.refused("GET", client.snapshots) == "403 Permission check failed (/vms/100, VM.Audit)"
    assert client.data("GET", f"{client.snapshots}/ab/config")["name"] == "web01"
    assert client.rollback("ab") == "OK"
    assert client.delete("ab") == "OK"


def test_each_path_asks_for_its_own_right(pve: PveServer) -> None:
    client = token_client(pve, {"/vms/100": {"VM.Audit"}})
    either = "403 Permission check failed (/vms/100, VM.Snapshot|VM.Snapshot.Rollback)"
    assert client.refused("POST", f"{client.snapshots}/ab/rollback") == either
    assert client.refused("PUT", f"{client.snapshots}/ab/config") == "403 Permission check failed (/vms/100, VM.Snapshot)"
    assert client.refused("POST", f"{client.path}/status/stop") == "403 Permission check failed (/vms/100, VM.PowerMgmt)"
    assert client.refused("PUT", f"{client.path}/config", name="x").startswith(
        "403 Permission check failed (/vms/100, VM.Config.Disk|"
    )
    assert client.data("GET", f"{client.snapshots}/nope") == [{"cmd": "rollback"}, {"cmd": "config"}]


def test_a_start_after_the_rollback_needs_its_right_for_vms_only(pve: PveServer) -> None:
    rights = {"VM.Snapshot", "VM.Audit"}
    vmid = pve.make_guest("ct01", type="lxc", storage="zfs")
    client = token_client(pve, {"/vms": rights})
    client.create("ab")
    assert (
        client.refused("POST", f"{client.snapshots}/ab/rollback", start=1)
        == "403 Permission check failed (/vms/100, VM.PowerMgmt)"
    )
    assert client.rollback("ab", start=0) == "OK"
    container = GuestClient(pve, vmid, token=("ops@pve!ci", pve.access.users["ops@pve"].tokens["ci"].secret))
    container.create("ab")
    assert container.rollback("ab", start=1) == "OK"


def test_rights_come_before_parameters_and_existence(pve: PveServer) -> None:
    client = token_client(pve, {"/vms/100": ALL})
    assert client.refused("POST", client.snapshots, snapname="a") == "400 Parameter verification failed."
    assert client.refused("GET", "/nodes/pve1/qemu/999/snapshot") == "403 Permission check failed (/vms/999, VM.Audit)"
    assert client.refused("GET", "/nodes/pve1/qemu/99/snapshot") == "403 Permission check failed (/vms/99, VM.Audit)"


def test_a_deeper_path_replaces_what_is_inherited(pve: PveServer) -> None:
    vmid = pve.make_guest("web02")
    client = token_client(pve, {"/": {"VM.Audit"}, f"/vms/{vmid}": {"VM.Snapshot"}})
    assert [row["vmid"] for row in client.data("GET", "/cluster/resources", type="vm")] == [100]
    assert [row["vmid"] for row in client.data("GET", "/nodes/pve1/qemu")] == [100]


def test_rights_on_a_pool_are_rights_on_its_guests(pve: PveServer) -> None:
    vmid = pve.make_guest("web02", pool="prod")
    client = token_client(pve, {"/pool/prod": ALL}, vmid)
    assert [row["pool"] for row in client.data("GET", "/cluster/resources", type="vm")] == ["prod"]
    assert client.create("ab") == "OK"


def test_past_a_lock_goes_root_himself_only(pve: PveServer) -> None:
    pve.set_guest(100, lock="backup")
    token = GuestClient(pve, 100)
    answer = token.ask("PUT", f"{token.path}/config", delete="lock", skiplock=1)
    assert answer.json()["errors"] == {"skiplock": "Only root may use this option."}
    assert token.refused("PUT", f"{token.path}/config", delete="lock") == "500 only root can set 'lock' config"
    root = GuestClient(pve, 100)
    root.log_in(pve.username, pve.password)
    assert root.refused("PUT", f"{root.path}/config", delete="lock") == "500 VM is locked (backup)"
    assert root.data("PUT", f"{root.path}/config", delete="lock", skiplock=1) is None
    assert pve.guest(100)["lock"] is None


def test_tasks_of_others_are_seen_by_auditors_only(pve: PveServer) -> None:
    root = GuestClient(pve, 100)
    upid = root.data("POST", root.snapshots, snapname="ab")
    root.exit_text(upid)
    client = token_client(pve, {"/vms": ALL})
    denied = "403 Permission check failed (/nodes/pve1, Sys.Audit)"
    assert client.refused("GET", f"/nodes/pve1/tasks/{upid}/status") == denied
    assert client.refused("GET", f"/nodes/pve1/tasks/{upid}/log") == denied
    assert client.data("GET", "/nodes/pve1/tasks") == client.data("GET", "/cluster/tasks") == []
    assert client.create("cd") == "OK"
    (row,) = client.data("GET", "/nodes/pve1/tasks")
    assert (row["user"], row["tokenid"], row["type"]) == ("ops@pve", "ci", "qmsnapshot")
    # With the audit privilege, the token's user sees the tasks of root too; without it, only those of the token.
    owner = Client(pve).log_in("ops@pve", "secret")
    assert len(owner.data("GET", "/nodes/pve1/tasks")) == 2
    with pve.lock:
        pve.access.users["ops@pve"].privileges["/"] = frozenset()
    assert owner.data("GET", "/nodes/pve1/tasks") == [row]


def test_permissions_are_told_by_path(pve: PveServer) -> None:
    client = token_client(pve, {"/vms/100": {"VM.Audit"}, "/vms": {"VM.Snapshot"}})
    assert client.data("GET", "/access/permissions") == {"/vms": {"VM.Snapshot": 1}, "/vms/100": {"VM.Audit": 1}}
    assert client.data("GET", "/access/permissions", path="/vms/101") == {"/vms/101": {"VM.Snapshot": 1}}


# -- proxmoxer -------------------------------------------------------------------------------------------------------------


def test_proxmoxer_works_with_a_token(pve: PveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    api = ProxmoxAPI(
        pve.hostname,
        port=pve.port,
        user="root@pam",
        token_name="safepoint",
        token_value=pve.token_secret,
        verify_ssl=pve.ca_path,
    )
    upid = api.nodes("pve1").qemu(100).snapshot.post(snapname="ab", description="ünï\n2")
    while api.nodes("pve1").tasks(upid).status.get()["status"] == "running":
        time.sleep(0.01)
    rows = {row["name"]: row for row in api.nodes("pve1").qemu(100).snapshot.get()}
    assert rows["ab"]["description"] == "ünï\n2"
    with pytest.raises(ResourceException) as caught:
        api.nodes("pve1").qemu(100).snapshot.post(snapname="a")
    assert (caught.value.status_code, caught.value.content) == (400, "Parameter verification failed.")
    assert caught.value.errors == {"snapname": "invalid format - invalid configuration ID 'a'\n"}


def test_proxmoxer_works_with_a_password(pve: PveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    options = {"port": pve.port, "user": pve.username, "verify_ssl": pve.ca_path}
    api = ProxmoxAPI(pve.hostname, password=pve.password, **options)
    assert api.nodes("pve1").qemu(100).status.stop.post().split(":")[5] == "qmstop"
    with pytest.raises(AuthenticationError):
        ProxmoxAPI(pve.hostname, password="wrong", **options)
