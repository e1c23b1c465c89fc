# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for the workers of Proxmox VE: one question a round for all that run on a node.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import threading
import time

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_errors import refused
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_library import (
    Refused,
    Row,
    Session,
    mapping,
    pauses,
    rows,
)
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError, Unverified

# Tasks that begin within this time are asked for together.
_GATHER_SECONDS = 0.1
_LONGEST_PAUSE = 2.0
# Lines of a log; the default is 50, and the last one tells most.
_LINES = 5000
# Rows of a node's list; the default of 50 is what a busy node starts in a minute.
_ROWS = 1000
# How long a node may be silent while tasks of ours run there: its services may be restarted. Then it is told that their end is not known.
_NODE_SECONDS = 60.0
# PVE::Tools, upid_status_is_error: with a warning it has worked (pve-common 9.2).
_WORKED = re.compile(r"OK|WARNINGS: \d+")


class TaskFailed(Exception):
    """How a worker ended, in PVE's words. Never leaves the driver."""

    def __init__(self, text: str, upid: str) -> None:
        super().__init__(text)
        self.upid = upid


class _Waiting:
    """A task that is waited for."""

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
    """All tasks of a driver, and for each node where some run one thread that asks how they are."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._pending: dict[str, _Waiting] = {}
        self._asked: set[str] = set()

    def result(self, upid: str) -> str:
        """Block until the task has ended, and return ``OK`` or ``WARNINGS: n``. Any number of threads may wait.

        :raises TaskFailed: it ended with something else.
        :raises Unverified: it cannot be told how it ended.
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
            except BaseException as exc:  # or those who wait would wait for ever
                self._fail(waiting, exc)

    def _look(self, node: str, waiting: list[_Waiting]) -> int:
        """Ask a node, and note what has ended; returns how many."""
        since = min(one.began for one in waiting)
        path, asked = f"nodes/{node}/tasks", {"source": "all", "since": since, "limit": _ROWS}
        seen = self._session.read(path, _by_upid, node_seconds=_NODE_SECONDS, **asked)
        ended = 0
        for one in waiting:
            # Without Sys.Audit only one's own tasks are listed, and of a very busy node only the latest.
            row = seen.get(one.upid) or self._single(one)
            status = row.get("exitstatus") or (row.get("status") if row.get("endtime") else None)
            if status:
                ended += 1
                with self._lock:
                    self._pending.pop(one.upid, None)
                one.end(status=str(status))
        return ended

    def log(self, upid: str) -> list[str]:
        """The lines of a task's log.

        :raises Refused: PVE does not tell.
        :raises SafepointError: it was not reached.
        """
        node = upid.split(":")[1]
        return self._session.read(f"nodes/{node}/tasks/{upid}/log", _lines, limit=_LINES)

    def of(self, node: str, vmid: str) -> list[Row]:
        """The tasks that work on a guest now, as far as the user may see them: its own, and with Sys.Audit all.

        :raises Refused: PVE does not tell.
        :raises SafepointError: it was not reached.
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
                # It goes on all the same, whatever it was that did not let us see.
                said = f"The task {one.upid} was begun, and how it ended could not be read: {error}; look with snapshot_info"
                one.end(error=Unverified(said))
            else:
                one.end(error=error)


def holds(row: Row) -> bool:
    """Whether a task can hold its guest; that of an open console does not, and runs for as long as it is open."""
    return not row.get("endtime") and not re.search("proxy|shell|console", str(row.get("type")))


def _by_upid(data: object) -> dict[str, Row]:
    return {str(row["upid"]): row for row in rows(data)}


def _lines(data: object) -> list[str]:
    return [str(row["t"]).strip() for row in rows(data)]
