# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look: read many VMs in bulk, and wait for those that another operation holds.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    InvalidOption,
    Locked,
    SafepointError,
    TimedOut,
    VmNotFound,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Target, View, Vm, VmState
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome, refuse_all
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time


class Look:
    """The reading part of one call."""

    def __init__(self, driver: SnapshotDriver, *, lock_timeout: float) -> None:
        self._driver = driver
        self._lock_timeout = lock_timeout

    def find(self, targets: Sequence[Target], deadline: Deadline) -> list[Outcome]:
        """The VMs that ``targets`` name, in their order; one that was not found has an error."""
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
                outcome.refuse(
                    InvalidOption(f"{outcome.target.ref!r} and {first[vm.id]!r} are one and the same VM; name it once")
                )
            first.setdefault(vm.id, outcome.target.ref)
        return outcomes

    def all(self, deadline: Deadline) -> list[Outcome]:
        """All VMs of the endpoint."""
        vms = in_time("the list of VMs", self._driver.vms, deadline)
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
        """Read state and snapshots of the VMs in bulk, and ``wait`` for those that another operation holds.

        One that leaves the snapshots alone, such as a backup, is waited for only ``again``, when it is known that something is to be written.

        The ways to take a snapshot are read where ``plan`` may have to take one, and the ``sizes`` of those there are when asked for.

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
                raise  # nothing answered, and no lock was seen
            waiting.end(lock, option="lock_timeout" if deadline.left() > 0 else "timeout")

    def _read(self, vms: Sequence[Vm], deadline: Deadline, *, plan: Plan | None, sizes: bool) -> dict[str, View | SafepointError]:
        # In this order: a snapshot of another run that is listed while it is still being made has its VM busy when that is looked at.
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
        """Have the backend look for what is wrong inside the VMs' disk images."""
        vms = [one.vm for one in outcomes if one.vm]
        found = in_time("a look into the disk images", lambda: self._driver.look_into_images(vms), deadline)
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
        """Read what VMs are made of now and were ``then``, in bulk, or ``again`` after the work. A failure is a warning: everything else goes on."""
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
    """VMs that are looked at until no other operation holds them."""

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
        """Whether one of them was held."""
        self._read, self._wait, self._again = read, wait, again
        self._held: set[str] = set()

    def look(self) -> bool | None:
        """Look at those that are left; None while some are to be looked at again."""
        views = self._read([outcome.vm for outcome in self.left if outcome.vm is not None])
        busy = []
        for outcome in self.left:
            view = views[outcome.vm.id if outcome.vm else ""]
            if isinstance(view, SafepointError):
                outcome.refuse(view)
                continue
            outcome.note_view(view)
            # One that was busy is looked at once more when it is not: what was listed before may have been taken back.
            if self._wait and view.state.busy and (self._again or not view.state.settled):
                self._held.add(view.vm.id)
                busy.append(outcome)
            elif view.vm.id in self._held:
                self._held.remove(view.vm.id)
                busy.append(outcome)
        self.left, self.waited = busy, self.waited or bool(busy)
        return None if busy else True

    def end(self, lock: Deadline, *, option: str) -> None:
        """Refuse those that are held. One that was let go just now is looked at once more, and no longer waited for."""
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
    """Say of VMs that they are still held; a longer ``option`` would have waited longer."""
    for one in outcomes:
        holder = (one.after.state.busy if one.after else None) or "another operation"
        one.refuse(
            Locked(
                f"{one.vm} is still held by {holder} after {lock.seconds:.3g} seconds; try again later, or set a longer {option}"
            )
        )


def without_gone(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One that went away since it was listed is not one of the endpoint's VMs any more."""
    return [one for one in outcomes if not isinstance(one.error, VmNotFound)]


def _may_create(plan: Plan | None, seen: Sequence[Snapshot] | SafepointError) -> bool:
    return plan is not None and not isinstance(seen, SafepointError) and plan.may_create(seen)
