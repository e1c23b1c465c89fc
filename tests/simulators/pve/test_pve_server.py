# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of the simulated Proxmox VE: connections, parameters, faults, nodes, and cleanup."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import requests
from pve_client import PAUSE, Client, GuestClient
from pve_server import PveServer

# -- life ------------------------------------------------------------------------------------------------------------------


def test_two_servers_know_nothing_of_each_other() -> None:
    with PveServer() as one, PveServer(nodes=("alone",)) as other:
        one.make_guest("web01")
        other.make_guest("db01")
        assert [row["name"] for row in Client(one).data("GET", "/cluster/resources", type="vm")] == ["web01"]
        assert [row["node"] for row in Client(other).data("GET", "/cluster/resources", type="vm")] == ["alone"]
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"https://{one.hostname}:{one.port}/api2/json/version", verify=other.ca_path, timeout=5)
        assert Client(one, token=(other.token_id, other.token_secret)).refused("GET", "/version") == "401 Authentication failed!"
        assert one.errors == other.errors == ""


def test_nothing_is_left_of_it_not_even_with_tasks_and_connections() -> None:
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with PveServer() as pve:
        vm = GuestClient(pve, pve.make_guest("web01"))
        pve.set_task_seconds(60.0)
        vm.data("POST", vm.snapshots, snapname="ab")
        idle = socket.create_connection((pve.hostname, pve.port))
        folder = Path(pve.ca_path).parent
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    assert pve.errors == ""
    assert set(threading.enumerate()) == threads and not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((pve.hostname, pve.port))
    idle.close()
    vm.session.close()
    assert len(os.listdir("/proc/self/fd")) <= files
    pve.stop()


def test_localhost_is_in_the_certificate(pve: PveServer) -> None:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"https://localhost:{pve.port}/api2/json/version", verify=pve.ca_path, timeout=5)
    assert answer.reason == "No ticket"


# -- requests --------------------------------------------------------------------------------------------------------------


def test_parameters_come_as_form_json_or_query(pve: PveServer) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"))
    vm.create("form", description="a b")
    answer = vm.session.post(vm.base + vm.snapshots, json={"snapname": "json", "vmstate": True, "description": None}, timeout=5)
    assert vm.exit_text(answer.json()["data"]) == "OK"
    answer = vm.session.post(vm.base + vm.snapshots, params={"snapname": "query"}, timeout=5)
    assert vm.exit_text(answer.json()["data"]) == "OK"
    assert {name: row.get("vmstate") for name, row in vm.listed().items() if name != "current"} == {
        "form": 0,
        "json": 1,
        "query": 0,
    }
    # The body of a DELETE is ignored.
    assert vm.session.delete(f"{vm.base}{vm.snapshots}/query", data={"force": "nonsense"}, timeout=5).status_code == 200


@pytest.mark.parametrize("value", ["True", "TRUE", "False", "yes", "on", "2"])
def test_only_one_and_zero_are_booleans(pve: PveServer, value: str) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"))
    answer = vm.ask("POST", vm.snapshots, snapname="ab", vmstate=value)
    assert answer.json()["errors"] == {"vmstate": f"type check ('boolean') failed - got '{value}'"}


def test_all_that_is_wrong_is_said_at_once(pve: PveServer) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"))
    answer = vm.ask("GET", "/nodes/pve1/tasks", limit=-1, since="now", colour="red")
    assert answer.json()["errors"] == {
        "limit": "value must have a minimum value of 0",
        "since": "type check ('integer') failed - got 'now'",
        "colour": "property is not defined in schema and the schema does not allow additional properties",
    }
    answer = vm.ask("POST", vm.snapshots, snapname="ab", vmid=101)
    assert answer.json()["errors"] == {"vmid": "duplicate parameter (already defined in URI with conflicting values)"}


def test_what_is_not_simulated_says_so(client: Client) -> None:
    for method, path in (("POST", "/nodes/pve1/qemu"), ("GET", "/nodes/pve1/storage"), ("POST", "/nodes/pve1/qemu/100/clone")):
        answer = client.ask(method, path)
        assert (answer.status_code, answer.reason) == (501, f"Method '{method} {path}' not implemented")
    answer = client.session.get(client.base.replace("/api2/json", "/favicon.ico"), timeout=5)
    assert (answer.status_code, answer.reason, answer.text) == (501, "no such file '/favicon.ico'", "")


def test_long_answers_are_compressed(pve: PveServer, client: Client) -> None:
    for number in range(100):
        pve.make_guest(f"vm{number:03}")
    answer = client.ask("GET", "/cluster/resources", type="vm")
    assert answer.headers["Content-Encoding"] == "gzip" and len(answer.json()["data"]) == 100
    assert "Content-Encoding" not in client.ask("GET", "/version").headers


def test_calls_are_counted_by_their_path(pve: PveServer) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"))
    vm.listed()
    vm.listed()
    vm.ask("GET", f"{vm.snapshots}/ab/config")
    vm.ask("GET", "/nothing/here")
    vm.ask("POST", "/access/ticket", username="root@pam", password="wrong")
    assert pve.counters() == {
        "GET /nodes/{node}/qemu/{vmid}/snapshot": 2,
        "GET /nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config": 1,
        "GET /nothing/here": 1,
        "POST /access/ticket": 1,
    }
    assert (pve.requests, pve.logins, pve.connections) == (5, 1, 1) and pve.bytes_sent > 100
    pve.reset_counters()
    assert (pve.counters(), pve.requests, pve.logins) == ({}, 0, 0)


# -- configurations --------------------------------------------------------------------------------------------------------


def test_a_configuration_can_be_read_and_changed(pve: PveServer) -> None:
    vm = GuestClient(pve, pve.make_guest("web01", tags="a;b", pool="prod", memory_mb=1024))
    vm.create("ab")
    config = vm.data("GET", f"{vm.path}/config")
    assert (config["name"], config["memory"], config["tags"], config["parent"]) == ("web01", "1024", "a;b", "ab")
    assert vm.data("PUT", f"{vm.path}/config", name="web02", cores=2, description="notes\n", delete="tags") is None
    after = pve.guest(100)["config"]
    assert (after["name"], after["cores"], after["description"], after.get("tags")) == ("web02", 2, "notes", None)
    then = vm.data("GET", f"{vm.path}/config", snapshot="ab")
    assert then["name"] == "web01" and "digest" in then
    assert vm.refused("GET", f"{vm.path}/config", snapshot="nope") == "500 snapshot 'nope' does not exist"
    text = "500 detected modified configuration - file changed by other user? Try again."
    assert vm.refused("PUT", f"{vm.path}/config", name="x", digest=config["digest"]) == text
    assert vm.refused("PUT", f"{vm.path}/config") == "500 no options specified"
    assert vm.refused("PUT", f"{vm.path}/config", colour="red") == "400 Parameter verification failed."


def test_the_parameters_of_a_new_guest_are_seen(pve: PveServer, client: Client) -> None:
    vmid = pve.make_guest("tmpl", vmid=900, node="pve2", status="stopped", template=True, tags="gold", pool="images", disks=2)
    (row,) = client.data("GET", "/cluster/resources", type="vm")
    assert (row["id"], row["node"], row["name"], row["status"]) == ("qemu/900", "pve2", "tmpl", "stopped")
    assert (row["template"], row["tags"], row["pool"], row["vmid"]) == (1, "gold", "images", vmid)
    assert {"scsi0", "scsi1"} <= set(pve.guest(vmid)["config"])
    assert pve.make_guest("next") == 100
    assert [row["vmid"] for row in client.data("GET", "/nodes/pve2/qemu")] == [900]
    assert [row["node"] for row in client.data("GET", "/nodes")] == ["pve1", "pve2"]


def test_what_else_looks_after_guests_is_told(pve: PveServer, client: Client) -> None:
    pve.make_guest("web01", tags="a")
    pve.make_guest("ct01", type="lxc", storage="zfs")
    assert client.data("GET", "/cluster/ha/resources") == client.data("GET", "/cluster/replication") == []
    pve.set_guest(100, managed=True, replicated=True)
    assert [row["sid"] for row in client.data("GET", "/cluster/ha/resources", type="vm")] == ["vm:100"]
    assert client.data("GET", "/cluster/ha/resources", type="ct") == []
    assert [(row["id"], row["guest"]) for row in client.data("GET", "/cluster/replication")] == [("100-0", 100)]
    assert [row["name"] for row in client.data("GET", "/cluster/status")] == ["safepoint", "pve1", "pve2"]
    assert [row["vmid"] for row in client.data("GET", "/nodes/localhost/lxc")] == [101]


# -- stale and unreachable -------------------------------------------------------------------------------------------------


def test_names_and_power_are_stale_and_locks_are_not(pve: PveServer, client: Client) -> None:
    pve.make_guest("old")
    pve.stale(1.0)
    pve.set_guest(100, name="new", status="stopped", lock="backup", tags="now")
    pve.make_guest("newcomer")

    def rows() -> list[dict[str, object]]:
        return sorted(client.data("GET", "/cluster/resources", type="vm"), key=lambda row: int(row["vmid"]))

    first, second = rows()
    assert (first["name"], first["status"], first["lock"], first["tags"]) == ("old", "running", "backup", "now")
    assert "name" not in second and second["status"] == "unknown"
    assert [row["name"] for row in client.data("GET", "/nodes/pve1/qemu")] == ["new", "newcomer"]
    end = time.monotonic() + 5
    while rows()[0]["name"] != "new":
        assert time.monotonic() < end
        time.sleep(PAUSE)
    assert rows()[1]["name"] == "newcomer"
    pve.stale(0)
    pve.set_guest(100, name="live")
    assert rows()[0]["name"] == "live"


def test_a_node_that_is_offline_answers_nothing_and_its_guests_have_no_name(pve: PveServer, client: Client) -> None:
    pve.make_guest("here")
    away = GuestClient(pve, pve.make_guest("there", node="pve2"))
    pve.node_offline("pve2")
    names = {row["vmid"]: (row.get("name"), row["status"]) for row in client.data("GET", "/cluster/resources", type="vm")}
    assert names == {100: ("here", "running"), 101: (None, "unknown")}
    answer = away.ask("GET", away.snapshots)
    assert (answer.status_code, answer.reason, answer.content) == (595, "Connection refused", b"")
    assert {row["node"]: row["status"] for row in client.data("GET", "/nodes")} == {"pve1": "online", "pve2": "offline"}
    pve.node_online("pve2")
    assert away.create("ab") == "OK"


# -- faults ----------------------------------------------------------------------------------------------------------------


def test_an_answer_can_be_replaced_before_the_work_or_after_it(pve: PveServer) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"))
    pve.fault("POST", "/nodes/*/snapshot", status=595)
    pve.fault("POST", "/nodes/*/snapshot", nth=2, after=True)
    assert vm.refused("POST", vm.snapshots, snapname="ab") == "595 Connection refused"
    assert pve.task_list() == []
    answer = vm.ask("POST", vm.snapshots, snapname="ab")
    assert (answer.status_code, answer.reason, answer.content) == (596, "Connection timed out", b"")
    (task,) = pve.task_list()
    assert vm.exit_text(task["upid"]) == "OK" and "ab" in vm.listed()
    assert vm.create("cd") == "OK"


def test_an_error_of_the_server_has_a_body(pve: PveServer) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"))
    pve.fault("GET", "*/snapshot", status=500, reason="cluster not ready - no quorum?", count=None)
    for _ in range(2):
        answer = vm.ask("GET", vm.snapshots)
        assert (answer.status_code, answer.reason) == (500, "cluster not ready - no quorum?")
        assert answer.json() == {"data": None, "message": "cluster not ready - no quorum?\n"}
    pve.clear_faults()
    assert list(vm.listed()) == ["current"]


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_can_be_cut(pve: PveServer, after: bool) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"))
    pve.fault("DELETE", "*/snapshot/*", cut=True, after=after)
    pve.snapshot_by_hand(100, "ab")
    with pytest.raises(requests.exceptions.ConnectionError):
        vm.ask("DELETE", f"{vm.snapshots}/ab")
    assert len(pve.task_list("qmdelsnapshot")) == int(after)
    for task in pve.task_list():
        vm.exit_text(task["upid"])
    assert ("ab" in vm.listed()) is not after


def test_an_answer_can_be_late(pve: PveServer) -> None:
    vm = GuestClient(pve, pve.make_guest("web01"), timeout=0.2)
    pve.fault("POST", "*/snapshot", delay=0.5, after=True)
    with pytest.raises(requests.exceptions.ReadTimeout):
        vm.ask("POST", vm.snapshots, snapname="ab")
    (task,) = pve.task_list()
    assert vm.exit_text(task["upid"]) == "OK"
    pve.fault("GET", "/version", delay=0.1)
    began = time.monotonic()
    vm.data("GET", "/version")
    assert time.monotonic() - began >= 0.1


def test_a_mute_server_does_not_even_shake_hands(pve: PveServer) -> None:
    connected = Client(pve, timeout=0.2)
    connected.data("GET", "/version")
    pve.mute()
    with pytest.raises(requests.exceptions.ReadTimeout):
        connected.ask("GET", "/version")
    context = ssl.create_default_context(cafile=pve.ca_path)
    with (
        socket.create_connection((pve.hostname, pve.port), timeout=0.2) as connection,
        pytest.raises(TimeoutError),
    ):
        context.wrap_socket(connection, server_hostname=pve.hostname)
    pve.unmute()
    connected.timeout = 5
    assert Client(pve).data("GET", "/version") == connected.data("GET", "/version")


# -- size ------------------------------------------------------------------------------------------------------------------


def test_hundreds_of_guests_are_no_trouble(pve: PveServer) -> None:
    for number in range(500):
        pve.make_guest(f"vm{number:03}")
    vm = GuestClient(pve, 100)
    began = time.monotonic()
    upids = [vm.data("POST", f"/nodes/pve1/qemu/{vmid}/snapshot", snapname="ab") for vmid in range(100, 600)]
    assert [vm.exit_text(upid) for upid in upids] == ["OK"] * 500
    assert len(vm.data("GET", "/cluster/resources", type="vm")) == 500
    # A generous limit: a thousand requests in the same interpreter as their client, on a machine under load.
    assert time.monotonic() - began < 20.0
