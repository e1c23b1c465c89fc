# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The jobs of the vSphere backend: the tasks of each action, lost answers, and waiting for other tasks on the VM.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
import typing as t
from collections.abc import Callable, Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import (
    Action,
    Create,
    Delete,
    Describe,
    Finished,
    Job,
    Revert,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.endings import Endings
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.lookup import Lookup, Seen
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.parse import retrieve_each
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import (
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
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.tasks import TaskLost, Tasks
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import Crew

# Number of tasks that are started in parallel. vCenter answers each request at once; only the task itself takes time.
_AT_ONCE = 8
# Time limit for the freeze of the guest's file systems, in minutes, the unit of the API.
_QUIESCE_MINUTES = 5
# Pause between two reads of a VM after a lost answer, or while another task holds it.
_LOOK_SECONDS = 0.5
# A request may still reach the server after its connection broke. It counts as not done if no effect is visible for this long.
_CALM_SECONDS = 3.0
# The same for a revert after a timeout, ours or a proxy's (504): vCenter may be busy and start it later. A second revert is not sent, since it would
# discard what the VM has written since the first, as with Proxmox VE.
_SLOW_CALM_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class _Call:
    """The next request of a job. If ``task`` is true it starts a task, whose end is awaited."""

    make: Callable[[], t.Any]
    task: bool = True


@dataclasses.dataclass(frozen=True)
class _Pause:
    """Continue after this many seconds. Blocks no thread."""

    seconds: float


@dataclasses.dataclass(eq=False)
class _Job(Job):
    """A job with the deadline at its start. The engine sets later deadlines for the undo and the final read, after it has given up this job."""

    deadline: Deadline = dataclasses.field(default_factory=lambda: Deadline(0))


_Value = t.TypeVar("_Value")
# The steps of a job: a generator that receives the result of each call or of its task, or the exception.
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
        """Start an action and return at once; its result is put into ``endings``."""
        job = _Job(action, deadline=self._session.deadline)
        self._crew.do(lambda: self._advance(job, self._run(job, action)))
        return job

    # the steps of a job

    def _advance(self, job: Job, steps: _Steps[Finished], made: t.Any = None, error: BaseException | None = None) -> None:
        """Run a job until it has to wait or has ended, with the result of the previous step. While it waits it blocks no thread."""
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
                # The job may already have had another task.
                job.handle, job.percent = made._moId, None
                self._lookup.known.add(made._moId)
                self._tasks.watch(made, job, functools.partial(self._ended, job, steps))
                return

    def _ended(self, job: Job, steps: _Steps[Finished], made: t.Any, error: BaseException | None) -> None:
        self._lookup.over.add(str(job.handle))
        self._crew.do(lambda: self._advance(job, steps, made, error))

    def _do(self, job: _Job, sent: str, call: _Call, is_done: Callable[[Seen], t.Any], *, once: bool = False) -> _Steps[t.Any]:
        """Make a call and return its result, or that of its task.

        If the answer is lost, ``is_done`` returns the result judged by the state of the VM, or None if nothing was done; then the call is repeated.
        ``sent`` is the call in words, as an infinitive. ``once`` is for a call that must not run twice, even if the first one starts
        late or its effect is not visible.

        :raises NotSent: there was no connection until the deadline.
        :raises Unverified: it was sent, but until the deadline its effect stayed unknown.
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
                # If vCenter no longer has the task, it was started and may have done its work.
                may_come = once and (is_slow(exc) or isinstance(exc, TaskLost))
                done = yield from self._look_up(job, sent, exc, is_done, may_come=may_come)
                if done is not None:
                    return done
        raise AssertionError  # unreachable: the loop has no end

    def _look_up(
        self, job: _Job, sent: str, lost: BaseException, is_done: Callable[[Seen], t.Any], *, may_come: bool
    ) -> _Steps[t.Any]:
        """Return the result by ``is_done`` as soon as no task runs on the VM, or None if nothing was done.

        :raises Unverified: the effect is unknown, also if nothing is visible but the call ``may_come`` later.
        """
        where, why = self._session.where, typed(lost, sent, where=self._session.where)
        if isinstance(lost, TaskLost):
            why = errors.ConnectionFailed("vCenter no longer has the task")
        unknown = f"{where} was asked to {sent}, but its answer was lost ({why}), and the result is unknown"
        calm: Deadline | None = None
        while True:
            try:
                seen = self._lookup.look(job.action.vm)
            except errors.SafepointError as exc:
                raise errors.Unverified(f"{unknown}: {exc}; check with snapshot_info before you retry") from exc
            if seen.running is None:
                done = is_done(seen)
                if done is not None:
                    return done
                calm = calm or Deadline(_SLOW_CALM_SECONDS if may_come else _CALM_SECONDS)
            if job.deadline.left() <= _LOOK_SECONDS:
                at_work = f": {seen.running} is still running" if seen.running else ""
                raise errors.Unverified(f"{unknown} at the timeout{at_work}; check with snapshot_info before you retry")
            if seen.running is None and calm is not None and calm.left() <= 0:
                if may_come:
                    raise errors.Unverified(f"{unknown}, and it may still take effect; check with snapshot_info before you retry")
                return None
            yield _Pause(_LOOK_SECONDS)

    # the actions

    def _run(self, job: _Job, action: Action) -> _Steps[Finished]:
        """Run the tasks of an action."""
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
                self._modern = False  # missing in govmomi 0.24's simulator; vCenter has it since 6.0
        if not self._modern:
            call = _Call(lambda: vm.CreateSnapshot_Task(**what, quiesce=quiesce))
            made = yield from self._do(job, f"{action}", call, is_done)
        if made is None:
            raise errors.BackendFailed(
                f"The task {job.handle} of vCenter ended without the id of the new snapshot ({job.action}); check with snapshot_info"
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
            # Not as the original error, which would seem to mean that the VM was not reverted.
            error = self._typed(exc, action)
            kind = errors.Unverified if isinstance(error, errors.Unverified) else errors.BackendFailed
            raise kind(f"{action.vm} was reverted to {action.snapshot}, but its {turn} failed: {error}") from exc

    def _turn(self, job: _Job, action: Revert, *, on: bool) -> _Steps[None]:
        """Start or stop the VM. Waits for other tasks on it, such as a removal or a revert by another run."""
        vm = vim.VirtualMachine(action.vm.id, self._session.stub)
        wanted = "poweredOn" if on else "poweredOff"
        # One more request before a stop, since the power state after the revert is not known otherwise: the VM can also be suspended.
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
                # Another run may already have set the wanted power state.
                if in_passing and self._power(action) == wanted:
                    return
                lock = lock or job.deadline.within(self.lock_timeout)
                if lock.left() <= 0 or not (in_passing or isinstance(self._typed(exc, action), errors.Locked)):
                    raise
            yield _Pause(_LOOK_SECONDS)

    def _power(self, action: Revert) -> str:
        vm = vim.VirtualMachine(action.vm.id, self._session.stub)
        seen = retrieve_each(self._session, f"{action}", [vm], {vim.VirtualMachine: ["runtime.powerState"]})
        return str(seen.get(action.vm.id, {}).get("runtime.powerState"))

    def _typed(self, error: BaseException, action: Action) -> errors.SafepointError:
        if isinstance(error, vmodl.fault.ManagedObjectNotFound):
            if not isinstance(action, Create) and error.obj is not None and error.obj._moId == action.snapshot.id:
                return errors.SnapshotNotFound(f"{action.vm} has no snapshot {action.snapshot} ({action.snapshot.id}) any more")
            return errors.VmNotFound(f"The VM {action.vm} ({action.vm.id}) does not exist any more")
        return typed(error, f"{action}", where=self._session.where)
