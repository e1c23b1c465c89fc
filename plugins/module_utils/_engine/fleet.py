# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The engine: read many VMs, decide for each, run the actions in parallel, read the VMs again, and report the result.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    BackendFailed,
    ConnectionFailed,
    Interrupted,
    LabelDiffers,
    LostRace,
    NotReached,
    NotStarted,
    SafepointError,
    SnapshotAmbiguous,
    TimedOut,
    Unsupported,
    Unverified,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target, View
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Delete, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds, Work
from ansible_collections.safepoint.vm.plugins.module_utils._engine.jobs import Jobs, Observer
from ansible_collections.safepoint.vm.plugins.module_utils._engine.look import Look, without_gone
from ansible_collections.safepoint.vm.plugins.module_utils._engine.phases import Phases
from ansible_collections.safepoint.vm.plugins.module_utils._engine.progress import Progress
from ansible_collections.safepoint.vm.plugins.module_utils._engine.undo import Undo
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome, hold_back, not_started, refuse_all
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import LOOK_SECONDS, Stop, Stopped
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import in_time

# How long a run that lost a race may take to remove its snapshot, and the pause between two reads of a run that sees both snapshots.
_RACE_SECONDS = 5.0
_RACE_PAUSE_SECONDS = 0.25
# Maximum number of writes of a description that other runs keep changing.
_MOST_WRITES = 8
# Another run may be about to remove a snapshot that is younger than this, because it lost a race.
_YOUNG = timedelta(seconds=60)
# How long the state after a revert is read again if it is not as expected and no operation is seen on the VM.
_PASSING_SECONDS = 3.0


class Fleet:
    """The engine of one call: a driver, limits and a deadline."""

    def __init__(
        self,
        driver: SnapshotDriver,
        bounds: Bounds,
        *,
        deadline: Deadline | None = None,
        now: Callable[[], datetime] | None = None,
        progress: Callable[[Progress], None] | None = None,
        observer: Observer | None = None,
        stop: Stop | None = None,
        secrets: Collection[str] = (),
    ) -> None:
        """``deadline``: set if the timeout of ``bounds`` has started earlier, before the login. ``now`` replaces the driver's clock.
        ``progress`` is called with the progress of the work, ``observer`` before and after each write. ``secrets`` are the values that Ansible masks.

        ``stop`` records signals. Before the first write, a signal raises Stopped; after it, each VM still gets its result.
        """
        self._stop = stop or Stop()
        self._driver = driver
        self._bounds = bounds
        self._now = now or driver.now
        driver.lock_timeout = bounds.lock_timeout
        driver.stop = self._stop
        self._phases = Phases(driver, deadline or Deadline(bounds.timeout))
        self._deadline = self._phases.work
        self._look = Look(driver, lock_timeout=bounds.lock_timeout, secrets=secrets)
        self._jobs = Jobs(driver, at_once=bounds.max_parallel, progress=progress, observer=observer, stop=self._stop)
        self._work = Work(self._jobs, bounds, self._deadline)

    def look(self, targets: Sequence[Target] | None, *, drift: bool = False, images: bool = False) -> list[Outcome]:
        """Read the given VMs, or for None all VMs of the endpoint. A VM that could not be read has an error.

        With ``drift`` also read the configurations, present and of each snapshot; with ``images`` also check the disk images.

        :raises SafepointError: the endpoint itself failed.
        """
        outcomes = self._find(targets)
        self._look.see(outcomes, self._deadline, wait=False, sizes=True)
        if targets is None:
            outcomes = without_gone(outcomes)
        seen = [one for one in outcomes if one.error is None and one.after]
        if drift:
            then = [(one, snapshot) for one in seen if one.after for snapshot in one.after.snapshots]
            self._look.configure(seen, then, self._deadline)
        if images:
            self._look.look_into_images(seen, self._deadline)
        return outcomes

    def apply(self, targets: Sequence[Target] | None, plan: Plan, *, dry_run: bool, drift: bool = False) -> list[Outcome]:
        """Run ``plan`` on the given VMs, or for None on all VMs of the endpoint. A dry run does the same up to the first write.

        With ``drift``, a revert also reports its changes to the configuration of the VM.

        :raises SafepointError: nothing was written, and the reason is not a single VM.
        """
        plan.check(self._driver)
        outcomes = self._find(targets)
        self._look.see(outcomes, self._deadline, wait=not plan.sweeps, plan=plan)
        if targets is None:
            outcomes = without_gone(outcomes)
        self._settle(outcomes, plan)
        self._wait_for_busy(outcomes, plan)
        if dry_run:
            self._foresee(outcomes)
        refused = next((outcome for outcome in outcomes if outcome.error), None)
        if refused is not None and self._bounds.on_error != "continue":
            hold_back(outcomes, because=refused)
        acting = [outcome for outcome in outcomes if outcome.todo]
        drifting = acting if drift and plan.reverts else []
        then = [(one, one.decision.snapshot) for one in drifting if one.decision and one.decision.snapshot]
        self._look.configure(drifting, then, self._deadline)
        if dry_run:
            for outcome in outcomes:
                outcome.predict()
            return outcomes
        self._act(acting, plan, drifting)
        for outcome in outcomes:
            outcome.conclude()
        return outcomes

    # decide

    def _find(self, targets: Sequence[Target] | None) -> list[Outcome]:
        return self._look.all(self._deadline) if targets is None else self._look.find(targets, self._deadline)

    def _settle(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Decide for all VMs. If two snapshots have the name, another run may be about to remove its own: read these VMs again for some seconds."""
        seen = [one.after for one in outcomes if one.error is None and one.after is not None]
        plan.survey(seen, vms=len(outcomes), now=self._now(), driver=self._driver)
        for outcome in outcomes:
            self._decide(outcome, plan)
        moment = self._deadline.within(_RACE_SECONDS)
        while moment.left() > 0:
            unclear = [one for one in outcomes if isinstance(one.error, SnapshotAmbiguous) and self._is_in_passing(one, plan)]
            if not unclear:
                return
            self._deadline.within(_RACE_PAUSE_SECONDS).sleep()
            for one in unclear:
                one.error = None
            self._look.see(unclear, self._deadline, plan=plan)
            for one in unclear:
                self._decide(one, plan)

    def _is_in_passing(self, outcome: Outcome, plan: Plan) -> bool:
        """Return True if one of the snapshots with the same name is so new that a run that lost a race may be about to remove it."""
        alike = outcome.after.named(plan.request.name or "") if outcome.after else []
        return any(one.created is None or self._now() - one.created < _YOUNG for one in alike)

    def _wait_for_busy(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Wait for VMs that have actions and are locked by another operation; then decide again for all VMs."""
        busy = [one for one in outcomes if one.todo and one.after and one.after.state.busy]
        if not busy:
            return
        for one in outcomes:
            one.forget()
        self._look.see(busy, self._deadline, again=True, plan=plan)
        self._settle(outcomes, plan)

    def _decide(self, outcome: Outcome, plan: Plan) -> None:
        if outcome.error is not None or outcome.after is None:
            return
        try:
            _expect_label(outcome.after, outcome.target)
            decision = plan.decide(
                outcome.after, outcome.target.snapshot_id, now=self._now(), newest_only=self._driver.revert_needs_newest
            )
            if decision.actions and "write" in outcome.after.state.refusals:
                raise Unsupported(outcome.after.state.refusals["write"])
        except SafepointError as exc:
            outcome.refuse(exc)
            return
        outcome.decision = decision
        outcome.warnings.extend(decision.warnings)
        outcome.todo.extend(decision.actions)

    def _foresee(self, outcomes: Sequence[Outcome]) -> None:
        """In a dry run: refuse the actions that the backend would refuse in a real run."""
        acting = {one.vm.id: one for one in outcomes if one.vm and one.todo}
        actions = [action for one in acting.values() for action in one.todo]
        if not actions:
            return
        try:
            foreseen = in_time("the check", lambda: self._driver.foresee(actions), self._deadline)
        except TimedOut as exc:
            # As after waiting for a locked VM: that VM has its own error, and the others would not have been started.
            held = next((one for one in outcomes if one.error), None)
            if held is not None and self._bounds.on_error != "continue":
                hold_back(outcomes, because=held)
            refuse_all(acting.values(), exc)
            return
        for vm_id, error in foreseen.items():
            acting[vm_id].refuse(error)

    # act

    def _act(self, outcomes: Sequence[Outcome], plan: Plan, drifting: Sequence[Outcome]) -> None:
        """Run the actions, then read the configurations of the VMs in ``drifting``. After a signal, report what is known.

        From the first write on, a signal raises nothing out of this method or after it, so that each VM gets its result.
        """
        confirmed = False
        try:
            self._carry_out(outcomes, plan)
            confirmed = True
            if drifting:
                self._look.configure(drifting, [], self._phases.last_look(), again=True)
            self._stop.keep()
        except Stopped:
            if not confirmed:
                self._end_early(outcomes, plan)
            for one in drifting:
                one.warnings.append(
                    f"The configuration of {one.vm} was not read again: the module was stopped by {self._stop.by}"
                )

    def _end_early(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """After a signal: read the changed VMs once, with a short time limit, and write nothing more."""
        stopped = f"The module was stopped by {self._stop.by}"
        began = [one for one in outcomes if one.started]
        for one in outcomes:
            if one.error is None and not one.done:
                one.refuse(NotStarted(f"Nothing was done on {one.vm}: {stopped}"))
        try:
            self._look.see(began, Deadline(LOOK_SECONDS), wait=False)
        except SafepointError as exc:
            for one in began:
                one.warnings.append(f"The state of {one.vm} after the failure could not be read: {exc}")
                one.refuse(Interrupted(f"{stopped} before the result on {one.vm} could be checked"))
        for one in began:
            if one.error is None:
                _confirm_or_refuse(one, plan)
            if one.error is None and one.todo:
                one.refuse(Interrupted(f"{stopped} before it could {one.todo[0]}"))

    def _carry_out(self, outcomes: Sequence[Outcome], plan: Plan) -> None:
        """Run the actions, resolve races with other runs, confirm the results by reading the VMs again, and undo after a failure."""
        self._work.perform(outcomes)
        raced = [one for one in outcomes if one.again]
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
            deadline = self._phases.undo()
            self._find_made(outcomes, deadline)
            Undo(self._jobs, deadline).perform(outcomes, because=failed)
        try:
            self._look.see([one for one in outcomes if one.started], self._phases.last_look(), wait=False)
        except SafepointError as exc:
            for one in outcomes:
                if one.started:
                    one.warnings.append(f"The state of {one.vm} after the failure could not be read: {exc}")

    def _find_made(self, outcomes: Sequence[Outcome], deadline: Deadline) -> None:
        """Find snapshots that this call created although the hypervisor or the connection reported an error.

        Only after errors with which that is possible: after a refusal, a new snapshot belongs to another run.
        """
        maybe = [
            one
            for one in outcomes
            if isinstance(one.error, (BackendFailed, ConnectionFailed, Unverified))
            and not isinstance(one.error, NotReached)
            and isinstance(one.started, Create)
            and not one.made
            and not one.in_flight
        ]
        try:
            self._look.see(maybe, deadline, wait=False)
        except SafepointError:
            return  # the last look reports it
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
        """Read, decide and act again for VMs on which another run was first."""
        while raced:
            for one in raced:
                one.again = False
            try:
                self._look.see(raced, self._deadline, plan=plan)
                self._settle(raced, plan)
            except SafepointError as exc:
                refuse_all(raced, exc)
            self._work.perform(raced)
            raced = [one for one in raced if one.again]

    def _give_way(self, losers: Sequence[Outcome], plan: Plan) -> None:
        """Remove the snapshots of this call on VMs where another run was first, then decide again, with the snapshot of that run.

        If that snapshot was removed since, the decision is to create again, and another run may again be first.
        """
        while losers:
            for one in losers:
                if one.vm and one.decision and one.decision.snapshot:
                    one.todo.append(Delete(one.vm, one.decision.snapshot))
            self._work.perform(losers)
            lost = [one for one in losers if one.error is None]
            for one in lost:
                one.lose()
            self._again(lost, plan)
            losers = self._confirm([one for one in lost if one.error is None], plan)

    def _confirm(self, outcomes: Sequence[Outcome], plan: Plan) -> list[Outcome]:
        """Read the changed VMs again, and write once more if the state differs from the decision.

        Further writes follow only if each read shows another state, since other runs write to the same snapshots.
        Returns the VMs on which another run was first.
        """
        losers: list[Outcome] = []
        written = [one for one in outcomes if one.done]
        shown: dict[int, tuple[Action, ...]] = {}
        for tries in range(_MOST_WRITES):
            deadline = self._phases.confirm()
            try:
                self._look.see(written, deadline, wait=False)
            except SafepointError as exc:
                _not_confirmed(written, exc)
                return losers
            unsure = [one for one in written if not _is_confirmed(one, plan, losers)]
            if plan.reverts:
                unsure = self._confirm_later(unsure, plan, deadline)
            for one in unsure:
                _confirm_or_refuse(one, plan)
            written = [one for one in written if one.todo]
            stuck = [one for one in written if shown.get(id(one)) == tuple(one.todo) or tries == _MOST_WRITES - 1]
            refuse_all(stuck, Unverified("The hypervisor accepted the description twice, but does not show it"))
            written = [one for one in written if one.todo]
            if not written:
                break
            shown = {id(one): tuple(one.todo) for one in written}
            if tries:
                # Without a random pause, runs that write at the same moment would collide again.
                deadline.within(random.uniform(0, _RACE_PAUSE_SECONDS)).sleep()
            self._work.perform(written)
        return losers

    def _confirm_later(self, unsure: Sequence[Outcome], plan: Plan, deadline: Deadline) -> list[Outcome]:
        """Read the VMs again for some seconds: an operation of another run may stop, pause or start the VM for a moment.

        The time begins again if one is seen, since another may follow, and libvirt does not report who holds a VM that is off.
        Returns the VMs whose state is still not as expected.
        """
        calm, held = deadline.within(_PASSING_SECONDS), deadline.within(self._bounds.lock_timeout)
        left = list(unsure)
        while left and calm.left() > 0:
            deadline.within(_RACE_PAUSE_SECONDS).sleep()
            try:
                self._look.see(left, deadline, wait=False)
            except SafepointError:
                break  # the last state that was read counts
            left = [one for one in left if not _is_confirmed(one, plan, [])]
            if held.left() > 0 and any(one.after and one.after.state.busy for one in left):
                calm = deadline.within(_PASSING_SECONDS)
        return left


def _not_confirmed(outcomes: Sequence[Outcome], error: SafepointError) -> None:
    """Set the error of VMs that could not be read after the write."""
    for one in outcomes:
        word = one.decision.word if one.decision else "done"
        one.refuse(Unverified(f"The hypervisor reported {word}, but {one.vm} could not be read afterwards: {error}"))


def _is_confirmed(outcome: Outcome, plan: Plan, losers: list[Outcome]) -> bool:
    """Return True if the result is confirmed. Adds actions that are still needed, and appends a VM that lost a race to ``losers``."""
    if outcome.error is not None or outcome.after is None or outcome.decision is None:
        return True
    try:
        outcome.todo.extend(plan.confirm(outcome.after, outcome.decision))
    except LostRace:
        losers.append(outcome)
    except SafepointError:
        return False
    return True


def _confirm_or_refuse(outcome: Outcome, plan: Plan) -> None:
    if outcome.after is not None and outcome.decision is not None:
        try:
            outcome.todo.extend(plan.confirm(outcome.after, outcome.decision))
        except SafepointError as exc:
            outcome.refuse(exc)


def _expect_label(view: View, target: Target) -> None:
    snapshot = view.by_id(target.snapshot_id or "")
    if snapshot is None:
        return
    fields = snapshot.label.as_dict() if snapshot.label else {}
    differing = [key for key, value in target.labels.items() if fields.get(key, "") != value]
    if differing:
        says = ", ".join(f"{key}={fields[key]}" if fields.get(key) else f"no {key}" for key in differing)
        raise LabelDiffers(f"The label of the snapshot {snapshot} of {view.vm} is not as expected; it has {says}")
