# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots that cannot be removed in the present state of the VM: refused with a remedy, before libvirt crashes."""

from __future__ import annotations

import typing as t

import libvirt
import pytest
from libvirt_kit import Make, apply, domain, files, listed, power, qemu_pid, revert, take

from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

pytestmark = pytest.mark.qemu

LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG


def add_disk(lab: t.Any, vm: str, flags: int = LIVE | CONFIG) -> str:
    """Attach a second disk and return its definition."""
    path = lab.disk_folder(vm) / "added.qcow2"
    lab.run_as_user("qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M")
    xml = f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='vdb' bus='virtio'/></disk>"
    domain(lab, vm).attachDeviceFlags(xml, flags)
    return xml


def check_missing_disk(lab: t.Any, vm: str) -> None:
    take(lab.uri, vm, "x")
    disk = add_disk(lab, vm)
    take(lab.uri, vm, "y")
    revert(lab.uri, vm, "x")
    daemon, qemu = lab.pid, qemu_pid(lab, vm)
    for dry_run in (True, False):
        done = apply(lab.uri, Absent(Request(name="y")), vm, dry_run=dry_run)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False), done.error
        assert "vdb" in str(done.error) and "power the VM off" in str(done.error) and "attach-device" in str(done.error)
    assert lab.connect().isAlive() and (lab.pid, qemu_pid(lab, vm)) == (daemon, qemu)
    # Both remedies work: with the disk attached again
    domain(lab, vm).attachDeviceFlags(disk, LIVE)
    assert apply(lab.uri, Absent(Request(name="y")), vm).word == "removed"
    take(lab.uri, vm, "z")
    revert(lab.uri, vm, "x")
    assert "remove" in listed(lab.uri, vm)["z"].obstacles
    # and off.
    domain(lab, vm).destroy()
    assert apply(lab.uri, Absent(Request(name="z")), vm).word == "removed"
    assert domain(lab, vm).snapshotListNames() == ["x"]


def test_snapshot_with_a_missing_disk_is_not_removed_while_the_vm_runs(lab: t.Any, tiny: Make) -> None:
    check_missing_disk(lab, tiny("lacking", paused=True))


@pytest.mark.slow
def test_snapshot_with_a_missing_disk_is_not_removed_with_a_newer_libvirt(new_lab: t.Any, newer: Make) -> None:
    check_missing_disk(new_lab, newer("lacking", paused=True))


def test_discard_newer_stops_at_a_snapshot_with_a_missing_disk(lab: t.Any, tiny: Make) -> None:
    vm = tiny("discarding", paused=True)
    take(lab.uri, vm, "x")
    add_disk(lab, vm)
    take(lab.uri, vm, "y")
    done = apply(lab.uri, Reverted(Request(name="x", discard_newer=True)), vm)
    assert done.error and (done.error.code, done.changed) == ("unsupported", True)
    assert "power the VM off" in str(done.error)
    assert listed(lab.uri, vm)["x"].current and power(lab, vm) == "paused"


@pytest.mark.slow
def test_external_snapshot_with_a_missing_disk_is_not_removed(new_lab: t.Any, newer: Make) -> None:
    vm = newer("apart", disks=2)
    take(new_lab.uri, vm, "x", kind="external")
    person = domain(new_lab, vm)
    definition = person.XMLDesc()
    start = definition.rindex("<disk ", 0, definition.index("'vdb'"))
    person.detachDeviceFlags(definition[start : definition.index("</disk>", start) + 7], CONFIG)
    done = apply(new_lab.uri, Absent(Request(name="x")), vm)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert "vdb" in str(done.error) and "attach the disk again" in str(done.error)
    new_lab.connect().defineXML(definition)
    assert apply(new_lab.uri, Absent(Request(name="x")), vm).word == "removed"
    assert files(new_lab, vm) == ["apart-0.qcow2", "apart-1.qcow2"]


@pytest.mark.slow
def test_external_snapshot_is_not_removed_while_memory_is_saved(new_lab: t.Any, newer: Make) -> None:
    vm = newer("saved", running=True)
    take(new_lab.uri, vm, "x", kind="external")
    person = domain(new_lab, vm)
    person.managedSave()
    for dry_run in (True, False):
        done = apply(new_lab.uri, Absent(Request(name="x")), vm, dry_run=dry_run)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False)
        assert "managedsave-remove" in str(done.error) and "start the VM" in str(done.error)
    person.create()
    assert power(new_lab, vm) == "running"
    assert apply(new_lab.uri, Absent(Request(name="x")), vm).word == "removed"
    assert files(new_lab, vm) == ["saved-0.qcow2"]


def test_removal_done_despite_an_error_of_libvirt_is_a_success(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("contrary")
    take(lab.uri, vm, "x")
    real = libvirt.virDomainSnapshot.delete

    def delete(snapshot: t.Any, flags: int = 0) -> None:
        real(snapshot, flags)
        snapshot.getDomain().suspend()  # an error of libvirt's own: the VM is off

    monkeypatch.setattr(libvirt.virDomainSnapshot, "delete", delete)
    done = apply(lab.uri, Absent(Request(name="x")), vm)
    assert (done.word, done.error) == ("removed", None)
    assert any("not running" in warning for warning in done.warnings)


# saved memory


def check_saved(lab: t.Any, vm: str, kind: str) -> None:
    """The VM is off when the snapshot is taken, and its memory is saved when it is reverted."""
    take(lab.uri, vm, "x", kind=kind)
    person = domain(lab, vm)
    person.create()
    person.managedSave()
    done = apply(lab.uri, Reverted(Request(name="x")), vm)
    assert done.error is None, done.error
    assert (done.word, power(lab, vm)) == ("reverted", "off")
    assert any("managed save" in warning for warning in done.warnings)
    assert not person.hasManagedSaveImage()
    person.create()
    assert power(lab, vm) == "running"


def test_vm_with_saved_memory_is_reverted_to_a_snapshot_without_memory(lab: t.Any, tiny: Make) -> None:
    check_saved(lab, tiny("dormant"), "internal")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["internal", "external"])
def test_vm_with_saved_memory_is_reverted_with_a_newer_libvirt(new_lab: t.Any, newer: Make, kind: str) -> None:
    check_saved(new_lab, newer(f"dormant{kind}"), kind)


@pytest.mark.slow
def test_operations_that_qemu_cannot_do_before_a_restored_vm_has_run_are_refused(new_lab: t.Any, newer: Make) -> None:
    vm = newer("restored", running=True)
    take(new_lab.uri, vm, "x", kind="external")
    person = domain(new_lab, vm)
    person.suspend()
    person.managedSave()
    person.create()
    assert power(new_lab, vm) == "paused"
    plans = (Absent(Request(name="x")), Present(Request(name="y", kind="external", memory=True)))
    for plan in plans:
        for dry_run in (True, False):
            done = apply(new_lab.uri, plan, vm, dry_run=dry_run)
            assert done.error and (done.error.code, done.changed) == ("unsupported", False), done.error
            assert f" resume {vm}" in str(done.error)
    person.resume()
    person.suspend()
    assert apply(new_lab.uri, Absent(Request(name="x")), vm).word == "removed"


@pytest.mark.slow
def test_internal_snapshots_are_refused_before_a_restored_vm_has_run(new_lab: t.Any, newer: Make) -> None:
    vm = newer("waking", paused=True)
    take(new_lab.uri, vm, "before")
    person = domain(new_lab, vm)
    person.managedSave()
    person.create()
    for plan in (Present(Request(name="x", kind="internal")), Absent(Request(name="before"))):
        for dry_run in (True, False):
            done = apply(new_lab.uri, plan, vm, dry_run=dry_run)
            assert done.error and (done.error.code, done.changed) == ("unsupported", False), done.error
            assert f" resume {vm}" in str(done.error)
    person.resume()
    person.suspend()
    assert take(new_lab.uri, vm, "x").kind == "internal"
    assert apply(new_lab.uri, Absent(Request(name="before")), vm).word == "removed"
