# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Properties of retention that hold for all snapshots and policies. Each docstring names the options for which the property holds."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import Unsupported
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot
from ansible_collections.safepoint.vm.plugins.module_utils._core.retention import Policy, Reason, Verdict, judge, settle

examples = settings(max_examples=1000 if os.environ.get("CI") == "true" else 100)

NOW = datetime(2026, 3, 29, 12, tzinfo=timezone.utc)
ZONES: list[tzinfo] = [timezone.utc, ZoneInfo("Europe/Vienna"), ZoneInfo("America/St_Johns")]
FOREIGN = Reason("foreign", "it belongs to another owner")
# The frequency of each; the last ones are kept regardless of the rules.
LABELS = [
    *["[safepoint v=1 owner=safepoint]"] * 6,
    "[safepoint v=1 owner=safepoint quality=good]",
    "[safepoint v=1 owner=safepoint policy=nightly]",
    "[safepoint v=1 owner=safepoint expires=2026-03-01T00:00:00Z]",
    "[safepoint v=1 owner=safepoint expires=2027-01-01T00:00:00Z]",
    "[safepoint v=1 owner=safepoint group=g1]",
    "[safepoint v=1 owner=safepoint hold=yes]",
    "[safepoint v=1 owner=safepoint state=guarding]",
    "[safepoint v=1 owner=safepoint expires=soon]",
    "mine",
]
PLAIN = 6
Estate = dict[str, tuple[Snapshot, ...]]


def _snapshot(number: int, seconds: int, description: str) -> Snapshot:
    created = NOW - timedelta(seconds=seconds)
    return Snapshot(f"s{number}", f"s{number}", created, None, description, False, "crash", False)


def _snapshots(labels: int) -> st.SearchStrategy[tuple[Snapshot, ...]]:
    """Generate up to nine snapshots, often from the same second, hour, day or month, and sometimes from the future. Made of bytes, which are fast to draw."""
    units = (1, 600, 3600, 86400, 12 * 86400)

    def made(drawn: bytes) -> tuple[Snapshot, ...]:
        rows = zip(drawn[::3], drawn[1::3], drawn[2::3])
        return tuple(
            _snapshot(number, (count % 42 - 1) * units[unit % len(units)], LABELS[kind % labels])
            for number, (count, unit, kind) in enumerate(rows)
        )

    return st.binary(max_size=27).map(made)


def _drawn(choices: Sequence[int], size: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.binary(min_size=size, max_size=size).map(lambda drawn: tuple(choices[one % len(choices)] for one in drawn))


def _more(policy: Policy, more: tuple[int, ...]) -> Policy:
    """Generate a policy with some of the other rules too."""
    within, labels, age, count, keep, young, expired = more
    return dataclasses.replace(
        policy,
        keep_within=timedelta(days=within) if within else None,
        keep_labels={"quality": "good"} if labels else {},
        max_age=timedelta(days=30 * age) if age else None,
        max_count=count and count + keep,
        min_keep=keep,
        min_age=timedelta(hours=young) if young else None,
        expired=bool(expired),
    )


SOME = _drawn([0, 0, 1, 3], 7)
PLAIN_ONES = _snapshots(PLAIN)
ANY_ONES = _snapshots(len(LABELS))
ESTATES = st.tuples(ANY_ONES, ANY_ONES).map(lambda drawn: {"vm1": drawn[0], "vm2": drawn[1]})
# At least one rule with a count.
COUNTS = _drawn([0, 0, 0, 1, 2, 3, 7], 7).map(lambda numbers: Policy(*numbers) if any(numbers) else Policy(keep_last=1))
POLICIES = st.builds(_more, COUNTS, SOME)
ZONE = st.sampled_from(ZONES)


def verdicts(estate: Estate, policy: Policy, tz: tzinfo = timezone.utc, now: datetime = NOW) -> list[Verdict]:
    found: list[Verdict] = []
    for vm, snapshots in estate.items():
        excluded = {one.id: FOREIGN for one in snapshots if one.label is None}
        found += judge(vm, snapshots, policy, excluded=excluded, now=now, tz=tz)
    return settle(found, policy)


def kept(estate: Estate, policy: Policy, tz: tzinfo = timezone.utc, now: datetime = NOW) -> Estate:
    left: dict[str, list[Snapshot]] = {vm: [] for vm in estate}
    for one in verdicts(estate, policy, tz, now):
        if one.keep:
            left[one.vm].append(one.snapshot)
    return {vm: tuple(snapshots) for vm, snapshots in left.items()}


def ids(snapshots: Iterable[Snapshot]) -> set[str]:
    return {one.id for one in snapshots}


def prune(snapshots: Sequence[Snapshot], policy: Policy, tz: tzinfo = timezone.utc) -> tuple[Snapshot, ...]:
    return kept({"vm": tuple(snapshots)}, policy, tz)["vm"]


@examples
@given(ESTATES, POLICIES, ZONE)
def test_pruned_twice_is_pruned_once(estate: Estate, policy: Policy, tz: tzinfo) -> None:
    """All options except max_delete, which leaves the rest to the next run."""
    once = kept(estate, policy, tz)
    assert kept(once, policy, tz) == once


@examples
@given(ESTATES, POLICIES, st.integers(0, 3))
def test_each_snapshot_is_either_kept_or_removed_and_has_a_reason(estate: Estate, policy: Policy, at_most: int) -> None:
    """All options."""
    found = verdicts(estate, dataclasses.replace(policy, max_delete=at_most))
    assert [(one.vm, one.snapshot) for one in found] == [(vm, one) for vm, some in estate.items() for one in some]
    assert all(one.reasons and all(reason.rule and reason.text for reason in one.reasons) for one in found)


@examples
@given(ESTATES, POLICIES, st.booleans())
def test_foreign_snapshots_are_kept(estate: Estate, policy: Policy, everything: bool) -> None:
    """All options."""
    left = kept(estate, Policy(everything=True) if everything else policy)
    for vm, snapshots in estate.items():
        assert ids(one for one in snapshots if one.label is None) <= ids(left[vm])


@examples
@given(ESTATES, POLICIES, st.booleans())
def test_snapshots_on_hold_in_flight_or_without_time_are_kept(estate: Estate, policy: Policy, everything: bool) -> None:
    """All options."""
    left = kept(estate, Policy(everything=True) if everything else policy)
    for vm, snapshots in estate.items():
        protected = [
            one
            for one in snapshots
            if (one.label and (one.label.held or "state" in one.label.fields or one.label.fields.get("expires") == "soon"))
            or (one.created and one.created > NOW)
        ]
        assert ids(protected) <= ids(left[vm])


@examples
@given(PLAIN_ONES, st.builds(_more, COUNTS, _drawn([0, 1, 3], 2).map(lambda two: (*two, 0, 0, 0, 0, 0))), ZONE)
def test_newest_snapshot_is_kept(snapshots: tuple[Snapshot, ...], policy: Policy, tz: tzinfo) -> None:
    """The keep_* rules, at least one with a count; keep_labels alone may keep another snapshot."""
    past = [one for one in snapshots if one.created and one.created <= NOW]
    assume(past)
    newest = max(one.created for one in past if one.created)
    assert any(one.created == newest for one in prune(snapshots, policy, tz))


NUMBERS = ["keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_quarterly", "keep_yearly"]


@examples
@given(
    ANY_ONES,
    POLICIES,
    st.sampled_from([*NUMBERS, "keep_within", "max_age", "max_count", "min_keep", "min_age", "max_delete"]),
    ZONE,
)
def test_greater_number_never_removes_more(snapshots: tuple[Snapshot, ...], policy: Policy, name: str, tz: tzinfo) -> None:
    """Every number of the policy; without max_count for the rules that keep more, because max_count counts the kept ones.

    With max_delete, the numbers decide which snapshots are left for the next run, so it is set only when it is tested itself.
    """
    if name == "max_delete":
        policy = dataclasses.replace(policy, max_delete=2)
        assert len(prune(snapshots, dataclasses.replace(policy, max_delete=1))) >= len(prune(snapshots, policy))
        return
    if name != "max_count":
        policy = dataclasses.replace(policy, max_count=0)
    value = getattr(policy, name)
    assume(value)
    more = dataclasses.replace(policy, **{name: value + (timedelta(hours=5) if isinstance(value, timedelta) else 1)})
    assert ids(prune(snapshots, policy, tz)) <= ids(prune(snapshots, more, tz))


@examples
@given(ESTATES, POLICIES, st.integers(0, 3), st.randoms(use_true_random=False))
def test_order_of_the_snapshots_does_not_matter(
    estate: Estate, policy: Policy, at_most: int, random: Callable[..., object]
) -> None:
    """All options."""
    policy = dataclasses.replace(policy, max_delete=at_most)
    names = list(estate)
    random.shuffle(names)  # type: ignore[attr-defined]
    mixed = {}
    for vm in names:
        some = list(estate[vm])
        random.shuffle(some)  # type: ignore[attr-defined]
        mixed[vm] = tuple(some)
    assert {vm: ids(some) for vm, some in kept(mixed, policy).items()} == {
        vm: ids(some) for vm, some in kept(estate, policy).items()
    }


@examples
@given(ESTATES, ANY_ONES, POLICIES)
def test_other_vms_do_not_matter(estate: Estate, others: tuple[Snapshot, ...], policy: Policy) -> None:
    """All options except max_delete; the other VM has no snapshot of a group."""
    unrelated = tuple(one for one in others if not (one.label and "group" in one.label.fields))
    assert {vm: some for vm, some in kept({"vm0": unrelated, **estate}, policy).items() if vm != "vm0"} == kept(estate, policy)


@examples
@given(PLAIN_ONES, COUNTS, st.sampled_from([0, 1, 3]), ZONE)
def test_pruned_after_every_snapshot_is_pruned_once_at_the_end(
    snapshots: tuple[Snapshot, ...], policy: Policy, within: int, tz: tzinfo
) -> None:
    """The keep_* rules; keep_labels together with a rule with a count."""
    policy = dataclasses.replace(policy, keep_within=timedelta(days=within) if within else None, keep_labels={"quality": "good"})
    in_time = sorted(
        (one for one in snapshots if one.created and one.created <= NOW), key=lambda one: (one.created, len(one.id), one.id)
    )
    stepwise: tuple[Snapshot, ...] = ()
    for one in in_time:
        stepwise = prune([*stepwise, one], policy, tz)
    assert ids(stepwise) == ids(prune(in_time, policy, tz))


@examples
@given(PLAIN_ONES, COUNTS, ZONE)
def test_rules_keep_no_more_than_their_counts(snapshots: tuple[Snapshot, ...], policy: Policy, tz: tzinfo) -> None:
    """The keep_* rules with a count, without protected snapshots."""
    past = [one for one in snapshots if one.created and one.created <= NOW]
    assert len(prune(past, policy, tz)) <= sum(getattr(policy, name) for name in NUMBERS)


@examples
@given(ESTATES, POLICIES, st.integers(1, 4))
def test_min_keep_and_max_delete_hold(estate: Estate, policy: Policy, at_most: int) -> None:
    """All options. A VM with fewer candidates than min_keep keeps all of them."""
    limited = dataclasses.replace(policy, max_delete=at_most)
    assert sum(not one.keep for one in verdicts(estate, limited)) <= at_most
    for vm, snapshots in estate.items():
        left = ids(kept(estate, limited)[vm])
        assert len(left) >= min(policy.min_keep, len(snapshots))


@examples
@given(st.integers(2, 8), POLICIES, st.randoms(use_true_random=False))
def test_result_is_deterministic_for_equal_times(number: int, policy: Policy, random: Callable[..., object]) -> None:
    """All options."""
    twins = [_snapshot(one, 3600, LABELS[0]) for one in range(number)]
    first = ids(prune(twins, policy))
    random.shuffle(twins)  # type: ignore[attr-defined]
    assert ids(prune(twins, policy)) == first
    assert f"s{number - 1}" in first or policy.max_age or policy.expired


@examples
@given(ANY_ONES)
def test_keep_labels_alone_never_removes_all(snapshots: tuple[Snapshot, ...]) -> None:
    """Without max_age, max_count and expired, which may remove the last snapshot."""
    policy = Policy(keep_labels={"quality": "good"})
    with contextlib.suppress(Unsupported):
        assert prune(snapshots, policy) or not snapshots
