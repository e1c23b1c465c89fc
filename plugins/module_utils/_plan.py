# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Decide: what is wanted, what was seen, what is to be done about it. Pure: no I/O, no clock.

A plan looks at one VM at a time. It raises the refusal, or returns the actions in their order and the snapshots as they will be.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import abc
import dataclasses
import typing as t
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    Foreign,
    Held,
    SnapshotAmbiguous,
    SnapshotNotFound,
    Unsupported,
)
from ansible_collections.safepoint.vm.plugins.module_utils._filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, View, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._retention import Verdict

# As SnapshotDriver.imagine().
Imagine = Callable[[Vm, Sequence[Snapshot]], Sequence[Snapshot]]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is to be done on one VM."""

    word: str
    """What the result calls it: created, updated, exists, removed, absent, reverted, pruned, kept."""
    snapshot: Snapshot | None
    """The snapshot as it will be; its id is empty while it is not created."""
    predicted: tuple[Snapshot, ...]
    """All snapshots of the VM as they will be."""
    actions: tuple[Action, ...] = ()
    warnings: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    """About each snapshot of the VM, where that was asked for."""
    gone_is_done: bool = False
    """Whether what is to be deleted may as well have been deleted by somebody else."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the options of one call say, for all its VMs alike."""

    name: str | None = None
    owner: str = "safepoint"
    foreign_allowed: bool = False
    label_key: str | None = dataclasses.field(default=None, repr=False)
    longest: timedelta = timedelta(minutes=15, seconds=20)
    """After what time the call has ended, whatever happens."""
    # state=present
    kind: str | None = None
    memory: bool = False
    quiesce: str = "never"
    description: str | None = None
    expires: timedelta | datetime | None = None
    hold: bool | None = None
    hold_by: str | None = None
    hold_reason: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fail_if_exists: bool = False
    # state=absent
    children: str = "keep"
    # revert
    select: bool = False
    """The newest that ``matching`` lets through, instead of a name."""
    matching: Filter = dataclasses.field(default_factory=Filter)
    power: str = "as_snapshot"
    discard_newer: bool = False

    @property
    def ours(self) -> Owner:
        """Whose snapshots are ours."""
        return Owner(self.owner, self.label_key)


class Plan(abc.ABC):
    """One of the things that can be wanted of a VM's snapshots."""

    creates: t.ClassVar[bool] = False
    """Whether on_error=undo has something to undo."""
    reverts: t.ClassVar[bool] = False
    """Whether it changes the configuration of the VM."""
    sweeps: t.ClassVar[bool] = False
    """Whether it is about whatever there is, so that a VM with nothing to do is not waited for when somebody else holds it."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def check(self, driver: SnapshotDriver) -> None:
        """Refuse what the backend can never do, before it is even asked.

        :raises SafepointError: the reason and the remedy.
        """

    def may_create(self, snapshots: Sequence[Snapshot]) -> bool:
        """Whether a VM with these snapshots gets another one, so that the ways to take it have to be known."""
        return False

    def survey(self, views: Sequence[View], *, vms: int, now: datetime, driver: SnapshotDriver) -> None:
        """See all VMs of the call together, before it is decided about each: of so many ``vms`` those that could be seen.

        :raises SafepointError: the call as a whole is refused; nothing has been written.
        """

    @abc.abstractmethod
    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        """Say what to do about one VM.

        :raises SafepointError: it is refused; nothing has been written.
        """

    @abc.abstractmethod
    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        """Compare the state read afterwards with the decision; return what still has to be written.

        :raises SafepointError: the state is not what the hypervisor said.
        """

    def find(self, view: View, snapshot_id: str | None, now: datetime) -> Snapshot | None:
        """The snapshot by its id, or else by the name, which must be the only one."""
        if snapshot_id is not None:
            return view.by_id(snapshot_id)
        named = view.named(self.request.name or "")
        if len(named) > 1:
            ids = ", ".join(one.id for one in named)
            raise SnapshotAmbiguous(
                f"{len(named)} snapshots of {view.vm} are named {self.request.name!r}: {ids}. Set id to one of them"
            )
        return named[0] if named else None

    def missing(self, view: View, snapshot_id: str | None) -> SnapshotNotFound:
        """The error that says what was looked for and what there is."""
        wanted = f"with the id {snapshot_id!r}" if snapshot_id is not None else f"named {self.request.name!r}"
        if snapshot_id is None and self.request.select:
            allowed = "" if self.request.foreign_allowed else f" of owner {self.request.owner!r}"
            wanted = f"{self.request.matching.words()}{allowed}"
        has = ", ".join(one.name for one in view.snapshots[-10:]) or "none"
        more = "the newest are " if len(view.snapshots) > 10 else ""
        return SnapshotNotFound(f"{view.vm} has no snapshot {wanted}; it has {more}{has}")

    def refuse_foreign(self, view: View, snapshot: Snapshot, snapshot_id: str | None) -> None:
        """Only by its id, or where that is allowed, is a snapshot touched that is not ours."""
        why = self.request.ours.why_not(view.vm, snapshot)
        if snapshot_id is None and not self.request.foreign_allowed and why is not None:
            raise Foreign(
                f"The snapshot {snapshot} of {view.vm} is not one of owner {self.request.owner!r}: {why}. "
                "Name it by id, or set foreign=allow, if it is really meant"
            )

    def refuse_others(self, view: View, snapshots: list[Snapshot], what: str) -> None:
        """Snapshots that would go together with another one: ours, or allowed, and none of them held or stuck."""
        foreign = [one for one in snapshots if not self.request.ours.owns(view.vm, one)]
        if foreign and not self.request.foreign_allowed:
            raise Foreign(
                f"{what} would remove {names(foreign)} of {view.vm}, which owner {self.request.owner!r} did not make; "
                "set foreign=allow as well if that is really meant"
            )
        for one in snapshots:
            refuse_obstacle(view, one, "remove", "It cannot be removed")
            refuse_held(view, one)


def refuse_obstacle(view: View, snapshot: Snapshot, verb: str, what: str) -> None:
    """Refuse what the backend cannot do with this snapshot."""
    if verb in snapshot.obstacles:
        raise Unsupported(f"{what}: the snapshot {snapshot} of {view.vm} {snapshot.obstacles[verb]}")


def refuse_held(view: View, snapshot: Snapshot) -> None:
    """Refuse to remove what somebody put on hold."""
    if snapshot.label is not None and snapshot.label.held:
        raise Held(
            f"The snapshot {snapshot} of {view.vm} {snapshot.label.hold_words()}; release it with state=present and hold=false first"
        )


def why_not_deleted(snapshot_id: str, left: Sequence[Snapshot]) -> str | None:
    """Why a snapshot cannot be deleted while all of these are there."""
    one = next(one for one in left if one.id == snapshot_id)
    beside = any(two.parent in (one.id, one.parent) and two.id != one.id for two in left)
    return one.obstacles.get("remove") or (one.obstacles.get("remove_alone") if beside else None)


def names(snapshots: list[Snapshot]) -> str:
    """The snapshots by their names, for a sentence."""
    return ", ".join(one.name for one in snapshots)


def still_there(view: View, removed: Sequence[Snapshot]) -> list[Snapshot]:
    """Which of the snapshots that were removed the VM still has.

    One of the same id that was created at another time is another run's: Proxmox VE tells the snapshots of a guest apart by their names.
    """
    seen = {one.id: one.created for one in view.snapshots}
    return [one for one in removed if one.id in seen and seen[one.id] == one.created]


def without(snapshots: tuple[Snapshot, ...], gone: Snapshot) -> tuple[Snapshot, ...]:
    """The snapshots after ``gone`` was deleted alone: its children and the current mark move up to its parent."""
    return tuple(
        dataclasses.replace(
            one,
            parent=gone.parent if one.parent == gone.id else one.parent,
            current=one.current or (gone.current and one.id == gone.parent),
        )
        for one in snapshots
        if one.id != gone.id
    )
