# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for the workers of Proxmox VE: one question a round for all that run on a node.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import threading
import time
import typing as t

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_errors import refused
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_library import Refused, Session, pauses
from ansible_collections.safepoint.vm.plugins.module_utils._errors import ConnectionFailed, SafepointError

# Tasks that begin within this time are asked for together.
_GATHER_SECONDS = 0.1
_LONGEST_PAUSE = 2.0
# Rows of a node's list; the default of 50 is what a busy node starts in a minute.
_ROWS = 1000
# How often in a row the question may fail, and how long a node is left alone after that.
_RETRIES = 5
_RETRY_SECONDS = 2.0
# PVE::Tools, upid_status_is_error: with a warning it has worked (pve-common 9.2).
_WORKED = re.compile(r"OK|WARNINGS: \d+")


class TaskFailed(Exception):
    """How a worker ended, in PVE's words. Never leaves the driver."""


class _Waiting:
    """A task that somebody waits for."""

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
        :raises SafepointError: nobody can tell how it ended.
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
            raise TaskFailed(waiting.status)
        return waiting.status

    def _ask(self, node: str) -> None:
        time.sleep(_GATHER_SECONDS)
        pause = pauses(_LONGEST_PAUSE)
        failures = 0
        while True:
            with self._lock:
                waiting = [one for one in self._pending.values() if one.node == node]
                if not waiting:
                    self._asked.remove(node)
                    return
            try:
                if self._look(node, waiting):
                    pause = pauses(_LONGEST_PAUSE)
                failures = 0
                time.sleep(next(pause))
            except (Refused, ConnectionFailed) as exc:
                failures += 1
                if failures > _RETRIES:
                    self._fail(waiting, exc)
                time.sleep(_RETRY_SECONDS)
            except BaseException as exc:  # whoever waits would wait for ever
                self._fail(waiting, exc)

    def _look(self, node: str, waiting: list[_Waiting]) -> int:
        """Ask a node, and note what has ended; returns how many."""
        since = min(one.began for one in waiting)
        rows = self._session.ask("get", f"nodes/{node}/tasks", source="all", since=since, limit=_ROWS)
        seen = {row["upid"]: row for row in rows}
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

    def _single(self, one: _Waiting) -> dict[str, t.Any]:
        return t.cast("dict[str, t.Any]", self._session.ask("get", f"nodes/{one.node}/tasks/{one.upid}/status"))

    def _fail(self, waiting: list[_Waiting], error: BaseException) -> None:
        node = waiting[0].node
        if isinstance(error, Refused):
            error = refused(error, f"wait for the tasks of {node}", where=self._session.where, node=node)
        if isinstance(error, SafepointError):
            # They go on all the same, and what they leave is to be looked for, whatever it was that did not let us see.
            error = ConnectionFailed(f"How the tasks of {node} ended cannot be told: {error}")
        with self._lock:
            failed = [one for one in waiting if self._pending.pop(one.upid, None) is not None]
        for one in failed:
            one.end(error=error)
