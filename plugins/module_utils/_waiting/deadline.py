# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One budget of time, shared by everything that waits under it.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import time
import typing as t
from collections.abc import Callable

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import TimedOut

_T = t.TypeVar("_T")


class Deadline:
    """A time limit in seconds that starts when it is created. All waits of an operation share it."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._end = clock() + seconds

    def left(self) -> float:
        """Return the remaining seconds, never below zero."""
        return max(0.0, self._end - self._clock())

    def within(self, seconds: float) -> Deadline:
        """Return a shorter deadline that ends no later than this one."""
        return Deadline(min(seconds, self.left()), clock=self._clock, sleep=self._sleep)

    def extended(self, seconds: float) -> Deadline:
        """Return a deadline that ends ``seconds`` after the end of this one, no matter when this method is called."""
        longer = Deadline(self.seconds + seconds, clock=self._clock, sleep=self._sleep)
        longer._end = self._end + seconds
        return longer

    def sleep(self) -> None:
        """Sleep until the deadline."""
        self._sleep(self.left())

    def poll(self, what: str, probe: Callable[[], _T | None], *, first: float = 0.1, longest: float = 2.0) -> _T:
        """Call ``probe`` until it returns a value that is not None, with growing pauses of ``first`` to ``longest`` seconds.

        :raises TimedOut: the time is up; the message names ``what``.
        """
        pause = first
        while True:
            value = probe()
            if value is not None:
                return value
            left = self.left()
            if left <= 0:
                raise TimedOut(f"Gave up waiting for {what} after {self.seconds:g} seconds")
            self._sleep(min(pause, left))
            pause = min(pause * 2, longest)
