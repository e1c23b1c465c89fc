# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A snapshot is there, with the label and description that the options ask for. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._core import label as _label
from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    ExistsDiffers,
    Foreign,
    InvalidOption,
    LostRace,
    SnapshotExists,
    Unsupported,
    Unverified,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, View, Way, parents_first
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import check_name
from ansible_collections.safepoint.vm.plugins.module_utils._core.owner import exactly, within
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Describe, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Decision, Plan, refuse_obstacle

# A relative expiry is written before the creation time of the snapshot is known. Times that differ by less than this count as equal.
_EXPIRY_SLACK = timedelta(seconds=60)
# With these kinds of consistency, the file systems of the guest were quiesced or not in use.
_QUIET = ("filesystem", "application", "offline")


class Present(Plan):
    """Ensure that the snapshot exists with the requested label and description."""

    creates = True

    def check(self, driver: SnapshotDriver) -> None:
        if self.request.name is not None:
            check_name(self.request.name, driver.name_rule)

    def survey(self, views: Sequence[View], *, vms: int, now: datetime, driver: SnapshotDriver) -> None:
        expires = self.request.expires
        if isinstance(expires, datetime) and expires <= now:
            raise InvalidOption(
                f"expires={format_time(expires)} is in the past: the time of the endpoint is {format_time(now)}, and the next prune would remove the "
                "snapshot; set a later time, or a duration such as 72h"
            )

    def may_create(self, snapshots: Sequence[Snapshot]) -> bool:
        # Without a name, the snapshots are named by their ids and must exist.
        return self.request.name is not None and all(one.name != self.request.name for one in snapshots)

    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        found = self.find(view, snapshot_id, now)
        if found is None:
            if snapshot_id is not None:
                raise self.missing(view, snapshot_id)
            return self._create(view, now)
        if snapshot_id is None:
            self._may_stand_for_ours(view, found)
        if snapshot_id is None:
            # A snapshot that was never finished cannot protect the VM.
            refuse_obstacle(view, found, "revert", "A snapshot with this name exists, but the VM cannot be reverted to it")
        self._compare(view, found)
        return self._describe(view, found)

    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        if done.snapshot is None or view.by_id(done.snapshot.id) is None:
            raise Unverified(f"The hypervisor reported {done.word}, but {view.vm} does not list the snapshot {done.snapshot}")
        seen = view.by_id(done.snapshot.id) or done.snapshot
        if done.word == "created":
            self._give_way(view, seen)
            if self.request.memory and not seen.memory:
                raise Unverified(
                    f"The snapshot {seen} of {view.vm} has no memory, because the VM was powered off just before it was taken; remove the snapshot and "
                    "start the VM first"
                )
        return self._describe(view, seen).actions

    def _create(self, view: View, now: datetime) -> Decision:
        request = self.request
        up = view.state.power != "off"
        way = self._way(view, up)
        memory = up and (request.memory or way.memory_implied)
        quiesce = request.quiesce if up else "never"
        warnings = [*way.warnings, *(() if memory else way.warnings_without_memory)]
        if quiesce == "prefer" and ("quiesce" in way.refusals or (memory and "memory_and_quiesce" in way.refusals)):
            warnings.append(way.refusals.get("quiesce") or way.refusals["memory_and_quiesce"])
            quiesce = "never"
        expires = now + request.expires if isinstance(request.expires, timedelta) else request.expires
        consistency = "offline" if not up else "memory" if memory else "crash" if quiesce == "never" else "filesystem"
        plain = self._new_description(view, expires, now, {})
        description = plain
        if consistency in way.unrecorded:
            description = self._new_description(view, expires, now, {"consistency": consistency})
        parent = view.current()
        made = Snapshot(
            id="",
            name=request.name or "",
            created=None,
            parent=parent.id if parent else None,
            description=description,
            memory=memory,
            consistency=consistency,
            current=True,
            kind=way.kind,
        )
        others = [dataclasses.replace(one, current=False) for one in view.snapshots]
        action = Create(view.vm, made.name, description, memory, way.kind, quiesce, None if quiesce == "never" else plain)
        return Decision("created", made, parents_first([*others, made]), (action,), tuple(warnings))

    def _way(self, view: View, up: bool) -> Way:
        """Return the first way that can do all that is required and fits the existing snapshots."""
        request = self.request
        needs = ["create"]
        if request.memory:
            needs.append("memory")
        if request.quiesce == "require" and up:
            needs.append("quiesce")
            if request.memory:
                needs.append("memory_and_quiesce")
        ways = [way for way in view.state.ways if request.kind in (None, way.kind)]
        if not ways:
            raise _no_such_kind(view, request.kind)
        refusals = []
        for way in ways:
            other = next((one for one in view.snapshots if one.kind != way.kind), None)
            refusal = next((way.refusals[need] for need in needs if need in way.refusals), None)
            refusal = refusal or way.taken.get(request.name or "")
            if refusal is None and way.deepest is not None and len(view.chain()) >= way.deepest:
                refusal = f"{view.vm} has a chain of {len(view.chain())} snapshots, and at most {way.deepest} are possible; remove some of them first"
            if refusal is None and other is not None:
                refusal = (
                    f"{view.vm} has the {other.kind} snapshot {other}, so no {way.kind} snapshot can be taken, because the two kinds "
                    f"destroy each other; remove the {other.kind} snapshots first"
                )
            if refusal is None:
                return way
            refusals.append(refusal)
        raise Unsupported("; ".join(refusals))

    def _new_description(self, view: View, expires: datetime | None, now: datetime, more: Mapping[str, str]) -> str:
        request = self.request
        label = _label.Label(request.owner, {**self._fields({}, expires), **more})
        signed = request.ours.sign(view.vm, request.name or "", label, at=within(now, request.longest))
        return _label.render(signed, text=request.description or "")

    def _give_way(self, view: View, made: Snapshot) -> None:
        """If several runs took a snapshot with the same name at the same time, the one with the smallest id stays."""
        rivals = [one for one in view.named(made.name) if self.request.ours.wrote(view.vm, one)]
        # Backends number their ids upwards, so a shorter id is smaller.
        first = min(rivals, key=lambda one: (len(one.id), one.id), default=made)
        if first.id != made.id:
            raise LostRace(f"Another run took the snapshot {made} of {view.vm} at the same time")

    def _may_stand_for_ours(self, view: View, found: Snapshot) -> None:
        request = self.request
        if request.fail_if_exists:
            raise SnapshotExists(
                f"{view.vm} already has a snapshot named {found.name!r}; choose another name, or set if_exists=keep"
            )
        why = request.ours.why_not(view.vm, found)
        if why is not None:
            raise Foreign(
                f"The snapshot {found} of {view.vm} does not belong to owner {request.owner!r}: {why}. A foreign snapshot is never taken over by its name; "
                "choose another name"
            )

    def _compare(self, view: View, found: Snapshot) -> None:
        request = self.request
        differs = None
        if request.memory and not found.memory:
            differs = "was taken without memory, but memory=true is set"
        if request.quiesce == "require" and found.consistency not in _QUIET:
            differs = f"is {found.consistency}-consistent, but quiesce=require is set"
        if request.kind is not None and found.kind is None:
            raise _no_such_kind(view, request.kind)
        if request.kind is not None and found.kind != request.kind:
            differs = f"is {found.kind}, but kind={request.kind} is set"
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
        fields = self._fields(before.fields, expires)
        label = self._signed(view, found, _label.Label(before.owner, fields))
        description = found.description
        if request.description is not None and request.description != found.text:
            description = _label.render(label, text=request.description) if found.label else request.description
        if label.as_dict() != before.as_dict():
            problem = _label.parse(description).problem
            if problem:
                raise Foreign(
                    f"The snapshot {found} of {view.vm} cannot be labelled: {problem}. Set description to replace its whole description"
                )
            description = _label.replace(description, label)
        if description == found.description:
            return Decision("exists", found, view.snapshots)
        after = dataclasses.replace(found, description=description)
        predicted = tuple(after if one.id == found.id else one for one in view.snapshots)
        return Decision("updated", after, predicted, (Describe(view.vm, found, description),))

    def _signed(self, view: View, found: Snapshot, label: _label.Label) -> _label.Label:
        """Return the label to write: signed if it is ours and there is a key, unchanged if no field changes."""
        before = found.label
        ours = self.request.ours
        mine = label.owner == ours.name and ours.key is not None
        if before is not None and label.as_dict() == before.as_dict() and (not mine or ours.signed(view.vm, found)):
            return label
        if not mine:
            if before is None or "sig" not in before.fields:
                return label
            if not ours.signed(view.vm, found):
                raise Foreign(
                    f"The label of the snapshot {found} of {view.vm} is signed, and a change would make the signature invalid; set label_key to the key "
                    "it was signed with"
                )
        elif before is None and not label.fields:
            return label
        if found.created is None:
            raise Unsupported(
                f"The label of the snapshot {found} of {view.vm} cannot be signed: the hypervisor does not report its creation time"
            )
        return ours.sign(view.vm, found.name, label, at=exactly(found.created))

    def _fields(self, before: Mapping[str, str], expires: datetime | None) -> dict[str, str]:
        """Return the fields of ``before``, updated with the options."""
        request = self.request
        fields = {**before, **request.labels}
        if expires is not None:
            fields["expires"] = format_time(expires)
        if request.hold is not None:
            fields["hold"] = "yes" if request.hold else ""
            if not request.hold:
                fields["hold_by"] = fields["hold_reason"] = ""
        for option, value in (("hold_by", request.hold_by), ("hold_reason", request.hold_reason)):
            if value is None:
                continue
            if not fields.get("hold"):
                raise InvalidOption(f"{option} is set, but the snapshot is not on hold; set hold=true as well")
            fields[option] = value
        return {key: value for key, value in fields.items() if value != ""}


def _no_such_kind(view: View, kind: str | None) -> Unsupported:
    return Unsupported(f"{view.vm} cannot have snapshots of kind={kind!r}; remove the option kind")
