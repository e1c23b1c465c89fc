# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of a Proxmox VE cluster: their nodes, and looking them up by name or id.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import typing as t
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError, VmAmbiguous, VmNotFound
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Vm
from ansible_collections.safepoint.vm.plugins.module_utils._core.names import did_you_mean
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.errors import refused
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.parse import Guest, matching, read_guest, ref_kind
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import PARALLEL, Refused, Session, rows
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import each

_T = t.TypeVar("_T")


class Inventory:
    """The guests that the user may see. Thread-safe.

    Names in the cluster's list are up to ten seconds old (pve-manager 9.2). For reads that is accepted. Before the first write, check_name() asks the
    nodes: if the name now belongs to another guest, the wrong guest would be reverted. Not detected: a guest that got the same name as another one
    within these seconds, and a guest that is migrated or renamed between this check and the write.
    """

    def __init__(self, session: Session) -> None:
        """Read the list once, which also checks within connect_timeout that the server answers."""
        self._session = session
        # Always replaced as a whole, for thread safety.
        self._guests: Mapping[str, Guest] = {}
        # The requested names by vmid; and the names of guests by vmid as their node reports them, read once per node and kind.
        self._by_name: dict[str, str] = {}
        self._names: dict[tuple[str, str], Mapping[str, str | None]] = {}
        self._asking: collections.defaultdict[tuple[str, str], threading.Lock] = collections.defaultdict(threading.Lock)
        # The first look-up uses this list.
        self._first: list[Guest] | None = self.refresh()

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        """See SnapshotDriver.find()."""
        guests = self.all()
        found = {ref: matching(ref, guests) for ref in refs}
        if any(not some and ref_kind(ref)[0] in ("any", "name") for ref, some in found.items()):
            # A new or renamed guest can be missing from the cluster's list for ten seconds.
            live = self._live()
            found = {ref: some or matching(ref, live) for ref, some in found.items()}
        for ref, some in found.items():
            if len(some) == 1 and ref_kind(ref)[1] == some[0].name:
                self._by_name[some[0].vmid] = ref_kind(ref)[1]
        return {ref: self._pick(ref, some, guests) for ref, some in found.items()}

    def check_name(self, vm: Vm) -> None:
        """Check that a guest that was found by name still has this name. One request for each node and kind of guest.

        :raises VmNotFound: the guest has another name.
        """
        name = self._by_name.get(vm.id)
        if name is None:
            return
        guest = self.guest(vm)
        place = (guest.node, guest.kind)
        with self._asking[place]:
            if place not in self._names:
                what, path = f"list the guests of {guest.node}", f"nodes/{guest.node}/{guest.kind}"
                self._names[place] = self.call(what, lambda: self._session.read(path, _read_names), node=guest.node)
        names = self._names[place]
        if names.get(vm.id, name) != name:
            others = ", ".join(f"{guest.node}/{vmid}" for vmid, other in names.items() if other == name)
            raise VmNotFound(
                f"The guest {vm.id} was renamed from {name!r} to {names[vm.id]!r}{f'; {name!r} is now {others}' if others else ''}; "
                f"nothing was changed; use the vmid of the guest, for example id:{vm.id}"
            )

    def all(self) -> list[Guest]:
        """Return all guests; the first call uses the list that was read at the login."""
        guests, self._first = self._first or self.refresh(), None
        if any(guest.name is None for guest in guests):
            # For the first ten seconds of a guest only its node knows its name, not the cluster's list.
            self._live()
            guests = [self._guests.get(guest.vmid, guest) for guest in guests]
        return guests

    def refresh(self) -> list[Guest]:
        """Read the cluster's list. One request."""
        guests = self.call("list the guests", lambda: self._session.read("cluster/resources", _read_guests, type="vm"))
        # Name and template flag are missing for a new guest, or if its node is down; keep those that the node reported before.
        known = self._guests
        guests = [
            dataclasses.replace(guest, name=known[guest.vmid].name, template=known[guest.vmid].template)
            if guest.name is None and guest.vmid in known
            else guest
            for guest in guests
        ]
        self._guests = {guest.vmid: guest for guest in guests}
        return guests

    def guest(self, vm: Vm) -> Guest:
        """Return the guest with the node where it was seen last.

        :raises VmNotFound: the guest does not exist any more.
        """
        guest = self._guests.get(vm.id)
        if guest is None:
            raise _gone(vm)
        return guest

    def call(self, what: str, call: t.Callable[[], _T], *, node: str = "") -> _T:
        """Return the result of ``call``; ``node`` is the node that has to answer, empty for any.

        :raises SafepointError: PVE's error, translated.
        """
        try:
            return call()
        except Refused as exc:
            raise refused(exc, what, where=self._session.where, node=node) from exc

    def of(self, vm: Vm, what: str, call: t.Callable[[Guest], _T]) -> _T:
        """Return the result of ``call`` for a guest; repeat it on the new node if the guest was migrated."""
        guest = self.guest(vm)
        try:
            return call(guest)
        except Refused as exc:
            if "Configuration file" not in exc.text or "does not exist" not in exc.text:
                raise refused(exc, what, where=self._session.where, node=guest.node) from exc
        self.refresh()
        moved = self.guest(vm)
        if moved.node == guest.node:
            raise _gone(vm)
        return self.call(what, lambda: call(moved), node=moved.node)

    def _live(self) -> list[Guest]:
        """Read the guests from their nodes. One request for the list of nodes, and two for each node."""
        nodes = self.call("list the nodes", lambda: self._session.read("nodes", _read_nodes))
        places = [(node, kind) for node in nodes for kind in ("qemu", "lxc")]

        def read(place: tuple[str, str]) -> list[Guest]:
            node, kind = place
            try:
                return self._session.read(
                    f"nodes/{node}/{kind}", lambda data: [read_guest(row, kind=kind, node=node) for row in rows(data)]
                )
            except (Refused, SafepointError):
                return []  # keep what the cluster's list has for this node

        live = [guest for some in each(places, read, at_once=PARALLEL) for guest in some]
        # Keep the fields that only the cluster's list has.
        known = self._guests
        live = [
            dataclasses.replace(guest, ha=known[guest.vmid].ha, pool=known[guest.vmid].pool) if guest.vmid in known else guest
            for guest in live
        ]
        self._guests = {**known, **{guest.vmid: guest for guest in live}}
        return live

    def _pick(self, ref: str, found: Sequence[Guest], guests: Sequence[Guest]) -> Vm | SafepointError:
        if len(found) == 1:
            return found[0].vm
        if found:
            listed = ", ".join(f"{guest.node}/{guest.vmid} ({guest.vm})" for guest in found)
            return VmAmbiguous(f"{len(found)} guests match {ref!r}: {listed}. Use the vmid, for example id:{found[0].vmid}")
        if not guests:
            return VmNotFound(
                f"{self._session.where} has no guest that {self._session.user} may see; grant it VM.Audit on /vms (a token with "
                "privilege separation needs its own permissions)"
            )
        like = did_you_mean(ref_kind(ref)[1], (guest.name for guest in guests if guest.name))
        hint = like or "check its name, and that the user has VM.Audit on it"
        nameless = [guest.vmid for guest in guests if guest.name is None]
        if nameless:
            hint += f" ({len(nameless)} guests have no name, because their nodes do not answer: use the vmid, {', '.join(nameless[:5])})"
        return VmNotFound(f"{self._session.where} has no guest {ref!r}; {hint}")


def _read_guests(data: object) -> list[Guest]:
    return [read_guest(row) for row in rows(data) if row["type"] in ("qemu", "lxc")]


def _read_names(data: object) -> dict[str, str | None]:
    return {str(row["vmid"]): row.get("name") for row in rows(data)}


def _read_nodes(data: object) -> list[str]:
    return [str(row["node"]) for row in rows(data) if row.get("status") == "online"]


def _gone(vm: Vm) -> VmNotFound:
    return VmNotFound(f"The guest {vm} ({vm.id}) does not exist any more")
