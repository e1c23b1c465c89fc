# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The part of pveproxy: connections, authentication, format of answers, and injected faults of requests."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import email.utils
import gzip
import inspect
import json
import re
import socket
import ssl
import time
import typing as t
import urllib.parse

import pve_api_cluster  # noqa: F401 - each of them adds its calls
import pve_api_config  # noqa: F401
import pve_api_guests  # noqa: F401
import pve_api_snapshots  # noqa: F401
from aiohttp import web
from pve_cluster import Cluster
from pve_errors import Died, Refused
from pve_faults import RequestFault
from pve_routes import Rows, not_implemented, routes

BASE = "/api2/json"
TICKET = "/access/ticket"
COOKIE = re.compile(r"(?:^|[;\s])PVEAuthCookie=([^;]*)")
JSON = "application/json;charset=UTF-8"
# pveproxy compresses longer answers if the client accepts that.
COMPRESSED_FROM = 1024


class Front:
    """The web server of one cluster. Runs in the server's loop; tests only set `muted` and read the counters."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        # The delay of every 401; 3 s in real PVE.
        self.auth_delay = 0.0
        self.muted = False
        # Seconds by which the nodes' clock, in the header Date, is ahead of ours.
        self.clock_ahead = 0.0
        self.counters: collections.Counter[str] = collections.Counter()
        self.requests = self.logins = self.connections = self.bytes_sent = 0
        self._server: web.Server | None = None
        self._listener: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        # The server does not listen until then.
        self._back_at = 0.0
        # Connections without a finished TLS handshake.
        self._waiting: set[socket.socket] = set()

    # -- connections ---------------------------------------------------------------------------------------------------

    def listen(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Accept connections until `close`, in the running loop."""
        self._listener, self._context = listener, context
        server = self._server = web.Server(self._handle, access_log=None)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, server, context)

    def _accept(self, listener: socket.socket, server: web.Server, context: ssl.SSLContext) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        self._waiting.add(connection)
        self.cluster.spawn(self._connect(server, connection, context))

    async def _connect(self, server: web.Server, connection: socket.socket, context: ssl.SSLContext) -> None:
        """Do the TLS handshake; ignore clients that refuse the certificate or disconnect."""
        await self._while_muted()
        self._waiting.discard(connection)
        if connection.fileno() < 0:  # dropped before its turn
            return
        with contextlib.suppress(OSError):
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(server, connection, ssl=context)
            if self._listener is None:  # all were dropped during the handshake
                t.cast(asyncio.WriteTransport, transport).abort()

    def go(self, seconds: float) -> None:
        """Simulate an outage: cut all connections, and refuse new ones for a while."""
        loop = asyncio.get_running_loop()
        self._back_at = loop.time() + seconds
        if self._listener is None:
            return
        address = self._listener.getsockname()
        loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        # A socket that is bound but does not listen keeps the port, and connections to it are refused.
        kept = socket.socket()
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setblocking(False)
        kept.bind(address)
        self._drop()
        self.cluster.spawn(self._return(kept))

    async def _return(self, kept: socket.socket) -> None:
        try:
            while asyncio.get_running_loop().time() < self._back_at:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            kept.close()
            raise
        kept.listen(512)
        self._listener = kept
        if self._server is not None and self._context is not None:
            asyncio.get_running_loop().add_reader(kept, self._accept, kept, self._server, self._context)

    def _drop(self) -> None:
        for connection in self._waiting:
            connection.close()
        self._waiting.clear()
        for handler in self._server.connections if self._server is not None else ():
            if handler.transport is not None:
                t.cast(asyncio.WriteTransport, handler.transport).abort()

    async def close(self) -> None:
        """End all tasks and drop all connections, without TLS's close_notify, which a client might never answer."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        await self.cluster.cancel()
        self._drop()
        if self._server is not None:
            # In aiohttp 3.14 a timeout of 0 means no timeout.
            await self._server.shutdown(0.01)
        await asyncio.sleep(0.01)

    async def _while_muted(self) -> None:
        while self.muted:
            await asyncio.sleep(0.01)

    # -- one request ---------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except ConnectionResetError:
            return web.Response()  # the client disconnected, or was cut off, while its request was read
        except Exception:
            self.cluster.note_error()
            return web.Response(status=500, reason="the simulator failed")

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        began = time.monotonic()
        raw_path = urllib.parse.unquote(request.rel_url.raw_path)
        if not raw_path.startswith(BASE):
            return self._error(Refused(501, f"no such file '{raw_path}'", bare=True))
        path = raw_path.removeprefix(BASE) or "/"
        body = await request.read()
        with self.cluster.lock:
            self._count(request.method, path)
            fault = self.cluster.faults.for_request(request.method, path)
        if fault is not None and fault.silent:
            self.muted = True
        await self._while_muted()
        if fault is not None and not fault.after:
            if fault.gone:
                self.go(fault.gone)
                return web.Response()
            await self._while_held(fault)
            answer = self._fail(request, fault)
            if answer is not None:
                return answer
        answer = await self._executed(request, path, body, began)
        if fault is not None and fault.after:
            if fault.gone:
                self.go(fault.gone)
            await self._while_held(fault)
            answer = self._fail(request, fault) or answer
        return answer

    async def _executed(self, request: web.BaseRequest, path: str, body: bytes, began: float) -> web.Response:
        """Execute the request, and return its answer or its error."""
        try:
            return await self._succeed(request, path, body)
        except Died as exc:
            return self._error(Refused(500, f"{exc}\n"))
        except Refused as exc:
            if exc.status == 401:
                await asyncio.sleep(max(0.0, self.auth_delay - (time.monotonic() - began)))
            return self._error(exc)

    async def _while_held(self, fault: RequestFault) -> None:
        await asyncio.sleep(fault.delay)
        if fault.hold:
            fault.reached.set()
        while fault.hold and not fault.released:
            await asyncio.sleep(0.01)

    def _count(self, method: str, path: str) -> None:
        found = routes.find(method, path)
        self.counters[f"{method} {found[0].path if found else path}"] += 1
        self.requests += 1
        if (method, path) == ("POST", TICKET):
            self.logins += 1

    async def _succeed(self, request: web.BaseRequest, path: str, body: bytes) -> web.Response:
        method = request.method
        user = ""
        if path != TICKET:
            user = self._identify(request)
        found = routes.find(method, path)
        if found is None:
            raise not_implemented(method, path)
        route, in_path = found
        values = _values(request, body)
        with self.cluster.lock:
            call = route.prepare(self.cluster, user, in_path, values)
            result = route.handler(call)
        if inspect.isawaitable(result):
            result = await result
        answer = {"data": result.rows, "total": result.total} if isinstance(result, Rows) else {"data": result}
        return self._respond(200, "OK", answer, gzipped="gzip" in request.headers.get("Accept-Encoding", ""))

    def _identify(self, request: web.BaseRequest) -> str:
        cookie = COOKIE.search(request.headers.get("Cookie", ""))
        with self.cluster.lock:
            return self.cluster.access.identify(
                request.method,
                authorization=request.headers.get("Authorization", ""),
                ticket=urllib.parse.unquote(cookie[1]) if cookie else "",
                csrf=request.headers.get("CSRFPreventionToken", ""),
            )

    # -- answers -------------------------------------------------------------------------------------------------------

    def _fail(self, request: web.BaseRequest, fault: RequestFault) -> web.Response | None:
        """Apply a fault instead of the answer: an error, a closed connection, or no answer."""
        if fault.cut or fault.hold:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if fault.body is not None:
            return web.Response(body=fault.body.encode(), headers={"Content-Type": JSON})
        if fault.status is not None:
            # Error answers of the proxy and of the authentication have no body.
            bare = fault.status == 401 or fault.status >= 595
            return self._error(Refused(fault.status, f"{fault.reason}\n", bare=bare))
        return None

    def _error(self, refused: Refused) -> web.Response:
        return self._respond(refused.status, refused.message.strip().replace("\n", " "), refused.body())

    def _respond(self, status: int, reason: str, body: dict[str, t.Any] | None, *, gzipped: bool = False) -> web.Response:
        headers = {"Content-Type": JSON, "Server": "pve-api-daemon/3.0"} if body is not None else {"Server": "pve-api-daemon/3.0"}
        headers["Date"] = email.utils.formatdate(time.time() + self.clock_ahead, usegmt=True)
        content = b"" if body is None else json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        if gzipped and len(content) > COMPRESSED_FROM:
            content = gzip.compress(content, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        self.bytes_sent += len(content)
        return web.Response(status=status, reason=reason, body=content, headers=headers)


def _values(request: web.BaseRequest, body: bytes) -> dict[str, str]:
    """Return the parameters: those in the body, for POST and PUT only, overridden by those in the URL."""
    values: dict[str, str] = {}
    if request.method in ("POST", "PUT") and body:
        if request.content_type == "application/json":
            try:
                given = json.loads(body)
            except ValueError:
                given = None
            if not isinstance(given, dict):
                raise Refused(501, "malformed JSON string", bare=True)
            # In Perl, true is 1 and false is 0; null means that the parameter is not set.
            values = {name: _text(value) for name, value in given.items() if value is not None}
        else:
            values = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
    values.update(urllib.parse.parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True))
    values.pop("_dc", None)
    return values


def _text(value: t.Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
