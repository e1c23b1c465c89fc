# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor of its own for a test, with what the collection did there as it really is."""

from __future__ import annotations

import abc
import threading
import typing as t
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from kit import Backend, only

from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Plan


class Stage(abc.ABC):
    backend: Backend
    unique_ids: t.ClassVar[bool] = True
    """Whether the id of a snapshot is never used again."""

    @abc.abstractmethod
    def state(self, vm: str) -> tuple[str, list[str], str]:
        """Power (running or off), the names of the snapshots, and the data of a VM as it really is."""

    @abc.abstractmethod
    def write(self, vm: str, text: str) -> None:
        """Change the data of a VM."""

    def damage(self, vm: str) -> list[str]:
        """What is not right in the storage of a VM, where that is real."""
        return []

    @abc.abstractmethod
    def close(self) -> None:
        """End it."""

    def vary(self, number: int) -> None:
        """Let the hypervisor behave in one of the ways that such ones behave in; the next number is another one, where there is."""

    def at_once(self, vm: str, plans: Sequence[Plan], **bounds: t.Any) -> list[Outcome]:
        """Carry these out on one VM at the same time, each with a login of its own; what became of each, in their order."""
        barrier = threading.Barrier(len(plans))

        def carry_out(plan: Plan) -> Outcome:
            barrier.wait()
            return only(self.backend.run(plan, vm, **bounds))

        with ThreadPoolExecutor(len(plans)) as pool:
            return list(pool.map(carry_out, plans))
