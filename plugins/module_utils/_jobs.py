# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The jobs of one call: begun, waited for, and told to an observer before and after.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._deadline import Deadline
from ansible_collections.safepoint.vm.plugins.module_utils._driver import Action, Finished, Job, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._progress import Progress

# While progress is shown, it is shown this often.
_PROGRESS_SECONDS = 1.0


class Observer(t.Protocol):
    """Is told of each write before it begins and after it has ended."""

    def before(self, action: Action) -> None:
        """An action is about to begin.

        :raises SafepointError: it must not.
        """

    def after(self, end: Finished) -> None:
        """An action has ended."""


class Jobs:
    """Every write of a call goes through here, those of the undo included."""

    def __init__(
        self,
        driver: SnapshotDriver,
        *,
        at_once: int,
        progress: Callable[[Progress], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """``at_once`` is the number of jobs that may run at the same time. ``progress`` is called about each second while there is work."""
        self.at_once = min(at_once, driver.most_parallel or at_once)
        self.progress = progress
        self._driver = driver
        self._observer = observer
        # Jobs that were never begun, since the observer objected.
        self._refused: list[Finished] = []

    def start(self, action: Action, *, anyway: bool = False) -> Job:
        """Begin an action, after the observer was told. One that it objects to is begun only where it must be done ``anyway``."""
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
        """The same as the driver's own, for no longer than until the next report of progress is due."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        ended = self._driver.wait(list(jobs), deadline.within(_PROGRESS_SECONDS) if self.progress else deadline)
        if self._observer is not None:
            for end in ended:
                self._observer.after(end)
        return ended
