# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prune an estate of 30 VMs with 300 snapshots of all kinds: the result is as expected, also if deletions fail at random."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import random
import re
import typing as t
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone

import libvirt
import pytest
from kit import Backend, Tripwire, code, pruning
from libvirt_backends import LibvirtBackend, LibvirtTestBackend, QemuBackend
from proxmox_backend import ProxmoxBackend
from pyVmomi import vim
from vsphere_backend import VsphereBackend

from ansible_collections.safepoint.vm.plugins.module_utils._core.durations import format_time
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Action, Delete, Job
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

VMS, PER_VM = 30, 10
NOW = datetime.now(timezone.utc).replace(microsecond=0)
POLICY: dict[str, t.Any] = {"keep_daily": 2, "max_age": timedelta(days=30), "expired": True}
OURS = "[safepoint v=1 owner=safepoint{}]"


@dataclasses.dataclass(frozen=True)
class Seed:
    """A snapshot to create, and the decision that the policy must make."""

    name: str
    created: datetime
    description: str
    stays: bool


class Stage(abc.ABC):
    """A hypervisor on which snapshots with a past creation time can be created."""

    backend: Backend

    @abc.abstractmethod
    def put(self, vm: str, seed: Seed, on: str | None) -> None:
        """Create a snapshot as a child of the one named ``on``."""


class LibvirtStage(Stage):
    def __init__(self, backend: LibvirtBackend) -> None:
        self.backend = backend
        self.person = backend.person

    def put(self, vm: str, seed: Seed, on: str | None) -> None:
        domain = self.person.lookupByName(vm)
        if on is not None and domain.snapshotCurrent().getName() != on:
            domain.revertToSnapshot(domain.snapshotLookupByName(on))
        self.backend.by_hand(vm, seed.name, seed.description)
        xml = domain.snapshotLookupByName(seed.name).getXMLDesc()
        then = re.sub(r"(<creationTime>)\d+", rf"\g<1>{int(seed.created.timestamp())}", xml)
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        domain.snapshotCreateXML(then, flags)


class VsphereStage(Stage):
    def __init__(self, backend: VsphereBackend) -> None:
        self.backend = self.vsphere = backend

    def put(self, vm: str, seed: Seed, on: str | None) -> None:
        machine = vim.VirtualMachine(self.vsphere.vcenter.vm(vm)["moid"], self.vsphere.person._stub)
        if on is not None and machine.snapshot.currentSnapshot != self._tree(machine)[on]:
            task = self._tree(machine)[on].RevertToSnapshot_Task()
            Deadline(30).poll("the task", lambda: task.info.state in ("success", "error") or None, first=0.005)
        self.vsphere.vcenter.set(clock_offset=(seed.created - datetime.now(timezone.utc)).total_seconds())
        self.backend.by_hand(vm, seed.name, seed.description)
        self.vsphere.vcenter.set(clock_offset=0)

    def _tree(self, machine: t.Any) -> dict[str, t.Any]:
        nodes, found = list(machine.snapshot.rootSnapshotList), {}
        while nodes:
            node = nodes.pop()
            found[node.name] = node.snapshot
            nodes.extend(node.childSnapshotList)
        return found


class ProxmoxStage(Stage):
    def __init__(self, backend: ProxmoxBackend) -> None:
        self.backend = self.proxmox = backend

    def put(self, vm: str, seed: Seed, on: str | None) -> None:
        vmid = self.proxmox.vmids[vm]
        self.proxmox.pve.set_guest(vmid, config={"parent": on})
        self.backend.by_hand(vm, seed.name, seed.description)
        self.proxmox.pve.set_snapshot(vmid, seed.name, snaptime=int(seed.created.timestamp()))


def seeds(chance: random.Random) -> list[Seed]:
    """Return the snapshots of one VM, oldest first: some for each rule, and old protected ones that no rule may remove."""

    def ago(days: float, label: str = "", *, stays: bool, description: str | None = None) -> tuple[datetime, str, bool]:
        return NOW - timedelta(days=days), OURS.format(label) if description is None else description, stays

    def any_age() -> float:
        return chance.uniform(4, 90)

    yesterday = format_time(NOW - timedelta(days=1))
    noon = NOW.replace(hour=12, minute=0, second=0)
    days = [noon - timedelta(days=back) for back in (1, 2, 3)]
    drawn = [
        ago(chance.uniform(31, 90), stays=False),
        ago(
            any_age(),
            stays=True,
            description=chance.choice(["mine", "", "[safepoint v=1 owner=somebody]", "[safepoint v=1 owner=safepoint"]),
        ),
        ago(any_age(), " hold=yes hold_by=ann", stays=True),
        ago(any_age(), " state=guarding", stays=True),
        ago(chance.uniform(4, 29), f" expires={yesterday}", stays=False),
        (days[0], OURS.format(""), True),
        (
            days[0] - timedelta(hours=chance.randint(1, 11)),
            OURS.format(f" expires={format_time(NOW + timedelta(days=9))}"),
            False,
        ),
        (days[1], OURS.format(""), True),
        (days[1] - timedelta(hours=chance.randint(1, 11)), OURS.format(""), False),
        (days[2], OURS.format(""), False),
    ]
    return [Seed(f"snap-{number}", *row) for number, row in enumerate(sorted(drawn, key=lambda row: row[0]), 10)]


def build(stage: Stage) -> dict[str, list[Seed]]:
    """Return the estate; every third snapshot starts a new branch. Deterministic."""
    chance = random.Random(7)
    estate = {}
    for _number in range(VMS):
        vm = stage.backend.vm(power="off")
        estate[vm] = seeds(chance)
        for number, seed in enumerate(estate[vm]):
            earlier = estate[vm][:number]
            branch = chance.random() < 0.3
            stage.put(vm, seed, (chance.choice(earlier) if branch else earlier[-1]).name if earlier else None)
    assert sum(map(len, estate.values())) == VMS * PER_VM
    return estate


class Flaky(Tripwire):
    """A driver on which a third of all deletions fail without doing anything."""

    def __init__(self, driver: t.Any) -> None:
        super().__init__(driver, 0)
        self._chance = random.Random(11)
        self.failed = 0

    def start(self, action: Action) -> Job:
        assert isinstance(action, Delete)
        fails = self._chance.random() < 0.33
        self._fails_at = self._number + 1 if fails else 0
        self.failed += fails
        return super().start(action)


def run(driver: t.Any, vms: Sequence[str], *, dry_run: bool = False) -> list[Outcome]:
    fleet = Fleet(driver, Bounds(timeout=300, on_error="continue", max_parallel=8), now=lambda: NOW)
    return fleet.apply([Target(vm) for vm in vms], pruning(**POLICY), dry_run=dry_run)


def check(stage: Stage) -> None:
    estate = build(stage)
    expected = {vm: sorted(one.name for one in some if one.stays) for vm, some in estate.items()}

    def there() -> dict[str, list[str]]:
        seen = stage.backend.looks(*estate)
        return {one.target.ref: sorted(two.name for two in one.after.snapshots) for one in seen if one.after}

    assert {vm: len(names) for vm, names in there().items()} == dict.fromkeys(estate, PER_VM)
    with contextlib.closing(stage.backend.open()) as driver:
        would = run(driver, list(estate), dry_run=True)
        assert {one.target.ref: sorted(two.name for two in one.after.snapshots) for one in would if one.after} == expected

        flaky = Flaky(driver)
        first = run(flaky, list(estate))
        assert flaky.failed > 5
        assert {code(one) for one in first} == {None, "backend_failed"}
        half = there()
        for one in first:
            vm = one.target.ref
            assert set(expected[vm]) <= set(half[vm])
            assert one.error is not None or half[vm] == expected[vm]

        second = run(driver, list(estate))
        assert [one.error for one in second] == [None] * VMS
        assert there() == expected

        third = run(driver, list(estate))
        assert [(one.word, one.changed, one.error) for one in third] == [("kept", False, None)] * VMS
    assert there() == expected


def test_estate_on_libvirts_test_driver(lab: t.Any) -> None:
    with lab.keep_test_state() as person:
        check(LibvirtStage(LibvirtTestBackend(lab.test_uri, person)))


@pytest.fixture
def qemu(lab: t.Any) -> Iterator[QemuBackend]:
    backend = QemuBackend(lab)
    yield backend
    for name in backend.made:
        with contextlib.suppress(libvirt.libvirtError):
            lab.remove(name)
    backend.person.close()


# libvirt's test driver uses the same code, and 300 snapshots in real images take a minute.
@pytest.mark.slow
@pytest.mark.qemu
def test_estate_on_real_libvirt_with_disks_of_real_vms(qemu: QemuBackend) -> None:
    check(LibvirtStage(qemu))


@pytest.mark.vcenter
def test_estate_on_vsphere(vcenter: t.Any) -> None:
    backend = VsphereBackend(vcenter)
    try:
        check(VsphereStage(backend))
    finally:
        vcenter.set(clock_offset=0)
        backend.close()


def test_estate_on_proxmox_ve(pve: t.Any) -> None:
    check(ProxmoxStage(ProxmoxBackend(pve)))
