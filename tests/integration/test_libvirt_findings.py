# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Findings about a VM or its images; each remedy in a finding works."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import libvirt
import pytest
from libvirt_kit import Make, apply, crawling, domain, look, power, qemu_pid, take, until

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present

pytestmark = pytest.mark.qemu

METADATA_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY


def found(lab: t.Any, vm: str, *, images: bool = False) -> list[Finding]:
    seen = look(lab.uri, vm, images=images)
    assert seen.after is not None
    return [*seen.after.state.findings, *seen.findings]


def mend(finding: Finding) -> None:
    """Run the command in the remedy of the finding, after the colon."""
    command = re.sub(r"\A[^:]*: ", "", finding.remedy)
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def at_work(pid: int) -> bool:
    """Return True if the process uses CPU: the QEMU of a paused VM does not, unless it writes a snapshot."""
    before = cpu_ticks(pid)
    time.sleep(0.3)
    return cpu_ticks(pid) > before


def settled(lab: t.Any, vm: str) -> list[int]:
    """Return the state of the VM when the new daemon is ready: until then, it locks the VM and reports the state from the old daemon."""
    mine = domain(lab, vm)

    def state() -> list[int] | None:
        now: list[int] = mine.state()
        if now[0] == libvirt.VIR_DOMAIN_SHUTOFF:
            return now
        with contextlib.suppress(libvirt.libvirtError):  # it is just going off
            return now if mine.controlInfo()[0] == libvirt.VIR_DOMAIN_CONTROL_OK else None
        return None

    return until(state, 120)


def strike(lab: t.Any, vm: str, wanted: list[int], *, answer_comes_late: bool) -> tuple[str, Outcome]:
    """Kill the daemon while it takes a snapshot of the VM; repeat until the VM is in the ``wanted`` state.

    QEMU completes the snapshot itself. If its answer arrives while there is no daemon, it is lost, and the VM stays paused; if it arrives
    late, the new daemon takes it as the answer to its own command, and ends QEMU.
    """
    for attempt in range(20):
        name = f"struck{attempt}"
        mine = domain(lab, vm)
        if not mine.isActive():
            mine.create()
        elif mine.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            mine.resume()
        pid = qemu_pid(lab, vm)
        ends: list[Outcome] = []
        thread = threading.Thread(target=lambda: ends.append(apply(lab.uri, Present(Request(name=name)), vm)))  # noqa: B023
        thread.start()
        while mine.state() != [3, 3] and thread.is_alive():
            pass
        with crawling(pid) if answer_comes_late else contextlib.nullcontext():
            if answer_comes_late:
                until(lambda: at_work(pid) or not thread.is_alive())  # noqa: B023
            lab.kill_daemon()
            thread.join()
            if not answer_comes_late:
                until(lambda: not at_work(pid))  # noqa: B023
            lab.start_daemon()
            state = settled(lab, vm)
        if state == wanted:
            return name, ends[0]
    raise AssertionError("the daemon was never killed in the right moment")


def test_vm_left_paused_by_a_killed_daemon_is_found_and_the_remedy_works(lab: t.Any, tiny: Make) -> None:
    vm = tiny("struck", running=True, memory_mib=1000)
    assert found(lab, vm) == []
    orphan, end = strike(lab, vm, [3, 3], answer_comes_late=False)
    assert end.error and end.error.code == "unverified" and " resume VM" in str(end.error)
    (finding,) = found(lab, vm)
    assert finding.code == "left_paused"
    assert vm in finding.message and f"virsh -c '{lab.uri}' resume {vm}" in finding.remedy
    # another one shows the state in which it is taken
    second = apply(lab.uri, Present(Request(name="second")), vm)
    assert second.word == "created" and any("paused" in one and "resume" in one for one in second.warnings)
    mend(finding)
    assert power(lab, vm) == "running"
    assert found(lab, vm) == []
    # and the partial data are still in the image, unless it was killed before
    for left in found(lab, vm, images=True):
        assert left.code == "orphan" and repr(orphan) in left.message
        mend(left)
    assert found(lab, vm, images=True) == []
    assert take(lab.uri, vm, "after").name == "after"


def check_left_off(lab: t.Any, vm: str) -> None:
    _orphan, end = strike(lab, vm, [5, 8], answer_comes_late=True)
    assert end.error and end.error.code == "unverified" and " start VM" in str(end.error)
    (finding,) = found(lab, vm)
    assert finding.code == "left_off" and "memory" in finding.message
    second = apply(lab.uri, Present(Request(name="second")), vm)
    assert second.snapshot and (second.word, second.snapshot.consistency) == ("created", "offline")
    assert any("is off because" in one and "start" in one for one in second.warnings)
    mend(finding)
    assert power(lab, vm) == "running"
    assert found(lab, vm) == []


def test_vm_ended_by_a_new_daemon_is_found_and_the_remedy_works(lab: t.Any, tiny: Make) -> None:
    check_left_off(lab, tiny("ended", running=True, memory_mib=3000))


@pytest.mark.slow
def test_vm_ended_by_a_new_daemon_is_found_with_a_newer_libvirt(new_lab: t.Any, newer: Make) -> None:
    check_left_off(new_lab, newer("ended", running=True, memory_mib=3000))


def test_vm_paused_by_a_user_is_no_finding(lab: t.Any, tiny: Make) -> None:
    vm = tiny("resting", running=True)
    domain(lab, vm).suspend()
    take(lab.uri, vm, "x")
    assert found(lab, vm) == []


def test_snapshot_in_progress_is_no_finding(lab: t.Any, tiny: Make) -> None:
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
def test_orphan_snapshot_is_found_and_the_remedy_works(lab: t.Any, tiny: Make, state: str) -> None:
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
        assert re.search(r" of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\b", finding.message)
    # while the VM is running, one command repairs all its disks
    for finding in findings if state == "off" else findings[:1]:
        mend(finding)
    assert found(lab, vm, images=True) == []
    assert domain(lab, vm).snapshotListNames() == ["known"]
    assert power(lab, vm) == state


@pytest.mark.slow
def test_orphan_snapshot_is_found_with_a_newer_libvirt(new_lab: t.Any, newer: Make) -> None:
    vm = newer("orphan", paused=True)
    domain(new_lab, vm).snapshotCreateXML("<domainsnapshot><name>lost</name></domainsnapshot>")
    domain(new_lab, vm).snapshotLookupByName("lost").delete(METADATA_ONLY)
    (finding,) = found(new_lab, vm, images=True)
    assert finding.code == "orphan" and "'lost'" in finding.message
    # libvirt 9.0 replaces it silently
    done = apply(new_lab.uri, Present(Request(name="lost")), vm)
    assert done.error and "check_images" in str(done.error) and not done.changed
    mend(finding)
    assert found(new_lab, vm, images=True) == []


def test_orphans_of_an_undefined_vm_are_found_on_the_next_vm_with_its_disk(lab: t.Any, tiny: Make) -> None:
    vm = tiny("gone", running=True)
    take(lab.uri, vm, "x")
    definition = domain(lab, vm).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain(lab, vm).undefine()
    domain(lab, vm).destroy()
    lab.connect().defineXML(definition)
    (finding,) = found(lab, vm, images=True)
    mend(finding)
    assert found(lab, vm, images=True) == []


def test_unreadable_image_is_reported_with_a_command(lab: t.Any, tiny: Make) -> None:
    vm = tiny("hidden")
    image = lab.disk_folder(vm) / "hidden-0.qcow2"
    # the message of the driver for a daemon on another machine
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


def test_raw_image_has_no_orphans(lab: t.Any, tiny: Make) -> None:
    vm = tiny("plain", disks=0, raw_disks=1, paused=True)
    assert found(lab, vm, images=True) == []
    refused = apply(lab.uri, Present(Request(name="x", kind="internal")), vm)
    assert refused.error and "vda has the format raw" in str(refused.error)
