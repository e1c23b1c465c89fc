# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Removal of a whole branch of external snapshots beside other branches, with libvirt 11.3."""

from __future__ import annotations

import typing as t

import libvirt
import pytest
from libvirt_kit import Make, apply, domain, reads, revert, take, write

from ansible_collections.safepoint.vm.plugins.module_utils._core.model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._engine.vm_run import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._operations.absent import Absent
from ansible_collections.safepoint.vm.plugins.module_utils._operations.base import Request

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def with_branches(lab: t.Any, vm: str) -> None:
    """Create the snapshot p with the children f, which has the child a, and s, which a user took and which is current. The disk of each has its name."""
    for name in "pfa":
        write(lab, vm, name)
        take(lab.uri, vm, name, kind="external")
    revert(lab.uri, vm, "p")
    write(lab, vm, "s")
    domain(lab, vm).snapshotCreateXML(
        "<domainsnapshot><name>s</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    )


def remove_all_of(lab: t.Any, vm: str, name: str) -> Outcome:
    """Remove a snapshot with its descendants. Check mode must give the same result."""
    plan, target = Absent(Request(children="remove", foreign_allowed=True)), Target(vm, name)
    would, done = apply(lab.uri, plan, target, dry_run=True), apply(lab.uri, plan, target)
    assert would.word == done.word and bool(would.error) == bool(done.error), (would.error, done.error)
    return done


def test_branch_without_the_current_state_is_removed_completely(new_lab: t.Any, newer: Make) -> None:
    vm = newer("apart")
    with_branches(new_lab, vm)
    done = remove_all_of(new_lab, vm, "f")
    assert (done.word, done.also_removed, done.error) == ("removed", ["a"], None)
    for name in "psp":
        revert(new_lab.uri, vm, name, foreign_allowed=True)
        assert reads(new_lab, vm, name)


def test_current_branch_is_not_removed_beside_another_branch(new_lab: t.Any, newer: Make) -> None:
    vm = newer("under")
    with_branches(new_lab, vm)
    revert(new_lab.uri, vm, "a")
    done = remove_all_of(new_lab, vm, "f")
    assert done.error and (done.error.code, done.changed) == ("unsupported", False), done.word
    assert "remove s first" in str(done.error)
    for name in "spfa":
        revert(new_lab.uri, vm, name, foreign_allowed=True)
        assert reads(new_lab, vm, name)
