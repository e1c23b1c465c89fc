# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read many VMs in bulk, and wait for VMs that another operation has locked.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    InvalidOption,
    Locked,
    SafepointError,
    TimedOut,
    VmNotFound,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Target, View, Vm, VmState
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome, refuse_all
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time


class Look:
    """The reading part of one call."""

    def __init__(self, driver: SnapshotDriver, *, lock_timeout: float, secrets: Collection[str] = ()) -> None:
        """``secrets`` are the values that Ansible masks in results."""
        self._driver = driver
        self._lock_timeout = lock_timeout
        self._secrets = secrets

    def find(self, targets: Sequence[Target], deadline: Deadline) -> list[Outcome]:
        """Return the VMs of ``targets`` in the same order; a VM that was not found has an error."""
        outcomes = [Outcome(target) for target in targets]
        refs = [target.ref for target in targets]
        found = in_time("the list of VMs", lambda: self._driver.find(refs), deadline)
        first: dict[str, str] = {}
        for outcome in outcomes:
            vm = found[outcome.target.ref]
            if isinstance(vm, SafepointError):
                outcome.refuse(vm)
                continue
            outcome.vm = vm
            if vm.id in first:
                outcome.refuse(InvalidOption(f"{outcome.target.ref!r} and {first[vm.id]!r} are the same VM; remove one of them"))
            first.setdefault(vm.id, outcome.target.ref)
        return outcomes

    def all(self, deadline: Deadline) -> list[Outcome]:
        """Return all VMs of the endpoint.

        :raises InvalidOption: Ansible would mask a part of the name of a VM.
        """
        vms = in_time("the list of VMs", self._driver.vms, deadline)
        if any(secret in vm.name for vm in vms for secret in self._secrets):
            raise InvalidOption(
                "the name of a VM contains the value of a secret option (password, token_secret or label_key). Ansible masks it in every result, so that "
                "the name would be wrong; change the secret"
            )
        named = collections.Counter(vm.name for vm in vms)
        return [Outcome(Target(vm.name if named[vm.name] == 1 else vm.id), vm) for vm in vms]

    def see(
        self,
        outcomes: Iterable[Outcome],
        deadline: Deadline,
        *,
        wait: bool = True,
        again: bool = False,
        plan: Plan | None = None,
        sizes: bool = False,
    ) -> None:
        """Read the state and the snapshots of the VMs in bulk, and with ``wait`` wait for VMs that another operation has locked.

        An operation that does not touch snapshots, such as a backup, is waited for only with ``again``: when the call is known to write to the VM.

        The ways to take a snapshot are read for VMs on which ``plan`` may take one, the sizes of the snapshots only with ``sizes``.

        :raises SafepointError: nothing could be read.
        """
        read = functools.partial(self._read, deadline=deadline, plan=plan, sizes=sizes)
        waiting = _Waiting(read, [outcome for outcome in outcomes if outcome.vm is not None], wait=wait, again=again)
        if not waiting.left:
            return
        lock = deadline.within(self._lock_timeout)
        try:
            lock.poll("a lock", waiting.look)
        except TimedOut:
            if not waiting.waited or any(outcome.after is None for outcome in waiting.left):
                raise  # there was no answer, so no lock was seen
            waiting.end(lock, option="lock_timeout" if deadline.left() > 0 else "timeout")

    def _read(self, vms: Sequence[Vm], deadline: Deadline, *, plan: Plan | None, sizes: bool) -> dict[str, View | SafepointError]:
        # Snapshots first, then states: if another run is still taking a listed snapshot, the state shows its VM as busy.
        snapshots = in_time("the list of snapshots", lambda: self._driver.snapshots(vms, sizes=sizes), deadline)
        states: dict[str, VmState | SafepointError] = {}
        wanted = {"memory": plan.request.memory, "quiesce": plan.request.quiesce != "never"} if plan else {}
        for ways in (False, True):
            asked = [vm for vm in vms if ways == _may_create(plan, snapshots[vm.id])]
            if asked:
                inspect = functools.partial(self._driver.inspect, asked, ways=ways, **(wanted if ways else {}))
                states.update(in_time("the state of the VMs", inspect, deadline))
        views: dict[str, View | SafepointError] = {}
        for vm in vms:
            state, seen = states[vm.id], snapshots[vm.id]
            if isinstance(state, SafepointError):
                views[vm.id] = state
            elif isinstance(seen, SafepointError):
                views[vm.id] = seen
            else:
                views[vm.id] = View(vm, state, seen)
        return views

    def look_into_images(self, outcomes: Sequence[Outcome], deadline: Deadline) -> None:
        """Check the disk images of the VMs for problems."""
        vms = [one.vm for one in outcomes if one.vm]
        found = in_time("the check of the disk images", lambda: self._driver.look_into_images(vms), deadline)
        for one in outcomes:
            seen = found[one.vm.id] if one.vm else ()
            if isinstance(seen, SafepointError):
                one.refuse(seen)
            else:
                one.findings.extend(seen)

    def configure(
        self,
        outcomes: Sequence[Outcome],
        then: Sequence[tuple[Outcome, Snapshot]],
        deadline: Deadline,
        *,
        again: bool = False,
    ) -> None:
        """Read the configurations in bulk: the present ones, those of the snapshots in ``then``, or with ``again`` those after the work.

        A failure is only a warning.
        """
        wanted: list[tuple[Vm, Snapshot | None]] = [(one.vm, None) for one in outcomes if one.vm]
        wanted += [(one.vm, snapshot) for one, snapshot in then if one.vm]
        if not wanted:
            return
        try:
            found = in_time("the configurations", lambda: self._driver.configurations(wanted), deadline)
        except SafepointError as exc:
            found = {(vm.id, snapshot.id if snapshot else None): exc for vm, snapshot in wanted}
        by_vm = {one.vm.id: one for one in outcomes if one.vm}
        for (vm_id, snapshot_id), read in found.items():
            one = by_vm[vm_id]
            if isinstance(read, SafepointError):
                one.warnings.append(f"A configuration of {one.vm} could not be read: {read}")
            elif snapshot_id is not None:
                one.then[snapshot_id] = read
            elif again:
                one.later = read
            else:
                one.now = read


class _Waiting:
    """VMs that are read until no other operation has locked them."""

    def __init__(
        self,
        read: Callable[[list[Vm]], Mapping[str, View | SafepointError]],
        outcomes: Sequence[Outcome],
        *,
        wait: bool,
        again: bool,
    ) -> None:
        """``wait`` and ``again`` are those of Look.see()."""
        self.left = list(outcomes)
        self.waited = False
        """True if one of them was locked."""
        self._read, self._wait, self._again = read, wait, again
        self._held: set[str] = set()

    def look(self) -> bool | None:
        """Read the VMs that are left. Return None while some must be read again, otherwise True."""
        views = self._read([outcome.vm for outcome in self.left if outcome.vm is not None])
        busy = []
        for outcome in self.left:
            view = views[outcome.vm.id if outcome.vm else ""]
            if isinstance(view, SafepointError):
                outcome.refuse(view)
                continue
            outcome.note_view(view)
            # A VM that was busy is read once more when it is free: a snapshot that was listed may have been removed since.
            if self._wait and view.state.busy and (self._again or not view.state.settled):
                self._held.add(view.vm.id)
                busy.append(outcome)
            elif view.vm.id in self._held:
                self._held.remove(view.vm.id)
                busy.append(outcome)
        self.left, self.waited = busy, self.waited or bool(busy)
        return None if busy else True

    def end(self, lock: Deadline, *, option: str) -> None:
        """Refuse the VMs that are locked. A VM that became free just now is read once more, without waiting."""
        _refuse_held([one for one in self.left if one.vm and one.vm.id in self._held], lock, option=option)
        self.left = [one for one in self.left if one.error is None]
        if not self.left:
            return
        try:
            self.look()
        except SafepointError as exc:
            refuse_all(self.left, exc)
        else:
            _refuse_held(self.left, lock, option=option)


def _refuse_held(outcomes: Sequence[Outcome], lock: Deadline, *, option: str) -> None:
    """Set the error of VMs that are still locked. ``option`` is the option that limited the wait."""
    for one in outcomes:
        holder = (one.after.state.busy if one.after else None) or "another operation"
        one.refuse(
            Locked(
                f"{one.vm} is still locked by {holder} after {lock.seconds:.3g} seconds; try again later, or set a longer {option}"
            )
        )


def without_gone(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Leave out VMs that were deleted after they were listed."""
    return [one for one in outcomes if not isinstance(one.error, VmNotFound)]


def _may_create(plan: Plan | None, seen: Sequence[Snapshot] | SafepointError) -> bool:
    return plan is not None and not isinstance(seen, SafepointError) and plan.may_create(seen)
