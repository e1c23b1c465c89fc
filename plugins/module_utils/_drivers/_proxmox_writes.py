# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Orders to Proxmox VE: each is sent until it is known to have arrived, and waited for until it is known how it ended.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
import time
import typing as t
from collections.abc import Iterator

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, Create, Job
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_errors import (
    NO_WORKER,
    half_done,
    is_before_the_lock,
    locked_by,
    refused,
    says_gone,
    typed,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_inventory import Inventory
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_library import (
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
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_read import Guest, read_listing, read_snapshot_time
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_tasks import TaskFailed, Tasks
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError

# After an answer that was lost: how far before the request the task that it may have begun can seem to have begun, by the node's clock.
_SLACK_SECONDS = 1
# How long that task may take to be begun and to be listed: PVE answers in 0.05 to 0.15 s when the worker runs (9.2). Where a proxy or we gave up waiting for
# the answer, the node may be busy, and the worker begin later.
_LOOK_SECONDS = 3.0
_SLOW_LOOK_SECONDS = 20.0
_LOOK_PAUSE_SECONDS = 0.3
# Between two looks at a lock.
_LOCK_PAUSE_SECONDS = 1.0
# What a guest is locked with, by the worker that works on it.
_LOCKS = {"snapshot": "snapshot", "delsnapshot": "snapshot-delete", "rollback": "rollback"}


@dataclasses.dataclass(eq=False)
class Order:
    """A job with the end of its time, which the later phases of its call do not move: after it nothing more is sent."""

    job: Job
    deadline: Deadline | None
    """Without one each write is sent once."""
    sent: bool = False
    """Whether a write may have changed something: it was sent, and is not known to have done nothing."""

    @property
    def action(self) -> Action:
        return self.job.action

    def left(self) -> float:
        """The seconds for which what did not arrive may be sent again."""
        return self.deadline.left() if self.deadline is not None else 0.0

    def over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and self.deadline.left() <= 0


class Writes:
    """All orders of a driver. Each is given in a thread of its own, and one guest has at most one at a time."""

    def __init__(self, session: Session, inventory: Inventory, tasks: Tasks) -> None:
        self._session = session
        self._inventory = inventory
        self._tasks = tasks
        self._begun: set[str] = set()
        # The vmids of guests that were found locked by others; the next order is not sent before they are seen to be free.
        self._locked: set[str] = set()

    # -- send ----------------------------------------------------------------------------------------------------------

    def work(self, order: Order, worker: str, method: str, tail: str, **values: t.Any) -> None:
        """Begin a worker and wait until it has ended.

        :raises TaskFailed: it did not work.
        :raises Locked: another operation holds the guest, and nothing was done.
        :raises BackendFailed: it broke off half-way.
        :raises Unverified: it cannot be told if it was begun, or how it ended.
        """
        action = order.action
        if action.vm.id in self._locked:
            self._expect_free(action)
        if worker == "delsnapshot" and self._inventory.guest(action.vm).container:
            with _alone(action, tail):
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
            if isinstance(typed(str(exc), str(action)), _errors.Locked):
                self._locked.add(action.vm.id)
            raise
        except _errors.Locked:
            self._locked.add(action.vm.id)
            raise

    def _begin(self, guest: Guest, order: Order, worker: str, method: str, tail: str, values: dict[str, t.Any]) -> str:
        """The id of the task of an order, which is sent again only when it is known to have done nothing."""
        path = f"{guest.path}/{tail}"
        tries = Tries((NODE_REFUSED,))
        while True:
            if tail.startswith("snapshot/"):
                self._check_same(guest, order.action)
            _expect_time(order)
            # By the node's clock, in whole seconds.
            since = int(time.time() + self._session.ahead.total_seconds()) - _SLACK_SECONDS
            before, order.sent = order.sent, True
            try:
                return self._session.write(method, path, upid, **values)
            except (Refused, _errors.ConnectionFailed) as exc:
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
        """Refuse to work on another snapshot that has taken the name since the look; PVE has no other id. One request more for each write: without it a
        prune removes, and a revert goes back to, a snapshot that was never decided about. The creation time has whole seconds.

        :raises SnapshotNotFound: the snapshot that was decided about is not there any more.
        """
        if isinstance(action, Create) or action.snapshot.created is None:
            return  # the snapshot is our own, and a moment old
        name = action.snapshot.id
        created = self._session.read(f"{guest.path}/snapshot/{name}/config", lambda data: read_snapshot_time(mapping(data)))
        if created != action.snapshot.created:
            raise _errors.SnapshotNotFound(
                f"Nothing was sent to {action}: the snapshot {name!r} that was there is gone, and another one has that name now; look with snapshot_info"
            )

    def _not_done(self, error: Exception, action: Action, guest: Guest) -> Exception:
        if not is_lost(error):
            return error
        said = refused(error, str(action), where=self._session.where, node=guest.node) if isinstance(error, Refused) else error
        return _errors.NotReached(f"{said}; its task was looked for, and was not begun")

    def _find_task(self, guest: Guest, order: Order, worker: str, since: int, error: Exception) -> str | None:
        """The task that an order has begun whose answer was lost, or None where it has begun none.

        :raises Unverified: that cannot be told.
        """
        action = order.action
        # Of a guest under high availability it only orders the start or stop.
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
                raise self._unverified(action, f"and its task could not be looked for: {exc}") from exc
            # Rows have a token's name apart from its user's (pve-manager 9.2); the id of the task has both.
            ids = [str(row.get("upid")) for row in listed if row.get("type") in types]
            mine = [one for one in ids if one.split(":")[7] == self._session.user and one not in self._begun]
            if mine:
                return max(mine, key=lambda one: one.split(":")[4])
            if over:
                break
            if late:
                raise self._unverified(action, "and no task of it was seen to begin before the time was up")
            time.sleep(_LOOK_PAUSE_SECONDS)
        if slow and worker == "rollback":
            # Of all orders it alone would do harm if the first one came after all: it would take what happened after the second.
            raise self._unverified(action, f"and no task of it began within {_SLOW_LOOK_SECONDS:g} seconds")
        return None

    def _unverified(self, action: Action, why: str) -> _errors.Unverified:
        return _errors.Unverified(
            f"The order to {action} was sent to {self._session.where}, no answer came, {why}; look with snapshot_info"
        )

    def describe(self, order: Order, name: str, description: str) -> None:
        """Write a snapshot's description, which is done when the answer comes. It may be sent again: it says the same each time."""
        action = order.action

        def send(guest: Guest) -> None:
            path, tries = f"{guest.path}/snapshot/{name}/config", Tries(())
            while True:
                self._check_same(guest, action)
                _expect_time(order)
                before, order.sent = order.sent, True
                try:
                    return self._session.write("put", path, lambda _data: None, description=description)
                except (Refused, _errors.ConnectionFailed) as exc:
                    if is_lost(exc) and self._says(path, action, description):
                        return None
                    order.sent = before or is_lost(exc)
                    if not may_pass(exc):
                        raise
                    tries.sleep(order.left())
                    if is_lost(exc) and order.over():
                        raise self._unverified(action, "and by the end of the time the snapshot did not have it") from exc
                    if order.left() <= 0:
                        raise

        if action.vm.id in self._locked:
            self._expect_free(action)
        try:
            self._inventory.of(action.vm, str(action), send)
        except _errors.Locked:
            self._locked.add(action.vm.id)
            raise

    def _says(self, path: str, action: Action, description: str) -> bool:
        """Whether a description that was written has arrived although its answer was lost."""
        try:
            found = self._session.read(path, mapping)
        except Refused:
            return False  # it is gone; the next try says so
        except SafepointError as exc:
            raise self._unverified(action, f"and it could not be read again: {exc}") from exc
        return str(found.get("description") or "").rstrip() == description.rstrip()

    # -- locks ---------------------------------------------------------------------------------------------------------

    def held(self, action: Action) -> str | None:
        """What holds a guest now, or None. Two or three questions."""

        def look(guest: Guest) -> str | None:
            kind = self._session.read(f"{guest.path}/status/current", mapping).get("lock")
            holder = next((str(row.get("upid")) for row in self._tasks.of(guest.node, guest.vmid)), None)
            if not kind:
                return f"the task {holder}" if holder else None
            unfinished: t.Iterable[str] = ()
            if holder is None:
                unfinished = self._session.read(f"{guest.path}/snapshot", lambda data: read_listing(rows(data), guest)).unfinished
            return locked_by(str(kind), holder, tool=guest.tool, vmid=guest.vmid, unfinished=unfinished)

        return self._inventory.of(action.vm, f"look at the lock of {action.vm}", look)

    def _expect_free(self, action: Action) -> None:
        """Waiting costs questions, and no orders: each that is refused is a failed task in the history of Proxmox VE.

        :raises Locked: another operation holds the guest.
        """
        by = self.held(action)
        if by is not None:
            self._locked.add(action.vm.id)
            raise _errors.Locked(f"Proxmox VE cannot {action} now: {action.vm} is held by {by}")
        self._locked.discard(action.vm.id)

    def wait_until_free(self, action: Action, deadline: Deadline) -> None:
        """Wait until nothing is seen to hold the guest, or the time is up."""
        while self.held(action) is not None and deadline.left() > 0:
            deadline.within(_LOCK_PAUSE_SECONDS).sleep()
        self._locked.discard(action.vm.id)

    def _left_locked(self, order: Order, worker: str, failure: TaskFailed) -> SafepointError | None:
        """What to say of a worker that broke off half-way, which by PVE's own words may look like a refusal. Some requests more, after a failure.

        "can't lock file" for example may come at its begin, or when all is done but the last step (qemu-server 9.2).
        """
        action, kind = order.action, _LOCKS.get(worker)
        if kind is None or is_before_the_lock(str(failure), removal=worker == "delsnapshot"):
            return None

        def own(guest: Guest) -> bool:
            """Whether the lock is there, and no task that could have it."""
            path = f"{guest.path}/status/current"
            while True:
                if self._session.read(path, mapping).get("lock") != kind:
                    return False
                if not self._tasks.of(guest.node, guest.vmid):
                    # One that has just ended took its lock with it.
                    return self._session.read(path, mapping).get("lock") == kind
                if order.left() <= 0:
                    return False
                time.sleep(min(_LOCK_PAUSE_SECONDS, order.left()))

        try:
            if not self._inventory.of(action.vm, f"look at the lock of {action.vm}", own):
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
    """Send nothing of which the call would not see the end any more: it would change the guest after the call has told how it is.

    :raises NotReached: the time is up.
    """
    if order.over():
        raise _errors.NotReached(
            f"The time was up before the order to {order.action} was sent, so that it was not; set a longer timeout"
        )


@contextlib.contextmanager
def _alone(action: Action, tail: str) -> Iterator[None]:
    """Keep two calls on this machine from removing one snapshot of a container at the same time.

    Both removals would find it, and the second would leave its lock (pve-container 6.1.10). The name of an abstract socket is had by one process at a
    time, and free again when that ends, however it ends. Calls on other machines are seen by their tasks, but for the moment in which both begin.

    :raises Locked: another call has it.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as mine:
        try:
            mine.bind(f"\0safepoint.vm/{action.vm.id}/{tail}")
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise _errors.Locked(f"Another call on this machine is about to {action}; try again later") from exc
            # Other systems than Linux have no such names.
        except ValueError:
            pass
        yield
