# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Injected faults: rules for requests and rules for tasks."""

from __future__ import annotations

import dataclasses
import fnmatch
import threading


@dataclasses.dataclass
class Rule:
    """Applies from the `nth` match on, `count` times; None means without limit."""

    nth: int
    count: int | None
    seen: int = 0

    def hit(self) -> bool:
        """Count a match; return True if the rule applies to it."""
        self.seen += 1
        return self.seen >= self.nth and (self.count is None or self.seen < self.nth + self.count)


@dataclasses.dataclass
class RequestFault(Rule):
    """The fault of a request. `after`: the request is executed first, and its answer is lost."""

    method: str = "*"
    path: str = "*"
    status: int | None = None
    reason: str = ""
    after: bool = False
    cut: bool = False
    delay: float = 0.0
    gone: float = 0.0
    silent: bool = False
    body: str | None = None
    hold: bool = False
    reached: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when a request is on hold."""
    released: bool = False

    def release(self) -> None:
        """Release the requests on hold; their clients get no answer."""
        self.released = True

    def matches(self, method: str, path: str) -> bool:
        """Return True if the rule is for this request; `*` in the path also matches slashes."""
        return fnmatch.fnmatchcase(method, self.method) and fnmatch.fnmatchcase(path, self.path)


@dataclasses.dataclass
class TaskFault(Rule):
    """The end of a worker."""

    type: str = "*"
    vmid: int | None = None
    exitstatus: str = ""
    killed: bool = False
    warnings: int = 0
    not_started: bool = False

    def matches(self, task_type: str, vmid: int) -> bool:
        """Return True if the rule is for this worker."""
        return fnmatch.fnmatchcase(task_type, self.type) and self.vmid in (None, vmid)


class Faults:
    """All rules of a server. The first that applies is used; all that match are counted."""

    def __init__(self) -> None:
        self.requests: list[RequestFault] = []
        self.tasks: list[TaskFault] = []

    def for_request(self, method: str, path: str) -> RequestFault | None:
        """Return the rule for this request."""
        hits = [rule for rule in self.requests if rule.matches(method, path) and rule.hit()]
        return hits[0] if hits else None

    def for_task(self, task_type: str, vmid: int) -> TaskFault | None:
        """Return the rule for this worker."""
        hits = [rule for rule in self.tasks if rule.matches(task_type, vmid) and rule.hit()]
        return hits[0] if hits else None
