# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What only the real libvirt and QEMU do: refusals, errors in libvirt's words, a daemon that goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import typing as t
from collections.abc import Iterator
from datetime import datetime, timezone

import libvirt
import pytest

from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt import LibvirtDriver
from ansible_collections.safepoint.vm.plugins.module_utils._errors import ConnectionFailed, SafepointError
from ansible_collections.safepoint.vm.plugins.module_utils._fleet import Bounds, Fleet
from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Absent, Plan, Present, Request, Reverted

pytestmark = pytest.mark.qemu


@pytest.fixture
def tiny(lab: t.Any) -> Iterator[t.Callable[..., str]]:
    """Makes tiny VMs, and removes them."""
    made: list[str] = []

    def make(name: str, **options: t.Any) -> str:
        made.append(name)
        lab.define_tiny(name, **options)
        return name

    yield make
    for name in made:
        with contextlib.suppress(libvirt.libvirtError):
            lab.remove(name)


def apply(uri: str, plan: Plan, vm: str | Target, **bounds: t.Any) -> Outcome:
    driver = LibvirtDriver(uri)
    try:
        (done,) = Fleet(driver, Bounds(**bounds), now=lambda: datetime.now(timezone.utc)).apply(
            [vm if isinstance(vm, Target) else Target(vm)], plan, dry_run=False
        )
        return done
    finally:
        driver.close()


@pytest.mark.parametrize(
    ("options", "reason", "remedy"),
    [
        ({"raw_disks": 1, "paused": True}, "vdb is raw", "qemu-img convert"),
        ({"raw_disks": 1}, "vdb is raw", "qemu-img convert"),
        ({"disks": 0}, "no writable disk", "qcow2"),
        ({"pflash": True}, "UEFI", "BIOS"),
    ],
)
def test_a_vm_that_cannot_be_snapshotted_is_refused_with_reason_and_remedy(
    lab: t.Any, tiny: t.Callable[..., str], options: dict[str, t.Any], reason: str, remedy: str
) -> None:
    vm = tiny("refused", **options)
    done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error
    assert done.error.code == "unsupported"
    assert not done.changed
    assert reason in str(done.error) and remedy in str(done.error)
    # and libvirt itself says no too, so that nobody was refused for nothing
    with pytest.raises(libvirt.libvirtError):
        libvirt.open(lab.uri).lookupByName(vm).snapshotCreateXML("<domainsnapshot><name>x</name></domainsnapshot>")


def test_a_running_block_job_is_told_in_libvirts_words(lab: t.Any, tiny: t.Callable[..., str]) -> None:
    vm = tiny("busy", paused=True)
    domain = libvirt.open(lab.uri).lookupByName(vm)
    target = lab.disk_folder(vm) / "copy.qcow2"
    domain.blockCopy(
        "vda",
        f"<disk type='file'><source file='{target}'/><driver type='qcow2'/></disk>",
        {},
        libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB,
    )
    try:
        done = apply(lab.uri, Present(Request(name="x")), vm)
    finally:
        domain.blockJobAbort("vda")
    assert done.error and done.error.code == "locked"
    assert "active block job" in str(done.error) and "virsh blockjob" in str(done.error)
    assert not done.changed


def test_a_snapshot_brings_back_memory_settings_and_labels_stay(lab: t.Any, tiny: t.Callable[..., str]) -> None:
    vm = tiny("whole", paused=True)
    assert apply(lab.uri, Present(Request(name="x", labels={"state": "guarding"})), vm).error is None
    domain = libvirt.open(lab.uri).lookupByName(vm)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, "changed since", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    assert apply(lab.uri, Present(Request(name="x", labels={"state": "rolled_back"})), vm).word == "updated"
    done = apply(lab.uri, Reverted(Request(name="x")), vm)
    assert done.error is None
    assert "changed since" not in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    # the label is the collection's journal: it must not travel back in time with the VM
    assert done.snapshot and done.snapshot.label and done.snapshot.label.fields["state"] == "rolled_back"


def test_describing_a_snapshot_keeps_its_secrets_and_its_whole_definition(lab: t.Any, tiny: t.Callable[..., str]) -> None:
    graphics = "<graphics type='vnc' autoport='yes' listen='127.0.0.1' passwd='hunter2'/>"
    vm = tiny("secret", extra_devices=graphics)
    assert apply(lab.uri, Present(Request(name="x", description="one & two")), vm).error is None
    handle = libvirt.open(lab.uri).lookupByName(vm).snapshotLookupByName("x")
    before = handle.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    assert "hunter2" in before
    assert apply(lab.uri, Present(Request(name="x", description="three")), vm).word == "updated"
    after = handle.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    assert after == before.replace("one &amp; two", "three")


def test_a_read_only_connection_is_refused_in_libvirts_words(
    lab: t.Any, tiny: t.Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = tiny("readonly", paused=True)
    monkeypatch.setattr(libvirt, "open", libvirt.openReadOnly)
    done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error and done.error.code == "permission_denied"
    assert "read only" in str(done.error) and not done.changed


def test_a_daemon_killed_in_the_middle_is_a_broken_connection_not_a_missing_snapshot(
    lab: t.Any, tiny: t.Callable[..., str]
) -> None:
    vm = tiny("killed", paused=True)
    driver = LibvirtDriver(lab.uri)
    lab.kill_daemon()
    try:
        with pytest.raises(ConnectionFailed, match="libvirt"):
            Fleet(driver, Bounds(timeout=30), now=lambda: datetime.now(timezone.utc)).look([Target(vm)])
    finally:
        lab.start_daemon()
    assert apply(lab.uri, Present(Request(name="x")), vm).word == "created"


def test_a_daemon_that_hangs_in_the_middle_is_given_up_when_the_time_is_up(lab: t.Any, tiny: t.Callable[..., str]) -> None:
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


def test_a_transient_vm_can_be_snapshotted_and_reverted(lab: t.Any, tiny: t.Callable[..., str]) -> None:
    vm = tiny("transient", transient=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).word == "created"
    assert apply(lab.uri, Reverted(Request(name="x")), vm).word == "reverted"
    assert apply(lab.uri, Absent(Request(name="x")), vm).word == "removed"


def test_internal_and_external_snapshots_are_never_mixed(lab: t.Any, tiny: t.Callable[..., str]) -> None:
    vm = tiny("mixed", paused=True)
    domain = libvirt.open(lab.uri).lookupByName(vm)
    domain.snapshotCreateXML("<domainsnapshot><name>ext</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    for plan, target in (
        (Present(Request(name="x")), Target(vm)),
        (Absent(Request()), Target(vm, "ext")),
        (Reverted(Request()), Target(vm, "ext")),
    ):
        done = apply(lab.uri, plan, target)
        assert done.error
        assert (done.error.code, done.changed) == ("unsupported", False)
        assert "ext" in str(done.error) and "external" in str(done.error) and "virsh" in str(done.error)
    assert domain.snapshotListNames() == ["ext"]
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


def test_a_revert_drops_the_saved_memory_of_later(lab: t.Any, tiny: t.Callable[..., str]) -> None:
    vm = tiny("saved", paused=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    domain = libvirt.open(lab.uri).lookupByName(vm)
    domain.managedSave()
    refused = apply(lab.uri, Present(Request(name="y")), vm)
    assert refused.error and refused.error.code == "unsupported"
    assert "managedsave-remove" in str(refused.error)
    done = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert done.error is None
    assert not domain.hasManagedSaveImage()
    assert any("managed save" in warning for warning in done.warnings)


def test_a_transient_vm_is_not_switched_off_out_of_existence(lab: t.Any, tiny: t.Callable[..., str]) -> None:
    vm = tiny("passing", transient=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    refused = apply(lab.uri, Reverted(Request(name="x", power="off")), vm)
    assert refused.error and refused.error.code == "unsupported"
    assert "virsh define" in str(refused.error)
    assert libvirt.open(lab.uri).lookupByName(vm).snapshotListNames() == ["x"]


def test_what_the_change_did_to_the_configuration_does_not_keep_it_from_being_rolled_back(
    lab: t.Any, tiny: t.Callable[..., str]
) -> None:
    vm = tiny("changed", paused=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    image = lab.disk_folder(vm) / "added.raw"
    lab.run_as_user("qemu-img", "create", "-q", "-f", "raw", str(image), "1M")
    domain = libvirt.open(lab.uri).lookupByName(vm)
    domain.attachDevice(
        f"<disk type='file'><driver name='qemu' type='raw'/><source file='{image}'/><target dev='vdb' bus='virtio'/></disk>"
    )
    refused = apply(lab.uri, Present(Request(name="y")), vm)
    assert refused.error and "vdb is raw" in str(refused.error)
    assert apply(lab.uri, Reverted(Request(name="x")), vm).error is None
    assert "vdb" not in domain.XMLDesc()


def test_a_guest_agent_that_does_not_answer_costs_little_and_leaves_no_setting_behind(
    lab: t.Any, tiny: t.Callable[..., str]
) -> None:
    vm = tiny("silent", running=True, agent=True)
    assert apply(lab.uri, Present(Request(name="x")), vm).error is None
    done = apply(lab.uri, Reverted(Request(name="x")), vm)
    assert done.error is None
    assert any("clock" in warning and "agent" in warning for warning in done.warnings)
    status = (lab.folder / "run" / "libvirt" / "qemu" / "run" / f"{vm}.xml").read_text()
    assert "<agentTimeout>-2</agentTimeout>" in status
