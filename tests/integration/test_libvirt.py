# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Behaviour of real libvirt and QEMU only: refusals, errors in libvirt's words, a daemon that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import typing as t
from datetime import datetime, timezone

import libvirt
import pytest
from libvirt_kit import Make, apply, domain, files, is_busy, listed, power, revert, stopped, take, until

from ansible_collections.safepoint.vm.plugins.module_utils._core.errors import ConnectionFailed, SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.base import Create
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.driver import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._engine.executor import Bounds
from ansible_collections.safepoint.vm.plugins.module_utils._engine.fleet import Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted
from ansible_collections.safepoint.vm.plugins.module_utils._waiting.deadline import Deadline

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize(
    ("options", "reason", "remedy"),
    [
        ({"raw_disks": 1, "paused": True}, "vdb has the format raw", "qemu-img convert"),
        ({"raw_disks": 1}, "vdb has the format raw", "qemu-img convert"),
        ({"disks": 0}, "no writable disk", "qcow2"),
        ({"pflash": True}, "UEFI", "BIOS"),
    ],
)
def test_vm_that_cannot_have_snapshots_is_refused_with_reason_and_remedy(
    lab: t.Any, tiny: Make, options: dict[str, t.Any], reason: str, remedy: str
) -> None:
    vm = tiny("refused", **options)
    done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error
    assert done.error.code == "unsupported"
    assert not done.changed
    assert reason in str(done.error) and remedy in str(done.error)
    # libvirt itself refuses too, so the refusal is right
    with pytest.raises(libvirt.libvirtError):
        libvirt.open(lab.uri).lookupByName(vm).snapshotCreateXML("<domainsnapshot><name>x</name></domainsnapshot>")


@pytest.mark.slow
def test_running_block_job_is_reported_in_libvirts_words(lab: t.Any, tiny: Make) -> None:
    vm = tiny("busy", paused=True)
    person = libvirt.open(lab.uri).lookupByName(vm)
    target = lab.disk_folder(vm) / "copy.qcow2"
    person.blockCopy(
        "vda",
        f"<disk type='file'><source file='{target}'/><driver type='qcow2'/></disk>",
        {},
        libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB,
    )
    try:
        done = apply(lab.uri, Present(Request(name="x")), vm)
    finally:
        person.blockJobAbort("vda")
    assert done.error and done.error.code == "locked"
    assert "active block job" in str(done.error) and " blockjob VM DISK" in str(done.error)
    assert not done.changed


def test_revert_restores_settings_and_keeps_the_label(lab: t.Any, tiny: Make) -> None:
    vm = tiny("whole", paused=True)
    assert apply(lab.uri, Present(Request(name="x", labels={"state": "guarding"})), vm).error is None
    person = libvirt.open(lab.uri).lookupByName(vm)
    person.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, "changed since", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert apply(lab.uri, Present(Request(name="x", labels={"state": "rolled_back"})), vm).word == "updated"
    done = apply(lab.uri, Reverted(Request(name="x")), vm)
    assert done.error is None
    assert "changed since" not in person.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    # the label is the journal of the collection: a revert of the VM must not revert it
    assert done.snapshot and done.snapshot.label and done.snapshot.label.fields["state"] == "rolled_back"


def test_new_description_keeps_the_secrets_and_the_whole_definition(lab: t.Any, tiny: Make) -> None:
    graphics = "<graphics type='vnc' autoport='yes' listen='127.0.0.1' passwd='hunter2'/>"
    vm = tiny("secret", extra_devices=graphics)
    assert apply(lab.uri, Present(Request(name="x", description="one & two")), vm).error is None
    handle = libvirt.open(lab.uri).lookupByName(vm).snapshotLookupByName("x")
    before = handle.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    assert "hunter2" in before
    assert apply(lab.uri, Present(Request(name="x", description="three")), vm).word == "updated"
    after = handle.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    assert after == before.replace("one &amp; two", "three")


def test_read_only_connection_is_refused_in_libvirts_words(lab: t.Any, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = tiny("readonly", paused=True)
    monkeypatch.setattr(libvirt, "open", libvirt.openReadOnly)
    done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error and done.error.code == "permission_denied"
    assert "read only" in str(done.error) and not done.changed


def test_killed_daemon_is_a_connection_error_not_a_missing_snapshot(lab: t.Any, tiny: Make) -> None:
    vm = tiny("killed", paused=True)
    driver = LibvirtDriver(lab.uri)
    lab.kill_daemon()
    try:
        with pytest.raises(ConnectionFailed, match="libvirt"):
            Fleet(driver, Bounds(timeout=30), now=lambda: datetime.now(timezone.utc)).look([Target(vm)])
    finally:
        lab.start_daemon()
    assert apply(lab.uri, Present(Request(name="x")), vm).word == "created"


def test_hanging_daemon_times_out(lab: t.Any, tiny: Make) -> None:
    vm = tiny("hangs", paused=True)
    driver = LibvirtDriver(lab.uri)
    fleet = Fleet(driver, Bounds(timeout=2), now=lambda: datetime.now(timezone.utc))
    os.kill(lab.pid, signal.SIGSTOP)
    try:
        with pytest.raises(SafepointError) as caught:
            fleet.look([Target(vm)])
    finally:
        os.kill(lab.pid, signal.SIGCONT)
    assert caught.value.code == "timed_out"
    driver.close()


def test_transient_vm_can_be_snapshotted_and_reverted(lab: t.Any, tiny: Make) -> None:
    vm = tiny("transient", transient=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).word == "created"
    assert apply(lab.uri, Reverted(Request(name="x")), vm).word == "reverted"
    assert apply(lab.uri, Absent(Request(name="x")), vm).word == "removed"


def test_revert_drops_memory_saved_later(lab: t.Any, tiny: Make) -> None:
    vm = tiny("saved", paused=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    person = libvirt.open(lab.uri).lookupByName(vm)
    person.managedSave()
    refused = apply(lab.uri, Present(Request(name="y")), vm)
    assert refused.error and refused.error.code == "unsupported"
    assert "managedsave-remove" in str(refused.error)
    done = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert done.error is None
    assert not person.hasManagedSaveImage()
    assert any("managed save" in warning for warning in done.warnings)


def test_revert_that_would_undefine_a_transient_vm_is_refused(lab: t.Any, tiny: Make) -> None:
    vm = tiny("passing", transient=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    refused = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert refused.error and refused.error.code == "unsupported"
    assert " define FILE" in str(refused.error)
    assert libvirt.open(lab.uri).lookupByName(vm).snapshotListNames() == ["x"]


def test_configuration_changes_do_not_prevent_the_rollback(lab: t.Any, tiny: Make) -> None:
    vm = tiny("changed", paused=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    image = lab.disk_folder(vm) / "added.raw"
    lab.run_as_user("qemu-img", "create", "-q", "-f", "raw", str(image), "1M")
    person = libvirt.open(lab.uri).lookupByName(vm)
    person.attachDevice(
        f"<disk type='file'><driver name='qemu' type='raw'/><source file='{image}'/><target dev='vdb' bus='virtio'/></disk>"
    )
    refused = apply(lab.uri, Present(Request(name="y")), vm)
    assert refused.error and "vdb has the format raw" in str(refused.error)
    assert apply(lab.uri, Reverted(Request(name="x")), vm).error is None
    assert "vdb" not in person.XMLDesc()


def test_silent_guest_agent_costs_little_time_and_no_setting_remains(lab: t.Any, tiny: Make) -> None:
    vm = tiny("silent", running=True, agent=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    done = apply(lab.uri, Reverted(Request(name="x")), vm)
    assert done.error is None
    assert any("clock" in warning and "agent" in warning for warning in done.warnings)
    status = (lab.folder / "run" / "libvirt" / "qemu" / "run" / f"{vm}.xml").read_text()
    assert "<agentTimeout>-2</agentTimeout>" in status


@pytest.mark.parametrize("state", ["running", "paused", "off"])
def test_snapshot_includes_all_disks_except_read_only_ones(lab: t.Any, tiny: Make, state: str) -> None:
    vm = f"several{state}"
    folder = lab.disk_folder(vm)
    lab.run_as_user("mkdir", "-p", str(folder))
    for name in ("media.iso", "data.raw"):
        lab.run_as_user("qemu-img", "create", "-q", "-f", "raw", str(folder / name), "1M")
    tiny(
        vm,
        disks=2,
        running=state == "running",
        paused=state == "paused",
        extra_devices=f"""
          <disk type='file' device='cdrom'><source file='{folder}/media.iso'/><target dev='hda' bus='ide'/><readonly/></disk>
          <disk type='file' device='cdrom'><target dev='hdb' bus='ide'/></disk>
          <disk type='file' device='disk'><source file='{folder}/data.raw'/><target dev='vdz' bus='virtio'/><readonly/></disk>""",
    )
    snapshot = take(lab.uri, vm, "x")
    assert (snapshot.kind, snapshot.memory) == ("internal", state != "off")
    assert snapshot.size_bytes is None and snapshot.size_unknown and "libvirt does not report" in snapshot.size_unknown
    revert(lab.uri, vm, "x")
    assert power(lab, vm) == state
    assert apply(lab.uri, Absent(Request(name="x")), vm).word == "removed"
    assert files(lab, vm) == ["data.raw", "media.iso", f"{vm}-0.qcow2", f"{vm}-1.qcow2"]


def test_internal_snapshot_is_never_quiesced(lab: t.Any, tiny: Make) -> None:
    vm = tiny("noisy", running=True, agent=True)
    refused = apply(lab.uri, Present(Request(name="x", quiesce="require")), vm)
    assert refused.error and (refused.error.code, refused.changed) == ("unsupported", False)
    assert "internal" in str(refused.error) and "9.9" in str(refused.error)
    preferred = apply(lab.uri, Present(Request(name="x", quiesce="prefer")), vm)
    assert preferred.word == "created" and any("cannot be quiesced" in warning for warning in preferred.warnings)
    assert listed(lab.uri, vm)["x"].consistency == "memory"
    off = tiny("quiet")
    assert apply(lab.uri, Present(Request(name="x", quiesce="require")), off).word == "created"


def test_memory_of_a_vm_that_is_off_is_refused(lab: t.Any, tiny: Make) -> None:
    done = apply(lab.uri, Present(Request(name="x", memory=True)), tiny("cold"))
    assert done.error and done.error.code == "unsupported" and "start it first" in str(done.error)


def test_block_job_that_blocks_a_revert_is_reported(lab: t.Any, tiny: Make) -> None:
    vm = tiny("copying", paused=True)
    take(lab.uri, vm, "x")
    target = lab.disk_folder(vm) / "copy.qcow2"
    copy = f"<disk type='file'><source file='{target}'/><driver type='qcow2'/></disk>"
    person = domain(lab, vm)
    person.blockCopy("vda", copy, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    began = time.monotonic()
    threading.Timer(3, lambda: person.blockJobAbort("vda")).start()
    refused = apply(lab.uri, Reverted(Request(name="x")), vm, lock_timeout=0)
    assert refused.error and (refused.error.code, refused.changed) == ("locked", False)
    assert " blockjob VM DISK" in str(refused.error)
    # with time left, the call waits for it
    assert apply(lab.uri, Reverted(Request(name="x")), vm, lock_timeout=60).word == "reverted"
    assert time.monotonic() - began >= 3


def test_lock_is_reported_without_libvirts_own_wait(lab: t.Any, tiny: Make) -> None:
    vm = tiny("stuck", running=True)
    first = threading.Thread(target=lambda: apply(lab.uri, Present(Request(name="first")), vm))
    with stopped(lab, vm):
        first.start()
        until(lambda: is_busy(lab, vm))
        with contextlib.closing(LibvirtDriver(lab.uri)) as driver:
            (mine,) = [one for one in driver.vms() if one.name == vm]
            assert (driver.inspect([mine], ways=False)[mine.id].busy or "").startswith("another libvirt operation")  # type: ignore[union-attr]
            job = driver.start(Create(mine, "second", "", memory=False, kind="internal"))
            (end,) = driver.wait([job], Deadline(20))  # libvirt waits for 30 seconds
        assert end.error and end.error.code == "locked" and vm in str(end.error)
    first.join()
    assert list(listed(lab.uri, vm)) == ["first"]
