# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The privileges of a Proxmox VE user, and the checks of a dry run.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Create, Delete, Revert
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.errors import typed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.inventory import Inventory
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.parse import Guest, Listing, disk_storages
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import (
    PARALLEL,
    Refused,
    Row,
    Session,
    mapping,
    rows,
)
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.threads import each

# Storages that can revert a volume to its newest snapshot only; storages with snapshots as volume chains are like that too (pve-storage 9.1).
_NEWEST_ONLY = ("zfspool", "zfs")
_CHAIN = "snapshot-as-volume-chain"


class Rights:
    """The privileges of the user, read once."""

    def __init__(self, session: Session, inventory: Inventory) -> None:
        self._session = session
        self._inventory = inventory
        self._lock = threading.Lock()
        self._found: Mapping[str, Row] | None = None

    def _by_path(self) -> Mapping[str, Row]:
        with self._lock:
            if self._found is None:
                self._found = self._inventory.call(
                    "read the privileges", lambda: self._session.read("access/permissions", _read_permissions)
                )
            return self._found

    def anywhere(self, privilege: str) -> bool:
        """Return True if the user has the privilege on at least one path."""
        return any(privilege in given for given in self._by_path().values())

    def need(self, guest: Guest, action: str, *privileges: str) -> None:
        """Require one of ``privileges`` on a guest.

        :raises PermissionDenied: the user has none of them.
        """
        found = self._by_path()
        path = f"/vms/{guest.vmid}"
        given = set(found.get(path, ()))
        if path not in found:
            # A path inherits only privileges that propagate.
            above = next((found[one] for one in ("/vms", "/") if one in found), {})
            given = {name for name, propagates in above.items() if propagates}
        given.update(found.get(f"/pool/{guest.pool}", ()))
        if given.isdisjoint(privileges):
            raise errors.PermissionDenied(
                f"{self._session.user} may not {action}: the privilege {' or '.join(privileges)} on {path} is missing; grant it"
            )


class DryRun:
    """Finds, with reads only, what Proxmox VE would refuse."""

    def __init__(self, session: Session, inventory: Inventory, rights: Rights, listings: Mapping[str, Listing]) -> None:
        self._session = session
        self._inventory = inventory
        self._rights = rights
        self._listings = listings

    def refusals(self, actions: Sequence[Action]) -> dict[str, SafepointError]:
        """Return the first refusal of each guest by vmid."""
        loses_newer = {action.vm.id for action in actions if isinstance(action, Delete)}
        newest_only = self._newest_only() if any(isinstance(action, Revert) for action in actions) else frozenset()

        def check(action: Action) -> SafepointError | None:
            try:
                guest = self._inventory.guest(action.vm)
                self._need_rights(guest, action)
                if isinstance(action, Create):
                    self._check_disks(guest, action)
                    if action.memory:
                        self._check_memory(action)
                elif isinstance(action, Revert) and action.vm.id not in loses_newer:
                    self._check_newest(guest, action, newest_only)
            except SafepointError as exc:
                # A request without an answer is not a refusal.
                return None if isinstance(exc, errors.ConnectionFailed) else exc
            return None

        found: dict[str, SafepointError] = {}
        for action, error in zip(actions, each(actions, check, at_once=PARALLEL)):
            if error is not None:
                found.setdefault(action.vm.id, error)
        return found

    def _need_rights(self, guest: Guest, action: Action) -> None:
        wanted = ["VM.Snapshot", "VM.Snapshot.Rollback"] if isinstance(action, Revert) else ["VM.Snapshot"]
        self._rights.need(guest, str(action), *wanted)
        if isinstance(action, Revert) and action.power != "as_snapshot":
            self._rights.need(guest, f"{action} with power={action.power}", "VM.PowerMgmt")

    def _check_disks(self, guest: Guest, action: Create) -> None:
        """Check that the disks support snapshots. For a missing storage PVE reports here the error of the later task (9.2)."""
        found = self._inventory.of(
            action.vm,
            f"check if {action.vm} can have snapshots",
            lambda guest: self._session.read(f"{guest.path}/feature", mapping, feature="snapshot"),
        )
        if not int(found.get("hasFeature") or 0):
            raise typed("snapshot feature is not available", f"allow a snapshot of {guest.vm}")

    def _check_memory(self, action: Create) -> None:
        def read(guest: Guest) -> str | None:
            storage = self._session.read(f"{guest.path}/config", mapping, current=1).get("vmstatestorage")
            if not storage:
                return None
            try:
                self._session.read(f"nodes/{guest.node}/storage/{storage}/status", mapping)
            except Refused as exc:
                # PVE hides this from a user who may not see storages.
                return exc.text if "does not exist" in exc.text else None
            return None

        text = self._inventory.of(action.vm, f"check the vmstatestorage of {action.vm}", read)
        if text:
            raise typed(text, str(action))

    def _newest_only(self) -> frozenset[str]:
        """Return the storages that can revert to the newest snapshot only; empty if the user may not see storages."""
        try:
            found = self._session.read("storage", rows)
        except (Refused, SafepointError):
            return frozenset()
        return frozenset(str(row.get("storage")) for row in found if row.get("type") in _NEWEST_ONLY or int(row.get(_CHAIN) or 0))

    def _check_newest(self, guest: Guest, action: Revert, newest_only: frozenset[str]) -> None:
        listing = self._listings.get(guest.vmid)
        then = action.snapshot.created
        if listing is None or not newest_only or then is None:
            return
        # Times have a resolution of one second; its descendants may have the same time.
        below = {action.snapshot.id}
        newer = False
        for one in listing.snapshots:
            if one.parent in below:
                below.add(one.id)
            newer = newer or (
                one.id != action.snapshot.id and (one.id in below or (one.created is not None and one.created > then))
            )
        if not newer:
            return
        path = f"snapshot/{action.snapshot.id}/config"
        storages = self._inventory.of(
            action.vm,
            f"read the configuration of {action.vm}",
            lambda guest: self._session.read(f"{guest.path}/{path}", lambda data: disk_storages(mapping(data), guest)),
        )
        for volume, storage in storages.items():
            if storage in newest_only:
                raise typed(f"can't rollback, '{action.snapshot.id}' is not most recent snapshot on '{volume}'", str(action))


def _read_permissions(data: object) -> dict[str, Row]:
    return {path: mapping(given) for path, given in mapping(data).items()}
