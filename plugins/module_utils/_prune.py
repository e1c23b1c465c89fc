# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The prune operation: remove the snapshots that the retention policy does not keep.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta, tzinfo

from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, Delete, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption, SafepointError, Unsupported, Unverified
from ansible_collections.safepoint.vm.plugins.module_utils._filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, View
from ansible_collections.safepoint.vm.plugins.module_utils._plan import (
    Decision,
    Imagine,
    Plan,
    Request,
    names,
    still_there,
    why_not_deleted,
    without,
)
from ansible_collections.safepoint.vm.plugins.module_utils._retention import Policy, Reason, Verdict, judge, settle

# Clocks that differ by less than this count as equal.
_SKEW = timedelta(seconds=60)


class Pruned(Plan):
    """Remove the own snapshots in ``scope`` that the policy does not keep."""

    sweeps = True

    def __init__(self, request: Request, policy: Policy, *, scope: Filter, tz: tzinfo, confirm: int | None = None) -> None:
        """``confirm``: the number of VMs that the user expects; required for a policy that removes everything."""
        super().__init__(request)
        self._policy = policy
        self._scope = scope
        self._tz = tz
        self._confirm = confirm
        self._verdicts: dict[str, list[Verdict]] = {}
        self._orders: dict[str, list[Snapshot]] = {}
        self._refused: dict[str, SafepointError] = {}

    def check(self, driver: SnapshotDriver) -> None:
        self._policy.check()

    def survey(self, views: Sequence[View], *, vms: int, now: datetime, driver: SnapshotDriver) -> None:
        if self._policy.everything and self._confirm != vms:
            said = "is not set" if self._confirm is None else f"is {self._confirm}"
            raise InvalidOption(
                f"all=true would remove every snapshot of owner {self.request.owner!r} from {vms} VMs, but confirm {said}; "
                f"to remove them, set confirm={vms}"
            )
        self._refused = {}
        found: list[Verdict] = []
        for view in views:
            excluded = {one.id: why for one in view.snapshots for why in [self._excluded(view, one, now)] if why is not None}
            try:
                found += judge(view.vm.id, view.snapshots, self._policy, excluded=excluded, now=now, tz=self._tz)
            except Unsupported as exc:
                self._refused[view.vm.id] = Unsupported(f"Nothing was removed from {view.vm}: {exc}")
                found += [
                    Verdict(view.vm.id, one, True, (Reason("refused", f"is kept, because {exc}"),)) for one in view.snapshots
                ]
        self._settle(views, found, driver.imagine)

    def _settle(self, views: Sequence[View], found: list[Verdict], imagine: Imagine) -> None:
        """Keep snapshots that cannot be removed and the rest of their groups; repeat until nothing changes."""
        while True:
            found = settle(found, self._policy)
            self._verdicts = {view.vm.id: [] for view in views}
            for one in found:
                self._verdicts[one.vm].append(one)
            blocked: dict[tuple[str, str], str] = {}
            for view in views:
                going = [one.snapshot.id for one in self._verdicts[view.vm.id] if not one.keep]
                self._orders[view.vm.id], stuck = deletion_order(view, going, imagine)
                blocked.update(((view.vm.id, snapshot_id), why) for snapshot_id, why in stuck.items())
            if not blocked:
                return
            found = [
                one.spared("blocked", blocked[one.vm, one.snapshot.id]) if (one.vm, one.snapshot.id) in blocked else one
                for one in found
            ]

    def _excluded(self, view: View, one: Snapshot, now: datetime) -> Reason | None:
        """Return the reason why the policy does not apply to a snapshot, or None if it does."""
        foreign = self.request.ours.why_not(view.vm, one)
        if foreign is not None:
            return Reason("foreign", f"does not belong to owner {self.request.owner!r}: {foreign}")
        if not self._scope.lets_through(one, now):
            return Reason("out_of_scope", f"is not {self._scope.words()}")
        if "remove" in one.obstacles:
            return Reason("blocked", one.obstacles["remove"])
        return None

    def decide(self, view: View, snapshot_id: str | None, *, now: datetime, newest_only: bool = False) -> Decision:
        if view.vm.id in self._refused:
            raise self._refused[view.vm.id]
        predicted = view.snapshots
        actions: list[Action] = []
        for one in self._orders[view.vm.id]:
            actions.append(Delete(view.vm, one))
            predicted = without(predicted, one)
        return Decision(
            "pruned" if actions else "kept",
            None,
            predicted,
            tuple(actions),
            tuple(f"{one.message}; {one.remedy}" for one in view.state.findings if one.code == "chain_near_limit")
            + tuple(
                f"The snapshot {one} of {view.vm} is kept: its creation time is {one.created - now} in the future by the hypervisor's clock; check the clocks"
                for one in (verdict.snapshot for verdict in self._verdicts[view.vm.id] if verdict.reasons[0].rule == "future")
                if one.created is not None and one.created - now > _SKEW
            ),
            verdicts=tuple(self._verdicts[view.vm.id]),
            gone_is_done=True,
        )

    def confirm(self, view: View, done: Decision) -> tuple[Action, ...]:
        left = still_there(view, [one.snapshot for one in done.actions if isinstance(one, Delete)])
        if left:
            raise Unverified(f"The hypervisor reported success, but {view.vm} still lists the snapshot {names(left)}")
        return ()


def deletion_order(view: View, going: Collection[str], imagine: Imagine) -> tuple[list[Snapshot], dict[str, str]]:
    """Return the order in which snapshots are deleted one at a time, and by id the reasons of those that cannot be deleted.

    Branches without the VM's present state come first, leaves before their parents. In the chain of the present state, the oldest come first:
    each is merged into a snapshot that stays, and no snapshot becomes the current one just before it is deleted.
    """
    chain = view.chain()
    waiting = [one for one in reversed(view.snapshots) if one.id in going and one.id not in chain]
    waiting += [one for one in view.snapshots if one.id in going and one.id in chain]
    left: Sequence[Snapshot] = view.snapshots
    ordered: list[Snapshot] = []
    while waiting:
        free = next((one for one in waiting if why_not_deleted(one.id, left) is None), None)
        if free is None:
            return ordered, {one.id: why_not_deleted(one.id, left) or "" for one in waiting}
        ordered.append(free)
        waiting.remove(free)
        left = imagine(view.vm, without(tuple(left), free))
    return ordered, {}
