# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Act: run what was decided on many VMs, within bounds of time and number, and take back what was created.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t
from collections.abc import Callable, Iterable, Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, Create, Delete, Finished, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    Locked,
    NewerSnapshots,
    SafepointError,
    SnapshotExists,
    SnapshotNotFound,
    TimedOut,
)
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome, hold_back
from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress

# Between two tries to write to a VM that somebody else's operation holds.
_LOCK_PAUSE_SECONDS = 1.0
# How often whoever wants to know is told how far the work is.
_PROGRESS_SECONDS = 1.0
# What may be spent on undoing after the call's own time is up.
_UNDO_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far a call may go. Times are seconds."""

    timeout: float = 900.0
    lock_timeout: float = 60.0
    max_parallel: int = 16
    on_error: str = "stop"
    """``undo``, ``stop`` or ``continue``."""


class Observer(t.Protocol):
    """Is told of each write before it begins and after it has ended."""

    def before(self, action: Action) -> None:
        """An action is about to begin.

        :raises SafepointError: it must not.
        """

    def after(self, end: Finished) -> None:
        """An action has ended."""


class Work:
    """The writing part of one call."""

    def __init__(
        self,
        driver: SnapshotDriver,
        bounds: Bounds,
        deadline: Deadline,
        *,
        progress: Callable[[Progress], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """``progress`` is called about each second while there is work, and when a job has ended."""
        self._observer = observer
        # Jobs that were never begun, since the observer objected.
        self._refused: list[Finished] = []
        self._driver = driver
        self._bounds = bounds
        self._deadline = deadline
        self._progress = progress
        # By their identities, since equal ones may be two: those that there is or was work for, and those of them that are through it.
        self._known: set[int] = set()
        self._through: set[int] = set()

    def perform(self, outcomes: Iterable[Outcome]) -> None:
        """Run every VM's actions in their order, at most ``max_parallel`` VMs at a time, until all ended, one failed, or the time is up."""
        ready = collections.deque(one for one in outcomes if one.todo)
        running: dict[Job, Outcome] = {}
        locked: list[tuple[Deadline, Outcome, Locked]] = []
        failed: Outcome | None = None
        self._known.update(map(id, ready))
        self._through.difference_update(map(id, ready))
        while running or locked or (ready and failed is None):
            if failed is not None and self._bounds.on_error != "continue":
                # What was begun on a VM is carried through; what was only tried is not.
                hold_back((one[1] for one in locked if not one[1].done), because=failed)
                locked = [one for one in locked if one[1].todo]
                if not (running or locked):
                    break
            due = [one for one in locked if one[0].left() <= 0]
            while len(running) < self._bounds.max_parallel and (due or (ready and failed is None)):
                if due:
                    locked.remove(due[0])
                    outcome = due.pop(0)[1]
                else:
                    outcome = ready.popleft()
                outcome.started = outcome.todo.popleft()
                running[self._start(outcome.started)] = outcome
            self._tell(running)
            if running:
                finished = self._wait(running, self._deadline.within(_LOCK_PAUSE_SECONDS) if locked else self._deadline)
            else:
                self._deadline.within(_LOCK_PAUSE_SECONDS).sleep()
                finished = []
            if not finished:
                if self._deadline.left() > 0:
                    continue
                for job, outcome in running.items():
                    outcome.in_flight = job
                    known = [f"task {job.handle}"] if job.handle else []
                    known += [f"{job.percent}% done"] if job.percent is not None else []
                    named = f" ({', '.join(known)})" if known else ""
                    outcome.refuse(
                        TimedOut(
                            f"timeout={self._bounds.timeout:g} seconds was not enough to {job.action}{named}; it may still end at the "
                            "hypervisor: look with snapshot_info before the next try, and set a longer timeout"
                        )
                    )
                for _timer, outcome, error in locked:
                    outcome.refuse(error)
                failed = next(iter([*running.values(), *(one[1] for one in locked)]))
                break
            for job_end in finished:
                outcome = running.pop(job_end.job)
                if isinstance(job_end.error, Locked):
                    outcome.lock = outcome.lock or self._deadline.within(self._bounds.lock_timeout)
                    if outcome.lock.left() > 0:
                        # Somebody else began between our look and our write; nothing was written.
                        outcome.put_back(job_end.job.action)
                        locked.append((Deadline(_LOCK_PAUSE_SECONDS), outcome, job_end.error))
                        continue
                self._note(outcome, job_end)
                if outcome.error is not None and self._bounds.on_error != "continue":
                    failed = failed or outcome
                elif outcome.todo:
                    # What was begun on a VM is carried through, also when another VM has failed meanwhile.
                    outcome.started = outcome.todo.popleft()
                    running[self._start(outcome.started)] = outcome
                elif outcome.done and outcome.error is None:
                    self._through.add(id(outcome))
        if failed is not None:
            hold_back(ready, because=failed)
        self._tell({})

    def _start(self, action: Action, *, anyway: bool = False) -> Job:
        """Begin an action, of which the observer is told before. One that it objects to is begun only where it must be done ``anyway``."""
        if self._observer is not None:
            try:
                self._observer.before(action)
            except SafepointError as exc:
                if not anyway:
                    job = Job(action)
                    self._refused.append(Finished(job, exc))
                    return job
        return self._driver.start(action)

    def _wait(self, jobs: Iterable[Job], deadline: Deadline) -> list[Finished]:
        """The same as the driver's own, for no longer than until the next report of progress is due."""
        if self._refused:
            ended, self._refused = self._refused, []
            return ended
        ended = self._driver.wait(list(jobs), deadline.within(_PROGRESS_SECONDS) if self._progress else deadline)
        if self._observer is not None:
            for end in ended:
                self._observer.after(end)
        return ended

    def _tell(self, running: Mapping[Job, Outcome]) -> None:
        if self._progress is None:
            return
        self._progress(Progress(len(self._through), len(self._known), _how_far(running)))

    def _note(self, outcome: Outcome, end: Finished) -> None:
        action = end.job.action
        outcome.warnings.extend(end.warnings)
        if end.error is None:
            outcome.done.append(action)
            outcome.lock = None
            if isinstance(action, Create) and outcome.decision and outcome.decision.snapshot:
                outcome.made = end.snapshot_id
                made = dataclasses.replace(outcome.decision.snapshot, id=end.snapshot_id or "")
                outcome.decision = dataclasses.replace(outcome.decision, snapshot=made)
        elif isinstance(end.error, SnapshotNotFound) and isinstance(action, Delete) and (outcome.done or _may_be_gone(outcome)):
            pass  # one of several that were to go: somebody else was faster
        elif isinstance(end.error, NewerSnapshots) and outcome.todo and not outcome.done:
            # The backend refused before it touched anything: this VM's storage wants the newer ones, which are to go anyway, gone first.
            outcome.todo.append(action)
        elif isinstance(end.error, (SnapshotExists, SnapshotNotFound)) and not outcome.raced and not outcome.done:
            # Somebody else was faster between our look and our write: look again, decide again, once.
            outcome.raced = True
            outcome.decision = None
            outcome.started = None
            outcome.todo.clear()
        else:
            outcome.refuse(end.error)

    def undo(self, outcomes: Sequence[Outcome], *, because: Outcome) -> None:
        """Remove what this call created, and only that, with a time budget of its own; also what is finished only now."""
        deadline = Deadline(_UNDO_SECONDS)
        ready = collections.deque(one for one in outcomes if one.made)
        late = {one.in_flight: one for one in outcomes if one.in_flight and isinstance(one.in_flight.action, Create)}
        running: dict[Job, Outcome] = {}
        total, gone_again = len(ready) + len(late), 0
        while ready or late or running:
            while ready and len(running) < self._bounds.max_parallel:
                one = ready.popleft()
                if one.made and one.vm and one.decision and one.decision.snapshot:
                    gone = dataclasses.replace(one.decision.snapshot, id=one.made)
                    running[self._start(Delete(one.vm, gone), anyway=True)] = one
            if self._progress is not None:
                self._progress(Progress(gone_again, total, _how_far([*late, *running]), undoing=True))
            finished = self._wait([*late, *running], deadline) if late or running else []
            for end in finished:
                if end.job in late:
                    one = late.pop(end.job)
                    one.made = end.snapshot_id
                    if end.error is None:
                        ready.append(one)
                else:
                    one = running.pop(end.job)
                    if end.error is None or isinstance(end.error, SnapshotNotFound):
                        one.taken_back(because)
                        gone_again += 1
                    else:
                        one.left_behind(str(end.error))
            if not finished and deadline.left() <= 0:
                break
        for one in [*ready, *running.values()]:
            one.left_behind(f"no answer within {_UNDO_SECONDS:g} seconds")
        for one in late.values():
            one.warnings.append(
                f"A snapshot of {one.vm} was still being taken when the time for undoing was up, and may yet appear"
            )


def _may_be_gone(outcome: Outcome) -> bool:
    return outcome.decision is not None and outcome.decision.gone_is_done


def _how_far(jobs: Iterable[Job]) -> tuple[tuple[str, int | None], ...]:
    return tuple((str(job.action.vm), job.percent) for job in jobs)
