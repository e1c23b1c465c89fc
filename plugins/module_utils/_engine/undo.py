# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Undo: remove the snapshots that a failed call created, and no others.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import Locked, SnapshotNotFound
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Delete, Finished, Job
from ansible_collections.safepoint.vm.plugins.module_utils._engine.jobs import Jobs
from ansible_collections.safepoint.vm.plugins.module_utils._engine.progress import Progress, how_far
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import STOP_GRACE_SECONDS

# The pause between two attempts to remove a snapshot of a locked VM, and between two checks for a due attempt.
_LOCK_PAUSE_SECONDS = 1.0
_WAIT_SECONDS = 0.25


class Undo:
    """The undo of one call. Snapshots that are still being created are removed when they are complete."""

    def __init__(self, jobs: Jobs, deadline: Deadline) -> None:
        self._jobs = jobs
        self._deadline = deadline
        self._ready: collections.deque[Outcome] = collections.deque()
        self._late: dict[Job, Outcome] = {}
        self._running: dict[Job, Outcome] = {}
        # Each with the time of the next attempt and the last error.
        self._locked: list[tuple[Deadline, Outcome, Locked]] = []
        self._removed = 0

    def perform(self, outcomes: Sequence[Outcome], *, because: Outcome) -> None:
        """Remove the snapshots that these VMs have in ``made``, until the deadline.

        :raises Stopped: a signal stopped the call; each VM has an error or a warning about its remaining snapshot.
        """
        with self._jobs.stop.held():
            self._perform(outcomes, because)

    def _perform(self, outcomes: Sequence[Outcome], because: Outcome) -> None:
        self._ready.extend(one for one in outcomes if one.made)
        self._late.update((one.in_flight, one) for one in outcomes if one.in_flight and isinstance(one.in_flight.action, Create))
        total = len(self._ready) + len(self._late)
        deadline, why = self._deadline, "the time for the undo was up"
        while self._ready or self._late or self._running or self._locked:
            if self._jobs.stop.by is None:
                self._begin()
            elif deadline is self._deadline:
                deadline, why = deadline.within(STOP_GRACE_SECONDS), f"the module was stopped by {self._jobs.stop.by}"
            if self._jobs.stop.by is not None and not (self._late or self._running):
                break
            if self._jobs.progress is not None:
                self._jobs.progress(Progress(self._removed, total, how_far([*self._late, *self._running]), undoing=True))
            finished = self._wait(deadline)
            for end in finished:
                self._note(end, because)
            if not finished and deadline.left() <= 0:
                break
        self._give_up(why)

    def _begin(self) -> None:
        due = [locked for locked in self._locked if locked[0].left() <= 0]
        self._locked = [locked for locked in self._locked if locked not in due]
        self._ready.extend(one for _again, one, _error in due)
        while self._ready and len(self._running) < self._jobs.at_once:
            one = self._ready.popleft()
            if one.made and one.vm and one.decision and one.decision.snapshot:
                gone = dataclasses.replace(one.decision.snapshot, id=one.made)
                self._running[self._jobs.start(Delete(one.vm, gone), anyway=True)] = one

    def _wait(self, deadline: Deadline) -> list[Finished]:
        jobs = [*self._late, *self._running]
        if jobs:
            return self._jobs.wait(jobs, deadline)
        deadline.within(_WAIT_SECONDS).sleep()
        return []

    def _note(self, end: Finished, because: Outcome) -> None:
        if end.job in self._late:
            one = self._late.pop(end.job)
            one.in_flight = None
            if end.error is None:
                one.made = end.snapshot_id
                self._ready.append(one)
            else:
                # The actual error is more precise than the timeout.
                one.error = end.error
            return
        one = self._running.pop(end.job)
        if end.error is None or isinstance(end.error, SnapshotNotFound):
            one.mark_undone(because)
            self._removed += 1
        elif isinstance(end.error, Locked) and self._deadline.left() > 0:
            # Another operation has locked the VM; nothing was removed.
            self._locked.append((Deadline(_LOCK_PAUSE_SECONDS), one, end.error))
        else:
            one.left_behind(str(end.error))

    def _give_up(self, why: str) -> None:
        for one in [*self._ready, *self._running.values()]:
            one.left_behind(why)
        for _again, one, error in self._locked:
            one.left_behind(f"{why}: {error}")
        for one in self._late.values():
            one.warnings.append(
                f"A snapshot of {one.vm} was still being taken when {why}, and may still appear; check with snapshot_info"
            )
