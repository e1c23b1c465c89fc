# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a call: its text, and when it is shown.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Job

# Maximum number of VMs that are named, so that the text fits on a line of a terminal.
_NAMED = 3
# Shorter work shows no progress; longer work shows it at this interval.
_QUICK_SECONDS = 2.0
_NEXT_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a call."""

    done: int
    total: int
    running: tuple[tuple[str, int | None], ...]
    """The VMs with a running job, each with the percentage that the vendor reports."""
    undoing: bool = False
    """True while the new snapshots are removed again after a failure."""

    def __str__(self) -> str:
        parts = []
        if self.total > 1 or self.undoing or not self.running:
            counted = "new snapshots removed again" if self.undoing else "VMs done"
            parts.append(f"{self.done} of {self.total} {counted}")
        parts += [name if percent is None else f"{name} {percent}%" for name, percent in self.running[:_NAMED]]
        text = ", ".join(parts)
        if len(self.running) > _NAMED:
            text += f" and {len(self.running) - _NAMED} more"
        if self.running and all(percent is None for _name, percent in self.running[:_NAMED]):
            text += " in progress"
        return text


def how_far(jobs: Iterable[Job]) -> tuple[tuple[str, int | None], ...]:
    """Return the VMs of these jobs, each with the percentage that the vendor reports."""
    return tuple((str(job.action.vm), job.percent) for job in jobs)


class ProgressTexts:
    """Passes the progress on as a text if it has changed, at most once per second."""

    def __init__(self, show: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._show = show
        self._clock = clock
        self._shown = ""
        self._next = clock() + _QUICK_SECONDS

    def note(self, progress: Progress) -> None:
        """Pass it on if the last text is old enough."""
        now = self._clock()
        text = str(progress)
        if now < self._next or text == self._shown:
            return
        self._next = now + _NEXT_SECONDS
        self._shown = text
        self._show(text)
