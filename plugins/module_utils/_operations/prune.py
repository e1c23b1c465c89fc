# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The prune operation: remove the snapshots that the retention policy does not keep.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import parse_age
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import (
    InvalidOption,
    SafepointError,
    Unsupported,
    Unverified,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._core.label import check_labels
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, View
from ansible_collections.safepoint.vm.plugins.module_utils._core.retention import (
    KEEP_COUNTS,
    POLICY_LABEL,
    Policy,
    Reason,
    Verdict,
    judge,
    settle,
    time_zone,
)
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Delete, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import (
    Decision,
    Imagine,
    Plan,
    Request,
    names,
    still_there,
    why_not_deleted,
    without,
)

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


def pruned(request: Request, params: Mapping[str, t.Any]) -> Pruned:
    """Create the plan from the options.

    :raises InvalidOption: an option is invalid.
    """
    counts = {option: params[option] for option in KEEP_COUNTS if params[option] is not None}
    for option, number in counts.items():
        if number < 0:
            raise InvalidOption(f"{option}={number} must not be negative; use 1 or more, or remove the option")
    for option, instead in (
        ("max_count", "set all=true to remove all snapshots"),
        ("max_delete_per_run", "use check mode to see what would be removed"),
    ):
        if params[option] is not None and params[option] < 1:
            raise InvalidOption(f"{option}={params[option]} must be greater than zero; use 1 or more, or {instead}")
    if params["confirm"] is not None and not params["all"]:
        raise InvalidOption("confirm can only be used with all=true, which removes every own snapshot; remove confirm")
    policy = Policy(
        **counts,
        keep_within=_span(params, "keep_within"),
        keep_labels=_texts(params, "keep_labels"),
        max_age=_span(params, "max_age"),
        max_count=params["max_count"] or 0,
        min_age=_span(params, "min_age"),
        expired=params["expired"],
        max_delete=params["max_delete_per_run"] or 0,
        everything=params["all"],
    )
    zero = next((option for option, number in counts.items() if not number), None)
    if zero is not None and not policy.has_rules:
        raise InvalidOption(f"{zero}=0 keeps nothing; use 1 or more")
    return Pruned(request, policy, scope=_scope(params), tz=time_zone(params["timezone"]), confirm=params["confirm"])


def _scope(params: Mapping[str, t.Any]) -> Filter:
    labels = _texts(params, "match_labels")
    for option, key in (("policy", POLICY_LABEL), ("change", "change")):
        value = params[option]
        if value is None:
            continue
        if not value:
            raise InvalidOption(f"{option} is empty; set a value, or remove the option")
        if labels.get(key, value) != value:
            raise InvalidOption(
                f"{option}={value!r} contradicts match_labels, which sets {key}={labels[key]!r}; remove one of them"
            )
        labels[key] = value
    return Filter(name=params["name_pattern"], labels=labels)


def _texts(params: Mapping[str, t.Any], option: str) -> dict[str, str]:
    return check_labels(params[option] or {}, option=option)


def _span(params: Mapping[str, t.Any], option: str) -> timedelta | None:
    if params[option] is None:
        return None
    age = parse_age(params[option], option=option)
    if not age:
        raise InvalidOption(
            f"{option}={params[option]} must be greater than zero; write for example 12h or 30d, or remove the option"
        )
    return age
