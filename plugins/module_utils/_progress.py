# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a call, and its text.

Note that this module util is **PRIVATE** to the collection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ansible_collections.safepoint.vm.plugins.module_utils._driver import Job

# Maximum number of VMs that are named, so that the text fits on a line of a terminal.
_NAMED = 3


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
