# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The deadlines of one call: its timeout, and a short grace period for the steps that must follow.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

# Each phase may use the rest of the timeout, and ends at most this many seconds after it, so that each phase gets a part of the grace period
# (GRACE_SECONDS in _operations/request.py). The remaining seconds are for the log-out and the end of the process.
_CONFIRM_SECONDS = 5.0
_UNDO_SECONDS = 10.0
_LAST_LOOK_SECONDS = 15.0
LOG_OUT_SECONDS = 1.5


class Phases:
    """The deadlines of one call. Each method starts a phase and sets the deadline of the driver."""

    def __init__(self, driver: SnapshotDriver, work: Deadline) -> None:
        """``work`` is the timeout of the call."""
        self._driver = driver
        self.work = work
        driver.set_deadline(work)

    def confirm(self) -> Deadline:
        """Start the phase that confirms the writes. It has extra time, so that a success is not reported as a failure after long work."""
        return self._enter(_CONFIRM_SECONDS)

    def undo(self) -> Deadline:
        """Start the phase that finds and removes the snapshots of this call."""
        return self._enter(_UNDO_SECONDS)

    def last_look(self) -> Deadline:
        """Start the phase that reads the VMs after a failure."""
        return self._enter(_LAST_LOOK_SECONDS)

    def _enter(self, grace: float) -> Deadline:
        deadline = self.work.extended(grace)
        self._driver.set_deadline(deadline)
        return deadline
