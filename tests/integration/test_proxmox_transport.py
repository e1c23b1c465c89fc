# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The HTTP requests through proxmoxer: limited in time and size, only to the given server, and without secrets in logs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pve_server import PveServer
from pve_tls import make_certificates

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    ConnectionFailed,
    InvalidOption,
    NotReached,
    PermissionDenied,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox import http
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Lost, Session, rows, upid
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

ROOT = Path(__file__).parents[2]
TOKEN = ("a", "s3cret-token")
PASSWORD = "s3cret-password"
TICKET = {"data": {"ticket": "PVE:root@pam:t1cket", "CSRFPreventionToken": "t0ken", "username": "root@pam"}}
SECONDS = 1.0
# Allowance for a busy machine. A slow answer would take much longer.
ENOUGH_SECONDS = 6.0
DRIP_SECONDS = 20.0


@pytest.fixture
def cluster() -> Iterator[PveServer]:
    with PveServer() as started:
        yield started
        assert started.errors == ""


class Peer:
    """A server that runs a function for each connection and records the received data."""

    def __init__(self, folder: Path, talk: Callable[[ssl.SSLSocket, bytes], None], address: str = "127.0.0.1") -> None:
        ca_path, self._context = make_certificates(folder)
        self.ca_path = str(ca_path)
        self.received: list[bytes] = []
        self._talk = talk
        self.address = address
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Peer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _address = self._listener.accept()
                threading.Thread(target=self._handle, args=(raw,), daemon=True).start()

    def _handle(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as connection:
            while True:
                request = b""
                while b"\r\n\r\n" not in request:
                    more = connection.recv(65536)
                    if not more:
                        return
                    request += more
                self.received.append(request)
                self._talk(connection, request)

    def session(self, **login: t.Any) -> Session:
        """Return a session, by default with a token, which sends no request yet."""
        session = Session(
            hostname=self.address, port=self.port, user="root@pam", ca_path=self.ca_path, **login or {"token": TOKEN}
        )
        session.deadline = Deadline(SECONDS)
        return session


def answer(data: t.Any, *headers: str, status: str = "200 OK") -> bytes:
    body = json.dumps(data).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read(session: Session) -> t.Any:
    return session.read("nodes", rows)


def write(session: Session) -> t.Any:
    return session.write("post", "nodes/a/qemu/1/snapshot", str, snapname="ab")


CALLS = pytest.mark.parametrize("call", [read, write])


# -- time and size ---------------------------------------------------------------------------------------------------------


def drip(connection: ssl.SSLSocket, start: bytes, drop: bytes) -> None:
    connection.sendall(start)
    end = time.monotonic() + DRIP_SECONDS
    while time.monotonic() < end:
        connection.sendall(drop)
        time.sleep(0.05)


DRIPS = {
    "status": (b"", b"x"),
    "header": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "body without length": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", b" "),
    "error": (b"HTTP/1.1 500 no\r\nContent-Length: 100000\r\n\r\n", b" "),
}


@pytest.mark.parametrize("where", list(DRIPS))
@CALLS
def test_answer_that_arrives_byte_by_byte_times_out(tmp_path: Path, where: str, call: Callable[[Session], t.Any]) -> None:
    with Peer(tmp_path, lambda connection, _request: drip(connection, *DRIPS[where])) as peer:
        session = peer.session()
        began = time.monotonic()
        with pytest.raises(Lost) as caught:
            call(session)
        assert time.monotonic() - began < ENOUGH_SECONDS
        assert caught.value.slow and "in time" in str(caught.value)
        session.close()


def test_login_with_an_answer_byte_by_byte_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{http.__name__}._ANSWER_SECONDS", SECONDS)
    with Peer(tmp_path, lambda connection, _request: drip(connection, *DRIPS["body"])) as peer:
        began = time.monotonic()
        with pytest.raises(Lost):
            peer.session(password=PASSWORD)
        assert time.monotonic() - began < ENOUGH_SECONDS


def test_slow_answers_time_out_behind_a_proxy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            client, _address = listener.accept()
            asked.append(client.recv(65536).split()[:2])
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            server = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=pump, args=(client, server), daemon=True).start()
            pump(server, client)

    asked: list[list[bytes]] = []
    with (
        Peer(tmp_path, lambda connection, _request: drip(connection, *DRIPS["body"])) as peer,
        socket.create_server(("127.0.0.1", 0)) as proxy,
    ):
        threading.Thread(target=serve, args=(proxy, peer.port), daemon=True).start()
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        session = peer.session()
        began = time.monotonic()
        with pytest.raises(Lost):
            read(session)
        assert time.monotonic() - began < ENOUGH_SECONDS
        assert asked == [[b"CONNECT", f"127.0.0.1:{peer.port}".encode()]]
        session.close()


@pytest.mark.parametrize("status", ["200 OK", "500 no", "401 no"])
@CALLS
def test_endless_answer_is_refused_while_it_is_read(
    tmp_path: Path, status: str, call: Callable[[Session], t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{http.__name__}._LARGEST_BYTES", 2_000_000)
    start = f"HTTP/1.1 {status}\r\nContent-Length: 100000000000\r\n\r\n".encode()
    with Peer(tmp_path, lambda connection, _request: drip(connection, start, b" " * 3_000_000)) as peer:
        session = peer.session()
        session.deadline = Deadline(DRIP_SECONDS)
        with pytest.raises(ConnectionFailed, match="larger than the limit of 2 MB"):
            call(session)
        session.close()


# -- redirects -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", [{"token": TOKEN}, {"password": PASSWORD}], ids=["token", "password"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", ["read", "write", "login again"])
def test_no_redirect_is_followed_after_the_login(tmp_path: Path, status: int, login: dict[str, t.Any], call: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        place = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/api2/json/x"

        def talk(connection: ssl.SSLSocket, request: bytes) -> None:
            logins = sum(b"access/ticket" in one for one in peer.received)
            if b"access/ticket" in request and logins == 1:
                connection.sendall(answer(TICKET))
            elif call == "login again" and b"access/ticket" not in request:
                connection.sendall(answer(None, status="401 ended"))
            else:
                connection.sendall(answer(None, f"Location: {place}", status=f"{status} go"))

        with Peer(tmp_path, talk) as peer:
            session = peer.session(**login)
            if call == "login again" and "token" in login:
                with pytest.raises(PermissionDenied):
                    write(session)
                assert len(peer.received) == 1
            else:
                with pytest.raises(ConnectionFailed, match=f"redirect to {place}, which was not followed") as caught:
                    (read if call == "read" else write)(session)
                assert not isinstance(caught.value, (Lost, NotReached))
            session.close()
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


@pytest.mark.parametrize("drop", [b" ", b" " * 1_000_000], ids=["drip", "huge"])
def test_body_of_a_redirect_is_not_read(tmp_path: Path, drop: bytes) -> None:
    start = b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 100000000000\r\n\r\n"
    with Peer(tmp_path, lambda connection, _request: drip(connection, start, drop)) as peer:
        session = peer.session()
        with pytest.raises(ConnectionFailed, match="redirect to http://127"):
            read(session)
        session.close()


def test_redirect_to_an_invalid_url_is_reported_as_a_redirect(tmp_path: Path) -> None:
    talk = answer(None, "Location: https://[x", status="302 Found")
    with Peer(tmp_path, lambda connection, _request: connection.sendall(talk)) as peer:
        session = peer.session()
        with pytest.raises(ConnectionFailed, match="redirect to an invalid URL, which was not followed"):
            read(session)
        session.close()


def test_certificate_for_another_name_is_not_trusted(tmp_path: Path) -> None:
    with Peer(tmp_path, lambda connection, _request: connection.sendall(answer(TICKET)), address="127.0.0.2") as peer:
        with pytest.raises(ConnectionFailed, match=r"certificate of 127\.0\.0\.2:.* is not trusted"):
            peer.session(password=PASSWORD)
        assert peer.received == []


# -- invalid answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["101 Switching Protocols", "204 No Content"])
def test_unexpected_status_code_is_a_connection_error(tmp_path: Path, status: str) -> None:
    with Peer(tmp_path, lambda connection, _request: connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())) as peer:
        session = peer.session()
        with pytest.raises(ConnectionFailed, match="not a working Proxmox VE"):
            session.read("nodes", lambda data: data)
        with pytest.raises(Lost, match="not a working Proxmox VE"):
            session.write("put", "nodes/a/qemu/1/snapshot/x/config", lambda _data: None, description="x")
        session.close()


@pytest.mark.parametrize("date", ["never", "Mon, 01 Jan 2024 00:00:00 +99999999999999999999999"])
def test_invalid_date_header_is_ignored(tmp_path: Path, date: str) -> None:
    with Peer(tmp_path, lambda connection, _request: connection.sendall(answer({"data": []}, f"Date: {date}"))) as peer:
        session = peer.session()
        assert read(session) == [] and session.ahead == timedelta(0)
        session.close()


# -- secrets ---------------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_a_log(cluster: PveServer, caplog: pytest.LogCaptureFixture) -> None:
    vmid = cluster.make_guest("web01")
    caplog.set_level(logging.DEBUG)
    for name in ("proxmoxer.core", "proxmoxer.backends.https", "urllib3", "requests"):
        caplog.set_level(logging.DEBUG, name)
    where = {"hostname": cluster.hostname, "port": cluster.port, "ca_path": cluster.ca_path}
    secrets = [cluster.password, cluster.token_secret]
    user, _mark, name = cluster.token_id.partition("!")
    for login in (
        {"user": cluster.username, "password": cluster.password},
        {"user": user, "token": (name, cluster.token_secret)},
    ):
        session = Session(**where, **login)
        for number in range(2):
            cluster.expire_tickets()
            session.write("post", f"nodes/pve1/qemu/{vmid}/snapshot", upid, snapname=f"{name}{number}")
            cluster.finish_tasks()
        secrets += [one for one in session._http.session.auth.get_tokens() if one]
        session.close()
    with pytest.raises(PermissionDenied):
        Session(**where, user=cluster.username, password="wr0ng-secret")
    assert cluster.logins == 4 and len(secrets) == 4
    # The log was captured, and proxmoxer sent the requests.
    assert f"POST https://{session.where}/api2/json/nodes/pve1/qemu/{vmid}/snapshot" in caplog.text
    assert [one for one in [*secrets, "wr0ng-secret"] if one in caplog.text] == []


@pytest.mark.parametrize("secret", ["s3cret\n", "s3cret\u20ac"])
def test_secret_that_is_invalid_in_a_header_is_refused_without_showing_it(cluster: PveServer, secret: str) -> None:
    session = Session(hostname=cluster.hostname, port=cluster.port, ca_path=cluster.ca_path, user="root@pam", token=("a", secret))
    for call in (read, write):
        with pytest.raises(InvalidOption, match="has a character that is invalid in an HTTP header") as caught:
            call(session)
        assert "s3cret" not in str(caught.value) and caught.value.__cause__ is None
    session.close()


def test_cookie_of_a_proxy_does_not_replace_the_ticket(tmp_path: Path) -> None:
    """In proxmoxer 2.3, any cookie in the session does replace it."""
    asked = iter([TICKET, {"data": []}, {"data": []}])
    with Peer(
        tmp_path, lambda connection, _request: connection.sendall(answer(next(asked), "Set-Cookie: node=1; Path=/"))
    ) as peer:
        session = peer.session(password=PASSWORD)
        assert [read(session), read(session)] == [[], []]
        assert [b"Cookie: PVEAuthCookie=PVE:root@pam:t1cket\r\n" in one for one in peer.received] == [False, True, True]
        session.close()


def test_netrc_login_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ops password s3cret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    asked = iter([TICKET, {"data": []}, {"data": []}])
    with Peer(tmp_path, lambda connection, _request: connection.sendall(answer(next(asked)))) as peer:
        for login in ({"password": PASSWORD}, {"token": TOKEN}):
            session = peer.session(**login)
            read(session)
            session.close()
        assert [b"Basic" in one for one in peer.received] == [False, False, False]


def test_second_factor_is_reported(tmp_path: Path) -> None:
    wanted = {"data": {**TICKET["data"], "NeedTFA": 1}}
    with Peer(tmp_path, lambda connection, _request: connection.sendall(answer(wanted))) as peer:
        with pytest.raises(PermissionDenied, match=r"'root@pam' needs a second factor .* use an API token"):
            peer.session(password=PASSWORD)
        assert len(peer.received) == 1


# -- the libraries ---------------------------------------------------------------------------------------------------------


def run(code: str) -> str:
    path = {**os.environ, "PYTHONPATH": str(ROOT / ".ansible/collections")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORT = "from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox import http, session"


@pytest.mark.parametrize("missing", ["requests", "proxmoxer", "urllib3"])
def test_missing_library_is_named_and_the_process_continues(missing: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None  # how Python itself says that there is no such module
{IMPORT}
try:
    session.Session(hostname="localhost", port=1, user="root@pam", token=("a", "b"))
except http.errors.LibraryMissing as exc:
    print(exc.library)
"""
    assert run(code) == ("proxmoxer" if missing == "proxmoxer" else "requests")


def test_urllib3_warnings_are_unchanged() -> None:
    code = f"""
import warnings, requests
before = list(warnings.filters)
{IMPORT}
import sys
print("proxmoxer.backends.https" in sys.modules, warnings.filters == before)
"""
    assert run(code) == "True True"
