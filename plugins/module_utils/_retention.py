# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which snapshots stay and which go, and why. Pure: no I/O, no clock.

``judge`` looks at the snapshots of one VM, ``settle`` at what spans several. The first of these that fits decides about a snapshot:

1. it is protected: foreign, out of scope, held, in flight, of no known time, future-dated, too young. It stays, and counts for nothing;
2. it is one of the ``min_keep`` newest: it stays;
3. ``expired`` or ``max_age`` hits it: it goes, and counts for nothing either;
4. there are keep_* rules: it goes unless at least one of them keeps it;
5. ``max_count`` newer ones stay: it goes.

What belongs to a group of which a part stays, and what is more than ``max_delete``, stays after all.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption, Unsupported
from ansible_collections.safepoint.vm.plugins.module_utils._filter import Filter
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot

# The label that tells snapshots apart which different policies look after, and the one that holds those of several VMs together.
POLICY_LABEL = "policy"
GROUP_LABEL = "group"


def _hour(local: datetime) -> str:
    # With the offset: the hour that comes twice when summer ends is two hours.
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
    """What is to stay and what is to go. A number of 0, and None, is a rule that is not there."""

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_quarterly: int = 0
    keep_yearly: int = 0
    keep_within: timedelta | None = None
    """Counted back from the newest snapshot, and not from now: a VM that gets no new ones any more keeps its last."""
    keep_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_age: timedelta | None = None
    max_count: int = 0
    min_keep: int = 0
    min_age: timedelta | None = None
    expired: bool = False
    max_delete: int = 0
    everything: bool = False
    """All that is not protected goes."""

    @property
    def keeps(self) -> bool:
        """Whether it has keep_* rules, so that what none of them keeps goes."""
        return bool(self.keep_last or self.keep_within or self.keep_labels or any(getattr(self, name) for name in _PERIODS))

    @property
    def has_rules(self) -> bool:
        """Whether there is a rule by which anything could go."""
        return bool(self.everything or self.expired or self.max_age or self.max_count or self.keeps)

    def check(self) -> None:
        """Refuse what is no policy.

        :raises InvalidOption: it would do nothing, or contradicts itself.
        """
        removes = self.expired or self.max_age or self.max_count
        if self.everything and (removes or self.keeps or self.min_keep):
            raise InvalidOption(
                "all=true removes whatever is ours, and the other rules would keep some of it; leave one of them out"
            )
        if not self.has_rules:
            raise InvalidOption(
                "there is no rule that removes anything; set for example keep_last, keep_daily, max_age, max_count or expired=true"
            )
        if self.max_count and self.min_keep > self.max_count:
            raise InvalidOption(
                f"min_keep={self.min_keep} keeps more than max_count={self.max_count} allows; make one of them fit"
            )


@dataclasses.dataclass(frozen=True)
class Reason:
    """A rule by its name, and what it says about a snapshot, as the end of a sentence that begins with it."""

    rule: str
    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One snapshot of one VM, whether it stays, and why."""

    vm: str
    """The id of the VM."""
    snapshot: Snapshot
    keep: bool
    reasons: tuple[Reason, ...]

    def spared(self, rule: str, text: str) -> Verdict:
        """The same, but it stays after all."""
        return dataclasses.replace(self, keep=True, reasons=(Reason(rule, text),))


def time_zone(name: str) -> tzinfo:
    """The time zone in which days, weeks and the like begin and end.

    :raises InvalidOption: this machine does not know it.
    """
    if name == "UTC":  # also where there are no data about zones at all
        return timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        knows_some = zoneinfo.available_timezones()
        remedy = "" if knows_some else ": it knows none, so install tzdata there (the system's package, or with pip)"
        raise InvalidOption(
            f"timezone={name!r} is no time zone that the machine which runs the module knows{remedy}; write for example Europe/Vienna or UTC"
        ) from exc


def judge(
    vm: str, snapshots: Iterable[Snapshot], policy: Policy, *, excluded: Mapping[str, Reason], now: datetime, tz: tzinfo
) -> list[Verdict]:
    """What the rules say about the snapshots of one VM, in their order. ``excluded`` says by their ids which are not to be judged at all.

    Snapshots of different policies (by their label) are counted apart.

    :raises Unsupported: the keep_* rules would keep none of those that they are about.
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
    """Spare what belongs to a group that does not go as a whole, and what is more than may go at a time; the oldest go first."""
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
            spare(places, "group", f"belongs to the group {group}, of which a part stays")
        else:
            going.append(places)
    if policy.max_delete:
        left = policy.max_delete
        for places in sorted(going, key=lambda some: min(_run_key(verdicts[place]) for place in some)):
            if len(places) > left:
                spare(places, "max_delete_per_run", f"has to wait, since one run removes {policy.max_delete} at most")
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
            f"the keep_* rules would keep none of {', '.join(one.name for one in pool[:10])}; change the rules, or remove them by all=true"
        )
    staying = 0
    for one in newest_first:
        reasons = (*([floor[one.id]] if one.id in floor else []), *kept.get(one.id, ()))
        if one.id in hit and not reasons:
            yield one, False, (hit[one.id],)
        elif policy.keeps and not reasons:
            yield one, False, (Reason("not_kept", "is kept by no rule"),)
        elif policy.max_count and staying >= policy.max_count and one.id not in floor:
            yield one, False, (Reason("max_count", f"is older than the {policy.max_count} that may stay"),)
        else:
            staying += one in usable
            yield one, True, reasons or (Reason("no_rule", "is hit by no rule"),)


def _ways_back(snapshots: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """Those that a VM can go back to, unless that is none: a broken one must not take the place of one that is of use."""
    return [one for one in snapshots if "revert" not in one.obstacles] or snapshots


def _protection(one: Snapshot, policy: Policy, now: datetime) -> Reason | None:
    """Why it is no candidate, whatever the rules say. It is ours, or would have been excluded."""
    label = one.label
    if label is not None and label.held:
        return Reason("held", label.hold_words())
    if label is not None and label.fields.get("state") == "guarding":
        return Reason("in_flight", "guards a change that has not ended")
    if one.created is None:
        return Reason("no_time", "was made at a time that the hypervisor does not tell")
    if label is not None and "expires" in label.fields and label.expires is None:
        return Reason("no_time", f"has a label with expires={label.fields['expires']}, which is no time")
    if one.created > now:
        return Reason("future", f"was made at {format_time(one.created)}, which has yet to come by the hypervisor's clock")
    if policy.min_age is not None and now - one.created < policy.min_age:
        return Reason("min_age", f"is {_words(now - one.created)} old, and nothing younger than {_words(policy.min_age)} goes")
    return None


def _removal(one: Snapshot, policy: Policy, now: datetime) -> Reason | None:
    """What says that it goes, whatever would keep it."""
    if policy.everything:
        return Reason("all", "is ours, and all of ours are to go")
    expires = one.label.expires if one.label else None
    if policy.expired and expires is not None and expires <= now:
        return Reason("expired", f"expired at {format_time(expires)}")
    if policy.max_age is not None and one.created is not None and now - one.created > policy.max_age:
        return Reason("max_age", f"is {_words(now - one.created)} old, more than {_words(policy.max_age)}")
    return None


def _keepers(pool: Sequence[Snapshot], policy: Policy, tz: tzinfo) -> dict[str, list[Reason]]:
    """Which keep_* rules keep which of the snapshots, newest first. Each rule goes its own way; together they are ORed.

    The newest of each period stands for it, a period without any costs nothing, and the oldest of all is kept while a rule has some left.
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
                kept[one.id].append(Reason(rule, f"is the oldest, while {rule}={count} is not used up"))
            if len(seen) == count:
                break
    for one in pool:
        if policy.keep_within is not None and _created(pool[0]) - _created(one) <= policy.keep_within:
            kept[one.id].append(Reason("keep_within", f"was made within {_words(policy.keep_within)} of the newest"))
        if policy.keep_labels and Filter(labels=policy.keep_labels).lets_through(one, _created(one)):
            kept[one.id].append(Reason("keep_labels", f"is {Filter(labels=policy.keep_labels).words()}"))
    return kept


def _created(one: Snapshot) -> datetime:
    if one.created is None:
        raise ValueError(f"{one} is of no known time, and protected")
    return one.created


def _depths(snapshots: Sequence[Snapshot]) -> dict[str, int]:
    """How many stand above each. Of those made in the same second, what stands on another one is the newer."""
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
    # Backends count their ids up, so that the shorter one is the smaller.
    return len(one.id), one.id


def _run_key(verdict: Verdict) -> tuple[datetime, str, int, str]:
    return _created(verdict.snapshot), verdict.vm, *_number(verdict.snapshot)


def _is_foreign(verdict: Verdict) -> bool:
    return any(reason.rule == "foreign" for reason in verdict.reasons)


def _words(span: timedelta) -> str:
    """A span of time as people write it in an option, rounded."""
    seconds = int(span.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size or (seconds and seconds % size == 0):
            return f"{round(seconds / size, 1):g}{unit}"
    return f"{seconds}s"
