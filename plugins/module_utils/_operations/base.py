# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Base class of the operations: decide which actions a VM needs. Pure: no I/O, no clock.

A plan decides for one VM at a time. It raises an error, or returns the actions in order and the predicted snapshots.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import abc
import dataclasses
import typing as t
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    Foreign,
    Held,
    SnapshotAmbiguous,
    SnapshotNotFound,
    Unsupported,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, View, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import Owner
from ansible_collections.safepoint.vm.plugins.module_utils._core.retention import Verdict
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, SnapshotDriver

# The signature of SnapshotDriver.imagine().
Imagine = Callable[[Vm, Sequence[Snapshot]], Sequence[Snapshot]]


@dataclasses.dataclass(frozen=True)
class Decision:
    """The actions on one VM and their predicted result."""

    word: str
    """The value of ``action`` in the result: created, updated, exists, removed, absent, reverted, pruned, kept."""
    snapshot: Snapshot | None
    """The predicted snapshot; its id is empty until it is created."""
    predicted: tuple[Snapshot, ...]
    """All predicted snapshots of the VM."""
    actions: tuple[Action, ...] = ()
    warnings: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    """One verdict for each snapshot of the VM; prune only."""
    gone_is_done: bool = False
    """True if it is a success when another run has already removed the snapshots."""


@dataclasses.dataclass(frozen=True)
class Request:
    """The parsed options of one call, the same for all its VMs."""

    name: str | None = None
    owner: str = "safepoint"
    foreign_allowed: bool = False
    label_key: str | None = dataclasses.field(default=None, repr=False)
    longest: timedelta = timedelta(minutes=15, seconds=20)
    """Maximum duration of the call."""
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
    """Use the newest snapshot that matches ``matching`` instead of a name."""
    matching: Filter = dataclasses.field(default_factory=Filter)
    power: str = "as_snapshot"
    discard_newer: bool = False

    @property
    def ours(self) -> Owner:
        """The owner of the snapshots that this call may change."""
        return Owner(self.owner, self.label_key)


class Plan(abc.ABC):
    """An operation on the snapshots of VMs."""

    creates: t.ClassVar[bool] = False
    """True if it creates snapshots, which on_error=undo can remove."""
    reverts: t.ClassVar[bool] = False
    """True if it changes the configuration of the VM."""
    sweeps: t.ClassVar[bool] = False
    """True if it selects the snapshots itself. A locked VM is then waited for only if it has something to do."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def check(self, driver: SnapshotDriver) -> None:
        """Refuse requests that the backend never supports, before the first request to it.

        :raises SafepointError: the reason and the remedy.
        """

    def may_create(self, snapshots: Sequence[Snapshot]) -> bool:
        """Return True if a VM with these snapshots may get a new one, so that the ways to take it must be read."""
        return False

    def survey(self, views: Sequence[View], *, vms: int, now: datetime, driver: SnapshotDriver) -> None:
        """Prepare the decisions with a view of all VMs together. ``views`` are those that could be read, ``vms`` is the number of all.

        :raises SafepointError: the whole call is refused; nothing was written.
        """

    @abc.abstractmethod
    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        """Return the decision for one VM.

        :raises SafepointError: the request is refused; nothing was written.
        """

    @abc.abstractmethod
    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        """Compare the state after the write with the decision; return the actions that are still needed.

        :raises SafepointError: the state is not the one that the hypervisor reported.
        """

    def find(self, view: View, snapshot_id: str | None, now: datetime) -> Snapshot | None:
        """Return the snapshot with this id, or without an id the one with the requested name, or None.

        :raises SnapshotAmbiguous: several snapshots have the name.
        """
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
        """Return the error for a snapshot that was not found; it lists the newest snapshots of the VM."""
        wanted = f"with the id {snapshot_id!r}" if snapshot_id is not None else f"named {self.request.name!r}"
        if snapshot_id is None and self.request.select:
            allowed = "" if self.request.foreign_allowed else f" of owner {self.request.owner!r}"
            wanted = f"{self.request.matching.words()}{allowed}"
        has = ", ".join(one.name for one in view.snapshots[-10:]) or "none"
        more = "the newest are " if len(view.snapshots) > 10 else ""
        return SnapshotNotFound(f"{view.vm} has no snapshot {wanted}; it has {more}{has}")

    def refuse_foreign(self, view: View, snapshot: Snapshot, snapshot_id: str | None) -> None:
        """Refuse a snapshot of another owner, unless it is named by its id or foreign=allow is set."""
        why = self.request.ours.why_not(view.vm, snapshot)
        if snapshot_id is None and not self.request.foreign_allowed and why is not None:
            raise Foreign(
                f"The snapshot {snapshot} of {view.vm} does not belong to owner {self.request.owner!r}: {why}. "
                "To use it anyway, name it by id or set foreign=allow"
            )

    def refuse_others(self, view: View, snapshots: list[Snapshot], what: str) -> None:
        """Refuse to remove further snapshots together with another one if one of them is foreign, on hold or cannot be removed."""
        foreign = [one for one in snapshots if not self.request.ours.owns(view.vm, one)]
        if foreign and not self.request.foreign_allowed:
            raise Foreign(
                f"{what} would remove {names(foreign)} of {view.vm}, which owner {self.request.owner!r} does not own; "
                "to remove them anyway, set foreign=allow as well"
            )
        for one in snapshots:
            refuse_obstacle(view, one, "remove", "It cannot be removed")
            refuse_held(view, one)


def refuse_obstacle(view: View, snapshot: Snapshot, verb: str, what: str) -> None:
    """Refuse an operation that the backend cannot do with this snapshot."""
    if verb in snapshot.obstacles:
        raise Unsupported(f"{what}: the snapshot {snapshot} of {view.vm} {snapshot.obstacles[verb]}")


def refuse_held(view: View, snapshot: Snapshot) -> None:
    """Refuse to remove a snapshot that is on hold."""
    if snapshot.label is not None and snapshot.label.held:
        raise Held(
            f"The snapshot {snapshot} of {view.vm} {snapshot.label.hold_words()}; release it with state=present and hold=false first"
        )


def why_not_deleted(snapshot_id: str, left: Sequence[Snapshot]) -> str | None:
    """Return the reason why a snapshot cannot be deleted while all of ``left`` exist, or None."""
    one = next(one for one in left if one.id == snapshot_id)
    beside = any(two.parent in (one.id, one.parent) and two.id != one.id for two in left)
    return one.obstacles.get("remove") or (one.obstacles.get("remove_alone") if beside else None)


def names(snapshots: list[Snapshot]) -> str:
    """Return the names of the snapshots, joined for a message."""
    return ", ".join(one.name for one in snapshots)


def still_there(view: View, removed: Sequence[Snapshot]) -> list[Snapshot]:
    """Return the removed snapshots that the VM still has.

    A snapshot with the same id but another creation time belongs to another run: on Proxmox VE, the name is the id.
    """
    seen = {one.id: one.created for one in view.snapshots}
    return [one for one in removed if one.id in seen and seen[one.id] == one.created]


def without(snapshots: tuple[Snapshot, ...], gone: Snapshot) -> tuple[Snapshot, ...]:
    """Return the snapshots after ``gone`` was deleted alone: its children and the mark ``current`` move to its parent."""
    return tuple(
        dataclasses.replace(
            one,
            parent=gone.parent if one.parent == gone.id else one.parent,
            current=one.current or (gone.current and one.id == gone.parent),
        )
        for one in snapshots
        if one.id != gone.id
    )
