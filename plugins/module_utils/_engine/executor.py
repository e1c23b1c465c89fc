# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the actions of many VMs, limited in time and number of parallel jobs.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    Interrupted,
    Locked,
    NewerSnapshots,
    NotStarted,
    SnapshotExists,
    SnapshotNotFound,
    TimedOut,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Delete, Describe, Finished, Job
from ansible_collections.safepoint.vm.plugins.module_utils._engine.jobs import Jobs
from ansible_collections.safepoint.vm.plugins.module_utils._engine.progress import Progress, how_far
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome, hold_back
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import STOP_GRACE_SECONDS
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import LAST_WORD_SECONDS

# The pause between two attempts to write to a VM that another operation has locked.
_LOCK_PAUSE_SECONDS = 1.0
# Maximum number of times that another run may be first on one VM before it is an error.
_MOST_RACES = 5


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The limits of a call. Times are in seconds."""

    timeout: float = 900.0
    lock_timeout: float = 60.0
    max_parallel: int = 16
    on_error: str = "stop"
    """``undo``, ``stop`` or ``continue``."""


class Work:
    """The writing part of one call."""

    def __init__(self, jobs: Jobs, bounds: Bounds, deadline: Deadline) -> None:
        self.jobs = jobs
        self.bounds = bounds
        self.deadline = deadline
        # By id(), since two VMs may compare equal: all VMs with actions, and those whose actions are done.
        self._known: set[int] = set()
        self._through: set[int] = set()

    def perform(self, outcomes: Iterable[Outcome]) -> None:
        """Run the actions of each VM in order, at most ``max_parallel`` VMs at a time, until all have ended, one has failed, or the time is up.

        :raises Stopped: a signal stopped the call; each VM has its error.
        """
        ready = [one for one in outcomes if one.todo]
        self._known.update(map(id, ready))
        self._through.difference_update(map(id, ready))
        with self.jobs.stop.held():
            _Batch(self, ready).run()
        self.tell({})

    def through(self, outcome: Outcome) -> None:
        """Note that all actions of this VM are done."""
        self._through.add(id(outcome))

    def tell(self, running: Mapping[Job, Outcome]) -> None:
        """Report the progress if there is a callback."""
        if self.jobs.progress is not None:
            self.jobs.progress(Progress(len(self._through), len(self._known), how_far(running)))


class _Batch:
    """The VMs of one perform(): waiting, running, and locked by another operation."""

    def __init__(self, work: Work, ready: Iterable[Outcome]) -> None:
        self._work = work
        self._jobs, self._bounds, self._deadline = work.jobs, work.bounds, work.deadline
        self._ready = collections.deque(ready)
        self._running: dict[Job, Outcome] = {}
        # Each with the time of the next attempt and the last error.
        self._locked: list[tuple[Deadline, Outcome, Locked]] = []
        self._failed: Outcome | None = None

    def run(self) -> None:
        while self._running or self._locked or self._ready:
            if self._failed is not None and self._bounds.on_error != "continue":
                self._leave_untouched(self._failed)
                if not (self._running or self._locked or self._ready):
                    break
            if self._deadline.left() > 0:
                self._begin()
            self._work.tell(self._running)
            finished = self._wait()
            if self._jobs.stop.by is not None:
                self._break_off(f"The module was stopped by {self._jobs.stop.by}", finished)
                return
            if not finished and self._deadline.left() <= 0:
                finished = self._jobs.wait(self._running, Deadline(LAST_WORD_SECONDS)) if self._running else []
                if not finished:
                    self._end_in_time()
                    return
            for end in finished:
                self._end(end)

    def _leave_untouched(self, failed: Outcome) -> None:
        """After a failure: refuse VMs on which no action has been done yet. VMs with a done action are completed."""
        hold_back([one for one in self._ready if not one.done], because=failed)
        hold_back([one for _again, one, _error in self._locked if not one.done], because=failed)
        self._ready = collections.deque(one for one in self._ready if one.todo)
        self._locked = [locked for locked in self._locked if locked[1].todo]

    def _begin(self) -> None:
        """Start jobs up to the limit. VMs that were locked and are due again come first."""
        due = [one for one in self._locked if one[0].left() <= 0]
        while self._jobs.stop.by is None and len(self._running) < self._jobs.at_once and (due or self._ready):
            if due:
                self._locked.remove(due[0])
                self._start(due.pop(0)[1])
            else:
                self._start(self._ready.popleft())

    def _start(self, outcome: Outcome) -> None:
        outcome.started = outcome.todo.popleft()
        self._running[self._jobs.start(outcome.started)] = outcome

    def _wait(self) -> list[Finished]:
        """Wait until a job has ended, a locked VM is due again, or the progress must be reported."""
        deadline = self._deadline.within(_LOCK_PAUSE_SECONDS) if self._locked else self._deadline
        if not self._running:
            if self._jobs.stop.by is not None:
                return []
            deadline.sleep()
            return []
        return self._jobs.wait(self._running, deadline)

    def _break_off(self, stopped: str, finished: list[Finished]) -> None:
        """Start nothing more; wait a moment for jobs that are about to end, and set the error of the others."""
        for outcome in [*self._ready, *(one for _again, one, _error in self._locked)]:
            _leave(outcome, stopped)
        grace = self._deadline.within(STOP_GRACE_SECONDS)
        while True:
            for end in finished:
                outcome = self._running.pop(end.job)
                if isinstance(end.error, NotStarted):
                    outcome.put_back(end.job.action)  # the driver had not started it
                    _leave(outcome, stopped)
                    continue
                _note(outcome, end)
                if outcome.todo:
                    outcome.refuse(Interrupted(f"{stopped} before it could {outcome.todo[0]}"))
            if not self._running or grace.left() <= 0:
                break
            finished = self._jobs.wait(self._running, grace)
        for job, outcome in self._running.items():
            outcome.in_flight = job
            said = f"{stopped} before its job ended: {_named(job)}. The job may still complete at the hypervisor; check with snapshot_info"
            outcome.refuse(Interrupted(f"{said} before you run this again"))

    def _end_in_time(self) -> None:
        """The time is up: set the error of all VMs that are not finished."""
        for job, outcome in self._running.items():
            outcome.in_flight = job
            outcome.refuse(
                TimedOut(
                    f"timeout={self._bounds.timeout:g} seconds was not enough to {_named(job)}. The job may still complete at the hypervisor; check with "
                    "snapshot_info before you run this again, and set a longer timeout"
                )
            )
        for _again, outcome, error in self._locked:
            outcome.refuse(error)
        begun = [one for one in self._ready if one.done]
        for one in begun:
            one.refuse(self._used_up(one))
        late = [*self._running.values(), *(one for _again, one, _error in self._locked), *begun]
        if not late:
            late = [self._ready[0]]
            late[0].refuse(self._used_up(late[0]))
        hold_back(self._ready, because=self._failed or late[0])

    def _used_up(self, outcome: Outcome) -> TimedOut:
        """Return the error of a VM whose next action was not started in time."""
        before = f"this call could {outcome.todo[0]}" if outcome.done else f"anything was done on {outcome.vm}"
        return TimedOut(f"timeout={self._bounds.timeout:g} seconds was used up before {before}; set a longer timeout")

    def _end(self, end: Finished) -> None:
        outcome = self._running.pop(end.job)
        if isinstance(end.error, Locked):
            outcome.lock = outcome.lock or self._deadline.within(self._bounds.lock_timeout)
            if outcome.lock.left() > 0:
                # Another operation started between our read and our write; nothing was written.
                outcome.put_back(end.job.action)
                self._locked.append((Deadline(_LOCK_PAUSE_SECONDS), outcome, end.error))
                return
        _note(outcome, end)
        if outcome.todo and self._deadline.left() <= 0:
            outcome.refuse(self._used_up(outcome))
        if outcome.error is not None and self._bounds.on_error != "continue":
            self._failed = self._failed or outcome
        elif outcome.todo:
            # A VM with a done action is completed, also if another VM has failed since.
            self._start(outcome)
        elif outcome.done and outcome.error is None:
            self._work.through(outcome)


def _leave(outcome: Outcome, stopped: str) -> None:
    """Set the error of a VM with remaining actions that are not started any more."""
    if outcome.done:
        outcome.refuse(Interrupted(f"{stopped} before it could {outcome.todo[0]}"))
    else:
        outcome.refuse(NotStarted(f"Nothing was done on {outcome.vm}: {stopped}"))


def _note(outcome: Outcome, end: Finished) -> None:
    action = end.job.action
    outcome.warnings.extend(end.warnings)
    if end.error is None:
        outcome.done.append(action)
        outcome.lock = None
        if isinstance(action, Create) and outcome.decision and outcome.decision.snapshot:
            outcome.made = end.snapshot_id
            made = dataclasses.replace(outcome.decision.snapshot, id=end.snapshot_id or "")
            outcome.decision = dataclasses.replace(outcome.decision, snapshot=made)
    elif isinstance(end.error, SnapshotNotFound) and isinstance(action, Delete) and _may_be_gone(outcome):
        outcome.started = outcome.done[-1] if outcome.done else None  # another run has removed it, which is the wanted state
    elif isinstance(end.error, SnapshotNotFound) and isinstance(action, Describe) and outcome.done:
        outcome.todo.clear()  # another run has removed it since; the next look shows it
    elif isinstance(end.error, NewerSnapshots) and outcome.todo and not outcome.done:
        # The backend refused before any change: with this VM's storage, the newer snapshots, which the plan removes anyway, must be removed first.
        outcome.todo.append(action)
    elif isinstance(end.error, (SnapshotExists, SnapshotNotFound)) and outcome.raced < _MOST_RACES and not outcome.done:
        # Another run was first between our read and our write: read again, decide again.
        outcome.decide_again()
    else:
        outcome.refuse(end.error)


def _named(job: Job) -> str:
    """Return the action of a job, with its task id at the hypervisor and its progress if they are known."""
    known = [f"task {job.handle}"] if job.handle else []
    known += [f"{job.percent}% done"] if job.percent is not None else []
    return f"{job.action} ({', '.join(known)})" if known else str(job.action)


def _may_be_gone(outcome: Outcome) -> bool:
    """Return True if a missing snapshot needs no second read: it is one of several, or was read twice already."""
    return bool(outcome.done) or outcome.raced > 0 or (outcome.decision is not None and outcome.decision.gone_is_done)
