# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One VM on its way from the look to the report.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, Create, Delete, Job, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
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
from ansible_collections.safepoint.vm.plugins.module_utils._model import Configuration, Finding, Snapshot, Target, View, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Decision

# With these the hypervisor says no before it touches anything.
_CLEAN_REFUSALS = (InvalidOption, Unsupported, Locked, NewerSnapshots, PermissionDenied, SnapshotNotFound, VmNotFound)


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
    then: dict[str, Configuration] = dataclasses.field(default_factory=dict)
    """What the VM was made of, by the id of the snapshot; read only when asked for."""
    now: Configuration | None = None
    """What it was made of when it was first seen; read only when asked for."""
    later: Configuration | None = None
    """What it is made of in the end, or in a dry run would be."""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    # while the work goes on
    todo: collections.deque[Action] = dataclasses.field(default_factory=collections.deque)
    done: list[Action] = dataclasses.field(default_factory=list)
    started: Action | None = None
    in_flight: Job | None = None
    lock: Deadline | None = None
    """How long somebody else's lock is still waited for."""
    made: str | None = None
    raced: int = 0
    """How often another run was faster, so that it was decided again."""
    again: bool = False
    """Whether it is to be looked at and decided again for that reason."""
    undone: bool = False
    seen_again: bool = False
    """Whether it was seen once more after something had failed."""
    predicted: bool = False
    """Whether it is a dry run, and ``after`` the state as it would be."""

    @property
    def also_removed(self) -> list[str]:
        """The ids of the snapshots that went, or would go, together with the one that was named or for its sake."""
        if self.error is not None or self.decision is None:
            gone = [action.snapshot.id for action in self.done if isinstance(action, Delete)]
        else:
            gone = [action.snapshot.id for action in self.decision.actions if isinstance(action, Delete)]
        named = self.decision.snapshot.id if self.decision and self.decision.snapshot else None
        return [one for one in gone if one != named]

    def refuse(self, error: SafepointError) -> None:
        """Stop with ``error``; the first one stands."""
        self.error = self.error or error
        self.todo.clear()

    def note_view(self, view: View) -> None:
        """This is how the VM was last seen."""
        self.after = view
        self.seen_again = self.error is not None
        if self.decision is None:
            self.before = view

    def forget(self) -> None:
        """It is to be decided again; nothing was begun."""
        self.decision = None
        self.todo.clear()
        self.warnings.clear()

    def put_back(self, action: Action) -> None:
        """The action was refused before it did anything, and is to be tried again."""
        self.todo.appendleft(action)
        self.started = self.done[-1] if self.done else None

    def mark_undone(self, because: Outcome) -> None:
        """What this call created is gone again."""
        self.done.clear()
        self.made = None
        self.undone = True
        said = f"The new snapshot of {self.vm} was removed again"
        if self.error is None:
            self.error = Undone(f"{said} because of {because.vm or because.target.ref}: {because.error}")
        else:
            self.warnings.append(said)

    def lose(self) -> None:
        """Another run was first, and what this one created is gone again."""
        self.raced += 1
        self.decision = None
        self.done.clear()
        self.made = None
        self.warnings.clear()

    def decide_again(self) -> None:
        """Another run was faster, and nothing was written; the new decision brings its own warnings."""
        self.raced += 1
        self.again = True
        self.decision = None
        self.started = None
        self.todo.clear()
        self.warnings.clear()

    def left_behind(self, why: str) -> None:
        """What this call created could not be removed again."""
        self.refuse(BackendFailed(f"The new snapshot of {self.vm} could not be removed again: {why}"))
        self.warnings.append(f"The snapshot with the id {self.made!r} of {self.vm} is left behind: {why}")

    def predict(self) -> None:
        """Fill in what a real run would report."""
        if self.error is None and self.decision is not None and self.after is not None:
            self.word = self.decision.word
            self.changed = bool(self.decision.actions)
            self.snapshot = self.decision.snapshot
            self.after = dataclasses.replace(self.after, snapshots=self.decision.predicted)
            self.predicted = True
            self.later = self.then.get(self.snapshot.id) if self.snapshot else None

    def conclude(self) -> None:
        """Say what happened, from what was seen."""
        if self.error is not None:
            self.word = _failed_word(self)
            self.changed = self._left_changed()
            if self.started and self.before and self.after and self.before.state.power != self.after.state.power:
                self.warnings.append(f"{self.vm} was {self.before.state.power}, and is {self.after.state.power} now")
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
        """Whether a VM on which something failed is not as it was found."""
        if self.undone or self.started is None or self.before is None or self.after is None:
            return False
        if self.done:
            return True
        if isinstance(self.error, NotReached):
            return False
        if isinstance(self.started, Revert):
            # One that breaks off may have stopped the VM and replaced its configuration already (libvirt 9.0, QEMU 7.2).
            same = self.seen_again and self.before.state.power == self.after.state.power
            same = same and _place(self.before) == _place(self.after)
            return not (same and isinstance(self.error, _CLEAN_REFUSALS))
        if isinstance(self.error, (ConnectionFailed, TimedOut, Unverified)):
            # It may yet happen, so that what was seen since proves nothing.
            return True
        if isinstance(self.started, Create):
            if isinstance(self.error, (*_CLEAN_REFUSALS, SnapshotExists)):
                return False  # what is there now was made by another run
            return len(self.after.named(self.started.name)) > len(self.before.named(self.started.name))
        left, was = self.after.by_id(self.started.snapshot.id), self.before.by_id(self.started.snapshot.id)
        if isinstance(self.started, Delete) and isinstance(self.error, SnapshotNotFound):
            return False  # another run removed it
        if isinstance(self.started, Delete):
            # One that breaks off half-way may have left less of it than there was, or the VM locked.
            less = left is None or (was is not None and left.obstacles != was.obstacles)
            return less or (isinstance(self.error, BackendFailed) and bool(self.after.state.busy))
        return left is None or was is None or left.description != was.description


def _failed_word(outcome: Outcome) -> str:
    """How the result calls what failed: what was sent and is not known to have failed is not called failed."""
    if outcome.started is None:
        return "none"
    if isinstance(outcome.error, TimedOut):
        # An action that has ended is not in doubt: it was the next one that the time was not enough for.
        return "failed" if outcome.undone or outcome.started in outcome.done else "unverified"
    return "unverified" if isinstance(outcome.error, (Interrupted, Unverified)) else "failed"


def _place(view: View) -> str | None:
    """The id of the snapshot that the VM's present state is on."""
    current = view.current()
    return current.id if current else None


def hold_back(outcomes: Iterable[Outcome], *, because: Outcome) -> None:
    """Leave alone what was not begun."""
    for one in outcomes:
        if one.todo:
            one.refuse(not_started(because, one))


def not_started(because: Outcome, one: Outcome | None = None) -> NotStarted:
    """Why nothing was done on a VM."""
    on = f" on {one.vm}" if one is not None else ""
    return NotStarted(f"Nothing was done{on} because of {because.vm or because.target.ref}: {because.error}")


def refuse_all(outcomes: Iterable[Outcome], error: SafepointError) -> None:
    """Stop all of them with the same error."""
    for one in outcomes:
        one.refuse(error)
