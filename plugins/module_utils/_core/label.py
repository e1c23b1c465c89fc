# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The label that the collection stores in the description of a snapshot.

It is one line that people can read in the UI of the hypervisor::

    [safepoint v=1 owner=awx-prod change=CHG0042 expires=2026-11-26T08:00:00Z]

It may be any line of the description, so people can add text before and after it.
Values are percent-encoded UTF-8. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing as t
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, unquote

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time, parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption

STATES = ("guarding", "committed", "rolled_back")

_VERSION = "1"
_OWN_KEYS = frozenset({"v", "owner", "consistency", "expires", "hold", "hold_by", "hold_reason", "at", "sig"})
_CANDIDATE = re.compile(r"\s*\[safepoint(?![^\s\]])")
_LINE = re.compile(r"\s*\[safepoint((?:\s+[^\s\]]+)*)\s*\]\s*")
_KEY = re.compile(r"[a-z][a-z0-9_]{0,39}")
_READABLE = "-._~:/@+,"


@dataclasses.dataclass(frozen=True)
class Label:
    """A parsed label line: the owner of the snapshot, and the other fields, decoded."""

    owner: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def expires(self) -> datetime | None:
        """The time at which the snapshot expires, or None. An invalid time counts as None."""
        try:
            return parse_time(self.fields["expires"], option="expires")
        except (KeyError, InvalidOption):
            return None

    def lease(self, now: datetime) -> str | None:
        """Return the state of the lease at the time ``now``: ``running``, ``over`` or ``unreadable``; None if there is no lease.

        A lease that is running means that the run which wrote it may still be alive.
        """
        if "lease" not in self.fields:
            return None
        try:
            return "running" if parse_time(self.fields["lease"], option="lease") > now else "over"
        except InvalidOption:
            return "unreadable"

    @property
    def held(self) -> bool:
        """True if the snapshot is on hold."""
        return "hold" in self.fields

    def hold_words(self) -> str:
        """Return 'is on hold' with the person and the reason if they are known. It follows the name of the snapshot in a sentence."""
        by, reason = self.fields.get("hold_by"), self.fields.get("hold_reason")
        return "is on hold" + (f" by {by}" if by else "") + (f" ({reason})" if reason else "")

    @property
    def consistency(self) -> str | None:
        """The consistency of the snapshot, if the backend does not record it itself."""
        return self.fields.get("consistency")

    def line(self) -> str:
        """Return the label as one line of text. Equal fields give equal lines."""
        pairs = [("v", _VERSION), ("owner", self.owner), *sorted(self.fields.items())]
        return "[safepoint " + " ".join(f"{key}={quote(value, safe=_READABLE)}" for key, value in pairs) + "]"

    def as_dict(self) -> dict[str, str]:
        """Return the owner and all fields, for results."""
        return {"owner": self.owner, **self.fields}


class Parsed(t.NamedTuple):
    """A description split into text and label."""

    text: str
    """The description without the label line, or the full description if there is no valid label."""
    label: Label | None
    problem: str | None
    """The reason why a line that looks like a label is not valid."""


@functools.lru_cache(maxsize=4096)
def parse(description: str) -> Parsed:
    """Split a description into text and label. An invalid label, or more than one, counts as no label."""
    lines = description.split("\n")
    found = [number for number, line in enumerate(lines) if _CANDIDATE.match(line)]
    if not found:
        return Parsed(description, None, None)
    if len(found) > 1:
        return Parsed(description, None, "it has more than one label line")
    at = found[0]
    label, problem = _parse_line(lines[at])
    if label is None:
        return Parsed(description, None, problem)
    return Parsed("\n".join(lines[:at] + lines[at + 1 :]), label, None)


def render(label: Label, *, text: str) -> str:
    """Return a description with ``text`` and ``label`` on its last line."""
    return f"{text}\n{label.line()}" if text else label.line()


def replace(description: str, label: Label) -> str:
    """Return ``description`` with its label line replaced in place, or appended if there is none."""
    if parse(description).label is None:
        return render(label, text=description)
    return "\n".join(label.line() if _CANDIDATE.match(line) else line for line in description.split("\n"))


def check_labels(labels: Mapping[str, t.Any], *, option: str = "labels") -> dict[str, str]:
    """Check the ``labels`` option, or a similar one, and convert its values to text. An empty value (it removes the key) stays empty.

    :raises InvalidOption: names the key or value and the allowed ones.
    """
    checked = {}
    for key, value in labels.items():
        text = "" if value is None else str(value)
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidOption(
                f"{option}: {key!r} is not a valid key; use at most 40 of the characters a-z, 0-9 and _, beginning with a letter"
            )
        if key in _OWN_KEYS:
            raise InvalidOption(f"{option}: the key {key!r} is reserved; remove it, and use the option for it if there is one")
        if isinstance(value, (dict, list)):
            raise InvalidOption(f"{option}: the value of {key!r} is a {type(value).__name__}; use a text, a number or a boolean")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidOption(
                f"{option}: the value of {key!r} contains an unpaired surrogate, which is not valid text; remove it"
            )
        if key == "state" and text and text not in STATES:
            raise InvalidOption(f"{option}: state={text!r} is not valid; use {', '.join(STATES)}")
        if key == "lease" and text:
            text = format_time(parse_time(text, option=f"{option}: lease"))
        checked[key] = text
    return checked


def check_description(text: str) -> str:
    """Return the ``description`` option as backends store it, with line feeds as line ends.

    :raises InvalidOption: the text has a label line, or characters that no backend can store.
    """
    text = text.replace("\r\n", "\n")
    if any(_CANDIDATE.match(line) for line in text.split("\n")):
        raise InvalidOption("description has a line that begins with '[safepoint'; remove it, and use labels, expires and hold")
    # XML 1.0 has no other control characters, and libvirt 9.0 refuses them (code 35).
    wrong = sorted(
        {char for char in text if (char < " " and char not in "\n\t") or "\ud800" <= char <= "\udfff" or char in "\ufffe\uffff\r"}
    )
    if wrong:
        raise InvalidOption(f"description contains {', '.join(map(repr, wrong[:5]))}, which cannot be stored; remove it")
    return text


def _parse_line(line: str) -> tuple[Label | None, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        return None, "its label line does not end in ]"
    fields: dict[str, str] = {}
    for word in match.group(1).split():
        key, equals, value = word.partition("=")
        if not equals or not _KEY.fullmatch(key) or key in fields:
            return None, f"its label line has the invalid word {word[:40]!r}"
        try:
            fields[key] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            return None, f"its label line has the invalid word {word[:40]!r}"
    if fields.pop("v", None) != _VERSION:
        return None, "its label line is not of version 1"
    owner = fields.pop("owner", "")
    if not owner:
        return None, "its label line has no owner"
    return Label(owner, fields), ""
