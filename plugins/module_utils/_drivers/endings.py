# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How jobs ended that run in threads of their own.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Finished, Job
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline


class Endings:
    """The results of jobs that run in threads, stored until wait() returns them."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._early: dict[Job, Finished] = {}

    def put(self, end: Finished) -> None:
        """Store a result; called in the thread of the job."""
        self._ended.put(end)

    def wait(self, jobs: Sequence[Job], deadline: Deadline) -> list[Finished]:
        """Implement SnapshotDriver.wait(). Results of other jobs are kept for later."""
        wanted = set(jobs)
        while True:
            ready = [self._early.pop(job) for job in list(self._early) if job in wanted]
            if ready:
                return ready
            try:
                end = self._ended.get(timeout=deadline.left())
            except queue.Empty:
                return []
            self._early[end.job] = end
