# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import (
    format_time,
    parse_age,
    parse_duration,
    parse_expiry,
    parse_moment,
    parse_time,
)
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption, TimedOut
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import NameRule, check_name, did_you_mean
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.records import is_number
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline


class Time:
    """A clock that advances only in sleep()."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds, clock=self.clock, sleep=self.sleep)


def test_polling_ends_with_the_first_answer() -> None:
    time = Time()
    answers = iter([None, None, "there"])
    assert time.deadline(60).poll("it", lambda: next(answers)) == "there"
    assert time.pauses == [0.1, 0.2]


def test_polling_times_out_with_an_error_that_names_the_wait() -> None:
    time = Time()
    with pytest.raises(TimedOut, match="the moon after 10 seconds"):
        time.deadline(10).poll("the moon", lambda: None)
    assert time.now == pytest.approx(10)
    assert max(time.pauses) <= 2.0


def test_nested_deadline_is_the_shorter_one() -> None:
    time = Time()
    outer = time.deadline(10)
    time.now = 7
    assert outer.within(60).left() == pytest.approx(3)
    assert outer.within(1).left() == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("72h", 259200), ("7d", 604800), ("2w", 1209600), ("30", 30), ("1.5h", 5400), (" 5 m ", 300)],
)
def test_valid_durations_are_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text, option="timeout") == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-1h", "1h30m", "h", "1e3", "٣h3"])
def test_invalid_duration_is_refused_with_option_and_value(text: str) -> None:
    with pytest.raises(InvalidOption, match="lock_timeout") as caught:
        parse_duration(text, option="lock_timeout")
    assert repr(text) in str(caught.value)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1), timezones=st.just(timezone.utc)))  # noqa: DTZ001
def test_times_survive_a_round_trip_to_the_second(moment: datetime) -> None:
    assert parse_time(format_time(moment), option="expires") == moment.replace(microsecond=0)


def test_expiry_is_a_duration_or_a_time() -> None:
    assert parse_expiry("72h") == timedelta(hours=72)
    moment = datetime(2026, 11, 26, 8, tzinfo=timezone.utc)
    assert parse_expiry("2026-11-26T08:00:00Z") == parse_expiry("2026-11-26 09:00:00+01:00") == moment


@pytest.mark.parametrize("text", ["never", "2026-13-01", "0", "0h", "", "99999999999d"])
def test_invalid_expiry_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="expires"):
        parse_expiry(text)


@pytest.mark.parametrize("text", ["3", " 3 ", "3.0", "365"])
def test_retention_duration_without_unit_is_refused(text: str) -> None:
    for parse in (parse_expiry, parse_moment, parse_age):
        with pytest.raises(
            InvalidOption, match=f"expires={text.strip()} has no unit; write {text.strip()}h for hours or {text.strip()}d"
        ):
            parse(text, option="expires")
    assert parse_age(f"{text}d", option="expires") == timedelta(days=float(text))


def test_suggested_duration_is_valid() -> None:
    with pytest.raises(InvalidOption, match="write 86400s for seconds or 86400m for minutes"):
        parse_age("86400", option="max_age")


@pytest.mark.parametrize(
    ("name", "there", "told"),
    [
        ("web01.example.com", ["web01", "web02"], "did you mean web01?"),
        ("web01", ["web01.example.com", "web02.example.com", "db01"], "did you mean web01.example.com?"),
        ("WEB01.example.com", ["web01", "web011.example.com"], "did you mean web01?"),
        ("w1", ["w1.a.example.com", "w1.b.example.com"], "did you mean w1.a.example.com or w1.b.example.com?"),
        ("web1", ["web01", "db01"], "did you mean web01?"),
        ("web01.example.com", ["web01.example.org"], "did you mean web01.example.org?"),
        ("web01 web02", ["web01", "web02"], "did you mean several VMs? Write vms: [web01, web02]"),
        ("web01,web02", ["web01", "web02"], "did you mean several VMs? Write vms: [web01, web02]"),
        ("my vm", ["my", "my-vm"], "did you mean my-vm?"),
        (".com", ["db01", "x.com.example.org"], None),
        ("zzz", ["db01"], None),
    ],
)
def test_similar_names_are_suggested_also_across_domains(name: str, there: list[str], told: str | None) -> None:
    assert did_you_mean(name, there) == told


@given(st.text(max_size=100))
def test_accepted_names_are_short_ascii(name: str) -> None:
    rule = NameRule(max_bytes=40, reserved=frozenset({"current"}))
    with contextlib.suppress(InvalidOption):
        check_name(name, rule)
        assert 1 <= len(name.encode()) <= 40
        assert name.isascii() and name[0].isalnum() and name != "current"


def test_reserved_name_is_refused() -> None:
    with pytest.raises(InvalidOption, match="current"):
        check_name("current", NameRule(max_bytes=40, reserved=frozenset({"current"})))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("1", True), ("0", True), ("007", True), ("999999", True), ("1000000", False), ("", False), ("a1", False)]
    + [("\u00b2", False), ("1\u00b2", False), ("\u0663", False), ("9" * 5000, False), ("0" * 5000 + "1", True)],
)
def test_only_plain_decimal_digits_make_a_number(name: str, expected: bool) -> None:
    """libvirt accepts any name, and the listing checks each."""
    assert is_number(name) is expected
