# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""External snapshots: refused if the daemon cannot revert to them (9.0), and their operations if it can (11.3)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
import time
import typing as t

import libvirt
import pytest
from kit import pruning
from libvirt_kit import Make, apply, by_hand, domain, files, image, listed, power, reads, remove, revert, take, until, write

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

pytestmark = pytest.mark.qemu

DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY


# daemons that cannot revert to them


def test_external_snapshot_is_refused_if_the_daemon_cannot_revert_to_it(lab: t.Any, tiny: Make) -> None:
    vm = tiny("asked", paused=True)
    done = apply(lab.uri, Present(Request(name="x", kind="external")), vm)
    assert done.error and done.error.code == "unsupported"
    assert "libvirt 9.0" in str(done.error) and "9.9" in str(done.error) and vm in str(done.error)
    assert listed(lab.uri, vm) == {}


def test_external_snapshot_taken_by_hand_can_be_merged_but_not_reverted_to(lab: t.Any, tiny: Make) -> None:
    vm = tiny("found", paused=True)
    by_hand(lab, vm, "ext", DISK_ONLY)
    seen = listed(lab.uri, vm)["ext"]
    assert (seen.kind, seen.memory, seen.consistency, seen.size_bytes) == ("external", False, "crash", None)
    assert seen.size_unknown
    refused = apply(lab.uri, Reverted(Request()), Target(vm, "ext"))
    assert refused.error and refused.error.code == "unsupported" and "9.9" in str(refused.error)
    beside = apply(lab.uri, Present(Request(name="x")), vm)
    assert beside.error and beside.error.code == "unsupported" and "ext" in str(beside.error)
    assert apply(lab.uri, Absent(Request()), Target(vm, "ext")).word == "removed"
    assert files(lab, vm) == ["found-0.qcow2"]
    assert power(lab, vm) == "paused"


def test_remaining_memory_file_is_named(lab: t.Any, tiny: Make) -> None:
    vm = tiny("left", running=True)
    kept = lab.disk_folder(vm) / "kept.mem"
    domain(lab, vm).snapshotCreateXML(
        f"<domainsnapshot><name>m</name><memory snapshot='external' file='{kept}'/>"
        f"<disks><disk name='vda' snapshot='external'/></disks></domainsnapshot>"
    )
    done = apply(lab.uri, Absent(Request()), Target(vm, "m"))
    assert done.word == "removed"
    assert kept.exists() and any(str(kept) in warning for warning in done.warnings)


def test_mixed_kinds_are_refused_and_the_remedy_works(lab: t.Any, tiny: Make) -> None:
    vm = tiny("mixed", running=True)
    by_hand(lab, vm, "below")
    by_hand(lab, vm, "ext", DISK_ONLY)
    by_hand(lab, vm, "above")
    for name in ("below", "ext", "above"):
        for plan in (Absent(Request()), Reverted(Request())):
            done = apply(lab.uri, plan, Target(vm, name))
            assert done.error and (done.error.code, done.changed) == ("unsupported", False)
            assert "external" in str(done.error) and "internal" in str(done.error)
    said = listed(lab.uri, vm)["above"].obstacles["remove"]
    merge, forget = "blockcommit mixed DISK --active --pivot --delete", "snapshot-delete mixed NAME --metadata"
    assert merge in said and forget in said and "snapshot-delete mixed NAME," in said
    for command in (
        "snapshot-delete mixed above",
        merge.replace("DISK", "vda") + " --wait",
        forget.replace("NAME", "ext"),
    ):
        virsh(lab, command)
    assert list(listed(lab.uri, vm)) == ["below"]
    assert files(lab, vm) == ["mixed-0.qcow2"]
    assert apply(lab.uri, Reverted(Request()), Target(vm, "below")).word == "reverted"
    assert power(lab, vm) == "running"


# daemons that can


@pytest.mark.slow
@pytest.mark.parametrize("state", ["running", "paused", "off"])
def test_disk_only_snapshot_is_taken_reverted_to_and_removed(new_lab: t.Any, newer: Make, state: str) -> None:
    vm = newer(f"ext{state}", raw_disks=1, running=state == "running", paused=state == "paused")
    first = take(new_lab.uri, vm, "x", kind="external")
    assert (first.kind, first.memory, first.consistency) == ("external", False, "offline" if state == "off" else "crash")
    assert power(new_lab, vm) == state
    for target in ("vda", "vdb"):
        assert image(new_lab, vm, target).parent == new_lab.disk_folder(vm)
        assert image(new_lab, vm, target).name.startswith(f"{vm}-{target}.x.")
    for wanted, after in (("as_snapshot", "off"), ("on", "running"), ("off", "off")):
        # in quick succession, so that some are in the same second, for which libvirt 11.3 has only one file name
        assert revert(new_lab.uri, vm, "x", power=wanted).word == "reverted"
        assert power(new_lab, vm) == after
    assert remove(new_lab.uri, vm, "x").word == "removed"
    assert files(new_lab, vm) == [f"{vm}-0.qcow2", f"{vm}-1.raw"]
    assert power(new_lab, vm) == "off"


@pytest.mark.slow
def test_revert_restores_the_disks_from_any_snapshot_of_a_chain(new_lab: t.Any, newer: Make) -> None:
    vm = newer("chain", disks=1, raw_disks=1)
    for text, name in (("a", "first"), ("b", "second"), ("c", "third")):
        for target in ("vda", "vdb"):
            write(new_lab, vm, text, target)
        take(new_lab.uri, vm, name, kind="external")
    write(new_lab, vm, "d")
    for text, name in (("a", "first"), ("c", "third"), ("b", "second")):
        revert(new_lab.uri, vm, name)
        assert listed(new_lab.uri, vm)[name].current
        for target in ("vda", "vdb"):
            assert reads(new_lab, vm, text, target)
    done = apply(new_lab.uri, Reverted(Request(name="first", discard_newer=True)), vm)
    assert done.error is None and done.also_removed == ["third", "second"]
    assert reads(new_lab, vm, "a")
    assert list(listed(new_lab.uri, vm)) == ["first"]
    assert remove(new_lab.uri, vm, "first").error is None
    assert files(new_lab, vm) == ["chain-0.qcow2", "chain-1.raw"]
    assert reads(new_lab, vm, "a") and reads(new_lab, vm, "a", "vdb")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["running", "paused"])
def test_revert_restores_memory_and_power_state(new_lab: t.Any, newer: Make, state: str) -> None:
    vm = newer(f"mem{state}", running=state == "running", paused=state == "paused")
    snapshot = take(new_lab.uri, vm, "m", kind="external", memory=True)
    assert (snapshot.memory, snapshot.consistency, power(new_lab, vm)) == (True, "memory", state)
    domain(new_lab, vm).destroy()
    for wanted, after in (("as_snapshot", state), ("on", "running"), ("off", "off"), ("as_snapshot", state)):
        revert(new_lab.uri, vm, "m", power=wanted)
        assert power(new_lab, vm) == after
    done = remove(new_lab.uri, vm, "m")
    if state == "paused":
        # QEMU 10: a VM that has not run since its memory was restored cannot be merged
        assert done.error and f" resume {vm}" in str(done.error)
        domain(new_lab, vm).resume()
        domain(new_lab, vm).suspend()
        done = remove(new_lab.uri, vm, "m")
    assert done.error is None and not done.warnings
    assert files(new_lab, vm) == [f"{vm}-0.qcow2"]


@pytest.mark.slow
def test_middle_snapshot_is_merged_and_subtree_is_removed_leaf_by_leaf(new_lab: t.Any, newer: Make) -> None:
    vm = newer("middle")
    for text in "abcd":
        write(new_lab, vm, text)
        take(new_lab.uri, vm, text, kind="external")
    assert remove(new_lab.uri, vm, "b").word == "removed"
    assert listed(new_lab.uri, vm)["c"].parent == "a"
    done = remove(new_lab.uri, vm, "c", children="remove")
    assert done.word == "removed" and done.also_removed == ["d"]
    assert reads(new_lab, vm, "d")
    revert(new_lab.uri, vm, "a")
    assert reads(new_lab, vm, "a")
    assert remove(new_lab.uri, vm, "a").word == "removed"
    assert files(new_lab, vm) == ["middle-0.qcow2"]


@pytest.mark.slow
def test_snapshot_with_another_branch_is_not_removed_alone(new_lab: t.Any, newer: Make) -> None:
    vm = newer("branch")
    for name in "abc":
        write(new_lab, vm, name)
        take(new_lab.uri, vm, name, kind="external")
    revert(new_lab.uri, vm, "b")
    # libvirt 11.3 refuses the one and crashes on the other
    for name in ("b", "a"):
        done = remove(new_lab.uri, vm, name)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False)
        assert "remove c first" in str(done.error) and "children=remove" in str(done.error)
    assert remove(new_lab.uri, vm, "b", children="remove").also_removed == ["c"]
    assert reads(new_lab, vm, "b")
    assert remove(new_lab.uri, vm, "a").word == "removed"
    assert reads(new_lab, vm, "b")


@pytest.mark.slow
def test_second_branch_that_would_destroy_the_first_is_refused(new_lab: t.Any, newer: Make) -> None:
    vm = newer("fork")
    write(new_lab, vm, "a")
    take(new_lab.uri, vm, "a", kind="external")
    write(new_lab, vm, "b")
    take(new_lab.uri, vm, "b", kind="external")
    revert(new_lab.uri, vm, "a")
    refused = apply(new_lab.uri, Present(Request(name="x", kind="external")), vm)
    assert refused.error and (refused.error.code, refused.changed) == ("unsupported", False)
    assert "reverted to a" in str(refused.error) and "remove the child snapshots first" in str(refused.error)
    # a user did it without the collection: operations that make libvirt lose b are refused, and the remedy in the message loses nothing
    by_hand(new_lab, vm, "x", DISK_ONLY)
    done = apply(new_lab.uri, Absent(Request()), Target(vm, "x"))
    assert done.error and done.error.code == "unsupported" and "remove b first" in str(done.error)
    revert(new_lab.uri, vm, "b")
    assert apply(new_lab.uri, Absent(Request()), Target(vm, "x")).word == "removed"
    revert(new_lab.uri, vm, "a")
    assert reads(new_lab, vm, "a")
    revert(new_lab.uri, vm, "b")
    assert reads(new_lab, vm, "b")


@pytest.mark.slow
def test_branch_that_libvirt_has_lost_is_not_destroyed_by_a_revert(new_lab: t.Any, newer: Make) -> None:
    vm = newer("lost")
    for name in "ab":
        write(new_lab, vm, name)
        take(new_lab.uri, vm, name, kind="external")
    revert(new_lab.uri, vm, "a")
    by_hand(new_lab, vm, "x", DISK_ONLY)
    domain(new_lab, vm).snapshotLookupByName("x").delete()
    for name in "ab":
        done = apply(new_lab.uri, Reverted(Request(name=name)), vm)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    command = re.search(r"virsh -c \S+ snapshot-create-as .*?(?=\))", str(done.error))
    assert command
    subprocess.run(shlex.split(command.group()), check=True)
    revert(new_lab.uri, vm, "b")
    assert reads(new_lab, vm, "b")
    assert apply(new_lab.uri, Absent(Request()), Target(vm, "rescue")).word == "removed"
    revert(new_lab.uri, vm, "a")
    assert reads(new_lab, vm, "a")
    revert(new_lab.uri, vm, "b")
    assert reads(new_lab, vm, "b")


@pytest.mark.slow
def test_newer_snapshots_on_another_branch_are_removed_with_discard_newer(new_lab: t.Any, newer: Make) -> None:
    vm = newer("discard")
    for name in "ab":
        write(new_lab, vm, name)
        take(new_lab.uri, vm, name, kind="external")
    revert(new_lab.uri, vm, "a")
    by_hand(new_lab, vm, "x", DISK_ONLY)
    done = apply(new_lab.uri, Reverted(Request(name="a", discard_newer=True, foreign_allowed=True)), vm)
    assert done.error is None, done.error
    assert sorted(done.also_removed) == ["b", "x"]
    assert reads(new_lab, vm, "a")
    assert remove(new_lab.uri, vm, "a").word == "removed"
    assert files(new_lab, vm) == ["discard-0.qcow2"]


@pytest.mark.slow
def test_external_snapshot_is_taken_if_internal_is_not_possible(new_lab: t.Any, newer: Make) -> None:
    raw = newer("rawdisk", disks=0, raw_disks=1, paused=True)
    flash = newer("flash", pflash=True, paused=True)
    for vm in (raw, flash):
        assert take(new_lab.uri, vm, "x").kind == "external"
        revert(new_lab.uri, vm, "x", power="on")
        assert power(new_lab, vm) == "running"
        assert remove(new_lab.uri, vm, "x").word == "removed"
    variables = newer("variables", pflash=True, qcow2_nvram=True, paused=True)
    assert take(new_lab.uri, variables, "x").kind == "internal"
    revert(new_lab.uri, variables, "x")
    assert power(new_lab, variables) == "paused"


@pytest.mark.slow
def test_cdrom_and_read_only_disk_are_left_out(new_lab: t.Any, newer: Make) -> None:
    vm = "readers"
    folder = new_lab.disk_folder(vm)
    new_lab.run_as_user("mkdir", "-p", str(folder))
    new_lab.run_as_user("qemu-img", "create", "-q", "-f", "raw", str(folder / "media.iso"), "1M")
    new_lab.run_as_user("qemu-img", "create", "-q", "-f", "raw", str(folder / "data.raw"), "1M")
    newer(
        vm,
        paused=True,
        extra_devices=f"""
          <disk type='file' device='cdrom'><source file='{folder}/media.iso'/><target dev='hda' bus='ide'/><readonly/></disk>
          <disk type='file' device='cdrom'><target dev='hdb' bus='ide'/></disk>
          <disk type='file' device='disk'><source file='{folder}/data.raw'/><target dev='vdz' bus='virtio'/><readonly/></disk>""",
    )
    take(new_lab.uri, vm, "x", kind="external")
    assert image(new_lab, vm, "hda").name == "media.iso"
    assert image(new_lab, vm, "vdz").name == "data.raw"
    revert(new_lab.uri, vm, "x", power="on")
    assert remove(new_lab.uri, vm, "x").word == "removed"
    assert files(new_lab, vm) == ["data.raw", "media.iso", "readers-0.qcow2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "reason", "remedy"),
    [
        (
            "<disk type='file' snapshot='no'><driver type='qcow2'/><source file='{folder}/b.qcow2'/>",
            "vdq has snapshot='no'",
            "remove that",
        ),
        (
            "<disk type='file'><driver type='raw'/><source file='{folder}/odd-0.raw'/>",
            "vda and vdq have the same name except for the suffix",
            "rename",
        ),
        ("<disk type='block'><driver type='raw'/><source dev='/dev/nowhere'/>", "vdq has the type block", "image file"),
        (
            "<disk type='network'><driver type='raw'/><source protocol='nbd' name='x'><host name='localhost'/></source>",
            "vdq has the type network",
            "image file",
        ),
    ],
)
def test_disk_that_cannot_be_restored_is_refused_before_any_write(
    new_lab: t.Any, newer: Make, device: str, reason: str, remedy: str
) -> None:
    folder = new_lab.disk_folder("odd")
    vm = newer("odd", extra_devices=device.format(folder=folder) + "<target dev='vdq' bus='virtio'/></disk>")
    done = apply(new_lab.uri, Present(Request(name="x", kind="external")), vm)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert reason in str(done.error) and remedy in str(done.error)
    assert listed(new_lab.uri, vm) == {}


@pytest.mark.slow
def test_external_snapshot_of_a_vm_without_a_disk_is_refused(new_lab: t.Any, newer: Make) -> None:
    done = apply(new_lab.uri, Present(Request(name="x", kind="external")), newer("bare", disks=0, paused=True))
    assert done.error and done.error.code == "unsupported" and "no writable disk" in str(done.error)


@pytest.mark.slow
def test_external_snapshot_of_a_vm_with_saved_memory_is_refused(new_lab: t.Any, newer: Make) -> None:
    vm = newer("saved", running=True)
    domain(new_lab, vm).managedSave()
    done = apply(new_lab.uri, Present(Request(name="x", kind="external")), vm)
    assert done.error and done.error.code == "unsupported" and "managedsave-remove" in str(done.error)


@pytest.mark.slow
def test_external_revert_that_would_undefine_a_transient_vm_is_refused(new_lab: t.Any, newer: Make) -> None:
    vm = newer("passing", transient=True)
    take(new_lab.uri, vm, "x", kind="external")
    for wanted in ("as_snapshot", "off"):
        done = apply(new_lab.uri, Reverted(Request(name="x", power=wanted)), vm)
        assert done.error and (done.error.code, done.changed) == ("unsupported", False)
        assert " define FILE" in str(done.error)
    revert(new_lab.uri, vm, "x", power="on")
    assert power(new_lab, vm) == "running"
    assert remove(new_lab.uri, vm, "x").word == "removed"


@pytest.mark.slow
def test_block_job_is_reported(new_lab: t.Any, newer: Make) -> None:
    vm = newer("copying", paused=True)
    take(new_lab.uri, vm, "x", kind="external")
    copy = new_lab.disk_folder(vm) / "copy.qcow2"
    domain(new_lab, vm).blockCopy(
        "vda",
        f"<disk type='file'><source file='{copy}'/><driver type='qcow2'/></disk>",
        {},
        libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB,
    )
    plans = (Reverted(Request(name="x")), Absent(Request(name="x")), Present(Request(name="y", kind="external")))
    for plan in plans:
        done = apply(new_lab.uri, plan, vm, lock_timeout=0)
        assert done.error and (done.error.code, done.changed) == ("locked", False), done.error
        assert " blockjob VM DISK" in str(done.error)
    domain(new_lab, vm).blockJobAbort("vda")
    assert remove(new_lab.uri, vm, "x").word == "removed"


@pytest.mark.slow
def test_failed_external_snapshot_leaves_no_file(new_lab: t.Any, newer: Make) -> None:
    vm = newer("tight", disks=2, paused=True)
    folder = new_lab.disk_folder(vm)
    elsewhere = new_lab.folder / "disks" / "elsewhere"
    new_lab.run_as_user("mkdir", str(elsewhere))
    new_lab.run_as_user("mv", str(folder / "tight-1.qcow2"), str(elsewhere / "tight-1.qcow2"))
    domain(new_lab, vm).destroy()
    new_lab.connect().defineXML(
        domain(new_lab, vm).XMLDesc().replace(str(folder / "tight-1.qcow2"), str(elsewhere / "tight-1.qcow2"))
    )
    for start in (False, True):
        if start:
            domain(new_lab, vm).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        os.chmod(elsewhere, 0o555)
        done = apply(new_lab.uri, Present(Request(name="x", kind="external", memory=start)), vm)
        os.chmod(elsewhere, 0o755)
        assert done.error and (done.error.code, done.changed) == ("backend_failed", False), done.error
        assert files(new_lab, vm) == ["tight-0.qcow2"]
        assert listed(new_lab.uri, vm) == {}
    assert power(new_lab, vm) == "paused"


@pytest.mark.slow
def test_error_names_the_files_left_by_a_killed_daemon(new_lab: t.Any, newer: Make) -> None:
    vm = newer("struck", running=True, memory_mib=1500)
    ends: list[t.Any] = []
    plan = Present(Request(name="x", kind="external", memory=True))
    thread = threading.Thread(target=lambda: ends.append(apply(new_lab.uri, plan, vm)))
    thread.start()
    until(lambda: [name for name in files(new_lab, vm) if name.endswith(".mem")])
    new_lab.kill_daemon()
    thread.join()
    left = [name for name in files(new_lab, vm) if ".x." in name]
    new_lab.start_daemon()
    error = ends[0].error
    assert error.code == "unverified"
    assert left and all(str(new_lab.disk_folder(vm) / name) in str(error) for name in left)


def virsh(lab: t.Any, command: str) -> None:
    done = subprocess.run(["virsh", "-q", "-c", lab.uri, *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_tree_is_pruned_without_loss_of_a_branch_or_data(new_lab: t.Any, newer: Make) -> None:
    vm = newer("pruned")
    data = {"root": "a", "left": "b", "leaf": "c", "right": "d", "tip": "e"}
    for name, keep in (("root", ""), ("left", ""), ("leaf", "yes"), ("right", ""), ("tip", "yes")):
        if name == "right":
            revert(new_lab.uri, vm, "root")
            # libvirt's times are in seconds, and tip must be the newest.
            second = int(time.time())
            until(lambda second=second: time.time() >= second + 1)  # type: ignore[misc]
        write(new_lab, vm, data[name])
        label = f"[safepoint v=1 owner=safepoint{' keep=yes' if keep else ''}]"
        # By hand, because the collection itself does not start a second branch there.
        xml = f"<domainsnapshot><name>{name}</name><description>{label}</description></domainsnapshot>"
        domain(new_lab, vm).snapshotCreateXML(xml, DISK_ONLY)
    plan = pruning(keep_labels={"keep": "yes"})
    would = apply(new_lab.uri, plan, vm, dry_run=True)
    done = apply(new_lab.uri, plan, vm)
    assert (done.word, done.error) == ("pruned", None)
    assert would.after and sorted(one.name for one in would.after.snapshots) == sorted(listed(new_lab.uri, vm))
    # The branch of leaf depends on left and root, which libvirt cannot merge while it exists.
    assert sorted(listed(new_lab.uri, vm)) == ["leaf", "left", "root", "tip"]
    rules = {one.snapshot.name: one.reasons[0].rule for one in done.decision.verdicts} if done.decision else {}
    assert rules == {"root": "blocked", "left": "blocked", "leaf": "keep_labels", "right": "not_kept", "tip": "keep_labels"}
    assert apply(new_lab.uri, plan, vm).word == "kept"
    for name in ("leaf", "tip"):
        assert revert(new_lab.uri, vm, name).word == "reverted"
        assert reads(new_lab, vm, data[name])
    # With the branch, the rest is removed too, from its leaf on.
    assert apply(new_lab.uri, pruning(keep_last=1), vm).error is None
    assert list(listed(new_lab.uri, vm)) == ["tip"]
    assert revert(new_lab.uri, vm, "tip").word == "reverted"
    assert reads(new_lab, vm, data["tip"])
