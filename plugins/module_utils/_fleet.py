# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at many VMs, decide for each, act within bounds, look again, and say what was seen.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Create, Delete, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import (
    BackendFailed,
    ConnectionFailed,
    InvalidOption,
    LabelDiffers,
    Locked,
    LostRace,
    NotReached,
    SafepointError,
    SnapshotAmbiguous,
    TimedOut,
    Unverified,
    VmNotFound,
)
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Target, View, Vm, VmState
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome, hold_back, not_started, refuse_all
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan
from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress
from ansible_collections.safepoint.vm.plugins.module_utils._threads import in_time
from ansible_collections.safepoint.vm.plugins.module_utils._work import Bounds, Observer, Work

# What may be spent on reading what is left behind after the call's own time is up.
_LAST_LOOK_SECONDS = 20.0
# How long a run that lost a race may take to remove what it made, and how often one that found both looks again.
_RACE_SECONDS = 5.0
_RACE_PAUSE_SECONDS = 0.25


class Fleet:
    """One call: a driver, the VMs it is about, and the time it has."""

    def __init__(
        self,
        driver: SnapshotDriver,
        bounds: Bounds,
        *,
        now: Callable[[], datetime] | None = None,
        progress: Callable[[Progress], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """``now`` stands for the driver's own clock. ``progress`` is told about each second how far the work is, ``observer`` of each write."""
        self._driver = driver
        self._bounds = bounds
        self._now = now or driver.now
        self._deadline = Deadline(bounds.timeout)
        self._work = Work(driver, bounds, self._deadline, progress=progress, observer=observer)

    def look(self, targets: Sequence[Target] | None, *, drift: bool = False, images: bool = False) -> list[Outcome]:
        """See the VMs, or with None all of the endpoint, in one go; what could not be seen has an error.

        With ``drift`` also what they are and were made of, with ``images`` also what is wrong inside their disk images.

        :raises SafepointError: the endpoint itself failed.
        """
        outcomes = self._all() if targets is None else self._find(targets)
        self._see(outcomes, self._deadline, wait=False, sizes=True)
        if targets is None:
            outcomes = _without_gone(outcomes)
        seen = [one for one in outcomes if one.error is None and one.after]
        if drift:
            self._configure(seen, [(one, snapshot) for one in seen if one.after for snapshot in one.after.snapshots])
        if images:
            self._look_into_images(seen)
        return outcomes

    def apply(self, targets: Sequence[Target] | None, plan: Plan, *, dry_run: bool, drift: bool = False) -> list[Outcome]:
        """Make every VM, or with None all of the endpoint, be as ``plan`` wants it, or say why not. A dry run goes the same way up to the first write.

        With ``drift`` a revert also tells what it does to the configuration of the VM.

        :raises SafepointError: nothing was written, and the reason is none of a single VM.
        """
        plan.check(self._driver)
        outcomes = self._all() if targets is None else self._find(targets)
        self._see(outcomes, self._deadline, wait=not plan.sweeps, plan=plan)
        if targets is None:
            outcomes = _without_gone(outcomes)
        self._settle(outcomes, plan)
        self._wait_for_busy(outcomes, plan)
        if dry_run:
            self._foresee(outcomes)
        refused = next((outcome for outcome in outcomes if outcome.error), None)
        if refused is not None and self._bounds.on_error != "continue":
            hold_back(outcomes, because=refused)
        acting = [outcome for outcome in outcomes if outcome.todo]
        drifting = acting if drift and plan.reverts else []
        self._configure(drifting, [(one, one.decision.snapshot) for one in drifting if one.decision and one.decision.snapshot])
        if dry_run:
            for outcome in outcomes:
                outcome.predict()
            return outcomes
        self._act(acting, plan)
        self._configure(drifting, [], again=True)
        for outcome in outcomes:
            outcome.conclude()
        return outcomes

    # look

    def _find(self, targets: Sequence[Target]) -> list[Outcome]:
        outcomes = [Outcome(target) for target in targets]
        refs = [target.ref for target in targets]
        found = in_time("the list of VMs", lambda: self._driver.find(refs), self._deadline)
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

    def _all(self) -> list[Outcome]:
        vms = in_time("the list of VMs", self._driver.vms, self._deadline)
        return [Outcome(Target(vm.name), vm) for vm in vms]

    def _see(
        self, outcomes: Iterable[Outcome], deadline: Deadline, *, wait: bool = True, plan: Plan | None = None, sizes: bool = False
    ) -> None:
        """Read state and snapshots of the VMs in bulk, and ``wait`` for those that somebody else holds.

        The ways to take a snapshot are read where ``plan`` may have to take one, and the ``sizes`` of those there are when asked for.

        :raises SafepointError: nothing could be read.
        """
        waiting = [outcome for outcome in outcomes if outcome.vm is not None]
        lock = deadline.within(self._bounds.lock_timeout)
        held: set[str] = set()

        def probe() -> bool | None:
            nonlocal waiting
            views = self._read([outcome.vm for outcome in waiting if outcome.vm is not None], deadline, plan=plan, sizes=sizes)
            busy = []
            for outcome in waiting:
                view = views[outcome.vm.id if outcome.vm else ""]
                if isinstance(view, SafepointError):
                    outcome.refuse(view)
                    continue
                outcome.after = view
                outcome.seen_again = outcome.error is not None
                if outcome.decision is None:
                    outcome.before = view
                # One that was busy is looked at once more when it is not: what was listed meanwhile may have been taken back.
                if wait and view.state.busy:
                    held.add(view.vm.id)
                    busy.append(outcome)
                elif view.vm.id in held:
                    held.remove(view.vm.id)
                    busy.append(outcome)
            waiting = busy
            return None if busy else True

        if not waiting:
            return
        try:
            lock.poll("a lock", probe)
        except TimedOut:
            if deadline.left() <= 0:
                raise
            for outcome in waiting:
                holder = (outcome.after.state.busy if outcome.after else None) or "another operation"
                outcome.refuse(
                    Locked(
                        f"{outcome.vm} is still held by {holder} after {lock.seconds:g} seconds; try again later, or set a longer lock_timeout"
                    )
                )

    def _read(self, vms: Sequence[Vm], deadline: Deadline, *, plan: Plan | None, sizes: bool) -> dict[str, View | SafepointError]:
        # In this order: a snapshot of somebody else that is listed while it is still being made has its VM busy when that is looked at.
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

    def _configure(self, outcomes: Sequence[Outcome], then: Sequence[tuple[Outcome, Snapshot]], *, again: bool = False) -> None:
        """Read what VMs are made of now and were ``then``, in bulk. That this fails does not keep anything else from being done."""
        wanted: list[tuple[Vm, Snapshot | None]] = [(one.vm, None) for one in outcomes if one.vm]
        wanted += [(one.vm, snapshot) for one, snapshot in then if one.vm]
        if not wanted:
            return
        deadline = Deadline(max(self._deadline.left(), _LAST_LOOK_SECONDS)) if again else self._deadline
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

    def _look_into_images(self, outcomes: Sequence[Outcome]) -> None:
        vms = [one.vm for one in outcomes if one.vm]
        found = in_time("a look into the disk images", lambda: self._driver.look_into_images(vms), self._deadline)
        for one in outcomes:
            seen = found[one.vm.id] if one.vm else ()
            if isinstance(seen, SafepointError):
                one.refuse(seen)
            else:
                one.findings.extend(seen)

    # decide

    def _settle(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Decide for all. Where two snapshots have the name, another run may be about to take its own back: look again for a moment."""
        seen = [one.after for one in outcomes if one.error is None and one.after is not None]
        plan.survey(seen, vms=len(outcomes), now=self._now(), driver=self._driver)
        for outcome in outcomes:
            self._decide(outcome, plan)
        moment = self._deadline.within(_RACE_SECONDS if plan.creates else 0.0)
        while moment.left() > 0:
            unclear = [one for one in outcomes if isinstance(one.error, SnapshotAmbiguous)]
            if not unclear:
                return
            self._deadline.within(_RACE_PAUSE_SECONDS).sleep()
            for one in unclear:
                one.error = None
            self._see(unclear, self._deadline, plan=plan)
            for one in unclear:
                self._decide(one, plan)

    def _wait_for_busy(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Where a plan has something to do on VMs that somebody else holds: wait for those, and decide about all anew from what is there then."""
        busy = [one for one in outcomes if one.todo and one.after and one.after.state.busy]
        if not plan.sweeps or not busy:
            return
        for one in outcomes:
            one.forget()
        self._see(busy, self._deadline, plan=plan)
        self._settle(outcomes, plan)

    def _decide(self, outcome: Outcome, plan: Plan) -> None:
        if outcome.error is not None or outcome.after is None:
            return
        try:
            _expect_label(outcome.after, outcome.target)
            decision = plan.decide(
                outcome.after, outcome.target.snapshot_id, now=self._now(), newest_only=self._driver.revert_needs_newest
            )
        except SafepointError as exc:
            outcome.refuse(exc)
            return
        outcome.decision = decision
        outcome.warnings.extend(decision.warnings)
        outcome.todo.extend(decision.actions)

    def _foresee(self, outcomes: Sequence[Outcome]) -> None:
        """Refuse what a real run would be refused by the backend."""
        creating = {one.vm.id: one for one in outcomes if one.vm and any(isinstance(action, Create) for action in one.todo)}
        if not creating:
            return
        vms = [one.vm for one in creating.values() if one.vm]
        for vm_id, error in in_time("the check", lambda: self._driver.foresee(vms), self._deadline).items():
            creating[vm_id].refuse(error)

    # act

    def _act(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Do what was decided, settle races, confirm by a second look, undo where that is wanted."""
        self._work.perform(outcomes)
        raced = [one for one in outcomes if one.raced]
        failed = next((one for one in outcomes if one.error), None)
        if failed is not None and self._bounds.on_error != "continue":
            refuse_all(raced, not_started(failed))
        else:
            self._again(raced, plan)
        losers = self._confirm([one for one in outcomes if one.error is None], plan)
        self._give_way(losers, plan)
        failed = next((one for one in outcomes if one.error), None)
        if failed is None:
            return
        if self._bounds.on_error == "undo" and plan.creates:
            self._find_made(outcomes)
            self._work.undo(outcomes, because=failed)
        try:
            self._see([one for one in outcomes if one.started], Deadline(_LAST_LOOK_SECONDS), wait=False)
        except SafepointError as exc:
            for one in outcomes:
                if one.started:
                    one.warnings.append(f"What is left on {one.vm} could not be read: {exc}")

    def _find_made(self, outcomes: Sequence[Outcome]) -> None:
        """What was created although the hypervisor, or the way to it, said otherwise.

        Only where that is possible: after a refusal, what is there now is another run's.
        """
        maybe = [
            one
            for one in outcomes
            if isinstance(one.error, (BackendFailed, ConnectionFailed))
            and not isinstance(one.error, NotReached)
            and isinstance(one.started, Create)
            and not one.made
            and not one.in_flight
        ]
        try:
            self._see(maybe, Deadline(_LAST_LOOK_SECONDS), wait=False)
        except SafepointError:
            return  # the last look of all says so
        for one in maybe:
            if one.before and one.after and one.vm and isinstance(one.started, Create):
                new = [
                    seen
                    for seen in one.after.named(one.started.name)
                    if one.before.by_id(seen.id) is None
                    and seen.description in (one.started.description, one.started.unquiesced_description)
                ]
                one.made = new[0].id if len(new) == 1 else None

    def _again(self, raced: Sequence[Outcome], plan: Plan) -> None:
        """Look, decide and act once more where somebody else was faster."""
        if not raced:
            return
        try:
            self._see(raced, self._deadline, plan=plan)
            self._settle(raced, plan)
        except SafepointError as exc:
            refuse_all(raced, exc)
        self._work.perform(raced)

    def _give_way(self, losers: Sequence[Outcome], plan: Plan) -> None:
        """Take back what was created although another run was first, and go by what that run has made."""
        for one in losers:
            if one.vm and one.decision and one.decision.snapshot:
                one.todo.append(Delete(one.vm, one.decision.snapshot))
        self._work.perform(losers)
        lost = [one for one in losers if one.error is None]
        for one in lost:
            one.lose()
        self._again(lost, plan)
        self._confirm([one for one in lost if one.error is None], plan)

    def _confirm(self, outcomes: Sequence[Outcome], plan: Plan) -> list[Outcome]:
        """Read again what was written; write once more where it differs from what was wanted, and then it must be right.

        Returns those that another run was faster on.
        """
        losers: list[Outcome] = []
        written = [one for one in outcomes if one.done]
        for last in (False, True):
            try:
                # What the work took of the time must not make a success look like a failure.
                self._see(written, Deadline(max(self._deadline.left(), _LAST_LOOK_SECONDS)), wait=False)
            except SafepointError as exc:
                refuse_all(written, exc)
                return losers
            for outcome in written:
                if outcome.error is None and outcome.after and outcome.decision:
                    try:
                        outcome.todo.extend(plan.confirm(outcome.after, outcome.decision))
                    except LostRace:
                        losers.append(outcome)
                    except SafepointError as exc:
                        outcome.refuse(exc)
            written = [one for one in written if one.todo]
            if not written:
                break
            if last:
                refuse_all(written, Unverified("The hypervisor accepted the description twice, and does not show it"))
                break
            self._work.perform(written)
        return losers


def _without_gone(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One that went away since it was listed is not one of the endpoint's VMs any more."""
    return [one for one in outcomes if not isinstance(one.error, VmNotFound)]


def _may_create(plan: Plan | None, seen: Sequence[Snapshot] | SafepointError) -> bool:
    return plan is not None and not isinstance(seen, SafepointError) and plan.may_create(seen)


def _expect_label(view: View, target: Target) -> None:
    snapshot = view.by_id(target.snapshot_id or "")
    if snapshot is None:
        return
    fields = snapshot.label.as_dict() if snapshot.label else {}
    differing = [key for key, value in target.labels.items() if fields.get(key, "") != value]
    if differing:
        says = ", ".join(f"{key}={fields[key]}" if fields.get(key) else f"no {key}" for key in differing)
        raise LabelDiffers(f"The label of the snapshot {snapshot} of {view.vm} is not as it was expected to be; it has {says}")
