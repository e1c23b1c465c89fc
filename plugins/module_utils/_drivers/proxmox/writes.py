# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes to Proxmox VE: send each until it has arrived, then wait for its task and its result.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import socket
import time
import typing as t
from collections.abc import Iterator

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Job
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.errors import (
    NO_WORKER,
    half_done,
    is_before_the_lock,
    locked_by,
    refused,
    says_gone,
    typed,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.inventory import Inventory
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.parse import Guest, read_listing, read_snapshot_time
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import (
    NODE_REFUSED,
    Refused,
    Session,
    Tries,
    is_lost,
    is_slow,
    mapping,
    may_pass,
    rows,
    upid,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.tasks import TaskFailed, Tasks
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

# After a lost answer: the start time of the task, by the node's clock, can seem to be this much before the request.
_SLACK_SECONDS = 1
# How long to search for that task: PVE answers within 0.05 to 0.15 s, when the worker runs (9.2). After a timeout, ours or a proxy's, the node may be
# busy and start the worker later.
_LOOK_SECONDS = 3.0
_SLOW_LOOK_SECONDS = 20.0
_LOOK_PAUSE_SECONDS = 0.3
# Pause between two checks of a lock.
_LOCK_PAUSE_SECONDS = 1.0
# The kind of lock that each worker sets.
_LOCKS = {"snapshot": "snapshot", "delsnapshot": "snapshot-delete", "rollback": "rollback"}


@dataclasses.dataclass(eq=False)
class Order:
    """A job with its own deadline, which later phases of the call do not extend. After it nothing is sent."""

    job: Job
    deadline: Deadline | None
    """None: each write is sent once."""
    sent: bool = False
    """True if a write may have changed something: it was sent, and it is not certain that it did nothing."""

    @property
    def action(self) -> Action:
        return self.job.action

    def left(self) -> float:
        """Return the remaining seconds for retries."""
        return self.deadline.left() if self.deadline is not None else 0.0

    def over(self) -> bool:
        """Return True if the deadline has passed."""
        return self.deadline is not None and self.deadline.left() <= 0


class Writes:
    """All writes of a driver. Each runs in a separate thread; a guest has at most one at a time."""

    def __init__(self, session: Session, inventory: Inventory, tasks: Tasks) -> None:
        self._session = session
        self._inventory = inventory
        self._tasks = tasks
        self._begun: set[str] = set()
        # The vmids of guests that another operation held; the next write to them is only sent after a check that they are free.
        self._locked: set[str] = set()

    # -- send ----------------------------------------------------------------------------------------------------------

    def work(self, order: Order, worker: str, method: str, tail: str, **values: t.Any) -> None:
        """Start a worker and wait until it has ended.

        :raises TaskFailed: it failed.
        :raises Locked: another operation holds the guest, and nothing was changed.
        :raises BackendFailed: it failed half-way.
        :raises Unverified: it is unknown if it was started, or how it ended.
        """
        action = order.action
        if action.vm.id in self._locked:
            self._expect_free(action)
        if worker == "delsnapshot" and self._inventory.guest(action.vm).container:
            with _alone(self._session.where, action, tail):
                self._expect_free(action)
                self._work(order, worker, method, tail, values)
        else:
            self._work(order, worker, method, tail, values)

    def _work(self, order: Order, worker: str, method: str, tail: str, values: dict[str, t.Any]) -> None:
        action, job = order.action, order.job
        try:
            job.handle = self._inventory.of(
                action.vm, str(action), lambda guest: self._begin(guest, order, worker, method, tail, values)
            )
            self._begun.add(str(job.handle))
            self._tasks.result(str(job.handle))
        except TaskFailed as exc:
            error = self._left_locked(order, worker, exc)
            if error is not None:
                raise error from exc
            if isinstance(typed(str(exc), str(action)), errors.Locked):
                self._locked.add(action.vm.id)
            raise
        except errors.Locked:
            self._locked.add(action.vm.id)
            raise

    def _begin(self, guest: Guest, order: Order, worker: str, method: str, tail: str, values: dict[str, t.Any]) -> str:
        """Send the request and return the id of its task. It is only repeated if it is certain that it did nothing."""
        path = f"{guest.path}/{tail}"
        tries = Tries((NODE_REFUSED,))
        while True:
            if tail.startswith("snapshot/"):
                self._check_same(guest, order.action)
            _expect_time(order)
            # In seconds, by the node's clock.
            since = int(time.time() + self._session.ahead.total_seconds()) - _SLACK_SECONDS
            before, order.sent = order.sent, True
            try:
                return self._session.write(method, path, upid, **values)
            except (Refused, errors.ConnectionFailed) as exc:
                error: Exception = exc
                found = self._find_task(guest, order, worker, since, exc) if is_lost(exc) else None
                if found is not None:
                    return found
                order.sent = before
                not_begun = isinstance(exc, Refused) and NO_WORKER in exc.text
                if not (may_pass(exc) or not_begun):
                    raise
            left = tries.left(error, order.left())
            tries.sleep(left)
            if left <= 0 or order.over():
                raise self._not_done(error, order.action, guest)

    def _check_same(self, guest: Guest, action: Action) -> None:
        """Check that the name still belongs to the snapshot that was read; PVE has no other id. One extra request for each write, without which a prune
        or a revert could act on a different snapshot. Compares the creation times, which have a resolution of one second.

        :raises SnapshotNotFound: the snapshot was deleted and another one has its name.
        """
        if isinstance(action, Create) or action.snapshot.created is None:
            return  # the snapshot was just created by this call
        name = action.snapshot.id
        created = self._session.read(f"{guest.path}/snapshot/{name}/config", lambda data: read_snapshot_time(mapping(data)))
        if created != action.snapshot.created:
            raise errors.SnapshotNotFound(
                f"Did not {action}: the snapshot {name!r} was deleted and another one has that name now; check the snapshots with snapshot_info"
            )

    def _not_done(self, error: Exception, action: Action, guest: Guest) -> Exception:
        if not is_lost(error):
            return error
        said = refused(error, str(action), where=self._session.where, node=guest.node) if isinstance(error, Refused) else error
        return errors.NotReached(f"{said}; no task was started")

    def _find_task(self, guest: Guest, order: Order, worker: str, since: int, error: Exception) -> str | None:
        """Return the task that a request with a lost answer has started, or None if it started none.

        :raises Unverified: that is unknown.
        """
        action = order.action
        # For a guest in high availability, start and stop are tasks of type hastart and hastop.
        types = (guest.worker(worker), f"ha{worker}")
        path, asked = f"nodes/{guest.node}/tasks", {"source": "all", "vmid": guest.vmid, "since": since}
        slow = is_slow(error)
        end = time.monotonic() + (_SLOW_LOOK_SECONDS if slow else _LOOK_SECONDS)
        while True:
            over = time.monotonic() >= end
            late = order.over()
            try:
                listed = self._session.read(path, rows, node_seconds=float("inf"), **asked)
            except (Refused, SafepointError) as exc:
                raise self._unverified(action, f"and the task list could not be read: {exc}") from exc
            # In a row the name of a token is separate from its user (pve-manager 9.2); the id of the task has both.
            ids = [str(row.get("upid")) for row in listed if row.get("type") in types]
            mine = [one for one in ids if one.split(":")[7] == self._session.user and one not in self._begun]
            if mine:
                return max(mine, key=lambda one: one.split(":")[4])
            if over:
                break
            if late:
                raise self._unverified(action, "and no task was seen before the timeout")
            time.sleep(_LOOK_PAUSE_SECONDS)
        if slow and worker == "rollback":
            # A second rollback is not sent: if the first one started later, it would discard all changes after the second.
            raise self._unverified(action, f"and no task started within {_SLOW_LOOK_SECONDS:g} seconds")
        return None

    def _unverified(self, action: Action, why: str) -> errors.Unverified:
        return errors.Unverified(
            f"The request to {action} was sent to {self._session.where}, but no answer came, {why}; check with snapshot_info"
        )

    def describe(self, order: Order, name: str, description: str) -> None:
        """Write a snapshot's description. It is done when the answer arrives, and can be repeated safely."""
        action = order.action

        def send(guest: Guest) -> None:
            path, tries = f"{guest.path}/snapshot/{name}/config", Tries(())
            while True:
                self._check_same(guest, action)
                _expect_time(order)
                before, order.sent = order.sent, True
                try:
                    return self._session.write("put", path, lambda _data: None, description=description)
                except (Refused, errors.ConnectionFailed) as exc:
                    if is_lost(exc) and self._says(path, action, description):
                        return None
                    order.sent = before or is_lost(exc)
                    if not may_pass(exc):
                        raise
                    tries.sleep(order.left())
                    if is_lost(exc) and order.over():
                        raise self._unverified(
                            action, "and the snapshot did not have the description before the timeout"
                        ) from exc
                    if order.left() <= 0:
                        raise

        if action.vm.id in self._locked:
            self._expect_free(action)
        try:
            self._inventory.of(action.vm, str(action), send)
        except errors.Locked:
            self._locked.add(action.vm.id)
            raise

    def _says(self, path: str, action: Action, description: str) -> bool:
        """Return True if the snapshot has the description although the answer to the write was lost."""
        try:
            found = self._session.read(path, mapping)
        except Refused:
            return False  # the snapshot is gone; the next try reports that
        except SafepointError as exc:
            raise self._unverified(action, f"and the description could not be read: {exc}") from exc
        return str(found.get("description") or "").rstrip() == description.rstrip()

    # -- locks ---------------------------------------------------------------------------------------------------------

    def held(self, action: Action) -> str | None:
        """Return what holds the guest now, in words, or None. Two or three requests."""

        def look(guest: Guest) -> str | None:
            kind = self._session.read(f"{guest.path}/status/current", mapping).get("lock")
            holder = next((str(row.get("upid")) for row in self._tasks.of(guest.node, guest.vmid)), None)
            if not kind:
                return f"the task {holder}" if holder else None
            unfinished: t.Iterable[str] = ()
            if holder is None:
                unfinished = self._session.read(f"{guest.path}/snapshot", lambda data: read_listing(rows(data), guest)).unfinished
            return locked_by(str(kind), holder, tool=guest.tool, vmid=guest.vmid, unfinished=unfinished)

        return self._inventory.of(action.vm, f"read the lock of {action.vm}", look)

    def _expect_free(self, action: Action) -> None:
        """Check that no operation holds the guest. A refused write would be a failed task in Proxmox VE's task history; a read is not.

        :raises Locked: another operation holds the guest.
        """
        by = self.held(action)
        if by is not None:
            self._locked.add(action.vm.id)
            raise errors.Locked(f"Proxmox VE cannot {action} now: {action.vm} is held by {by}")
        self._locked.discard(action.vm.id)

    def wait_until_free(self, action: Action, deadline: Deadline) -> None:
        """Wait until no operation holds the guest, or until the deadline."""
        while self.held(action) is not None and deadline.left() > 0:
            deadline.within(_LOCK_PAUSE_SECONDS).sleep()
        self._locked.discard(action.vm.id)

    def _left_locked(self, order: Order, worker: str, failure: TaskFailed) -> SafepointError | None:
        """Return the error if a failed worker left its lock, else None. PVE's text alone does not show this; costs some requests, only after a failure.

        For example "can't lock file" can come at the start, or in the last step (qemu-server 9.2).
        """
        action, kind = order.action, _LOCKS.get(worker)
        if kind is None or is_before_the_lock(str(failure), removal=worker == "delsnapshot"):
            return None

        def own(guest: Guest) -> bool:
            """Return True if the lock exists and no running task can hold it."""
            path = f"{guest.path}/status/current"
            while True:
                if self._session.read(path, mapping).get("lock") != kind:
                    return False
                if not self._tasks.of(guest.node, guest.vmid):
                    # A task that has just ended has released its lock.
                    return self._session.read(path, mapping).get("lock") == kind
                if order.left() <= 0:
                    return False
                time.sleep(min(_LOCK_PAUSE_SECONDS, order.left()))

        try:
            if not self._inventory.of(action.vm, f"read the lock of {action.vm}", own):
                return None
            guest = self._inventory.guest(action.vm)
        except SafepointError:
            return None
        name = action.name if isinstance(action, Create) else action.snapshot.id
        unfinished = () if worker == "rollback" or says_gone(str(failure)) else (name,)
        return half_done(
            f"{str(failure).strip()} (task {failure.upid})",
            str(action),
            kind=kind,
            tool=guest.tool,
            vmid=guest.vmid,
            unfinished=unfinished,
        )


def _expect_time(order: Order) -> None:
    """Do not send a write after the deadline: it would change the guest after the call has returned its result.

    :raises NotReached: the deadline has passed.
    """
    if order.over():
        raise errors.NotReached(
            f"The timeout was reached before the request to {order.action} was sent; nothing was changed; set a longer timeout"
        )


@contextlib.contextmanager
def _alone(where: str, action: Action, tail: str) -> Iterator[None]:
    """Prevent two calls on this machine from removing the same snapshot of a container at the same time.

    Both removals would find it, and the second would leave its lock (pve-container 6.1.10). Only one process at a time can bind the name of an abstract
    socket, and the kernel frees it when that process ends. Calls on other machines, or to another node of the cluster, are seen by their tasks, unless both
    start at the same moment. ``where`` is the endpoint: VMIDs of different clusters are the same.

    :raises Locked: another call holds the name.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as mine:
        try:
            # A hash, because the name of an abstract socket has at most 107 bytes.
            mine.bind(f"\0safepoint.vm/{hashlib.sha256(f'{where}/{action.vm.id}/{tail}'.encode()).hexdigest()}")
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise errors.Locked(f"Another call on this machine is about to {action}; try again later") from exc
            # Abstract sockets exist on Linux only.
        except ValueError:
            pass
        yield
