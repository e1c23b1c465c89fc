# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Servers that redirect, send malformed answers, fall silent, or abort the handshake: a clear error, no secret sent, and no traceback."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import code, only
from proxmox_backend import ProxmoxBackend
from pve_server import PveServer
from pve_tls import make_certificates

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.connect import open_driver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox import http as _http
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox import writes
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

OURS = "[safepoint v=1 owner=safepoint]"
SECRET = "s3cret-password"
PASSWORD = {"username": "root@pam", "password": SECRET, "token_id": None, "token_secret": None}
TOKEN = {"token_id": "root@pam!a", "token_secret": SECRET, "username": None, "password": None}


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as started:
        yield started
        assert started.errors == ""


def refusal(given: dict[str, t.Any]) -> SafepointError:
    with pytest.raises(SafepointError) as caught:
        open_driver({"backend": "proxmox", "hostname": "127.0.0.1", **given}, environ={}, seconds=10.0).close()
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


# -- redirects -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_words: t.Any) -> None:
        pass


@pytest.mark.parametrize("login", [PASSWORD, TOKEN], ids=["password", "token"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed_but_reported(tmp_path: Path, status: int, login: dict[str, t.Any]) -> None:
    received: list[str] = []

    class Plain(Quiet):
        def do_POST(self) -> None:
            received.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST

    ca_path, context = make_certificates(tmp_path)
    with serving(Plain) as plain:

        class Redirects(Quiet):
            def do_POST(self) -> None:
                self.send_response(status)
                self.send_header("Location", f"http://user:pass@127.0.0.1:{plain}/api2/json/elsewhere?token=t0ken")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

        with serving(Redirects, context) as port:
            error = refusal({"port": port, "ca_path": str(ca_path), **login})
    assert received == []
    assert error.code == "connection_failed" and f"redirect to http://127.0.0.1:{plain}/api2/json/elsewhere," in str(error)
    assert "t0ken" not in str(error) and "user:pass" not in str(error) and "set hostname and port" in str(error)


# -- malformed answers ----------------------------------------------------------------------------------------------

BODIES = {
    "null": '{"data": null}',
    "list of null": '{"data": [null]}',
    "object": '{"data": {}}',
    "text": '{"data": "text"}',
    "number": '{"data": 7}',
    "list of objects": '{"data": [{"a": 1}]}',
    "numbers for names": '{"data": [{"type": "qemu", "vmid": {}, "node": 7, "upid": 1, "name": [], "snaptime": "x"}]}',
    "deep": '{"data": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "no data": "{}",
    "a list": "[]",
    "html": "<html>",
    "nothing": "",
}
PLANS = {
    "create": lambda: Present(Request(name="new", labels={"a": "1"})),
    "revert": lambda: Reverted(Request(name="old", power="on")),
    "remove": lambda: Absent(Request(name="old")),
}


@pytest.mark.parametrize("what", list(PLANS))
@pytest.mark.parametrize("body", [one if one == "null" else pytest.param(one, marks=pytest.mark.slow) for one in BODIES])
def test_malformed_answer_gives_no_traceback_and_no_change_is_lost(
    cluster: PveServer, what: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tested at each request of a call."""
    monkeypatch.setattr(f"{writes.__name__}._LOOK_SECONDS", 0.3)
    backend = ProxmoxBackend(cluster)
    k = 1
    while True:
        vmid = cluster.make_guest(f"vm{k}")
        cluster.snapshot_by_hand(vmid, "old", description=OURS)
        tasks = len(cluster.task_list())
        rule = cluster.fault("*", "*", nth=k, body=BODIES[body])
        try:
            done = only(backend.run(PLANS[what](), f"vm{k}", on_error="stop", timeout=5.0))
        except SafepointError:
            assert len(cluster.task_list()) == tasks
        else:
            # After a write, a failed read is never reported as "nothing was done".
            assert done.error is None or done.changed or len(cluster.task_list()) == tasks or code(done) == "unverified", done
        cluster.clear_faults()
        if rule.seen < k:
            return
        k += 1


@pytest.mark.parametrize("body", list(BODIES))
def test_malformed_inventory_is_an_error_that_names_the_request(cluster: PveServer, body: str) -> None:
    cluster.make_guest("web01")
    backend = ProxmoxBackend(cluster)
    driver = backend.open()
    driver.find(["web01"])  # the list from the login is used once
    cluster.fault("GET", "/cluster/resources", body=BODIES[body], count=None)
    with pytest.raises(SafepointError) as caught:
        driver.vms()
    assert caught.value.code == "connection_failed" and "cluster/resources" in str(caught.value)
    driver.close()


def test_too_long_answer_is_not_read_completely(cluster: PveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.make_guest("web01")
    driver = ProxmoxBackend(cluster).open()
    driver.find(["web01"])
    monkeypatch.setattr(f"{_http.__name__}._LARGEST_BYTES", 1_000_000)
    cluster.fault("GET", "/cluster/resources", body='{"data": [' + " " * 30_000_000 + "]}", count=None)
    with pytest.raises(SafepointError) as caught:
        driver.vms()
    assert "is larger than the limit of 1 MB" in str(caught.value) and "cluster/resources" in str(caught.value)
    driver.close()


# -- silence ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "k"),
    [
        ("create", 2),
        ("create", 7),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [("create", 5), ("remove", 6), ("revert", 8)]),
    ],
)
def test_call_ends_in_time_if_the_server_falls_silent(cluster: PveServer, what: str, k: int) -> None:
    vmid = cluster.make_guest("web01")
    cluster.snapshot_by_hand(vmid, "old", description=OURS)
    cluster.fault("*", "*", nth=k, silent=True)
    began = time.monotonic()
    told = ""
    try:
        done = only(ProxmoxBackend(cluster).run(PLANS[what](), "web01", on_error="undo", timeout=2.0))
        told = str(code(done))
    except SafepointError as exc:
        told = exc.code
    assert told in ("connection_failed", "timed_out", "unverified")
    # Two more seconds for a loaded machine.
    assert time.monotonic() - began < 2.0 + 20.0 + 2.0


# -- TLS -------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def accepting(handle: t.Callable[[socket.socket], None]) -> Iterator[int]:
    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                handle(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("login", [PASSWORD, TOKEN], ids=["password", "token"])
@pytest.mark.parametrize("received", [0, 1])
def test_connection_closed_in_the_handshake_is_no_certificate_error(received: int, login: dict[str, t.Any]) -> None:
    def cut(connection: socket.socket) -> None:
        if received:
            connection.recv(4096)

    with accepting(cut) as port:
        error = refusal({"port": port, **login})
    assert error.code == "connection_failed" and "certificate" not in str(error) and "check hostname and port" in str(error)


def test_server_with_only_an_old_tls_version_is_reported(tmp_path: Path) -> None:
    ca_path, context = make_certificates(tmp_path)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1

    def shake(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True)

    with accepting(shake) as port:
        error = refusal({"port": port, "ca_path": str(ca_path), **TOKEN})
    assert error.code == "connection_failed" and "certificate" not in str(error) and "TLS 1.2" in str(error)


@pytest.mark.parametrize("content", [None, "", "no certificate\n"])
def test_ca_path_without_certificates_is_an_invalid_option(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    error = refusal({"ca_path": str(path), **TOKEN})
    assert error.code == "invalid_option" and f"ca_path={str(path)!r}" in str(error) and "PEM" in str(error)
