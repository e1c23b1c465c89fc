# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conformance of backends whose VMs have real disks and memory: a revert restores their contents."""

from __future__ import annotations

import abc

import pytest
from kit import Backend


class DataBackend(Backend):
    """A hypervisor that stores the data of its VMs."""

    @abc.abstractmethod
    def write(self, vm: str, text: str) -> None:
        """Write up to 100 characters to the disk of a VM."""

    @abc.abstractmethod
    def read(self, vm: str) -> str:
        """Return the text that was last written to the disk."""


class MemoryBackend(DataBackend):
    """A hypervisor whose VMs have real memory too."""

    @abc.abstractmethod
    def memory(self, vm: str) -> str:
        """Return a part of the memory of a running VM."""

    @abc.abstractmethod
    def stir(self, vm: str) -> None:
        """Let a running VM work until the result of memory() changes."""


class WithData:
    """A revert restores the disk and changes nothing else."""

    @pytest.mark.parametrize("up", [True, False])
    def test_revert_restores_the_disk(self, backend: DataBackend, up: bool) -> None:
        vm = backend.vm(power=backend.up if up else "off")
        for name in ("first", "second"):
            backend.write(vm, name)
            backend.take(vm, name)
        backend.write(vm, "third")
        for name in ("second", "first", "second"):
            assert backend.revert(vm, name).error is None
            assert backend.read(vm) == name

    def test_removal_of_a_snapshot_keeps_the_disk_and_the_other_snapshots(self, backend: DataBackend) -> None:
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
    """A revert restores the memory too."""

    def test_revert_restores_the_memory(self, backend: MemoryBackend) -> None:
        vm = backend.vm()
        backend.stir(vm)
        then = backend.memory(vm)
        backend.take(vm, "sa", memory=True)
        backend.stir(vm)
        assert backend.memory(vm) != then
        assert backend.revert(vm, "sa").error is None
        assert backend.memory(vm) == then
