# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The configuration of a VM in a snapshot and now: the drift has all changes by users, and no others."""

from __future__ import annotations

import typing as t

import libvirt
import pytest
from libvirt_kit import Make, domain, look, revert, take

pytestmark = pytest.mark.qemu

CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
NIC = "<interface type='user'><mac address='52:54:00:00:00:0{n}'/><model type='{model}'/></interface>"
DEVICES = NIC.format(n=1, model="virtio") + "<disk type='file' device='cdrom'><target dev='hdb' bus='ide'/></disk>"
DISK = "<disk type='file'><driver type='qcow2'/><source file='{path}'/><target dev='vdq' bus='virtio'/></disk>"

Drift = list[tuple[str, t.Any, t.Any]]


def drift(lab: t.Any, vm: str, name: str = "x") -> Drift:
    seen = look(lab.uri, vm, drift=True)
    assert seen.now is not None and not seen.warnings
    return seen.then[name].drift(seen.now)


def grow(lab: t.Any, vm: str) -> None:
    domain(lab, vm).setMemoryFlags(64 * 1024, CONFIG | libvirt.VIR_DOMAIN_MEM_MAXIMUM)


@pytest.mark.parametrize("state", ["running", "paused", "off", "transient"])
def test_drift_is_empty_after_a_snapshot_and_lists_later_changes(lab: t.Any, tiny: Make, state: str) -> None:
    vm = tiny(
        f"drift{state}",
        disks=2,
        running=state == "running",
        paused=state == "paused",
        transient=state == "transient",
        extra_devices=DEVICES,
    )
    take(lab.uri, vm, "x")
    assert drift(lab, vm) == []
    now = look(lab.uri, vm, drift=True).now
    assert now is not None
    assert (now.cpus, now.memory_bytes) == (1, 32 * 1024 * 1024)
    assert now.disks == {
        "hdb": "empty (cdrom on ide)",
        "vda": f"{lab.disk_folder(vm)}/{vm}-0.qcow2 (disk on virtio)",
        "vdb": f"{lab.disk_folder(vm)}/{vm}-1.qcow2 (disk on virtio)",
    }
    assert now.networks == {"52:54:00:00:00:01": "user (virtio)"}
    added = lab.disk_folder(vm) / "added.qcow2"
    lab.run_as_user("qemu-img", "create", "-q", "-f", "qcow2", str(added), "1M")
    where = LIVE if state == "transient" else CONFIG | (LIVE if state != "off" else 0)
    domain(lab, vm).attachDeviceFlags(DISK.format(path=added), where)
    domain(lab, vm).attachDeviceFlags(NIC.format(n=2, model="e1000"), where)
    expected: Drift = [
        ("disk vdq", None, f"{added} (disk on virtio)"),
        ("network 52:54:00:00:00:02", None, "user (e1000)"),
    ]
    if state != "transient":
        grow(lab, vm)
        later = "" if state == "off" else " from the next start on"
        expected.insert(0, (f"memory_bytes{later}", 32 * 1024 * 1024, 64 * 1024 * 1024))
    assert drift(lab, vm) == expected
    revert(lab.uri, vm, "x")
    assert drift(lab, vm) == []


def test_drift_distinguishes_running_and_persistent_changes(lab: t.Any, tiny: Make) -> None:
    vm = tiny("half", paused=True, extra_devices=DEVICES)
    take(lab.uri, vm, "x")
    domain(lab, vm).attachDeviceFlags(NIC.format(n=2, model="e1000"), LIVE)
    domain(lab, vm).detachDeviceFlags(NIC.format(n=1, model="virtio"), CONFIG)
    domain(lab, vm).setVcpusFlags(2, CONFIG | libvirt.VIR_DOMAIN_VCPU_MAXIMUM)
    domain(lab, vm).setVcpusFlags(2, CONFIG)
    assert drift(lab, vm) == [
        ("cpus from the next start on", 1, 2),
        ("network 52:54:00:00:00:01", "user (virtio)", "user (virtio), until the VM is powered off"),
        ("network 52:54:00:00:00:02", None, "user (e1000), until the VM is powered off"),
    ]


def test_power_changes_are_no_drift(lab: t.Any, tiny: Make) -> None:
    vm = tiny("switched", extra_devices=DEVICES)
    take(lab.uri, vm, "x")
    domain(lab, vm).create()
    assert drift(lab, vm) == []
    take(lab.uri, vm, "y")
    domain(lab, vm).destroy()
    assert drift(lab, vm) == drift(lab, vm, "y") == []


def test_no_secret_is_in_the_configuration(lab: t.Any, tiny: Make) -> None:
    vm = tiny("secret", extra_devices="<graphics type='vnc' autoport='yes' listen='127.0.0.1' passwd='hunter2'/>")
    take(lab.uri, vm, "x")
    seen = look(lab.uri, vm, drift=True)
    assert seen.now and "hunter2" not in repr(seen.now) + repr(seen.then)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["running", "paused", "off"])
def test_files_of_external_snapshots_are_no_drift(new_lab: t.Any, newer: Make, state: str) -> None:
    vm = newer(
        f"drift{state}",
        raw_disks=1,
        running=state == "running",
        paused=state == "paused",
        extra_devices=DEVICES,
    )
    take(new_lab.uri, vm, "x", kind="external")
    take(new_lab.uri, vm, "y", kind="external", memory=state == "running")
    assert drift(new_lab, vm) == drift(new_lab, vm, "y") == []
    now = look(new_lab.uri, vm, drift=True).now
    assert now and now.disks["vda"] == f"a file in {new_lab.disk_folder(vm)} (disk on virtio)"
    grow(new_lab, vm)
    later = "" if state == "off" else " from the next start on"
    assert drift(new_lab, vm) == [(f"memory_bytes{later}", 32 * 1024 * 1024, 64 * 1024 * 1024)]
    revert(new_lab.uri, vm, "x", power="on")
    assert drift(new_lab, vm) == drift(new_lab, vm, "y") == []
