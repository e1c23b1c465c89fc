# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The time of one call: its timeout, and a short grace after it for what must not be left out.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import SnapshotDriver

# A call ends so many seconds after its timeout at the latest, whatever the other side does.
GRACE_SECONDS = 20.0
# Each phase may use what is left of the call's own time, and ends so many seconds after it at the latest, so that each of them keeps some of the grace.
# The rest of it is for the log-out and the end of the process.
_CONFIRM_SECONDS = 5.0
_UNDO_SECONDS = 10.0
_LAST_LOOK_SECONDS = 15.0
LOG_OUT_SECONDS = 1.5


class Phases:
    """The deadlines of one call. Entering a phase tells the driver until when it may repeat what gets no answer."""

    def __init__(self, driver: SnapshotDriver, work: Deadline) -> None:
        """``work`` is the call's own time."""
        self._driver = driver
        self.work = work
        driver.set_deadline(work)

    def confirm(self) -> Deadline:
        """To read again what was written. What the work took of the time must not make a success look like a failure."""
        return self._enter(_CONFIRM_SECONDS)

    def undo(self) -> Deadline:
        """To find and remove what the call created."""
        return self._enter(_UNDO_SECONDS)

    def last_look(self) -> Deadline:
        """To read what is left on VMs on which something failed."""
        return self._enter(_LAST_LOOK_SECONDS)

    def _enter(self, grace: float) -> Deadline:
        deadline = self.work.extended(grace)
        self._driver.set_deadline(deadline)
        return deadline
