# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs in states in which a snapshot is not usable: migrated away, crashed, with hotplugged CPUs; and data that no snapshot includes."""

from __future__ import annotations

import typing as t
import uuid

import libvirt
import libvirt_qemu
import pytest
from lab import Lab
from libvirt_kit import Make, apply, domain, listed, look, power, revert, take, until

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.limits import Seen
from ansible_collections.safepoint.vm.plugins.module_utils._drivers.libvirt.ways import Daemon, ways
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Plan, Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

pytestmark = pytest.mark.qemu


class OtherHost(Lab):
    """A daemon with the identity of another host: libvirt does not migrate a VM to its own host."""

    def _write_configuration(self) -> None:
        super()._write_configuration()
        with (self.folder / "libvirtd.conf").open("a") as file:
            file.write(f'host_uuid = "{uuid.uuid4()}"\n')


def codes(lab: t.Any, vm: str) -> list[str]:
    view = look(lab.uri, vm).after
    assert view is not None
    return [one.code for one in view.state.findings]


def test_migrated_vm_is_not_changed(either: t.Any, make: Make) -> None:
    vm = make("moved", running=True)
    with OtherHost(either.root) as other:
        where = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{either.folder}/migration.sock"}
        domain(either, vm).migrate3(other.connect(), where, libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE)
        assert codes(either, vm) == ["migrated_away"]
        # Actions of a user there are not made worse.
        domain(either, vm).snapshotCreateXML(
            "<domainsnapshot><name>hand</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        )
        plans: list[tuple[Plan, str | Target]] = [
            (Present(Request(name="x", kind="external")), vm),
            (Present(Request(name="x")), vm),
            (Absent(Request()), Target(vm, "hand")),
            (Reverted(Request()), Target(vm, "hand")),
        ]
        for plan, target in plans:
            for dry_run in (True, False):
                done = apply(either.uri, plan, target, dry_run=dry_run)
                assert done.error and (done.error.code, done.changed) == ("unsupported", False)
        assert list(listed(either.uri, vm)) == ["hand"]
        assert power(other, vm) == "running"
        other.connect().lookupByName(vm).destroy()
    # started here again, it is an ordinary VM
    domain(either, vm).create()
    assert codes(either, vm) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_memory_snapshot_of_a_crashed_guest_is_refused(either: t.Any, make: Make, dry_run: bool) -> None:
    vm = make("panicked", extra_devices="<panic model='isa'/>")
    either.connect().defineXML(domain(either, vm).XMLDesc().replace("<on_crash>destroy", "<on_crash>preserve"))
    domain(either, vm).create()
    # What the kernel of a guest does in a panic.
    libvirt_qemu.qemuMonitorCommand(domain(either, vm), "o /b 0x505 1", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
    until(lambda: domain(either, vm).state()[0] == libvirt.VIR_DOMAIN_CRASHED)
    assert codes(either, vm) == ["guest_crashed"]
    view = look(either.uri, vm).after
    assert view and view.state.power == "paused"
    done = apply(either.uri, Present(Request(name="x", kind="internal")), vm, dry_run=dry_run)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert "crashed" in str(done.error) and f" reset {vm}" in str(done.error)
    domain(either, vm).reset()
    domain(either, vm).resume()
    assert codes(either, vm) == []
    assert take(either.uri, vm, "x").consistency == "memory"


def plug_cpu(lab: t.Any, vm: str) -> None:
    xml = domain(lab, vm).XMLDesc()
    lab.connect().defineXML(xml.replace("<vcpu placement='static'>1<", "<vcpu placement='static' current='1'>2<"))
    domain(lab, vm).create()
    domain(lab, vm).setVcpusFlags(2, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def test_snapshot_with_a_hotplugged_cpu_is_refused_on_an_old_libvirt(lab: t.Any, tiny: Make) -> None:
    vm = tiny("plugged")
    plug_cpu(lab, vm)
    done = apply(lab.uri, Present(Request(name="x")), vm)
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert "CPU" in str(done.error)
    domain(lab, vm).snapshotCreateXML("<domainsnapshot><name>hand</name></domainsnapshot>")
    done = apply(lab.uri, Reverted(Request()), Target(vm, "hand"))
    assert done.error and (done.error.code, done.changed) == ("unsupported", False)
    assert power(lab, vm) == "running"
    # Started with both, it is an ordinary VM.
    domain(lab, vm).destroy()
    domain(lab, vm).setVcpusFlags(2, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    domain(lab, vm).create()
    take(lab.uri, vm, "x")
    assert revert(lab.uri, vm, "x").word == "reverted"
    assert apply(lab.uri, Absent(Request()), Target(vm, "hand")).word == "removed"


@pytest.mark.slow
def test_hotplugged_cpu_is_restored_on_a_newer_libvirt(new_lab: t.Any, newer: Make) -> None:
    vm = newer("plugged")
    plug_cpu(new_lab, vm)
    take(new_lab.uri, vm, "x", kind="internal")
    revert(new_lab.uri, vm, "x")
    assert power(new_lab, vm) == "running"


@pytest.mark.slow
def test_external_snapshot_warns_that_firmware_variables_are_not_included(new_lab: t.Any, newer: Make) -> None:
    vm = newer("flash", pflash=True, paused=True)
    done = apply(new_lab.uri, Present(Request(name="x", kind="external")), vm)
    assert done.word == "created" and any("nvram" in warning for warning in done.warnings)
    assert any("nvram" in part for part in listed(new_lab.uri, vm)["x"].not_included)
    inside = newer("inside", pflash=True, qcow2_nvram=True, paused=True)
    done = apply(new_lab.uri, Present(Request(name="x")), inside)
    assert done.word == "created" and not done.warnings
    assert listed(new_lab.uri, inside)["x"].not_included == ()


def test_snapshot_without_memory_warns_that_the_tpm_state_is_not_included() -> None:
    xml = """<domain><devices><tpm model='tpm-crb'><backend type='emulator'/></tpm>
      <disk type='file'><driver type='qcow2'/><source file='/a.qcow2'/><target dev='vda'/></disk></devices></domain>"""
    internal, external = ways("vm", xml, power="running", saved=False, fork=None, daemon=Daemon(11_003_000, True), seen=Seen())
    for way in (internal, external):
        assert not way.warnings and "TPM" in way.warnings_without_memory[0]
