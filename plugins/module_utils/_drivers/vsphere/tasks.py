# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Wait for the tasks of vCenter, all with one request.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t
from collections.abc import Callable

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import BackendFailed, SafepointError, Unverified
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Job
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.lazy import LazyStub
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import (
    UNANSWERED,
    UNREADABLE,
    BadAnswer,
    Session,
    expect,
    typed,
    vim,
    vmodl,
)

# Tasks that start within this time are added to the list view in one request.
_GATHER_SECONDS = 0.05
# Later tasks are added before the next poll, and after this time at the latest.
_PUSH_SECONDS = 0.3
# Without pauses between polls, the end of each task and each percent of progress would cost one request. The pause is a tenth of the estimated
# time of a task, within these bounds; the end of a task is noticed at most that late.
_ASK_SECONDS = 0.2
# The pause after an answer in which tasks have ended: others will end soon, and the callers start the next ones.
_SOON_SECONDS = 0.05
_LONGEST_ASK_SECONDS = 2.0
_LATE = 0.1
# maxWaitSeconds: how long the server may hold a request without updates. Proxies cut connections that are silent for a minute.
_LONGEST_WAIT = 30

Done = Callable[[t.Any, t.Optional[BaseException]], None]


class TaskLost(Exception):
    """vCenter no longer has the task, for example after its restart. The result must be read from the VM. Internal to this backend."""


class _Waiting:
    """A task whose end is awaited."""

    def __init__(self, task: t.Any, job: Job, done: Done) -> None:
        self.task = task
        self.job = job
        self.done = done
        self.began = time.monotonic()
        self.seen: dict[str, t.Any] = {}


class _List:
    """A list view with a filter on the server."""

    def __init__(self, view: t.Any, login: int, members: set[str]) -> None:
        self.view = view
        self.login = login
        self.members = members
        # The last update that was read. Without a version the server reports the present state of all tasks.
        self.version = ""


class Tasks:
    """All tasks of a login: one list view on the server, with one filter, and one polling thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._pending: dict[str, _Waiting] = {}
        self._asking = False
        self._pushing = False
        # Held during the requests that fill the list view: two threads do this, and neither must rely on a request of the other one that may fail.
        self._filling = threading.Lock()
        # None if a new one must be created.
        self._list: _List | None = None
        # Set before the next poll: log in again.
        self._renew = False
        self._pace, self._ended_at = 0.0, 0.0
        self._tries, self._login = 0, 0

    def watch(self, task: t.Any, job: Job, done: Done) -> None:
        """Call ``done`` with the task's result or its error when it has ended, and update the progress of ``job`` until then.

        The error is a MethodFault, TaskLost, or Unverified if the result is unknown. ``done`` must not block. Thread-safe.
        """
        with self._lock:
            self._pending[task._moId] = _Waiting(task, job, done)
            ask, self._asking = not self._asking, True
            push = not ask and not self._pushing
            self._pushing = self._pushing or push
        if ask:
            threading.Thread(target=self._ask, name="vSphere tasks", daemon=True).start()
        elif push:
            threading.Thread(target=self._push, name="vSphere tasks, new", daemon=True).start()

    def _push(self) -> None:
        """Add new tasks that the polling thread has not added: the server may hold its request."""
        time.sleep(_PUSH_SECONDS)
        with self._lock:
            self._pushing = False
        with contextlib.suppress(SafepointError):  # the polling thread adds them before its next poll, or reports its own error
            self._session.call("wait for tasks", self._fill)

    def _fill(self) -> None:
        """Add all tasks that are missing in the list view; create one if there is none."""
        with self._filling:
            found = self._usable_list()
            with self._lock:
                missing = {key: one.task for key, one in self._pending.items() if found is None or key not in found.members}
            if not missing:
                return
            if found is None:
                self._begin()
                return
            try:
                found.view.ModifyListView(add=list(missing.values()))
                found.members.update(missing)
            except (vmodl.MethodFault, *UNANSWERED):
                # The session with the list view has ended, or the connection broke: it is not known which tasks are in the list.
                self._list = None
                self._begin()

    def _usable_list(self) -> _List | None:
        found = self._list
        return found if found is not None and found.login == self._session.logins else None

    def _begin(self) -> None:
        collector = vmodl.query.PropertyCollector
        with self._lock:
            tasks = {key: one.task for key, one in self._pending.items()}
        login = self._session.logins
        view = expect(self._session.content.viewManager.CreateListView(obj=list(tasks.values())), vim.view.ListView, "view")
        over_view = collector.TraversalSpec(type=vim.view.ListView, path="view", skip=False)
        spec = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=view, skip=True, selectSet=[over_view])],
            # Not all of info: pyVmomi cannot read the entity in it that govmomi 0.24's simulator sends.
            propSet=[collector.PropertySpec(type=vim.Task, pathSet=["info.state", "info.result", "info.error", "info.progress"])],
        )
        self._session.content.propertyCollector.CreateFilter(spec, partialUpdates=False)
        self._list = _List(view, login, set(tasks))

    def _ask(self) -> None:
        """Poll until no task is pending. Survives outages: the tasks continue, and a new list view reports lost updates again."""
        self._ended_at, self._pace = time.monotonic(), 0.0
        self._tries, self._login = 0, self._session.logins
        time.sleep(_GATHER_SECONDS)
        try:
            while self._go_on():
                self._ask_once()
        except BaseException as exc:
            self._fail(exc)

    def _go_on(self) -> bool:
        """Return True while tasks are pending; if not, the next task starts a new polling thread."""
        with self._lock:
            if not self._pending:
                self._asking = False
            return self._asking

    def _ask_once(self) -> None:
        """Poll once. After an outage, wait for the next try; raise when the deadline has passed."""
        try:
            if self._renew:
                self._session.renew(self._login)
                self._renew = False
            self._login = self._session.logins
            self._round()
            self._tries = 0
        except (vim.fault.NotAuthenticated, vmodl.query.InvalidCollectorVersion):
            # The session has ended; the tasks continue. With a pause, in case a server ends every session at once.
            self._renew, self._list = True, None
            if not self._may_try_again():
                raise
        except vmodl.fault.ManagedObjectNotFound as exc:
            self._list = None
            if not self._forget(exc):
                raise
        except (BadAnswer, *UNREADABLE, *UNANSWERED):
            self._list = None
            if not self._may_try_again():
                raise

    def _may_try_again(self) -> bool:
        """Wait before the next try; return False if the deadline leaves no time for one."""
        self._tries += 1
        return self._session.pause(self._tries - 1)

    def _round(self) -> None:
        """Add new tasks to the list view, wait for one update, process it, and pause."""
        # If the other thread is adding tasks, its request may be silent for a minute; the tasks in the list are polled at the same time.
        if self._usable_list() is None or not self._filling.locked():
            self._fill()
        found = self._list
        if found is None:
            return  # the other thread has just lost it
        options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=self._longest_wait())
        collector = vmodl.query.PropertyCollector(self._session.content.propertyCollector._moId, LazyStub(self._session.stub))
        asked = time.monotonic()
        update = collector.WaitForUpdatesEx(found.version, options)
        if update is None:
            if time.monotonic() - asked < options.maxWaitSeconds - 1:
                # An empty answer is only allowed after maxWaitSeconds; otherwise an update may have been lost.
                raise BadAnswer("an empty update too early")
            # One request more after each wait without updates, so that no end of a task stays unknown because an update was lost on its way.
            found.version = ""
            return
        if not update.filterSet:
            raise BadAnswer("an update without data")
        found.version = update.version
        ended = self._note(update)
        now = time.monotonic()
        if ended:
            self._pace, self._ended_at = min(now - one.began for one in ended), now
        pause = _LATE * max(self._pace, now - self._ended_at)
        least = _SOON_SECONDS if ended else _ASK_SECONDS
        time.sleep(min(max(pause, least), _LONGEST_ASK_SECONDS) if self._pending else 0)

    def _longest_wait(self) -> int:
        """Return maxWaitSeconds for the next poll: half of the remaining time at most, so that another poll is possible."""
        return max(1, min(_LONGEST_WAIT, int(self._session.deadline.left() / 2)))

    def _forget(self, error: t.Any) -> bool:
        """Report a task that vCenter no longer has as TaskLost; return False if the error is about another object."""
        with self._lock:
            lost = self._pending.pop(error.obj._moId if error.obj else "", None)
        if lost is not None:
            lost.done(None, TaskLost())
        return lost is not None

    def _note(self, update: t.Any) -> list[_Waiting]:
        """Process an update: call ``done`` for each ended task, and return these tasks."""
        gone: list[_Waiting] = []
        for filter_set in update.filterSet:
            for one in filter_set.objectSet:
                with self._lock:
                    waiting = self._pending.get(one.obj._moId)
                    if waiting is None:
                        continue
                    # An update has only the changed properties.
                    waiting.seen.update({change.name: change.val for change in one.changeSet or ()})
                    state = str(waiting.seen.get("info.state"))
                    ended = state in ("success", "error") or str(one.kind) == "leave"
                    if ended:
                        del self._pending[one.obj._moId]
                        gone.append(waiting)
                    else:
                        # Unset until the task runs; some tasks never set it.
                        waiting.job.percent = waiting.seen.get("info.progress")
                if state == "success":
                    waiting.done(waiting.seen.get("info.result"), None)
                elif state == "error":
                    unknown = BackendFailed(f"The task {one.obj._moId} failed, and vCenter does not report the error")
                    waiting.done(None, waiting.seen.get("info.error") or unknown)
                elif ended:
                    waiting.done(None, TaskLost())
        return gone

    def _fail(self, error: BaseException) -> None:
        # The tasks continue in any case, so their effects must be checked.
        why = typed(error, "wait for tasks", where=self._session.where)
        with self._lock:
            failed, self._pending, self._asking = self._pending, {}, False
        for key, one in failed.items():
            one.done(
                None,
                Unverified(
                    f"{self._session.where} was asked to {one.job.action} (task {key}), but the result is unknown: {why}; check with "
                    "snapshot_info before you retry"
                ),
            )
