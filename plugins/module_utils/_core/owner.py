# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ownership of snapshots, and the signature that proves it. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils._core import label as _label
from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time, parse_duration, parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Snapshot, Vm

# Hexadecimal digits of the SHA-256 HMAC: a description has little space, and 128 bits cannot be guessed.
_SIGNATURE_LENGTH = 32
# The label fields of the signature: the signature itself, and the creation time that it is valid for.
_SIGNATURE = ("sig", "at")
# Creation times have a resolution of one second, and a request to the endpoint measures its clock. If the clocks differ by more, the label is signed again
# with the actual creation time.
_SLACK = timedelta(seconds=5)


def within(begin: datetime, length: timedelta) -> str:
    """Return the field ``at`` for a snapshot that is not taken yet: its creation time is between ``begin`` and ``begin`` + ``length``."""
    return f"{format_time(begin - _SLACK)}/{(length + 2 * _SLACK).total_seconds():.0f}s"


def exactly(created: datetime) -> str:
    """Return the field ``at`` for an existing snapshot."""
    return format_time(created)


@dataclasses.dataclass(frozen=True)
class Owner:
    """An owner name, and an optional key to sign labels."""

    name: str = "safepoint"
    key: str | None = dataclasses.field(default=None, repr=False)

    def owns(self, vm: Vm, snapshot: Snapshot) -> bool:
        """Return True if the label is valid, has this owner and, if there is a key, is signed for this snapshot."""
        return self.why_not(vm, snapshot) is None

    def why_not(self, vm: Vm, snapshot: Snapshot) -> str | None:
        """Return the reason why the snapshot does not belong to this owner, or None if it does."""
        parsed = _label.parse(snapshot.description)
        if parsed.label is None:
            return parsed.problem or "it has no label of this collection"
        if parsed.label.owner != self.name:
            return f"it belongs to owner {parsed.label.owner!r}"
        if self.key is None:
            return None
        if not self._has_our_signature(vm, snapshot.name, parsed.label):
            return (
                f"its label {'has another signature' if 'sig' in parsed.label.fields else 'is not signed'}, but label_key is set"
            )
        if not _fits(parsed.label, snapshot):
            return "its label was signed for a snapshot with another creation time, but label_key is set"
        return None

    def wrote(self, vm: Vm, snapshot: Snapshot) -> bool:
        """Like owns(), but without the check of the creation time: for new snapshots, before a difference of the clocks is corrected."""
        label = snapshot.label
        return (
            label is not None
            and label.owner == self.name
            and (self.key is None or self._has_our_signature(vm, snapshot.name, label))
        )

    def sign(self, vm: Vm, name: str, label: _label.Label, *, at: str) -> _label.Label:
        """Return the label for the snapshot with this name: signed if there is a key, otherwise without a signature.

        ``at`` is the result of within() or exactly(): the signature is not valid for a snapshot with another creation time.
        """
        fields = {key: value for key, value in label.fields.items() if key not in _SIGNATURE}
        if self.key is None:
            return _label.Label(label.owner, fields)
        fields["at"] = at
        return _label.Label(label.owner, {**fields, "sig": self._signature(vm, name, label.owner, fields)})

    def signed(self, vm: Vm, snapshot: Snapshot) -> bool:
        """Return True if the snapshot's label has a valid signature of this key."""
        label = snapshot.label
        return label is not None and self._has_our_signature(vm, snapshot.name, label) and _fits(label, snapshot)

    def _has_our_signature(self, vm: Vm, name: str, label: _label.Label) -> bool:
        if self.key is None or "at" not in label.fields:
            return False
        fields = {key: value for key, value in label.fields.items() if key != "sig"}
        wanted = self._signature(vm, name, label.owner, fields)
        return hmac.compare_digest(wanted.encode(), label.fields.get("sig", "").encode())

    def _signature(self, vm: Vm, name: str, owner: str, fields: dict[str, str]) -> str:
        # The signature is not valid for a copy of the line on another VM, or on a snapshot with another name or creation time (see _fits()).
        text = "\n".join([vm.uuid or vm.id, name, _label.Label(owner, fields).line()])
        return hmac.new((self.key or "").encode(), text.encode(), hashlib.sha256).hexdigest()[:_SIGNATURE_LENGTH]


def _fits(label: _label.Label, snapshot: Snapshot) -> bool:
    """Return True if the creation time of the snapshot is within the time in ``at``.

    A user with the right to rename a snapshot, or to edit its description, cannot set its creation time. The check also distinguishes a new VM from a deleted
    one that had the same number (Proxmox VE has no UUIDs).
    """
    if not snapshot.id:
        return True  # a predicted snapshot, not taken yet
    begin, slash, length = label.fields["at"].partition("/")
    try:
        first = parse_time(begin, option="at")
        last = first + timedelta(seconds=parse_duration(length, option="at") if slash else 0)
    except InvalidOption:
        return False
    return snapshot.created is not None and first <= snapshot.created.replace(microsecond=0) <= last
