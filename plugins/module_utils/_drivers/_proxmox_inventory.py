# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the guests of a Proxmox VE cluster are, and which of them is meant.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import typing as t
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_errors import refused
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_library import PARALLEL, Refused, Session, rows
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_read import Guest, matching, read_guest, ref_kind
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError, VmAmbiguous, VmNotFound
from ansible_collections.safepoint.vm.plugins.module_utils._model import Vm
from ansible_collections.safepoint.vm.plugins.module_utils._naming import did_you_mean
from ansible_collections.safepoint.vm.plugins.module_utils._threads import each

_T = t.TypeVar("_T")


class Inventory:
    """The guests that the user may see. Any thread may ask.

    The cluster's list has the names of up to ten seconds ago (pve-manager 9.2). Whoever only looks may be shown a guest under the name that it
    had then. Before the first write, check_name() asks the nodes, since a name that has moved to another guest would have the wrong one reverted.
    Accepted is what even the nodes cannot tell: a guest that got the same name as a second one within these seconds, one that is migrated or
    renamed between the question and the write.
    """

    def __init__(self, session: Session) -> None:
        """Look once. That also tells, within connect_timeout, whether anybody is there."""
        self._session = session
        # Replaced as a whole, since any thread may read it.
        self._guests: Mapping[str, Guest] = {}
        # What was asked for by name, by the vmid; and the names that the nodes say their guests of a kind have, asked for once.
        self._by_name: dict[str, str] = {}
        self._names: dict[tuple[str, str], Mapping[str, str | None]] = {}
        self._asking: collections.defaultdict[tuple[str, str], threading.Lock] = collections.defaultdict(threading.Lock)
        # The first look-up takes what is known already.
        self._first: list[Guest] | None = self.refresh()

    def find(self, refs: Sequence[str]) -> Mapping[str, Vm | SafepointError]:
        """What SnapshotDriver.find() promises."""
        guests = self.all()
        found = {ref: matching(ref, guests) for ref in refs}
        if any(not some and ref_kind(ref)[0] in ("any", "name") for ref, some in found.items()):
            # The cluster's list learns of a new or renamed guest within ten seconds only.
            live = self._live()
            found = {ref: some or matching(ref, live) for ref, some in found.items()}
        for ref, some in found.items():
            if len(some) == 1 and ref_kind(ref)[1] == some[0].name:
                self._by_name[some[0].vmid] = ref_kind(ref)[1]
        return {ref: self._pick(ref, some, guests) for ref, some in found.items()}

    def check_name(self, vm: Vm) -> None:
        """Refuse to go on with a guest that was found by a name that it does not have. One request for each node and kind of guest, not for each.

        :raises VmNotFound: it has another name.
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
                f"The guest {vm.id} was named {name!r} a moment ago, and is {names[vm.id]!r} now{f', while {name!r} is {others}' if others else ''}; "
                f"nothing was done, name the guest that you mean by its vmid, for example id:{vm.id}"
            )

    def all(self) -> list[Guest]:
        """All guests, as they are now or were a moment ago."""
        guests, self._first = self._first or self.refresh(), None
        if any(guest.name is None for guest in guests):
            # The cluster does not know the name of a guest for its first ten seconds; its node does.
            self._live()
            guests = [self._guests.get(guest.vmid, guest) for guest in guests]
        return guests

    def refresh(self) -> list[Guest]:
        """All guests, as they are now. One request."""
        guests = self.call("list the guests", lambda: self._session.read("cluster/resources", _read_guests, type="vm"))
        # Of a guest that is new, or whose node is down, this list has neither; its node had, when it was asked.
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
        """Where the guest was seen last.

        :raises VmNotFound: it does not exist any more.
        """
        guest = self._guests.get(vm.id)
        if guest is None:
            raise _gone(vm)
        return guest

    def call(self, what: str, call: t.Callable[[], _T], *, node: str = "") -> _T:
        """What ``call`` returns, which is for ``node`` to answer, or for any.

        :raises SafepointError: why it was refused.
        """
        try:
            return call()
        except Refused as exc:
            raise refused(exc, what, where=self._session.where, node=node) from exc

    def of(self, vm: Vm, what: str, call: t.Callable[[Guest], _T]) -> _T:
        """What ``call`` says of a guest, asked once more where the guest was migrated since."""
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
        """The guests as their nodes list them. Two requests for each node, and one."""
        nodes = self.call("list the nodes", lambda: self._session.read("nodes", _read_nodes))
        places = [(node, kind) for node in nodes for kind in ("qemu", "lxc")]

        def read(place: tuple[str, str]) -> list[Guest]:
            node, kind = place
            try:
                return self._session.read(
                    f"nodes/{node}/{kind}", lambda data: [read_guest(row, kind=kind, node=node) for row in rows(data)]
                )
            except (Refused, SafepointError):
                return []  # what it has stays as the cluster knows it

        live = [guest for some in each(places, read, at_once=PARALLEL) for guest in some]
        # What only the cluster knows stays.
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
            return VmAmbiguous(
                f"{len(found)} guests match {ref!r}: {listed}. Name one of them by its vmid, for example id:{found[0].vmid}"
            )
        if not guests:
            return VmNotFound(
                f"{self._session.where} has no guest that {self._session.user} may see; give it VM.Audit on /vms (a token with "
                "privilege separation needs rights of its own)"
            )
        like = did_you_mean(ref_kind(ref)[1], (guest.name for guest in guests if guest.name))
        hint = like or "check its name, and that the user has VM.Audit on it"
        nameless = [guest.vmid for guest in guests if guest.name is None]
        if nameless:
            hint += f" ({len(nameless)} guests have no name, since their nodes do not answer: name them by vmid, {', '.join(nameless[:5])})"
        return VmNotFound(f"{self._session.where} has no guest {ref!r}; {hint}")


def _read_guests(data: object) -> list[Guest]:
    return [read_guest(row) for row in rows(data) if row["type"] in ("qemu", "lxc")]


def _read_names(data: object) -> dict[str, str | None]:
    return {str(row["vmid"]): row.get("name") for row in rows(data)}


def _read_nodes(data: object) -> list[str]:
    return [str(row["node"]) for row in rows(data) if row.get("status") == "online"]


def _gone(vm: Vm) -> VmNotFound:
    return VmNotFound(f"The guest {vm} ({vm.id}) does not exist any more")
