# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start the jobs of one call, wait for them, and report each to an observer before and after.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Finished, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.progress import Progress
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.stop import Stop

# Maximum length of one wait, so that progress is reported and signals are noticed. Drivers wait on a queue, so a short wait costs no request.
_WAIT_SECONDS = 0.5


class Observer(t.Protocol):
    """Called before each write starts and after it has ended."""

    def before(self, action: Action) -> None:
        """Called before an action starts.

        :raises SafepointError: the action must not start.
        """

    def after(self, end: Finished) -> None:
        """Called after an action has ended."""


class Jobs:
    """Runs all writes of a call, including those of the undo."""

    def __init__(
        self,
        driver: SnapshotDriver,
        *,
        at_once: int,
        progress: Callable[[Progress], None] | None = None,
        observer: Observer | None = None,
        stop: Stop | None = None,
    ) -> None:
        """``at_once``: maximum number of parallel jobs. ``progress`` is called twice a second while jobs run.

        ``stop`` records signals; callers must check it before they start a job.
        """
        self.stop = stop or Stop()
        self.at_once = min(at_once, driver.most_parallel or at_once)
        self.progress = progress
        self._driver = driver
        self._observer = observer
        # Jobs that were not started because the observer raised an error.
        self._refused: list[Finished] = []

    def start(self, action: Action, *, anyway: bool = False) -> Job:
        """Start an action after calling the observer. If the observer raises an error, the action is started only with ``anyway``."""
        if self._observer is not None:
            try:
                self._observer.before(action)
            except SafepointError as exc:
                if not anyway:
                    job = Job(action)
                    self._refused.append(Finished(job, exc))
                    return job
        return self._driver.start(action)

    def wait(self, jobs: Iterable[Job], deadline: Deadline) -> list[Finished]:
        """Like SnapshotDriver.wait(), but for half a second at most, so that progress is reported and signals are noticed."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        ended = self._driver.wait(list(jobs), deadline.within(_WAIT_SECONDS))
        if self._observer is not None:
            for end in ended:
                self._observer.after(end)
        return ended
