# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Logins at a Proxmox VE cluster, and the reasons for failed ones."""

from __future__ import annotations

import http.server
import socket
import threading
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import only
from proxmox_backend import ProxmoxBackend, options
from pve_server import PveServer
from pve_tls import make_certificates

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.connect import open_driver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.driver import ProxmoxDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Session
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present

ROLE = frozenset({"VM.Audit", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.PowerMgmt"})
TIME = 3.0


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as started:
        yield started
        assert started.errors == ""


def refusal(given: dict[str, t.Any], *, environ: dict[str, str] | None = None, seconds: float = TIME) -> SafepointError:
    """Return the error of a failed login, which must end in time."""
    began = time.monotonic()
    with pytest.raises(SafepointError) as caught:
        open_driver(given, environ=environ or {}, seconds=seconds).close()
    assert time.monotonic() - began < seconds + 1
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"token_id": "safepoint", "username": "root@pam"},
        {"username": "root@pam"},
        {"token_id": None, "token_secret": None, "username": "root@pam", "password": "safepoint-root"},
        {"ca_path": None, "validate_certs": False},
    ],
)
def test_login_accepts_full_token_id_short_token_id_and_password(cluster: PveServer, given: dict[str, t.Any]) -> None:
    cluster.make_guest("web01")
    driver = open_driver(options(cluster, **given), environ={}, seconds=TIME)
    assert [vm.name for vm in driver.vms()] == ["web01"]
    driver.close()


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"hostname": None}, "invalid_option", ["hostname", "PROXMOX_HOST"]),
        ({"token_secret": None}, "invalid_option", ["token_secret", "PROXMOX_TOKEN_SECRET"]),
        ({"token_id": None}, "invalid_option", ["token_secret is set", "token_id: "]),
        ({"token_id": None, "token_secret": None}, "invalid_option", ["username", "PROXMOX_USER", "token_id"]),
        ({"token_id": None, "token_secret": None, "username": "root@pam"}, "invalid_option", ["password", "PROXMOX_PASSWORD"]),
        ({"token_id": "safepoint"}, "invalid_option", ["token_id='safepoint'", "realm", "username: root@pam"]),
        ({"token_id": None, "token_secret": None, "username": "root", "password": "x"}, "invalid_option", ["'root'", "realm"]),
        ({"username": "ops@pve"}, "invalid_option", ["root@pam", "ops@pve", "remove username"]),
        ({"validate_certs": False}, "invalid_option", ["ca_path", "validate_certs=false"]),
        ({"uri": "qemu:///system"}, "invalid_option", ["uri", "backend=libvirt"]),
        ({"token_secret": "wrong"}, "permission_denied", ["root@pam!safepoint", "token_id and token_secret"]),
        ({"token_id": "root@pam!nobody"}, "permission_denied", ["root@pam!nobody", "token_id and token_secret"]),
        (
            {"token_id": None, "token_secret": None, "username": "root@pam", "password": "wrong"},
            "permission_denied",
            ["'root@pam'", "username (with its realm) and password"],
        ),
        ({"ca_path": None}, "connection_failed", ["certificate", "not trusted", "ca_path", "/etc/pve/pve-root-ca.pem"]),
        ({"ca_path": "/nowhere/ca.pem"}, "invalid_option", ["ca_path", "/nowhere/ca.pem", "PEM"]),
        ({"ca_path": __file__}, "invalid_option", ["ca_path", __file__, "PEM"]),
        (
            {"hostname": "localhost.invalid"},
            "connection_failed",
            ["localhost.invalid", "name could not be resolved", "check hostname"],
        ),
        ({"port": 1}, "connection_failed", ["127.0.0.1:1", "refused", "port"]),
    ],
)
def test_failed_login_is_reported_in_time_with_the_remedy(
    cluster: PveServer, given: dict[str, t.Any], code: str, words: list[str]
) -> None:
    error = refusal(options(cluster, **given))
    assert error.code == code
    for word in words:
        assert word in str(error)


NO_TOKEN = {"token_id": None, "token_secret": None}


@pytest.mark.parametrize(
    ("given", "logins"),
    [
        ({**NO_TOKEN, "username": "root@pam", "password": "safepoint-root"}, 1),
        ({}, 0),
        ({"token_secret": None}, None),
        ({**NO_TOKEN, "username": "root@pam"}, None),
        (NO_TOKEN, None),
    ],
)
def test_login_from_options_is_not_replaced_by_the_environment(
    cluster: PveServer, given: dict[str, t.Any], logins: int | None
) -> None:
    environ = {f"PROXMOX_{name}": "wrong@pve" for name in ("USER", "PASSWORD", "TOKEN_SECRET")}
    environ["PROXMOX_TOKEN_ID"] = "wrong@pve!wrong"
    if logins is None:  # the environment sets values that the options do not set
        assert refusal(options(cluster, **given), environ=environ).code in ("permission_denied", "invalid_option")
    else:
        open_driver(options(cluster, **given), environ=environ, seconds=TIME).close()
        assert cluster.logins == logins


def test_certificate_of_another_ca_is_refused(cluster: PveServer, tmp_path: Path) -> None:
    other, _context = make_certificates(tmp_path)
    error = refusal(options(cluster, ca_path=str(other)))
    assert error.code == "connection_failed" and "not trusted" in str(error) and "ca_path" in str(error)


def test_ca_bundle_in_the_environment_does_not_replace_the_options(
    cluster: PveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, _context = make_certificates(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    for given in ({}, {"ca_path": None, "validate_certs": False}):
        for login in ({}, {"token_id": None, "token_secret": None, "username": "root@pam", "password": cluster.password}):
            open_driver(options(cluster, **given, **login), environ={}, seconds=TIME).close()


def test_slow_answer_to_a_wrong_token_is_waited_for_and_silent_server_times_out(cluster: PveServer) -> None:
    cluster.auth_delay = 1.0
    assert refusal(options(cluster, token_secret="wrong")).code == "permission_denied"
    cluster.mute()
    error = refusal(options(cluster), seconds=1.0)
    assert error.code == "connection_failed" and "connect_timeout=1" in str(error)


class Other(http.server.BaseHTTPRequestHandler):
    """A web server that is not Proxmox VE."""

    status: t.ClassVar[int] = 200
    body: t.ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *_words: t.Any) -> None:
        pass


@pytest.mark.parametrize("how", ["token", "password"])
@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"{}"), (200, b"[]"), (404, b"<html>"), (404, b"[]")])
def test_web_server_that_is_not_proxmox_is_reported(tmp_path: Path, how: str, status: int, body: bytes) -> None:
    ca_path, context = make_certificates(tmp_path)
    handler = type("Handler", (Other,), {"status": status, "body": body})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        given = {"backend": "proxmox", "hostname": "127.0.0.1", "port": server.server_port, "ca_path": str(ca_path)}
        login = {"token_id": "root@pam!a", "token_secret": "b"} if how == "token" else {"username": "root@pam", "password": "b"}
        try:
            error = refusal({**dict.fromkeys(("token_id", "token_secret", "username", "password")), **given, **login})
        finally:
            server.shutdown()
            thread.join()
    assert (
        error.code == "connection_failed" and "not a working Proxmox VE" in str(error) and "check hostname and port" in str(error)
    )


@pytest.mark.parametrize("talk", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_port_without_tls_is_reported(talk: bytes) -> None:
    def serve(listener: socket.socket) -> None:
        for _each in range(3):
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1)
                connection.sendall(talk)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        given = {"backend": "proxmox", "hostname": "127.0.0.1", "port": listener.getsockname()[1], "token_id": "root@pam!a"}
        error = refusal({**given, "token_secret": "b"})
        listener.shutdown(socket.SHUT_RDWR)
    assert error.code == "connection_failed" and "check hostname and port" in str(error)


def test_no_secret_is_in_any_error(cluster: PveServer) -> None:
    secrets = {"token_secret": "s3cret-token"}
    for given in ({}, {"port": 1}, {"ca_path": None}, {"hostname": "localhost.invalid"}):
        error = refusal(options(cluster, **given, **secrets))
        text, inner = "", error
        while inner is not None:
            text += str(inner)
            inner = inner.__cause__  # type: ignore[assignment]
        assert "s3cret" not in text


# -- tickets --------------------------------------------------------------------------------------------------------------


class WithPassword(ProxmoxBackend):
    """A driver that logs in with a ticket."""

    def open(self) -> SnapshotDriver:
        where = {"hostname": self.pve.hostname, "port": self.pve.port, "ca_path": self.pve.ca_path}
        return ProxmoxDriver(Session(user=self.pve.username, password=self.pve.password, **where))


def test_tickets_that_expire_during_a_call_are_renewed_with_one_login(cluster: PveServer) -> None:
    guests = [cluster.make_guest(f"app{number}") for number in range(8)]
    backend = WithPassword(cluster)
    cluster.set_task_seconds(0.6, "qmsnapshot")
    threading.Timer(0.3, cluster.expire_tickets).start()
    cluster.reset_counters()
    done = backend.run(Present(Request(name="xx")), *(str(guest) for guest in guests))
    assert {one.word for one in done} == {"created"}
    assert cluster.logins == 2
    assert [len(cluster.guest(guest)["snapshots"]) for guest in guests] == [1] * 8


def test_ticket_with_a_refused_csrf_token_is_replaced(cluster: PveServer) -> None:
    """As if the cluster had changed its keys."""
    vmid = cluster.make_guest("web01")
    cluster.fault("POST", "*/snapshot", status=401, reason="Permission denied - invalid csrf token")
    cluster.reset_counters()
    assert only(WithPassword(cluster).run(Present(Request(name="xx")), "web01")).word == "created"
    assert (cluster.logins, len(cluster.guest(vmid)["snapshots"])) == (2, 1)


def test_expired_ticket_is_replaced(cluster: PveServer) -> None:
    cluster.make_guest("web01")
    driver = WithPassword(cluster).open()
    cluster.expire_tickets()
    assert len(driver.snapshots(driver.vms())) == 1
    driver.close()


def test_password_changed_during_the_call_is_a_clear_error(cluster: PveServer) -> None:
    cluster.make_guest("web01")
    cluster.add_user("ops@pve", "first", privileges={"/": {"VM.Audit"}})
    session = Session(hostname=cluster.hostname, port=cluster.port, ca_path=cluster.ca_path, user="ops@pve", password="first")
    driver = ProxmoxDriver(session)
    (vm,) = driver.vms()
    cluster.add_user("ops@pve", "second", privileges={"/": {"VM.Audit"}})
    cluster.expire_tickets()
    error = driver.snapshots([vm])[vm.id]
    assert error.code == "permission_denied" and "ops@pve" in str(error)  # type: ignore[union-attr]
    driver.close()
