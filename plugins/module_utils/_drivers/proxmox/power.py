# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start or stop a Proxmox VE guest after a rollback.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from ansible_collections.safepoint.vm.plugins.module_utils._core import errors
from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Revert
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.errors import lock_kind, typed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.inventory import Inventory
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.session import Session, mapping
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.tasks import TaskFailed
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.proxmox.writes import Order, Writes
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

# Time limit from the end of a start or stop task until the guest runs or is off: with high availability the task only requests it.
_TURN_SECONDS = 60.0
# The guest already has the wanted state, set by another run or by high availability (qemu-server and pve-container 9.2).
_DONE_ALREADY = {"start": "already running", "stop": "not running"}


class Power:
    """Starts and stops after rollbacks. The guest is reverted by then, so every error says that too."""

    def __init__(self, session: Session, inventory: Inventory, writes: Writes, *, lock_timeout: float) -> None:
        self._session = session
        self._inventory = inventory
        self._writes = writes
        self._lock_timeout = lock_timeout

    def after(self, action: Revert) -> str | None:
        """Return ``start`` or ``stop`` if needed after the rollback, else None. PVE's own start=1 would hide the result of the start."""
        # After a rollback with memory the guest runs, without memory it is off (qemu-server 9.2).
        if action.power == "on" and not action.snapshot.memory:
            return "start"
        # High availability would start it again, unless it is stopped explicitly.
        if action.power == "off" and (action.snapshot.memory or self._inventory.guest(action.vm).kept_running):
            return "stop"
        return None

    def turn(self, order: Order, action: Revert, turn: str) -> None:
        """Start or stop the guest, and wait until it runs or is off. Waits for locks of other operations.

        :raises BackendFailed: it did not work.
        :raises Unverified: the result is unknown.
        """
        said = f"{action.vm} was reverted to {action.snapshot}, but"
        lock = order.deadline.within(self._lock_timeout) if order.deadline is not None else Deadline(self._lock_timeout)
        try:
            while not self._order(order, turn, last=lock.left() <= 0):
                self._writes.wait_until_free(action, lock)
            self._await(action, "running" if turn == "start" else "stopped")
        except (errors.Unverified, errors.ConnectionFailed) as exc:
            raise errors.Unverified(f"{said} the result of its {turn} is unknown: {exc}") from exc
        except errors.TimedOut as exc:
            wanted = "does not run" if turn == "start" else "is not off"
            raise errors.BackendFailed(
                f"{said} {wanted} {_TURN_SECONDS:g} seconds after its {turn}; check its tasks in Proxmox VE"
            ) from exc
        except (TaskFailed, SafepointError) as exc:
            # Not as the original error: a lock, or another refusal before the start, would seem to mean that nothing was changed at all.
            text = typed(str(exc), f"{turn} it") if isinstance(exc, TaskFailed) else exc
            task = f" (task {exc.upid})" if isinstance(exc, TaskFailed) else ""
            raise errors.BackendFailed(f"{said} its {turn} failed: {text}{task}") from exc

    def _order(self, order: Order, turn: str, *, last: bool) -> bool:
        """Send the request; return False if another operation holds the guest. On the ``last`` try that is an error."""
        try:
            self._writes.work(order, turn, "post", f"status/{turn}")
        except (TaskFailed, SafepointError) as exc:
            if _DONE_ALREADY[turn] in str(exc):
                return True
            if not last and (isinstance(exc, errors.Locked) or lock_kind(str(exc)) or "can't lock file" in str(exc)):
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
