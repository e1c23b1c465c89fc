# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose snapshots are ours, and how that is proved. Pure: no I/O, no clock.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

from ansible_collections.safepoint.vm.plugins.module_utils import _label
from ansible_collections.safepoint.vm.plugins.module_utils._model import Snapshot, Vm

# Of SHA-256, in hexadecimal digits: a description has little room, and 128 bits are beyond guessing.
_SIGNATURE_LENGTH = 32


@dataclasses.dataclass(frozen=True)
class Owner:
    """A name on the label, and with a key also its signature."""

    name: str = "safepoint"
    key: str | None = dataclasses.field(default=None, repr=False)

    def owns(self, vm: Vm, snapshot: Snapshot) -> bool:
        """Whether the snapshot is ours: its label is valid, names us, and is signed where we have a key."""
        return self.why_not(vm, snapshot) is None

    def why_not(self, vm: Vm, snapshot: Snapshot) -> str | None:
        """Why the snapshot is not ours, or None."""
        parsed = _label.parse(snapshot.description)
        if parsed.label is None:
            return parsed.problem or "it has no label of this collection"
        if parsed.label.owner != self.name:
            return f"owner {parsed.label.owner!r} made it"
        if self.key is not None and not self.signed(vm, snapshot.name, parsed.label):
            return f"its label is {'signed otherwise' if 'sig' in parsed.label.fields else 'not signed'}, and label_key is set"
        return None

    def sign(self, vm: Vm, name: str, label: _label.Label) -> _label.Label:
        """The label as it is written to the snapshot of that name: signed where we have a key, and else without a signature."""
        fields = {key: value for key, value in label.fields.items() if key != "sig"}
        bare = _label.Label(label.owner, fields)
        if self.key is None:
            return bare
        return _label.Label(label.owner, {**fields, "sig": self._signature(vm, name, bare)})

    def signed(self, vm: Vm, name: str, label: _label.Label) -> bool:
        """Whether the label has the signature that our key gives it there."""
        wanted = self.sign(vm, name, label).fields.get("sig")
        return wanted is not None and hmac.compare_digest(wanted.encode(), label.fields.get("sig", "").encode())

    def _signature(self, vm: Vm, name: str, label: _label.Label) -> str:
        # A copy of the line on another VM or snapshot proves nothing there.
        text = "\n".join([vm.uuid or vm.id, name, label.line()])
        return hmac.new((self.key or "").encode(), text.encode(), hashlib.sha256).hexdigest()[:_SIGNATURE_LENGTH]
