# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tasks: ids, logs and durations."""

from __future__ import annotations

import asyncio
import collections.abc
import itertools
import re
import time
import typing as t

from pve_errors import Died, Killed
from pve_faults import TaskFault

UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?):(?P<pid>[0-9A-Fa-f]{8}):(?P<pstart>[0-9A-Fa-f]{8,9})"
    r":(?P<starttime>[0-9A-Fa-f]{8}):(?P<type>[^:\s]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):$"
)
Worker = collections.abc.Callable[["Task"], collections.abc.Coroutine[t.Any, t.Any, None]]

_pids = itertools.count(0x1000)


class Task:
    """A forked worker process; kept long after its end."""

    def __init__(
        self, *, node: str, task_type: str, vmid: int, user: str, seconds: float = 0.0, fault: TaskFault | None = None
    ) -> None:
        self.node = node
        self.type = task_type
        self.id = str(vmid)
        self.user = user
        self.seconds = seconds
        self.fault = fault
        self.pid = next(_pids)
        self.pstart = int(time.monotonic() * 100)
        self.starttime = int(time.time())
        self.upid = f"UPID:{node}:{self.pid:08X}:{self.pstart:08X}:{self.starttime:08X}:{task_type}:{vmid}:{user}:"
        self.log: list[str] = []
        self.exitstatus: str | None = None
        self.endtime: int | None = None
        self.interrupted = False
        self._hurry = asyncio.Event()

    @property
    def running(self) -> bool:
        """True while its process exists."""
        return self.exitstatus is None

    def say(self, line: str) -> None:
        """Add a line to the log."""
        self.log.append(line)

    async def work(self, interrupted: str = "received interrupt") -> None:
        """Wait for the duration of the task, and apply an injected fault: Died or Killed.

        `interrupted` is the error text of a worker that is stopped through the API at this point.
        """
        try:
            await asyncio.wait_for(self._hurry.wait(), self.seconds or 0.0001)
        except TimeoutError:
            pass
        if self.interrupted:
            raise Died(interrupted)
        if self.fault is not None and self.fault.killed:
            raise Killed
        if self.fault is not None and self.fault.exitstatus:
            raise Died(self.fault.exitstatus)

    def hurry(self) -> None:
        """End `work` now, with success."""
        self._hurry.set()

    def interrupt(self) -> None:
        """End `work` now, like a worker that received a signal."""
        self.interrupted = True
        self._hurry.set()

    def finish(self, failure: str | None, *, killed: bool = False) -> None:
        """End the process: with success, or with that text."""
        self.endtime = int(time.time())
        if killed:
            # The last line of the log has the result of a task; without one the result is this.
            self.exitstatus = "unexpected status"
        elif failure is not None:
            self.exitstatus = failure.replace("\n", " ")
            self.say(f"TASK ERROR: {self.exitstatus}")
        elif self.fault is not None and self.fault.warnings:
            self.exitstatus = f"WARNINGS: {self.fault.warnings}"
            self.say(f"TASK {self.exitstatus}")
        else:
            self.exitstatus = "OK"
            self.say("TASK OK")

    def row(self) -> dict[str, t.Any]:
        """Return the fields for lists. For a token, user and token id are separate fields (pve-manager 9.2.11)."""
        user, _, token = self.user.partition("!")
        row = {"upid": self.upid, "node": self.node, "pid": self.pid, "pstart": self.pstart, "starttime": self.starttime}
        row |= {"type": self.type, "id": self.id, "user": user}
        if token:
            row["tokenid"] = token
        return row

    def belongs_to(self, user: str) -> bool:
        """Return True if `user` can see it without privileges: a user sees the tasks of the user's tokens, a token only its own."""
        return user in (self.user, self.user.partition("!")[0])


def is_error(exitstatus: str) -> bool:
    """Return True if an exit text means failure; warnings do not."""
    return exitstatus != "OK" and not re.match(r"WARNINGS: \d+$", exitstatus)


def status_type(exitstatus: str | None) -> str:
    """Return the value for `statusfilter`."""
    if exitstatus in (None, "unexpected status"):
        return "unknown"
    if exitstatus == "OK":
        return "ok"
    return "error" if is_error(exitstatus) else "warning"
