# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conformance suite on every backend."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterator
from xml.sax.saxutils import escape

import libvirt
import pytest
from fake import FakeDriver, Hypervisor
from suite import Backend, Conformance, code, only

from ansible_collections.safepoint.vm.plugins.module_utils._driver import Create, SnapshotDriver
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._model import Target, Vm
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Absent, Request, Reverted


class FakeBackend(Backend):
    def __init__(self) -> None:
        self.hypervisor = Hypervisor()

    def open(self) -> SnapshotDriver:
        return FakeDriver(self.hypervisor)

    def add(self, name: str, *, power: str) -> None:
        self.hypervisor.add(name, power=power)

    def machine(self, name: str) -> Vm:
        return next(one.vm for one in self.hypervisor.machines.values() if one.vm.name == name)

    def uuid(self, name: str) -> str:
        return self.machine(name).uuid or ""

    def by_hand(self, vm: str, name: str, description: str) -> None:
        driver = FakeDriver(self.hypervisor)
        driver._create(self.hypervisor.machines[self.machine(vm).id], Create(self.machine(vm), name, description, memory=False))


class TestInMemory(Conformance):
    @pytest.fixture
    def backend(self) -> Backend:
        return FakeBackend()

    def test_two_snapshots_of_one_name_are_an_error_that_lists_their_ids(self, backend: FakeBackend) -> None:
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


class LibvirtBackend(Backend):
    """What both libvirt drivers share: a daemon of the lab, asked without the collection where a person would."""

    memory_implied = True
    uri: str

    def __init__(self, uri: str, person: libvirt.virConnect) -> None:
        self.uri = uri
        self.person = person

    def open(self) -> SnapshotDriver:
        return LibvirtDriver(self.uri)

    def uuid(self, name: str) -> str:
        return t.cast("str", self.person.lookupByName(name).UUIDString())

    def by_hand(self, vm: str, name: str, description: str) -> None:
        xml = f"<domainsnapshot><name>{name}</name><description>{escape(description)}</description></domainsnapshot>"
        self.person.lookupByName(vm).snapshotCreateXML(xml)


class LibvirtTestBackend(LibvirtBackend):
    def add(self, name: str, *, power: str) -> None:
        xml = f"<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
        domain = self.person.defineXML(xml)
        if power != "off":
            domain.create()
        if power == "paused":
            domain.suspend()


class TestLibvirtTestDriver(Conformance):
    @pytest.fixture
    def backend(self, lab: t.Any) -> Iterator[Backend]:
        with lab.keep_test_state() as person:
            yield LibvirtTestBackend(lab.test_uri, person)


class QemuBackend(LibvirtBackend):
    def __init__(self, lab: t.Any) -> None:
        super().__init__(lab.uri, libvirt.open(lab.uri))
        self.lab = lab
        self.made: list[str] = []

    def add(self, name: str, *, power: str) -> None:
        self.made.append(name)
        self.lab.define_tiny(name, running=power == "running", paused=power == "paused")


@pytest.mark.qemu
class TestLibvirtQemu(Conformance):
    @pytest.fixture
    def backend(self, lab: t.Any) -> Iterator[Backend]:
        backend = QemuBackend(lab)
        yield backend
        for name in backend.made:
            with contextlib.suppress(libvirt.libvirtError):
                lab.remove(name)
        backend.person.close()
