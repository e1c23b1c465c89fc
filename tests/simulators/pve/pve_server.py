# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated Proxmox VE cluster on loopback, in the process of the test: an HTTPS server with plain objects.

It answers as PVE 9.2.11 was observed to. Example:

    with PveServer() as pve:
        vmid = pve.make_guest("web01")
        ... https://{pve.hostname}:{pve.port}/api2/json, verified by pve.ca_path ...
        assert pve.guest(vmid)["snapshots"] == []

All nodes are reached through one port. pve_by_hand.py has the methods that read and change guests directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType

from pve_access import ROOT
from pve_by_hand import ByHand
from pve_faults import RequestFault, TaskFault
from pve_http import Front
from pve_tls import make_certificates
from pve_workers import watch_ha

START_TIMEOUT = 30.0


class PveServer(ByHand):
    """One cluster, from `start()` to `stop()` (or as a context manager).

    Settings that can be changed at any time: `auth_delay` (delay of each 401; 3.0 in real PVE), `lock_seconds` (how
    long a worker waits for another's lock, 10.0), `second_start_seconds` (seconds after a rollback with start=1 until the guest
    runs), `version` (the answer of GET /version), `nameless_seconds` (how long a new guest has no name in cluster/resources, 10.0 in real PVE),
    `worker_failure_rate` (the share of workers whose start fails), `container_deletes_meet`, `ha_watch_seconds`: see pve_cluster.py.
    """

    def __init__(self, nodes: Sequence[str] = ("pve1", "pve2")) -> None:
        super().__init__(tuple(nodes), "safepoint-root")
        self.hostname = "127.0.0.1"
        self.port = 0
        self.ca_path = ""
        self.username, self.password = ROOT, "safepoint-root"
        self.token_id = f"{ROOT}!safepoint"
        self.token_secret = self.access.add_token(self.token_id, None, privsep=False, privileges={})
        self._front = Front(self)
        self._folder: Path | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> PveServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> PveServer:
        """Listen on a free loopback port and serve in a thread."""
        self._folder = Path(tempfile.mkdtemp(prefix="sp-pve-"))
        ca_path, context = make_certificates(self._folder)
        self.ca_path = str(ca_path)
        listener = socket.create_server((self.hostname, 0), backlog=512)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._thread_main, args=(listener, context, ready), name=f"pve-{self.port}", daemon=True
        )
        self._thread.start()
        if not ready.wait(START_TIMEOUT):
            raise RuntimeError(f"The simulator did not start within {START_TIMEOUT:g} s:\n{self.errors}")
        return self

    def stop(self) -> None:
        """Drop connections, end tasks where they are, and wait for the thread. Safe to call twice."""
        thread, self._thread = self._thread, None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if thread is not None and self.loop is not None and self._ended is not None:
            self.loop.call_soon_threadsafe(self._ended.set)
            thread.join(START_TIMEOUT)
            if thread.is_alive():
                raise RuntimeError("The simulator did not stop")

    def _thread_main(self, listener: socket.socket, context: ssl.SSLContext, ready: threading.Event) -> None:
        with listener:
            asyncio.run(self._serve(listener, context, ready))

    async def _serve(self, listener: socket.socket, context: ssl.SSLContext, ready: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._loop_failed)
        self._ended = asyncio.Event()
        self._front.listen(listener, context)
        self.spawn(self._watch())
        ready.set()
        await self._ended.wait()
        await self._front.close()

    async def _watch(self) -> None:
        off_since: dict[int, float] = {}
        while True:
            watch_ha(self, off_since)
            await asyncio.sleep(0.02)

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Record an unhandled exception. A client that disconnects during the handshake is not an error of the simulator."""
        exc = context.get("exception")
        if not isinstance(exc, (OSError, asyncio.CancelledError)):
            self.errors += f"{context.get('message')}: {exc!r}\n"

    @property
    def auth_delay(self) -> float:
        """The delay of each 401 in seconds."""
        return self._front.auth_delay

    @auth_delay.setter
    def auth_delay(self, seconds: float) -> None:
        self._front.auth_delay = seconds

    @property
    def clock_ahead(self) -> float:
        """The seconds by which the server's clock is ahead of ours."""
        return self._front.clock_ahead

    @clock_ahead.setter
    def clock_ahead(self, seconds: float) -> None:
        self._front.clock_ahead = seconds

    # -- counters ------------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Return the number of calls since `reset_counters`, by "METHOD /path/with/{placeholders}"."""
        with self.lock:
            return dict(self._front.counters)

    def reset_counters(self) -> None:
        """Reset all counters: calls, requests, logins, connections and bytes."""
        with self.lock:
            self._front.counters.clear()
            self._front.requests = self._front.logins = self._front.connections = self._front.bytes_sent = 0

    @property
    def requests(self) -> int:
        """The number of requests."""
        return self._front.requests

    @property
    def logins(self) -> int:
        """The number of requests for a ticket, refused ones included."""
        return self._front.logins

    @property
    def connections(self) -> int:
        """The number of connections."""
        return self._front.connections

    @property
    def bytes_sent(self) -> int:
        """The bytes of all bodies, as sent (compressed)."""
        return self._front.bytes_sent

    # -- faults --------------------------------------------------------------------------------------------------------

    def fault(
        self,
        method: str = "*",
        path_glob: str = "*",
        *,
        nth: int = 1,
        count: int | None = 1,
        status: int | None = None,
        reason: str = "",
        after: bool = False,
        cut: bool = False,
        delay: float = 0.0,
        gone: float = 0.0,
        silent: bool = False,
        body: str | None = None,
        hold: bool = False,
    ) -> RequestFault:
        """Inject a fault into the `nth` request of a call from now on, and into those after it, `count` in total (None: all).

        The path has no /api2/json; `*` in it also matches slashes. `status` sets the status of the answer, `cut` closes the connection
        without an answer, `delay` delays the answer and can be combined with the others. With `after` the request is executed
        first; the answer is then 596 by default, as from the proxy of another node after 30 s.

        With `gone` all connections are cut, and new ones are refused for this many seconds. With `silent` nothing is answered from
        then on, until `unmute()`. `body` is answered with status 200. With `hold` the request waits until `release()` of the returned
        rule and is cut then; the rule's `reached` is set when the request has arrived.
        """
        if after and status is None and not (cut or delay or gone or silent or hold or body):
            status = 596
        if status is not None and not reason:
            reason = {595: "Connection refused", 596: "Connection timed out"}.get(status, "fault of the test")
        path = "/" + path_glob.lstrip("/") if not path_glob.startswith("*") else path_glob
        rule = RequestFault(
            nth,
            count,
            method=method,
            path=path,
            status=status,
            reason=reason,
            after=after,
            cut=cut,
            delay=delay,
            gone=gone,
            silent=silent,
            body=body,
            hold=hold,
        )
        with self.lock:
            self.faults.requests.append(rule)
        return rule

    def fault_task(
        self,
        type: str,  # noqa: A002 - what the vendor calls it
        vmid: int | None = None,
        *,
        exitstatus: str = "",
        killed: bool = False,
        warnings: int = 0,
        not_started: bool = False,
        nth: int = 1,
        count: int | None = 1,
    ) -> None:
        """Let workers of a type (a glob) fail while they work on the disks, with the same leftovers as in real PVE.

        A create cleans up; a delete leaves its lock and snapstate, or continues if it was forced; a rollback leaves its lock and
        the guest stopped. `killed`: the worker is killed, lock and snapstate remain, and no disk has the new snapshot. With
        `warnings` it succeeds, and the exit text is WARNINGS: n. `not_started`: no worker starts, and the request fails with 500.
        """
        with self.lock:
            self.faults.tasks.append(
                TaskFault(
                    nth,
                    count,
                    type=type,
                    vmid=vmid,
                    exitstatus=exitstatus,
                    killed=killed,
                    warnings=warnings,
                    not_started=not_started,
                )
            )

    def clear_faults(self) -> None:
        """Remove all faults."""
        with self.lock:
            self.faults.requests.clear()
            self.faults.tasks.clear()

    def mute(self) -> None:
        """Accept connections but answer nothing, not even the TLS handshake; requests that arrive now are answered after `unmute()`."""
        self._front.muted = True

    def unmute(self) -> None:
        """Answer again."""
        self._front.muted = False

    def expire_tickets(self) -> None:
        """Expire all tickets."""
        with self.lock:
            self.access.expire_tickets()

    # -- users ---------------------------------------------------------------------------------------------------------

    def add_user(self, userid: str, password: str, privileges: Mapping[str, Set[str]]) -> None:
        """Add a user; `privileges` are sets by path. They are inherited, unless a deeper path has its own set."""
        with self.lock:
            self.access.add_user(userid, password, privileges)

    def add_token(
        self,
        tokenid: str,
        secret: str | None = None,
        *,
        privsep: bool = True,
        privileges: Mapping[str, Set[str]] | None = None,
    ) -> str:
        """Add a token "user@realm!name" and return its secret; with `privsep` it needs its own privileges."""
        with self.lock:
            return self.access.add_token(tokenid, secret, privsep=privsep, privileges=privileges or {})

    # -- foreign locks -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold_migration_lock(self, vmid: int) -> Iterator[None]:
        """Hold the lock of a replication: deletes and rollbacks wait for it."""
        with self._held(self.migrating, vmid):
            yield

    @contextlib.contextmanager
    def hold_config_lock(self, vmid: int) -> Iterator[None]:
        """Hold the lock of the configuration file."""
        with self._held(self.held_configs, vmid):
            yield

    @contextlib.contextmanager
    def _held(self, held: set[int], vmid: int) -> Iterator[None]:
        with self.lock:
            held.add(vmid)
        try:
            yield
        finally:
            with self.lock:
                held.discard(vmid)
