# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The jobs of vSphere: the tasks of each action, what is done when an answer is lost, and when the VM is held by another task.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
import typing as t
from collections.abc import Callable, Mapping

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import (
    Action,
    Create,
    Delete,
    Describe,
    Finished,
    Job,
    Revert,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_library import (
    UNANSWERED,
    UNREADABLE,
    BadAnswer,
    NotSent,
    Session,
    expect,
    is_slow,
    typed,
    vim,
    vmodl,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_lookup import Lookup, Seen
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_read import retrieve_each
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_tasks import TaskLost, Tasks
from ansible_collections.safepoint.vm.plugins.module_utils._threads import Crew, Endings

# So many tasks are being begun at a time. Each is one request, and vCenter answers it at once; what lasts is the task.
_AT_ONCE = 8
# How long the guest's file systems may be held; minutes, as the API counts.
_QUIESCE_MINUTES = 5
# Between two looks at a VM whose answer was lost, or that another task holds.
_LOOK_SECONDS = 0.5
# A request whose connection was cut may still be on its way into the server. For so long nothing must be seen of it before it counts as not done.
_CALM_SECONDS = 3.0
# The same for a revert where a proxy (504) or we gave up waiting for the answer: vCenter may be busy, and begin it later. A second one would discard
# what the VM has written since the first, so that it is not sent; as with Proxmox VE.
_SLOW_CALM_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class _Call:
    """The next request of a job; ``task`` says whether it begins a task, whose end is waited for."""

    make: Callable[[], t.Any]
    task: bool = True


@dataclasses.dataclass(frozen=True)
class _Pause:
    """Go on after so many seconds. No thread waits for that."""

    seconds: float


@dataclasses.dataclass(eq=False)
class _Job(Job):
    """A job with the deadline of the time when it was begun. The engine sets later ones for the undo and the last look, when it has given this job up."""

    deadline: Deadline = dataclasses.field(default_factory=lambda: Deadline(0))


_Value = t.TypeVar("_Value")
# What a job does next; it is sent the result of a call or of its task, or has the error raised.
_Steps = t.Generator[t.Union[_Call, _Pause], t.Any, _Value]


class Actions:
    """All jobs of one login."""

    def __init__(self, session: Session, lookup: Lookup) -> None:
        self._session = session
        self._lookup = lookup
        self._tasks = Tasks(session)
        self._crew = Crew(_AT_ONCE)
        self._modern = True
        self.endings = Endings()
        self.lock_timeout = 60.0

    def start(self, action: Action) -> Job:
        """Begin an action and return at once; its end goes to ``endings``."""
        job = _Job(action, deadline=self._session.deadline)
        self._crew.do(lambda: self._advance(job, self._run(job, action)))
        return job

    # the steps of a job

    def _advance(self, job: Job, steps: _Steps[Finished], made: t.Any = None, error: BaseException | None = None) -> None:
        """Go on with a job until it waits or has ended, with the result of the step before. No thread waits in between."""
        while True:
            try:
                step = steps.send(made) if error is None else steps.throw(error)
            except StopIteration as stop:
                self.endings.put(stop.value)
                return
            except BaseException as exc:
                self.endings.put(Finished(job, error=self._typed(exc, job.action)))
                return
            made = error = None
            if isinstance(step, _Pause):
                timer = threading.Timer(step.seconds, lambda: self._crew.do(lambda: self._advance(job, steps)))
                timer.daemon = True
                timer.start()
                return
            try:
                made = self._session.raw(step.make)
                if step.task:
                    expect(made, vim.Task, "task")
            except BaseException as exc:
                error = exc
                continue
            if step.task:
                # Another task of the same job may have gone before.
                job.handle, job.percent = made._moId, None
                self._lookup.known.add(made._moId)
                self._tasks.watch(made, job, functools.partial(self._ended, job, steps))
                return

    def _ended(self, job: Job, steps: _Steps[Finished], made: t.Any, error: BaseException | None) -> None:
        self._lookup.over.add(str(job.handle))
        self._crew.do(lambda: self._advance(job, steps, made, error))

    def _do(self, job: _Job, sent: str, call: _Call, is_done: Callable[[Seen], t.Any], *, once: bool = False) -> _Steps[t.Any]:
        """Make a call and return the result of it or of its task.

        Where the answer is lost, ``is_done`` says of what is seen afterwards what the result was, or None where nothing was done: then it is sent again.
        ``sent`` is how people are told of it. ``once`` is for what must not come twice, however late the first one comes, and whether it is seen or not.

        :raises NotSent: there was no connection until the deadline.
        :raises Unverified: it was sent, and by the deadline it could not be known whether it was done.
        """
        for tries in itertools.count():
            try:
                return (yield call)
            except NotSent:
                seconds = self._session.pause_seconds(tries, job.deadline)
                if seconds is None:
                    raise
                yield _Pause(seconds)
            except (TaskLost, BadAnswer, *UNREADABLE, *UNANSWERED) as exc:
                # A task that vCenter has forgotten had begun, and may have done its work before.
                may_come = once and (is_slow(exc) or isinstance(exc, TaskLost))
                done = yield from self._look_up(job, sent, exc, is_done, may_come=may_come)
                if done is not None:
                    return done
        raise AssertionError  # there is no end to the numbers

    def _look_up(
        self, job: _Job, sent: str, lost: BaseException, is_done: Callable[[Seen], t.Any], *, may_come: bool
    ) -> _Steps[t.Any]:
        """The result by ``is_done`` when no task is at work on the VM any more, or None where nothing was done.

        :raises Unverified: it cannot be known, as where nothing is seen of what ``may_come`` later.
        """
        where, why = self._session.where, typed(lost, sent, where=self._session.where)
        if isinstance(lost, TaskLost):
            why = _errors.ConnectionFailed("vCenter does not know the task any more")
        unknown = f"{where} was asked to {sent}, its answer was lost ({why}), and it cannot be told whether that was done"
        calm: Deadline | None = None
        while True:
            try:
                seen = self._lookup.look(job.action.vm)
            except _errors.SafepointError as exc:
                raise _errors.Unverified(f"{unknown}: {exc}; look with snapshot_info before the next try") from exc
            if seen.running is None:
                done = is_done(seen)
                if done is not None:
                    return done
                calm = calm or Deadline(_SLOW_CALM_SECONDS if may_come else _CALM_SECONDS)
            if job.deadline.left() <= _LOOK_SECONDS:
                at_work = f": {seen.running} is still at work" if seen.running else ""
                raise _errors.Unverified(f"{unknown} in time{at_work}; look with snapshot_info before the next try")
            if seen.running is None and calm is not None and calm.left() <= 0:
                if may_come:
                    raise _errors.Unverified(f"{unknown}, or still will be; look with snapshot_info before the next try")
                return None
            yield _Pause(_LOOK_SECONDS)

    # the actions

    def _run(self, job: _Job, action: Action) -> _Steps[Finished]:
        """The tasks of an action."""
        if isinstance(action, Create):
            return (yield from self._create(job, action))
        snapshot = vim.vm.Snapshot(action.snapshot.id, self._session.stub)
        if isinstance(action, Revert):
            yield from self._revert(job, action, snapshot)
        elif isinstance(action, Delete):
            remove = _Call(lambda: snapshot.RemoveSnapshot_Task(removeChildren=False))
            yield from self._do(job, f"{action}", remove, lambda seen: seen.by_id(action.snapshot.id) is None or None)
        elif isinstance(action, Describe):
            describe = _Call(lambda: snapshot.RenameSnapshot(description=action.description), task=False)
            yield from self._do(job, f"{action}", describe, lambda seen: seen.is_described(action) or None)
        return Finished(job)

    def _create(self, job: _Job, action: Create) -> _Steps[Finished]:
        if action.quiesce == "never":
            return (yield from self._take(job, action, action.description, quiesce=False))
        try:
            return (yield from self._take(job, action, action.description, quiesce=True))
        except vim.fault.SnapshotFault as exc:
            if action.quiesce == "require" or not isinstance(
                exc, (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault)
            ):
                raise
            warning = f"The snapshot {action.name} of {action.vm} is not quiesced: {self._typed(exc, action)}"
        plain_text = action.unquiesced_description or action.description
        end = yield from self._take(job, action, plain_text, quiesce=False)
        return dataclasses.replace(end, warnings=(warning,))

    def _take(self, job: _Job, action: Create, description: str, *, quiesce: bool) -> _Steps[Finished]:
        vm = vim.VirtualMachine(action.vm.id, self._session.stub)
        what: Mapping[str, t.Any] = {"name": action.name, "description": description, "memory": action.memory}
        before = self._lookup.snapshots_of(action.vm)
        made = None

        def is_done(seen: Seen) -> str | None:
            return seen.created(action, description, before)

        if self._modern:
            spec = vim.vm.GuestQuiesceSpec(timeout=_QUIESCE_MINUTES) if quiesce else None
            call = _Call(lambda: vm.CreateSnapshotEx_Task(**what, quiesceSpec=spec))
            try:
                made = yield from self._do(job, f"{action}", call, is_done)
            except vmodl.fault.MethodNotFound:
                self._modern = False  # govmomi 0.24's simulator; every vCenter since 6.0 has it
        if not self._modern:
            call = _Call(lambda: vm.CreateSnapshot_Task(**what, quiesce=quiesce))
            made = yield from self._do(job, f"{action}", call, is_done)
        if made is None:
            raise _errors.BackendFailed(
                f"The task {job.handle} of vCenter ended without the id of the new snapshot ({job.action}); look with snapshot_info"
            )
        return Finished(job, snapshot_id=made if isinstance(made, str) else str(made._moId))

    def _revert(self, job: _Job, action: Revert, snapshot: t.Any) -> _Steps[None]:
        revert = _Call(lambda: snapshot.RevertToSnapshot_Task(suppressPowerOn=action.power == "off"))
        yield from self._do(job, f"{action}", revert, lambda seen: seen.is_reverted(action) or None, once=True)
        turn = "start" if action.power == "on" and not action.snapshot.memory else "stop" if action.power == "off" else None
        if turn is None:
            return
        try:
            yield from self._turn(job, action, on=turn == "start")
        except BaseException as exc:
            # Whatever it is, the VM is back at the snapshot, and to decide again as if it was not would be wrong.
            error = self._typed(exc, action)
            kind = _errors.Unverified if isinstance(error, _errors.Unverified) else _errors.BackendFailed
            raise kind(f"{action.vm} is back at {action.snapshot}, and its {turn} failed: {error}") from exc

    def _turn(self, job: _Job, action: Revert, *, on: bool) -> _Steps[None]:
        """Start or stop the VM. Another task on it is waited for: it may be that of a run that removes the snapshot, or reverts as well."""
        vm = vim.VirtualMachine(action.vm.id, self._session.stub)
        wanted = "poweredOn" if on else "poweredOff"
        # One more request before a stop, since nothing else tells: it may be suspended, with its memory or as it was taken.
        if not on and self._power(action) == wanted:
            return
        call = _Call(vm.PowerOnVM_Task if on else vm.PowerOffVM_Task)
        sent = f"{'start' if on else 'stop'} {action.vm}"
        lock: Deadline | None = None
        while True:
            try:
                yield from self._do(job, sent, call, lambda seen: seen.power == wanted or None)
                return
            except vmodl.MethodFault as exc:
                in_passing = isinstance(exc, vim.fault.InvalidPowerState)
                # Another run may have started or stopped it already, which is what is wanted.
                if in_passing and self._power(action) == wanted:
                    return
                lock = lock or job.deadline.within(self.lock_timeout)
                if lock.left() <= 0 or not (in_passing or isinstance(self._typed(exc, action), _errors.Locked)):
                    raise
            yield _Pause(_LOOK_SECONDS)

    def _power(self, action: Revert) -> str:
        vm = vim.VirtualMachine(action.vm.id, self._session.stub)
        seen = retrieve_each(self._session, f"{action}", [vm], {vim.VirtualMachine: ["runtime.powerState"]})
        return str(seen.get(action.vm.id, {}).get("runtime.powerState"))

    def _typed(self, error: BaseException, action: Action) -> _errors.SafepointError:
        if isinstance(error, vmodl.fault.ManagedObjectNotFound):
            if not isinstance(action, Create) and error.obj is not None and error.obj._moId == action.snapshot.id:
                return _errors.SnapshotNotFound(f"{action.vm} has no snapshot {action.snapshot} ({action.snapshot.id}) any more")
            return _errors.VmNotFound(f"The VM {action.vm} ({action.vm.id}) does not exist any more")
        return typed(error, f"{action}", where=self._session.where)
