# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Handling of SIGINT and SIGTERM: after a signal, a call starts nothing more and returns its partial result within 5 seconds.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import contextlib
import signal
import typing as t
from collections.abc import Iterator

# Time limits after the signal: the wait for jobs that are about to end, one read of the changed VMs, and the log-out. Together with the
# pause between two checks of the flag, they stay below 5 seconds.
STOP_GRACE_SECONDS = 1.0
LOOK_SECONDS = 1.5
STOP_LOG_OUT_SECONDS = 0.5


class Stopped(BaseException):
    """A signal stopped the call. Not an Exception, so that no code between the signal and the engine handles it as a failure of the hypervisor."""


class Stop:
    """Records the first SIGINT or SIGTERM. Without install() it records none."""

    def __init__(self) -> None:
        self.by: str | None = None
        """The name of the signal, or None."""
        self._breakable = False

    def install(self) -> None:
        """Install handlers for SIGINT and SIGTERM for the rest of this process. Only in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.tell)

    def tell(self, number: int, _frame: t.Any = None) -> None:
        """Handle a signal. A second one has no effect: the call is about to end."""
        if self.by is None:
            self.by = signal.Signals(number).name
            if self._breakable:
                raise Stopped

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """Let a signal raise Stopped anywhere in the main thread, while it only reads and waits.

        :raises Stopped: also if a signal arrived before.
        """
        with self._set(True):
            yield

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal only set ``by``: the main thread starts jobs and must not lose one. It must check ``by`` often.

        :raises Stopped: at the end, if a signal has arrived.
        """
        with self._set(False):
            yield

    def keep(self) -> None:
        """Let no signal raise until the end of breakable(): the results must not be lost, and there are no more waits."""
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
