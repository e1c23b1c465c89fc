# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The durations and times that users write. Pure: no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST = 100 * 365 * 86400
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")


def parse_duration(text: str, *, option: str) -> float:
    """Return the seconds of ``90s``, ``15m``, ``72h``, ``7d``, ``2w`` or of a number without a unit, which is in seconds.

    :raises InvalidOption: names ``option`` and the accepted formats.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidOption(f"{option}={text!r} is not a duration; write for example 90s, 15m, 72h or 7d")
    seconds = float(match.group(1)) * _UNITS[match.group(2)]
    if seconds > _LONGEST:
        raise InvalidOption(f"{option}={text!r} is longer than a hundred years; write for example 90s, 15m, 72h or 7d")
    return seconds


def parse_age(text: str, *, option: str) -> timedelta:
    """Parse a duration that decides which snapshots are kept. It needs a unit: a 3 that means days would remove everything older than three seconds.

    :raises InvalidOption: names ``option``, the value and the fix.
    """
    seconds = parse_duration(text, option=option)
    if seconds and _NUMBER.fullmatch(text.strip()):
        number = text.strip()
        # Propose only values that are accepted, and two units, so that the user has to choose one.
        units = {"h": "hours", "d": "days"} if seconds * _UNITS["d"] <= _LONGEST else {"s": "seconds", "m": "minutes"}
        fixes = " or ".join(f"{number}{unit} for {word}" for unit, word in units.items())
        raise InvalidOption(f"{option}={number} has no unit; write {fixes}")
    return timedelta(seconds=seconds)


def parse_time(text: str, *, option: str) -> datetime:
    """Parse an ISO 8601 time such as ``2026-11-26T08:00:00Z`` into an aware UTC datetime. A time without a zone is UTC.

    :raises InvalidOption: names ``option`` and the accepted format.
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
    """Format as ISO 8601 in UTC with seconds and a trailing Z."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_expiry(text: str, *, option: str = "expires") -> timedelta | datetime:
    """Parse the expiry of a snapshot: a duration, counted from its creation, or a time.

    :raises InvalidOption: the text is neither, or a duration of zero.
    """
    expiry = parse_moment(text, option=option)
    if not expiry:
        raise InvalidOption(f"{option}={text!r} would expire at once; write for example 72h, 7d or 2026-11-26T08:00:00Z")
    return expiry


def parse_moment(text: str, *, option: str) -> timedelta | datetime:
    """Parse a duration with a unit, which the caller counts from some time, or a time.

    :raises InvalidOption: the text is neither.
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
