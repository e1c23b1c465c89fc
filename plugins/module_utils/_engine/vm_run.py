# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The state of one VM during a call, from the first read to the result.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    BackendFailed,
    ConnectionFailed,
    Interrupted,
    InvalidOption,
    Locked,
    NewerSnapshots,
    NotReached,
    NotStarted,
    PermissionDenied,
    SafepointError,
    SnapshotExists,
    SnapshotNotFound,
    TimedOut,
    Undone,
    Unsupported,
    Unverified,
    VmNotFound,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import View
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Delete, Job, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._operations.results import VmResult
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

# With these errors, the hypervisor refuses before it changes anything.
_CLEAN_REFUSALS = (InvalidOption, Unsupported, Locked, NewerSnapshots, PermissionDenied, SnapshotNotFound, VmNotFound)


@dataclasses.dataclass
class Outcome(VmResult):
    """The state of one VM during a call."""

    todo: collections.deque[Action] = dataclasses.field(default_factory=collections.deque)
    in_flight: Job | None = None
    lock: Deadline | None = None
    """Limit of the wait for the lock of another operation."""
    made: str | None = None
    raced: int = 0
    """How many times another run was first, so that a new decision was needed."""
    again: bool = False
    """True if the VM must be read again for a new decision, because another run was first."""
    undone: bool = False
    seen_again: bool = False
    """True if the VM was read again after the error."""

    def refuse(self, error: SafepointError) -> None:
        """Set ``error`` and drop all remaining actions. The first error is kept."""
        self.error = self.error or error
        self.todo.clear()

    def note_view(self, view: View) -> None:
        """Store the latest state of the VM."""
        self.after = view
        self.seen_again = self.error is not None
        if self.decision is None:
            self.before = view

    def forget(self) -> None:
        """Reset the decision; no action was started."""
        self.decision = None
        self.todo.clear()
        self.warnings.clear()

    def put_back(self, action: Action) -> None:
        """Put an action that was refused before it changed anything back into the queue."""
        self.todo.appendleft(action)
        self.started = self.done[-1] if self.done else None

    def mark_undone(self, because: Outcome) -> None:
        """Note that the snapshot of this call was removed again."""
        self.done.clear()
        self.made = None
        self.undone = True
        said = f"The new snapshot of {self.vm} was removed again"
        if self.error is None:
            self.error = Undone(f"{said} because of {because.vm or because.target.ref}: {because.error}")
        else:
            self.warnings.append(said)

    def lose(self) -> None:
        """Note that another run was first and the snapshot of this call was removed again."""
        self.raced += 1
        self.decision = None
        self.done.clear()
        self.made = None
        self.warnings.clear()

    def decide_again(self) -> None:
        """Note that another run was first and nothing was written, so that a new decision is needed, with its own warnings."""
        self.raced += 1
        self.again = True
        self.decision = None
        self.started = None
        self.todo.clear()
        self.warnings.clear()

    def left_behind(self, why: str) -> None:
        """Note that the snapshot of this call could not be removed again."""
        self.refuse(BackendFailed(f"The new snapshot of {self.vm} could not be removed again: {why}"))
        self.warnings.append(f"The snapshot with the id {self.made!r} of {self.vm} is left behind: {why}")

    def predict(self) -> None:
        """Set the result that a real run would report."""
        if self.error is None and self.decision is not None and self.after is not None:
            self.word = self.decision.word
            self.changed = bool(self.decision.actions)
            self.snapshot = self.decision.snapshot
            self.after = dataclasses.replace(self.after, snapshots=self.decision.predicted)
            self.predicted = True
            self.later = self.then.get(self.snapshot.id) if self.snapshot else None

    def conclude(self) -> None:
        """Set the result from the last state that was read."""
        if self.error is not None:
            self.word = _failed_word(self)
            self.changed = self._left_changed()
            if self.started and self.before and self.after and self.before.state.power != self.after.state.power:
                self.warnings.append(
                    f"The power state of {self.vm} has changed from {self.before.state.power} to {self.after.state.power}"
                )
        elif self.decision is not None:
            self.word = self.decision.word
            self.changed = bool(self.done)
            if (self.raced or self.decision.actions) and not self.done:
                self.word = "lost_race"
        wanted = self.decision.snapshot if self.decision else None
        if wanted is not None:
            self.snapshot = self.after.by_id(wanted.id) if self.after else None
            if self.snapshot is None and self.word in ("removed", "reverted"):
                self.snapshot = wanted
                if self.word == "reverted":
                    self.warnings.append(f"The snapshot {wanted} of {self.vm} was removed by another run after the revert to it")

    def _left_changed(self) -> bool:
        """Return True if a VM on which an action failed is not in its initial state."""
        if self.undone or self.started is None or self.before is None or self.after is None:
            return False
        if self.done:
            return True
        if isinstance(self.error, NotReached):
            return False
        if isinstance(self.started, Revert):
            # A revert that fails may have stopped the VM and replaced its configuration already (libvirt 9.0, QEMU 7.2).
            same = self.seen_again and self.before.state.power == self.after.state.power
            same = same and _place(self.before) == _place(self.after)
            return not (same and isinstance(self.error, _CLEAN_REFUSALS))
        if isinstance(self.error, (ConnectionFailed, TimedOut, Unverified)):
            # The action may still complete, so the state that was read proves nothing.
            return True
        if isinstance(self.started, Create):
            if isinstance(self.error, (*_CLEAN_REFUSALS, SnapshotExists)):
                return False  # another run took the snapshot that is listed now
            return len(self.after.named(self.started.name)) > len(self.before.named(self.started.name))
        left, was = self.after.by_id(self.started.snapshot.id), self.before.by_id(self.started.snapshot.id)
        if isinstance(self.started, Delete) and isinstance(self.error, SnapshotNotFound):
            return False  # another run removed it
        if isinstance(self.started, Delete):
            # A removal that fails half-way may have removed a part of the snapshot, or left the VM locked.
            less = left is None or (was is not None and left.obstacles != was.obstacles)
            return less or (isinstance(self.error, BackendFailed) and bool(self.after.state.busy))
        return left is None or was is None or left.description != was.description


def _failed_word(outcome: Outcome) -> str:
    """Return ``action`` for a VM with an error: ``unverified`` instead of ``failed`` if the action may have succeeded."""
    if outcome.started is None:
        return "none"
    if isinstance(outcome.error, TimedOut):
        # The result of an action that has ended is known; the time was up before the next one.
        return "failed" if outcome.undone or outcome.started in outcome.done else "unverified"
    return "unverified" if isinstance(outcome.error, (Interrupted, Unverified)) else "failed"


def _place(view: View) -> str | None:
    """Return the id of the VM's current snapshot, or None."""
    current = view.current()
    return current.id if current else None


def hold_back(outcomes: Iterable[Outcome], *, because: Outcome) -> None:
    """Refuse all VMs whose actions were not started."""
    for one in outcomes:
        if one.todo:
            one.refuse(not_started(because, one))


def not_started(because: Outcome, one: Outcome | None = None) -> NotStarted:
    """Return the error for a VM on which nothing was done because another VM failed."""
    on = f" on {one.vm}" if one is not None else ""
    return NotStarted(f"Nothing was done{on} because of {because.vm or because.target.ref}: {because.error}")


def refuse_all(outcomes: Iterable[Outcome], error: SafepointError) -> None:
    """Set the same error on all VMs."""
    for one in outcomes:
        one.refuse(error)
