# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Retention by example: calendar effects, and the precedence of rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption, Unsupported
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot
from ansible_collections.safepoint.vm.plugins.module_utils._core.retention import (
    Policy,
    Reason,
    Verdict,
    judge,
    settle,
    time_zone,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)
VIENNA = ZoneInfo("Europe/Vienna")


def at(moment: str | None, *, name: str | None = None, **label: str) -> Snapshot:
    """Return a snapshot of ours with this creation time in UTC."""
    fields = "".join(f" {key}={value}" for key, value in label.items())
    created = datetime.fromisoformat(moment).replace(tzinfo=timezone.utc) if moment else None
    name = name or str(moment)
    return Snapshot(name, name, created, None, f"[safepoint v=1 owner=safepoint{fields}]", False, "crash", False)


def decide(
    snapshots: Iterable[Snapshot], policy: Policy, *, now: datetime = NOW, tz: tzinfo = timezone.utc, vm: str = "vm"
) -> dict[str, Verdict]:
    policy.check()
    return {one.snapshot.name: one for one in settle(judge(vm, snapshots, policy, excluded={}, now=now, tz=tz), policy)}


def kept(verdicts: dict[str, Verdict]) -> list[str]:
    return [name for name, one in verdicts.items() if one.keep]


def rules(verdict: Verdict) -> list[str]:
    return [reason.rule for reason in verdict.reasons]


# calendars


def test_repeated_hour_at_the_end_of_summer_time_counts_twice() -> None:
    # Vienna, 2026-10-25: 02:30 summer time, 02:30 winter time, 03:10.
    autumn = [at("2026-10-25T00:30"), at("2026-10-25T01:30"), at("2026-10-25T02:10")]
    found = decide(autumn, Policy(keep_hourly=3), tz=VIENNA)
    assert kept(found) == ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:10"]
    assert "2026-10-25 02h+0200" in found["2026-10-25T00:30"].reasons[0].text


def test_skipped_hour_is_not_counted() -> None:
    # Vienna, 2026-03-29: 01:30, then 03:30, because 02:xx does not exist; 03:40.
    spring = [at("2026-03-29T00:30"), at("2026-03-29T01:30"), at("2026-03-29T01:40")]
    assert kept(decide(spring, Policy(keep_hourly=2), tz=VIENNA)) == ["2026-03-29T00:30", "2026-03-29T01:40"]


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_day_of_23_or_25_hours_is_one_day(day: str, hours: int) -> None:
    begins = datetime.fromisoformat(day).replace(tzinfo=VIENNA).astimezone(timezone.utc)
    moments = [begins + timedelta(hours=hour, minutes=30) for hour in range(-1, hours + 1)]
    snapshots = [at(moment.strftime("%Y-%m-%dT%H:%M")) for moment in moments]
    found = kept(decide(snapshots, Policy(keep_daily=2), tz=VIENNA))
    assert found == [snapshots[-2].name, snapshots[-1].name]
    assert len(kept(decide(snapshots, Policy(keep_daily=9), tz=VIENNA))) == 3


def test_day_ends_at_midnight_of_the_time_zone() -> None:
    evening, night = at("2026-11-24T22:30"), at("2026-11-24T23:30")
    assert kept(decide([evening, night], Policy(keep_daily=5))) == [evening.name, night.name]  # the oldest, count not reached
    one_more = [at("2026-11-23T10:00"), evening, night]
    assert kept(decide(one_more, Policy(keep_daily=2))) == ["2026-11-23T10:00", night.name]
    assert kept(decide(one_more, Policy(keep_daily=2), tz=VIENNA)) == [evening.name, night.name]


def test_week_53_reaches_into_the_next_year() -> None:
    # 2026-W53 is from Monday, 2026-12-28, to Sunday, 2027-01-03.
    snapshots = [at("2026-12-27T12:00"), at("2026-12-28T12:00"), at("2027-01-03T12:00"), at("2027-01-04T12:00")]
    found = decide(snapshots, Policy(keep_weekly=3), now=datetime(2027, 2, 1, tzinfo=timezone.utc))
    assert kept(found) == ["2026-12-27T12:00", "2027-01-03T12:00", "2027-01-04T12:00"]
    assert [found[name].reasons[0].text[-8:] for name in kept(found)] == ["2026-W52", "2026-W53", "2027-W01"]


def test_leap_day_belongs_to_february_and_to_the_first_quarter() -> None:
    snapshots = [
        at("2028-01-15T12:00"),
        at("2028-02-28T12:00"),
        at("2028-02-29T12:00"),
        at("2028-03-01T12:00"),
        at("2028-04-01T00:00"),
    ]
    now = datetime(2028, 5, 1, tzinfo=timezone.utc)
    assert kept(decide(snapshots, Policy(keep_daily=3), now=now)) == [one.name for one in snapshots[2:]]
    assert kept(decide(snapshots, Policy(keep_monthly=3), now=now)) == [one.name for one in snapshots[2:]]
    assert kept(decide(snapshots, Policy(keep_quarterly=2), now=now)) == ["2028-03-01T12:00", "2028-04-01T00:00"]
    assert kept(decide(snapshots, Policy(keep_yearly=1), now=now)) == ["2028-04-01T00:00"]


def test_months_without_a_snapshot_are_not_counted() -> None:
    snapshots = [at("2024-05-05T12:00"), at("2025-01-05T12:00"), at("2026-11-05T12:00"), at("2026-11-06T12:00")]
    assert kept(decide(snapshots, Policy(keep_monthly=3))) == ["2024-05-05T12:00", "2025-01-05T12:00", "2026-11-06T12:00"]


def test_snapshot_from_the_future_is_kept_and_not_counted() -> None:
    snapshots = [at("2026-11-20T12:00"), at("2026-11-21T12:00"), at("2026-11-25T12:00:01")]
    found = decide(snapshots, Policy(keep_last=1))
    assert kept(found) == ["2026-11-21T12:00", "2026-11-25T12:00:01"]
    assert rules(found["2026-11-25T12:00:01"]) == ["future"]


def test_greater_id_is_newer_within_the_same_second() -> None:
    twins = [at("2026-11-20T12:00", name=name) for name in ("snap-10", "snap-9", "snap-8")]
    assert kept(decide(twins, Policy(keep_last=1))) == ["snap-10"]


def test_child_is_newer_within_the_same_second() -> None:
    names = ("long-name", "mid-name", "s")
    chain = [dataclasses.replace(at("2026-11-20T12:00", name=name), parent=parent) for name, parent in zip(names, (None, *names))]
    for some in (chain, chain[::-1]):
        assert kept(decide(some, Policy(keep_last=1))) == ["s"]


def test_within_is_counted_from_the_newest_snapshot_and_not_from_now() -> None:
    old = [at("2020-01-01T00:00"), at("2020-01-06T00:00"), at("2020-01-07T00:00")]
    assert kept(decide(old, Policy(keep_within=timedelta(days=1)))) == ["2020-01-06T00:00", "2020-01-07T00:00"]


def test_any_rule_is_enough_to_keep_and_each_gives_a_reason() -> None:
    snapshots = [at("2026-10-31T10:00"), at("2026-11-23T10:00"), at("2026-11-24T10:00"), at("2026-11-24T20:00")]
    found = decide(snapshots, Policy(keep_last=1, keep_daily=2, keep_monthly=2))
    assert {name: rules(one) for name, one in found.items()} == {
        "2026-10-31T10:00": ["keep_monthly"],
        "2026-11-23T10:00": ["keep_daily"],
        "2026-11-24T10:00": ["not_kept"],
        "2026-11-24T20:00": ["keep_last", "keep_daily", "keep_monthly"],
    }


# which rule wins


@pytest.mark.parametrize(
    "policy", [Policy(keep_last=1), Policy(max_age=timedelta(1)), Policy(max_count=1), Policy(everything=True)]
)
def test_protected_snapshot_is_kept_and_not_counted(policy: Policy) -> None:
    protected = [
        at("2026-01-01T12:00", name="held", hold="yes", hold_by="ann", hold_reason="audit", expires="2026-02-01T00:00:00Z"),
        at("2026-01-02T12:00", name="guarding", state="guarding"),
        at(None, name="timeless"),
        at("2026-01-03T12:00", name="odd", expires="soon"),
        at("2027-01-01T12:00", name="future"),
    ]
    found = decide([*protected, at("2025-01-01T12:00"), at("2025-01-02T12:00")], policy)
    assert [name for name in kept(found) if not name.startswith("2025")] == [one.name for one in protected]
    assert [rules(found[one.name])[0] for one in protected] == ["held", "in_flight", "no_time", "no_time", "future"]
    assert found["held"].reasons[0].text == "is on hold by ann (audit)"
    assert len(kept(found)) - len(protected) == (1 if policy.keeps or policy.max_count else 0)


def test_snapshot_younger_than_min_age_is_kept_and_not_counted() -> None:
    snapshots = [at("2026-11-25T09:00"), at("2026-11-25T10:00"), at("2026-11-25T11:30")]
    found = decide(snapshots, Policy(keep_last=1, min_age=timedelta(hours=1)))
    assert {name: rules(one) for name, one in found.items()} == {
        "2026-11-25T09:00": ["not_kept"],
        "2026-11-25T10:00": ["keep_last"],
        "2026-11-25T11:30": ["min_age"],
    }


def test_expired_snapshot_is_removed_despite_keep_rules_even_if_it_is_the_last() -> None:
    gone = at("2026-11-20T12:00", expires="2026-11-25T12:00:00Z")
    later = at("2026-11-19T12:00", expires="2026-11-25T12:00:01Z")
    found = decide([gone, later], Policy(expired=True, keep_last=1))
    assert (kept(found), rules(found[gone.name])) == ([later.name], ["expired"])
    assert kept(decide([gone], Policy(expired=True))) == []
    assert kept(decide([gone, later], Policy(expired=True))) == [later.name]
    # Without the rule, an expiry has no effect.
    assert kept(decide([gone, later], Policy(keep_last=1))) == [gone.name]


def test_min_keep_keeps_what_has_expired_or_is_too_old_and_max_count_ends_after_it() -> None:
    snapshots = [at(f"2026-01-0{day}T12:00", expires="2026-02-01T00:00:00Z") for day in (1, 2, 3)]
    found = decide(snapshots, Policy(expired=True, max_age=timedelta(days=30), max_count=2, min_keep=2))
    assert (kept(found), rules(found["2026-01-03T12:00"])) == (["2026-01-02T12:00", "2026-01-03T12:00"], ["min_keep"])


def test_max_count_counts_only_kept_snapshots() -> None:
    hours = [at(f"2026-11-24T{hour:02d}:00") for hour in range(10)]
    days = [at(f"2026-11-{day}T12:00") for day in (20, 21, 22, 23)]
    assert kept(decide([*days, *hours], Policy(keep_daily=4, max_count=3))) == [days[2].name, days[3].name, hours[-1].name]


def test_max_delete_per_run_removes_the_oldest_first() -> None:
    snapshots = [at(f"2026-01-0{day}T12:00") for day in range(1, 6)]
    found = decide(snapshots, Policy(max_age=timedelta(days=30), max_delete=2))
    assert kept(found) == [one.name for one in snapshots[2:]]
    assert rules(found["2026-01-05T12:00"]) == ["max_delete_per_run"]


def test_policies_with_different_names_are_counted_separately() -> None:
    snapshots = [at(f"2026-01-0{day}T12:00", policy=name) for day, name in enumerate(["daily", "daily", "weekly", "daily"], 1)]
    assert kept(decide(snapshots, Policy(keep_last=1))) == ["2026-01-03T12:00", "2026-01-04T12:00"]


def test_group_over_several_vms_is_removed_whole_or_not_at_all() -> None:
    policy = Policy(max_age=timedelta(days=30), max_delete=3)
    parts = {
        "web01": [at("2026-01-01T12:00", name="w1", group="CHG1"), at("2026-01-01T13:00", name="w2", group="CHG2")],
        "db01": [at("2026-01-01T12:00", name="d1", group="CHG1"), at("2026-01-01T13:00", name="d2", group="CHG2", hold="yes")],
        "db02": [at("2026-01-02T12:00", name="e1", group="CHG1"), at("2026-01-03T12:00", name="e3")],
    }

    def found(policy: Policy) -> dict[str, list[str]]:
        verdicts = [one for vm, some in parts.items() for one in judge(vm, some, policy, excluded={}, now=NOW, tz=timezone.utc)]
        return {one.snapshot.name: rules(one) for one in settle(verdicts, policy)}

    wait = ["max_delete_per_run"]
    assert found(policy) == {
        "w1": ["max_age"], "d1": ["max_age"], "e1": ["max_age"], "e3": wait, "w2": ["group"], "d2": ["held"],
    }  # fmt: skip
    # A group larger than max_delete_per_run is never removed in part.
    two = found(Policy(max_age=timedelta(days=30), max_delete=2))
    assert two == {"w1": wait, "d1": wait, "e1": wait, "e3": ["max_age"], "w2": ["group"], "d2": ["held"]}


def test_foreign_snapshot_is_not_part_of_a_group() -> None:
    foreign = {"theirs": Reason("foreign", "it belongs to another owner")}
    snapshots = [at("2026-01-01T12:00", name="ours", group="g"), at("2026-01-01T12:00", name="theirs", group="g")]
    policy = Policy(max_age=timedelta(days=1))
    found = settle(judge("vm", snapshots, policy, excluded=foreign, now=NOW, tz=timezone.utc), policy)
    assert [one.keep for one in found] == [False, True]


@pytest.mark.parametrize("policy", [Policy(keep_last=1), Policy(max_count=1), Policy(max_age=timedelta(days=1), min_keep=1)])
def test_broken_snapshot_does_not_count_instead_of_a_usable_one(policy: Policy) -> None:
    good, older = at("2026-11-20T12:00"), at("2026-11-19T12:00")
    broken = dataclasses.replace(at("2026-11-21T12:00"), obstacles={"revert": "is incomplete"})
    assert good.name in kept(decide([older, good, broken], policy))
    assert older.name not in kept(decide([older, good, broken], policy))
    # If all are broken, they are judged like any others.
    all_broken = [dataclasses.replace(one, obstacles=broken.obstacles) for one in (older, good, broken)]
    assert kept(decide(all_broken, policy)) == [broken.name]


# what is refused


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (Policy(), "no rule"),
        (Policy(min_keep=3, min_age=timedelta(days=1), max_delete=5), "no rule"),
        (Policy(everything=True, keep_last=1), "all=true"),
        (Policy(everything=True, min_keep=1), "all=true"),
        (Policy(max_count=2, min_keep=3), "min_keep=3"),
    ],
)
def test_invalid_policy_is_refused(policy: Policy, word: str) -> None:
    with pytest.raises(InvalidOption, match=word):
        policy.check()


def test_rules_that_would_keep_nothing_are_refused() -> None:
    with pytest.raises(Unsupported, match="2026-01-01T12:00"):
        decide([at("2026-01-01T12:00")], Policy(keep_labels={"quality": "good"}))
    # Snapshots removed or kept for another reason are no such case.
    assert kept(decide([at("2026-01-01T12:00", hold="yes")], Policy(keep_labels={"quality": "good"}))) == ["2026-01-01T12:00"]
    assert kept(decide([at("2026-01-01T12:00")], Policy(keep_labels={"quality": "good"}, min_keep=1))) == ["2026-01-01T12:00"]
    assert kept(decide([at("2026-01-01T12:00")], Policy(keep_labels={"quality": "good"}, max_age=timedelta(days=1)))) == []


@pytest.mark.parametrize("name", ["Europe/Atlantis", "", "../../etc/passwd", "Europe", "/etc/localtime", "utc\0"])
def test_unknown_time_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="timezone="):
        time_zone(name)


def test_machine_without_time_zone_data_accepts_utc_and_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import zoneinfo

    monkeypatch.setattr(zoneinfo, "TZPATH", ())
    zoneinfo.reset_tzpath(to=())
    try:
        zoneinfo.ZoneInfo.clear_cache()
        assert time_zone("UTC") is timezone.utc
        with pytest.raises(InvalidOption, match="tzdata"):
            time_zone("Europe/Vienna")
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
