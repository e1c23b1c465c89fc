# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a call is, and the words for it.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._driver import Job

# How many of the VMs that are worked on are named; a line of a terminal has no room for more.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a call is at a moment."""

    done: int
    total: int
    running: tuple[tuple[str, int | None], ...]
    """The VMs that are worked on, each with how many percent the vendor says are done."""
    undoing: bool = False
    """Whether the new snapshots are being removed again, because something failed."""

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
            text += " under way"
        return text


def how_far(jobs: Iterable[Job]) -> tuple[tuple[str, int | None], ...]:
    """The VMs of these jobs, each with how many percent the vendor says are done."""
    return tuple((str(job.action.vm), job.percent) for job in jobs)
