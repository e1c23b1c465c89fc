# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wait for the tasks of Proxmox VE, with one poll request for all tasks on a node.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import threading
import time

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError, Unverified
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.errors import refused
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import (
    Refused,
    Row,
    Session,
    mapping,
    pauses,
    rows,
)

# Tasks that start within this time are polled together from the first poll.
_GATHER_SECONDS = 0.1
_LONGEST_PAUSE = 2.0
# Maximum lines of a log; the default is 50, and the last lines are the important ones.
_LINES = 5000
# Maximum rows of a node's task list; a busy node can start 50 tasks, the default, in a minute.
_ROWS = 1000
# How long a node may not answer while our tasks run there, as when its services restart. After that the result of the tasks counts as unknown.
_NODE_SECONDS = 60.0
# As in upid_status_is_error of PVE::Tools: a task with warnings has succeeded (pve-common 9.2).
_WORKED = re.compile(r"OK|WARNINGS: \d+")


class TaskFailed(Exception):
    """A task failed; the text is its exit status from PVE. Internal to this backend."""

    def __init__(self, text: str, upid: str) -> None:
        super().__init__(text)
        self.upid = upid


class _Waiting:
    """A task whose end is awaited."""

    def __init__(self, upid: str) -> None:
        self.upid = upid
        self.ended = threading.Event()
        self.status = ""
        self.error: BaseException | None = None

    @property
    def node(self) -> str:
        return self.upid.split(":")[1]

    @property
    def began(self) -> int:
        """Seconds since the epoch, by the node's clock."""
        return int(self.upid.split(":")[4], 16)

    def end(self, *, status: str = "", error: BaseException | None = None) -> None:
        self.status, self.error = status, error
        self.ended.set()


class Tasks:
    """All tasks of a driver, with one polling thread for each node on which tasks run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._pending: dict[str, _Waiting] = {}
        self._asked: set[str] = set()

    def result(self, upid: str) -> str:
        """Block until the task has ended, and return ``OK`` or ``WARNINGS: n``. Thread-safe.

        :raises TaskFailed: it ended with another status.
        :raises Unverified: its result is unknown.
        """
        waiting = _Waiting(upid)
        with self._lock:
            self._pending[upid] = waiting
            start = waiting.node not in self._asked
            self._asked.add(waiting.node)
        if start:
            threading.Thread(target=self._ask, args=(waiting.node,), name="Proxmox VE tasks", daemon=True).start()
        waiting.ended.wait()
        if waiting.error is not None:
            raise waiting.error
        if not _WORKED.fullmatch(waiting.status):
            raise TaskFailed(waiting.status, upid)
        return waiting.status

    def _ask(self, node: str) -> None:
        time.sleep(_GATHER_SECONDS)
        pause = pauses(_LONGEST_PAUSE)
        while True:
            with self._lock:
                waiting = [one for one in self._pending.values() if one.node == node]
                if not waiting:
                    self._asked.remove(node)
                    return
            try:
                if self._look(node, waiting):
                    pause = pauses(_LONGEST_PAUSE)
                time.sleep(next(pause))
            except BaseException as exc:  # else the waiting threads would block for ever
                self._fail(waiting, exc)

    def _look(self, node: str, waiting: list[_Waiting]) -> int:
        """Poll a node, record the tasks that have ended, and return their number."""
        since = min(one.began for one in waiting)
        path, asked = f"nodes/{node}/tasks", {"source": "all", "since": since, "limit": _ROWS}
        seen = self._session.read(path, _by_upid, node_seconds=_NODE_SECONDS, **asked)
        ended = 0
        for one in waiting:
            # Without Sys.Audit only the user's own tasks are listed, and on a very busy node only the latest ones.
            row = seen.get(one.upid) or self._single(one)
            status = row.get("exitstatus") or (row.get("status") if row.get("endtime") else None)
            if status:
                ended += 1
                with self._lock:
                    self._pending.pop(one.upid, None)
                one.end(status=str(status))
        return ended

    def log(self, upid: str) -> list[str]:
        """Return the lines of a task's log.

        :raises Refused: PVE refused.
        :raises SafepointError: PVE was not reached.
        """
        node = upid.split(":")[1]
        return self._session.read(f"nodes/{node}/tasks/{upid}/log", _lines, limit=_LINES)

    def of(self, node: str, vmid: str) -> list[Row]:
        """Return the running tasks of a guest that the user may see: the user's own, and with Sys.Audit all.

        :raises Refused: PVE refused.
        :raises SafepointError: PVE was not reached.
        """
        listed = self._session.read(f"nodes/{node}/tasks", rows, source="active", vmid=vmid)
        return [row for row in listed if holds(row)]

    def _single(self, one: _Waiting) -> Row:
        return self._session.read(f"nodes/{one.node}/tasks/{one.upid}/status", mapping, node_seconds=_NODE_SECONDS)

    def _fail(self, waiting: list[_Waiting], error: BaseException) -> None:
        node = waiting[0].node
        if isinstance(error, Refused):
            error = refused(error, f"wait for the tasks of {node}", where=self._session.where, node=node)
        with self._lock:
            failed = [one for one in waiting if self._pending.pop(one.upid, None) is not None]
        for one in failed:
            if isinstance(error, SafepointError):
                # The task continues in any case.
                said = f"The task {one.upid} was started, but its result could not be read: {error}; check with snapshot_info"
                one.end(error=Unverified(said))
            else:
                one.end(error=error)


def holds(row: Row) -> bool:
    """Return True if a task can hold its guest. The task of an open console runs as long as the console, and holds nothing."""
    return not row.get("endtime") and not re.search("proxy|shell|console", str(row.get("type")))


def _by_upid(data: object) -> dict[str, Row]:
    return {str(row["upid"]): row for row in rows(data)}


def _lines(data: object) -> list[str]:
    return [str(row["t"]).strip() for row in rows(data)]
