# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The power of a Proxmox VE guest after its rollback.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from ansible_collections.safepoint.vm.plugins.module_utils import _errors
from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Revert
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_errors import lock_kind, typed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_inventory import Inventory
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_library import Session, mapping
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_tasks import TaskFailed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers._proxmox_writes import Order, Writes
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError

# How long a guest may take from the end of its start's or stop's task until it runs or is off: under high availability that task only orders it.
_TURN_SECONDS = 60.0
# The guest is as it was to be: another run, or high availability, was faster (qemu-server and pve-container 9.2).
_DONE_ALREADY = {"start": "already running", "stop": "not running"}


class Power:
    """Starts and stops after rollbacks. By then the guest is back, whatever else happens, and no error says anything else."""

    def __init__(self, session: Session, inventory: Inventory, writes: Writes, *, lock_timeout: float) -> None:
        self._session = session
        self._inventory = inventory
        self._writes = writes
        self._lock_timeout = lock_timeout

    def after(self, action: Revert) -> str | None:
        """What has to be done after the rollback, ``start`` or ``stop``, or None. PVE's own start=1 would hide how the start has ended."""
        # With memory it runs after that, without it is off (qemu-server 9.2).
        if action.power == "on" and not action.snapshot.memory:
            return "start"
        # High availability would start it again, unless it is told to keep it off.
        if action.power == "off" and (action.snapshot.memory or self._inventory.guest(action.vm).kept_running):
            return "stop"
        return None

    def turn(self, order: Order, action: Revert, turn: str) -> None:
        """Start or stop the guest, and wait until it runs or is off; a lock of another operation is waited for.

        :raises BackendFailed: it did not come about.
        :raises Unverified: it cannot be told.
        """
        said = f"{action.vm} is back at {action.snapshot}, and"
        lock = order.deadline.within(self._lock_timeout) if order.deadline is not None else Deadline(self._lock_timeout)
        try:
            while not self._order(order, turn, last=lock.left() <= 0):
                self._writes.wait_until_free(action, lock)
            self._await(action, "running" if turn == "start" else "stopped")
        except (_errors.Unverified, _errors.ConnectionFailed) as exc:
            raise _errors.Unverified(f"{said} it is not known if its {turn} worked: {exc}") from exc
        except _errors.TimedOut as exc:
            wanted = "does not run" if turn == "start" else "is not off"
            raise _errors.BackendFailed(
                f"{said} {wanted} {_TURN_SECONDS:g} seconds after its {turn}; look at its tasks in Proxmox VE"
            ) from exc
        except (TaskFailed, SafepointError) as exc:
            # A lock, or anything else that was refused before it was begun, would be taken for one of the whole.
            text = typed(str(exc), f"{turn} it") if isinstance(exc, TaskFailed) else exc
            task = f" (task {exc.upid})" if isinstance(exc, TaskFailed) else ""
            raise _errors.BackendFailed(f"{said} its {turn} failed: {text}{task}") from exc

    def _order(self, order: Order, turn: str, *, last: bool) -> bool:
        """Give the order; False where another operation held the guest, unless it was the ``last`` try."""
        try:
            self._writes.work(order, turn, "post", f"status/{turn}")
        except (TaskFailed, SafepointError) as exc:
            if _DONE_ALREADY[turn] in str(exc):
                return True
            if not last and (isinstance(exc, _errors.Locked) or lock_kind(str(exc)) or "can't lock file" in str(exc)):
                return False
            raise
        return True

    def _await(self, action: Revert, wanted: str) -> None:
        def is_there() -> bool | None:
            seen = self._inventory.of(
                action.vm,
                f"read the status of {action.vm}",
                lambda guest: self._session.read(f"{guest.path}/status/current", mapping),
            )
            return seen.get("status") == wanted or None

        Deadline(_TURN_SECONDS).poll(f"{action.vm}", is_there)
