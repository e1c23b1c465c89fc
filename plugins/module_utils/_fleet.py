# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at many VMs, decide for each, act within bounds, look again, and say what was seen.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import (
    Action,
    Create,
    Delete,
    Finished,
    Job,
    Revert,
    SnapshotDriver,
)
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    BackendFailed,
    ConnectionFailed,
    InvalidOption,
    Locked,
    NotStarted,
    SafepointError,
    SnapshotExists,
    SnapshotNotFound,
    TimedOut,
    Undone,
    Unverified,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Target, View, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Decision, Plan
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time

_T = t.TypeVar("_T")

# What may be spent after the call's own time is up: on undoing, and on reading what is left behind.
_UNDO_SECONDS = 120.0
_LAST_LOOK_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far a call may go. Times are seconds."""

    timeout: float = 900.0
    lock_timeout: float = 60.0
    max_parallel: int = 16
    on_error: str = "stop"
    """``undo``, ``stop`` or ``continue``."""


@dataclasses.dataclass
class Outcome:
    """One VM, from the look to the report."""

    target: Target
    vm: Vm | None = None
    before: View | None = None
    """As it was first seen."""
    after: View | None = None
    """As it was last seen, or in a dry run as it would be."""
    decision: Decision | None = None
    word: str = "none"
    snapshot: Snapshot | None = None
    changed: bool = False
    warnings: list[str] = dataclasses.field(default_factory=list)
    error: SafepointError | None = None
    # while the work goes on
    todo: collections.deque[Action] = dataclasses.field(default_factory=collections.deque)
    done: list[Action] = dataclasses.field(default_factory=list)
    started: Action | None = None
    in_flight: Job | None = None
    made: str | None = None
    raced: bool = False

    def refuse(self, error: SafepointError) -> None:
        """Stop with ``error``; the first one stands."""
        self.error = self.error or error
        self.todo.clear()


class Fleet:
    """One call: a driver, the VMs it is about, and the time it has."""

    def __init__(self, driver: SnapshotDriver, bounds: Bounds, *, now: Callable[[], datetime]) -> None:
        self._driver = driver
        self._bounds = bounds
        self._now = now
        self._deadline = Deadline(bounds.timeout)

    def look(self, targets: Sequence[Target]) -> list[Outcome]:
        """See all VMs in one go; what could not be seen has an error.

        :raises SafepointError: the endpoint itself failed.
        """
        outcomes = self._find(targets)
        self._see(outcomes, self._deadline, wait=False)
        return outcomes

    def apply(self, targets: Sequence[Target], plan: Plan, *, dry_run: bool) -> list[Outcome]:
        """Make every VM be as ``plan`` wants it, or say why not. A dry run goes the same way up to the first write.

        :raises SafepointError: nothing was written, and the reason is none of a single VM.
        """
        plan.check(type(self._driver))
        outcomes = self._find(targets)
        self._see(outcomes, self._deadline)
        for outcome in outcomes:
            self._decide(outcome, plan)
        refused = next((outcome for outcome in outcomes if outcome.error), None)
        if refused is not None and self._bounds.on_error != "continue":
            _hold_back(outcomes, because=refused)
        if dry_run:
            for outcome in outcomes:
                _predict(outcome)
            return outcomes
        acting = [outcome for outcome in outcomes if outcome.todo]
        self._act(acting, plan)
        for outcome in outcomes:
            _conclude(outcome)
        return outcomes

    # look

    def _find(self, targets: Sequence[Target]) -> list[Outcome]:
        outcomes = [Outcome(target) for target in targets]
        refs = [target.ref for target in targets]
        found = in_time("the list of VMs", lambda: self._driver.find(refs), self._deadline)
        first: dict[str, str] = {}
        for outcome in outcomes:
            vm = found[outcome.target.ref]
            if isinstance(vm, SafepointError):
                outcome.refuse(vm)
                continue
            outcome.vm = vm
            if vm.id in first:
                outcome.refuse(
                    InvalidOption(f"{outcome.target.ref!r} and {first[vm.id]!r} are one and the same VM; name it once")
                )
            first.setdefault(vm.id, outcome.target.ref)
        return outcomes

    def _see(self, outcomes: Iterable[Outcome], deadline: Deadline, *, wait: bool = True) -> None:
        """Read state and snapshots of the VMs in bulk, and ``wait`` for those that somebody else holds.

        :raises SafepointError: nothing could be read.
        """
        waiting = [outcome for outcome in outcomes if outcome.vm is not None]
        lock = deadline.within(self._bounds.lock_timeout)

        def probe() -> bool | None:
            nonlocal waiting
            views = self._read([outcome.vm for outcome in waiting if outcome.vm is not None], deadline)
            busy = []
            for outcome in waiting:
                view = views[outcome.vm.id if outcome.vm else ""]
                if isinstance(view, SafepointError):
                    outcome.refuse(view)
                    continue
                outcome.after = view
                if outcome.decision is None:
                    outcome.before = view
                if wait and view.state.busy:
                    busy.append(outcome)
            waiting = busy
            return None if busy else True

        if not waiting:
            return
        try:
            lock.poll("a lock", probe)
        except TimedOut:
            if deadline.left() <= 0:
                raise
            for outcome in waiting:
                holder = outcome.after.state.busy if outcome.after else None
                outcome.refuse(
                    Locked(
                        f"{outcome.vm} is still held by {holder} after {lock.seconds:g} seconds; try again later, or set a longer lock_timeout"
                    )
                )

    def _read(self, vms: Sequence[Vm], deadline: Deadline) -> dict[str, View | SafepointError]:
        states = in_time("the state of the VMs", lambda: self._driver.inspect(vms), deadline)
        snapshots = in_time("the list of snapshots", lambda: self._driver.snapshots(vms), deadline)
        views: dict[str, View | SafepointError] = {}
        for vm in vms:
            state, seen = states[vm.id], snapshots[vm.id]
            if isinstance(state, SafepointError):
                views[vm.id] = state
            elif isinstance(seen, SafepointError):
                views[vm.id] = seen
            else:
                views[vm.id] = View(vm, state, seen)
        return views

    # decide

    def _decide(self, outcome: Outcome, plan: Plan) -> None:
        if outcome.error is not None or outcome.after is None:
            return
        try:
            decision = plan.decide(
                outcome.after, outcome.target.snapshot_id, now=self._now(), newest_only=self._driver.revert_needs_newest
            )
        except SafepointError as exc:
            outcome.refuse(exc)
            return
        outcome.decision = decision
        outcome.warnings.extend(decision.warnings)
        outcome.todo.extend(decision.actions)

    # act

    def _act(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Do what was decided, settle races, confirm by a second look, undo where that is wanted."""
        self._perform(outcomes)
        raced = [one for one in outcomes if one.raced]
        if raced:
            try:
                self._see(raced, self._deadline)
            except SafepointError as exc:
                _refuse_all(raced, exc)
            for outcome in raced:
                self._decide(outcome, plan)
            self._perform(raced)
        self._confirm([one for one in outcomes if one.error is None], plan)
        failed = next((one for one in outcomes if one.error), None)
        if failed is None:
            return
        if self._bounds.on_error == "undo" and plan.undoes_creations:
            self._undo(outcomes, because=failed)
        try:
            self._see([one for one in outcomes if one.started], Deadline(_LAST_LOOK_SECONDS), wait=False)
        except SafepointError as exc:
            for one in outcomes:
                if one.started:
                    one.warnings.append(f"What is left on {one.vm} could not be read: {exc}")

    def _perform(self, outcomes: Iterable[Outcome]) -> None:
        """Run every VM's actions in their order, at most ``max_parallel`` VMs at a time, until all ended, one failed, or the time is up."""
        ready = collections.deque(one for one in outcomes if one.todo)
        running: dict[Job, Outcome] = {}
        failed: Outcome | None = None
        while running or (ready and failed is None):
            while ready and failed is None and len(running) < self._bounds.max_parallel:
                outcome = ready.popleft()
                outcome.started = outcome.todo.popleft()
                running[self._driver.start(outcome.started)] = outcome
            finished = self._driver.wait(list(running), self._deadline)
            if not finished:
                for job, outcome in running.items():
                    outcome.in_flight = job
                    outcome.refuse(
                        TimedOut(
                            f"timeout={self._bounds.timeout:g} seconds was not enough to {job.action}; it may still end at the "
                            "hypervisor: look with snapshot_info before the next try, and set a longer timeout"
                        )
                    )
                failed = next(iter(running.values()))
                break
            for job_end in finished:
                outcome = running.pop(job_end.job)
                self._note(outcome, job_end)
                if outcome.error is not None and self._bounds.on_error != "continue":
                    failed = failed or outcome
                elif outcome.todo:
                    # What was begun on a VM is carried through, also when another VM has failed meanwhile.
                    outcome.started = outcome.todo.popleft()
                    running[self._driver.start(outcome.started)] = outcome
        if failed is not None:
            _hold_back(ready, because=failed)

    def _note(self, outcome: Outcome, end: Finished) -> None:
        action = end.job.action
        outcome.warnings.extend(end.warnings)
        if end.error is None:
            outcome.done.append(action)
            if isinstance(action, Create) and outcome.decision and outcome.decision.snapshot:
                outcome.made = end.snapshot_id
                made = dataclasses.replace(outcome.decision.snapshot, id=end.snapshot_id or "")
                outcome.decision = dataclasses.replace(outcome.decision, snapshot=made)
        elif isinstance(end.error, (SnapshotExists, SnapshotNotFound)) and not outcome.raced and not outcome.done:
            # Somebody else was faster between our look and our write: look again, decide again, once.
            outcome.raced = True
            outcome.decision = None
            outcome.todo.clear()
        else:
            outcome.refuse(end.error)

    def _confirm(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Read again what was written; write once more where it differs from what was wanted, and then it must be right."""
        written = [one for one in outcomes if one.done]
        for last in (False, True):
            try:
                self._see(written, self._deadline, wait=False)
            except SafepointError as exc:
                _refuse_all(written, exc)
                return
            for outcome in written:
                if outcome.error is None and outcome.after and outcome.decision:
                    try:
                        outcome.todo.extend(plan.confirm(outcome.after, outcome.decision, now=self._now()))
                    except SafepointError as exc:
                        outcome.refuse(exc)
            written = [one for one in written if one.todo]
            if not written:
                return
            if last:
                _refuse_all(written, Unverified("The hypervisor accepted the description twice, and does not show it"))
                return
            self._perform(written)

    def _undo(self, outcomes: Sequence[Outcome], *, because: Outcome) -> None:
        """Remove what this call created, and only that, with a time budget of its own."""
        deadline = Deadline(_UNDO_SECONDS)
        late = {one.in_flight: one for one in outcomes if one.in_flight and isinstance(one.in_flight.action, Create)}
        while late:
            finished = self._driver.wait(list(late), deadline)
            if not finished:
                break
            for end in finished:
                late.pop(end.job).made = end.snapshot_id if end.error is None else None
        jobs = {}
        for one in outcomes:
            if one.made and one.vm and one.decision and one.decision.snapshot:
                jobs[self._driver.start(Delete(one.vm, dataclasses.replace(one.decision.snapshot, id=one.made)))] = one
        while jobs:
            finished = self._driver.wait(list(jobs), deadline)
            for end in finished:
                one = jobs.pop(end.job)
                if end.error is None:
                    one.done.clear()
                    one.refuse(
                        Undone(
                            f"The new snapshot of {one.vm} was removed again because of {because.vm or because.target.ref}: {because.error}"
                        )
                    )
                else:
                    _left_behind(one, str(end.error))
            if not finished:
                for one in jobs.values():
                    _left_behind(one, f"no answer within {_UNDO_SECONDS:g} seconds")
                return


def _left_behind(outcome: Outcome, why: str) -> None:
    outcome.refuse(BackendFailed(f"The new snapshot of {outcome.vm} could not be removed again: {why}"))
    outcome.warnings.append(f"The snapshot with the id {outcome.made!r} of {outcome.vm} is left behind: {why}")


def _hold_back(outcomes: Iterable[Outcome], *, because: Outcome) -> None:
    for one in outcomes:
        if one.todo:
            one.refuse(NotStarted(f"Nothing was done on {one.vm} because of {because.vm or because.target.ref}: {because.error}"))


def _refuse_all(outcomes: Iterable[Outcome], error: SafepointError) -> None:
    for one in outcomes:
        one.refuse(error)


def _predict(outcome: Outcome) -> None:
    """Fill in what a real run would report."""
    if outcome.error is None and outcome.decision is not None and outcome.after is not None:
        outcome.word = outcome.decision.word
        outcome.changed = bool(outcome.decision.actions)
        outcome.snapshot = outcome.decision.snapshot
        outcome.after = dataclasses.replace(outcome.after, snapshots=outcome.decision.predicted)


def _conclude(outcome: Outcome) -> None:
    """Say what happened, from what was seen."""
    if outcome.error is not None:
        outcome.word = "failed" if outcome.started else "none"
        outcome.changed = _left_changed(outcome)
        if outcome.started and outcome.before and outcome.after and outcome.before.state.power != outcome.after.state.power:
            outcome.warnings.append(f"{outcome.vm} was {outcome.before.state.power}, and is {outcome.after.state.power} now")
    elif outcome.decision is not None:
        outcome.word = outcome.decision.word
        outcome.changed = bool(outcome.done)
        if outcome.raced and not outcome.done:
            outcome.word = "lost_race"
    wanted = outcome.decision.snapshot if outcome.decision else None
    if wanted is not None:
        outcome.snapshot = outcome.after.by_id(wanted.id) if outcome.after else None
        if outcome.snapshot is None and outcome.word == "removed":
            outcome.snapshot = wanted


def _left_changed(outcome: Outcome) -> bool:
    """Whether a VM on which something failed is not as it was found."""
    if outcome.done:
        return True
    if isinstance(outcome.started, Revert):
        # A revert that breaks off may have stopped the VM and replaced its configuration already (libvirt 9.0, QEMU 7.2).
        return isinstance(outcome.error, (BackendFailed, ConnectionFailed, TimedOut))
    if outcome.started is None or outcome.before is None or outcome.after is None:
        return False
    mine = getattr(outcome.started, "name", None)
    names = {one.name for one in outcome.before.snapshots}
    appeared = isinstance(outcome.started, Create) and mine not in names and bool(outcome.after.named(str(mine)))
    return appeared or isinstance(outcome.error, (ConnectionFailed, TimedOut))
