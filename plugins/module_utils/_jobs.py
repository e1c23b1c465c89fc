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
from ansible_collections.safepoint.vm.plugins.module_utils._stop import Stop

# How long the drivers' wait may keep us from telling how far the work is, and from seeing a signal. They wait on a queue: it costs no request.
_WAIT_SECONDS = 0.5


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
        stop: Stop | None = None,
    ) -> None:
        """``at_once`` is the number of jobs that may run at the same time. ``progress`` is called twice a second while there is work.

        ``stop`` is told by signals; who starts jobs has to look at it.
        """
        self.stop = stop or Stop()
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
        """The same as the driver's own, for a moment at most: progress has to be told, and a signal to be seen."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        ended = self._driver.wait(list(jobs), deadline.within(_WAIT_SECONDS))
        if self._observer is not None:
            for end in ended:
                self._observer.after(end)
        return ended
