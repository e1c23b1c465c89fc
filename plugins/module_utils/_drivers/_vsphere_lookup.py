# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look up at a VM whether a write was done whose answer was lost.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._driver import Create, Describe, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_library import Session, vim
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._vsphere_read import read_snapshots, retrieve_each
from ansible_collections.safepoint.vm.plugins.module_utils._errors import Unverified, VmNotFound
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Vm


@dataclasses.dataclass(frozen=True)
class Seen:
    """A VM after an answer was lost."""

    power: str
    snapshots: Sequence[Snapshot]
    running: str | None
    """A task that has begun on the VM since we looked at it first, and has not ended; as people are told of it."""
    succeeded: Collection[str]
    """The kinds (descriptionId) of those that have begun since, and ended well."""
    has_left: bool
    """The snapshot that was the current one when we looked at the VM last is still there, and is not the current one any more."""

    def by_id(self, snapshot_id: str) -> Snapshot | None:
        return next((one for one in self.snapshots if one.id == snapshot_id), None)

    def created(self, action: Create, description: str, before: Collection[str]) -> str | None:
        """The id of the snapshot that was made, or None.

        :raises Unverified: another run has made one that is called and described alike.
        """
        alike = [one for one in self.snapshots if one.name == action.name and one.description == description]
        new = [one.id for one in alike if one.id not in before]
        if len(new) > 1:
            raise Unverified(
                f"The answer to {action} was lost, and there are {len(new)} such snapshots now ({', '.join(new)}), of which others are another run's; "
                "remove those that are too many by their ids"
            )
        return new[0] if new else None

    def is_reverted(self, action: Revert) -> bool:
        """Whether a revert has worked, and to this snapshot, unless that was removed since."""
        target = self.by_id(action.snapshot.id)
        if any("revert" in kind.lower() for kind in self.succeeded):
            return target is None or target.current
        # vCenter may have forgotten the task. A new snapshot makes itself the current one, a removal its parent; a revert alone does this.
        return self.has_left and target is not None and target.current

    def is_described(self, action: Describe) -> bool:
        """Whether the snapshot has the description."""
        found = self.by_id(action.snapshot.id)
        return found is not None and found.description == action.description


class Lookup:
    """What was known of VMs and tasks before, and the look afterwards."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.known: set[str] = set()
        """The ids of tasks that were there when the VM was looked at, or that are ours."""
        self.over: set[str] = set()
        """The ids of tasks that have ended. They are never used again, and vCenter lists them with their VM for ten minutes more."""
        self._snapshots: dict[str, frozenset[str]] = {}
        self._current: dict[str, frozenset[str]] = {}

    def note_snapshots(self, seen: Mapping[str, Sequence[Snapshot]]) -> None:
        """These are the snapshots of VMs, by the ids of the VMs."""
        for vm_id, snapshots in seen.items():
            self._snapshots[vm_id] = frozenset(one.id for one in snapshots)
            self._current[vm_id] = frozenset(one.id for one in snapshots if one.current)

    def snapshots_of(self, vm: Vm) -> frozenset[str]:
        """The ids of the snapshots that the VM had when it was last looked at."""
        return self._snapshots.get(vm.id, frozenset())

    def look(self, vm: Vm) -> Seen:
        """See the VM and what has been done on it since. Two requests, of which the engine makes none where no answer is lost.

        :raises SafepointError: it cannot be seen.
        """
        paths = ["runtime.powerState", "snapshot", "recentTask"]
        machine = vim.VirtualMachine(vm.id, self._session.stub)
        seen = retrieve_each(self._session, f"look at {vm}", [machine], {vim.VirtualMachine: paths}).get(vm.id)
        if seen is None:
            raise VmNotFound(f"The VM {vm} ({vm.id}) does not exist any more")
        new = [task for task in seen.get("recentTask") or () if task._moId not in self.known]
        tasks = retrieve_each(self._session, f"look at {vm}", new, {vim.Task: ["info.state", "info.descriptionId"]})
        states = {moid: (str(one.get("info.state")), str(one.get("info.descriptionId"))) for moid, one in tasks.items()}
        running = next(
            (f"the task {moid} ({kind})" for moid, (state, kind) in states.items() if state in ("queued", "running")), None
        )
        snapshots = read_snapshots(seen)
        before = self._current.get(vm.id, frozenset())
        return Seen(
            str(seen.get("runtime.powerState")),
            snapshots,
            running,
            {kind for state, kind in states.values() if state == "success"},
            any(one.id in before and not one.current for one in snapshots),
        )
