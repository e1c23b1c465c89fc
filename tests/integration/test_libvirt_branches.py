# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""External snapshots on several branches, of which one is removed as a whole, with libvirt 11.3."""

from __future__ import annotations

import typing as t

import libvirt
import pytest
from libvirt_kit import Make, apply, domain, reads, revert, take, write

from ansible_collections.safepoint.vm.plugins.module_utils._model import Target
from ansible_collections.safepoint.vm.plugins.module_utils._outcome import Outcome
from ansible_collections.safepoint.vm.plugins.module_utils._plan import Request
from ansible_collections.safepoint.vm.plugins.module_utils._plans import Absent

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def with_branches(lab: t.Any, vm: str) -> None:
    """On the snapshot p there are f, on which a stands, and s, which a person took and the VM runs on. Each has its name on the disk."""
    for name in "pfa":
        write(lab, vm, name)
        take(lab.uri, vm, name, kind="external")
    revert(lab.uri, vm, "p")
    write(lab, vm, "s")
    domain(lab, vm).snapshotCreateXML(
        "<domainsnapshot><name>s</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    )


def remove_all_of(lab: t.Any, vm: str, name: str) -> Outcome:
    """Remove a snapshot with those on top of it. Check mode must have said the same."""
    plan, target = Absent(Request(children="remove", foreign_allowed=True)), Target(vm, name)
    would, done = apply(lab.uri, plan, target, dry_run=True), apply(lab.uri, plan, target)
    assert would.word == done.word and bool(would.error) == bool(done.error), (would.error, done.error)
    return done


def test_a_branch_that_the_vm_is_not_on_is_removed_as_a_whole(new_lab: t.Any, newer: Make) -> None:
    vm = newer("apart")
    with_branches(new_lab, vm)
    done = remove_all_of(new_lab, vm, "f")
    assert (done.word, done.also_removed, done.error) == ("removed", ["a"], None)
    for name in "psp":
        revert(new_lab.uri, vm, name, foreign_allowed=True)
        assert reads(new_lab, vm, name)


def test_a_branch_that_the_vm_is_on_is_not_removed_as_a_whole_beside_another_one(new_lab: t.Any, newer: Make) -> None:
    vm = newer("under")
    with_branches(new_lab, vm)
    revert(new_lab.uri, vm, "a")
    done = remove_all_of(new_lab, vm, "f")
    assert done.error and (done.error.code, done.changed) == ("unsupported", False), done.word
    assert "remove s first" in str(done.error)
    for name in "spfa":
        revert(new_lab.uri, vm, name, foreign_allowed=True)
        assert reads(new_lab, vm, name)
