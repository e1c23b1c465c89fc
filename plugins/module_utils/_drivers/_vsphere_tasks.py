# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for the tasks of vCenter, for all of them together.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import threading
import time
import typing as t
from collections.abc import Callable

from ansible_collections.safepoint.vm.plugins.module_utils._driver import Job
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_answers import LazyStub
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_library import (
    UNANSWERED,
    UNREADABLE,
    BadAnswer,
    Session,
    expect,
    typed,
    vim,
    vmodl,
)
from ansible_collections.safepoint.vm.plugins.module_utils._errors import BackendFailed, Unverified

# Tasks that begin within this time are put on the list in one request.
_GATHER_SECONDS = 0.05
# Later ones are put there before the next time that we ask, and after this time at the latest.
_PUSH_SECONDS = 0.3
# While some are under way, each that ends and each percent of each would cost a request of its own. So the server is left alone after an
# answer: for a tenth of the time that tasks take as it seems, which is how late an end may be noticed, within these bounds.
_ASK_SECONDS = 0.2
# The same after an answer in which some have ended: others are about to, and whoever waits goes on with the next ones.
_SOON_SECONDS = 0.05
_LONGEST_ASK_SECONDS = 2.0
_LATE = 0.1
# How long the server may keep a request that has nothing to tell. Proxies cut connections that are silent for a minute.
_LONGEST_WAIT = 30

Done = Callable[[t.Any, t.Optional[BaseException]], None]


class TaskLost(Exception):
    """vCenter does not know the task any more, as after its restart. How it ended has to be looked up at the VM. Never leaves the driver."""


class _Waiting:
    """A task that is waited for."""

    def __init__(self, task: t.Any, job: Job, done: Done) -> None:
        self.task = task
        self.job = job
        self.done = done
        self.began = time.monotonic()
        self.seen: dict[str, t.Any] = {}


class Tasks:
    """One list of tasks at the server, with one filter on it, and one thread that asks what has changed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._pending: dict[str, _Waiting] = {}
        self._new: list[t.Any] = []
        self._asking = False
        self._pushing = False
        self._view: t.Any = None
        self._view_login = 0
        self._version = ""
        # Whether to log in again, and to begin a list of its own, before the server is asked the next time.
        self._renew = self._list_is_old = False
        self._pace, self._ended_at = 0.0, 0.0
        self._tries, self._login = 0, 0

    def watch(self, task: t.Any, job: Job, done: Done) -> None:
        """Have ``done`` called with the task's result when it has ended, or else with what it failed with, and ``job`` told how far it is.

        The error is a MethodFault, TaskLost, or Unverified where it cannot be known how it ended. ``done`` must not block. Any thread may call.
        """
        with self._lock:
            self._pending[task._moId] = _Waiting(task, job, done)
            self._new.append(task)
            ask, self._asking = not self._asking, True
            push = not ask and not self._pushing
            self._pushing = self._pushing or push
        if ask:
            threading.Thread(target=self._ask, name="vSphere tasks", daemon=True).start()
        elif push:
            threading.Thread(target=self._push, name="vSphere tasks, new", daemon=True).start()

    def _push(self) -> None:
        """Put on the list what the thread that asks has not put there for a while: the server may be keeping it."""
        time.sleep(_PUSH_SECONDS)
        with self._lock:
            self._pushing = False
            new = {task._moId for task in self._new}
        try:
            self._session.call("wait for tasks", self._add)
        except BaseException as exc:
            self._fail(exc, new)

    def _add(self) -> None:
        """Put the new tasks on the list, or all on a list of their own where there is none."""
        with self._lock:
            new, self._new = self._new, []
        view = self._view  # two threads come here
        if view is None or self._view_login != self._session.logins:
            self._begin()
        elif new:
            try:
                view.ModifyListView(add=new)
            except (vmodl.MethodFault, *UNANSWERED):
                # The list went with the session, or the connection was cut. Where the next one fails as well, there is none for the next try,
                # which has no new tasks any more and puts all of them on one.
                self._view = None
                self._begin()

    def _begin(self) -> None:
        collector = vmodl.query.PropertyCollector
        with self._lock:
            tasks = [one.task for one in self._pending.values()]
        login = self._session.logins
        view = expect(self._session.content.viewManager.CreateListView(obj=tasks), vim.view.ListView, "view")
        over_view = collector.TraversalSpec(type=vim.view.ListView, path="view", skip=False)
        spec = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=view, skip=True, selectSet=[over_view])],
            # Not the whole of info: pyVmomi cannot read the entity that govmomi 0.24's simulator puts there.
            propSet=[collector.PropertySpec(type=vim.Task, pathSet=["info.state", "info.result", "info.error", "info.progress"])],
        )
        self._session.content.propertyCollector.CreateFilter(spec, partialUpdates=False)
        self._view, self._view_login, self._version = view, login, ""

    def _ask(self) -> None:
        """Ask what has changed until nothing is waited for. Outages are ridden through: the tasks go on, and a new list tells again what was lost."""
        self._ended_at, self._pace = time.monotonic(), 0.0
        self._tries, self._login = 0, self._session.logins
        time.sleep(_GATHER_SECONDS)
        try:
            while self._go_on():
                self._ask_once()
        except BaseException as exc:
            with self._lock:
                self._asking = False
            self._fail(exc)

    def _go_on(self) -> bool:
        """Whether a task is waited for; where none is, the next one begins to ask again."""
        with self._lock:
            if not self._pending:
                self._asking = False
            return self._asking

    def _ask_once(self) -> None:
        """One round. What an outage breaks is tried again after a pause, until the deadline."""
        try:
            if self._renew:
                self._session.renew(self._login)
                self._renew = False
            self._login = self._session.logins
            self._round()
            self._tries = 0
        except (vim.fault.NotAuthenticated, vmodl.query.InvalidCollectorVersion):
            # The session has ended; the tasks go on. A server that forgets each login at once is not to be flooded with them.
            self._renew = self._list_is_old = True
            if not self._may_try_again():
                raise
        except vmodl.fault.ManagedObjectNotFound as exc:
            self._list_is_old = True
            if not self._forget(exc):
                raise
        except (BadAnswer, *UNREADABLE, *UNANSWERED):
            self._list_is_old = True
            if not self._may_try_again():
                raise

    def _may_try_again(self) -> bool:
        """Wait before the next try; False when there is no time for one."""
        self._tries += 1
        return self._session.pause(self._tries - 1)

    def _round(self) -> None:
        """Put new tasks on the list, ask once what has changed, tell it, and leave the server alone for a while."""
        if self._list_is_old:
            self._begin()
            self._list_is_old = False
        else:
            self._add()
        options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=self._longest_wait())
        collector = vmodl.query.PropertyCollector(self._session.content.propertyCollector._moId, LazyStub(self._session.stub))
        asked = time.monotonic()
        update = collector.WaitForUpdatesEx(self._version, options)
        if update is None:
            if time.monotonic() - asked < options.maxWaitSeconds - 1:
                # Nothing to tell is told when the time is up. The server may think that it has told something.
                raise BadAnswer("no update, before its time")
            return
        if not update.filterSet:
            raise BadAnswer("an update of nothing")
        self._version = update.version
        ended = self._note(update)
        now = time.monotonic()
        if ended:
            self._pace, self._ended_at = min(now - one.began for one in ended), now
        pause = _LATE * max(self._pace, now - self._ended_at)
        least = _SOON_SECONDS if ended else _ASK_SECONDS
        time.sleep(min(max(pause, least), _LONGEST_ASK_SECONDS) if self._pending else 0)

    def _longest_wait(self) -> int:
        """For how many seconds the server may keep a request; never past the deadline, up to which its answer is waited for."""
        return max(1, min(_LONGEST_WAIT, int(self._session.deadline.left())))

    def _forget(self, error: t.Any) -> bool:
        """Have a task looked up elsewhere that vCenter does not know any more; False where that is not what the error is about."""
        with self._lock:
            lost = self._pending.pop(error.obj._moId if error.obj else "", None)
        if lost is not None:
            lost.done(None, TaskLost())
        return lost is not None

    def _note(self, update: t.Any) -> list[_Waiting]:
        """Tell those who wait what the update tells; return those whose tasks have ended."""
        gone: list[_Waiting] = []
        for filter_set in update.filterSet:
            for one in filter_set.objectSet:
                with self._lock:
                    waiting = self._pending.get(one.obj._moId)
                    if waiting is None:
                        continue
                    # An update tells what has changed, which need not be all at once.
                    waiting.seen.update({change.name: change.val for change in one.changeSet or ()})
                    state = str(waiting.seen.get("info.state"))
                    ended = state in ("success", "error") or str(one.kind) == "leave"
                    if ended:
                        del self._pending[one.obj._moId]
                        gone.append(waiting)
                    else:
                        # Unset until the task runs, and with some tasks for as long as they do.
                        waiting.job.percent = waiting.seen.get("info.progress")
                if state == "success":
                    waiting.done(waiting.seen.get("info.result"), None)
                elif state == "error":
                    unknown = BackendFailed(f"The task {one.obj._moId} ended with an error, and vCenter does not say which")
                    waiting.done(None, waiting.seen.get("info.error") or unknown)
                elif ended:
                    waiting.done(None, TaskLost())
        return gone

    def _fail(self, error: BaseException, only: set[str] | None = None) -> None:
        # They go on all the same, and what they leave is to be looked for, whatever it was that did not let us see.
        why = typed(error, "wait for tasks", where=self._session.where)
        with self._lock:
            failed = [(key, self._pending.pop(key)) for key in list(self._pending) if only is None or key in only]
        for key, one in failed:
            one.done(
                None,
                Unverified(
                    f"{self._session.where} was asked to {one.job.action} (task {key}), and how that ended cannot be told: {why}; look with "
                    "snapshot_info before the next try"
                ),
            )
