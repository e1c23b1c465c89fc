# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at many VMs, decide for each, act within bounds, look again, and say what was seen.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Create, Delete, Finished, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    InvalidOption,
    Locked,
    SafepointError,
    SnapshotExists,
    SnapshotNotFound,
    TimedOut,
    Unverified,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Target, View, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome, hold_back, refuse_all
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time

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
            hold_back(outcomes, because=refused)
        if dry_run:
            for outcome in outcomes:
                outcome.predict()
            return outcomes
        acting = [outcome for outcome in outcomes if outcome.todo]
        self._act(acting, plan)
        for outcome in outcomes:
            outcome.conclude()
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
        held: set[str] = set()

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
                outcome.seen_again = outcome.error is not None
                if outcome.decision is None:
                    outcome.before = view
                # One that was busy is looked at once more when it is not: what was listed meanwhile may have been taken back.
                if wait and view.state.busy:
                    held.add(view.vm.id)
                    busy.append(outcome)
                elif view.vm.id in held:
                    held.remove(view.vm.id)
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
                holder = (outcome.after.state.busy if outcome.after else None) or "another operation"
                outcome.refuse(
                    Locked(
                        f"{outcome.vm} is still held by {holder} after {lock.seconds:g} seconds; try again later, or set a longer lock_timeout"
                    )
                )

    def _read(self, vms: Sequence[Vm], deadline: Deadline) -> dict[str, View | SafepointError]:
        # In this order: a snapshot of somebody else that is listed while it is still being made has its VM busy when that is looked at.
        snapshots = in_time("the list of snapshots", lambda: self._driver.snapshots(vms), deadline)
        states = in_time("the state of the VMs", lambda: self._driver.inspect(vms), deadline)
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
                refuse_all(raced, exc)
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
            hold_back(ready, because=failed)

    def _note(self, outcome: Outcome, end: Finished) -> None:
        action = end.job.action
        outcome.warnings.extend(end.warnings)
        if end.error is None:
            outcome.done.append(action)
            if isinstance(action, Create) and outcome.decision and outcome.decision.snapshot:
                outcome.made = end.snapshot_id
                made = dataclasses.replace(outcome.decision.snapshot, id=end.snapshot_id or "")
                outcome.decision = dataclasses.replace(outcome.decision, snapshot=made)
        elif isinstance(end.error, SnapshotNotFound) and isinstance(action, Delete) and outcome.done:
            pass  # a newer one that was to be discarded: somebody else was faster
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
                # What the work took of the time must not make a success look like a failure.
                self._see(written, Deadline(max(self._deadline.left(), _LAST_LOOK_SECONDS)), wait=False)
            except SafepointError as exc:
                refuse_all(written, exc)
                return
            for outcome in written:
                if outcome.error is None and outcome.after and outcome.decision:
                    try:
                        outcome.todo.extend(plan.confirm(outcome.after, outcome.decision))
                    except SafepointError as exc:
                        outcome.refuse(exc)
            written = [one for one in written if one.todo]
            if not written:
                return
            if last:
                refuse_all(written, Unverified("The hypervisor accepted the description twice, and does not show it"))
                return
            self._perform(written)

    def _undo(self, outcomes: Sequence[Outcome], *, because: Outcome) -> None:
        """Remove what this call created, and only that, with a time budget of its own; also what is finished only now."""
        deadline = Deadline(_UNDO_SECONDS)
        ready = collections.deque(one for one in outcomes if one.made)
        late = {one.in_flight: one for one in outcomes if one.in_flight and isinstance(one.in_flight.action, Create)}
        running: dict[Job, Outcome] = {}
        while ready or late or running:
            while ready and len(running) < self._bounds.max_parallel:
                one = ready.popleft()
                if one.made and one.vm and one.decision and one.decision.snapshot:
                    gone = dataclasses.replace(one.decision.snapshot, id=one.made)
                    running[self._driver.start(Delete(one.vm, gone))] = one
            finished = self._driver.wait([*late, *running], deadline) if late or running else []
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
                    else:
                        one.left_behind(str(end.error))
            if not finished:
                break
        for one in [*ready, *running.values()]:
            one.left_behind(f"no answer within {_UNDO_SECONDS:g} seconds")
        for one in late.values():
            one.warnings.append(
                f"A snapshot of {one.vm} was still being taken when the time for undoing was up, and may yet appear"
            )
