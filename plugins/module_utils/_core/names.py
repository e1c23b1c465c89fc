# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Check the names of snapshots before anything is written, and find similar names for error messages.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption


@dataclasses.dataclass(frozen=True)
class NameRule:
    """The snapshot names that a backend accepts."""

    max_bytes: int
    extra: str = "._-"
    """Allowed characters besides letters and digits."""
    reserved: frozenset[str] = frozenset()
    """Reserved names in lower case; upper and lower case are treated alike."""
    min_bytes: int = 1
    first_letter: bool = False
    """True if a name must begin with a letter, not with a digit."""
    numbers_from: int = 0
    """Smaller numbers are not allowed as names: the backend would read them as its own snapshot numbers."""


def check_name(name: str, rule: NameRule, *, option: str = "name") -> None:
    """Refuse a name that the backend would refuse, change or leak.

    Letters and digits are ASCII only: every backend accepts these, and the length is limited in bytes.

    :raises InvalidOption: names the option, the value and the allowed names.
    """
    first = "a letter" if rule.first_letter else "a letter or digit"
    many = f"{rule.min_bytes} to {rule.max_bytes}" if rule.min_bytes > 1 else f"at most {rule.max_bytes}"
    allowed = f"use {many} of the letters a-z and A-Z, digits and {' '.join(rule.extra)}, beginning with {first}"
    shown = name if len(name) <= 60 else name[:57] + "..."
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name:
        raise InvalidOption(f"{option} is empty; {allowed}")
    if not rule.min_bytes <= size <= rule.max_bytes:
        raise InvalidOption(f"{option}={shown!r} is {size} bytes long; {allowed}")
    if not _plain(name[0]) or (rule.first_letter and name[0].isdigit()):
        raise InvalidOption(f"{option}={shown!r} begins with {name[0]!r}; {allowed}")
    wrong = sorted({char for char in name if not _plain(char) and char not in rule.extra})
    if wrong:
        raise InvalidOption(f"{option}={shown!r} contains {', '.join(map(repr, wrong[:5]))}; {allowed}")
    if is_number_below(name, rule.numbers_from):
        raise InvalidOption(
            f"{option}={shown!r} is a number, which the backend would read as the number of a snapshot; add a letter, for example s{name}"
        )
    if name.lower() in rule.reserved:
        raise InvalidOption(f"{option}={shown!r} is reserved by the backend; choose another name")


def is_number_below(name: str, limit: int) -> bool:
    """Return True if the name is a decimal number below the limit. Digits of other scripts, such as \u00b2, count as letters."""
    # A number with more digits than the limit is not smaller. It is not converted: int() refuses more than 4300 digits.
    digits = name.lstrip("0")
    return name != "" and name.isascii() and name.isdigit() and len(digits) <= len(str(limit)) and int(digits or "0") < limit


def did_you_mean(name: str, there: Iterable[str]) -> str | None:
    """Return 'did you mean ...?' with the names in ``there`` that are most similar to ``name``, or None.

    Names that differ only by a domain, such as web01 and web01.example.com, come first: they are nearly always the same machine, but few letters match.
    """
    names = sorted(set(there))
    parts = [part for part in re.split(r"[\s,]+", name) if part]
    if len(parts) > 1 and name not in names and set(parts) <= set(names):
        return f"did you mean several VMs? Write vms: [{', '.join(parts)}]"
    like = [one for one in names if _differ_by_domain(name.lower(), one.lower())][:3]
    if not like:
        near = difflib.get_close_matches(name.lower(), [one.lower() for one in names], n=3)
        like = [one for one in names if one.lower() in near]
    return f"did you mean {' or '.join(like)}?" if like else None


def _differ_by_domain(one: str, other: str) -> bool:
    host, _dot, domain = one.partition(".")
    other_host, _dot, other_domain = other.partition(".")
    return bool(host) and host == other_host and bool(domain) != bool(other_domain)


def _plain(char: str) -> bool:
    return char.isascii() and char.isalnum()
