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
from collections.abc import Mapping
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils import _label
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, Create, Delete, Describe, Revert, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    ExistsDiffers,
    Foreign,
    Held,
    InvalidOption,
    NewerSnapshots,
    SnapshotAmbiguous,
    SnapshotExists,
    SnapshotNotFound,
    Unsupported,
    Unverified,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, View, parents_first
from ansible_collections.safepoint.vm.plugins.module_utils._naming import check_name

# A relative expiry is written before the hypervisor says when the snapshot was made. What lies this near is the same moment.
_EXPIRY_SLACK = timedelta(seconds=60)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is to be done on one VM."""

    word: str
    """What the result calls it: created, updated, exists, removed, absent, reverted."""
    snapshot: Snapshot | None
    """The snapshot as it will be; its id is empty while it is not created."""
    predicted: tuple[Snapshot, ...]
    """All snapshots of the VM as they will be."""
    actions: tuple[Action, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """What the options of one call say, for all its VMs alike."""

    name: str | None = None
    owner: str = "safepoint"
    foreign_allowed: bool = False
    # state=present
    memory: bool = False
    quiesce: str = "never"
    description: str | None = None
    expires: timedelta | datetime | None = None
    hold: bool | None = None
    hold_reason: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fail_if_exists: bool = False
    # revert
    power: str = "as_snapshot"
    discard_newer: bool = False


class Plan(abc.ABC):
    """One of the things that can be wanted of a VM's snapshots."""

    undoes_creations: t.ClassVar[bool] = False
    """Whether on_error=undo has something to undo."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def check(self, driver: type[SnapshotDriver]) -> None:
        """Refuse what the backend can never do, before it is even asked.

        :raises SafepointError: the reason and the remedy.
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

    def _find(self, view: View, snapshot_id: str | None) -> Snapshot | None:
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

    def _missing(self, view: View, snapshot_id: str | None) -> SnapshotNotFound:
        wanted = f"with the id {snapshot_id!r}" if snapshot_id is not None else f"named {self.request.name!r}"
        has = ", ".join(one.name for one in view.snapshots[-10:]) or "none"
        more = "the newest are " if len(view.snapshots) > 10 else ""
        return SnapshotNotFound(f"{view.vm} has no snapshot {wanted}; it has {more}{has}")

    def _may_touch(self, view: View, snapshot: Snapshot, snapshot_id: str | None) -> None:
        if snapshot_id is None and not self.request.foreign_allowed and not snapshot.belongs_to(self.request.owner):
            raise Foreign(
                f"{_not_ours(view, snapshot, self.request.owner)}. Name it by id, or set foreign=allow, if it is really meant"
            )


class Present(Plan):
    """The snapshot is there, with the label and description asked for."""

    undoes_creations = True

    def check(self, driver: type[SnapshotDriver]) -> None:
        if self.request.name is not None:
            check_name(self.request.name, driver.name_rule)

    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        found = self._find(view, snapshot_id)
        if found is None:
            if snapshot_id is not None:
                raise self._missing(view, snapshot_id)
            return self._create(view, now)
        if snapshot_id is None:
            self._may_stand_for_ours(view, found)
        self._compare(view, found)
        return self._describe(view, found)

    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        if done.snapshot is None or view.by_id(done.snapshot.id) is None:
            raise Unverified(f"The hypervisor reported {done.word}, but {view.vm} does not list the snapshot {done.snapshot}")
        return self._describe(view, view.by_id(done.snapshot.id) or done.snapshot).actions

    def _create(self, view: View, now: datetime) -> Decision:
        request = self.request
        for feature, asked in (("create", True), ("memory", request.memory), ("quiesce", request.quiesce == "require")):
            if asked and feature in view.state.refusals:
                raise Unsupported(view.state.refusals[feature])
        for one in view.snapshots:
            _refuse_obstacle(view, one, "No snapshot can be taken")
        warnings = []
        if request.quiesce == "prefer" and "quiesce" in view.state.refusals and view.state.power != "off":
            warnings.append(view.state.refusals["quiesce"])
        expires = now + request.expires if isinstance(request.expires, timedelta) else request.expires
        fields = self._fields({}, expires)
        description = _label.render(_label.Label(request.owner, fields), text=request.description or "")
        up = view.state.power != "off"
        memory = up and (request.memory or view.state.memory_implied)
        parent = view.current()
        made = Snapshot(
            id="",
            name=request.name or "",
            created=None,
            parent=parent.id if parent else None,
            description=description,
            memory=memory,
            consistency="memory" if memory else "crash" if up else "offline",
            current=True,
        )
        others = [dataclasses.replace(one, current=False) for one in view.snapshots]
        action = Create(view.vm, made.name, description, memory)
        return Decision("created", made, parents_first([*others, made]), (action,), tuple(warnings))

    def _may_stand_for_ours(self, view: View, found: Snapshot) -> None:
        request = self.request
        if request.fail_if_exists:
            raise SnapshotExists(
                f"{view.vm} has a snapshot named {found.name!r} already; choose another name, or set if_exists=keep"
            )
        if not found.belongs_to(request.owner):
            raise Foreign(f"{_not_ours(view, found, request.owner)}, and is never taken over by its name; choose another name")

    def _compare(self, view: View, found: Snapshot) -> None:
        request = self.request
        differs = None
        if request.memory and not found.memory:
            differs = "was taken without memory, and memory=true is asked for"
        if request.quiesce == "require" and found.consistency not in ("filesystem", "application"):
            differs = f"is {found.consistency}-consistent, and quiesce=require is asked for"
        if differs:
            raise ExistsDiffers(f"The snapshot {found} of {view.vm} {differs}; choose another name, or remove it first")

    def _describe(self, view: View, found: Snapshot) -> Decision:
        request = self.request
        before = found.label or _label.Label(request.owner)
        expires = request.expires
        if isinstance(expires, timedelta):
            expires = found.created + expires if found.created else None
            if expires and before.expires and abs(expires - before.expires) <= _EXPIRY_SLACK:
                expires = before.expires
        label = _label.Label(before.owner, self._fields(before.fields, expires))
        description = found.description
        if request.description is not None and request.description != found.text:
            description = _label.render(label, text=request.description) if found.label else request.description
        if label.as_dict() != before.as_dict():
            problem = _label.parse(description).problem
            if problem:
                raise Foreign(
                    f"The snapshot {found} of {view.vm} cannot be labelled: {problem}. Set description to replace what it says"
                )
            description = _label.replace(description, label)
        if description == found.description:
            return Decision("exists", found, view.snapshots)
        after = dataclasses.replace(found, description=description)
        predicted = tuple(after if one.id == found.id else one for one in view.snapshots)
        return Decision("updated", after, predicted, (Describe(view.vm, found, description),))

    def _fields(self, before: Mapping[str, str], expires: datetime | None) -> dict[str, str]:
        """The label's fields: those there were, with what the options say laid over them."""
        request = self.request
        fields = {**before, **request.labels}
        if expires is not None:
            fields["expires"] = format_time(expires)
        if request.hold is not None:
            fields["hold"] = "yes" if request.hold else ""
            if not request.hold:
                fields["hold_reason"] = ""
        if request.hold_reason is not None:
            if not fields.get("hold"):
                raise InvalidOption("hold_reason is set, and the snapshot is not on hold; set hold=true as well")
            fields["hold_reason"] = request.hold_reason
        return {key: value for key, value in fields.items() if value != ""}


class Absent(Plan):
    """The snapshot is not there; its children stay."""

    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        found = self._find(view, snapshot_id)
        if found is None:
            return Decision("absent", None, view.snapshots)
        self._may_touch(view, found, snapshot_id)
        _refuse_obstacle(view, found, "It cannot be removed")
        _refuse_held(view, found)
        return Decision("removed", found, _without(view.snapshots, found), (Delete(view.vm, found),))

    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        if done.snapshot is not None and view.by_id(done.snapshot.id) is not None:
            raise Unverified(f"The hypervisor reported success, but {view.vm} still lists the snapshot {done.snapshot}")
        return ()


class Reverted(Plan):
    """The VM is back at the snapshot, whatever happened since."""

    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        found = self._find(view, snapshot_id)
        if found is None:
            raise self._missing(view, snapshot_id)
        self._may_touch(view, found, snapshot_id)
        _refuse_obstacle(view, found, "The VM cannot go back to it")
        if self.request.power == "off" and "power_off" in view.state.refusals:
            raise Unsupported(view.state.refusals["power_off"])
        newer = view.descendants(found)
        if newer and newest_only and not self.request.discard_newer:
            raise NewerSnapshots(
                f"{view.vm} can go back to its newest snapshot only, and {_names(newer)} came after {found}; set discard_newer=true to lose them"
            )
        predicted = tuple(dataclasses.replace(one, current=one.id == found.id) for one in view.snapshots)
        deletes: list[Action] = []
        if self.request.discard_newer:
            foreign = [one for one in newer if not one.belongs_to(self.request.owner)]
            if foreign and not self.request.foreign_allowed:
                raise Foreign(
                    f"discard_newer would remove {_names(foreign)} of {view.vm}, which owner {self.request.owner!r} did not make; "
                    "set foreign=allow as well if that is really meant"
                )
            for one in reversed(newer):
                _refuse_obstacle(view, one, "It cannot be discarded")
                _refuse_held(view, one)
                deletes.append(Delete(view.vm, one))
                predicted = _without(predicted, one)
        revert = Revert(view.vm, found, self.request.power)
        # Where it is not needed first, nothing is deleted before the revert has worked.
        actions = [*deletes, revert] if newest_only else [revert, *deletes]
        return Decision("reverted", dataclasses.replace(found, current=True), predicted, tuple(actions))

    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        target = view.by_id(done.snapshot.id) if done.snapshot else None
        if target is None or not target.current:
            raise Unverified(
                f"The hypervisor reported the revert as done, but {done.snapshot} is not the current snapshot of {view.vm}"
            )
        wanted = {
            "on": ("running",),
            "off": ("off",),
            "as_snapshot": ("running", "paused") if target.memory else ("off",),
        }
        if view.state.power not in wanted[self.request.power]:
            raise Unverified(
                f"{view.vm} was reverted to {target}, and is {view.state.power} although power={self.request.power} was asked for"
            )
        return ()


def _refuse_obstacle(view: View, snapshot: Snapshot, what: str) -> None:
    if snapshot.obstacle is not None:
        raise Unsupported(f"{what}: the snapshot {snapshot} of {view.vm} {snapshot.obstacle}")


def _refuse_held(view: View, snapshot: Snapshot) -> None:
    if snapshot.label is not None and snapshot.label.held:
        reason = snapshot.label.fields.get("hold_reason")
        because = f" ({reason})" if reason else ""
        raise Held(
            f"The snapshot {snapshot} of {view.vm} is on hold{because}; release it with state=present and hold=false first"
        )


def _not_ours(view: View, snapshot: Snapshot, owner: str) -> str:
    parsed = _label.parse(snapshot.description)
    if parsed.label is not None:
        why = f"owner {parsed.label.owner!r} made it"
    else:
        why = parsed.problem or "it has no label of this collection"
    return f"The snapshot {snapshot} of {view.vm} is not one of owner {owner!r}: {why}"


def _names(snapshots: list[Snapshot]) -> str:
    return ", ".join(one.name for one in snapshots)


def _without(snapshots: tuple[Snapshot, ...], gone: Snapshot) -> tuple[Snapshot, ...]:
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
