# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One budget of time, and the durations and moments that people write.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
import time
import typing as t
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption, TimedOut

_T = t.TypeVar("_T")

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST = 100 * 365 * 86400
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")


class Deadline:
    """A budget of seconds that starts now, shared by everything that waits under it."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds that remain, never below zero."""
        return max(0.0, self._end - self._clock())

    def within(self, seconds: float) -> Deadline:
        """A shorter budget inside this one."""
        return Deadline(min(seconds, self.left()), clock=self._clock, sleep=self._sleep)

    def extended(self, seconds: float) -> Deadline:
        """A longer budget: what is left of this one, and so many seconds after its end. It ends at the same moment whenever it is asked for."""
        longer = Deadline(self.seconds + seconds, clock=self._clock, sleep=self._sleep)
        longer._end = self._end + seconds
        return longer

    def sleep(self) -> None:
        """Let the rest of the time pass."""
        self._sleep(self.left())

    def poll(self, what: str, probe: Callable[[], _T | None], *, first: float = 0.1, longest: float = 2.0) -> _T:
        """Call ``probe`` until it returns something, with growing pauses of ``first`` to ``longest`` seconds.

        :raises TimedOut: the budget is used up; names ``what`` was waited for.
        """
        pause = first
        while True:
            value = probe()
            if value is not None:
                return value
            left = self.left()
            if left <= 0:
                raise TimedOut(f"Gave up waiting for {what} after {self.seconds:g} seconds")
            self._sleep(min(pause, left))
            pause = min(pause * 2, longest)


def parse_duration(text: str, *, option: str) -> float:
    """Seconds of ``90s``, ``15m``, ``72h``, ``7d``, ``2w`` or a bare number of seconds.

    :raises InvalidOption: names ``option`` and what is understood.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidOption(f"{option}={text!r} is not a duration; write for example 90s, 15m, 72h or 7d")
    seconds = float(match.group(1)) * _UNITS[match.group(2)]
    if seconds > _LONGEST:
        raise InvalidOption(f"{option}={text!r} is longer than a hundred years; write for example 90s, 15m, 72h or 7d")
    return seconds


def parse_age(text: str, *, option: str) -> timedelta:
    """A duration that decides which snapshots are kept. It needs a unit: a bare 3 that is meant as days would remove what is older than three seconds.

    :raises InvalidOption: names ``option``, the value and what to write.
    """
    seconds = parse_duration(text, option=option)
    if seconds and _NUMBER.fullmatch(text.strip()):
        number = text.strip()
        # Only what would be accepted is proposed, and no single unit, which would be copied without a thought.
        units = {"h": "hours", "d": "days"} if seconds * _UNITS["d"] <= _LONGEST else {"s": "seconds", "m": "minutes"}
        fixes = " or ".join(f"{number}{unit} for {word}" for unit, word in units.items())
        raise InvalidOption(f"{option}={number} has no unit; write {fixes}")
    return timedelta(seconds=seconds)


def parse_time(text: str, *, option: str) -> datetime:
    """An aware UTC moment of an ISO 8601 text such as ``2026-11-26T08:00:00Z``; without a zone it is UTC.

    :raises InvalidOption: names ``option`` and what is understood.
    """
    try:
        # fromisoformat() understands a trailing Z from Python 3.11 on only.
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text.strip()))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).replace(microsecond=0)
    except (ValueError, OverflowError) as exc:
        raise InvalidOption(f"{option}={text!r} is not a time; write ISO 8601, for example 2026-11-26T08:00:00Z") from exc


def format_time(moment: datetime) -> str:
    """ISO 8601 in UTC to the second, with a trailing Z."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_expiry(text: str, *, option: str = "expires") -> timedelta | datetime:
    """When a snapshot expires: a duration counts from its creation, a time stands for itself.

    :raises InvalidOption: neither of the two, or a duration of nothing.
    """
    expiry = parse_moment(text, option=option)
    if not expiry:
        raise InvalidOption(f"{option}={text!r} would expire at once; write for example 72h, 7d or 2026-11-26T08:00:00Z")
    return expiry


def parse_moment(text: str, *, option: str) -> timedelta | datetime:
    """A duration with a unit, which is counted from some moment, or a time that stands for itself.

    :raises InvalidOption: neither of the two.
    """
    if re.match(r"\d{4}-\d", text.strip()):
        return parse_time(text, option=option)
    try:
        return parse_age(text, option=option)
    except InvalidOption as exc:
        if _DURATION.fullmatch(text.strip()):
            raise
        raise InvalidOption(
            f"{option}={text!r} is neither a duration nor a time; write for example 72h, 7d or 2026-11-26T08:00:00Z"
        ) from exc
