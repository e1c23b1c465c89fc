# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The state of a cluster: nodes, guests, tasks and users, under one lock."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import dataclasses
import random
import threading
import time
import traceback
import typing as t
from collections.abc import AsyncIterator, Coroutine

from pve_access import Access
from pve_errors import Died, Killed, Refused
from pve_faults import Faults
from pve_guests import Guest
from pve_storage import Volumes
from pve_tasks import Task, Worker

FOLDERS = {"qemu": "qemu-server", "lxc": "lxc"}
LOCK_FILES = {"qemu": "/var/lock/qemu-server/lock-{}.conf", "lxc": "/run/lock/lxc/pve-config-{}.lock"}
STEP = 0.005


@dataclasses.dataclass(frozen=True)
class Place:
    """The location of a guest according to a request; it must match to find the configuration file."""

    vmid: int
    type: str
    node: str


class Cluster:
    """The state of the whole cluster. Threads other than the server's must hold `lock` to read or change it."""

    def __init__(self, nodes: tuple[str, ...], root_password: str) -> None:
        self.lock = threading.RLock()
        self.nodes = nodes
        # Nodes that do not answer, with the status and reason that the proxying node returns.
        self.offline: dict[str, tuple[int, str]] = {}
        self.guests: dict[int, Guest] = {}
        self.volumes = Volumes()
        self.access = Access(root_password)
        self.faults = Faults()
        self.tasks: dict[str, Task] = {}
        self.version = "9.2.11"
        # How long Proxmox VE waits for the lock of a configuration file and for the migration lock.
        self.lock_seconds = 10.0
        self.task_seconds: dict[str | None, float] = {None: 0.0}
        # The share of workers whose start fails: the end of another worker interrupts Perl's read of the new worker's id. Real PVE did so 13 times in 560
        # under load.
        self.worker_failure_rate = 0.0
        self.chance = random.Random(14)
        # Two parallel deletes of one snapshot of a container: both find it, and the second leaves its lock (seen 4 times of 6).
        self.container_deletes_meet = True
        # Seconds until high availability restarts a guest that is off and should be started; None: never.
        self.ha_watch_seconds: float | None = None
        # Seconds for which a new guest has no name and no status in cluster/resources; 10 s in real PVE.
        self.nameless_seconds = 0.0
        # The start after a rollback is a separate task: the VM runs shortly after the rollback has ended with OK.
        self.second_start_seconds = 0.2
        self.held_configs: set[int] = set()
        self.migrating: set[int] = set()
        self.errors = ""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._stale_seconds = 0.0
        self._broadcast: dict[int, dict[str, t.Any]] = {}
        self._broadcast_at = 0.0

    def note_error(self) -> None:
        """Record an exception: a bug of the simulator."""
        self.errors += traceback.format_exc()

    # -- guests --------------------------------------------------------------------------------------------------------

    def load(self, place: Place) -> Guest:
        """Return the guest, if its configuration is at the location in the request."""
        guest = self.guests.get(place.vmid)
        if guest is None or (guest.type, guest.node) != (place.type, place.node):
            name = f"nodes/{place.node}/{FOLDERS[place.type]}/{place.vmid}.conf"
            raise Died(f"Configuration file '{name}' does not exist")
        return guest

    def pool_of(self, vmid: t.Any) -> str | None:
        """Return the pool of a guest."""
        guest = self.guests.get(vmid)
        return guest.pool if guest else None

    @contextlib.asynccontextmanager
    async def config(self, place: Place) -> AsyncIterator[Guest]:
        """Hold the lock of the guest's configuration file and the cluster's: the block must not await."""
        end = time.monotonic() + self.lock_seconds
        while True:
            with self.lock:
                if place.vmid not in self.held_configs:
                    yield self.load(place)
                    return
            if time.monotonic() >= end:
                raise Died(f"can't lock file '{LOCK_FILES[place.type].format(place.vmid)}' - got timeout")
            await asyncio.sleep(STEP)

    @contextlib.asynccontextmanager
    async def migration_lock(self, vmid: int, otherwise: str) -> AsyncIterator[None]:
        """Hold the migration lock of a guest; Died with the text `otherwise` if another operation holds it for too long."""
        end = time.monotonic() + self.lock_seconds
        while not self._take_migration_lock(vmid):
            if time.monotonic() >= end:
                raise Died(otherwise)
            await asyncio.sleep(STEP)
        try:
            yield
        finally:
            with self.lock:
                self.migrating.discard(vmid)

    def _take_migration_lock(self, vmid: int) -> bool:
        with self.lock:
            if vmid in self.migrating:
                return False
            self.migrating.add(vmid)
            return True

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def reach(self, node: str) -> None:
        """Raise Refused unless a request can be forwarded to that node."""
        if node not in self.nodes:
            text = f"hostname lookup '{node}' failed - failed to get address info for: {node}: Name or service not known"
            raise Refused(500, f"{text}\n")
        if node in self.offline:
            status, reason = self.offline[node]
            raise Refused(status, reason, bare=True)

    def stale(self, seconds: float) -> None:
        """Let the broadcasts of pvestatd be up to `seconds` old; the last one was just now."""
        self._stale_seconds = 0.0
        self.broadcast()
        self._stale_seconds = seconds

    def broadcast(self) -> dict[int, dict[str, t.Any]]:
        """Return pvestatd's last broadcast for each guest; without guests on offline nodes."""
        now = time.monotonic()
        if now - self._broadcast_at >= self._stale_seconds:
            self._broadcast_at = now
            self._broadcast = {
                guest.vmid: {
                    "name": guest.name,
                    "status": guest.status,
                    "template": int(guest.is_template),
                    "uptime": int(time.time() - guest.started) if guest.running else 0,
                    "maxcpu": int(guest.config.get("cores") or 1),
                    "cpu": 0,
                    "maxmem": guest.memory_bytes(),
                    "mem": guest.memory_bytes() // 2 if guest.running else 0,
                    "maxdisk": guest.disk_bytes(),
                    "disk": 0,
                    "netin": 0,
                    "netout": 0,
                    "diskread": 0,
                    "diskwrite": 0,
                }
                for guest in self.guests.values()
                if guest.node not in self.offline and now - guest.made >= self.nameless_seconds
            }
        return self._broadcast

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def fork(self, task_type: str, place: Place, user: str, worker: Worker, *, seconds: float | None = None) -> str:
        """Start a task and return its id. `seconds` is used unless a test has set the duration of this task type."""
        if seconds is None or task_type in self.task_seconds:
            seconds = self.task_seconds.get(task_type, self.task_seconds[None])
        fault = self.faults.for_task(task_type, place.vmid)
        if (fault is not None and fault.not_started) or self.chance.random() < self.worker_failure_rate:
            raise Refused(500, "got no worker upid - start worker failed\n")
        task = Task(node=place.node, task_type=task_type, vmid=place.vmid, user=user, seconds=seconds, fault=fault)
        self.tasks[task.upid] = task
        self.spawn(self._run(task, worker))
        return task.upid

    def spawn(self, coroutine: Coroutine[t.Any, t.Any, None]) -> None:
        """Run it in the server's loop until it or the server ends."""
        running = asyncio.ensure_future(coroutine)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _run(self, task: Task, worker: Worker) -> None:
        failure, killed = None, False
        try:
            await worker(task)
        except (Died, Refused) as exc:
            failure = str(exc).rstrip("\n")
        except Killed:
            killed = True
        except Exception:
            self.note_error()
            failure = "the simulator failed"
        with self.lock:
            task.finish(failure, killed=killed)

    def start_by_ha(self, worker: collections.abc.Callable[[Guest], None], off_since: dict[int, float]) -> None:
        """Call `worker` for each guest that was off for long enough; `off_since` is the memory of high availability."""
        now = time.monotonic()
        for guest in self.guests.values():
            if not guest.managed or guest.ha_state != "started" or guest.running or guest.config.get("lock"):
                off_since.pop(guest.vmid, None)
            elif self.ha_watch_seconds is not None and now - off_since.setdefault(guest.vmid, now) >= self.ha_watch_seconds:
                off_since[guest.vmid] = now
                worker(guest)

    async def cancel(self) -> None:
        """End everything that was spawned."""
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
