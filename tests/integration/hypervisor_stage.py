# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A separate hypervisor for a test, with access to the actual state of its VMs."""

from __future__ import annotations

import abc
import threading
import typing as t
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from kit import Backend, only

from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan


class Stage(abc.ABC):
    backend: Backend
    unique_ids: t.ClassVar[bool] = True
    """True if the id of a snapshot is never reused."""

    @abc.abstractmethod
    def state(self, vm: str) -> tuple[str, list[str], str]:
        """Return the actual power state (running or off), snapshot names and data of a VM."""

    @abc.abstractmethod
    def write(self, vm: str, text: str) -> None:
        """Change the data of a VM."""

    def damage(self, vm: str) -> list[str]:
        """Return the problems in the storage of a VM, if it is real."""
        return []

    @abc.abstractmethod
    def close(self) -> None:
        """End the hypervisor."""

    def vary(self, number: int) -> None:
        """Select one of the possible behaviours of the hypervisor by this number, if there are several."""

    def at_once(self, vm: str, plans: Sequence[Plan], **bounds: t.Any) -> list[Outcome]:
        """Run these plans on one VM in parallel, each with its own login. Return their results in the same order."""
        barrier = threading.Barrier(len(plans))

        def carry_out(plan: Plan) -> Outcome:
            barrier.wait()
            return only(self.backend.run(plan, vm, **bounds))

        with ThreadPoolExecutor(len(plans)) as pool:
            return list(pool.map(carry_out, plans))
