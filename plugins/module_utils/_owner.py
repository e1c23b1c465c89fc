# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose snapshots are ours, and how that is proved. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from datetime import datetime, timedelta

from ansible_collections.safepoint.vm.plugins.module_utils import _label
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import format_time, parse_duration, parse_time
from ansible_collections.safepoint.vm.plugins.module_utils._errors import InvalidOption
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Vm

# Of SHA-256, in hexadecimal digits: a description has little room, and 128 bits are beyond guessing.
_SIGNATURE_LENGTH = 32
# The fields of a label that say nothing of their own: the signature, and the time for which it holds.
_SIGNATURE = ("sig", "at")
# Creation times have a resolution of a second, and the endpoint's clock is measured with a request. Where clocks differ by more, the label is signed once
# more with the creation time itself.
_SLACK = timedelta(seconds=5)


def within(begin: datetime, length: timedelta) -> str:
    """The time for which a signature holds that is made before the snapshot is: from ``begin`` on, for ``length``."""
    return f"{format_time(begin - _SLACK)}/{(length + 2 * _SLACK).total_seconds():.0f}s"


def exactly(created: datetime) -> str:
    """The time for which a signature holds of a snapshot that is there."""
    return format_time(created)


@dataclasses.dataclass(frozen=True)
class Owner:
    """A name on the label, and with a key also its signature."""

    name: str = "safepoint"
    key: str | None = dataclasses.field(default=None, repr=False)

    def owns(self, vm: Vm, snapshot: Snapshot) -> bool:
        """Whether the snapshot is ours: its label is valid, names us, and is signed for this snapshot where we have a key."""
        return self.why_not(vm, snapshot) is None

    def why_not(self, vm: Vm, snapshot: Snapshot) -> str | None:
        """Why the snapshot is not ours, or None."""
        parsed = _label.parse(snapshot.description)
        if parsed.label is None:
            return parsed.problem or "it has no label of this collection"
        if parsed.label.owner != self.name:
            return f"owner {parsed.label.owner!r} made it"
        if self.key is None:
            return None
        if not self._has_our_signature(vm, snapshot.name, parsed.label):
            return f"its label is {'signed otherwise' if 'sig' in parsed.label.fields else 'not signed'}, and label_key is set"
        if not _fits(parsed.label, snapshot):
            return "its label was signed for a snapshot that was taken at another time, and label_key is set"
        return None

    def wrote(self, vm: Vm, snapshot: Snapshot) -> bool:
        """The same as owns(), whenever the snapshot was taken: for those that have just been, before clocks that differ are made up for."""
        label = snapshot.label
        return (
            label is not None
            and label.owner == self.name
            and (self.key is None or self._has_our_signature(vm, snapshot.name, label))
        )

    def sign(self, vm: Vm, name: str, label: _label.Label, *, at: str) -> _label.Label:
        """The label as it is written to the snapshot of that name: signed where we have a key, and else without a signature.

        ``at`` is within() or exactly(): the signature fits no snapshot that was taken at another time.
        """
        fields = {key: value for key, value in label.fields.items() if key not in _SIGNATURE}
        if self.key is None:
            return _label.Label(label.owner, fields)
        fields["at"] = at
        return _label.Label(label.owner, {**fields, "sig": self._signature(vm, name, label.owner, fields)})

    def signed(self, vm: Vm, snapshot: Snapshot) -> bool:
        """Whether the snapshot's label has the signature that our key gives it there."""
        label = snapshot.label
        return label is not None and self._has_our_signature(vm, snapshot.name, label) and _fits(label, snapshot)

    def _has_our_signature(self, vm: Vm, name: str, label: _label.Label) -> bool:
        if self.key is None or "at" not in label.fields:
            return False
        fields = {key: value for key, value in label.fields.items() if key != "sig"}
        wanted = self._signature(vm, name, label.owner, fields)
        return hmac.compare_digest(wanted.encode(), label.fields.get("sig", "").encode())

    def _signature(self, vm: Vm, name: str, owner: str, fields: dict[str, str]) -> str:
        # A copy of the line on another VM, or on a snapshot of another name, proves nothing there; nor on one of another time, see _fits().
        text = "\n".join([vm.uuid or vm.id, name, _label.Label(owner, fields).line()])
        return hmac.new((self.key or "").encode(), text.encode(), hashlib.sha256).hexdigest()[:_SIGNATURE_LENGTH]


def _fits(label: _label.Label, snapshot: Snapshot) -> bool:
    """Whether the snapshot was taken at the time for which its label is signed.

    The right to rename a snapshot, or to edit its description, is smaller than the right to take one at a time that has passed, which nobody has. It also tells
    a new VM from a destroyed one whose number it has (Proxmox VE has no UUIDs).
    """
    if not snapshot.id:
        return True  # it is yet to be taken, in a prediction
    begin, slash, length = label.fields["at"].partition("/")
    try:
        first = parse_time(begin, option="at")
        last = first + timedelta(seconds=parse_duration(length, option="at") if slash else 0)
    except InvalidOption:
        return False
    return snapshot.created is not None and first <= snapshot.created.replace(microsecond=0) <= last
