# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conformance suite on every backend."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t
from collections.abc import Iterator

import libvirt
import pytest
from fake import FakeDriver, Hypervisor, Machine
from kit import Backend, code, only
from libvirt_backends import LibvirtTestBackend, QemuBackend
from proxmox_backend import ContainerBackend, ProxmoxBackend
from suite import Conformance
from suite_data import MemoryBackend, WithData, WithMemory
from vsphere_backend import VsphereBackend

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted


class FakeBackend(MemoryBackend):
    def __init__(self) -> None:
        self.hypervisor = Hypervisor()

    def open(self) -> SnapshotDriver:
        return FakeDriver(self.hypervisor)

    def add(self, name: str, *, power: str) -> None:
        self.hypervisor.add(name, power=power)

    def machine(self, name: str) -> Vm:
        return next(one.vm for one in self.hypervisor.machines.values() if one.vm.name == name)

    def identity(self, name: str) -> tuple[str, str]:
        return "uuid", self.machine(name).uuid or ""

    def by_hand(self, vm: str, name: str, description: str) -> None:
        driver = FakeDriver(self.hypervisor)
        driver._create(self.hypervisor.machines[self.machine(vm).id], Create(self.machine(vm), name, description, memory=False))

    def _machine(self, name: str) -> Machine:
        return self.hypervisor.machines[self.machine(name).id]

    def switch_off(self, vm: str) -> None:
        self._machine(vm).power = "off"

    def grow(self, vm: str) -> None:
        machine = self._machine(vm)
        machine.configuration = dataclasses.replace(
            machine.configuration, memory_bytes=2 * (machine.configuration.memory_bytes or 0)
        )

    def write(self, vm: str, text: str) -> None:
        self._machine(vm).data = text

    def read(self, vm: str) -> str:
        return self._machine(vm).data

    def memory(self, vm: str) -> str:
        return self._machine(vm).memory

    def stir(self, vm: str) -> None:
        self._machine(vm).memory += "."


class TestInMemory(Conformance, WithMemory):
    @pytest.fixture
    def backend(self) -> Backend:
        return FakeBackend()

    def test_two_snapshots_with_the_same_name_are_an_error_that_lists_their_ids(self, backend: FakeBackend) -> None:
        backend.hypervisor.unique_names = False
        vm = backend.vm(power="off")
        for _time in range(2):
            backend.by_hand(vm, "twin", "[safepoint v=1 owner=safepoint]")
        ids = [one.id for one in backend.list(vm)]
        for plan in (Absent(Request(name="twin")), Reverted(Request(name="twin"))):
            done = only(backend.run(plan, vm))
            assert code(done) == "snapshot_ambiguous"
            assert all(one in str(done.error) for one in ids)
        assert only(backend.run(Absent(Request()), Target(vm, ids[0]))).word == "removed"
        assert [one.id for one in backend.list(vm)] == ids[1:]


class TestLibvirtTestDriver(Conformance):
    @pytest.fixture
    def backend(self, lab: t.Any) -> Iterator[Backend]:
        with lab.keep_test_state() as person:
            yield LibvirtTestBackend(lab.test_uri, person)


@contextlib.contextmanager
def qemu(lab: t.Any) -> Iterator[Backend]:
    """A daemon of the lab; its VMs are removed at the end."""
    backend = QemuBackend(lab)
    yield backend
    for name in backend.made:
        with contextlib.suppress(libvirt.libvirtError):
            lab.remove(name)
    backend.person.close()


@pytest.mark.qemu
class TestLibvirtQemu(Conformance, WithMemory):
    @pytest.fixture
    def backend(self, lab: t.Any) -> Iterator[Backend]:
        with qemu(lab) as backend:
            yield backend


@pytest.mark.qemu
@pytest.mark.slow
class TestNewerLibvirtQemu(Conformance, WithMemory):
    @pytest.fixture
    def backend(self, new_lab: t.Any) -> Iterator[Backend]:
        with qemu(new_lab) as backend:
            yield backend


@pytest.mark.vcenter
class TestVsphere(Conformance, WithData):
    @pytest.fixture
    def backend(self, vcenter: t.Any) -> Iterator[Backend]:
        backend = VsphereBackend(vcenter)
        yield backend
        backend.close()


class TestProxmox(Conformance, WithData):
    @pytest.fixture
    def backend(self, pve: t.Any) -> Backend:
        return ProxmoxBackend(pve)


class TestProxmoxNewGuests(Conformance, WithData):
    """New guests have no name in the list of the cluster for ten seconds."""

    @pytest.fixture
    def backend(self, pve: t.Any) -> Iterator[Backend]:
        pve.nameless_seconds = 10.0
        yield ProxmoxBackend(pve)
        pve.nameless_seconds = 0.0


class TestProxmoxContainers(Conformance, WithData):
    @pytest.fixture
    def backend(self, pve: t.Any) -> Backend:
        return ContainerBackend(pve)
