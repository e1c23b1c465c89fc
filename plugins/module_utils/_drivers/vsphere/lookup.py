# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""After a lost answer, check the VM for the effect of the write.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import Unverified, VmNotFound
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, Describe, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.parse import read_snapshots, retrieve_each
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.vsphere.session import Session, vim


@dataclasses.dataclass(frozen=True)
class Seen:
    """The state of a VM after a lost answer."""

    power: str
    snapshots: Sequence[Snapshot]
    running: str | None
    """A task, in words, that was started on the VM after our first read and has not ended."""
    succeeded: Collection[str]
    """The descriptionIds of tasks that were started after our first read and have succeeded."""
    has_left: bool
    """True if the snapshot that was current at the last read still exists but is no longer the current one."""

    def by_id(self, snapshot_id: str) -> Snapshot | None:
        return next((one for one in self.snapshots if one.id == snapshot_id), None)

    def created(self, action: Create, description: str, before: Collection[str]) -> str | None:
        """Return the id of the new snapshot, or None.

        :raises Unverified: another run has created a snapshot with the same name and description.
        """
        alike = [one for one in self.snapshots if one.name == action.name and one.description == description]
        new = [one.id for one in alike if one.id not in before]
        if len(new) > 1:
            raise Unverified(
                f"The answer to {action} was lost, and there are now {len(new)} such snapshots ({', '.join(new)}), some of them from another run; "
                "remove the duplicates by id"
            )
        return new[0] if new else None

    def is_reverted(self, action: Revert) -> bool:
        """Return True if a revert succeeded, and the snapshot is the current one or was removed since."""
        target = self.by_id(action.snapshot.id)
        if any("revert" in kind.lower() for kind in self.succeeded):
            return target is None or target.current
        # vCenter may no longer have the task. A new snapshot becomes the current one, after a removal its parent does; only a revert leaves it like this.
        return self.has_left and target is not None and target.current

    def is_described(self, action: Describe) -> bool:
        """Return True if the snapshot has the new description."""
        found = self.by_id(action.snapshot.id)
        return found is not None and found.description == action.description


class Lookup:
    """The tasks and snapshots that were known before a write, for comparison after it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.known: set[str] = set()
        """The ids of tasks that existed when the VM was read, or that are our own."""
        self.over: set[str] = set()
        """The ids of tasks that have ended. vCenter lists them with their VM for ten more minutes; ids are never reused."""
        self._snapshots: dict[str, frozenset[str]] = {}
        self._current: dict[str, frozenset[str]] = {}

    def note_snapshots(self, seen: Mapping[str, Sequence[Snapshot]]) -> None:
        """Remember the snapshots of VMs, by VM id."""
        for vm_id, snapshots in seen.items():
            self._snapshots[vm_id] = frozenset(one.id for one in snapshots)
            self._current[vm_id] = frozenset(one.id for one in snapshots if one.current)

    def snapshots_of(self, vm: Vm) -> frozenset[str]:
        """Return the ids of the VM's snapshots at the last read."""
        return self._snapshots.get(vm.id, frozenset())

    def look(self, vm: Vm) -> Seen:
        """Read the VM and its new tasks. Two requests, only after a lost answer.

        :raises SafepointError: the VM cannot be read.
        """
        paths = ["runtime.powerState", "snapshot", "recentTask"]
        machine = vim.VirtualMachine(vm.id, self._session.stub)
        seen = retrieve_each(self._session, f"read {vm}", [machine], {vim.VirtualMachine: paths}).get(vm.id)
        if seen is None:
            raise VmNotFound(f"The VM {vm} ({vm.id}) does not exist any more")
        new = [task for task in seen.get("recentTask") or () if task._moId not in self.known]
        tasks = retrieve_each(self._session, f"read the tasks of {vm}", new, {vim.Task: ["info.state", "info.descriptionId"]})
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
