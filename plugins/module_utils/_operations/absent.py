# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A snapshot is not there. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import Unsupported, Unverified
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, View, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Delete, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import (
    Decision,
    Imagine,
    Plan,
    Request,
    names,
    refuse_held,
    refuse_obstacle,
    still_there,
    why_not_deleted,
    without,
)


def _unchanged(_vm: Vm, snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
    return snapshots


class Absent(Plan):
    """Ensure that the snapshot does not exist; its children stay, or are removed too."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._imagine: Imagine = _unchanged

    def survey(self, views: Sequence[View], *, vms: int, now: datetime, driver: SnapshotDriver) -> None:
        self._imagine = driver.imagine

    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        found = self.find(view, snapshot_id, now)
        if found is None:
            return Decision("absent", None, view.snapshots)
        self.refuse_foreign(view, found, snapshot_id)
        refuse_obstacle(view, found, "remove", "It cannot be removed")
        refuse_held(view, found)
        below = view.descendants(found) if self.request.children == "remove" else []
        self.refuse_others(view, below, "children=remove")
        # Leaves first, and the branch of the VM's present state last: libvirt 11.3 loses the other branches of its parent.
        chain = view.chain()
        actions: list[Action] = []
        left: Sequence[Snapshot] = view.snapshots
        predicted = view.snapshots
        below.reverse()
        for one in [*sorted(below, key=lambda one: one.id in chain), found]:
            # Check the state after the previous removals: the snapshot may be the current one by then.
            why = why_not_deleted(one.id, left)
            if why is not None:
                raise Unsupported(f"It cannot be removed{'' if below else ' alone'}: the snapshot {one} of {view.vm} {why}")
            actions.append(Delete(view.vm, one))
            predicted = without(predicted, one)
            left = self._imagine(view.vm, without(tuple(left), one))
        return Decision("removed", found, predicted, tuple(actions))

    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        gone = [action.snapshot for action in done.actions if isinstance(action, Delete)]
        left = still_there(view, gone)
        if left:
            raise Unverified(f"The hypervisor reported success, but {view.vm} still lists the snapshot {names(left)}")
        return ()
