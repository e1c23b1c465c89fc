# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The retention policy: which snapshots are kept or removed, and why. Pure: no I/O, no clock.

``judge`` applies the rules to the snapshots of one VM, ``settle`` the rules across VMs. The first matching rule decides:

1. A protected snapshot is kept and not counted: foreign, out of scope, on hold, guarding a running change, without a known creation time, created in the
   future, or too young.
2. The ``min_keep`` newest snapshots are kept.
3. A snapshot that ``expired`` or ``max_age`` selects is removed and not counted.
4. If there are keep_* rules, a snapshot that none of them keeps is removed.
5. A snapshot is removed if ``max_count`` newer ones are kept.

Finally, a snapshot to remove is kept if another snapshot of its group is kept, or if it exceeds ``max_delete``.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption, Unsupported
from ansible_collections.safepoint.vm.plugins.module_utils._core.filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot

# The label field of the policy that a snapshot belongs to, and the field that groups snapshots of several VMs.
POLICY_LABEL = "policy"
GROUP_LABEL = "group"
# The rules of a policy that are a number of snapshots to keep. snapshot_prune has an option of the same name for each.
KEEP_COUNTS = (
    "keep_last",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_quarterly",
    "keep_yearly",
    "min_keep",
)


def _hour(local: datetime) -> str:
    # With the UTC offset: the hour that is repeated at the end of summer time counts as two.
    return local.strftime("%Y-%m-%d %Hh%z")


def _week(local: datetime) -> str:
    year, week, _day = local.isocalendar()
    return f"{year}-W{week:02d}"


_PERIODS: Mapping[str, Callable[[datetime], str]] = {
    "keep_hourly": _hour,
    "keep_daily": lambda local: local.strftime("%Y-%m-%d"),
    "keep_weekly": _week,
    "keep_monthly": lambda local: local.strftime("%Y-%m"),
    "keep_quarterly": lambda local: f"{local.year}-Q{(local.month + 2) // 3}",
    "keep_yearly": lambda local: str(local.year),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """The rules of a retention policy. A rule that is 0 or None is not set."""

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_quarterly: int = 0
    keep_yearly: int = 0
    keep_within: timedelta | None = None
    """Counted back from the newest snapshot, not from now: a VM that gets no new snapshots keeps its last ones."""
    keep_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_age: timedelta | None = None
    max_count: int = 0
    min_keep: int = 0
    min_age: timedelta | None = None
    expired: bool = False
    max_delete: int = 0
    everything: bool = False
    """Remove all snapshots that are not protected."""

    @property
    def keeps(self) -> bool:
        """True if there are keep_* rules, so that a snapshot that none of them keeps is removed."""
        return bool(self.keep_last or self.keep_within or self.keep_labels or any(getattr(self, name) for name in _PERIODS))

    @property
    def has_rules(self) -> bool:
        """True if any rule can remove snapshots."""
        return bool(self.everything or self.expired or self.max_age or self.max_count or self.keeps)

    def check(self) -> None:
        """Refuse an invalid policy.

        :raises InvalidOption: the policy has no effect, or contradicts itself.
        """
        removes = self.expired or self.max_age or self.max_count
        if self.everything and (removes or self.keeps or self.min_keep):
            raise InvalidOption(
                "all=true removes every own snapshot and cannot be combined with other rules; remove all or the other rules"
            )
        if not self.has_rules:
            raise InvalidOption(
                "no rule is set that removes snapshots; set for example keep_last, keep_daily, max_age, max_count or expired=true"
            )
        if self.max_count and self.min_keep > self.max_count:
            raise InvalidOption(
                f"min_keep={self.min_keep} is greater than max_count={self.max_count}; use a smaller min_keep or a greater max_count"
            )


@dataclasses.dataclass(frozen=True)
class Reason:
    """The name of a rule, and its reason as the end of a sentence that begins with the snapshot's name."""

    rule: str
    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The decision on one snapshot, with the reasons."""

    vm: str
    """The id of the VM."""
    snapshot: Snapshot
    keep: bool
    reasons: tuple[Reason, ...]

    def spared(self, rule: str, text: str) -> Verdict:
        """Return a verdict that keeps the snapshot for this reason."""
        return dataclasses.replace(self, keep=True, reasons=(Reason(rule, text),))


def time_zone(name: str) -> tzinfo:
    """Return the time zone in which the periods (days, weeks and so on) begin.

    :raises InvalidOption: the zone is not known on this machine.
    """
    if name == "UTC":  # works without time zone data
        return timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        knows_some = zoneinfo.available_timezones()
        remedy = "" if knows_some else ": it has no time zone data; install tzdata there (the system's package, or with pip)"
        raise InvalidOption(
            f"timezone={name!r} is not known on the machine that runs the module{remedy}; write for example Europe/Vienna or UTC"
        ) from exc


def judge(
    vm: str, snapshots: Iterable[Snapshot], policy: Policy, *, excluded: Mapping[str, Reason], now: datetime, tz: tzinfo
) -> list[Verdict]:
    """Apply the rules to the snapshots of one VM. Return the verdicts in the same order. ``excluded``: by id, snapshots to keep for another reason.

    Snapshots of different policies (by their label) are counted separately.

    :raises Unsupported: the keep_* rules would keep none of the snapshots that they apply to.
    """
    everything = list(snapshots)
    verdicts: dict[str, Verdict] = {}
    pools: dict[str, list[Snapshot]] = {}
    for one in everything:
        why = excluded.get(one.id) or _protection(one, policy, now)
        if why is not None:
            verdicts[one.id] = Verdict(vm, one, True, (why,))
        else:
            label = one.label.fields.get(POLICY_LABEL, "") if one.label else ""
            pools.setdefault(label, []).append(one)
    depths = _depths(everything)
    for pool in pools.values():
        newest_first = sorted(pool, key=lambda one: (_created(one), depths[one.id], *_number(one)), reverse=True)
        for one, keep, reasons in _judge_pool(newest_first, policy, now, tz):
            verdicts[one.id] = Verdict(vm, one, keep, reasons)
    return [verdicts[one.id] for one in everything]


def settle(verdicts: Sequence[Verdict], policy: Policy) -> list[Verdict]:
    """Keep snapshots whose group cannot be removed completely, and those beyond ``max_delete``; the oldest are removed first."""
    units: dict[str | int, list[int]] = {}
    for place, one in enumerate(verdicts):
        label = one.snapshot.label
        named = label.fields.get(GROUP_LABEL) if label is not None and not _is_foreign(one) else None
        units.setdefault(place if named is None else named, []).append(place)
    settled = list(verdicts)

    def spare(places: Iterable[int], rule: str, text: str) -> None:
        for place in places:
            if not settled[place].keep:
                settled[place] = settled[place].spared(rule, text)

    going: list[list[int]] = []
    for group, places in units.items():
        if any(verdicts[place].keep for place in places):
            spare(places, "group", f"belongs to the group {group}, of which another snapshot is kept")
        else:
            going.append(places)
    if policy.max_delete:
        left = policy.max_delete
        for places in sorted(going, key=lambda some: min(_run_key(verdicts[place]) for place in some)):
            if len(places) > left:
                spare(
                    places, "max_delete_per_run", f"is left for a later run, because one run removes at most {policy.max_delete}"
                )
            else:
                left -= len(places)
    return settled


def _judge_pool(
    newest_first: Sequence[Snapshot], policy: Policy, now: datetime, tz: tzinfo
) -> Iterable[tuple[Snapshot, bool, tuple[Reason, ...]]]:
    hit = {one.id: why for one in newest_first for why in [_removal(one, policy, now)] if why is not None}
    pool = [one for one in newest_first if one.id not in hit]
    usable = _ways_back(pool)
    kept = _keepers(usable, policy, tz)
    floor = {
        one.id: Reason("min_keep", f"is one of the newest {policy.min_keep}")
        for one in _ways_back(newest_first)[: policy.min_keep]
    }
    if policy.keeps and pool and not floor and not any(kept.values()):
        raise Unsupported(
            f"the keep_* rules would keep none of {', '.join(one.name for one in pool[:10])}; change the rules, or remove all snapshots with all=true"
        )
    staying = 0
    for one in newest_first:
        reasons = (*([floor[one.id]] if one.id in floor else []), *kept.get(one.id, ()))
        if one.id in hit and not reasons:
            yield one, False, (hit[one.id],)
        elif policy.keeps and not reasons:
            yield one, False, (Reason("not_kept", "is not kept by any rule"),)
        elif policy.max_count and staying >= policy.max_count and one.id not in floor:
            yield one, False, (Reason("max_count", f"is older than the {policy.max_count} that max_count keeps"),)
        else:
            staying += one in usable
            yield one, True, reasons or (Reason("no_rule", "is not removed by any rule"),)


def _ways_back(snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """Return the snapshots that the VM can be reverted to, or all if there are none. A broken snapshot must not count instead of a usable one."""
    return [one for one in snapshots if "revert" not in one.obstacles] or snapshots


def _protection(one: Snapshot, policy: Policy, now: datetime) -> Reason | None:
    """Return the reason why the snapshot is protected from all rules, or None. Foreign snapshots are excluded before."""
    label = one.label
    if label is not None and label.held:
        return Reason("held", label.hold_words())
    if label is not None and label.fields.get("state") == "guarding":
        return Reason("in_flight", "guards a change that has not ended")
    if one.created is None:
        return Reason("no_time", "has no known creation time")
    if label is not None and "expires" in label.fields and label.expires is None:
        return Reason("no_time", f"has the invalid time expires={label.fields['expires']} in its label")
    if one.created > now:
        return Reason("future", f"was created at {format_time(one.created)}, which is in the future by the hypervisor's clock")
    if policy.min_age is not None and now - one.created < policy.min_age:
        return Reason("min_age", f"is {_words(now - one.created)} old, less than {_words(policy.min_age)}")
    return None


def _removal(one: Snapshot, policy: Policy, now: datetime) -> Reason | None:
    """Return the reason to remove the snapshot regardless of the keep_* rules, or None."""
    if policy.everything:
        return Reason("all", "is one of our own, and all=true is set")
    expires = one.label.expires if one.label else None
    if policy.expired and expires is not None and expires <= now:
        return Reason("expired", f"expired at {format_time(expires)}")
    if policy.max_age is not None and one.created is not None and now - one.created > policy.max_age:
        return Reason("max_age", f"is {_words(now - one.created)} old, more than {_words(policy.max_age)}")
    return None


def _keepers(pool: Sequence[Snapshot], policy: Policy, tz: tzinfo) -> dict[str, list[Reason]]:
    """Return by id the keep_* rules that keep each snapshot of ``pool``, which is sorted newest first. The rules are independent: one is enough to keep.

    A rule keeps the newest snapshot of each period, skips periods without snapshots, and also keeps the oldest snapshot while its count is not reached.
    """
    kept: dict[str, list[Reason]] = {one.id: [] for one in pool}
    for one in pool[: policy.keep_last]:
        kept[one.id].append(Reason("keep_last", f"is one of the newest {policy.keep_last}"))
    for rule, period in _PERIODS.items():
        count, seen = getattr(policy, rule), set()
        for one in pool if count else ():
            name = period(_created(one).astimezone(tz))
            if name not in seen:
                kept[one.id].append(Reason(rule, f"is the newest of {name}"))
                seen.add(name)
            elif one is pool[-1]:
                kept[one.id].append(Reason(rule, f"is the oldest, and {rule}={count} is not reached"))
            if len(seen) == count:
                break
    for one in pool:
        if policy.keep_within is not None and _created(pool[0]) - _created(one) <= policy.keep_within:
            kept[one.id].append(Reason("keep_within", f"was created within {_words(policy.keep_within)} of the newest"))
        if policy.keep_labels and Filter(labels=policy.keep_labels).lets_through(one, _created(one)):
            kept[one.id].append(Reason("keep_labels", f"is {Filter(labels=policy.keep_labels).words()}"))
    return kept


def _created(one: Snapshot) -> datetime:
    if one.created is None:
        raise ValueError(f"{one} has no known creation time, and should have been protected")
    return one.created


def _depths(snapshots: Sequence[Snapshot]) -> dict[str, int]:
    """Return the depth of each snapshot in the tree. Of two snapshots from the same second, the deeper one is newer."""
    parents = {one.id: one.parent for one in snapshots}
    depths: dict[str, int] = {}
    for one in snapshots:
        above, seen = one.parent, {one.id}
        while above in parents and above not in seen:
            seen.add(above)
            above = parents[above]
        depths[one.id] = len(seen)
    return depths


def _number(one: Snapshot) -> tuple[int, str]:
    # Backends number their ids upwards, so a shorter id is smaller.
    return len(one.id), one.id


def _run_key(verdict: Verdict) -> tuple[datetime, str, int, str]:
    return _created(verdict.snapshot), verdict.vm, *_number(verdict.snapshot)


def _is_foreign(verdict: Verdict) -> bool:
    return any(reason.rule == "foreign" for reason in verdict.reasons)


def _words(span: timedelta) -> str:
    """Format a duration as it is written in an option, rounded."""
    seconds = int(span.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size or (seconds and seconds % size == 0):
            return f"{round(seconds / size, 1):g}{unit}"
    return f"{seconds}s"
