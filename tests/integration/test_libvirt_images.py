# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""External snapshots whose images were merged, changed or extended by other tools."""

from __future__ import annotations

import contextlib
import subprocess
import typing as t

import libvirt
import pytest
from kit import pruning
from libvirt_kit import Make, apply, by_hand, domain, image, listed, look, reads, remove, revert, take, until, write

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

pytestmark = pytest.mark.qemu


def virsh(lab: t.Any, *command: str) -> None:
    done = subprocess.run(["virsh", "-q", "-c", lab.uri, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def codes(lab: t.Any, vm: str, *, images: bool = False) -> list[str]:
    seen = look(lab.uri, vm, images=images)
    assert seen.after is not None
    lost = [one.lost.code for one in seen.after.snapshots if one.lost]
    return [*[one.code for one in seen.after.state.findings], *lost, *[one.code for one in seen.findings]]


@pytest.mark.slow
def test_snapshot_merged_by_a_backup_tool_is_found_and_not_relied_on(new_lab: t.Any, newer: Make) -> None:
    vm = newer("merged", disks=2)
    write(new_lab, vm, "a")
    take(new_lab.uri, vm, "below", kind="external")
    write(new_lab, vm, "b")
    take(new_lab.uri, vm, "above", kind="external")
    write(new_lab, vm, "c")
    domain(new_lab, vm).create()
    assert codes(new_lab, vm) == []
    virsh(new_lab, "blockcommit", vm, "vda", "--active", "--shallow", "--pivot", "--wait")
    # the base image of below was not written to
    assert codes(new_lab, vm) == ["snapshot_lost"] and listed(new_lab.uri, vm)["above"].lost
    virsh(new_lab, "blockcommit", vm, "vda", "--active", "--pivot", "--wait")
    for on in (True, False):
        if not on:
            domain(new_lab, vm).destroy()
        assert codes(new_lab, vm) == ["snapshot_lost", "snapshot_lost"]
        for name in ("below", "above"):
            for plan in (Present(Request(name=name)), Reverted(Request(name=name))):
                done = apply(new_lab.uri, plan, vm)
                assert done.error and (done.error.code, done.changed) == ("unsupported", False)
                assert "lost its data" in str(done.error) and "state=absent" in str(done.error)
    # vdb was not merged, so the VM needs all its files.
    for name in ("above", "below"):
        done = remove(new_lab.uri, vm, name)
        (warning,) = done.warnings
        assert done.word == "removed" and f"{vm}-vda.{name}" in warning and f"{vm}-vdb" not in warning
    assert listed(new_lab.uri, vm) == {} and codes(new_lab, vm) == []
    assert reads(new_lab, vm, "c")
    # and the VM is not damaged
    take(new_lab.uri, vm, "next", kind="external")
    revert(new_lab.uri, vm, "next")
    assert reads(new_lab, vm, "c")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["running", "off"])
def test_merged_images_in_a_chain_are_found_and_the_others_stay_usable(new_lab: t.Any, newer: Make, state: str) -> None:
    vm = newer("between")
    bases = []
    for text in "abcde":
        write(new_lab, vm, text)
        bases.append(str(image(new_lab, vm)))
        take(new_lab.uri, vm, text, kind="external")
    write(new_lab, vm, "f")
    domain(new_lab, vm).create()
    virsh(new_lab, "blockcommit", vm, "vda", "--base", bases[1], "--top", bases[2], "--wait")
    if state == "off":
        domain(new_lab, vm).destroy()
    # The base image of b now has the data of c.
    assert [one.name for one in listed(new_lab.uri, vm).values() if one.lost] == ["b", "c"]
    for name in ("b", "c"):
        done = apply(new_lab.uri, Reverted(Request(name=name)), vm)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False)
        assert "was merged into" in str(done.error) and "VM writes to" not in str(done.error)
        done = remove(new_lab.uri, vm, name)
        # The VM runs on the file that was created for c; the file of b was merged and is not used.
        assert done.word == "removed" and [f"{vm}-vda.{name}." in one for one in done.warnings] == [name == "b"]
    for name in ("a", "d", "e"):
        revert(new_lab.uri, vm, name)
        assert reads(new_lab, vm, name)
    assert codes(new_lab, vm) == []


@pytest.mark.slow
def test_newest_image_merged_into_its_base_is_not_relied_on(new_lab: t.Any, newer: Make) -> None:
    vm = newer("newest")
    bases = []
    for text in "abc":
        write(new_lab, vm, text)
        bases.append(str(image(new_lab, vm)))
        take(new_lab.uri, vm, text, kind="external")
    domain(new_lab, vm).create()
    virsh(new_lab, "blockcommit", vm, "vda", "--base", bases[1], "--top", bases[2], "--wait")
    assert codes(new_lab, vm) == []
    done = apply(new_lab.uri, Reverted(Request(name="b")), vm)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False) and "may have lost" in str(done.error)
    revert(new_lab.uri, vm, "a")
    assert reads(new_lab, vm, "a")


@pytest.mark.slow
def test_removal_interrupted_by_a_dead_daemon_is_found_and_can_be_completed(new_lab: t.Any, newer: Make) -> None:
    vm = newer("halfway")
    write(new_lab, vm, "a")
    take(new_lab.uri, vm, "x", kind="external")
    write(new_lab, vm, "b")
    domain(new_lab, vm).create()
    # The first step of libvirt's removal, which a daemon that dies then leaves behind: the job is ready, and the image has the newer data.
    domain(new_lab, vm).blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    until(lambda: "ready='yes'" in domain(new_lab, vm).XMLDesc())
    new_lab.kill_daemon()
    new_lab.start_daemon()
    assert codes(new_lab, vm) == ["snapshot_lost"]
    domain(new_lab, vm).blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    assert codes(new_lab, vm) == ["snapshot_lost"]
    assert remove(new_lab.uri, vm, "x").word == "removed"
    domain(new_lab, vm).destroy()
    assert reads(new_lab, vm, "b")


@pytest.mark.slow
def test_number_of_external_snapshots_is_limited_so_that_the_vm_starts(new_lab: t.Any, newer: Make) -> None:
    vm = newer("deep", running=True)
    # A template of five images below it.
    base, folder = image(new_lab, vm), new_lab.disk_folder(vm)
    domain(new_lab, vm).destroy()
    xml = domain(new_lab, vm).XMLDesc()
    for number in range(5):
        top = folder / f"layer{number}.qcow2"
        new_lab.run_as_user("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(top))
        base = top
    new_lab.connect().defineXML(xml.replace("deep-0.qcow2", base.name))
    taken = 0
    refused = None
    for number in range(30):
        done = apply(new_lab.uri, Present(Request(name=f"s{number}", kind="external")), vm)
        if done.error:
            refused = done
            break
        taken += 1
        # off at first, later running
        if taken == 7:
            domain(new_lab, vm).create()
    assert taken == 14 and refused and refused.error and (refused.error.code, refused.changed) == ("unsupported", False)
    assert "has a chain of 20 images" in str(refused.error) and f" blockpull {vm} DISK" in str(refused.error)
    for state in ("running", "off"):
        assert codes(new_lab, vm) == ["chain_near_limit"]
        again = apply(new_lab.uri, Present(Request(name="more", kind="external")), vm)
        assert str(again.error) == str(refused.error)
        assert any("20 images" in warning for warning in apply(new_lab.uri, pruning(max_count=20), vm).warnings)
        if state == "running":
            domain(new_lab, vm).destroy()
    for number in range(5):
        by_hand(new_lab, vm, f"hand{number}", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    domain(new_lab, vm).create()
    domain(new_lab, vm).destroy()
    # proof that the limit is needed
    by_hand(new_lab, vm, "hand5", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    with pytest.raises(libvirt.libvirtError, match="nesting too deep"):
        domain(new_lab, vm).create()


class Meanwhile:
    """A proxy of a VM handle that runs an action of another client once, before the definition is first read."""

    def __init__(self, handle: libvirt.virDomain, do: t.Callable[[], object]) -> None:
        self._handle = handle
        self._do: t.Callable[[], object] | None = do

    def __getattr__(self, name: str) -> t.Any:
        if name == "XMLDesc" and self._do is not None:
            do, self._do = self._do, None
            do()
        return getattr(self._handle, name)


@pytest.mark.slow
@pytest.mark.parametrize("running", [False, True])
def test_snapshot_whose_parent_is_removed_during_the_read_is_not_lost(new_lab: t.Any, newer: Make, running: bool) -> None:
    vm = newer(f"meanwhile{running}".lower(), running=running)
    for name in "abc":
        take(new_lab.uri, vm, name, kind="external")
    with contextlib.closing(LibvirtDriver(new_lab.uri)) as driver:
        (found,) = driver.find([vm]).values()
        assert not isinstance(found, Exception)
        driver._domains[found.id] = Meanwhile(
            driver._domains[found.id], lambda: domain(new_lab, vm).snapshotLookupByName("a").delete()
        )
        (seen,) = driver.snapshots([found]).values()
    assert not isinstance(seen, Exception)
    assert [(one.name, one.lost) for one in seen] == [("b", None), ("c", None)]
