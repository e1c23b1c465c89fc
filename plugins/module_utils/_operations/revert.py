# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM is back at a snapshot. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import NewerSnapshots, Unsupported, Unverified
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, View
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Delete, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Decision, Plan, names, refuse_obstacle, without

_LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


class Reverted(Plan):
    """Revert the VM to the snapshot."""

    reverts = True

    def find(self, view: View, snapshot_id: str | None, now: datetime) -> Snapshot | None:
        if not self.request.select or snapshot_id is not None:
            return super().find(view, snapshot_id, now)
        request = self.request
        meant = [
            (one.created or _LONG_AGO, place, one)
            for place, one in enumerate(view.snapshots)
            if request.matching.lets_through(one, now) and (request.foreign_allowed or request.ours.owns(view.vm, one))
        ]
        # Of two snapshots of the same second, the later one in the list is the child, or they are siblings.
        return max(meant)[2] if meant else None

    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        found = self.find(view, snapshot_id, now)
        if found is None:
            raise self.missing(view, snapshot_id)
        self.refuse_foreign(view, found, snapshot_id)
        refuse_obstacle(view, found, "revert", "The VM cannot be reverted")
        if self.request.power == "off" and "power_off" in view.state.refusals:
            raise Unsupported(view.state.refusals["power_off"])
        newer = view.descendants(found)
        if newer and newest_only and not self.request.discard_newer:
            raise NewerSnapshots(
                f"{view.vm} can be reverted to its newest snapshot only, and {names(newer)} came after {found}; set discard_newer=true to remove them"
            )
        predicted = tuple(dataclasses.replace(one, current=one.id == found.id) for one in view.snapshots)
        deletes: list[Action] = []
        if self.request.discard_newer:
            self.refuse_others(view, newer, "discard_newer")
            for one in reversed(newer):
                deletes.append(Delete(view.vm, one))
                predicted = without(predicted, one)
        revert = Revert(view.vm, found, self.request.power)
        # If the backend allows it, snapshots are deleted only after the revert has succeeded.
        actions = [*deletes, revert] if newest_only else [revert, *deletes]
        warnings = [self._starts_again(view)] if self._comes_back_off(found) and view.state.started_by else []
        return Decision("reverted", dataclasses.replace(found, current=True), predicted, tuple(actions), tuple(warnings))

    def _comes_back_off(self, found: Snapshot) -> bool:
        return self.request.power == "as_snapshot" and not found.memory

    def _starts_again(self, view: View) -> str:
        return (
            f"{view.vm} is off after the revert, but {view.state.started_by} starts it automatically, possibly before this call ends; set power=on to "
            "have it running, or power=off to keep it off"
        )

    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        if done.snapshot is None:
            return ()
        target = view.by_id(done.snapshot.id)
        # If another run has removed the snapshot since, the VM was still reverted to it.
        if target is not None and not self._is_back_at(view, target, done):
            raise Unverified(
                f"The hypervisor reported the revert as done, but {done.snapshot} is not the current snapshot of {view.vm}"
            )
        wanted = {
            "on": ("running",),
            "off": ("off",),
            # A suspended VM (vSphere) is suspended after the revert, also if the snapshot has no memory.
            "as_snapshot": ("running", "paused") if done.snapshot.memory else ("off", "paused"),
        }
        if self._comes_back_off(done.snapshot) and view.state.started_by:
            return ()
        if view.state.power not in wanted[self.request.power]:
            raise Unverified(
                f"{view.vm} was reverted to {done.snapshot}, but it is {view.state.power} although power={self.request.power} is set"
            )
        return ()

    def _is_back_at(self, view: View, target: Snapshot, done: Decision) -> bool:
        """Return True if the VM's present state descends from ``target``, directly or through snapshots that other runs took since the decision."""
        if target.current:
            return True
        known = {one.id for one in done.predicted}
        current = view.current()
        return current is not None and current.id not in known and target.id in view.chain()
