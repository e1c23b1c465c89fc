# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Internal snapshots whose image and libvirt record differ, with libvirt 9.0; the main cases also with 11.3."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import typing as t
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest
from hanging_file import hanging
from libvirt_kit import Make, apply, domain, image, listed, look, over_tcp, power, reads, remove, revert, take, write

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Finding, Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Delete
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

pytestmark = pytest.mark.qemu

METADATA_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY


def by_hand(lab: t.Any, vm: str, name: str) -> libvirt.virDomainSnapshot:
    return domain(lab, vm).snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")


def in_image(lab: t.Any, vm: str) -> list[str]:
    """Return the names of the snapshots in the image of a VM that is off."""
    shown = subprocess.run(["qemu-img", "snapshot", "-l", str(image(lab, vm))], capture_output=True, text=True, check=True)
    return [line.split()[1] for line in shown.stdout.splitlines()[2:]]


def images(uri: str, vm: str) -> list[Finding]:
    """Return the findings of check_images."""
    return look(uri, vm, images=True).findings


def do(command: str) -> None:
    subprocess.run(["sh", "-ec", command], capture_output=True, check=True)


@pytest.fixture
def distant(lab: t.Any) -> Iterator[str]:
    """Return the URI of the daemon as if it were on another host, whose paths do not exist here."""
    with over_tcp(lab) as uri:
        yield uri


@pytest.fixture
def pool(lab: t.Any) -> Iterator[t.Callable[[str], None]]:
    """Define the folder of a VM as a storage pool during the test."""
    made = []

    def make(vm: str) -> None:
        path = lab.disk_folder(vm)
        made.append(
            lab.connect().storagePoolCreateXML(f"<pool type='dir'><name>{vm}</name><target><path>{path}</path></target></pool>")
        )

    yield make
    for one in made:
        one.destroy()


def test_name_of_an_orphan_snapshot_is_refused_while_the_vm_is_off(either: t.Any, make: Make) -> None:
    vm = make("taken")
    write(either, vm, "a")
    by_hand(either, vm, "x").delete(METADATA_ONLY)
    write(either, vm, "b")
    for dry_run in (True, False):
        done = apply(either.uri, Present(Request(name="x")), vm, dry_run=dry_run)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert in_image(either, vm) == ["x"]
    said = str(done.error)
    do(said[said.index("qemu-img snapshot -d") : said.index(", or choose")])
    take(either.uri, vm, "x")
    write(either, vm, "c")
    revert(either.uri, vm, "x")
    assert reads(either, vm, "b")


def test_orphan_is_found_in_a_storage_pool_of_another_host(
    lab: t.Any, tiny: Make, distant: str, pool: t.Callable[[str], None]
) -> None:
    vm, uri = tiny("afar"), distant
    by_hand(lab, vm, "x").delete(METADATA_ONLY)
    by_hand(lab, vm, "y")
    pool(vm)
    done = apply(uri, Present(Request(name="x")), vm)
    assert done.error and done.error.code == "unsupported" and in_image(lab, vm) == ["x", "y"]
    assert [one.code for one in images(uri, vm)] == ["orphan"]
    assert take(uri, vm, "z").name == "z"


def test_images_that_cannot_be_searched_are_reported(lab: t.Any, tiny: Make, distant: str) -> None:
    vm, uri = tiny("unseen"), distant
    done = apply(uri, Present(Request(name="x")), vm)
    assert done.word == "created" and any(str(image(lab, vm)) in warning for warning in done.warnings)
    on = tiny("seen", paused=True)
    assert not apply(uri, Present(Request(name="x")), on).warnings


def test_orphan_with_the_name_of_a_snapshot_is_found_and_the_snapshot_stays_usable(either: t.Any, make: Make) -> None:
    vm = make("twice")
    write(either, vm, "a")
    by_hand(either, vm, "x").delete(METADATA_ONLY)
    write(either, vm, "b")
    by_hand(either, vm, "x")
    assert in_image(either, vm) == ["x", "x"]
    done = apply(either.uri, Reverted(Request()), Target(vm, "x"))
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert reads(either, vm, "b")
    (finding,) = images(either.uri, vm)
    assert finding.code == "orphan"
    do(finding.remedy.partition(": ")[2])
    assert in_image(either, vm) == ["x"] and images(either.uri, vm) == []
    write(either, vm, "c")
    assert apply(either.uri, Reverted(Request()), Target(vm, "x")).error is None
    assert reads(either, vm, "b")


@pytest.mark.parametrize("state", ["off", "paused"])
def test_record_without_data_is_found_not_relied_on_and_removed(either: t.Any, make: Make, state: str) -> None:
    vm = make(f"ghost{state}", paused=state == "paused")
    take(either.uri, vm, "x")
    take(either.uri, vm, "y")
    kept = domain(either, vm).snapshotLookupByName("x").getXMLDesc()
    domain(either, vm).snapshotLookupByName("x").delete()
    domain(either, vm).snapshotCreateXML(kept, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    lost = {name: one.lost.code for name, one in listed(either.uri, vm).items() if one.lost}
    assert lost == {"x": "snapshot_lost"}
    for plan in (Present(Request(name="x")), Reverted(Request(name="x"))):
        done = apply(either.uri, plan, vm)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert power(either, vm) == state
    assert remove(either.uri, vm, "x").word == "removed"
    assert list(listed(either.uri, vm)) == ["y"]
    revert(either.uri, vm, "y")


@pytest.mark.parametrize("state", ["off", "paused"])
def test_snapshot_missing_in_one_of_two_images_is_found_and_removed_from_both(either: t.Any, make: Make, state: str) -> None:
    vm = make(f"half{state}", disks=2)
    take(either.uri, vm, "x")
    # The first disk, so that the search continues after a finding.
    do(f"qemu-img snapshot -d x {image(either, vm)}")
    if state == "paused":
        domain(either, vm).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    other = image(either, vm, "vdb")
    lost = listed(either.uri, vm)["x"].lost
    assert lost and lost.code == "snapshot_lost" and f"{other} still holds" in lost.message
    (finding,) = images(either.uri, vm)
    assert finding == lost
    assert remove(either.uri, vm, "x").word == "removed" and listed(either.uri, vm) == {}
    if state == "paused":
        domain(either, vm).destroy()
    shown = subprocess.run(["qemu-img", "snapshot", "-l", str(other)], capture_output=True, text=True, check=True)
    assert shown.stdout == "" and images(either.uri, vm) == []


def delete_as_lost(lab: t.Any, vm: str, name: str) -> SafepointError | None:
    """Delete a snapshot that is complete again: it was reported as lost while another run worked on it."""
    with contextlib.closing(LibvirtDriver(lab.uri)) as driver:
        (found,) = driver.find([vm]).values()
        assert not isinstance(found, SafepointError)
        (seen,) = driver.snapshots([found]).values()
        assert not isinstance(seen, SafepointError)
        (one,) = [one for one in seen if one.name == name]
        job = driver.start(Delete(found, dataclasses.replace(one, lost=Finding("snapshot_lost", "", ""))))
        (done,) = driver.wait([job], Deadline(60))
        return done.error


def test_internal_snapshot_completed_after_it_was_reported_lost_is_removed_with_its_data(either: t.Any, make: Make) -> None:
    """qemu-img takes it while the VM is off, which may take longer than two reads; libvirt's own removal waits for it."""
    vm = make("finished")
    take(either.uri, vm, "x")
    assert delete_as_lost(either, vm, "x") is None
    assert listed(either.uri, vm) == {} and in_image(either, vm) == []


def test_external_snapshot_reported_lost_but_with_data_is_not_forgotten(either: t.Any, make: Make) -> None:
    vm = make("whole", running=True)
    domain(either, vm).snapshotCreateXML(
        "<domainsnapshot><name>x</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    )
    error = delete_as_lost(either, vm, "x")
    assert error and error.code == "backend_failed" and "nothing was removed" in str(error)
    assert list(listed(either.uri, vm)) == ["x"]


def test_image_snapshot_with_another_time_than_its_record_is_found_and_not_reverted_to(lab: t.Any, tiny: Make) -> None:
    vm = tiny("otherwise")
    take(lab.uri, vm, "x")
    kept = domain(lab, vm).snapshotLookupByName("x").getXMLDesc()
    later = re.sub(r"<creationTime>\d+<", "<creationTime>1900000000<", kept)
    domain(lab, vm).snapshotCreateXML(later, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    assert listed(lab.uri, vm)["x"].lost is None
    done = apply(lab.uri, Reverted(Request(name="x")), vm)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False) and "2030-03-17" in str(done.error)
    (finding,) = images(lab.uri, vm)
    assert finding.code == "snapshot_differs" and "qemu-img" not in finding.remedy
    assert in_image(lab, vm) == ["x"]
    assert remove(lab.uri, vm, "x").word == "removed" and in_image(lab, vm) == []


def test_record_without_data_on_another_host_is_found_by_check_images(lab: t.Any, tiny: Make, distant: str) -> None:
    vm, uri = tiny("farghost", paused=True), distant
    take(uri, vm, "x")
    kept = domain(lab, vm).snapshotLookupByName("x").getXMLDesc()
    domain(lab, vm).snapshotLookupByName("x").delete()
    assert images(uri, vm) == []
    domain(lab, vm).snapshotCreateXML(kept, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    assert listed(uri, vm)["x"].lost is None
    assert [one.code for one in images(uri, vm)] == ["snapshot_lost"]


@pytest.mark.parametrize("state", ["off", "paused"])
def test_number_as_name_is_refused_because_qemu_would_use_it_as_snapshot_number(either: t.Any, make: Make, state: str) -> None:
    vm = make(f"number{state}")
    refused = None
    try:
        apply(either.uri, Present(Request(name="2")), vm)
    except SafepointError as exc:
        refused = exc
    assert refused and refused.code == "invalid_option"
    for text, name in (("a", "2"), ("b", "x")):
        write(either, vm, text)
        by_hand(either, vm, name)
    if state == "paused":
        domain(either, vm).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    done = apply(either.uri, Reverted(Request()), Target(vm, "2"))
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert apply(either.uri, Reverted(Request()), Target(vm, "x")).error is None
    # and it is no idle fear
    domain(either, vm).revertToSnapshot(domain(either, vm).snapshotLookupByName("2"))
    assert reads(either, vm, "b")
    assert take(either.uri, vm, "1000000").name == "1000000"


@pytest.mark.parametrize("state", ["off", "paused"])
def test_disk_in_a_storage_pool_is_searched(lab: t.Any, tiny: Make, pool: t.Callable[[str], None], state: str) -> None:
    vm = tiny(f"volume{state}")
    pool(vm)
    path = image(lab, vm)
    xml = domain(lab, vm).XMLDesc().replace("<disk type='file'", "<disk type='volume'")
    lab.connect().defineXML(xml.replace(f"file='{path}'", f"pool='{vm}' volume='{path.name}'"))
    if state == "paused":
        domain(lab, vm).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    by_hand(lab, vm, "lost").delete(METADATA_ONLY)
    by_hand(lab, vm, "kept")
    (finding,) = images(lab.uri, vm)
    assert finding.code == "orphan" and str(path) in finding.message and "'lost'" in finding.message
    do(finding.remedy.partition(": ")[2])
    assert images(lab.uri, vm) == []
    assert revert(lab.uri, vm, "kept", foreign_allowed=True).word == "reverted"


def test_disk_with_a_json_file_name_in_qemu_is_searched(lab: t.Any, tiny: Make) -> None:
    vm = tiny("odd")
    lab.run_as_user("truncate", "-s", "8M", str(image(lab, vm)))
    part = "<slices><slice type='storage' offset='0' size='8388608'/></slices>"
    xml = domain(lab, vm).XMLDesc()
    lab.connect().defineXML(xml.replace("-0.qcow2'/>", f"-0.qcow2'>{part}</source>"))
    domain(lab, vm).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    by_hand(lab, vm, "lost").delete(METADATA_ONLY)
    shown = libvirt_qemu.qemuMonitorCommand(domain(lab, vm), '{"execute": "query-block"}', 0)
    assert '"filename":"json:' in shown
    assert [one.code for one in images(lab.uri, vm)] == ["orphan"]


def test_snapshot_of_another_vm_on_the_same_image_is_no_orphan(lab: t.Any, tiny: Make) -> None:
    first, second = tiny("shared"), tiny("sharer")
    path = image(lab, second)
    lab.connect().defineXML(domain(lab, second).XMLDesc().replace(str(path), str(image(lab, first))))
    take(lab.uri, first, "x")
    refused = apply(lab.uri, Present(Request(name="x")), second)
    assert refused.error and refused.error.code == "unsupported"
    assert first in str(refused.error) and "qemu-img" not in str(refused.error)
    (finding,) = images(lab.uri, second)
    assert finding.code == "shared_image" and first in finding.message and "qemu-img" not in finding.remedy
    assert images(lab.uri, first) == []


@pytest.mark.slow
def test_hanging_vm_does_not_block_the_search_of_the_others(lab: t.Any, tiny: Make) -> None:
    hangs, lives = tiny("hangs", running=True), tiny("lives", paused=True)
    by_hand(lab, lives, "lost").delete(METADATA_ONLY)
    pid = next(pid for pid in lab.qemu_pids() if b"guest=hangs" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(pid, signal.SIGSTOP)
    try:
        with contextlib.closing(LibvirtDriver(lab.uri)) as driver:
            seen = Fleet(driver, Bounds(timeout=60), now=lambda: datetime.now(timezone.utc)).look(None, images=True)
            found = {one.vm.name: [finding.code for finding in one.findings] for one in seen if one.vm and not one.error}
            os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found == {hangs: ["images_not_checked"], lives: ["orphan"]}


def test_hanging_storage_does_not_block_the_listing_of_other_vms(lab: t.Any, tiny: Make) -> None:
    hang = [tiny(f"mute{number}") for number in range(4)]
    lives = tiny("prompt")
    for vm in [*hang, lives]:
        by_hand(lab, vm, "x")
    with hanging(*[image(lab, vm) for vm in hang]), contextlib.closing(LibvirtDriver(lab.uri)) as driver:
        seen = Fleet(driver, Bounds(timeout=60), now=lambda: datetime.now(timezone.utc)).look(None)
        found = {one.vm.name: [two.name for two in one.after.snapshots] for one in seen if one.vm and one.after}
    # The daemon may also have VMs of other tests.
    assert {vm: found.get(vm) for vm in [*hang, lives]} == {vm: ["x"] for vm in [*hang, lives]}


@pytest.mark.parametrize("far", [False, True])
def test_removal_with_an_unwritable_image_is_a_failure(
    lab: t.Any, either: t.Any, make: Make, distant: str, pool: t.Callable[[str], None], far: bool
) -> None:
    vm, uri = make("frozen"), either.uri
    if far and either is lab:  # the newer daemon has no storage driver
        uri = distant
        pool(vm)
    take(either.uri, vm, "x")
    path = image(either, vm)
    os.chmod(path, 0o444)
    done = remove(uri, vm, "x")
    os.chmod(path, 0o644)
    assert done.error and (done.error.code, done.changed) == ("backend_failed", True)
    assert in_image(either, vm) == ["x"] and str(path) in str(done.error)
    do(str(done.error).rpartition(": ")[2])
    assert in_image(either, vm) == [] and images(either.uri, vm) == []


def test_snapshot_with_a_missing_image_is_not_forgotten(either: t.Any, make: Make) -> None:
    vm = make("not mounted")
    take(either.uri, vm, "x")
    path = image(either, vm)
    path.rename(path.with_suffix(".away"))
    done = remove(either.uri, vm, "x")
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert str(path) in str(done.error)
    forget = re.search(r"virsh -c \S+ snapshot-delete .*?--metadata", str(done.error))
    assert forget and shlex.split(forget.group()) == ["virsh", "-c", either.uri, "snapshot-delete", vm, "x", "--metadata"]
    path.with_suffix(".away").rename(path)
    assert remove(either.uri, vm, "x").word == "removed" and in_image(either, vm) == []


def test_full_disk_is_reported(lab: t.Any, tiny: Make) -> None:
    vm = tiny("tight", memory_mib=64)
    folder, path = lab.disk_folder(vm), image(lab, vm)
    data = path.read_bytes()
    root = [] if os.geteuid() == 0 else ["sudo"]
    subprocess.run([*root, "mount", "-t", "tmpfs", "-o", "size=600k,mode=777", "tmpfs", str(folder)], check=True)
    try:
        path.write_bytes(data)
        os.chmod(path, 0o666)
        domain(lab, vm).create()
        done = apply(lab.uri, Present(Request(name="x")), vm)
        assert done.error and (done.error.code, done.changed) == ("backend_failed", False)
        assert "free space" in str(done.error) and "check_images" not in str(done.error)
        assert listed(lab.uri, vm) == {}
    finally:
        if domain(lab, vm).isActive():
            domain(lab, vm).destroy()
        subprocess.run([*root, "umount", str(folder)], check=True)
