# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is found to be wrong with a VM or its images, and that the remedy which is told mends it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import typing as t

import libvirt
import pytest
from libvirt_kit import Make, apply, domain, look, power, take, until

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._model import Finding
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Present

pytestmark = pytest.mark.qemu

METADATA_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY


def found(lab: t.Any, vm: str, *, images: bool = False) -> list[Finding]:
    seen = look(lab.uri, vm, images=images)
    assert seen.after is not None
    return [*seen.after.state.findings, *seen.findings]


def mend(finding: Finding) -> None:
    """Do what the finding says: the command behind the colon."""
    command = re.sub(r"\A[^:]*: ", "", finding.remedy)
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def leave_paused(lab: t.Any, vm: str) -> str:
    """Kill the daemon while it takes a snapshot of the VM, until it left that paused; return the name of the snapshot."""
    for attempt in range(10):
        name = f"struck{attempt}"
        theirs = domain(lab, vm)
        xml = f"<domainsnapshot><name>{name}</name></domainsnapshot>"

        def work(theirs: libvirt.virDomain = theirs, xml: str = xml) -> None:
            with contextlib.suppress(libvirt.libvirtError):
                theirs.snapshotCreateXML(xml)

        mine = domain(lab, vm)
        thread = threading.Thread(target=work)
        thread.start()
        while mine.state() != [3, 3] and thread.is_alive():
            pass
        lab.kill_daemon()
        thread.join()
        lab.start_daemon()
        # Until it has looked after the VM, the new daemon holds it, and tells the state that the old one knew.
        until(lambda: domain(lab, vm).controlInfo()[0] == libvirt.VIR_DOMAIN_CONTROL_OK)
        if domain(lab, vm).state() == [3, 3]:
            return name
    raise AssertionError("the daemon was never killed in the right moment")


def test_a_vm_that_a_killed_daemon_left_paused_is_told_and_mended(lab: t.Any, tiny: Make) -> None:
    vm = tiny("struck", running=True, memory_mib=1000)
    assert found(lab, vm) == []
    orphan = leave_paused(lab, vm)
    (finding,) = found(lab, vm)
    assert finding.code == "left_paused"
    assert vm in finding.message and f"virsh -c '{lab.uri}' resume {vm}" in finding.remedy
    mend(finding)
    assert power(lab, vm) == "running"
    assert found(lab, vm) == []
    # and what it had begun to write is in the image still, unless it was struck before that
    for left in found(lab, vm, images=True):
        assert left.code == "orphan" and repr(orphan) in left.message
        mend(left)
    assert found(lab, vm, images=True) == []
    assert take(lab.uri, vm, "after").name == "after"


def test_a_vm_that_somebody_paused_is_not_found_fault_with(lab: t.Any, tiny: Make) -> None:
    vm = tiny("resting", running=True)
    domain(lab, vm).suspend()
    take(lab.uri, vm, "x")
    assert found(lab, vm) == []


def test_a_snapshot_that_is_being_taken_is_no_finding(lab: t.Any, tiny: Make) -> None:
    vm = tiny("growing", running=True, memory_mib=1500)
    thread = threading.Thread(target=lambda: take(lab.uri, vm, "x"))
    thread.start()
    looks = 0
    while thread.is_alive():
        assert found(lab, vm) == []
        looks += 1
    thread.join()
    assert looks > 0


@pytest.mark.parametrize("state", ["running", "paused", "off"])
def test_a_snapshot_that_libvirt_does_not_know_is_named_and_mended(lab: t.Any, tiny: Make, state: str) -> None:
    vm = tiny(f"orphan{state}", disks=2, running=state == "running", paused=state == "paused")
    for name in ("it's lost", "known"):
        domain(lab, vm).snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")
    assert found(lab, vm, images=True) == []
    domain(lab, vm).snapshotLookupByName("it's lost").delete(METADATA_ONLY)
    assert found(lab, vm) == []
    findings = found(lab, vm, images=True)
    assert [one.code for one in findings] == ["orphan"] * 2
    for number, (finding, target) in enumerate(zip(findings, ("vda", "vdb"))):
        path = str(lab.disk_folder(vm) / f"{vm}-{number}.qcow2")
        assert all(word in finding.message for word in (target, path, vm, "it's lost")), finding.message
        assert re.search(r" of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", finding.message)
    # while the VM is up the one command mends all its disks
    for finding in findings if state == "off" else findings[:1]:
        mend(finding)
    assert found(lab, vm, images=True) == []
    assert domain(lab, vm).snapshotListNames() == ["known"]
    assert power(lab, vm) == state


@pytest.mark.slow
def test_an_orphan_is_found_with_a_newer_libvirt_too(new_lab: t.Any, newer: Make) -> None:
    vm = newer("orphan", paused=True)
    domain(new_lab, vm).snapshotCreateXML("<domainsnapshot><name>lost</name></domainsnapshot>")
    domain(new_lab, vm).snapshotLookupByName("lost").delete(METADATA_ONLY)
    (finding,) = found(new_lab, vm, images=True)
    assert finding.code == "orphan" and "'lost'" in finding.message
    # libvirt 9.0 replaces it without a word
    done = apply(new_lab.uri, Present(Request(name="lost")), vm)
    assert done.error and "check_images" in str(done.error) and not done.changed
    mend(finding)
    assert found(new_lab, vm, images=True) == []


def test_an_undefined_vm_leaves_orphans_to_the_next_one_on_its_disk(lab: t.Any, tiny: Make) -> None:
    vm = tiny("gone", running=True)
    take(lab.uri, vm, "x")
    definition = domain(lab, vm).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain(lab, vm).undefine()
    domain(lab, vm).destroy()
    lab.connect().defineXML(definition)
    (finding,) = found(lab, vm, images=True)
    mend(finding)
    assert found(lab, vm, images=True) == []


def test_an_image_that_cannot_be_read_is_said_with_the_command_for_it(lab: t.Any, tiny: Make) -> None:
    vm = tiny("hidden")
    image = lab.disk_folder(vm) / "hidden-0.qcow2"
    # what the driver says of a daemon on another machine
    driver = LibvirtDriver(lab.uri)
    driver._uri = "qemu+ssh://root@elsewhere/system"
    vms = driver.vms()
    (remote,) = driver.look_into_images([one for one in vms if one.name == vm])[vms[[v.name for v in vms].index(vm)].id]
    driver.close()
    assert remote.code == "images_not_checked" and "another host" in remote.message
    mend(remote)
    image.unlink()
    (finding,) = found(lab, vm, images=True)
    assert finding.code == "images_not_checked" and str(image) in finding.message


def test_a_raw_image_holds_none(lab: t.Any, tiny: Make) -> None:
    vm = tiny("plain", disks=0, raw_disks=1, paused=True)
    assert found(lab, vm, images=True) == []
    refused = apply(lab.uri, Present(Request(name="x", kind="internal")), vm)
    assert refused.error and "vda is raw" in str(refused.error)
