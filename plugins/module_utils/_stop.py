# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SIGINT and SIGTERM: a call that is told to stop begins nothing more, and returns within 5 seconds what it knows.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import signal
import typing as t
from collections.abc import Iterator

# After the signal: how long jobs that are about to end are still waited for, one look at what was written may take, and a log-out. Together with the
# pause between two looks at the flag they stay below 5 seconds.
GRACE_SECONDS = 1.0
LOOK_SECONDS = 1.5
LOGOUT_SECONDS = 0.5


class Stopped(BaseException):
    """The call was told to stop. Not an Exception, so that nothing between the signal and the engine takes it for a failure of the hypervisor."""


class Stop:
    """Whether the process was told to stop. Without install() it never is."""

    def __init__(self) -> None:
        self.by: str | None = None
        """The name of the signal."""
        self._breakable = False

    def install(self) -> None:
        """Take SIGINT and SIGTERM for the rest of this process. For its main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.tell)

    def tell(self, number: int, _frame: t.Any = None) -> None:
        """The handler of the signals. A second one changes nothing: the call is about to end."""
        if self.by is None:
            self.by = signal.Signals(number).name
            if self._breakable:
                raise Stopped

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """Let a signal raise Stopped wherever the main thread is: it only looks and waits.

        :raises Stopped: the signal has come before.
        """
        with self._set(True):
            yield

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal set ``by`` and nothing else: the main thread begins jobs and must not lose one. It has to look at ``by`` often.

        :raises Stopped: at the end, when the signal has come.
        """
        with self._set(False):
            yield

    def keep(self) -> None:
        """From now on until the end of breakable() let no signal raise: there are results that must not be lost, and nothing is waited for any more."""
        self._breakable = False

    @contextlib.contextmanager
    def _set(self, breakable: bool) -> Iterator[None]:
        before, self._breakable = self._breakable, breakable
        try:
            if breakable and self.by is not None:
                raise Stopped
            yield
        finally:
            self._breakable = before
        if before and self.by is not None:
            raise Stopped
