# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the simulated vCenter: the contents of snapshots, and reverts."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
from pyVmomi import vim, vmodl
from server import VCenter
from vim_client import Client, login

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20


@pytest.fixture
def client(vcenter: VCenter) -> Iterator[Client]:
    with login(vcenter) as client:
        yield client
        vcenter.set_datastore()
        vcenter.set(suppressed_power="poweredOff")


def node_of(client: Client, vm: t.Any) -> t.Any:
    """Return the root of a VM's snapshot tree."""
    return client.read(vm, "snapshot")["snapshot"].rootSnapshotList[0]


# -- the tree ----------------------------------------------------------------------------------------------------------


def grow(client: Client, vm: t.Any) -> dict[str, t.Any]:
    """Create a with the children b and d, and c on b; d is the current snapshot."""
    snapshots = {name: client.done(client.create(vm, name)) for name in "abc"}
    client.done(snapshots["a"].RevertToSnapshot_Task())
    snapshots["d"] = client.done(client.create(vm, "d"))
    return snapshots


def test_a_revert_and_a_create_make_a_branch(client: Client, vm: t.Any) -> None:
    snapshots = grow(client, vm)
    assert client.tree(vm) == {"a": (None, False), "b": ("a", False), "c": ("b", False), "d": ("a", True)}
    assert client.read(vm, "rootSnapshot")["rootSnapshot"] == [snapshots["a"]]
    assert client.read(snapshots["a"], "childSnapshot")["childSnapshot"] == [snapshots["b"], snapshots["d"]]
    assert client.read(snapshots["c"], "vm")["vm"] == vm


def test_children_of_a_removed_snapshot_move_up(client: Client, vm: t.Any) -> None:
    snapshots = grow(client, vm)
    client.done(snapshots["b"].RemoveSnapshot_Task(removeChildren=False))
    assert client.tree(vm) == {"a": (None, False), "c": ("a", False), "d": ("a", True)}
    client.done(snapshots["a"].RemoveSnapshot_Task(removeChildren=False))
    assert client.tree(vm) == {"c": (None, False), "d": (None, True)}
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        snapshots["a"].RemoveSnapshot_Task(removeChildren=False)


def test_with_a_removed_subtree_its_parent_becomes_current(client: Client, vm: t.Any) -> None:
    snapshots = {name: client.done(client.create(vm, name)) for name in "abc"}
    client.done(snapshots["b"].RemoveSnapshot_Task(removeChildren=True))
    assert client.tree(vm) == {"a": (None, True)}
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        client.read(snapshots["c"], "vm")
    client.done(client.create(vm, "d"))
    assert client.tree(vm) == {"a": (None, False), "d": ("a", True)}


def test_without_a_parent_nothing_is_current(client: Client, vm: t.Any) -> None:
    snapshots = grow(client, vm)
    client.done(snapshots["b"].RevertToSnapshot_Task())
    client.done(snapshots["a"].RemoveSnapshot_Task(removeChildren=False))
    client.done(snapshots["b"].RemoveSnapshot_Task(removeChildren=False))
    assert client.tree(vm) == {"c": (None, False), "d": (None, False)}


def test_after_the_last_one_the_property_is_unset(client: Client, vm: t.Any) -> None:
    grow(client, vm)
    client.done(vm.RemoveAllSnapshots_Task())
    assert client.read(vm, "snapshot", "rootSnapshot").get("snapshot") is None
    layout = client.read(vm, "layoutEx")["layoutEx"]
    assert not layout.snapshot and all(len(disk.chain) == 1 for disk in layout.disk)


def test_ids_are_never_used_again(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    client.done(client.create(vm, "a"))
    client.done(vm.RemoveAllSnapshots_Task())
    client.done(client.create(vm, "a"))
    assert [one["id"] for one in vcenter.vm(vm._moId)["snapshots"]] == [2]


def test_both_ways_to_create_do_the_same(client: Client, vm: t.Any) -> None:
    client.done(vm.CreateSnapshot_Task(name="a", description="old", memory=True, quiesce=False))
    client.done(client.create(vm, "b", memory=True, description="new"))
    old = node_of(client, vm)
    (new,) = old.childSnapshotList
    assert (old.description, new.description) == ("old", "new")
    assert old.state == new.state == "poweredOn" and old.createTime <= new.createTime


def test_rename_changes_what_it_is_given(client: Client, vm: t.Any) -> None:
    snapshot = client.done(client.create(vm, "a", description="first"))
    rows = []
    for change in ({"name": "description"}, {"description": "second"}, {"name": "c", "description": ""}):
        snapshot.RenameSnapshot(**change)
        node = node_of(client, vm)
        rows.append((node.name, node.description))
    assert rows == [("description", "first"), ("description", "second"), ("c", "")]
    with pytest.raises(vim.fault.InvalidName):
        snapshot.RenameSnapshot(name="")
    client.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        snapshot.RenameSnapshot(name="d")


# -- revert ------------------------------------------------------------------------------------------------------------


def test_a_revert_brings_back_configuration_and_data(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set_vm(vm._moId, data="before", cpus=2, memory_mb=64, annotation="as it was")
    devices = len(client.read(vm, "config.hardware.device")["config.hardware.device"])
    snapshot = client.done(client.create(vm, "a"))
    (card,) = [
        one for one in client.read(vm, "config")["config"].hardware.device if isinstance(one, vim.vm.device.VirtualVmxnet3)
    ]
    spec = vim.vm.ConfigSpec(
        numCPUs=4,
        memoryMB=128,
        annotation="changed",
        extraConfig=[vim.option.OptionValue(key="guestinfo.safepoint.data", value="after")],
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="remove", device=card)],
    )
    client.done(vm.ReconfigVM_Task(spec))
    extra = client.read(vm, "config.extraConfig")["config.extraConfig"]
    assert [one.value for one in extra if one.key == "guestinfo.safepoint.data"] == ["after"]  # replaced, not added
    changed = vcenter.vm(vm._moId)
    assert (changed["data"], changed["cpus"], changed["memory_mb"], changed["annotation"]) == ("after", 4, 128, "changed")
    assert len(client.read(vm, "config.hardware.device")["config.hardware.device"]) == devices - 1
    assert client.read(snapshot, "config.hardware.numCPU")["config.hardware.numCPU"] == 2
    client.done(snapshot.RevertToSnapshot_Task())
    back = vcenter.vm(vm._moId)
    assert (back["data"], back["cpus"], back["memory_mb"], back["annotation"]) == ("before", 2, 64, "as it was")
    seen = client.read(vm, "config.hardware.device", "config.hardware.numCPU", "summary.config")
    assert len(seen["config.hardware.device"]) == devices and seen["config.hardware.numCPU"] == 2
    assert (seen["summary.config"].numCpu, seen["summary.config"].memorySizeMB) == (2, 64)
    extra = client.read(vm, "config.extraConfig")["config.extraConfig"]
    assert [one.value for one in extra if one.key == "guestinfo.safepoint.data"] == ["before"]


def test_a_revert_leaves_the_name(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    snapshot = client.done(client.create(vm, "a"))
    client.done(vm.Rename_Task("renamed"))
    client.done(snapshot.RevertToSnapshot_Task())
    assert client.read(vm, "name", "config.name") == {"name": "renamed", "config.name": "renamed"}


@pytest.mark.parametrize(
    ("then", "memory", "suppress", "power"),
    [
        ("poweredOn", True, False, "poweredOn"),
        ("poweredOn", True, True, "poweredOff"),
        ("poweredOn", False, False, "poweredOff"),
        ("poweredOff", True, False, "poweredOff"),
        ("suspended", False, False, "suspended"),
    ],
)
@pytest.mark.parametrize("now", ["poweredOn", "poweredOff"])
def test_a_revert_brings_back_the_power(
    vcenter: VCenter, client: Client, vm: t.Any, then: str, memory: bool, suppress: bool, power: str, now: str
) -> None:
    vcenter.set_vm(vm._moId, power=then)
    snapshot = client.done(client.create(vm, "a", memory=memory))
    vcenter.set_vm(vm._moId, power=now)
    client.done(snapshot.RevertToSnapshot_Task(suppressPowerOn=suppress))
    seen = client.read(vm, "runtime.powerState", "summary.runtime.powerState", "guest.toolsRunningStatus")
    assert seen["runtime.powerState"] == seen["summary.runtime.powerState"] == power
    assert (seen["guest.toolsRunningStatus"] == "guestToolsRunning") == (power == "poweredOn")


def test_a_suppressed_power_on_may_leave_it_suspended(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set(suppressed_power="suspended")
    snapshot = client.done(client.create(vm, "a", memory=True))
    client.done(snapshot.RevertToSnapshot_Task(suppressPowerOn=True))
    assert client.read(vm, "runtime.powerState")["runtime.powerState"] == "suspended"
    client.done(vm.PowerOffVM_Task())


def test_one_reverts_to_the_current_snapshot_without_naming_it(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    assert isinstance(client.error(vm.RevertToCurrentSnapshot_Task()), vim.fault.NotFound)
    vcenter.set_vm(vm._moId, data="before")
    client.done(client.create(vm, "a"))
    vcenter.set_vm(vm._moId, data="after")
    client.done(vm.RevertToCurrentSnapshot_Task())
    assert vcenter.vm(vm._moId)["data"] == "before"


# -- what snapshots hold -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "memory", "quiesced"),
    [
        ({}, False, True),
        ({"power": "poweredOff"}, False, False),
        ({"tools": False}, False, False),
        ({"capability": {"quiescedSnapshotsSupported": False}}, False, False),
        ({}, True, False),
    ],
)
def test_quiesced_is_true_only_where_it_was_possible(
    vcenter: VCenter, client: Client, vm: t.Any, knobs: dict[str, t.Any], memory: bool, quiesced: bool
) -> None:
    vcenter.set_vm(vm._moId, **knobs)
    client.done(client.create(vm, "a", quiesce=True, memory=memory))
    assert node_of(client, vm).quiesced is quiesced


def test_sizes_are_in_the_layout(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set_vm(vm._moId, memory_mb=64)
    vcenter.set(delta_bytes=5 * MIB, data_bytes=1000)
    snapshots = [client.done(client.create(vm, "a", memory=True)), client.done(client.create(vm, "b"))]
    vcenter.set(delta_bytes=16 * MIB, data_bytes=32 << 10)
    vcenter.set_vm(vm._moId, snapshot_sizes={"b": {"delta": 7 * MIB, "data": 2000}})
    layout = client.read(vm, "layoutEx")["layoutEx"]
    files = {file.key: file for file in layout.file}
    assert [row.key for row in layout.snapshot] == snapshots
    assert [files[row.dataKey].size for row in layout.snapshot] == [1000, 2000]
    first, second = (row.memoryKey for row in layout.snapshot)
    assert files[first].size == 64 * MIB and files[first].type == "snapshotMemory" and second == -1

    def sizes(chain: t.Any) -> list[int]:
        return [sum(files[key].size for key in one.fileKey if files[key].type == "diskExtent") for one in chain]

    assert [sizes(row.disk[0].chain) for row in layout.snapshot] == [[MIB], [MIB, 5 * MIB]]
    assert sizes(layout.disk[0].chain) == [MIB, 5 * MIB, 7 * MIB]
    client.done(snapshots[1].RemoveSnapshot_Task(removeChildren=False))
    layout = client.read(vm, "layoutEx")["layoutEx"]
    files = {file.key: file for file in layout.file}
    assert sizes(layout.disk[0].chain) == [MIB, 12 * MIB]  # later writes were merged into the file below


def test_a_snapshot_puts_the_disk_on_a_delta(client: Client, vm: t.Any) -> None:
    def backing() -> t.Any:
        devices = client.read(vm, "config.hardware.device")["config.hardware.device"]
        (disk,) = [one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)]
        return disk.backing

    base = backing().fileName
    snapshot = client.done(client.create(vm, "a"))
    assert backing().fileName == base.replace(".vmdk", "-000001.vmdk") and backing().parent.fileName == base
    (disk,) = [
        one
        for one in client.read(snapshot, "config.hardware.device")["config.hardware.device"]
        if isinstance(one, vim.vm.device.VirtualDisk)
    ]
    assert disk.backing.fileName == base
    client.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert backing().fileName == base and backing().parent is None


def test_consolidation_is_needed_after_a_removal_without_it(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    snapshot = client.done(client.create(vm, "a"))
    client.done(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=False))
    assert client.read(vm, "runtime.consolidationNeeded")["runtime.consolidationNeeded"] is True
    client.done(vm.ConsolidateVMDisks_Task())
    assert client.read(vm, "runtime.consolidationNeeded")["runtime.consolidationNeeded"] is False


# -- what cannot be done -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "request_", "fault"),
    [
        ({"template": True, "power": "poweredOff"}, {}, vim.fault.InvalidState),
        ({"connection": "disconnected"}, {}, vim.fault.InvalidState),
        ({"question": "Did you move it or copy it?"}, {}, vim.fault.QuestionPending),
        ({"capability": {"snapshotOperationsSupported": False}}, {}, vmodl.fault.NotSupported),
        ({"capability": {"memorySnapshotsSupported": False}}, {"memory": True}, vmodl.fault.NotSupported),
        ({"disk_mode": "independent_persistent"}, {"memory": True}, vim.fault.MemorySnapshotOnIndependentDisk),
        ({"memory_mb": 1 << 20}, {"memory": True}, vim.fault.NoDiskSpace),
        ({}, {"name": ""}, vim.fault.InvalidName),
        ({}, {"name": "x" * 81}, vim.fault.InvalidName),
    ],
)
def test_some_snapshots_are_impossible(
    vcenter: VCenter, client: Client, vm: t.Any, knobs: dict[str, t.Any], request_: dict[str, t.Any], fault: type
) -> None:
    vcenter.set_datastore(free_bytes=1 << 39)  # less than a VM of 1 TiB of memory needs
    vcenter.set_vm(vm._moId, **knobs)
    assert isinstance(client.error(client.create(vm, **{"name": "a", **request_})), fault)
    assert client.tree(vm) == {}


def test_a_chain_has_32_levels_at_most(client: Client, vm: t.Any) -> None:
    for n in range(32):
        client.done(client.create(vm, str(n)))
    assert isinstance(client.error(client.create(vm, "32")), vim.fault.TooManySnapshotLevels)
    client.done(node_of(client, vm).snapshot.RevertToSnapshot_Task())
    client.done(client.create(vm, "beside"))
    assert len(client.tree(vm)) == 33


def test_a_disabled_method_is_disabled(vcenter: VCenter, client: Client, vm: t.Any) -> None:
    vcenter.set_vm(vm._moId, disabled_methods=["CreateSnapshotEx_Task"])
    assert client.read(vm, "disabledMethod")["disabledMethod"] == ["CreateSnapshotEx_Task"]
    with pytest.raises(vim.fault.MethodDisabled):
        client.create(vm, "a")
    vcenter.set_vm(vm._moId, disabled_methods=[])
    client.done(client.create(vm, "a"))
