# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every backend does alike whose VMs have disks and memory: what was in them comes back."""

from __future__ import annotations

import abc

import pytest
from kit import Backend


class DataBackend(Backend):
    """A hypervisor that really keeps what is written."""

    @abc.abstractmethod
    def write(self, vm: str, text: str) -> None:
        """Write up to 100 characters to the disk of a VM."""

    @abc.abstractmethod
    def read(self, vm: str) -> str:
        """What was last written to the disk."""


class MemoryBackend(DataBackend):
    """One whose VMs really have a memory as well."""

    @abc.abstractmethod
    def memory(self, vm: str) -> str:
        """Something of what is in the memory of a VM that is up."""

    @abc.abstractmethod
    def stir(self, vm: str) -> None:
        """Let a VM that is up work until what memory() tells is something else."""


class WithData:
    """A revert brings back what was there, and nothing else."""

    @pytest.mark.parametrize("up", [True, False])
    def test_a_revert_brings_back_what_was_on_the_disk(self, backend: DataBackend, up: bool) -> None:
        vm = backend.vm(power=backend.up if up else "off")
        for name in ("first", "second"):
            backend.write(vm, name)
            backend.take(vm, name)
        backend.write(vm, "third")
        for name in ("second", "first", "second"):
            assert backend.revert(vm, name).error is None
            assert backend.read(vm) == name

    def test_the_removal_of_a_snapshot_leaves_the_disk_and_the_other_snapshots_as_they_are(self, backend: DataBackend) -> None:
        vm = backend.vm()
        for name in ("first", "second", "third"):
            backend.write(vm, name)
            backend.take(vm, name)
        backend.write(vm, "now")
        assert backend.remove(vm, "second").changed
        assert backend.read(vm) == "now"
        for name in ("third", "first"):
            assert backend.revert(vm, name).error is None
            assert backend.read(vm) == name


class WithMemory(WithData):
    """And what was in its memory."""

    def test_memory_is_kept_across_a_revert(self, backend: MemoryBackend) -> None:
        vm = backend.vm()
        backend.stir(vm)
        then = backend.memory(vm)
        backend.take(vm, "sa", memory=True)
        backend.stir(vm)
        assert backend.memory(vm) != then
        assert backend.revert(vm, "sa").error is None
        assert backend.memory(vm) == then
