# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the simulated vCenter: VMs, datastores, and how they are found."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
from pyVmomi import vim, vmodl
from server import VCenter
from vim_client import Client, PropertyCollector, login

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def client(vcenter: VCenter) -> Iterator[Client]:
    with login(vcenter) as client:
        yield client
        vcenter.set_datastore()
        vcenter.set(page_objects=0)


def test_what_preflight_reads_can_be_set(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    assert client.read(vm, "capability.snapshotOperationsSupported", "capability.memorySnapshotsSupported") == {
        "capability.snapshotOperationsSupported": True,
        "capability.memorySnapshotsSupported": True,
    }
    vcenter.set_vm(
        vm._moId,
        question="Well?",
        consolidation_needed=True,
        tools=False,
        template=True,
        disk_mode="independent_persistent",
        disk_kb=4096,
        passthrough=True,
        bus_sharing="physicalSharing",
        capability={"quiescedSnapshotsSupported": False},
    )
    seen = client.read(
        vm,
        "runtime.question",
        "runtime.consolidationNeeded",
        "guest.toolsRunningStatus",
        "config.template",
        "config.hardware.device",
    )
    assert seen["runtime.question"].text == "Well?" and seen["runtime.consolidationNeeded"] is True
    assert seen["guest.toolsRunningStatus"] == "guestToolsNotRunning" and seen["config.template"] is True
    devices = {type(one): one for one in seen["config.hardware.device"]}
    disk = devices[vim.vm.device.VirtualDisk]
    assert disk.backing.diskMode == "independent_persistent" and disk.capacityInKB == 4096
    assert vim.vm.device.VirtualPCIPassthrough in devices
    assert devices[vim.vm.device.ParaVirtualSCSIController].sharedBus == "physicalSharing"
    assert not client.read(vm, "capability")["capability"].quiescedSnapshotsSupported
    vcenter.set_vm(vm._moId, rdm="physicalMode", question="")
    devices = client.read(vm, "config.hardware.device")["config.hardware.device"]
    (disk,) = [one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)]
    assert disk.backing.compatibilityMode == "physicalMode"
    assert "runtime.question" not in client.read(vm, "runtime.question")


def test_the_space_of_a_datastore_can_be_set(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set_datastore(free_bytes=12345, capacity_bytes=99999)
    (datastore,) = client.read(vm, "datastore")["datastore"]
    assert client.read(datastore, "summary.freeSpace", "summary.capacity", "info.freeSpace") == {
        "summary.freeSpace": 12345,
        "summary.capacity": 99999,
        "info.freeSpace": 12345,
    }


def test_one_name_may_be_in_two_folders_and_names_are_escaped(vcenter: VCenter, client: Client) -> None:
    one, other, odd = vcenter.make_vms(
        {"name": "twin", "folder": "/DC0/vm/a", "uuid": "42000000-0000-0000-0000-000000000001"},
        {"name": "twin", "folder": "/DC0/vm/b/c", "uuid": "42000000-0000-0000-0000-000000000001"},
        {"name": "50%/x\\y", "folder": "/DC0/vm/a"},
    )
    assert one["path"] == "/DC0/vm/a/twin" and other["path"] == "/DC0/vm/b/c/twin"
    assert one["instance_uuid"] != other["instance_uuid"]
    index = client.content.searchIndex
    assert index.FindByInventoryPath("/DC0/vm/b/c/twin")._moId == other["moid"]
    both = index.FindAllByUuid(None, "42000000-0000-0000-0000-000000000001", True, False)
    assert {found._moId for found in both} == {one["moid"], other["moid"]}
    assert [found._moId for found in index.FindAllByUuid(None, one["instance_uuid"], True, True)] == [one["moid"]]
    assert client.read(client.by_id(odd["moid"]), "name")["name"] == "50%25%2fx%5cy"
    vcenter.set_vm("/DC0/vm/a/twin", data="mine")
    assert vcenter.vm(one["moid"])["data"] == "mine" and vcenter.vm(other["moid"])["data"] == ""


def test_a_clone_is_a_vm_like_any_other(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), template=False, powerOn=False)
    clone = client.done(vm.CloneVM_Task(folder=client.read(vm, "parent")["parent"], name="copy", spec=spec))
    client.done(client.create(clone, "a"))
    assert set(client.tree(clone)) == {"a"} and client.tree(vm) == {}


def test_answers_may_come_in_pages(vcenter: VCenter, client: Client) -> None:
    made = {row["moid"] for row in vcenter.make_vms(*({"name": f"page{n}", "folder": "/DC0/vm/pages"} for n in range(25)))}
    vms = [client.by_id(moid) for moid in made]
    spec = PropertyCollector.FilterSpec(
        objectSet=[PropertyCollector.ObjectSpec(obj=vm) for vm in vms],
        propSet=[PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    vcenter.set(page_objects=10)
    pages = []
    answer = client.collector.RetrievePropertiesEx([spec], PropertyCollector.RetrieveOptions())
    while True:
        pages.append({one.obj._moId for one in answer.objects})
        if not answer.token:
            break
        answer = client.collector.ContinueRetrievePropertiesEx(answer.token)
    assert [len(page) for page in pages] == [10, 10, 5] and set().union(*pages) == made
    few = client.collector.RetrievePropertiesEx([spec], PropertyCollector.RetrieveOptions(maxObjects=3))
    assert len(few.objects) == 3
    client.collector.CancelRetrievePropertiesEx(few.token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        client.collector.ContinueRetrievePropertiesEx(few.token)
    assert len(client.collector.RetrieveProperties([spec])) == 25  # the old method has no pages


def test_updates_may_be_truncated(vcenter: VCenter, client: Client) -> None:
    rows = vcenter.make_vms(*({"name": f"part{n}", "folder": "/DC0/vm/parts"} for n in range(25)))
    vcenter.set(page_objects=10)
    seen: list[str] = []
    rounds = 0
    with client.watch([client.by_id(row["moid"]) for row in rows], "name"):
        version = ""
        while len(seen) < 25:
            version, updates = client.updates(version)
            seen += [one._moId for one, kind, _ in updates if kind == "enter"]
            rounds += 1
    assert sorted(seen) == sorted(row["moid"] for row in rows) and rounds == 3
