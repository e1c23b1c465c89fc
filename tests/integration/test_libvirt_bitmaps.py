# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of VMs that have checkpoints of incremental backups, with libvirt 9.0 and 11.3."""

from __future__ import annotations

import re
import shlex
import subprocess
import typing as t

import pytest
from libvirt_kit import Make, apply, domain, image, listed, power, revert, take

from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request
from ansible_collections.safepoint.vm.plugins.module_utils._operations.present import Present
from ansible_collections.safepoint.vm.plugins.module_utils._operations.revert import Reverted

pytestmark = pytest.mark.qemu


def checkpoint(lab: t.Any, vm: str, name: str) -> None:
    """Create the checkpoint that an incremental backup leaves."""
    domain(lab, vm).checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>")


@pytest.mark.parametrize("state", ["running", "off"])
def test_internal_snapshots_are_refused_beside_a_checkpoint(either: t.Any, make: Make, state: str) -> None:
    vm = make("backed", running=True)
    take(either.uri, vm, "before")
    checkpoint(either, vm, "monday")
    if state == "off":
        domain(either, vm).destroy()
    for plan in (Reverted(Request(name="before")), Present(Request(name="after", kind="internal"))):
        for dry_run in (True, False):
            done = apply(either.uri, plan, vm, dry_run=dry_run)
            assert done.error and (done.error.code, done.changed) == ("unsupported", False)
            assert "monday" in str(done.error)
    assert power(either, vm) == state
    assert list(listed(either.uri, vm)) == ["before"]
    command = re.search(r"virsh -c \S+ checkpoint-delete \S+ \S+?(?=\))", str(done.error))
    assert command
    if state == "off":
        domain(either, vm).create()
    subprocess.run(shlex.split(command.group()), check=True, capture_output=True)
    take(either.uri, vm, "after")
    revert(either.uri, vm, "before")
    assert power(either, vm) == "running"


def test_bitmap_without_a_checkpoint_is_detected(either: t.Any, make: Make) -> None:
    vm = make("loose")
    take(either.uri, vm, "before")
    either.run_as_user("qemu-img", "bitmap", "--add", str(image(either, vm)), "other's")
    for state in ("off", "running"):
        if state == "running":
            domain(either, vm).create()
        for plan in (Reverted(Request(name="before")), Present(Request(name="after", kind="internal"))):
            done = apply(either.uri, plan, vm)
            assert done.error and (done.error.code, done.changed) == ("unsupported", False)
        assert power(either, vm) == state
    domain(either, vm).destroy()
    command = re.search(r"(qemu-img bitmap .*?)\);", str(done.error))
    assert command
    subprocess.run(["sh", "-ec", command.group(1)], check=True)
    take(either.uri, vm, "after")
    revert(either.uri, vm, "before")


@pytest.mark.slow
def test_revert_to_an_external_snapshot_warns_of_lost_bitmaps(new_lab: t.Any, newer: Make) -> None:
    vm = newer("backed", running=True)
    checkpoint(new_lab, vm, "monday")
    assert take(new_lab.uri, vm, "x").kind == "external"
    done = revert(new_lab.uri, vm, "x", power="on")
    assert any("monday" in warning and "full" in warning for warning in done.warnings)
    subprocess.run(["virsh", "-c", new_lab.uri, "checkpoint-delete", vm, "monday", "--metadata"], check=True, capture_output=True)
    assert not revert(new_lab.uri, vm, "x", power="on").warnings
